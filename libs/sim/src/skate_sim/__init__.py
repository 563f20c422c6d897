"""The seeded simulator of a whole Skate cluster: see the README."""

from __future__ import annotations

from skate_sim.oracle import Violation
from skate_sim.scenarios import NAMES, Scenario, draw
from skate_sim.world import World

__all__ = ["NAMES", "Scenario", "Violation", "World", "draw"]
