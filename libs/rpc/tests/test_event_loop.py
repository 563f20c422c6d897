"""The loop's thread: wake-ups, timers, errors, and what a call after its end may not do."""

from __future__ import annotations

import os
import threading

import pytest

from skate_rpc.event_loop import IoThread

WAIT_S = 10.0


def test_call_after_the_end_writes_to_no_descriptor_that_took_the_number() -> None:
    reader, writer = os.pipe()
    loop = IoThread()
    loop.start()
    used = loop._wake_fd
    loop.stop()
    os.dup2(writer, used)  # the number is now a pipe's
    try:
        os.set_blocking(reader, False)
        for _ in range(3):
            loop.call_soon_threadsafe(lambda: None)
        with pytest.raises(BlockingIOError):
            os.read(reader, 8)
    finally:
        for descriptor in (reader, writer, used):
            os.close(descriptor)


def test_callbacks_run_in_order_on_the_loops_thread() -> None:
    loop = IoThread()
    loop.start()
    seen: list[int] = []
    threads: set[int] = set()
    done = threading.Event()
    for number in range(100):
        loop.call_soon_threadsafe(seen.append, number)
    loop.call_soon_threadsafe(lambda: threads.add(threading.get_ident()))
    loop.call_soon_threadsafe(done.set)
    assert done.wait(WAIT_S)
    loop.stop()
    assert seen == list(range(100))
    assert threads != {threading.get_ident()}


def test_timers_run_by_due_time_and_cancelled_ones_do_not() -> None:
    loop = IoThread()
    loop.start()
    seen: list[str] = []
    done = threading.Event()

    def plan() -> None:
        loop.call_later(0.03, done.set)
        loop.call_later(0.02, seen.append, "second")
        loop.call_later(0.01, seen.append, "first")
        loop.call_later(0.01, seen.append, "never").cancel()

    loop.call_soon_threadsafe(plan)
    assert done.wait(WAIT_S)
    loop.stop()
    assert seen == ["first", "second"]


def test_callback_that_raises_is_logged_and_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = IoThread()
    loop.start()
    done = threading.Event()
    loop.call_soon_threadsafe(lambda: 1 // 0)
    loop.call_soon_threadsafe(done.set)
    assert done.wait(WAIT_S)
    loop.stop()
    assert "callback_failed" in caplog.text
