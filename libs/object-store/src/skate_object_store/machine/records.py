"""What the object table is told, what it answers, and what it knows about itself.

The table's methods mutate it and return :data:`Effect` values in order; the server's loop carries
them out. ``client`` and ``request`` are numbers that the shell chose: a connection and a request on
it.
"""

from __future__ import annotations

from dataclasses import dataclass

from skate_object_store.machine.facts import Copy, Fullness

STORE = 0
"""The client number of the store itself: it pins what it spills and writes what it restores."""


class ClientMisuseError(Exception):
    """A client sent what no honest one can, such as a pin not held; its connection ends."""


@dataclass(slots=True)
class CreateRequest:
    """A wish for ``size_bytes`` of room, to be answered by ``deadline_s`` at the latest.

    Never changed. Not frozen, because one is made for each put and freezing nine fields would add
    half a microsecond to it.
    """

    client: int
    request: int
    object_id: bytes
    size_bytes: int
    owner: bytes
    """Whose death deletes the object; empty: nobody's."""
    is_evictable: bool
    """A secondary copy, which may be dropped while nobody has a view of it."""
    deadline_s: float
    is_for_spilling_only: bool = False
    """Wait only as long as spilling can make room, not for what others may give back."""
    note: str = ""
    """What the creator says about the object."""
    takes_late_pages: bool = False
    """The creator asks for pages while it writes, and writes nowhere else."""


@dataclass(frozen=True, slots=True)
class Created:
    """Reply to a create. Duty: the range has its pages before the reply leaves, or late ones.

    If the client is :data:`STORE`, the reply is :meth:`ObjectTable.read_back`.
    """

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
class GotPart:
    """Reply to a get whose time is over: what was found, pinned, and what is being restored."""

    client: int
    request: int
    copies: tuple[Copy | None, ...]
    restoring: tuple[int, ...]
    """Positions, ascending, that are worth asking for again."""


@dataclass(frozen=True, slots=True)
class GetLost:
    """Reply to a get of an object whose spilled copy cannot be read. It pins nothing."""

    client: int
    request: int
    object_id: bytes
    cause: str
    is_final: bool = True
    """False: the next get may read it."""


@dataclass(frozen=True, slots=True)
class GetUnrestored:
    """Reply to a get of a spilled object for which there is no room in memory. It pins nothing."""

    client: int
    request: int
    object_id: bytes
    fullness: Fullness


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


@dataclass(frozen=True, slots=True)
class SpillItem:
    """A sealed object to be written; it stays where it is, and readable, until that has ended."""

    serial: int
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WriteBatch:
    """Write these objects into one file. Answered by :meth:`ObjectTable.spill_ended`."""

    number: int
    items: tuple[SpillItem, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of an object are on disk, and what they add up to."""

    file_key: str
    position: int
    size_bytes: int
    checksum: int
    """CRC-32."""


@dataclass(frozen=True, slots=True)
class SpillFailure:
    """Why objects were not written."""

    cause: str
    is_disk_full: bool


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Read an object into its new range. Answered by ``restored`` or ``restore_failed``."""

    serial: int
    offset: int
    place: Place


@dataclass(frozen=True, slots=True)
class DeleteFile:
    """No object in this file is wanted any more. Not answered."""

    file_key: str


Reply = Created | CreateExists | CreateRefused | Got | GotPart | GetLost | GetUnrestored | Ready
Effect = Reply | Freed | WriteBatch | ReadBack | DeleteFile


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
    """Sealed primary copies in memory that are not on disk, pinned or not."""
    pinned_bytes: int
    """Sealed objects that at least one client has a view of."""
    evictable_bytes: int
    """Secondary copies, and objects that are on disk as well, without views: dropped, oldest use
    first, when room is needed."""
    deleted_bytes: int
    """Deleted objects that views keep."""
    clients: int
    waiting_requests: int
    created_total: int
    evicted_total: int
    evicted_bytes_total: int
    spilled_objects: int
    """On disk only."""
    spilled_bytes: int
    disk_objects: int
    """On disk, whether in memory too or not."""
    disk_bytes: int
    disk_files: int
    disk_files_bytes: int
    """Deleted objects in files that others keep included."""
    spilling_objects: int
    """Being written to disk."""
    restoring_objects: int
    """Being read from disk, or waiting for room."""
    lost_objects: int
    """Could not be read back, and were not deleted since."""
    spilled_total: int
    spilled_bytes_total: int
    restored_total: int
    restored_bytes_total: int
    spill_failures_total: int
    restore_failures_total: int
