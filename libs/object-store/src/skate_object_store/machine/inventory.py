"""The objects in the arena and every index over them: by id, owner, reader, writer, last use.

What is on disk besides is the spill book's.

Before it: the object table decided that something happens to an object. After it: the allocator
gives and takes ranges. Nothing here waits; requests that cannot be met yet are the table's.

Each method costs O(1) besides the objects it returns or drops, unless it says otherwise.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.facts import Copy, Holder, ObjectRecord, ObjectState
from skate_object_store.machine.records import (
    STORE,
    ClientMisuseError,
    CreateRequest,
    Effect,
    Freed,
)


@dataclass(slots=True, eq=False)
class Entry:
    """One object that occupies a range."""

    object_id: bytes
    copy: Copy
    owner: bytes
    is_evictable: bool
    created_s: float
    creator: int | None
    """The client that writes it; None once sealed."""
    is_deleted: bool = False
    """Its id is free again; it stays for its writer or for views."""
    pins: dict[int, int] = field(default_factory=dict)
    """Views by client; every count > 0. Empty while it is written."""
    note: str = ""

    @property
    def views(self) -> int:
        """Views of all clients; the store's own hold is none."""
        return sum(self.pins.values()) - self.pins.get(STORE, 0)

    @property
    def is_sealed(self) -> bool:
        """Whether readers may have it."""
        return self.creator is None


@dataclass(slots=True, eq=False)
class _Share:
    """What one client holds."""

    pinned: dict[int, None] = field(default_factory=dict)  # serials with a pin of this client
    unsealed: dict[int, None] = field(default_factory=dict)  # serials that this client writes


@dataclass(frozen=True, slots=True)
class ByteCounts:
    """Bytes by state; :class:`TableStatistics` explains each."""

    unsealed: int
    primary: int
    pinned: int
    evictable: int
    deleted: int


