"""Waiting for objects: a count-down that wakes one thread once, when its condition holds."""

from __future__ import annotations

import threading

from skate_worker.machine.references import FAILED, Entry


class ReadyCount:
    """Releases its waiter when ``needed`` entries are settled, or at the first failed one if asked
    so.

    Called with each settled entry, on whatever thread settled it.
    """

    __slots__ = ("_lock", "_needed", "_stops_at_failure", "_woken")

    def __init__(self, needed: int, *, stops_at_failure: bool = False) -> None:
        self._needed = needed
        self._stops_at_failure = stops_at_failure
        self._lock = threading.Lock()
        # A plain lock as the signal: acquiring it is interruptible by signals and costs one futex.
        self._woken = threading.Lock()
        self._woken.acquire()

    def __call__(self, entry: Entry) -> None:  # noqa: D102 - the class says it
        with self._lock:
            self._needed -= 1
            if self._needed == 0 or (
                self._stops_at_failure and self._needed > 0 and entry.state == FAILED
            ):
                self._needed = 0
                self._woken.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Whether the condition came true within ``timeout_s`` (None: wait without end)."""
        return self._woken.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
