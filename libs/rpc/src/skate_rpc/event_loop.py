"""The loop that carries stream connections in a worker or driver: epoll in one daemon thread.

A stream needs only readiness, timers and a thread-safe wake-up. asyncio offers the same methods, so
the same connection class runs in the node daemon on asyncio's loop and in workers on this one,
which costs about a third per event and needs no import of asyncio.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

_log = logging.getLogger(__name__)


class TimerHandle(Protocol):
    """What ``call_later`` returns."""

    def cancel(self) -> None:
        """Do not call back any more."""


class EventLoop(Protocol):
    """The part of asyncio's loop that streams use. All but ``call_soon_threadsafe``: on the loop's
    thread.
    """

    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call back whenever ``fd`` can be read."""
        ...

    def remove_reader(self, fd: int, /) -> bool:
        """Stop; returns whether it was set."""
        ...

    def add_writer(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call back whenever ``fd`` can be written."""
        ...

    def remove_writer(self, fd: int, /) -> bool:
        """Stop; returns whether it was set."""
        ...

    def call_soon_threadsafe(self, callback: Callable[..., Any], /, *args: Any) -> Any:
        """Call back on the loop's thread, soon."""
        ...

    def call_later(self, delay: float, callback: Callable[..., Any], /, *args: Any) -> TimerHandle:
        """Call back after ``delay`` seconds."""
        ...


class _Timer:
    __slots__ = ("args", "callback", "is_cancelled")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.callback: Callable[..., Any] = callback
        self.args: tuple[Any, ...] = args
        self.is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


class IoThread:
    """An :class:`EventLoop` on a thread of its own.

    A callback that raises is logged and the loop goes on: one broken connection must not end the
    process's only link to the others.
    """

    def __init__(self, name: str = "skate-io") -> None:
        self._epoll = select.epoll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._readers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._writers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._is_awake = False
        self._is_ended = False
        self._wake_lock = threading.RLock()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_order = itertools.count()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the loop and release its descriptors; waits at most ``timeout_s`` for the thread."""
        if self.is_current() or not self._thread.ident:
            self._is_stopping = True
            return
        self.call_soon_threadsafe(self._stop)
        self._thread.join(timeout_s)

    def is_current(self) -> bool:
        """Whether the caller runs on the loop's thread."""
        return threading.get_ident() == self._thread.ident

    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call back whenever ``fd`` can be read."""
        self._readers[fd] = (callback, args)
        self._update(fd)

    def remove_reader(self, fd: int, /) -> bool:
        """Stop calling back for reading; returns whether it was set."""
        known = self._readers.pop(fd, None) is not None
        if known:
            self._update(fd)
        return known

    def add_writer(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call back whenever ``fd`` can be written."""
        self._writers[fd] = (callback, args)
        self._update(fd)

    def remove_writer(self, fd: int, /) -> bool:
        """Stop calling back for writing; returns whether it was set."""
        known = self._writers.pop(fd, None) is not None
        if known:
            self._update(fd)
        return known

    def call_soon_threadsafe(self, callback: Callable[..., Any], /, *args: Any) -> None:
        """Run ``callback`` on the loop's thread soon. Several calls before it wakes cost one
        wake-up.
        """
        self._soon.append((callback, args))
        if not self._is_awake:
            self._is_awake = True
            # The number of a closed descriptor is soon another file's: a write after the end would
            # put eight bytes into a stranger's stream. Reentrant, because a finalizer may come here
            # while this very thread is inside.
            with self._wake_lock:
                if not self._is_ended:
                    os.eventfd_write(self._wake_fd, 1)

    def call_later(self, delay: float, callback: Callable[..., Any], /, *args: Any) -> _Timer:
        """Run ``callback`` after ``delay`` seconds. Only on the loop's thread."""
        timer = _Timer(callback, args)
        due_s = time.monotonic() + delay
        heapq.heappush(self._timers, (due_s, next(self._timer_order), timer))
        return timer

    def _update(self, fd: int) -> None:
        wanted = (select.EPOLLIN if fd in self._readers else 0) | (
            select.EPOLLOUT if fd in self._writers else 0
        )
        try:
            if wanted:
                try:
                    self._epoll.modify(fd, wanted)
                except FileNotFoundError:
                    self._epoll.register(fd, wanted)
            else:
                self._epoll.unregister(fd)
        except (FileNotFoundError, OSError, ValueError):
            if wanted and not self._is_stopping:
                raise

    def _stop(self) -> None:
        self._is_stopping = True

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._run_once()
        finally:
            with self._wake_lock:
                self._is_ended = True
            self._epoll.close()
            os.close(self._wake_fd)

    def _run_once(self) -> None:
        timeout_s = -1.0
        if self._timers:
            timeout_s = max(0.0, self._timers[0][0] - time.monotonic())
        if self._soon:
            timeout_s = 0.0
        for fd, mask in self._epoll.poll(timeout_s):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
                continue
            if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                reader = self._readers.get(fd)
                if reader is not None:
                    self._call(*reader)
            if mask & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
                writer = self._writers.get(fd)
                if writer is not None:
                    self._call(*writer)
        # Cleared before the queue is read: a caller that appends later wakes the loop again.
        self._is_awake = False
        for _ in range(len(self._soon)):
            callback, args = self._soon.popleft()
            self._call(callback, args)
        while self._timers and self._timers[0][0] <= time.monotonic():
            timer = heapq.heappop(self._timers)[2]
            if not timer.is_cancelled:
                self._call(timer.callback, timer.args)

    def _call(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception:  # noqa: BLE001 - the boundary of the loop: see the class's docstring
            _log.exception("event=callback_failed callback=%r", callback)
