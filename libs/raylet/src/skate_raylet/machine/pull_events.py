"""What the pull planner is told, and what it orders. Ids are raw bytes, times come beside.

A *pull* is one process's wish for a copy of an object in this node's store; a *transfer* brings the
bytes, once for all pulls of the object; a *range* is the part of it that one source sends.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class RoomRefusal(Enum):
    """Why the store did not reserve room for a copy."""

    SEALED = "sealed"  # the object is here already
    BEING_WRITTEN = "being_written"  # a process of this node makes it at this moment
    FULL = "full"  # room may come
    TOO_LARGE = "too_large"  # room can never come
    FAILED = "failed"  # the store does not answer


# ---- events ----


class PullRequested(msgspec.Struct, frozen=True):
    """A process wants a copy of an object here. Repeating a known ``pull_id`` changes nothing."""

    process_id: bytes
    pull_id: int
    object_id: bytes
    size_bytes: int
    owner_id: bytes
    node_ids: tuple[bytes, ...]  # who holds it, best first
    priority: int  # 0 first
    arriving_at: tuple[bytes, ...] = ()  # to be asked before them: a copy is on its way there


class PullCancelled(msgspec.Struct, frozen=True):
    """A process no longer waits; a pull that has ended is not affected."""

    process_id: bytes
    pull_id: int


class ProcessGone(msgspec.Struct, frozen=True):
    """A process of this node ended: nobody is to be told of its pulls any more."""

    process_id: bytes


class OwnerGone(msgspec.Struct, frozen=True):
    """The owner of objects died, and they with it."""

    owner_id: bytes
    why: str


class NodeSeen(msgspec.Struct, frozen=True):
    """A node is alive and it is known where it serves objects."""

    node_id: bytes


class NodeGone(msgspec.Struct, frozen=True):
    """A node died, and its store with it."""

    node_id: bytes
    why: str


class RoomMade(msgspec.Struct, frozen=True):
    """Answers :class:`MakeRoom`: the copy can be written."""

    object_id: bytes


class RoomRefused(msgspec.Struct, frozen=True):
    """Answers :class:`MakeRoom`."""

    object_id: bytes
    reason: RoomRefusal
    message: str = ""
    fullness: bytes = b""  # the store's account of itself, for who waits; opaque here


class RoomWithdrawn(msgspec.Struct, frozen=True):
    """The store has no memory for the rest of a copy that is being fetched. Comes at most once.

    It may come after the transfer has ended, and even in the next one of the same object.
    """

    object_id: bytes
    message: str
    fullness: bytes = b""


class RangeProgressed(msgspec.Struct, frozen=True):
    """Bytes of a range have come since it was last heard of."""

    object_id: bytes
    range_id: int


class RangeFetched(msgspec.Struct, frozen=True):
    """Answers :class:`FetchRange`: every byte of the range is in its place."""

    object_id: bytes
    range_id: int


class RangeFailed(msgspec.Struct, frozen=True):
    """Answers :class:`FetchRange`: nobody writes to the range any more.

    The first ``received_bytes`` of it are in their place. ``is_absent``: the source says that it
    does not have the object; asking again is of no use.
    """

    object_id: bytes
    range_id: int
    received_bytes: int
    message: str
    is_absent: bool = False


class CopySealed(msgspec.Struct, frozen=True):
    """Answers :class:`SealCopy`. ``problem`` not empty: the store did not take it."""

    object_id: bytes
    problem: str = ""


class CopyDropped(msgspec.Struct, frozen=True):
    """Answers :class:`DropCopy`."""

    object_id: bytes


class TimePassed(msgspec.Struct, frozen=True):
    """The planner asked to be woken by now."""


PullEvent = (
    PullRequested
    | PullCancelled
    | ProcessGone
    | OwnerGone
    | NodeSeen
    | NodeGone
    | RoomMade
    | RoomRefused
    | RoomWithdrawn
    | RangeProgressed
    | RangeFetched
    | RangeFailed
    | CopySealed
    | CopyDropped
    | TimePassed
)


# ---- commands ----


class MakeRoom(msgspec.Struct, frozen=True):
    """Reserve room in the store. Answered by RoomMade or RoomRefused, soon in either case."""

    object_id: bytes
    size_bytes: int
    owner_id: bytes


class FetchRange(msgspec.Struct, frozen=True):
    """Have a source send a range into the reserved room; RangeFetched or RangeFailed answers."""

    object_id: bytes
    range_id: int
    node_id: bytes
    offset: int
    length: int
    size_bytes: int  # of the whole object, which the source must agree to
    is_arriving: bool = False  # the source may not have it yet, and sends it as it comes


class StopRange(msgspec.Struct, frozen=True):
    """Make a range end; it still answers, as it would have, or by RangeFailed."""

    object_id: bytes
    range_id: int


class SealCopy(msgspec.Struct, frozen=True):
    """Publish the copy, every byte of which is there. Answered by CopySealed."""

    object_id: bytes


class DropCopy(msgspec.Struct, frozen=True):
    """Give the reserved room back; no range is under way. Answered by CopyDropped."""

    object_id: bytes


class EndPull(msgspec.Struct, frozen=True):
    """Tell a process how its pull ended, exactly once; as ``PullEnded`` of the node's protocol."""

    process_id: bytes
    pull_id: int
    kind: str = ""
    message: str = ""
    lost_at: tuple[bytes, ...] = ()
    fullness: bytes = b""


PullCommand = MakeRoom | FetchRange | StopRange | SealCopy | DropCopy | EndPull
