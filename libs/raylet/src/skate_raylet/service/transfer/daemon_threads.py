"""Threads for blocking work that may not hold up the daemon's end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_log = logging.getLogger(__name__)

IDLE_S = 30.0
"""A thread that had nothing to do for this long ends."""


class DaemonThreads:
    """Runs work on at most ``threads_max`` daemon threads, made when needed.

    What comes while all are busy waits its turn, in order.
    """

    def __init__(self, name: str, threads_max: int) -> None:
        self._name = name
        self._threads_max = threads_max
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0  # threads that wait, less the work that is on its way to them

    def run(self, work: Callable[[], None]) -> None:
        """Have ``work`` run soon. Raises ``RuntimeError`` when no thread can be started at all."""
        with self._lock:
            is_new = self._free <= 0 and self._threads < self._threads_max
            if is_new:
                self._threads += 1
            else:
                self._free -= 1
        if is_new:
            thread = threading.Thread(
                target=self._serve, args=(work,), name=self._name, daemon=True
            )
            try:
                thread.start()
                return
            except RuntimeError:
                with self._lock:
                    self._threads -= 1
                    if not self._threads:
                        raise
                    self._free -= 1
        self._work.put(work)

    def _serve(self, first: Callable[[], None]) -> None:
        work: Callable[[], None] | None = first
        while work is not None:
            try:
                work()
            except Exception:  # noqa: BLE001  the thread's boundary: work reports its own failures
                _log.exception("event=thread_work_failed pool=%s", self._name)
            del work  # what it holds must not wait for the next piece of work
            work = self._next()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._free += 1
        while True:
            try:
                return self._work.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if self._free > 0:
                        self._free -= 1
                        self._threads -= 1
                        return None
