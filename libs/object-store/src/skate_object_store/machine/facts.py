"""What the store tells its clients about objects: the records that travel.

Apart from the other records of the machine, because clients import these at start-up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class FullReason(IntEnum):
    """Why a create was refused for want of room."""

    TOO_LARGE = 1
    """The object exceeds the capacity: it can never fit."""
    NO_ROOM = 2
    """What is held leaves no range long enough, even with every evictable copy dropped."""
    MACHINE_SHORT = 3
    """The range is free but the machine has no pages for it."""
    DISK_FULL = 4
    """Memory is full, and the disk to which objects would be spilled is full too."""
    SPILL_FAILED = 5
    """Memory is full, and writing to the place for spilled objects fails."""


class ObjectState(IntEnum):
    """Where an object is in its life."""

    WRITING = 1
    """Created, not sealed."""
    PRIMARY = 2
    """In memory, and kept until it is deleted or spilled."""
    EVICTABLE = 3
    """In memory, and dropped when room is needed: a copy, or an object that is on disk as well."""
    SPILLED = 4
    """On disk only."""
    RESTORING = 5
    """On disk, and on its way back into memory."""
    DELETED = 6
    """Deleted, and kept only by those who view or write it."""
    LOST = 7
    """It was spilled, and what came back was not what had been written."""


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """One object, for people who ask where the memory went."""

    object_id: bytes
    size_bytes: int
    owner: bytes
    state: ObjectState
    pins: int
    """Views held by clients."""
    age_s: float
    """Since its creation."""
    note: str
    """What its creator said about it, such as the line that made it."""
    is_on_disk: bool


@dataclass(frozen=True, slots=True)
class Holder:
    """An object that occupies the store and cannot be evicted."""

    object_id: bytes
    owner: bytes
    size_bytes: int
    age_s: float
    """Since its creation."""
    pins: int
    """Views held by clients; 0 for a primary copy that nobody reads."""
    is_sealed: bool
    is_deleted: bool
    """Deleted by its owner, and kept only because ``pins > 0``."""
    note: str = ""
    """What its creator said about it, such as the line that made it."""


@dataclass(frozen=True, slots=True)
class Fullness:
    """The state that refused a create."""

    reason: FullReason
    requested_bytes: int
    capacity_bytes: int
    used_bytes: int
    evictable_bytes: int
    holders: tuple[Holder, ...]
    """The biggest first."""
    detail: str = ""
    """What the disk said, if it is to blame."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A sealed object that was pinned for the client that asked."""

    serial: int
    """Names this copy in releases; never used again, even if the id is."""
    offset: int
    size_bytes: int
