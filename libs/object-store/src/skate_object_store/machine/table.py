"""Which objects live in the arena, who holds them, and what goes when room is needed.

Before it: the server decoded a client's frame. After it: the server sends the returned replies.

An object's life::

    create ──> unsealed ──seal──> sealed ──delete──> deleted ──last pin dropped──> freed
                  │                 │ ▲
        abort or creator's death    │ └─ get (+1 pin per client), release (-1)
                  ▼                 ▼
                freed     evicted, if it is a secondary copy without pins

A *primary* copy stays until it is deleted; an *evictable* (secondary) one may be dropped, the least
recently used first, while no client has a pin on it. Deleting takes the id away at once and the
bytes when the last pin goes, so that a view never sees its memory reused. Pins name a copy by its
serial, not by its
id: the id may be created again while views of the deleted copy live.

Each event costs O(ids it names) besides the replies it causes; a refused create also costs
O(objects), to find the biggest holders.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from skate_object_store.constants import HOLDERS_MAX
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.records import (
    ClientMisuseError,
    Copy,
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    Freed,
    Fullness,
    FullReason,
    Got,
    Holder,
    Ready,
    TableStatistics,
    Wakeup,
)
from skate_object_store.machine.waiters import Waiter, WaitList


@dataclass(slots=True, eq=False)
class _Object:
    object_id: bytes
    copy: Copy
    owner: bytes
    is_evictable: bool
    created_s: float
    creator: int | None  # The client that writes it; None once sealed.
    is_deleted: bool = False
    pins: dict[int, int] = field(default_factory=dict)  # client -> count > 0


@dataclass(slots=True, eq=False)
class _Client:
    pinned: dict[int, None] = field(default_factory=dict)  # serials with a pin of this client
    unsealed: dict[int, None] = field(default_factory=dict)  # serials that this client writes
    requests: dict[int, None] = field(default_factory=dict)  # not answered yet


class ObjectTable:
    """The state machine of one store. Times are seconds of any one monotonic clock."""

    def __init__(self, capacity_bytes: int) -> None:
        self.allocator = Allocator(capacity_bytes)
        self._serials = itertools.count(1)
        self._objects: dict[int, _Object] = {}  # by serial; every object that occupies a range
        self._by_id: dict[bytes, _Object] = {}  # those not deleted
        self._by_owner: dict[bytes, dict[int, _Object]] = {}  # those not deleted, with an owner
        self._evictable: dict[int, _Object] = {}  # sealed, secondary, no pins; oldest use first
        self._evictable_bytes = 0  # rounded sizes of _evictable
        self._clients: dict[int, _Client] = {}
        self._waiters = WaitList()
        self._creates: dict[tuple[int, int], CreateRequest] = {}  # waiting for room, in order
        self._created_total = 0
        self._evicted_total = 0
        self._evicted_bytes_total = 0

    # What clients ask.

    def connect(self, client: int) -> None:
        """A client is there; its number is new."""
        assert client not in self._clients
        self._clients[client] = _Client()

    def create(self, wish: CreateRequest, now_s: float) -> list[Effect]:
        """Reserve room, evicting if needed; or park the wish until its deadline; or refuse it.

        Wishes that may wait are served in order of arrival, so that small ones cannot starve a
        large one.
        """
        effects: list[Effect] = []
        self._check_request(wish.client, wish.request)
        can_wait = wish.deadline_s > now_s and wish.size_bytes <= self.allocator.capacity_bytes
        has_to_queue = can_wait and bool(self._creates)
        if not has_to_queue and self._try_create(wish, now_s, effects):
            return effects
        if can_wait:
            self._creates[wish.client, wish.request] = wish
            self._clients[wish.client].requests[wish.request] = None
        else:
            effects.append(self._refuse(wish, now_s))
        return effects

    def seal(self, client: int, serial: int, now_s: float, *, keeps_pin: bool) -> list[Effect]:
        """The object is whole: readers may have it. ``keeps_pin``: the writer still has a view."""
        entry = self._written_by(client, serial)
        entry.creator = None
        del self._clients[client].unsealed[serial]
        if keeps_pin:
            self._pin(entry, client, 1)
        effects: list[Effect] = []
        if not entry.is_deleted:
            for waiter in self._waiters.missing(entry.object_id):
                if waiter.is_get:
                    self._pin(entry, waiter.client, len(waiter.missing[entry.object_id]))
                self._waiters.found(waiter, entry.object_id, entry.copy)
                if waiter.is_satisfied:
                    self._waiters.remove(waiter.client, waiter.request)
                    effects.append(self._answer(waiter))
        effects += self._settle(entry)
        return effects + self._serve_creates(now_s)

    def abort(self, client: int, serial: int, now_s: float) -> list[Effect]:
        """The writer gives up: the id is free again, and so is the range.

        Nothing happens unless the client is writing it: an interrupted client aborts to be safe.
        """
        if not self.is_unsealed(client, serial):
            return []
        entry = self._objects[serial]
        del self._clients[client].unsealed[serial]
        return [*self._drop(entry), *self._serve_creates(now_s)]

    def get(
        self,
        client: int,
        request: int,
        object_ids: Sequence[bytes],
        now_s: float,
        deadline_s: float,
    ) -> list[Effect]:
        """Pin and return every object; those missing are awaited until ``deadline_s``."""
        waiter = Waiter(client, request, object_ids, True, len(object_ids), deadline_s)
        return self._look_up(waiter, now_s)

    def wait(
        self,
        client: int,
        request: int,
        object_ids: Sequence[bytes],
        found_wanted: int,
        now_s: float,
        deadline_s: float,
    ) -> list[Effect]:
        """Say which objects are there, once ``found_wanted`` are, or at ``deadline_s``. No pins."""
        wanted = min(max(found_wanted, 1), len(object_ids))
        waiter = Waiter(client, request, object_ids, False, wanted, deadline_s)
        return self._look_up(waiter, now_s)

    def cancel(self, client: int, request: int, now_s: float) -> list[Effect]:
        """The client does not want to wait any longer: answer with what there is.

        Every request is answered exactly once, so that the client knows when it is over, and can
        give back what the answer grants. Nothing happens if it was answered before.
        """
        wish = self._creates.get((client, request))
        if wish is not None:
            self._unpark(wish)
            return [self._refuse(wish, now_s), *self._serve_creates(now_s)]
        waiter = self._waiters.remove(client, request)
        return [] if waiter is None else [self._answer(waiter)]

    def release(self, client: int, pins: Iterable[tuple[int, int]], now_s: float) -> list[Effect]:
        """Drop pins: (serial, count) pairs. Raises ``ClientMisuseError`` for a pin not held."""
        effects: list[Effect] = []
        for serial, count in pins:
            effects += self._unpin(client, serial, count)
        return effects + self._serve_creates(now_s)

    def delete(self, object_ids: Iterable[bytes], now_s: float) -> list[Effect]:
        """Forget these ids; ranges are freed as views of them end. Unknown ids are no error."""
        effects: list[Effect] = []
        for object_id in object_ids:
            entry = self._by_id.get(object_id)
            if entry is not None:
                effects += self._delete(entry)
        return effects + self._serve_creates(now_s)

    # What happens around clients.

    def release_owner(self, owner: bytes, now_s: float) -> list[Effect]:
        """The owner is gone: delete everything that bears its tag."""
        effects: list[Effect] = []
        for entry in list(self._by_owner.get(owner, {}).values()):
            effects += self._delete(entry)
        return effects + self._serve_creates(now_s)

    def client_gone(self, client: int, now_s: float) -> list[Effect]:
        """Drop the client's pins, its unsealed objects and its requests. Sealed objects stay."""
        state = self._clients[client]
        effects: list[Effect] = []
        for request in state.requests:
            self._creates.pop((client, request), None)
            self._waiters.remove(client, request)  # What it pinned is among the client's pins.
        for serial in list(state.unsealed):
            effects += self._drop(self._objects[serial])
        for serial in list(state.pinned):
            effects += self._unpin(client, serial, self._objects[serial].pins[client])
        del self._clients[client]
        return effects + self._serve_creates(now_s)

    def machine_short(self, created: Created, now_s: float) -> list[Effect]:
        """The machine has no pages for a range that was reserved: take it back and say so."""
        wish = created.wish
        entry = self._written_by(wish.client, created.serial)
        del self._clients[wish.client].unsealed[created.serial]
        effects = self._drop(entry)
        effects.append(self._refuse(wish, now_s, FullReason.MACHINE_SHORT))
        return effects + self._serve_creates(now_s)

    def evict(self, size_bytes: int) -> list[Effect]:
        """Drop evictable copies, oldest use first, until this much is freed or none is left."""
        effects: list[Effect] = []
        freed = 0
        while freed < size_bytes and self._evictable:
            entry = next(iter(self._evictable.values()))
            size = self.allocator.size_of(entry.copy.offset)
            freed += size
            self._evicted_total += 1
            self._evicted_bytes_total += size
            effects += self._drop(entry)
        return effects

    def expire(self, now_s: float) -> list[Effect]:
        """Answer every request whose deadline has come with what there is."""
        effects: list[Effect] = [self._answer(waiter) for waiter in self._waiters.due(now_s)]
        late = [wish for wish in self._creates.values() if wish.deadline_s <= now_s]
        for wish in late:
            self._unpark(wish)
            effects.append(self._refuse(wish, now_s))
        return effects + (self._serve_creates(now_s) if late else [])

    def next_wakeup(self) -> Wakeup | None:
        """The earliest deadline. O(creates that wait for room)."""
        wakeups = [Wakeup(wish.deadline_s, "create") for wish in self._creates.values()]
        deadline_s = self._waiters.next_deadline_s()
        if deadline_s is not None:
            wakeups.append(Wakeup(deadline_s, "get or wait"))
        return min(wakeups, key=lambda wakeup: wakeup.at_s, default=None)

    # What it knows.

    def waiting_requests(self, client: int) -> int:
        """Requests of this client that are not answered yet."""
        return len(self._clients[client].requests)

    def is_unsealed(self, client: int, serial: int) -> bool:
        """Whether this client is still writing this copy."""
        entry = self._objects.get(serial)
        return entry is not None and entry.creator == client

    def holders(self, now_s: float, limit: int = HOLDERS_MAX) -> list[Holder]:
        """The biggest objects that cannot be evicted, biggest first. O(objects)."""
        held = (entry for serial, entry in self._objects.items() if serial not in self._evictable)
        biggest = heapq.nlargest(limit, held, key=lambda entry: entry.copy.size_bytes)
        return [
            Holder(
                object_id=entry.object_id,
                owner=entry.owner,
                size_bytes=entry.copy.size_bytes,
                age_s=now_s - entry.created_s,
                pins=sum(entry.pins.values()),
                is_sealed=entry.creator is None,
                is_deleted=entry.is_deleted,
            )
            for entry in biggest
        ]

    def statistics(self) -> TableStatistics:
        """Counts of this moment. O(objects)."""
        unsealed = primary = pinned = deleted = 0
        for entry in self._objects.values():
            size = self.allocator.size_of(entry.copy.offset)
            unsealed += size * (entry.creator is not None)
            primary += size * (entry.creator is None and not entry.is_evictable)
            pinned += size * bool(entry.pins)
            deleted += size * entry.is_deleted
        return TableStatistics(
            capacity_bytes=self.allocator.capacity_bytes,
            used_bytes=self.allocator.used_bytes,
            largest_free_bytes=self.allocator.largest_free_bytes(),
            objects=len(self._objects),
            unsealed_bytes=unsealed,
            primary_bytes=primary,
            pinned_bytes=pinned,
            evictable_bytes=self._evictable_bytes,
            deleted_bytes=deleted,
            clients=len(self._clients),
            waiting_requests=len(self._waiters) + len(self._creates),
            created_total=self._created_total,
            evicted_total=self._evicted_total,
            evicted_bytes_total=self._evicted_bytes_total,
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless every index agrees with the objects. O(everything)."""
        self.allocator.check_invariants()
        self._waiters.check_invariants()
        sizes = {
            serial: self.allocator.size_of(entry.copy.offset)
            for serial, entry in self._objects.items()
        }
        assert sum(sizes.values()) == self.allocator.used_bytes, "a range has exactly one object"
        live = {serial: entry for serial, entry in self._objects.items() if not entry.is_deleted}
        assert {entry.object_id: entry for entry in live.values()} == self._by_id
        owned: dict[bytes, dict[int, _Object]] = {}
        for serial, entry in live.items():
            if entry.owner:
                owned.setdefault(entry.owner, {})[serial] = entry
        assert owned == self._by_owner
        for serial, entry in self._objects.items():
            assert entry.copy.serial == serial
            assert all(count > 0 for count in entry.pins.values())
            assert not (entry.pins and entry.creator is not None), "nobody reads an unsealed object"
            assert not entry.is_deleted or entry.pins or entry.creator is not None
            is_evictable = entry.is_evictable and entry.creator is None and not entry.pins
            assert (serial in self._evictable) == is_evictable
        assert self._evictable_bytes == sum(sizes[serial] for serial in self._evictable)
        for client, state in self._clients.items():
            assert set(state.pinned) == {s for s, e in self._objects.items() if client in e.pins}
            assert set(state.unsealed) == {
                s for s, e in self._objects.items() if e.creator == client
            }
        parked = sum(len(state.requests) for state in self._clients.values())
        assert parked == len(self._waiters) + len(self._creates)

    # Helpers, in call order.

    def _try_create(self, wish: CreateRequest, now_s: float, effects: list[Effect]) -> bool:
        """Append the answer, and whatever it took; False if there is no room."""
        existing = self._by_id.get(wish.object_id)
        if existing is not None:
            effects.append(CreateExists(wish.client, wish.request, existing.creator is None))
            return True
        offset = self.allocator.allocate(wish.size_bytes)
        free_bytes = self.allocator.capacity_bytes - self.allocator.used_bytes
        if offset is None and wish.size_bytes > free_bytes + self._evictable_bytes:
            return False  # Evicting everything would not help, so nothing is evicted in vain.
        while offset is None and self._evictable:
            effects += self.evict(1)
            offset = self.allocator.allocate(wish.size_bytes)
        if offset is None:
            return False
        copy = Copy(next(self._serials), offset, wish.size_bytes)
        entry = _Object(
            wish.object_id, copy, wish.owner, wish.is_evictable, now_s, creator=wish.client
        )
        self._objects[copy.serial] = entry
        self._by_id[wish.object_id] = entry
        if wish.owner:
            self._by_owner.setdefault(wish.owner, {})[copy.serial] = entry
        self._clients[wish.client].unsealed[copy.serial] = None
        self._created_total += 1
        effects.append(Created(wish, copy.serial, offset))
        return True

    def _refuse(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> CreateRefused:
        if wish.size_bytes > self.allocator.capacity_bytes:
            reason = FullReason.TOO_LARGE
        fullness = Fullness(
            reason=reason,
            requested_bytes=wish.size_bytes,
            capacity_bytes=self.allocator.capacity_bytes,
            used_bytes=self.allocator.used_bytes,
            evictable_bytes=self._evictable_bytes,
            holders=tuple(self.holders(now_s)),
        )
        return CreateRefused(wish.client, wish.request, fullness)

    def _serve_creates(self, now_s: float) -> list[Effect]:
        """Grant parked wishes in order, up to the first for which there is no room."""
        effects: list[Effect] = []
        while self._creates:
            wish = next(iter(self._creates.values()))
            if not self._try_create(wish, now_s, effects):
                break
            self._unpark(wish)
        return effects

    def _unpark(self, wish: CreateRequest) -> None:
        del self._creates[wish.client, wish.request]
        del self._clients[wish.client].requests[wish.request]

    def _check_request(self, client: int, request: int) -> None:
        if request in self._clients[client].requests:
            raise ClientMisuseError(f"request {request} is under way already")

    def _written_by(self, client: int, serial: int) -> _Object:
        entry = self._objects.get(serial)
        if entry is None or entry.creator != client:
            raise ClientMisuseError(f"copy {serial} is not being written by this client")
        return entry

    def _look_up(self, waiter: Waiter, now_s: float) -> list[Effect]:
        self._check_request(waiter.client, waiter.request)
        waiter.found = [None] * len(waiter.object_ids)
        for position, object_id in enumerate(waiter.object_ids):
            entry = self._by_id.get(object_id)
            if entry is None or entry.creator is not None:
                waiter.missing.setdefault(object_id, []).append(position)
                continue
            waiter.found[position] = entry.copy
            waiter.found_count += 1
            if waiter.is_get:
                self._pin(entry, waiter.client, 1)
        if waiter.is_satisfied or waiter.deadline_s <= now_s:
            return [self._answer(waiter, is_parked=False)]
        self._waiters.add(waiter)
        self._clients[waiter.client].requests[waiter.request] = None
        return []

    def _answer(self, waiter: Waiter, *, is_parked: bool = True) -> Effect:
        if is_parked:
            del self._clients[waiter.client].requests[waiter.request]
        if waiter.is_get:
            return Got(waiter.client, waiter.request, tuple(waiter.found))
        positions = (position for position, copy in enumerate(waiter.found) if copy is not None)
        return Ready(waiter.client, waiter.request, tuple(positions))

    def _pin(self, entry: _Object, client: int, count: int) -> None:
        entry.pins[client] = entry.pins.get(client, 0) + count
        self._clients[client].pinned[entry.copy.serial] = None
        self._leave_evictable(entry)

    def _unpin(self, client: int, serial: int, count: int) -> list[Effect]:
        entry = self._objects.get(serial)
        held = 0 if entry is None else entry.pins.get(client, 0)
        if entry is None or not 0 < count <= held:
            raise ClientMisuseError(f"{count} pins of copy {serial} released, {held} held")
        if count < held:
            entry.pins[client] = held - count
            return []
        del entry.pins[client]
        del self._clients[client].pinned[serial]
        return self._settle(entry)

    def _settle(self, entry: _Object) -> list[Effect]:
        """Place a sealed object whose pins may have ended: freed, evictable, or as it is."""
        if entry.pins:
            return []
        if entry.is_deleted:
            return self._drop(entry)
        if entry.is_evictable:
            self._evictable[entry.copy.serial] = entry
            self._evictable_bytes += self.allocator.size_of(entry.copy.offset)
        return []

    def _delete(self, entry: _Object) -> list[Effect]:
        if not entry.pins and entry.creator is None:
            return self._drop(entry)
        self._forget_id(entry)
        return []

    def _drop(self, entry: _Object) -> list[Effect]:
        """Free the range of an object that nobody has a view of."""
        self._leave_evictable(entry)
        if not entry.is_deleted:
            self._forget_id(entry)
        del self._objects[entry.copy.serial]
        return [Freed(entry.copy.offset, self.allocator.free(entry.copy.offset))]

    def _forget_id(self, entry: _Object) -> None:
        entry.is_deleted = True
        del self._by_id[entry.object_id]
        if entry.owner:
            owned = self._by_owner[entry.owner]
            del owned[entry.copy.serial]
            if not owned:
                del self._by_owner[entry.owner]

    def _leave_evictable(self, entry: _Object) -> None:
        if self._evictable.pop(entry.copy.serial, None) is not None:
            self._evictable_bytes -= self.allocator.size_of(entry.copy.offset)
