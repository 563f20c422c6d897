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


@dataclass(frozen=True, slots=True)
class Copy:
    """A sealed object that was pinned for the client that asked."""

    serial: int
    """Names this copy in releases; never used again, even if the id is."""
    offset: int
    size_bytes: int
