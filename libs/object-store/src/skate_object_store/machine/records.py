"""What the object table is told, what it answers, and what it knows about itself.

The table's methods mutate it and return :data:`Effect` values in order; the server's loop carries
them out. ``client`` and ``request`` are numbers that the shell chose: a connection and a request on
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from skate_object_store.machine.facts import Copy, Fullness


class ClientMisuseError(Exception):
    """A client sent what no honest one can, such as a pin not held; its connection ends."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A wish for ``size_bytes`` of room, to be answered by ``deadline_s`` at the latest."""

    client: int
    request: int
    object_id: bytes
    size_bytes: int
    owner: bytes
    """Whose death deletes the object; empty: nobody's."""
    is_evictable: bool
    """A secondary copy, which may be dropped while nobody has a view of it."""
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Created:
    """Reply to a create. Duty: the range has its pages before the reply leaves."""

    wish: CreateRequest
    serial: int
    offset: int


@dataclass(frozen=True, slots=True)
class CreateExists:
    """Reply to a create of an id that is there, sealed or being written."""

    client: int
    request: int
    is_sealed: bool


@dataclass(frozen=True, slots=True)
class CreateRefused:
    """Reply to a create that found no room by its deadline."""

    client: int
    request: int
    fullness: Fullness


@dataclass(frozen=True, slots=True)
class Got:
    """Reply to a get, in the order of its ids; every copy in it carries one pin of the client."""

    client: int
    request: int
    copies: tuple[Copy | None, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """Reply to a wait: positions in its list of ids, ascending."""

    client: int
    request: int
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Freed:
    """A range is empty. Duty: carried out before later effects, which may reuse it."""

    offset: int
    size_bytes: int


Reply = Created | CreateExists | CreateRefused | Got | Ready
Effect = Reply | Freed


@dataclass(frozen=True, slots=True)
class Wakeup:
    """When the table wants :meth:`ObjectTable.expire` called, and for what."""

    at_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class TableStatistics:
    """Counts of one moment. Bytes include rounding to the allocator's classes."""

    capacity_bytes: int
    used_bytes: int
    """Ranges that hold an object."""
    largest_free_bytes: int
    """The longest object that fits without evicting; less than the free bytes when fragmented."""
    objects: int
    unsealed_bytes: int
    primary_bytes: int
    """Sealed primary copies, pinned or not."""
    pinned_bytes: int
    """Sealed objects that at least one client has a view of."""
    evictable_bytes: int
    """Secondary copies without views: dropped, oldest use first, when room is needed."""
    deleted_bytes: int
    """Deleted objects that views keep."""
    clients: int
    waiting_requests: int
    created_total: int
    evicted_total: int
    evicted_bytes_total: int
