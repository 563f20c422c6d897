"""Pools and queues of ``skate.util``, as programs written for Ray use them."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import queue as stdlib_queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import skate
from skate.exceptions import ActorDiedError, GetTimeoutError
from skate.test_utils import Semaphore, SignalActor, async_wait_for_condition, wait_for_condition
from skate.util import ActorGroup, ActorPool, SkateExecutor, as_completed, map_unordered
from skate.util.multiprocessing import Pool
from skate.util.queue import Empty, Full, Queue

pytestmark = pytest.mark.usefixtures("shared_cluster")


class Doubler:
    def double(self, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value * 2

    def wait_for(self, gate: Any, value: Any) -> Any:
        skate.get(gate.wait.remote())
        return value

    def both(self, value: Any) -> Any:
        return value, -value


@pytest.fixture
def actors() -> list[Any]:
    made: Any = skate.remote(Doubler)
    return [made.remote(), made.remote()]


def double(actor: Any, value: Any) -> Any:
    return actor.double.remote(value)


# ---- ActorPool ----


@pytest.mark.surface("U1")
def test_actor_pool_maps_in_order_and_unordered(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    assert list(pool.map(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert sorted(pool.map_unordered(double, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert list(pool.map(double, [])) == []


@pytest.mark.surface("U1")
def test_actor_pool_submits_and_fetches(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    assert pool.has_free()
    assert not pool.has_next()
    for value in range(3):
        pool.submit(double, value)
    assert not pool.has_free()
    assert pool.pop_idle() is None
    assert [pool.get_next() for _ in range(3)] == [0, 2, 4]
    with pytest.raises(StopIteration):
        pool.get_next()
    with pytest.raises(StopIteration):
        pool.get_next_unordered()


@pytest.mark.surface("U1")
def test_actor_pool_refuses_order_after_disorder_and_an_actor_twice(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    gate = SignalActor.remote()
    pool.submit(lambda actor, value: actor.wait_for.remote(gate, value), "first")
    pool.submit(double, 2)
    assert pool.get_next_unordered(timeout=30) == 4
    with pytest.raises(ValueError, match="get_next_unordered"):
        pool.get_next()
    skate.get(gate.send.remote())
    assert pool.get_next_unordered() == "first"
    with pytest.raises(ValueError, match="already"):
        pool.push(actors[0])
    taken = pool.pop_idle()
    assert taken in actors
    pool.push(taken)
    with pytest.raises(ValueError, match="already"):
        ActorPool([actors[0], actors[0]])


@pytest.mark.surface("U1")
def test_actor_pool_times_out_and_may_give_a_result_up(actors: list[Any]) -> None:
    pool = ActorPool(actors[:1])
    gate = SignalActor.remote()
    pool.submit(lambda actor, value: actor.wait_for.remote(gate, value), "late")
    pool.submit(double, 1)
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=0.01)
    with pytest.raises(TimeoutError):
        pool.get_next_unordered(timeout=0.01)
    with pytest.raises(GetTimeoutError, match="given up"):
        pool.get_next(timeout=0.01, ignore_if_timedout=True)
    skate.get(gate.send.remote())
    assert pool.get_next() == 2
    assert not pool.has_next()


@pytest.mark.surface("U1")
def test_actor_pool_goes_on_after_an_error_and_takes_several_returns(actors: list[Any]) -> None:
    pool = ActorPool(actors)
    pool.submit(double, KeyError("no"))
    pool.submit(lambda actor, value: actor.both.options(num_returns=2).remote(value), 3)
    with pytest.raises(KeyError):
        pool.get_next()
    assert pool.get_next() == [3, -3]
    assert list(pool.map(double, [1])) == [2]


# ---- Queue ----


@pytest.mark.surface("U2")
def test_queue_keeps_order_and_tells_its_size() -> None:
    queue = Queue()
    assert queue.empty()
    for item in range(3):
        queue.put(item)
    assert len(queue) == queue.size() == queue.qsize() == 3
    assert not queue.full()
    assert [queue.get() for _ in range(3)] == [0, 1, 2]


@pytest.mark.surface("U2")
def test_queue_errors_are_those_of_the_standard_library() -> None:
    queue = Queue(maxsize=1)
    with pytest.raises(stdlib_queue.Empty):
        queue.get_nowait()
    with pytest.raises(Empty):
        queue.get(timeout=0.01)
    queue.put("only")
    assert queue.full()
    with pytest.raises(stdlib_queue.Full):
        queue.put_nowait("more")
    with pytest.raises(Full):
        queue.put("more", timeout=0.01)
    for call in (lambda: queue.put(1, timeout=-1), lambda: queue.get(timeout=-1)):
        with pytest.raises(ValueError, match="negative"):
            call()
    with pytest.raises(TypeError):
        Queue(maxsize="two")  # type: ignore[arg-type]


@pytest.mark.surface("U2")
def test_queue_batches_are_whole_or_nothing() -> None:
    queue = Queue(maxsize=3)
    with pytest.raises(Full):
        queue.put_nowait_batch([1, 2, 3, 4])
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Empty):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(2) == [1, 2]
    with pytest.raises(TypeError):
        queue.put_nowait_batch(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        queue.get_nowait_batch("2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        queue.get_nowait_batch(-1)


@pytest.mark.surface("U2")
def test_queue_is_shared_by_tasks_that_wait_for_each_other() -> None:
    queue = Queue(maxsize=2, actor_options={"num_cpus": 0})

    @skate.remote(num_cpus=0)
    def produce(target: Queue) -> None:
        for item in range(6):
            target.put(item)

    @skate.remote(num_cpus=0)
    def consume(source: Queue) -> list[int]:
        return [source.get() for _ in range(6)]

    consumed = consume.remote(queue)
    skate.get(produce.remote(queue))
    assert skate.get(consumed) == list(range(6))


@pytest.mark.surface("U2")
def test_queue_waits_on_an_event_loop_and_a_cancelled_get_takes_nothing() -> None:
    queue = Queue(maxsize=1)

    async def main() -> None:
        waiting = asyncio.ensure_future(queue.get_async())
        await asyncio.sleep(0)
        with pytest.raises(Empty):
            await queue.get_async(timeout=0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        # The cancellation is on its way; once it is there, nobody waits in the queue.
        await queue.actor.drain.remote()
        await queue.put_async("kept")
        with pytest.raises(Full):
            await queue.put_async("more", block=False)
        assert await queue.get_async() == "kept"

    asyncio.run(main())


@pytest.mark.surface("U2")
@pytest.mark.parametrize("force", [False, True])
def test_queue_that_was_shut_down_is_gone(force: bool) -> None:
    queue = Queue()
    queue.put(1)
    queue.shutdown(force=force)
    with pytest.raises(ActorDiedError):
        queue.get()


# ---- as_completed, map_unordered, ActorGroup ----


@pytest.mark.surface("U6")
def test_as_completed_yields_what_is_ready_first() -> None:
    gate = SignalActor.remote()

    @skate.remote(num_cpus=0)
    def after(reference: Any, value: int) -> int:
        return value

    late = after.remote(gate.wait.remote(), 1)
    soon = after.remote(None, 2)
    values = as_completed([late, soon], chunk_size=1)
    assert next(values) == 2
    skate.get(gate.send.remote())
    assert list(values) == [1]
    refs = [after.remote(None, value) for value in range(5)]
    assert set(as_completed(refs, yield_obj_refs=True)) == set(refs)
    with pytest.raises(ValueError, match="chunk_size"):
        as_completed(refs, chunk_size=0)


@pytest.mark.surface("U6")
def test_map_unordered_reads_an_endless_iterable_no_further_than_its_backpressure() -> None:
    read = []

    def numbers() -> Iterator[int]:
        number = 0
        while True:
            read.append(number)
            yield number
            number += 1

    @skate.remote(num_cpus=0)
    def square(number: int) -> int:
        return number * number

    results = map_unordered(square, numbers(), backpressure_size=4, chunk_size=1)
    assert {next(results) for _ in range(10)} <= {number * number for number in range(14)}
    assert len(read) <= 14
    everything = map_unordered(square, range(20), backpressure_size=None)
    assert sorted(everything) == [number * number for number in range(20)]
    with pytest.raises(ValueError, match="backpressure_size"):
        map_unordered(square, range(3), backpressure_size=1, chunk_size=2)
    with pytest.raises(TypeError, match=r"skate\.remote"):
        map_unordered(len, range(3))  # type: ignore[arg-type]


@pytest.mark.surface("U6")
def test_actor_group_calls_all_and_lets_some_go() -> None:
    group = ActorGroup(Doubler, 3, num_cpus_per_actor=0)
    assert skate.get(group.double.remote(4)) == [8, 8, 8]
    group.remove_actors([0])
    group.add_actors(2)
    assert len(group) == len(list(group)) == 4
    first = group[0]
    group.shutdown(patience_s=0)
    with pytest.raises(ActorDiedError):
        skate.get(first.double.remote(1))
    with pytest.raises(RuntimeError, match="no actors"):
        group.double.remote(1)


# ---- the utilities for tests ----


@pytest.mark.surface("U7")
def test_semaphore_lets_as_many_in_as_it_has_permits() -> None:
    semaphore = Semaphore.remote(1)
    skate.get(semaphore.acquire.remote())
    assert skate.get(semaphore.locked.remote())
    second = semaphore.acquire.remote()
    assert skate.wait([second], timeout=0.05) == ([], [second])
    skate.get(semaphore.release.remote())
    skate.get(second)


@pytest.mark.surface("U7")
def test_signal_lets_those_go_that_wait() -> None:
    gate = SignalActor.remote()
    waiting = gate.wait.remote()
    wait_for_condition(lambda: skate.get(gate.cur_num_waiters.remote()) == 1)
    skate.get(gate.send.remote(clear=True))
    skate.get([waiting, gate.wait.remote(should_wait=False)])


@pytest.mark.surface("U7")
def test_conditions_are_waited_for_and_their_trouble_is_told() -> None:
    answers = iter([False, True])
    wait_for_condition(lambda: next(answers), retry_interval_ms=1)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        wait_for_condition(lambda: 1 / 0, timeout=0.01, retry_interval_ms=1)
    with pytest.raises(ZeroDivisionError):
        wait_for_condition(lambda: 1 / 0, raise_exceptions=True)

    async def main() -> None:
        later = iter([False, True])

        async def holds() -> bool:
            return next(later)

        await async_wait_for_condition(holds, retry_interval_ms=1)
        with pytest.raises(RuntimeError, match="not met"):
            await async_wait_for_condition(lambda: False, timeout=0.01, retry_interval_ms=1)

    asyncio.run(main())


# ---- multiprocessing.Pool ----


@pytest.fixture(scope="module")
def pool(shared_cluster: Any) -> Iterator[Pool]:
    with Pool(2) as made:
        yield made


def square_of(number: int) -> int:
    return number * number


@pytest.mark.surface("U3")
def test_pool_applies_and_maps(pool: Pool) -> None:
    assert pool.apply(divmod, (7, 2)) == (3, 1)
    assert pool.apply(sorted, ([2, 1],), {"reverse": True}) == [2, 1]
    assert pool.map(lambda n: n + 1, range(20)) == list(range(1, 21))
    assert pool.map(square_of, []) == []
    assert pool.starmap(pow, [(2, 3), (3, 2)], chunksize=1) == [8, 9]
    assert pool.map_async(abs, [-1, -2]).get(timeout=30) == [1, 2]
    assert pool.starmap_async(pow, [(2, 3)]).get(timeout=30) == [8]
    with pytest.raises(ValueError, match="Chunksize"):
        pool.map(abs, [1], chunksize=0)


@pytest.mark.surface("U3")
def test_pool_iterates_in_order_and_as_results_come(pool: Pool) -> None:
    assert list(pool.imap(lambda n: n * 2, range(50), chunksize=3)) == list(range(0, 100, 2))
    assert sorted(pool.imap_unordered(abs, range(-9, 1))) == list(range(10))

    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    numbers = pool.imap(abs, endless())
    assert [next(numbers) for _ in range(10)] == list(range(10))


@pytest.mark.surface("U3")
def test_pool_raises_each_error_in_its_place_and_goes_on(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        pool.apply(divmod, (1, 0))
    assert "Traceback" in str(caught.value.__cause__)
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda n: 1 // n, [1, 0, 1])
    shares = pool.imap(lambda n: 6 // n, [1, 0, 2], chunksize=2)
    assert next(shares) == 6
    with pytest.raises(ZeroDivisionError):
        next(shares)
    assert list(shares) == [3]
    with pytest.raises(TypeError, match="pickle"):
        pool.apply(lambda lock: lock, (threading.Lock(),))

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("the iterable's own")

    results = pool.imap(abs, broken())
    assert next(results) == 1
    with pytest.raises(LookupError):
        next(results)


@pytest.mark.surface("U3")
def test_pool_calls_back_with_the_value_or_the_error(pool: Pool) -> None:
    values: list[Any] = []
    errors: list[Any] = []
    good = pool.apply_async(abs, (-3,), callback=values.append, error_callback=errors.append)
    assert good.get(timeout=30) == 3
    bad = pool.map_async(len, [1], callback=values.append, error_callback=errors.append)
    bad.wait(30)
    assert bad.ready()
    assert not bad.successful()
    assert good.successful()
    assert values == [3]
    assert [type(error) for error in errors] == [TypeError]
    # A callback that raises costs nothing but itself.
    pool.apply_async(abs, (1,), callback=lambda _: 1 / 0).wait(30)
    assert pool.apply(abs, (-1,)) == 1


@pytest.mark.surface("U3")
def test_pool_times_out_as_the_standard_one(pool: Pool) -> None:
    gate = SignalActor.remote()
    result = pool.apply_async(lambda g: skate.get(g.wait.remote()), (gate,))
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(timeout=0.01)
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    iterator = pool.imap(lambda g: skate.get(g.wait.remote()), [gate])
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0.01)
    skate.get(gate.send.remote())
    assert result.get(timeout=30) is None
    assert iterator.next(timeout=30) is None


@pytest.mark.surface("U3")
def test_pool_initializes_replaces_and_survives_its_actors() -> None:
    import os

    def prepare(value: int) -> None:
        os.environ["PREPARED"] = str(value)

    with Pool(1, prepare, (7,), maxtasksperchild=2) as pool:
        seen = pool.map(lambda _: (os.getpid(), os.environ["PREPARED"]), range(4), chunksize=1)
        assert {prepared for _, prepared in seen} == {"7"}
        assert [pid for pid, _ in seen].count(seen[0][0]) == 2
        with pytest.raises(ActorDiedError):
            pool.apply(os._exit, (1,))
        assert pool.apply(abs, (-2,)) == 2


@pytest.mark.surface("U3")
def test_pool_ends_by_close_and_by_terminate() -> None:
    pool = Pool(1)
    late = pool.map_async(square_of, range(4), chunksize=1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.join()
    assert late.get(timeout=0) == [0, 1, 4, 9]
    with pytest.raises(ValueError, match="not running"):
        pool.apply(abs, (1,))
    gate = SignalActor.remote()
    with Pool(1) as other:
        stuck = other.apply_async(lambda g: skate.get(g.wait.remote()), (gate,))
        waiting = other.apply_async(abs, (1,))
    other.join()
    for result in (stuck, waiting):
        with pytest.raises(RuntimeError, match="terminated"):
            result.get(timeout=30)
    with pytest.raises(NotImplementedError):
        pickle.dumps(other)
    for wrong in ({"processes": 0}, {"maxtasksperchild": 0}):
        with pytest.raises(ValueError, match=r"at least 1|positive"):
            Pool(**wrong)
    with pytest.raises(TypeError, match="callable"):
        Pool(initializer=5)  # type: ignore[arg-type]


@pytest.mark.surface("U3")
def test_pool_inside_a_call_of_a_pool_finds_room() -> None:
    def inner(number: int) -> int:
        with Pool(2) as pool:
            return sum(pool.map(abs, range(number)))

    with Pool(2) as pool:
        assert pool.map(inner, [3, 4], chunksize=1) == [3, 6]


# ---- the executor ----


@pytest.mark.surface("U6")
def test_executor_is_one_of_the_standard_library() -> None:
    import concurrent.futures as futures  # noqa: PLR0402 - beside what it is about

    with SkateExecutor(num_cpus=0) as executor:
        assert executor.submit(pow, 2, 5).result(timeout=30) == 32
        assert list(executor.map(pow, [2, 3], [3, 2])) == [8, 9]
        assert list(executor.map(abs, range(-5, 0), chunksize=2)) == [5, 4, 3, 2, 1]
        failed = executor.submit(divmod, 1, 0)
        assert isinstance(failed.exception(timeout=30), ZeroDivisionError)
        many = [executor.submit(abs, n) for n in range(5)]
        assert {done.result() for done in futures.as_completed(many, 30)} == set(range(5))
        assert not many[0].cancel()
        remote_abs = skate.remote(num_cpus=0)(square_of)
        assert executor.submit(remote_abs, 3).result(timeout=30) == 9  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(ValueError, match="chunksize"):
        list(SkateExecutor().map(abs, [1], chunksize=0))


@pytest.mark.surface("U6")
def test_executor_runs_blocking_code_for_asyncio_and_cancels_at_its_end() -> None:
    executor = SkateExecutor(num_cpus=0)

    async def main() -> int:
        return await asyncio.get_running_loop().run_in_executor(executor, square_of, 12)

    assert asyncio.run(main()) == 144
    gate = SignalActor.remote()
    stuck = executor.submit(lambda g: skate.get(g.wait.remote()), gate)
    executor.shutdown(wait=True, cancel_futures=True)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        stuck.result(timeout=0)
