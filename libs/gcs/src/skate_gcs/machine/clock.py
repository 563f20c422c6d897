"""Time as the machines see it: two readings of one moment, passed in with each event."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import msgspec

Key = TypeVar("Key")


class Now(NamedTuple):
    """One moment. Decisions use ``now_s`` alone, so that a jump of the wall clock changes none."""

    now_s: float
    """Monotonic seconds."""
    unix_s: float
    """Unix time, for the start and end times that people read."""


class Wakeup(msgspec.Struct, frozen=True):
    """When a machine wants ``Tick`` although nothing else happened, and which timer that is."""

    at_s: float
    """Monotonic seconds."""
    why: str


class Timers(Generic[Key]):
    """At most one deadline for each key. Setting and popping cost O(log n); cancelling O(1)."""

    def __init__(self) -> None:
        self._deadlines: dict[Key, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0  # breaks ties in the order of setting, so that keys need no order

    def __len__(self) -> int:
        return len(self._deadlines)

    def __contains__(self, key: Key) -> bool:
        return key in self._deadlines

    def __iter__(self) -> Iterator[Key]:
        """The keys, in the order in which they were first set."""
        return iter(self._deadlines)

    def set(self, key: Key, at_s: float) -> None:
        """Set or move the deadline of ``key``."""
        self._count += 1
        self._deadlines[key] = (at_s, self._count)
        heapq.heappush(self._heap, (at_s, self._count, key))

    def cancel(self, key: Key) -> None:
        """Forget ``key``; unknown keys are ignored."""
        self._deadlines.pop(key, None)

    def next_s(self) -> float | None:
        """The earliest deadline."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_s: float) -> Key | None:
        """Remove and return the key of the earliest deadline that has passed, else None."""
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now_s:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._deadlines[key]
        return key

    def _drop_stale(self) -> None:
        while self._heap:
            _, count, key = self._heap[0]
            entry = self._deadlines.get(key)
            if entry is not None and entry[1] == count:
                return
            heapq.heappop(self._heap)
