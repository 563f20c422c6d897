"""Settings of spilling: where primary copies go when memory is short, and when."""

from __future__ import annotations

from dataclasses import dataclass

from skate_object_store.constants import (
    SPILL_BATCH_BYTES,
    SPILL_DISK_FULL_FRACTION,
    SPILL_FUSE_MAX,
    SPILL_THRESHOLD,
)


@dataclass(frozen=True, slots=True)
class SpillConfig:
    """Where and when a store spills. Without directories and URL it does not.

    Raises ``ValueError`` for a value out of its range, and when both places are given.
    """

    directories: tuple[str, ...] = ()
    """Folders on this machine, used in turn; made, 0700, if absent."""
    url: str | None = None
    """A place that ``fsspec`` knows, such as ``s3://bucket/prefix``. Needs the extra ``fsspec``."""
    threshold: float = SPILL_THRESHOLD
    """Share of the capacity, 0 to 1. Spilling starts when more cannot be evicted: late enough that
    most programs never spill, early enough that a create seldom has to wait for the disk."""
    min_batch_bytes: int = SPILL_BATCH_BYTES
    """A file is filled with objects up to this size, if there are so many: a disk likes long
    writes, and an object store few keys."""
    fuse_max: int = SPILL_FUSE_MAX
    """Objects in one file at most: the file goes when the last of them is deleted."""
    disk_full_fraction: float = SPILL_DISK_FULL_FRACTION
    """Share of a folder's file system, 0 to 1, past which nothing more is spilled there: logs, and
    other programs, need the rest."""

    def __post_init__(self) -> None:
        if self.directories and self.url is not None:
            raise ValueError("spill into directories or to a URL, not both")
        for name in ("threshold", "disk_full_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        for name in ("min_batch_bytes", "fuse_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def is_on(self) -> bool:
        """Whether there is a place to spill to."""
        return bool(self.directories) or self.url is not None
