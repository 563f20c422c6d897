"""Which objects live in the arena, who holds them, and what goes when room is needed.

Before it: the server decoded a client's frame. After it: the server sends the returned replies. The
objects themselves are in the inventory; here are the requests, those that wait included.

An object's life::

    create ──> unsealed ──seal──> sealed ──delete──> deleted ──last pin dropped──> freed
                  │                 │ ▲
        abort or creator's death    │ └─ get (+1 pin per client), release (-1)
                  ▼                 ▼
                freed     evicted, if it is a secondary copy without pins

A *primary* copy stays until it is deleted; an *evictable* (secondary) one may be dropped, the least
recently used first, while no client has a pin on it. Deleting takes the id away at once and the
bytes when the last pin goes, so that a view never sees its memory reused. Pins name a copy by its
serial, not by its id: the id may be created again while views of the deleted copy live.

Each event costs O(ids it names) besides the replies it causes; a refused create also costs
O(objects), to find the biggest holders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skate_object_store.constants import HOLDERS_MAX
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.facts import Fullness, FullReason, Holder
from skate_object_store.machine.inventory import Inventory
from skate_object_store.machine.records import (
    ClientMisuseError,
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    Got,
    Ready,
    TableStatistics,
    Wakeup,
)
from skate_object_store.machine.waiters import Waiter, WaitList


class ObjectTable:
    """The state machine of one store. Times are seconds of any one monotonic clock."""

    def __init__(self, capacity_bytes: int) -> None:
        self._inventory = Inventory(capacity_bytes)
        self._requests: dict[int, dict[int, None]] = {}  # by client, those not answered yet
        self._waiters = WaitList()
        self._creates: dict[tuple[int, int], CreateRequest] = {}  # waiting for room, in order

    @property
    def allocator(self) -> Allocator:
        """Where the objects are. Only to be looked at."""
        return self._inventory.allocator

    # What clients ask.

    def connect(self, client: int) -> None:
        """A client is there; its number is new."""
        self._inventory.connect(client)
        self._requests[client] = {}

    def create(self, wish: CreateRequest, now_s: float) -> list[Effect]:
        """Reserve room, evicting if needed; or park the wish until its deadline; or refuse it.

        Wishes that may wait are served in order of arrival, so that small ones cannot starve a
        large one. Raises ``ClientMisuseError`` if the request number is in use.
        """
        self._check_request(wish.client, wish.request)
        effects: list[Effect] = []
        can_wait = wish.deadline_s > now_s and wish.size_bytes <= self.allocator.capacity_bytes
        has_to_queue = can_wait and bool(self._creates)
        if not has_to_queue and self._try_create(wish, now_s, effects):
            return effects
        if can_wait:
            self._creates[wish.client, wish.request] = wish
            self._requests[wish.client][wish.request] = None
        else:
            effects.append(self._refuse(wish, now_s))
        return effects

    def seal(self, client: int, serial: int, now_s: float, *, keeps_pin: bool) -> list[Effect]:
        """The object is whole: readers may have it. ``keeps_pin``: the writer still has a view.

        Raises ``ClientMisuseError`` unless the client is writing it.
        """
        inventory = self._inventory
        entry = inventory.written_by(client, serial)
        if entry is None:
            raise ClientMisuseError(f"copy {serial} is not being written by this client")
        inventory.seal(entry)
        if keeps_pin:
            inventory.pin(entry, client, 1)
        effects: list[Effect] = []
        if not entry.is_deleted:
            for waiter in self._waiters.missing(entry.object_id):
                if waiter.is_get:
                    inventory.pin(entry, waiter.client, len(waiter.missing[entry.object_id]))
                self._waiters.found(waiter, entry.object_id, entry.copy)
                if waiter.is_satisfied:
                    self._waiters.remove(waiter.client, waiter.request)
                    effects.append(self._answer(waiter))
        effects += inventory.settle(entry)
        return effects + self._serve_creates(now_s)

    def abort(self, client: int, serial: int, now_s: float) -> list[Effect]:
        """The writer gives up: the id is free again, and so is the range.

        Nothing happens unless the client is writing it: an interrupted client aborts to be safe.
        """
        entry = self._inventory.written_by(client, serial)
        if entry is None:
            return []
        return [*self._inventory.drop(entry), *self._serve_creates(now_s)]

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
            effects += self._inventory.unpin(client, serial, count)
        return effects + self._serve_creates(now_s)

    def delete(self, object_ids: Iterable[bytes], now_s: float) -> list[Effect]:
        """Forget these ids; ranges are freed as views of them end. Unknown ids are no error."""
        effects: list[Effect] = []
        for object_id in object_ids:
            entry = self._inventory.find(object_id)
            if entry is not None:
                effects += self._inventory.delete(entry)
        return effects + self._serve_creates(now_s)

    # What happens around clients.

    def release_owner(self, owner: bytes, now_s: float) -> list[Effect]:
        """The owner is gone: delete everything that bears its tag."""
        effects: list[Effect] = []
        for entry in self._inventory.owned_by(owner):
            effects += self._inventory.delete(entry)
        return effects + self._serve_creates(now_s)

    def client_gone(self, client: int, now_s: float) -> list[Effect]:
        """Drop the client's pins, its unsealed objects and its requests. Sealed objects stay."""
        for request in self._requests.pop(client):
            self._creates.pop((client, request), None)
            self._waiters.remove(client, request)  # What it pinned is among the client's pins.
        return [*self._inventory.disconnect(client), *self._serve_creates(now_s)]

    def machine_short(self, created: Created, now_s: float) -> list[Effect]:
        """The machine has no pages for a range that was reserved: take it back and say so."""
        entry = self._inventory.written_by(created.wish.client, created.serial)
        assert entry is not None, "the caller has asked is_unsealed()"
        effects = self._inventory.drop(entry)
        effects.append(self._refuse(created.wish, now_s, FullReason.MACHINE_SHORT))
        return effects + self._serve_creates(now_s)

    def evict(self, size_bytes: int) -> list[Effect]:
        """Drop evictable copies, oldest use first, until this much is freed or none is left."""
        return self._inventory.evict(size_bytes)

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
        return len(self._requests[client])

    def is_unsealed(self, client: int, serial: int) -> bool:
        """Whether this client is still writing this copy."""
        return self._inventory.written_by(client, serial) is not None

    def holders(self, now_s: float, limit: int = HOLDERS_MAX) -> list[Holder]:
        """The biggest objects that cannot be evicted, biggest first. O(objects)."""
        return self._inventory.holders(now_s, limit)

    def statistics(self) -> TableStatistics:
        """Counts of this moment. O(objects)."""
        inventory = self._inventory
        counts = inventory.count_bytes()
        return TableStatistics(
            capacity_bytes=self.allocator.capacity_bytes,
            used_bytes=self.allocator.used_bytes,
            largest_free_bytes=self.allocator.largest_free_bytes(),
            objects=len(inventory),
            unsealed_bytes=counts.unsealed,
            primary_bytes=counts.primary,
            pinned_bytes=counts.pinned,
            evictable_bytes=counts.evictable,
            deleted_bytes=counts.deleted,
            clients=len(self._requests),
            waiting_requests=len(self._waiters) + len(self._creates),
            created_total=inventory.created_total,
            evicted_total=inventory.evicted_total,
            evicted_bytes_total=inventory.evicted_bytes_total,
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless everything agrees with everything else. O(everything)."""
        self._inventory.check_invariants()
        self._waiters.check_invariants()
        parked = sum(len(requests) for requests in self._requests.values())
        assert parked == len(self._waiters) + len(self._creates)

    # Helpers, in call order.

    def _check_request(self, client: int, request: int) -> None:
        if request in self._requests[client]:
            raise ClientMisuseError(f"request {request} is under way already")

    def _try_create(self, wish: CreateRequest, now_s: float, effects: list[Effect]) -> bool:
        """Append the answer, and whatever it took; False if there is no room."""
        existing = self._inventory.find(wish.object_id)
        if existing is not None:
            effects.append(CreateExists(wish.client, wish.request, existing.is_sealed))
            return True
        entry = self._inventory.reserve(wish, now_s, effects)
        if entry is None:
            return False
        effects.append(Created(wish, entry.copy.serial, entry.copy.offset))
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
            evictable_bytes=self._inventory.evictable_bytes,
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
        del self._requests[wish.client][wish.request]

    def _look_up(self, waiter: Waiter, now_s: float) -> list[Effect]:
        self._check_request(waiter.client, waiter.request)
        waiter.found = [None] * len(waiter.object_ids)
        for position, object_id in enumerate(waiter.object_ids):
            entry = self._inventory.find(object_id)
            if entry is None or not entry.is_sealed:
                waiter.missing.setdefault(object_id, []).append(position)
                continue
            waiter.found[position] = entry.copy
            waiter.found_count += 1
            if waiter.is_get:
                self._inventory.pin(entry, waiter.client, 1)
        if waiter.is_satisfied or waiter.deadline_s <= now_s:
            return [self._answer(waiter)]
        self._waiters.add(waiter)
        self._requests[waiter.client][waiter.request] = None
        return []

    def _answer(self, waiter: Waiter) -> Effect:
        self._requests[waiter.client].pop(waiter.request, None)
        if waiter.is_get:
            return Got(waiter.client, waiter.request, tuple(waiter.found))
        positions = (position for position, copy in enumerate(waiter.found) if copy is not None)
        return Ready(waiter.client, waiter.request, tuple(positions))
