"""Gets and waits that cannot be answered yet, indexed by the ids they miss.

Before it: the object table answers what it can at once and parks the rest here. After it: a seal, a
deadline or a client's death takes them out.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from skate_object_store.machine.facts import Copy


@dataclass(slots=True, eq=False)
class Waiter:
    """One parked request. ``found[i]`` is the copy of ``object_ids[i]``, once there is one."""

    client: int
    request: int
    object_ids: Sequence[bytes]
    is_get: bool
    """A get pins what it finds at once; a wait only notes it."""
    found_wanted: int
    """Answer as soon as this many are found; 1 <= found_wanted <= len(object_ids)."""
    deadline_s: float
    found: list[Copy | None] = field(default_factory=list)
    found_count: int = 0
    missing: dict[bytes, list[int]] = field(default_factory=dict)
    """Positions by id not found yet."""
    asked_until_s: float | None = None
    """The client's own deadline, if ``deadline_s`` lies later because of a restore."""

    def is_overdue(self, now_s: float) -> bool:
        """Whether only a restore lets it wait beyond what its client asked for."""
        return self.asked_until_s is not None and self.asked_until_s <= now_s

    @property
    def is_satisfied(self) -> bool:
        """Whether enough was found to answer."""
        return self.found_count >= self.found_wanted


class WaitList:
    """Parked requests. Adding or removing one is O(ids it misses); a seal, O(requests in wait)."""

    def __init__(self) -> None:
        self._waiters: dict[tuple[int, int], Waiter] = {}  # (client, request)
        self._by_id: dict[bytes, dict[tuple[int, int], Waiter]] = {}
        self._deadlines: list[tuple[float, tuple[int, int]]] = []  # heap; entries may be stale

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: Waiter) -> None:
        """Park a request that is not satisfied. Its (client, request) is new."""
        key = (waiter.client, waiter.request)
        self._waiters[key] = waiter
        for object_id in waiter.missing:
            self._by_id.setdefault(object_id, {})[key] = waiter
        heapq.heappush(self._deadlines, (waiter.deadline_s, key))

    def missing(self, object_id: bytes) -> list[Waiter]:
        """The requests that miss this id, in order of arrival."""
        return list(self._by_id.get(object_id, {}).values())

    def found(self, waiter: Waiter, object_id: bytes, copy: Copy) -> None:
        """The id is there now: note it at each of its positions."""
        positions = waiter.missing.pop(object_id)
        for position in positions:
            waiter.found[position] = copy
        waiter.found_count += len(positions)
        self._forget(object_id, (waiter.client, waiter.request))

    def remove(self, client: int, request: int) -> Waiter | None:
        """Take a request out, if it is parked."""
        key = (client, request)
        waiter = self._waiters.pop(key, None)
        if waiter is not None:
            for object_id in waiter.missing:
                self._forget(object_id, key)
        return waiter

    def next_deadline_s(self) -> float | None:
        """The earliest deadline of a parked request."""
        while self._deadlines and self._is_stale(self._deadlines[0]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def due(self, now_s: float) -> list[Waiter]:
        """Take out every request whose deadline has come."""
        expired: list[Waiter] = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            waiter = self.remove(*self._deadlines[0][1])
            assert waiter is not None
            expired.append(waiter)
        return expired

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless the index mirrors the requests."""
        mirror: dict[bytes, dict[tuple[int, int], Waiter]] = {}
        for key, waiter in self._waiters.items():
            assert not waiter.is_satisfied, "a satisfied request is answered, not parked"
            missed = sum(len(positions) for positions in waiter.missing.values())
            assert missed + waiter.found_count == len(waiter.object_ids)
            for object_id in waiter.missing:
                mirror.setdefault(object_id, {})[key] = waiter
        assert mirror == self._by_id

    def _is_stale(self, entry: tuple[float, tuple[int, int]]) -> bool:
        waiter = self._waiters.get(entry[1])
        return waiter is None or waiter.deadline_s != entry[0]

    def _forget(self, object_id: bytes, key: tuple[int, int]) -> None:
        waiting = self._by_id[object_id]
        del waiting[key]
        if not waiting:
            del self._by_id[object_id]
