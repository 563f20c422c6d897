"""Time stamps inside a live driver and a live worker, and what their threads cost.

`budget.py` runs this on both sides: the driver calls it directly, the worker through a task that
lands in it. A stamp is an append of `perf_counter_ns`, which on Linux is CLOCK_MONOTONIC, so stamps
of different processes on one machine compare. Nothing in the libraries knows of this: sockets,
epoll and locks are replaced by objects that stamp and pass on.
"""

# ruff: noqa: SLF001 - a probe looks inside on purpose

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skate_worker.current import require_core
from skate_worker.waiting import ReadyCount

Marks = dict[str, list[int]]
now_ns = time.perf_counter_ns

# Of this process: a worker keeps its stamps between the task that asks for them and the next one.
_MARKS: Marks = {}


def marker(label: str) -> Callable[[int], None]:
    """What adds a time stamp (ns) under `label`."""
    return _MARKS.setdefault(label, []).append


def take_marks() -> Marks:
    """The stamps of this process so far, which start anew."""
    taken = {label: list(times) for label, times in _MARKS.items()}
    for times in _MARKS.values():
        times.clear()
    return taken


class _Socket:
    """Stamps when a send begins and ends, and when a receive has ended."""

    def __init__(self, sock: Any, side: str) -> None:
        self._sock = sock
        self._begin = marker(f"{side}.send")
        self._end = marker(f"{side}.sent")
        self._received = marker(f"{side}.received")

    def send(self, view: Any) -> int:
        self._begin(now_ns())
        count: int = self._sock.send(view)
        self._end(now_ns())
        return count

    def recv(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        self._received(now_ns())
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Epoll:
    """Stamps when the I/O thread has woken."""

    def __init__(self, epoll: Any, side: str) -> None:
        self._epoll = epoll
        self._woke = marker(f"{side}.polled")

    def poll(self, timeout: float = -1.0) -> Any:
        events = self._epoll.poll(timeout)
        self._woke(now_ns())
        return events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


class _Lock:
    """Stamps when the sleeper is released and when it runs again."""

    def __init__(self, lock: Any, side: str) -> None:
        self._lock = lock
        self._release = marker(f"{side}.release")
        self._woke = marker(f"{side}.woken")

    def acquire(self, *arguments: Any, **options: Any) -> bool:
        result: bool = self._lock.acquire(*arguments, **options)
        self._woke(now_ns())
        return result

    def release(self) -> None:
        self._release(now_ns())
        self._lock.release()


def probe_connections(side: str) -> None:
    """Stamp the sends and receives to other drivers and workers, and the I/O thread's wake-ups."""
    core: Any = require_core()
    for connection in list(core.peers._connections):
        if not isinstance(connection._sock, _Socket):
            connection._sock = _Socket(connection._sock, side)
    if not isinstance(core._loop._epoll, _Epoll):
        core._loop._epoll = _Epoll(core._loop._epoll, side)


def unprobe_connections() -> None:
    """Undo :func:`probe_connections`."""
    core: Any = require_core()
    for connection in list(core.peers._connections):
        if isinstance(connection._sock, _Socket):
            connection._sock = connection._sock._sock
    if isinstance(core._loop._epoll, _Epoll):
        core._loop._epoll = core._loop._epoll._epoll


def probe_waits() -> Callable[[], None]:
    """Stamp in the driver when a waited-for result is there and when its waiter runs again."""
    ready, woken = marker("d.settled"), marker("d.woken")
    call, wait = ReadyCount.__call__, ReadyCount.wait

    def stamped_call(self: ReadyCount, entry: Any) -> None:
        ready(now_ns())
        call(self, entry)

    def stamped_wait(self: ReadyCount, timeout_s: float | None) -> bool:
        result = wait(self, timeout_s)
        woken(now_ns())
        return result

    def undo() -> None:
        ReadyCount.__call__ = call  # type: ignore[method-assign]
        ReadyCount.wait = wait  # type: ignore[method-assign]

    ReadyCount.__call__ = stamped_call  # type: ignore[method-assign]
    ReadyCount.wait = stamped_wait  # type: ignore[method-assign]
    return undo


def probe_worker() -> int:
    """In a worker: stamp its side from now on; returns its process id."""
    core: Any = require_core()
    probe_connections("w")
    if not isinstance(core.executor._wake, _Lock):
        core.executor._wake = _Lock(core.executor._wake, "w")
    return os.getpid()


def unprobe_worker() -> int:
    """Undo :func:`probe_worker`."""
    core: Any = require_core()
    unprobe_connections()
    if isinstance(core.executor._wake, _Lock):
        core.executor._wake = core.executor._wake._lock
    return os.getpid()


_begin, _end = marker("w.begin"), marker("w.end")


def stamped() -> bytes:
    """An empty function that stamps when it begins and ends."""
    _begin(now_ns())
    _end(now_ns())
    return b"ok"


def empty() -> bytes:
    """An empty function."""
    return b"ok"


def thread_costs() -> dict[str, tuple[int, int]]:
    """CPU ns and voluntary switches so far of the main thread and the I/O thread of this process.

    A voluntary switch is a sleep: each one costs somebody a wake-up.
    """
    costs: dict[str, tuple[int, int]] = {}
    for thread in threading.enumerate():
        is_main = thread is threading.main_thread()
        name = "main" if is_main else thread.name
        if name in {"main", "skate-io"} and thread.ident is not None:
            clock = time.pthread_getcpuclockid(thread.ident)
            # After a fork, the main thread object still has the number of the parent's.
            task = os.getpid() if is_main else thread.native_id
            status = Path(f"/proc/self/task/{task}/status").read_text()
            switches = int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
            costs[name] = (time.clock_gettime_ns(clock), switches)
    return costs


def worker_costs() -> tuple[int, dict[str, tuple[int, int]]]:
    """In a worker: its process id and :func:`thread_costs`."""
    return os.getpid(), thread_costs()


class Probed:
    """An actor whose worker can be probed."""

    def empty(self) -> bytes:
        """Do nothing."""
        return b"ok"

    def stamped(self) -> bytes:
        """Do nothing, with stamps."""
        return stamped()

    def probe_worker(self) -> int:
        """See the function."""
        return probe_worker()

    def unprobe_worker(self) -> int:
        """See the function."""
        return unprobe_worker()

    def take_marks(self) -> Marks:
        """See the function."""
        return take_marks()

    def worker_costs(self) -> tuple[int, dict[str, tuple[int, int]]]:
        """See the function."""
        return worker_costs()
