"""Round trips of growing completeness, from a bare socket to what a call travels on.

Each rung adds one thing that a call needs, so the difference of two rungs is its price. The far end
of each is a forked process. The first rung never sleeps; every other one waits as the runtime does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from skate_rpc.event_loop import IoThread
from skate_rpc.stream import StreamConnection, make_decoder
from skate_worker.task_protocol import AnyMessage, PushCall, TaskDone

TASK_ID = bytes(24)
PUSH = PushCall(TASK_ID, "call", bytes(4), "Echo.call")
DONE = TaskDone(TASK_ID, b"ok" * 8, 1)
REQUEST = bytes(4) + msgspec.msgpack.encode([PUSH])
REPLY = bytes(4) + msgspec.msgpack.encode([DONE])
READ_BYTES = 4096
WARM_UP = 200


def measure_ladder(count: int) -> dict[str, float]:
    """Median microseconds of `count` round trips on each rung, in the order of completeness.

    Forks: call it while the process has one thread.
    """
    rungs: dict[str, float] = {}
    if len(os.sched_getaffinity(0)) > 1:  # on one core a spinning side only keeps the other off it
        rungs["two sockets, both sides spin"] = _spinning(count)
    return rungs | {
        "two sockets, both sides sleep": _blocking(count),
        "streams, answered by the far I/O thread": _stream(count, is_handed_over=False),
        "streams, answered by the far main thread": _stream(count, is_handed_over=True),
    }


def hand_over_us(count: int) -> float:
    """Median microseconds from releasing a lock until another sleeping thread runs."""
    there, back = threading.Lock(), threading.Lock()
    there.acquire()
    back.acquire()

    def answer() -> None:
        for _ in range(count + WARM_UP):
            there.acquire()
            back.release()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()

    def round_trip() -> None:
        there.release()
        back.acquire()

    result = _median_us(round_trip, count) / 2
    thread.join()
    return result


def _median_us(run: Callable[[], None], count: int) -> float:
    for _ in range(WARM_UP):
        run()
    times: list[int] = []
    for _ in range(count):
        start_ns = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start_ns)
    return statistics.median(times) / 1e3


@contextlib.contextmanager
def _far_end(serve: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A forked process that serves the other end until ours closes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)  # the parent's exit hooks are not the child's
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(pid, 0)


def _spinning(count: int) -> float:
    def receive(sock: socket.socket) -> bytes:
        while True:
            try:
                return sock.recv(READ_BYTES)
            except BlockingIOError:
                continue

    def serve(sock: socket.socket) -> None:
        sock.setblocking(False)
        while receive(sock):
            sock.send(REPLY)

    def round_trip() -> None:
        near.send(REQUEST)
        receive(near)

    with _far_end(serve) as near:
        near.setblocking(False)
        return _median_us(round_trip, count)


def _blocking(count: int) -> float:
    def serve(sock: socket.socket) -> None:
        while sock.recv(READ_BYTES):
            sock.send(REPLY)

    def round_trip() -> None:
        near.send(REQUEST)
        near.recv(READ_BYTES)

    with _far_end(serve) as near:
        return _median_us(round_trip, count)


def _stream(count: int, *, is_handed_over: bool) -> float:
    def serve(sock: socket.socket) -> None:
        loop = IoThread()
        loop.start()
        wake, queue = threading.Lock(), deque[Any]()
        wake.acquire()

        def on_messages(connection: StreamConnection[Any, Any], batch: list[Any]) -> None:
            if is_handed_over:
                queue.append(batch)
                wake.release()
            else:
                connection.send(DONE)

        def on_close(connection: StreamConnection[Any, Any], reason: str) -> None:
            queue.append(None)
            wake.release()

        far = _connect(sock, loop, on_messages, on_close)
        while True:
            wake.acquire()
            if queue.popleft() is None:
                return
            far.send(DONE)

    with _far_end(serve) as sock:
        loop = IoThread()
        loop.start()
        woken = threading.Lock()
        woken.acquire()
        near = _connect(sock, loop, lambda *_: woken.release(), lambda *_: None)

        def round_trip() -> None:
            near.send(PUSH)
            woken.acquire()

        result = _median_us(round_trip, count)
        near.close()
        loop.stop()
        return result


def _connect(
    sock: socket.socket,
    loop: IoThread,
    on_messages: Callable[[StreamConnection[Any, Any], list[Any]], None],
    on_close: Callable[[StreamConnection[Any, Any], str], None],
) -> StreamConnection[Any, Any]:
    sock.setblocking(False)
    connection: StreamConnection[Any, Any] = StreamConnection(
        sock, loop, make_decoder(AnyMessage), on_messages, on_close, peer="the other end"
    )
    loop.call_soon_threadsafe(connection.start_reading)
    return connection
