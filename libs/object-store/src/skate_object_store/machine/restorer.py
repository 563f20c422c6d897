"""Objects that are wanted back from disk and wait for room in memory.

Before it: a get asks for an object that memory does not hold. After it: the table reserves a range
in the name of the store itself, the shell reads the object into it, and every get that waits for it
is answered at once.

A restored object is an evictable copy: the one on disk stays until the object is deleted, so that
dropping it again costs nothing.
"""

from __future__ import annotations

import itertools

from skate_object_store.constants import RESTORE_WAIT_S
from skate_object_store.machine.records import STORE, CreateRequest
from skate_object_store.machine.spill_book import SpilledObject


class Restorer:
    """The store's own wishes for room, and how the earlier ones ended."""

    def __init__(self) -> None:
        self.restored_total = 0
        self.restored_bytes_total = 0
        self.failures_total = 0
        self._numbers = itertools.count(1)
        self.parked: dict[bytes, CreateRequest] = {}
        """By id, in order: what waits for room. Only to be looked at."""

    def __len__(self) -> int:
        return len(self.parked)

    def park(self, spilled: SpilledObject, now_s: float) -> None:
        """The object is wanted in memory. Nothing happens if it is on its way."""
        if spilled.object_id not in self.parked:
            self.parked[spilled.object_id] = CreateRequest(
                STORE,
                next(self._numbers),
                spilled.object_id,
                spilled.size_bytes,
                spilled.owner,
                True,
                now_s + RESTORE_WAIT_S,
                note=spilled.note,
            )

    def first(self) -> CreateRequest | None:
        """The wish that waited longest."""
        return next(iter(self.parked.values()), None)

    def unpark(self, object_id: bytes) -> CreateRequest | None:
        """It does not wait for room any more: it got some, or is not wanted."""
        return self.parked.pop(object_id, None)

    def due(self, now_s: float) -> list[CreateRequest]:
        """Take out the wishes that found no room in time."""
        late = [wish for wish in self.parked.values() if wish.deadline_s <= now_s]
        for wish in late:
            del self.parked[wish.object_id]
        return late

    def next_deadline_s(self) -> float | None:
        """When the first of them gives up."""
        first = self.first()  # All wait equally long.
        return None if first is None else first.deadline_s
