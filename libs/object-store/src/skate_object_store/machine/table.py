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
recently used first, while no client has a pin on it; it is made primary (``keep``) when that one is
lost elsewhere. If there is a place to spill to, primary
copies are written there when memory gets short, become evictable by that, and are read back for who
asks. Deleting takes the id away at once and the
bytes when the last pin goes, so that a view never sees its memory reused. Pins name a copy by its
serial, not by its id: the id may be created again while views of the deleted copy live.

Each event costs O(ids it names) besides the replies it causes; a refused create also costs
O(objects), to find the biggest holders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from skate_object_store.constants import HOLDERS_MAX
from skate_object_store.machine.admissions import Admissions
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.facts import FullReason, Holder, ObjectRecord
from skate_object_store.machine.inventory import Entry, Inventory
from skate_object_store.machine.queries import Queries
from skate_object_store.machine.records import (
    STORE,
    ClientMisuseError,
    Created,
    CreateRefused,
    CreateRequest,
    Effect,
    GetLost,
    GetUnrestored,
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
from skate_object_store.machine.waiters import Waiter
from skate_object_store.spill_config import SpillConfig


class ObjectTable:
    """The state machine of one store. Times are seconds of any one monotonic clock.

    Without ``spill`` it never asks for anything to be written.
    """

    def __init__(self, capacity_bytes: int, spill: SpillConfig | None = None) -> None:
        inventory = self._inventory = Inventory(capacity_bytes)
        book = self._book = SpillBook()
        self._restorer = Restorer()
        self._planner = None if spill is None else SpillPlanner(inventory, book, spill)
        self._requests: dict[int, dict[int, None]] = {}  # by client, those not answered yet
        self._queries = Queries(inventory, book, self._restorer, self._requests)
        self._admissions = Admissions(
            inventory, book, self._restorer, self._planner, self._requests
        )

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

        Raises ``ClientMisuseError`` if the request number is in use.
        """
        self._check_request(wish.client, wish.request)
        return self._admissions.create(wish, now_s)

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
        effects = [] if entry.is_deleted else self._queries.sealed(entry, now_s)
        effects += inventory.settle(entry)
        return effects + self._admissions.serve(now_s)

    def abort(self, client: int, serial: int, now_s: float) -> list[Effect]:
        """The writer gives up: the id is free again, and so is the range.

        Nothing happens unless the client is writing it: an interrupted client aborts to be safe.
        """
        entry = self._inventory.written_by(client, serial)
        if entry is None:
            return []
        return [*self._inventory.drop(entry), *self._admissions.serve(now_s)]

    def get(
        self,
        client: int,
        request: int,
        object_ids: Sequence[bytes],
        now_s: float,
        deadline_s: float,
    ) -> list[Effect]:
        """Pin and return every object; those missing are awaited until ``deadline_s``."""
        self._check_request(client, request)
        waiter = Waiter(client, request, object_ids, True, len(object_ids), deadline_s)
        effects = self._queries.look_up(waiter, now_s)
        return effects + self._admissions.serve(now_s) if self._book.by_id else effects

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
        self._check_request(client, request)
        wanted = min(max(found_wanted, 1), len(object_ids))
        waiter = Waiter(client, request, object_ids, False, wanted, deadline_s)
        return self._queries.look_up(waiter, now_s)

    def cancel(self, client: int, request: int, now_s: float) -> list[Effect]:
        """The client does not want to wait any longer: answer with what there is.

        Every request is answered exactly once, so that the client knows when it is over, and can
        give back what the answer grants. Nothing happens if it was answered before.
        """
        refused = self._admissions.cancel(client, request, now_s)
        if refused:
            return [*refused, *self._admissions.serve(now_s)]
        return self._queries.cancel(client, request)

    def release(self, client: int, pins: Iterable[tuple[int, int]], now_s: float) -> list[Effect]:
        """Drop pins: (serial, count) pairs. Raises ``ClientMisuseError`` for a pin not held."""
        effects: list[Effect] = []
        for serial, count in pins:
            effects += self._inventory.unpin(client, serial, count)
        return effects + self._admissions.serve(now_s)

    def delete(self, object_ids: Iterable[bytes], now_s: float) -> list[Effect]:
        """Forget these ids; ranges are freed as views of them end. Unknown ids are no error."""
        effects: list[Effect] = []
        for object_id in object_ids:
            entry = self._inventory.find(object_id)
            if entry is not None:
                effects += self._inventory.delete(entry)
            if self._book.by_id:
                effects += self._forget_spilled(object_id, now_s)
        return effects + self._admissions.serve(now_s)

    def keep(
        self, client: int, request: int, object_ids: Sequence[bytes], now_s: float
    ) -> list[Effect]:
        """Make secondary copies primary; answers with the positions of those that stay now.

        Not among them: what is not here, or not sealed. Safe to repeat.
        """
        self._check_request(client, request)
        kept: list[int] = []
        for position, object_id in enumerate(object_ids):
            if self._book.is_readable(object_id):
                kept.append(position)  # It is on disk, and stays there until it is deleted.
                continue
            entry = self._inventory.find(object_id)
            if entry is None or not entry.is_sealed:
                continue
            if entry.is_evictable:
                self._inventory.make_primary(entry)
            kept.append(position)
        return [Ready(client, request, tuple(kept)), *self._admissions.serve(now_s)]

    # What happens around clients.

    def release_owner(self, owner: bytes, now_s: float) -> list[Effect]:
        """The owner is gone: delete everything that bears its tag."""
        effects: list[Effect] = []
        for entry in self._inventory.owned_by(owner):
            effects += self._inventory.delete(entry)
        for object_id in self._book.owned_by(owner):
            effects += self._forget_spilled(object_id, now_s)
        return effects + self._admissions.serve(now_s)

    def client_gone(self, client: int, now_s: float) -> list[Effect]:
        """Drop the client's pins, its unsealed objects and its requests. Sealed objects stay."""
        requests = self._requests.pop(client)
        self._admissions.forget(client, requests)
        self._queries.forget(client, requests)
        return [*self._inventory.disconnect(client), *self._admissions.serve(now_s)]

    def machine_short(self, created: Created, now_s: float) -> list[Effect]:
        """The machine has no pages for a range that was reserved: take it back and say so."""
        entry = self._inventory.written_by(created.wish.client, created.serial)
        assert entry is not None, "the caller has asked is_unsealed()"
        effects = self._inventory.drop(entry)
        if created.wish.client == STORE:
            effects += self._refuse_restore(created.wish, now_s, FullReason.MACHINE_SHORT)
        else:
            effects.append(self._admissions.refuse(created.wish, now_s, FullReason.MACHINE_SHORT))
        return effects + self._admissions.serve(now_s)

    def pages_refused(self, created: Created, request: int, now_s: float) -> CreateRefused:
        """The machine has no pages for more of an object that is being written: says so only."""
        wish = replace(created.wish, request=request)
        return self._admissions.refuse(wish, now_s, FullReason.MACHINE_SHORT)

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
        return effects + self._admissions.serve(now_s)

    def read_back(self, created: Created, now_s: float) -> list[Effect]:
        """The range for a restore has its pages: read, unless the object was deleted meanwhile."""
        entry = self._restoring(created.serial)
        if entry.is_deleted:
            return [*self._inventory.drop(entry), *self._admissions.serve(now_s)]
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
            effects += self._queries.fail(
                object_id,
                lambda waiter: GetLost(waiter.client, waiter.request, object_id, cause, is_lost),
            )
        return effects + self._admissions.serve(now_s)

    def expire(self, now_s: float) -> list[Effect]:
        """Answer every request whose deadline has come with what there is."""
        effects = self._queries.expire(now_s) + self._admissions.expire(now_s)
        for wish in self._restorer.due(now_s):
            effects += self._refuse_restore(wish, now_s)
        return effects + self._admissions.serve(now_s)

    def next_wakeup(self) -> Wakeup | None:
        """The earliest deadline. O(creates that wait for room)."""
        wakeups = self._admissions.wakeups()
        deadline_s = self._queries.next_deadline_s()
        if deadline_s is not None:
            wakeups.append(Wakeup(deadline_s, "get or wait"))
        return min(wakeups, key=lambda wakeup: wakeup.at_s) if wakeups else None

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
            waiting_requests=len(self._queries) + len(self._admissions),
            created_total=inventory.created_total,
            evicted_total=inventory.evicted_total,
            evicted_bytes_total=inventory.evicted_bytes_total,
            **disk_counts(inventory, self._book, self._restorer, self._planner),
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless everything agrees with everything else. O(everything)."""
        self._inventory.check_invariants()
        self._queries.check_invariants()
        parked = sum(len(requests) for requests in self._requests.values())
        assert parked == len(self._queries) + len(self._admissions)
        self._book.check_invariants()
        for spilled in self._book.by_id.values():
            entry = self._inventory.find(spilled.object_id)
            assert entry is None or entry.is_evictable, "what is on disk may be dropped from memory"
            assert entry is None or spilled.place is not None
        for object_id in list(self._restorer.parked):
            assert self._book.find(object_id) is not None
            assert self._inventory.find(object_id) is None
        if self._planner is not None:
            self._planner.check_invariants()

    # Helpers, in call order.

    def _check_request(self, client: int, request: int) -> None:
        if request in self._requests[client]:
            raise ClientMisuseError(f"request {request} is under way already")

    def _restoring(self, serial: int) -> Entry:
        entry = self._inventory.written_by(STORE, serial)
        assert entry is not None, "a restore ends once"
        return entry

    def _forget_spilled(self, object_id: bytes, now_s: float) -> list[Effect]:
        """The object was deleted: so is what is on disk, and nobody need wait for it."""
        effects = self._note_deleted(self._book.forget(object_id))
        self._restorer.unpark(object_id)
        return effects + self._queries.deleted(object_id, now_s)

    def _note_deleted(self, files: Sequence[Effect]) -> list[Effect]:
        if files and self._planner is not None:
            self._planner.disk_was_freed()
        return list(files)

    def _refuse_restore(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> list[Effect]:
        object_id = wish.object_id
        if not self._book.is_readable(object_id):
            return []  # Deleted meanwhile: whoever asks for it waits for another of its name.
        self._restorer.failures_total += 1
        fullness = self._admissions.fullness(wish, now_s, reason)
        return self._queries.fail(
            object_id,
            lambda waiter: GetUnrestored(waiter.client, waiter.request, object_id, fullness),
        )
