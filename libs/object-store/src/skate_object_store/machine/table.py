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
recently used first, while no client has a pin on it. If there is a place to spill to, primary
copies are written there when memory gets short, become evictable by that, and are read back for who
asks. Deleting takes the id away at once and the
bytes when the last pin goes, so that a view never sees its memory reused. Pins name a copy by its
serial, not by its id: the id may be created again while views of the deleted copy live.

Each event costs O(ids it names) besides the replies it causes; a refused create also costs
O(objects), to find the biggest holders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from skate_object_store.constants import HOLDERS_MAX, RESTORE_ANSWER_S
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.facts import (
    Copy,
    Fullness,
    FullReason,
    Holder,
    ObjectRecord,
)
from skate_object_store.machine.inventory import Entry, Inventory
from skate_object_store.machine.records import (
    STORE,
    ClientMisuseError,
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    GetLost,
    GetUnrestored,
    Got,
    GotPart,
    Place,
    ReadBack,
    Ready,
    SpillFailure,
    TableStatistics,
    Wakeup,
)
from skate_object_store.machine.restorer import Restorer
from skate_object_store.machine.spill_book import SpillBook
from skate_object_store.machine.spill_planner import SpillPlanner
from skate_object_store.machine.spill_views import disk_counts, object_records
from skate_object_store.machine.waiters import Waiter, WaitList
from skate_object_store.spill_config import SpillConfig


