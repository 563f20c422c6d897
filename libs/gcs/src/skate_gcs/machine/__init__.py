"""The GCS's decisions, without I/O: tables that take events and return commands."""

from __future__ import annotations

from skate_gcs.machine.clock import Now, Wakeup
from skate_gcs.machine.gcs_machine import GcsMachine, SavedState
from skate_gcs.machine.limits import GcsLimits

__all__ = ["GcsLimits", "GcsMachine", "Now", "SavedState", "Wakeup"]
