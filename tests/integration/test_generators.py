"""Generators through the public API: streams, their ends, and kills in the middle."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")
WAIT_S = 20.0
LARGE = 160_000  # bytes: more than what travels in a message


@skate.remote
def count(n: int) -> Iterator[int]:
    yield from range(n)


@skate.remote
def numbered(n: int, large_every: int) -> Iterator[tuple[int, int, bytes]]:
    # Not arrays: each worker in the place of a killed one would import numpy.
    for number in range(n):
        is_large = large_every and number % large_every == 0
        yield number, os.getpid(), bytes([number]) * (LARGE if is_large else 1)


class Source:
    def __init__(self) -> None:
        self.number = 0

    def pid(self) -> int:
        return os.getpid()

    def count(self, n: int) -> Iterator[int]:
        yield from range(n)

    def slowly(self, n: int) -> Iterator[int]:
        for number in range(n):
            yield number
            time.sleep(0.005)


class AsyncSource:
    async def count(self, n: int) -> AsyncIterator[int]:
        for number in range(n):
            await asyncio.sleep(0)
            yield number

    async def name(self) -> str:
        return skate.get_runtime_context().get_task_name() or ""

    async def names(self, n: int) -> AsyncIterator[str]:
        for _ in range(n):
            await asyncio.sleep(0.001)
            yield skate.get_runtime_context().get_task_name() or ""


def get(refs: Any) -> list[Any]:
    return [skate.get(ref, timeout=WAIT_S) for ref in refs]


def test_generator_function_gives_its_items_as_references() -> None:
    generator = count.remote(20)
    assert isinstance(generator, skate.ObjectRefGenerator)
    assert skate.get(generator) is generator
    assert get(generator) == list(range(20))
    assert generator.is_finished()
    assert skate.get(generator.completed()) is None


def test_generator_feeds_further_tasks() -> None:
    @skate.remote
    def double(x: int) -> int:
        return 2 * x

    assert get([double.remote(ref) for ref in count.remote(10)]) == [2 * n for n in range(10)]


def test_wait_splits_generators_and_references() -> None:
    @skate.remote
    def sleep() -> Iterator[int]:
        time.sleep(60)
        yield 1

    slow, quick, ref = sleep.remote(), count.remote(1), skate.put(1)
    mixed: list[Any] = [slow, quick, ref]
    assert skate.wait(mixed, num_returns=2, timeout=WAIT_S) == ([quick, ref], [slow])
    assert skate.wait([slow], timeout=0.01) == ([], [slow])
    skate.cancel(slow)
    with pytest.raises(skate.exceptions.TaskCancelledError, match="was cancelled"):
        get(slow)


def test_generators_of_actors_of_each_kind() -> None:
    for cls, options in (
        (Source, {}),
        (Source, {"max_concurrency": 2}),
        (AsyncSource, {}),
    ):
        actor: Any = skate.remote(cls).options(**options).remote()
        assert get(actor.count.remote(30)) == list(range(30))


def test_async_generators_keep_their_name_side_by_side() -> None:
    actor = skate.remote(AsyncSource).remote()
    streams = [actor.names.options(name=f"stream-{n}").remote(10) for n in range(4)]
    for number, stream in enumerate(streams):
        assert set(get(stream)) == {f"stream-{number}"}


def test_async_consumer_reads_streams_side_by_side() -> None:
    async def read(n: int) -> list[int]:
        return [await ref async for ref in count.remote(n)]

    async def main() -> list[list[int]]:
        return list(await asyncio.gather(*(read(n) for n in (3, 5, 7))))

    assert asyncio.run(main()) == [list(range(n)) for n in (3, 5, 7)]


@pytest.mark.invariant("I31")
def test_bound_holds_and_dropping_frees_the_producer(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.touch()

    @skate.remote(_generator_backpressure_num_objects=2)
    def write(path: str) -> Iterator[int]:
        number = 0
        try:
            while True:
                with open(path, "a") as file:
                    file.write("x")
                yield number
                number += 1
        finally:
            os.rename(path, f"{path}-closed")

    generator = write.remote(str(made))
    for taken in range(30):
        wait_for(lambda: len(made.read_text()) == taken + 2)  # noqa: B023
        assert skate.get(next(generator), timeout=WAIT_S) == taken
    del generator
    wait_for(Path(f"{made}-closed").exists, within_s=2.0)


def test_dynamic_and_static_returns() -> None:
    outer = count.options(num_returns="dynamic").remote(4)
    inner = skate.get(outer, timeout=WAIT_S)
    assert isinstance(inner, skate.DynamicObjectRefGenerator)
    assert get(inner) == list(range(4))
    refs: Any = count.options(num_returns=3).remote(10)
    assert get(refs) == [0, 1, 2]
    first: Any = count.options(num_returns=1).remote(10)
    assert skate.get(first, timeout=WAIT_S) == 0


def test_stream_of_a_restarting_actor_goes_on() -> None:
    actor = skate.remote(Source).options(max_restarts=1, max_task_retries=1, num_cpus=0).remote()
    pid = skate.get(actor.pid.remote(), timeout=WAIT_S)
    generator = actor.slowly.remote(100)
    got = [skate.get(next(generator), timeout=WAIT_S) for _ in range(20)]
    os.kill(pid, signal.SIGKILL)
    assert got + get(generator) == list(range(100))


@pytest.mark.timeout(900)
@pytest.mark.invariant("I31")
def test_streams_with_a_random_kill_give_each_item_once(faults: int) -> None:
    rng = random.Random(faults)
    for number in range(faults):
        size = rng.choice((1, 5, 20, 60))
        bound = rng.choice((-1, 1, 3))
        death_at = rng.randrange(size + 1)
        # A kill that comes when its stream has ended meets the next one, which has its own too.
        generator = numbered.options(
            _generator_backpressure_num_objects=bound, max_retries=2
        ).remote(size, rng.choice((0, 1, 7)))
        got: list[int] = []
        for ref in generator:
            index, pid, data = skate.get(ref, timeout=WAIT_S)
            assert data[-1] == index
            got.append(index)
            ahead = generator._stream.arrived - generator._stream.consumed
            assert bound < 0 or ahead <= bound, f"stream {number} is {ahead} ahead"
            if len(got) == death_at:
                kill(pid)
        assert got == list(range(size)), f"stream {number}"


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it had ended by itself


def test_nothing_is_left_in_the_store() -> None:
    from skate_worker.current import require_core

    core = require_core()
    numbered.remote(10, 1)
    list(numbered.remote(10, 2))
    next(numbered.remote(10, 1))

    def is_empty() -> bool:
        core.ownership.drain_dropped()
        return not core.ownership.table.entries and not core.streams._running

    wait_for(is_empty)