class Inventory:
    """Objects and their indices over one arena."""

    def __init__(self, capacity_bytes: int) -> None:
        self.allocator = Allocator(capacity_bytes)
        self.created_total = 0
        self.evicted_total = 0
        self.evicted_bytes_total = 0
        self.evictable_bytes = 0  # rounded sizes of _evictable
        self._serials = itertools.count(1)
        self._entries: dict[int, Entry] = {}  # by serial; every object that occupies a range
        self._by_id: dict[bytes, Entry] = {}  # those not deleted
        self._by_owner: dict[bytes, dict[int, Entry]] = {}  # those not deleted, with an owner
        self._evictable: dict[int, Entry] = {}  # sealed, evictable, no pins; oldest use first
        self._idle: dict[int, Entry] = {}  # sealed, primary, no pins; oldest use first
        self._shares: dict[int, _Share] = {STORE: _Share()}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def idle_count(self) -> int:
        """Primary objects that nobody views: those that could be spilled."""
        return len(self._idle)

    def find(self, object_id: bytes) -> Entry | None:
        """The object with this id, sealed or not, unless it was deleted."""
        return self._by_id.get(object_id)

    def written_by(self, client: int, serial: int) -> Entry | None:
        """The object, if this client is writing it."""
        entry = self._entries.get(serial)
        return entry if entry is not None and entry.creator == client else None

    def owned_by(self, owner: bytes) -> list[Entry]:
        """The objects, not deleted, that bear this tag."""
        return list(self._by_owner.get(owner, {}).values())

    def connect(self, client: int) -> None:
        """A client that holds nothing yet; its number is new."""
        assert client not in self._shares
        self._shares[client] = _Share()

    def disconnect(self, client: int) -> list[Effect]:
        """The client is gone, and with it its pins and what it was writing."""
        share = self._shares[client]
        effects: list[Effect] = []
        for serial in list(share.unsealed):
            effects += self.drop(self._entries[serial])
        for serial in list(share.pinned):
            effects += self.unpin(client, serial, self._entries[serial].pins[client])
        del self._shares[client]
        return effects

    def reserve(self, wish: CreateRequest, now_s: float, effects: list[Effect]) -> Entry | None:
        """An unsealed object for an id that is free, or None without room for it.

        Evicts, oldest use first, as much as it takes; what was evicted is appended to ``effects``.
        """
        allocator = self.allocator
        offset = allocator.allocate(wish.size_bytes)
        free_bytes = allocator.capacity_bytes - allocator.used_bytes
        if offset is None and wish.size_bytes > free_bytes + self.evictable_bytes:
            return None  # Evicting everything would not help, so nothing is evicted in vain.
        while offset is None and self._evictable:
            effects += self.evict(1)
            offset = allocator.allocate(wish.size_bytes)
        if offset is None:
            return None
        copy = Copy(next(self._serials), offset, wish.size_bytes)
        entry = Entry(
            wish.object_id,
            copy,
            wish.owner,
            wish.is_evictable,
            now_s,
            creator=wish.client,
            note=wish.note,
        )
        self._entries[copy.serial] = self._by_id[wish.object_id] = entry
        if wish.owner:
            self._by_owner.setdefault(wish.owner, {})[copy.serial] = entry
        self._shares[wish.client].unsealed[copy.serial] = None
        self.created_total += wish.client != STORE
        return entry

    def seal(self, entry: Entry) -> None:
        """The object is whole. The caller pins it for whoever has waited, then settles it."""
        assert entry.creator is not None
        del self._shares[entry.creator].unsealed[entry.copy.serial]
        entry.creator = None

    def settle(self, entry: Entry) -> list[Effect]:
        """Place a sealed object whose pins may have ended: freed, evictable, or as it is."""
        if entry.pins:
            return []
        if entry.is_deleted:
            return self.drop(entry)
        if entry.is_evictable:
            self._evictable[entry.copy.serial] = entry
            self.evictable_bytes += self.allocator.size_of(entry.copy.offset)
        else:
            self._idle[entry.copy.serial] = entry
        return []

    def pin(self, entry: Entry, client: int, count: int) -> None:
        """The client has so many more views of a sealed object."""
        entry.pins[client] = entry.pins.get(client, 0) + count
        self._shares[client].pinned[entry.copy.serial] = None
        self._leave_rest(entry)

    def unpin(self, client: int, serial: int, count: int) -> list[Effect]:
        """Views have ended. Raises ``ClientMisuseError`` for more than the client has."""
        entry = self._entries.get(serial)
        held = 0 if entry is None else entry.pins.get(client, 0)
        if entry is None or not 0 < count <= held:
            raise ClientMisuseError(f"{count} pins of copy {serial} released, {held} held")
        if count < held:
            entry.pins[client] = held - count
            return []
        del entry.pins[client]
        del self._shares[client].pinned[serial]
        return self.settle(entry)

    def delete(self, entry: Entry) -> list[Effect]:
        """Free the id at once, and the range now or when nobody uses it any more."""
        if entry.is_sealed and not entry.pins:
            return self.drop(entry)
        self._forget_id(entry)
        return []

    def make_primary(self, entry: Entry) -> None:
        """A sealed object that could be evicted stays from now on until it is deleted."""
        self._leave_rest(entry)
        entry.is_evictable = False
        if not entry.pins:
            self._idle[entry.copy.serial] = entry

    def drop(self, entry: Entry) -> list[Effect]:
        """Free the range, and the id. Nobody reads it; if it was being written, no longer."""
        assert not entry.pins
        self._leave_rest(entry)
        if not entry.is_deleted:
            self._forget_id(entry)
        if entry.creator is not None:
            del self._shares[entry.creator].unsealed[entry.copy.serial]
        del self._entries[entry.copy.serial]
        return [Freed(entry.copy.offset, self.allocator.free(entry.copy.offset))]

    def evict(self, size_bytes: int) -> list[Effect]:
        """Drop evictable copies, oldest use first, until this much is freed or none is left."""
        effects: list[Effect] = []
        freed = 0
        while freed < size_bytes and self._evictable:
            entry = next(iter(self._evictable.values()))
            size = self.allocator.size_of(entry.copy.offset)
            freed += size
            self.evicted_total += 1
            self.evicted_bytes_total += size
            effects += self.drop(entry)
        return effects

    def take_idle(self, size_bytes: int, count_max: int) -> list[Entry]:
        """Hold primary objects without views, oldest use first, of about this many bytes.

        The store pins them: they stay readable and where they are until :meth:`let_go`.
        """
        taken: list[Entry] = []
        size = 0
        for entry in list(itertools.islice(self._idle.values(), count_max)):
            if size >= size_bytes:
                break
            self.pin(entry, STORE, 1)
            size += entry.copy.size_bytes
            taken.append(entry)
        return taken

    def let_go(self, entry: Entry) -> list[Effect]:
        """End the store's hold: the object is freed, evictable, idle, or viewed by others."""
        return self.unpin(STORE, entry.copy.serial, 1)

    @property
    def restoring_count(self) -> int:
        """Objects that the store itself is writing, from what is on disk."""
        return len(self._shares[STORE].unsealed)

    def held_serials(self) -> set[int]:
        """What the store holds. O(what it holds)."""
        return set(self._shares[STORE].pinned)

    def records(self, now_s: float, limit: int) -> list[ObjectRecord]:
        """The biggest objects in memory, biggest first, as if none were on disk. O(objects)."""
        biggest = heapq.nlargest(limit, self._entries.values(), key=lambda e: e.copy.size_bytes)
        return [
            ObjectRecord(
                object_id=entry.object_id,
                size_bytes=entry.copy.size_bytes,
                owner=entry.owner,
                state=_state(entry),
                pins=entry.views,
                age_s=now_s - entry.created_s,
                note=entry.note,
                is_on_disk=False,
            )
            for entry in biggest
        ]

    def holders(self, now_s: float, limit: int) -> list[Holder]:
        """The biggest objects that cannot be evicted, biggest first. O(objects)."""
        held = (entry for serial, entry in self._entries.items() if serial not in self._evictable)
        biggest = heapq.nlargest(limit, held, key=lambda entry: entry.copy.size_bytes)
        return [
            Holder(
                object_id=entry.object_id,
                owner=entry.owner,
                size_bytes=entry.copy.size_bytes,
                age_s=now_s - entry.created_s,
                pins=entry.views,
                is_sealed=entry.is_sealed,
                is_deleted=entry.is_deleted,
                note=entry.note,
            )
            for entry in biggest
        ]

    def count_bytes(self) -> ByteCounts:
        """Bytes by state. O(objects)."""
        unsealed = primary = pinned = deleted = 0
        for entry in self._entries.values():
            size = self.allocator.size_of(entry.copy.offset)
            unsealed += size * (not entry.is_sealed)
            primary += size * (entry.is_sealed and not entry.is_evictable)
            pinned += size * bool(entry.views)
            deleted += size * entry.is_deleted
        return ByteCounts(unsealed, primary, pinned, self.evictable_bytes, deleted)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless every index agrees with the objects. O(everything)."""
        self.allocator.check_invariants()
        entries = self._entries
        sizes = {s: self.allocator.size_of(entry.copy.offset) for s, entry in entries.items()}
        assert sum(sizes.values()) == self.allocator.used_bytes, "a range has exactly one object"
        live = {serial: entry for serial, entry in entries.items() if not entry.is_deleted}
        assert {entry.object_id: entry for entry in live.values()} == self._by_id
        owned: dict[bytes, dict[int, Entry]] = {}
        for serial, entry in live.items():
            if entry.owner:
                owned.setdefault(entry.owner, {})[serial] = entry
        assert owned == self._by_owner
        for serial, entry in entries.items():
            assert entry.copy.serial == serial
            assert all(count > 0 for count in entry.pins.values())
            assert entry.is_sealed or not entry.pins, "nobody reads an unsealed object"
            assert not entry.is_deleted or entry.pins or not entry.is_sealed
            is_evictable = entry.is_evictable and entry.is_sealed and not entry.pins
            assert (serial in self._evictable) == is_evictable
            is_idle = not entry.is_evictable and entry.is_sealed and not entry.pins
            assert (serial in self._idle) == is_idle
        assert self.evictable_bytes == sum(sizes[serial] for serial in self._evictable)
        assert self._idle.keys() <= entries.keys()
        for client, share in self._shares.items():
            assert set(share.pinned) == {s for s, e in entries.items() if client in e.pins}
            assert set(share.unsealed) == {s for s, e in entries.items() if e.creator == client}

    def _forget_id(self, entry: Entry) -> None:
        entry.is_deleted = True
        del self._by_id[entry.object_id]
        if entry.owner:
            owned = self._by_owner[entry.owner]
            del owned[entry.copy.serial]
            if not owned:
                del self._by_owner[entry.owner]

    def _leave_rest(self, entry: Entry) -> None:
        """The object is used, or goes: it is neither evictable nor to be spilled for now."""
        if not entry.is_evictable:
            self._idle.pop(entry.copy.serial, None)
        elif self._evictable.pop(entry.copy.serial, None) is not None:
            self.evictable_bytes -= self.allocator.size_of(entry.copy.offset)


def _state(entry: Entry) -> ObjectState:
    if entry.is_deleted:
        return ObjectState.DELETED
    if entry.creator == STORE:
        return ObjectState.RESTORING
    if entry.creator is not None:
        return ObjectState.WRITING
    return ObjectState.EVICTABLE if entry.is_evictable else ObjectState.PRIMARY