class ObjectTable:
    """The state machine of one store. Times are seconds of any one monotonic clock."""

    def __init__(self, capacity_bytes: int, spill: SpillConfig | None = None) -> None:
        self._inventory = Inventory(capacity_bytes)
        self._book = SpillBook()  # empty for ever without a place to spill to
        self._restorer = Restorer()
        self._planner = None if spill is None else SpillPlanner(self._inventory, self._book, spill)
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
        large one; restores come before them, because whoever views objects may free others. Raises
        ``ClientMisuseError`` if the request number is in use.
        """
        self._check_request(wish.client, wish.request)
        effects: list[Effect] = []
        can_wait = wish.deadline_s > now_s and wish.size_bytes <= self.allocator.capacity_bytes
        if wish.is_for_spilling_only and can_wait:
            can_wait = self._can_spill(now_s)
        has_to_queue = can_wait and (bool(self._creates) or self._must_restore_first(now_s))
        if not has_to_queue and self._try_create(wish, now_s, effects):
            return effects
        if can_wait:
            self._creates[wish.client, wish.request] = wish
            self._requests[wish.client][wish.request] = None
            self._spill(now_s, effects)
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
                if waiter.is_satisfied or self._is_done(waiter, now_s):
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
            if self._book:
                effects += self._forget_spilled(object_id, now_s)
        return effects + self._serve_creates(now_s)

    # What happens around clients.

    def release_owner(self, owner: bytes, now_s: float) -> list[Effect]:
        """The owner is gone: delete everything that bears its tag."""
        effects: list[Effect] = []
        for entry in self._inventory.owned_by(owner):
            effects += self._inventory.delete(entry)
        for object_id in self._book.owned_by(owner):
            effects += self._forget_spilled(object_id, now_s)
        return effects + self._serve_creates(now_s)

    def client_gone(self, client: int, now_s: float) -> list[Effect]:
        """Drop the client's pins, its unsealed objects and its requests. Sealed objects stay."""
        for request in self._requests.pop(client):
            self._creates.pop((client, request), None)
            self._waiters.remove(client, request)  # What it pinned is among the client's pins.
        self._drop_unwanted_restores()
        return [*self._inventory.disconnect(client), *self._serve_creates(now_s)]

    def machine_short(self, created: Created, now_s: float) -> list[Effect]:
        """The machine has no pages for a range that was reserved: take it back and say so."""
        entry = self._inventory.written_by(created.wish.client, created.serial)
        assert entry is not None, "the caller has asked is_unsealed()"
        effects = self._inventory.drop(entry)
        if created.wish.client == STORE:
            effects += self._refuse_restore(created.wish, now_s, FullReason.MACHINE_SHORT)
        else:
            effects.append(self._refuse(created.wish, now_s, FullReason.MACHINE_SHORT))
        return effects + self._serve_creates(now_s)

    def evict(self, size_bytes: int) -> list[Effect]:
        """Drop evictable copies, oldest use first, until this much is freed or none is left."""
        return self._inventory.evict(size_bytes)

    # What happens to the disk.

    def spill_ended(
        self,
        number: int,
        file_key: str,
        places: Mapping[int, Place],
        failure: SpillFailure | None,
        room_bytes: int | None,
        now_s: float,
    ) -> list[Effect]:
        """A batch was written, as far as ``places`` says by serial; ``failure``: why not all.

        ``room_bytes``: what the disk has left, if that is known.
        """
        assert self._planner is not None
        effects = self._planner.ended(number, file_key, places, failure, room_bytes, now_s)
        return effects + self._serve_creates(now_s)

    def read_back(self, created: Created, now_s: float) -> list[Effect]:
        """The range for a restore has its pages: read, unless the object was deleted meanwhile."""
        entry = self._restoring(created.serial)
        if entry.is_deleted:
            return [*self._inventory.drop(entry), *self._serve_creates(now_s)]
        spilled = self._book.find(entry.object_id)
        assert spilled is not None
        assert spilled.place is not None
        return [ReadBack(created.serial, created.offset, spilled.place)]

    def restored(self, serial: int, now_s: float) -> list[Effect]:
        """The object is in memory again, whole: whoever waits for it gets it."""
        self._restorer.restored_total += 1
        self._restorer.restored_bytes_total += self._restoring(serial).copy.size_bytes
        return self.seal(STORE, serial, now_s, keeps_pin=False)

    def restore_failed(
        self, serial: int, cause: str, now_s: float, *, is_lost: bool
    ) -> list[Effect]:
        """The object could not be read. ``is_lost``: and never will be, so nobody need try."""
        entry = self._restoring(serial)
        was_deleted = entry.is_deleted
        self._restorer.failures_total += 1
        effects = self._inventory.drop(entry)
        if not was_deleted:
            object_id = entry.object_id
            if is_lost:
                effects += self._note_deleted(self._book.lose(object_id, cause))
            effects += self._fail_gets(
                object_id, lambda waiter: GetLost(waiter.client, waiter.request, object_id, cause)
            )
        return effects + self._serve_creates(now_s)

    def expire(self, now_s: float) -> list[Effect]:
        """Answer every request whose deadline has come with what there is."""
        effects: list[Effect] = [self._answer(waiter) for waiter in self._waiters.due(now_s)]
        late = [wish for wish in self._creates.values() if wish.deadline_s <= now_s]
        for wish in late:
            self._unpark(wish)
            effects.append(self._refuse(wish, now_s))
        late_restores = self._restorer.due(now_s)
        for wish in late_restores:
            effects += self._refuse_restore(wish, now_s)
        if late or late_restores or self._creates or self._restorer:
            effects += self._serve_creates(now_s)
        return effects

    def next_wakeup(self) -> Wakeup | None:
        """The earliest deadline. O(creates that wait for room)."""
        wakeups = [Wakeup(wish.deadline_s, "create") for wish in self._creates.values()]
        if wakeups or self._restorer:
            wakeups += self._spill_wakeups()
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

    def objects(self, now_s: float, limit: int) -> list[ObjectRecord]:
        """Every object once, in memory or on disk, the biggest first. O(objects)."""
        return object_records(self._inventory, self._book, self._restorer, now_s, limit)

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
            **disk_counts(inventory, self._book, self._restorer, self._planner),
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless everything agrees with everything else. O(everything)."""
        self._inventory.check_invariants()
        self._waiters.check_invariants()
        parked = sum(len(requests) for requests in self._requests.values())
        assert parked == len(self._waiters) + len(self._creates)
        self._book.check_invariants()
        for spilled in self._book.objects():
            entry = self._inventory.find(spilled.object_id)
            assert entry is None or entry.is_evictable, "what is on disk may be dropped from memory"
            assert entry is None or spilled.place is not None
        for object_id in self._restorer.parked_ids():
            assert self._book.find(object_id) is not None
            assert self._inventory.find(object_id) is None
        if self._planner is not None:
            self._planner.check_invariants()

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
        if self._book and self._is_on_disk(wish.object_id):
            effects.append(CreateExists(wish.client, wish.request, is_sealed=True))
            return True
        planner = self._planner
        if planner is not None and not planner.leaves_room_to_restore(wish.size_bytes):
            return False
        entry = self._inventory.reserve(wish, now_s, effects)
        if entry is None:
            return False
        if self._book:
            self._book.forget(wish.object_id)  # It was lost, and is made anew.
        effects.append(Created(wish, entry.copy.serial, entry.copy.offset))
        return True

    def _is_on_disk(self, object_id: bytes) -> bool:
        spilled = self._book.find(object_id)
        return spilled is not None and spilled.place is not None

    def _can_spill(self, now_s: float) -> bool:
        return self._planner is not None and self._planner.can_make_room(now_s)

    def _must_restore_first(self, now_s: float) -> bool:
        """Restores go first, unless they wait for views to end, which may take new objects."""
        return bool(self._restorer) and self._can_spill(now_s)

    def _refuse(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> CreateRefused:
        return CreateRefused(wish.client, wish.request, self._fullness(wish, now_s, reason))

    def _fullness(self, wish: CreateRequest, now_s: float, reason: FullReason) -> Fullness:
        detail = ""
        if wish.size_bytes > self.allocator.capacity_bytes:
            reason = FullReason.TOO_LARGE
        elif reason is FullReason.NO_ROOM and self._inventory.idle_count:
            failure = None if self._planner is None else self._planner.failure
            if failure is not None:
                reason = FullReason.DISK_FULL if failure.is_disk_full else FullReason.SPILL_FAILED
                detail = failure.cause
        return Fullness(
            reason=reason,
            requested_bytes=wish.size_bytes,
            capacity_bytes=self.allocator.capacity_bytes,
            used_bytes=self.allocator.used_bytes,
            evictable_bytes=self._inventory.evictable_bytes,
            holders=tuple(self.holders(now_s)),
            detail=detail,
        )

    def _serve_creates(self, now_s: float) -> list[Effect]:
        """Grant what waits for room, as far as there is any; spill if more is wanted."""
        effects: list[Effect] = []
        if self._restorer:
            self._grant_restores(now_s, effects)
        if self._creates and not self._must_restore_first(now_s):
            self._grant_creates(now_s, effects)
        self._spill(now_s, effects)
        return effects

    def _grant_restores(self, now_s: float, effects: list[Effect]) -> None:
        while (wish := self._restorer.first()) is not None:
            entry = self._inventory.reserve(wish, now_s, effects)
            if entry is None:
                break
            self._restorer.unpark(wish.object_id)
            spilled = self._book.find(wish.object_id)
            assert spilled is not None
            entry.created_s = spilled.created_s
            effects.append(Created(wish, entry.copy.serial, entry.copy.offset))

    def _grant_creates(self, now_s: float, effects: list[Effect]) -> None:
        """Grant parked wishes in order, up to the first for which there is no room."""
        while self._creates:
            wish = next(iter(self._creates.values()))
            if not self._try_create(wish, now_s, effects):
                break
            self._unpark(wish)

    def _spill(self, now_s: float, effects: list[Effect]) -> None:
        """Start a batch if that is called for; else refuse the creates that only wait for one."""
        if self._planner is None:
            return
        is_room_wanted = bool(self._creates or self._restorer)
        effects += self._planner.plan(now_s, is_room_wanted=is_room_wanted)
        if not self._creates or self._planner.can_make_room(now_s):
            return
        for wish in [wish for wish in self._creates.values() if wish.is_for_spilling_only]:
            self._unpark(wish)
            if not self._try_create(wish, now_s, effects):
                effects.append(self._refuse(wish, now_s))

    def _spill_wakeups(self) -> list[Wakeup]:
        """When another try to write, or the end of a restore's patience, matters."""
        retry_at_s = None if self._planner is None else self._planner.retry_at_s()
        restore_at_s = self._restorer.next_deadline_s()
        wakeups = [] if retry_at_s is None else [Wakeup(retry_at_s, "spill")]
        return wakeups + ([] if restore_at_s is None else [Wakeup(restore_at_s, "restore")])

    def _restoring(self, serial: int) -> Entry:
        entry = self._inventory.written_by(STORE, serial)
        assert entry is not None, "a restore ends once"
        return entry

    def _forget_spilled(self, object_id: bytes, now_s: float) -> list[Effect]:
        """The object was deleted: so is what is on disk, and nobody need wait for it."""
        effects = self._note_deleted(self._book.forget(object_id))
        self._restorer.unpark(object_id)
        for waiter in self._waiters.missing(object_id):
            if self._is_done(waiter, now_s):
                self._waiters.remove(waiter.client, waiter.request)
                effects.append(self._answer(waiter))
        return effects

    def _note_deleted(self, files: Sequence[Effect]) -> list[Effect]:
        if files and self._planner is not None:
            self._planner.disk_was_freed()
        return list(files)

    def _drop_unwanted_restores(self) -> None:
        """Nobody waits any more for some of what waits for room: leave it on disk."""
        for object_id in self._restorer.parked_ids():
            if not self._waiters.missing(object_id):
                self._restorer.unpark(object_id)

    def _refuse_restore(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> list[Effect]:
        if not self._is_on_disk(wish.object_id):
            return []  # Deleted meanwhile: whoever asks for it waits for another of its name.
        self._restorer.failures_total += 1
        fullness = self._fullness(wish, now_s, reason)
        return self._fail_gets(
            wish.object_id,
            lambda waiter: GetUnrestored(waiter.client, waiter.request, wish.object_id, fullness),
        )

    def _fail_gets(self, object_id: bytes, answer: Callable[[Waiter], Effect]) -> list[Effect]:
        """Answer every get that waits for this object, and take back what it had found."""
        effects: list[Effect] = []
        for waiter in self._waiters.missing(object_id):
            if waiter.is_get:
                self._waiters.remove(waiter.client, waiter.request)
                effects += self._fail_get(waiter, answer(waiter))
        self._drop_unwanted_restores()
        return effects

    def _fail_get(self, waiter: Waiter, answer: Effect) -> list[Effect]:
        self._requests[waiter.client].pop(waiter.request, None)
        effects: list[Effect] = []
        for copy in waiter.found:
            if copy is not None:
                effects += self._inventory.unpin(waiter.client, copy.serial, 1)
        return [*effects, answer]

    def _unpark(self, wish: CreateRequest) -> None:
        del self._creates[wish.client, wish.request]
        del self._requests[wish.client][wish.request]

    def _look_up(self, waiter: Waiter, now_s: float) -> list[Effect]:
        self._check_request(waiter.client, waiter.request)
        waiter.found = [None] * len(waiter.object_ids)
        for position, object_id in enumerate(waiter.object_ids):
            entry = self._inventory.find(object_id)
            if entry is None or not entry.is_sealed:
                if not (self._book and self._found_on_disk(waiter, position, now_s)):
                    waiter.missing.setdefault(object_id, []).append(position)
                continue
            waiter.found[position] = entry.copy
            waiter.found_count += 1
            if waiter.is_get:
                self._inventory.pin(entry, waiter.client, 1)
        if self._book and waiter.is_get and waiter.missing:
            return self._restore_missing(waiter, now_s)
        if waiter.is_satisfied or waiter.deadline_s <= now_s:
            return [self._answer(waiter)]
        self._park(waiter)
        return []

    def _park(self, waiter: Waiter) -> None:
        self._waiters.add(waiter)
        self._requests[waiter.client][waiter.request] = None

    def _found_on_disk(self, waiter: Waiter, position: int, now_s: float) -> bool:
        """Whether that will do: a wait wants to know that the object is there, no more."""
        if waiter.is_get or not self._is_on_disk(waiter.object_ids[position]):
            return False
        waiter.found[position] = _ON_DISK
        waiter.found_count += 1
        return True

    def _restore_missing(self, waiter: Waiter, now_s: float) -> list[Effect]:
        """A get misses objects: have those that are on disk restored, if they all can be."""
        spilled = [found for found in map(self._book.find, waiter.missing) if found is not None]
        lost = next((found for found in spilled if found.place is None), None)
        if lost is not None:
            answer = GetLost(waiter.client, waiter.request, lost.object_id, lost.loss)
            return [*self._fail_get(waiter, answer), *self._serve_creates(now_s)]
        if spilled:
            waiter.asked_until_s = waiter.deadline_s
            waiter.deadline_s = max(waiter.deadline_s, now_s + RESTORE_ANSWER_S)
        elif waiter.deadline_s <= now_s:
            return [self._answer(waiter)]
        self._park(waiter)
        for found in spilled:
            if self._inventory.find(found.object_id) is None:
                self._restorer.park(found, now_s)
        return self._serve_creates(now_s) if spilled else []

    def _is_restoring(self, object_id: bytes) -> bool:
        if self._restorer.is_parked(object_id):
            return True
        entry = self._inventory.find(object_id)
        return entry is not None and entry.creator == STORE

    def _is_done(self, waiter: Waiter, now_s: float) -> bool:
        """Whether its time is over, and it waits for no restore any more."""
        return waiter.is_overdue(now_s) and not any(map(self._is_restoring, waiter.missing))

    def _answer(self, waiter: Waiter) -> Effect:
        self._requests[waiter.client].pop(waiter.request, None)
        if waiter.is_get:
            if waiter.asked_until_s is not None:
                restoring = sorted(
                    position
                    for object_id, positions in waiter.missing.items()
                    if self._is_restoring(object_id)
                    for position in positions
                )
                if restoring:
                    return GotPart(
                        waiter.client, waiter.request, tuple(waiter.found), tuple(restoring)
                    )
            return Got(waiter.client, waiter.request, tuple(waiter.found))
        positions = (position for position, copy in enumerate(waiter.found) if copy is not None)
        return Ready(waiter.client, waiter.request, tuple(positions))


_ON_DISK = Copy(0, 0, 0)
"""Stands for an object that a wait need not have in memory."""
