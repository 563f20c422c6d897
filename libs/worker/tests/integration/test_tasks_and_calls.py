"""Tasks and actor calls between real processes, without the rest of the cluster."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from mini_raylet import MiniRaylet

from skate_worker.core import CoreWorker
from skate_worker.errors import (
    ActorDiedError,
    GetTimeoutError,
    TaskCancelledError,
    TaskError,
    WorkerCrashedError,
)
from skate_worker.object_ref import ObjectRef
from skate_worker.specs import ActorOptions, CallOptions, TaskOptions

WAIT_S = 20.0

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run(core: CoreWorker, function: Any, *args: Any, **options: Any) -> list[ObjectRef[Any]]:
    task_options = TaskOptions(function.__name__, **options)
    return core.submit_task(core.export(function), args, {}, task_options)


def result(core: CoreWorker, function: Any, *args: Any, **options: Any) -> Any:
    return core.get(run(core, function, *args, **options), WAIT_S)[0]


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def entries(core: CoreWorker) -> int:
    core.ownership.drain_dropped()
    return len(core.ownership.table.entries)


def add(x: int, y: int = 1) -> int:
    return x + y


class Counter:
    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise ValueError("start below zero")
        self.value = start
        self.kept: Any = None

    def inc(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def keep(self, refs: list[Any]) -> None:
        self.kept = refs

    def read_kept(self, core_get: Any = None) -> Any:
        from skate_worker.current import require_core

        return require_core().get(self.kept, WAIT_S)

    def drop(self) -> None:
        self.kept = None

    def pid(self) -> int:
        return os.getpid()


def make_actor(core: CoreWorker, cls: type = Counter, *args: Any, **options: Any) -> Any:
    return core.create_actor(core.export(cls), args, {}, ActorOptions(cls.__name__, **options))


def call(core: CoreWorker, actor_id: bytes, method: str, *args: Any) -> list[ObjectRef[Any]]:
    return core.submit_actor_task(actor_id, args, {}, CallOptions(method, method))


def test_task_with_values_and_references_returns_the_sum(core: CoreWorker) -> None:
    first = run(core, add, 1)[0]
    assert result(core, add, first, core.put(10)) == 12


def test_many_tasks_return_in_order(core: CoreWorker) -> None:
    refs = [run(core, add, n)[0] for n in range(3000)]
    assert core.get(refs, WAIT_S) == list(range(1, 3001))


def test_large_values_travel_through_the_store_without_a_copy(core: CoreWorker) -> None:
    array = np.arange(1_000_000)
    ref = core.put(array)

    def double(x: Any) -> Any:
        assert not x.flags.writeable
        return x * 2

    doubled = result(core, double, ref)
    assert np.array_equal(doubled, array * 2)
    assert not doubled.flags.writeable


def test_store_is_empty_again_after_the_references_are_gone(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def produce(n: int) -> Any:
        return np.full(200_000, n)

    refs = [run(core, produce, n)[0] for n in range(10)]
    values = core.get(refs, WAIT_S)
    assert [int(v[0]) for v in values] == list(range(10))
    del values, refs
    wait_until(lambda: raylet.store.statistics().objects == 0)
    wait_until(lambda: entries(core) == 0)


def test_user_error_is_raised_as_the_users_own_class_with_its_traceback(core: CoreWorker) -> None:
    def boom() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError) as caught:
        result(core, boom)
    assert isinstance(caught.value, TaskError)
    assert "boom" in str(caught.value)


def test_error_of_an_argument_fails_the_task_without_running_it(core: CoreWorker) -> None:
    def boom() -> None:
        raise KeyError("missing")

    with pytest.raises(KeyError, match="input arguments"):
        result(core, add, run(core, boom)[0])


def test_several_returns_and_none(core: CoreWorker) -> None:
    def pair() -> tuple[int, int]:
        return 1, 2

    assert core.get(run(core, pair, num_returns=2), WAIT_S) == [1, 2]
    assert run(core, pair, num_returns=0) == []
    with pytest.raises(ValueError, match="returned 2 values"):
        core.get(run(core, pair, num_returns=3), WAIT_S)


def test_get_gives_up_after_its_timeout(core: CoreWorker) -> None:
    def sleep() -> None:
        time.sleep(30)

    ref = run(core, sleep, max_retries=0)[0]
    with pytest.raises(GetTimeoutError):
        core.get([ref], 0.05)


def test_wait_splits_by_readiness_and_keeps_the_order(core: CoreWorker) -> None:
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    slow, quick = run(core, sleep, 30.0)[0], run(core, sleep, 0.0)[0]
    assert core.wait([slow, quick], 1, WAIT_S) == ([quick], [slow])


def test_nested_tasks_give_their_queue_back_while_they_wait(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def outer(n: int) -> Any:
        from skate_worker.current import require_core

        inner = require_core()
        task = TaskOptions("add")
        ref = inner.submit_task(inner.export(lambda x: x + 1), (n,), {}, task)[0]
        return inner.get([ref], WAIT_S)[0]

    refs = [run(core, outer, n)[0] for n in range(6)]
    assert core.get(refs, WAIT_S) == [n + 1 for n in range(6)]
    assert raylet.blocked > 0


def test_killed_worker_is_replaced_and_the_task_retried(core: CoreWorker, tmp_path: Path) -> None:
    marker = tmp_path / "died"

    def die_once(path: str) -> str:
        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    assert result(core, die_once, str(marker)) == "alive"


@pytest.mark.invariant("I8")
def test_task_starts_exactly_one_more_time_than_its_retries(
    core: CoreWorker, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"

    def die(path: str) -> None:
        with open(path, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    for retries in (0, 2):
        starts.write_text("")
        with pytest.raises(WorkerCrashedError, match="SIGKILL"):
            result(core, die, str(starts), max_retries=retries)
        assert len(starts.read_text()) == retries + 1


def test_listed_exceptions_are_retried_and_others_are_not(core: CoreWorker, tmp_path: Path) -> None:
    def fail(path: str, error: type[Exception]) -> None:
        with open(path, "a") as file:
            file.write("x")
        raise error("again")

    for error, starts in ((ValueError, 3), (KeyError, 1)):
        path = tmp_path / error.__name__
        with pytest.raises(error):
            result(core, fail, str(path), error, max_retries=2, retry_exceptions=(ValueError,))
        assert len(path.read_text()) == starts


def test_worker_past_its_max_calls_leaves_and_the_rest_runs_elsewhere(core: CoreWorker) -> None:
    def pid() -> int:
        return os.getpid()

    refs = [run(core, pid, max_calls=3, max_retries=0)[0] for _ in range(10)]
    pids = core.get(refs, WAIT_S)
    assert all(pids.count(p) <= 3 for p in pids)


def test_task_that_exits_with_zero_ends_its_worker_and_counts_as_a_death(core: CoreWorker) -> None:
    def leave() -> None:
        sys.exit(0)

    ref = run(core, leave, max_retries=1)[0]
    others = [run(core, add, n)[0] for n in range(20)]
    with pytest.raises(WorkerCrashedError, match=r"sys\.exit"):
        core.get([ref], WAIT_S)
    assert core.get(others, WAIT_S) == list(range(1, 21))


@pytest.mark.invariant("I9")
def test_actor_calls_run_in_the_order_of_each_caller(core: CoreWorker) -> None:
    actor_id, is_new, _keeper = make_actor(core)
    assert is_new
    refs = [call(core, actor_id, "inc")[0] for _ in range(2000)]
    assert core.get(refs, WAIT_S) == list(range(1, 2001))


def test_constructor_error_is_told_to_every_call(core: CoreWorker) -> None:
    actor_id, _, _keeper = make_actor(core, Counter, -1)
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="start below zero") as caught:
            core.get(call(core, actor_id, "inc"), WAIT_S)
        assert caught.value.actor_init_failed


def test_killed_actor_fails_its_calls_with_the_cause(core: CoreWorker) -> None:
    actor_id, _, _keeper = make_actor(core)
    core.get(call(core, actor_id, "inc"), WAIT_S)
    core.kill_actor(bytes(actor_id))
    with pytest.raises(ActorDiedError, match="killed"):
        core.get(call(core, actor_id, "inc"), WAIT_S)


def test_call_finishes_although_the_last_handle_went_right_after_it(core: CoreWorker) -> None:
    actor_id, _, keeper = make_actor(core)
    ref = call(core, actor_id, "inc")[0]
    del keeper
    assert core.get([ref], WAIT_S) == [1]


def test_reference_kept_by_an_actor_outlives_the_drivers_own(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    actor_id, _, _keeper = make_actor(core)
    ref = core.put(np.arange(100_000))
    core.get(call(core, actor_id, "keep", [ref]), WAIT_S)
    del ref
    core.ownership.drain_dropped()
    kept = core.get(call(core, actor_id, "read_kept"), WAIT_S)[0]
    assert int(kept[0][-1]) == 99_999
    del kept
    core.get(call(core, actor_id, "drop"), WAIT_S)
    wait_until(lambda: raylet.store.statistics().objects == 0)


def test_reference_made_by_a_worker_outlives_the_task_that_returned_it(core: CoreWorker) -> None:
    def produce() -> list[Any]:
        from skate_worker.current import require_core

        return [require_core().put(n) for n in range(100)]

    actor_holder = run(core, produce)[0]
    refs = core.get([actor_holder], WAIT_S)[0]
    assert core.get(refs, WAIT_S) == list(range(100))


@pytest.mark.invariant("I21")
def test_cancelled_running_task_is_interrupted_and_no_other(core: CoreWorker) -> None:
    def sleep() -> None:
        time.sleep(60)

    ref = run(core, sleep, max_retries=0)[0]
    wait_until(lambda: core.tasks.statistics()["in_flight"] == 1)
    core.cancel(ref)
    with pytest.raises(TaskCancelledError):
        core.get([ref], WAIT_S)
    assert result(core, add, 1) == 2


@pytest.mark.invariant("I21")
def test_forced_cancel_kills_the_worker(core: CoreWorker) -> None:
    def sleep() -> None:
        time.sleep(60)

    ref = run(core, sleep)[0]
    wait_until(lambda: core.tasks.statistics()["in_flight"] == 1)
    core.cancel(ref, force=True)
    with pytest.raises(TaskCancelledError):
        core.get([ref], WAIT_S)


def test_async_actor_interleaves_its_calls(core: CoreWorker) -> None:
    class Meeting:
        def __init__(self) -> None:
            import asyncio

            self.event = asyncio.Event()

        async def wait(self) -> str:
            await self.event.wait()
            return "met"

        async def arrive(self) -> None:
            self.event.set()

    actor_id, _, _keeper = make_actor(core, Meeting, is_async=True, max_concurrency=1000)
    waiting = call(core, actor_id, "wait")[0]
    core.get(call(core, actor_id, "arrive"), WAIT_S)
    assert core.get([waiting], WAIT_S) == ["met"]


def test_threaded_actor_runs_calls_side_by_side(core: CoreWorker) -> None:
    class Barrier:
        def __init__(self) -> None:
            self.barrier = threading.Barrier(2)

        def meet(self) -> int:
            self.barrier.wait(WAIT_S)
            return 1

    actor_id, _, _keeper = make_actor(core, Barrier, max_concurrency=2)
    refs = [call(core, actor_id, "meet")[0] for _ in range(2)]
    assert core.get(refs, WAIT_S) == [1, 1]


def test_threads_of_a_driver_may_submit_and_get_at_once(core: CoreWorker) -> None:
    sums: list[int] = []

    def work(start: int) -> None:
        refs = [run(core, add, n)[0] for n in range(start, start + 200)]
        sums.append(sum(core.get(refs, WAIT_S)))

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(sums) == [sum(range(n * 1000 + 1, n * 1000 + 201)) for n in range(4)]
