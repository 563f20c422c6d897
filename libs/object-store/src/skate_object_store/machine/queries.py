"""Gets and waits: answered from memory, from what is known of the disk, or later.

Before it: the object table was asked. After it: the table's effects carry the answers. A get pins
what it finds; one that misses objects on disk has them restored, and may be answered in part while
that takes long.
"""

from __future__ import annotations

from collections.abc import Callable

from skate_object_store.constants import RESTORE_ANSWER_S
from skate_object_store.machine.facts import Copy
from skate_object_store.machine.inventory import Entry, Inventory
from skate_object_store.machine.records import STORE, Effect, GetLost, Got, GotPart, Ready
from skate_object_store.machine.restorer import Restorer
from skate_object_store.machine.spill_book import SpillBook
from skate_object_store.machine.waiters import Waiter, WaitList

_ON_DISK = Copy(0, 0, 0)
"""Stands for an object that a wait need not have in memory."""


class Queries:
    """The gets and waits of one store. ``unanswered``: requests by client, shared with creates."""

    def __init__(
        self,
        inventory: Inventory,
        book: SpillBook,
        restorer: Restorer,
        unanswered: dict[int, dict[int, None]],
    ) -> None:
        self._inventory = inventory
        self._book = book
        self._on_disk = book.by_id
        self._restorer = restorer
        self._unanswered = unanswered
        self._waiters = WaitList()

    def __len__(self) -> int:
        return len(self._waiters)

    def look_up(self, waiter: Waiter, now_s: float) -> list[Effect]:
        """Answer what can be answered, park the rest, and ask for the restores it takes."""
        waiter.found = [None] * len(waiter.object_ids)
        for position, object_id in enumerate(waiter.object_ids):
            entry = self._inventory.find(object_id)
            if entry is None or not entry.is_sealed:
                if not (self._on_disk and self._found_on_disk(waiter, position)):
                    waiter.missing.setdefault(object_id, []).append(position)
                continue
            waiter.found[position] = entry.copy
            waiter.found_count += 1
            if waiter.is_get:
                self._inventory.pin(entry, waiter.client, 1)
        if self._on_disk and waiter.is_get and waiter.missing:
            return self._restore_missing(waiter, now_s)
        if waiter.is_satisfied or waiter.deadline_s <= now_s:
            return [self._answer(waiter)]
        self._park(waiter)
        return []

    def sealed(self, entry: Entry, now_s: float) -> list[Effect]:
        """An object is there now: pin it for the gets that wait for it, and answer them."""
        effects: list[Effect] = []
        for waiter in self._waiters.missing(entry.object_id):
            if waiter.is_get:
                self._inventory.pin(entry, waiter.client, len(waiter.missing[entry.object_id]))
            self._waiters.found(waiter, entry.object_id, entry.copy)
            if waiter.is_satisfied or self._is_done(waiter, now_s):
                self._waiters.remove(waiter.client, waiter.request)
                effects.append(self._answer(waiter))
        return effects

    def deleted(self, object_id: bytes, now_s: float) -> list[Effect]:
        """An object on disk was deleted: answer those whom only its restore kept waiting."""
        effects: list[Effect] = []
        for waiter in self._waiters.missing(object_id):
            if self._is_done(waiter, now_s):
                self._waiters.remove(waiter.client, waiter.request)
                effects.append(self._answer(waiter))
        return effects

    def fail(self, object_id: bytes, answer: Callable[[Waiter], Effect]) -> list[Effect]:
        """Answer every get that waits for this object, and take back what it had found."""
        effects: list[Effect] = []
        for waiter in self._waiters.missing(object_id):
            if waiter.is_get:
                self._waiters.remove(waiter.client, waiter.request)
                effects += self._give_up(waiter, answer(waiter))
        self.drop_unwanted_restores()
        return effects

    def cancel(self, client: int, request: int) -> list[Effect]:
        """Answer with what there is, if it waits here."""
        waiter = self._waiters.remove(client, request)
        return [] if waiter is None else [self._answer(waiter)]

    def forget(self, client: int, requests: dict[int, None]) -> None:
        """The client is gone, and what its requests pinned is among its pins."""
        for request in requests:
            self._waiters.remove(client, request)
        self.drop_unwanted_restores()

    def drop_unwanted_restores(self) -> None:
        """Nobody waits any more for some of what waits for room: leave it on disk."""
        for object_id in list(self._restorer.parked):
            if not self._waiters.missing(object_id):
                self._restorer.unpark(object_id)

    def expire(self, now_s: float) -> list[Effect]:
        """Answer those whose deadline has come."""
        return [self._answer(waiter) for waiter in self._waiters.due(now_s)]

    def next_deadline_s(self) -> float | None:
        """The earliest deadline."""
        return self._waiters.next_deadline_s()

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless indices agree."""
        self._waiters.check_invariants()

    # Helpers, in call order.

    def _found_on_disk(self, waiter: Waiter, position: int) -> bool:
        """Whether that will do: a wait wants to know that the object is there, no more."""
        if waiter.is_get or not self._book.is_readable(waiter.object_ids[position]):
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
            return self._give_up(waiter, answer)
        if spilled:
            waiter.asked_until_s = waiter.deadline_s
            waiter.deadline_s = max(waiter.deadline_s, now_s + RESTORE_ANSWER_S)
        elif waiter.deadline_s <= now_s:
            return [self._answer(waiter)]
        self._park(waiter)
        for found in spilled:
            if self._inventory.find(found.object_id) is None:
                self._restorer.park(found, now_s)
        return []

    def _park(self, waiter: Waiter) -> None:
        self._waiters.add(waiter)
        self._unanswered[waiter.client][waiter.request] = None

    def _is_restoring(self, object_id: bytes) -> bool:
        if object_id in self._restorer.parked:
            return True
        entry = self._inventory.find(object_id)
        return entry is not None and entry.creator == STORE

    def _is_done(self, waiter: Waiter, now_s: float) -> bool:
        """Whether its time is over, and it waits for no restore any more."""
        return waiter.is_overdue(now_s) and not any(map(self._is_restoring, waiter.missing))

    def _give_up(self, waiter: Waiter, answer: Effect) -> list[Effect]:
        """Answer a get with an error, which pins nothing."""
        self._unanswered[waiter.client].pop(waiter.request, None)
        effects: list[Effect] = []
        for copy in waiter.found:
            if copy is not None:
                effects += self._inventory.unpin(waiter.client, copy.serial, 1)
        return [*effects, answer]

    def _answer(self, waiter: Waiter) -> Effect:
        client, request = waiter.client, waiter.request
        self._unanswered[client].pop(request, None)
        if not waiter.is_get:
            found = (position for position, copy in enumerate(waiter.found) if copy is not None)
            return Ready(client, request, tuple(found))
        if waiter.asked_until_s is not None:
            restoring = sorted(
                position
                for object_id, positions in waiter.missing.items()
                if self._is_restoring(object_id)
                for position in positions
            )
            if restoring:
                return GotPart(client, request, tuple(waiter.found), tuple(restoring))
        return Got(client, request, tuple(waiter.found))
