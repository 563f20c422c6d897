"""Streaming, dynamic and static generators between real processes, without the rest of the
cluster.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from mini_raylet import MiniRaylet

from skate_worker import production
from skate_worker.core import CoreWorker
from skate_worker.errors import (
    ActorDiedError,
    TaskCancelledError,
    TaskError,
    UnknownOwnerError,
    WorkerCrashedError,
)
from skate_worker.generator_returns import DYNAMIC, ITEMS_MAX, STATIC, STREAMING, encode_returns
from skate_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from skate_worker.specs import ActorOptions, CallOptions, TaskOptions

WAIT_S = 20.0
STREAM = encode_returns(STREAMING)

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def stream(
    core: CoreWorker, function: Any, *args: Any, limit: int = 0, **options: Any
) -> ObjectRefGenerator[Any]:
    task = TaskOptions(function.__name__, num_returns=encode_returns(STREAMING, limit), **options)
    generator: Any = core.submit_task(core.export(function), args, {}, task)[0]
    assert isinstance(generator, ObjectRefGenerator)
    return generator


def returns(core: CoreWorker, function: Any, *args: Any, code: int, **options: Any) -> list[Any]:
    task = TaskOptions(function.__name__, num_returns=code, **options)
    return core.submit_task(core.export(function), args, {}, task)


def value(core: CoreWorker, ref: Any) -> Any:
    return core.get([ref], WAIT_S)[0]


def values(core: CoreWorker, refs: Any) -> list[Any]:
    return [value(core, ref) for ref in refs]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def entries(core: CoreWorker) -> int:
    gc.collect()
    core.ownership.drain_dropped()
    return len(core.ownership.table.entries)


def count_to(n: int) -> Iterator[int]:
    yield from range(n)


def count_in_file(path: str, n: int, pause_s: float = 0.0) -> Iterator[int]:
    for number in range(n):
        with open(path, "a") as file:
            file.write("x")
        yield number
        time.sleep(pause_s)


class Source:
    def __init__(self, marker: str = "") -> None:
        self.marker = marker

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def endless(self) -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1
            time.sleep(0.001)

    def die_once(self, n: int) -> Iterator[int]:
        for number in range(n):
            if number == n // 2 and not os.path.exists(self.marker):
                open(self.marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    def pid(self) -> int:
        return os.getpid()


class AsyncSource:
    def __init__(self) -> None:
        self.closed = 0

    async def count(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            await asyncio.sleep(0)
            yield number

    def count_plainly(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def endless(self) -> AsyncIterator[int]:
        try:
            while True:
                yield self.closed
                await asyncio.sleep(0.001)
        finally:
            self.closed += 1

    async def times_closed(self) -> int:
        return self.closed


def make_actor(core: CoreWorker, cls: type, *args: Any, **options: Any) -> Any:
    actor_id, _, keeper = core.create_actor(
        core.export(cls), args, {}, ActorOptions(cls.__name__, **options)
    )
    return actor_id, keeper


def call(
    core: CoreWorker, actor_id: bytes, method: str, *args: Any, code: int = STREAM, **options: Any
) -> Any:
    made = CallOptions(method, method, num_returns=code, **options)
    return core.submit_actor_task(actor_id, args, {}, made)[0]


# ---- items ----


def test_items_come_in_order_and_the_stream_ends_for_good(core: CoreWorker) -> None:
    generator = stream(core, count_to, 2000)
    assert values(core, generator) == list(range(2000))
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(generator)
    assert generator.is_finished()
    assert not generator.next_ready()
    assert value(core, generator.completed()) is None


def test_item_is_available_while_the_task_still_runs(core: CoreWorker, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"

    def two(path: str) -> Iterator[str]:
        yield "first"
        while not os.path.exists(path):
            time.sleep(0.005)
        yield "second"

    generator = stream(core, two, str(go_on))
    assert value(core, next(generator)) == "first"
    assert not generator.next_ready()
    go_on.touch()
    assert values(core, generator) == ["second"]


def test_item_ids_follow_from_the_task(core: CoreWorker) -> None:
    generator = stream(core, count_to, 3)
    ids = [ref.binary() for ref in generator]
    task = bytes(generator.task_id())
    assert ids == [task + index.to_bytes(4, "big") for index in (2, 3, 4)]
    assert generator.completed().binary() == task + b"\0\0\0\1"


def test_large_item_is_deleted_with_its_reference_while_the_task_runs(
    core: CoreWorker, raylet: MiniRaylet, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"

    def arrays(path: str) -> Iterator[Any]:
        yield np.arange(100_000)
        while not os.path.exists(path):
            time.sleep(0.005)

    generator = stream(core, arrays, str(go_on))
    ref = next(generator)
    assert int(value(core, ref)[-1]) == 99_999
    assert raylet.store.statistics().objects == 1
    del ref
    wait_until(lambda: raylet.store.statistics().objects == 0)
    go_on.touch()
    assert list(generator) == []


def test_item_that_holds_references_keeps_them_alive(core: CoreWorker, raylet: MiniRaylet) -> None:
    def boxes(given: list[Any]) -> Iterator[Any]:
        from skate_worker.current import require_core

        for number in range(3):
            yield [require_core().put(np.full(50_000, number)), *given]

    own = core.put("own")
    boxed = values(core, stream(core, boxes, [own]))
    assert [int(value(core, box[0])[0]) for box in boxed] == [0, 1, 2]
    assert [value(core, box[1]) for box in boxed] == ["own"] * 3
    del boxed, own
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)


def test_async_iteration_gives_the_same_items(core: CoreWorker) -> None:
    async def collect() -> list[Any]:
        return [await ref async for ref in stream(core, count_to, 50)]

    assert asyncio.run(collect()) == list(range(50))


def test_wait_takes_generators_beside_references(core: CoreWorker, tmp_path: Path) -> None:
    def slow(path: str) -> Iterator[int]:
        while not os.path.exists(path):
            time.sleep(0.005)
        yield 1

    marker = tmp_path / "go-on"
    quick, late = stream(core, count_to, 1), stream(core, slow, str(marker))
    ref = core.put(1)
    mixed: list[Any] = [late, quick, ref]
    assert core.wait(mixed, 2, WAIT_S) == ([quick, ref], [late])
    assert core.wait([late], 1, 0.01) == ([], [late])  # type: ignore[list-item]
    marker.touch()
    assert core.wait([late], 1, WAIT_S) == ([late], [])  # type: ignore[list-item]
    assert values(core, quick) == [0]
    assert core.wait([quick], 1, WAIT_S) == ([quick], [])  # type: ignore[list-item]  # its end


# ---- errors ----


def test_error_comes_after_the_items_and_then_the_end(core: CoreWorker) -> None:
    def fail() -> Iterator[int]:
        yield 0
        yield 1
        raise KeyError("broken")

    generator = stream(core, fail)
    refs = list(generator)
    assert [value(core, ref) for ref in refs[:2]] == [0, 1]
    assert len(refs) == 3
    with pytest.raises(KeyError, match="broken") as caught:
        value(core, refs[2])
    assert isinstance(caught.value, TaskError)
    with pytest.raises(KeyError):
        value(core, generator.completed())
    assert generator.is_finished()


def test_item_that_can_not_be_pickled_is_the_error_of_the_stream(core: CoreWorker) -> None:
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()

    refs = list(stream(core, locks))
    assert value(core, refs[0]) == 1
    with pytest.raises(TypeError, match="item of locks"):
        value(core, refs[1])


@pytest.mark.surface("G10")
def test_stream_with_more_items_than_a_stream_may_have_fails_after_those(core: CoreWorker) -> None:
    def too_many() -> Iterator[int]:
        production.ITEMS_MAX = 3  # type: ignore[misc]  of the worker: 1e8 of them would take hours
        try:
            yield from range(5)
        finally:
            production.ITEMS_MAX = ITEMS_MAX  # type: ignore[misc]

    generator = stream(core, too_many)
    assert [value(core, next(generator)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"too_many\(\) yielded more than 3 items"):
        value(core, next(generator))
    with pytest.raises(StopIteration):
        next(generator)


@pytest.mark.surface("G10")
def test_return_in_the_middle_ends_the_stream(core: CoreWorker) -> None:
    def early() -> Iterator[int]:
        yield 1
        return
        yield 2  # type: ignore[unreachable]

    assert values(core, stream(core, early)) == [1]


def test_function_that_returns_a_list_is_no_stream(core: CoreWorker) -> None:
    def numbers() -> list[int]:
        return [1, 2]

    (ref,) = stream(core, numbers)
    with pytest.raises(TypeError, match="but it returned list"):
        value(core, ref)


def test_error_of_an_argument_is_the_only_reference(core: CoreWorker) -> None:
    def boom() -> None:
        raise KeyError("missing")

    failed = returns(core, boom, code=1)[0]
    (ref,) = stream(core, count_to, failed)
    with pytest.raises(KeyError, match="input arguments"):
        value(core, ref)


# ---- deaths and retries ----


def test_stream_of_a_killed_worker_starts_again_and_gives_each_item_once(
    core: CoreWorker, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    def die_once(path: str) -> Iterator[Any]:
        for number in range(40):
            if number == 20 and not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.full(20_000, number) if number % 4 == 0 else number

    got = [int(np.max(item)) for item in values(core, stream(core, die_once, str(marker)))]
    assert got == list(range(40))
    assert marker.exists()


def test_retried_stream_goes_on_where_a_bounded_consumer_stands(
    core: CoreWorker, tmp_path: Path
) -> None:
    marker = tmp_path / "died"

    def die_once(path: str) -> Iterator[int]:
        for number in range(20):
            if number == 10 and not os.path.exists(path):
                open(path, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            yield number

    assert values(core, stream(core, die_once, str(marker), limit=1)) == list(range(20))


def test_stream_without_retries_left_ends_with_the_death(core: CoreWorker) -> None:
    def die() -> Iterator[int]:
        yield 0
        time.sleep(0.05)  # the item is on its way before the death
        os.kill(os.getpid(), signal.SIGKILL)
        yield 1

    generator = stream(core, die, max_retries=0)
    refs = list(generator)
    with pytest.raises(WorkerCrashedError, match="SIGKILL"):
        value(core, refs[-1])
    assert values(core, refs[:-1]) == [0]
    with pytest.raises(WorkerCrashedError):
        value(core, generator.completed())


def test_item_that_a_dying_worker_stored_and_did_not_report_is_freed(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def die() -> Iterator[Any]:
        from skate_worker.current import require_core

        running = require_core()
        assert running.executor is not None
        production: Any = next(iter(running.executor.producers._running.values()))
        production._send = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        yield np.zeros(20_000)

    for retries in (0, 1):
        with pytest.raises(WorkerCrashedError):
            values(core, stream(core, die, max_retries=retries))
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)


def test_listed_exception_restarts_the_stream(core: CoreWorker, tmp_path: Path) -> None:
    marker = tmp_path / "failed"

    def fail_once(path: str) -> Iterator[int]:
        yield 0
        yield 1
        if not os.path.exists(path):
            open(path, "w").close()
            raise ValueError("once")
        yield 2

    generator = stream(core, fail_once, str(marker), retry_exceptions=(ValueError,))
    assert values(core, generator) == [0, 1, 2]


# ---- back-pressure, drop, cancel ----


def test_producer_is_never_more_than_the_bound_ahead(core: CoreWorker, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.touch()
    generator = stream(core, count_in_file, str(made), 60, limit=3)
    for taken in range(60):
        wait_until(lambda: len(made.read_text()) == min(60, taken + 3))  # noqa: B023
        time.sleep(0.002)
        assert len(made.read_text()) - taken <= 3
        assert value(core, next(generator)) == taken
    assert list(generator) == []


def test_paused_producer_lends_its_worker_to_others(core: CoreWorker, raylet: MiniRaylet) -> None:
    generator = stream(core, count_to, 5, limit=1)
    wait_until(lambda: raylet.blocked > 0)
    assert value(core, returns(core, lambda: 7, code=1)[0]) == 7
    assert values(core, generator) == list(range(5))


@pytest.mark.parametrize("limit", [0, 2])
def test_dropped_generator_stops_its_producer_and_frees_what_is_unread(
    core: CoreWorker, raylet: MiniRaylet, tmp_path: Path, limit: int
) -> None:
    closed = tmp_path / "closed"

    def arrays(path: str) -> Iterator[Any]:
        try:
            while True:
                yield np.zeros(20_000)
                time.sleep(0.002)
        finally:
            open(path, "w").close()

    generator = stream(core, arrays, str(closed), limit=limit)
    next(generator)
    wait_until(lambda: raylet.store.statistics().objects > 1)
    started_s = time.monotonic()
    del generator
    wait_until(closed.exists)
    assert time.monotonic() - started_s < 2.0
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)
    assert not core.streams._running


def test_cancelled_stream_ends_with_the_cancellation(core: CoreWorker) -> None:
    def wait() -> Iterator[int]:
        yield 0
        time.sleep(60)

    generator = stream(core, wait)
    assert value(core, next(generator)) == 0
    core.cancel(generator)
    with pytest.raises(TaskCancelledError, match="was cancelled"):
        value(core, next(generator))
    with pytest.raises(StopIteration):
        next(generator)
    assert value(core, returns(core, lambda: 7, code=1)[0]) == 7


def test_paused_producer_can_be_cancelled(core: CoreWorker, raylet: MiniRaylet) -> None:
    generator = stream(core, count_to, 5, limit=1)
    wait_until(lambda: raylet.blocked > 0)
    core.cancel(generator)
    refs = list(generator)
    assert value(core, refs[0]) == 0
    with pytest.raises(TaskCancelledError):
        value(core, refs[-1])


def test_forced_cancel_is_told_by_completed_too(core: CoreWorker) -> None:
    def wait() -> Iterator[int]:
        yield 0
        time.sleep(60)

    generator = stream(core, wait)
    next(generator)
    core.cancel(generator, force=True)
    with pytest.raises(TaskCancelledError):
        value(core, generator.completed())


def test_stream_of_a_dead_owner_is_closed(core: CoreWorker, tmp_path: Path) -> None:
    closed = tmp_path / "closed"

    def owner(path: str, limit: int) -> None:
        from skate_worker.current import require_core

        def endless(path: str) -> Iterator[int]:
            try:
                number = 0
                while True:
                    yield number
                    number += 1
            finally:
                open(path, "w").close()

        inner = require_core()
        task = TaskOptions("endless", num_returns=encode_returns(STREAMING, limit))
        generator: Any = inner.submit_task(inner.export(endless), (path,), {}, task)[0]
        inner.get([next(generator)], WAIT_S)
        os.kill(os.getpid(), signal.SIGKILL)

    returns(core, owner, str(closed), 2, code=1, max_retries=0)
    wait_until(closed.exists)


# ---- actors ----


def test_methods_of_actors_stream(core: CoreWorker) -> None:
    plain, _a = make_actor(core, Source)
    threaded, _b = make_actor(core, Source, max_concurrency=2)
    asynchronous, _c = make_actor(core, AsyncSource, is_async=True, max_concurrency=10)
    for actor_id, method in (
        (plain, "count"),
        (threaded, "count"),
        (asynchronous, "count"),
        (asynchronous, "count_plainly"),
    ):
        assert values(core, call(core, actor_id, method, 20)) == list(range(20))


def test_dropped_stream_of_each_kind_of_actor_stops(core: CoreWorker) -> None:
    plain, _a = make_actor(core, Source)
    threaded, _b = make_actor(core, Source, max_concurrency=2)
    asynchronous, _c = make_actor(core, AsyncSource, is_async=True, max_concurrency=10)
    for actor_id in (plain, threaded, asynchronous):
        generator = call(core, actor_id, "endless")
        next(generator)
        del generator
        wait_until(lambda: not core.streams._running)
    assert value(core, call(core, plain, "pid", code=1)) > 0  # its one thread is free again
    assert value(core, call(core, asynchronous, "times_closed", code=1)) == 1


def test_cancelled_stream_of_each_kind_of_actor_stops(core: CoreWorker) -> None:
    plain, _a = make_actor(core, Source)
    threaded, _b = make_actor(core, Source, max_concurrency=2)
    asynchronous, _c = make_actor(core, AsyncSource, is_async=True, max_concurrency=10)
    for actor_id in (plain, threaded, asynchronous):
        generator = call(core, actor_id, "endless")
        next(generator)
        core.cancel(generator)
        with pytest.raises(TaskCancelledError):
            value(core, list(generator)[-1])


def test_stream_of_a_killed_actor_ends_with_its_death(core: CoreWorker) -> None:
    actor_id, _keeper = make_actor(core, Source)
    generator = call(core, actor_id, "endless")
    next(generator)
    core.kill_actor(bytes(actor_id))
    with pytest.raises(ActorDiedError):
        value(core, list(generator)[-1])


# ---- dynamic and static ----


def test_dynamic_return_is_one_reference_to_all(core: CoreWorker, raylet: MiniRaylet) -> None:
    def arrays(n: int) -> Iterator[Any]:
        for number in range(n):
            yield np.full(20_000, number)

    def total(refs: Any) -> int:
        from skate_worker.current import require_core

        return sum(int(item[0]) for item in require_core().get(list(refs), WAIT_S))

    code = encode_returns(DYNAMIC)
    (outer,) = returns(core, arrays, 5, code=code)
    inner = value(core, outer)
    assert isinstance(inner, DynamicObjectRefGenerator)
    assert len(inner) == 5
    assert [int(value(core, ref)[0]) for ref in inner] == list(range(5))
    assert value(core, returns(core, total, outer, code=1)[0]) == 10
    del outer, inner
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)


def test_dynamic_return_that_raises_has_the_error_last(core: CoreWorker) -> None:
    def fail() -> Iterator[int]:
        yield 0
        raise KeyError("broken")

    refs = list(value(core, returns(core, fail, code=encode_returns(DYNAMIC))[0]))
    assert value(core, refs[0]) == 0
    with pytest.raises(KeyError, match="broken"):
        value(core, refs[1])
    assert len(refs) == 2


def test_static_returns_are_the_first_items(core: CoreWorker) -> None:
    for count in (1, 3):
        refs = returns(core, count_to, 100, code=encode_returns(STATIC, count))
        assert values(core, refs) == list(range(count))


def test_static_returns_that_are_too_few_have_an_error_in_the_rest(core: CoreWorker) -> None:
    refs = returns(core, count_to, 2, code=encode_returns(STATIC, 4))
    assert values(core, refs[:2]) == [0, 1]
    for ref in refs[2:]:
        with pytest.raises(ValueError, match="yielded 2 values"):
            value(core, ref)


def test_static_returns_that_hold_references_keep_them(core: CoreWorker) -> None:
    def boxes() -> Iterator[Any]:
        from skate_worker.current import require_core

        for number in range(3):
            yield [require_core().put(number)]

    refs = returns(core, boxes, code=encode_returns(STATIC, 3))
    assert [value(core, box[0]) for box in values(core, refs)] == [0, 1, 2]


# ---- nothing is left ----


def test_nothing_is_left_of_streams_that_ended_each_way(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def mixed(n: int) -> Iterator[Any]:
        for number in range(n):
            yield np.zeros(20_000) if number % 2 else number

    def fail() -> Iterator[int]:
        yield 0
        raise KeyError("broken")

    for _ in range(5):
        list(stream(core, mixed, 6))
        next(stream(core, mixed, 6))
        list(stream(core, fail))
        stream(core, fail)
    wait_until(lambda: not core.streams._running)
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)
    assert gc.garbage == []


def test_generator_can_not_be_pickled_or_passed(core: CoreWorker) -> None:
    generator = stream(core, count_to, 1)
    with pytest.raises(TypeError, match="pass the references"):
        core.put(generator)
    with pytest.raises(TypeError, match="pass the references"):
        returns(core, count_to, generator, code=1)
    assert values(core, generator) == [0]


def test_generator_of_a_session_that_has_ended_says_so(core: CoreWorker) -> None:
    def wait() -> Iterator[int]:
        time.sleep(60)
        yield 1

    generator = stream(core, wait)
    core.close()
    with pytest.raises(UnknownOwnerError, match="session that has ended"):
        next(generator)


def test_task_without_returns_that_fails_disturbs_no_other(core: CoreWorker) -> None:
    def fail() -> None:
        raise KeyError("unseen")

    assert returns(core, fail, code=0, retry_exceptions=(ValueError,)) == []
    assert value(core, returns(core, lambda: 7, code=1)[0]) == 7
    wait_until(lambda: core.tasks.statistics()["in_flight"] == 0)
