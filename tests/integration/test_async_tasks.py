"""``async def`` functions as tasks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from tests.waiting import wait_for

WAIT_S = 30.0


def touch(folder: str, name: str) -> None:
    Path(folder, name).touch()


pytestmark = pytest.mark.usefixtures("one_cpu")


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    skate.init(num_cpus=1)
    yield
    skate.shutdown()


@skate.remote
def double(number: int) -> int:
    return 2 * number


@skate.remote
async def add(one: int, other: int = 1) -> int:
    await asyncio.sleep(0)
    return one + other


@skate.remote
async def sum_of_doubles(count: int) -> int:
    return sum(await asyncio.gather(*(double.remote(number) for number in range(count))))


def test_coroutine_is_a_task_like_any_other() -> None:
    assert skate.get(add.remote(1), timeout=WAIT_S) == 2
    assert skate.get(add.remote(add.remote(1, other=2), 3), timeout=WAIT_S) == 6
    assert skate.get([add.remote(n) for n in range(50)], timeout=WAIT_S) == list(range(1, 51))
    with pytest.raises(TypeError, match="add"):
        add.remote(1, 2, 3)


def test_awaited_children_run_on_the_cpu_of_their_parent() -> None:
    assert skate.get(sum_of_doubles.remote(20), timeout=WAIT_S) == 380

    @skate.remote
    async def nested(depth: int) -> int:
        return depth if depth == 0 else 1 + await nested.remote(depth - 1)

    assert skate.get(nested.remote(4), timeout=WAIT_S) == 4


def test_task_groups_and_timeouts_work_inside() -> None:
    @skate.remote
    async def slow() -> str:
        await asyncio.sleep(600)
        return "never"

    @skate.remote
    async def patient() -> list[Any]:
        found: list[Any] = []
        async with asyncio.TaskGroup() as group:
            made = [group.create_task(_value(double.remote(n))) for n in range(3)]
        found += [one.result() for one in made]
        ref = slow.remote()
        try:
            async with asyncio.timeout(0.2):
                await ref
        except TimeoutError:
            found.append("late")
        skate.cancel(ref)
        return found

    assert skate.get(patient.remote(), timeout=WAIT_S) == [0, 2, 4, "late"]


async def _value(ref: skate.ObjectRef[int]) -> int:
    return await ref


def test_large_results_are_awaited() -> None:
    @skate.remote
    def large() -> bytes:
        return b"x" * 2_000_000

    @skate.remote
    async def size() -> int:
        return len(await large.remote())

    assert skate.get(size.remote(), timeout=WAIT_S) == 2_000_000


def test_error_is_the_users_own_and_names_the_line() -> None:
    class OddError(Exception):
        pass

    @skate.remote
    async def fail() -> None:
        await asyncio.sleep(0)
        raise OddError("odd")

    with pytest.raises(OddError, match="odd") as caught:
        skate.get(fail.remote(), timeout=WAIT_S)
    assert 'raise OddError("odd")' in str(caught.value)
    assert "asyncio" not in str(caught.value)


def test_failing_coroutine_is_retried_as_asked() -> None:
    @skate.remote(max_retries=3, retry_exceptions=[OSError])
    async def third_time() -> int:
        await asyncio.sleep(0)
        attempt: int = skate.get_runtime_context().get_attempt_number()
        if attempt < 2:
            raise OSError("not yet")
        return attempt

    assert skate.get(third_time.remote(), timeout=WAIT_S) == 2


def test_cancellation_ends_the_coroutine_and_runs_its_clean_up(tmp_path: Path) -> None:
    @skate.remote
    async def wait(folder: str) -> None:
        touch(folder, "begun")
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            touch(folder, "cleaned")
            raise

    ref = wait.remote(str(tmp_path))
    wait_for((tmp_path / "begun").exists, "the coroutine runs")
    skate.cancel(ref)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(ref, timeout=WAIT_S)
    wait_for((tmp_path / "cleaned").exists, "its clean-up ran")
    assert skate.get(add.remote(1), timeout=WAIT_S) == 2


def test_cancelled_while_it_awaits_a_child() -> None:
    @skate.remote
    def child() -> None:
        time.sleep(600)

    @skate.remote
    async def parent() -> None:
        await child.remote()

    ref = parent.remote()
    assert skate.wait([ref], timeout=0.5)[0] == []
    skate.cancel(ref)
    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(ref, timeout=WAIT_S)
    assert skate.get(add.remote(1), timeout=WAIT_S) == 2


def test_asynchronous_generator_is_a_stream() -> None:
    @skate.remote
    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield await double.remote(number)

    stream = numbers.remote(5)
    assert isinstance(stream, skate.ObjectRefGenerator)
    assert [skate.get(ref, timeout=WAIT_S) for ref in stream] == [0, 2, 4, 6, 8]


def test_stream_that_is_dropped_closes_its_generator(tmp_path: Path) -> None:
    @skate.remote(_generator_backpressure_num_objects=1)
    async def endless(folder: str) -> AsyncIterator[int]:
        with contextlib.suppress(asyncio.CancelledError):
            try:
                while True:
                    yield 1
            finally:
                touch(folder, "closed")

    stream = endless.remote(str(tmp_path))
    assert skate.get(next(stream), timeout=WAIT_S) == 1
    del stream
    wait_for((tmp_path / "closed").exists, "the generator is closed")


def test_why_names_what_an_awaiting_task_waits_for(tmp_path: Path) -> None:
    @skate.remote(max_retries=0)
    def gate(path: str) -> int:
        while not Path(path).exists():
            time.sleep(0.01)
        return 1

    @skate.remote
    async def waiter(path: str) -> int:
        return await gate.remote(path)

    ref = waiter.remote(str(tmp_path / "go"))
    wait_for(lambda: "task gate" in str(ref.why()), "the task is known to wait")
    (tmp_path / "go").touch()
    assert skate.get(ref, timeout=WAIT_S) == 1
