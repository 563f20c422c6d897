"""Settings of a store server, beyond its socket and its capacity."""

from __future__ import annotations

from dataclasses import dataclass, field

from skate_object_store.constants import (
    COMMIT_AHEAD_MAX_BYTES,
    COMMIT_AHEAD_MIN_BYTES,
    TRIM_IDLE_S,
)
from skate_object_store.spill_config import SpillConfig


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How a store treats memory. The defaults suit a machine that is shared with other programs."""

    commit_ahead_min_bytes: int = COMMIT_AHEAD_MIN_BYTES
    """Pages kept ready beyond the used part, even when idle: the first puts find them warm."""
    commit_ahead_max_bytes: int = COMMIT_AHEAD_MAX_BYTES
    """Pages kept ready at most; in between it follows the bytes in use."""
    trim_idle_s: float = TRIM_IDLE_S
    """Nothing created or freed for this long: free pages go back. ``math.inf``: never."""
    arena_directory: str | None = None
    """None: a memfd. Otherwise an unlinked file in this directory backs the arena."""
    is_poisoning: bool = False
    """Overwrite freed ranges, so that tests see a use after free. Costs a copy per freed byte."""
    spill: SpillConfig = field(default_factory=SpillConfig)
    """Where primary copies go when memory is short. The default is off: a full store refuses."""
