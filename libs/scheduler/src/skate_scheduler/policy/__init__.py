"""Placement policies: plain functions, one per file."""

from __future__ import annotations

from skate_scheduler.policy.hybrid import Fit, HybridConfig, Placement, choose_node
from skate_scheduler.policy.spread import choose_spread

__all__ = ["Fit", "HybridConfig", "Placement", "choose_node", "choose_spread"]
