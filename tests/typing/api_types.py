"""What type checkers see of the public API. Checked by ``nox -s types``; never run.

Each ``assert_type`` is exact: a type that became wider or ``Any`` is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from typing import Any, assert_type

import skate
from skate import ObjectRef, ObjectRefGenerator
from skate.actor import ActorClass, ActorHandle
from skate.util import SkateExecutor, as_completed
from skate.util.check_serialize import FailureTuple, inspect_serializability
from skate.util.metrics import Counter, Metric
from skate.util.multiprocessing import AsyncResult, IMapIterator, Pool


@skate.remote
def length(text: str, *, limit: int = 10) -> int:
    return min(len(text), limit)


@skate.remote(num_cpus=2)
def words(text: str) -> list[str]:
    return text.split()


@skate.remote
def numbers(count: int) -> Iterator[int]:
    yield from range(count)


@skate.remote
def echoes(count: int) -> Generator[str, None, None]:
    yield from ("echo",) * count


@skate.remote
def nothing() -> None:
    return None


class Counting:
    def add(self, amount: int) -> int:
        return amount


def of_functions() -> None:
    ref = length.remote("text", limit=3)
    assert_type(ref, ObjectRef[int])
    assert_type(skate.get(ref), int)
    assert_type(skate.get([ref, ref]), list[int])
    assert_type(skate.get(ref, timeout=1), int)
    assert_type(words.remote("a b"), ObjectRef[list[str]])
    assert_type(skate.get(words.remote("a b")), list[str])
    assert_type(nothing.remote(), ObjectRef[None])
    assert_type(words.options(num_cpus=1).remote("a"), ObjectRef[list[str]])


def of_generators() -> None:
    stream = numbers.remote(3)
    assert_type(stream, ObjectRefGenerator[int])
    assert_type(next(stream), ObjectRef[int])
    assert_type(skate.get(next(stream)), int)
    assert_type(echoes.remote(3), ObjectRefGenerator[str])
    assert_type([skate.get(ref) for ref in echoes.remote(3)], list[str])
    assert_type(
        skate.wait([stream]), tuple[list[ObjectRefGenerator[int]], list[ObjectRefGenerator[int]]]
    )


def of_objects() -> None:
    assert_type(skate.put(1.5), ObjectRef[float])
    assert_type(skate.put(["a"]), ObjectRef[list[str]])
    assert_type(skate.get(skate.put({"a": 1})), dict[str, int])
    ready, waiting = skate.wait([skate.put(1), skate.put(2)])
    assert_type(ready, list[ObjectRef[int]])
    assert_type(waiting, list[ObjectRef[int]])
    assert_type(skate.put(1).future(), Future[int])
    assert_type(skate.put(1).hex(), str)
    assert_type(skate.put(1).binary(), bytes)
    assert_type(skate.put(1).task_id(), skate.TaskID)


async def of_awaiting() -> None:
    assert_type(await length.remote("text"), int)
    assert_type(await words.remote("text"), list[str])
    first, second = await asyncio.gather(length.remote("a"), words.remote("b"))
    assert_type(first, int)
    assert_type(second, list[str])
    async for ref in numbers.remote(3):
        assert_type(ref, ObjectRef[int])


def of_actors() -> None:
    made = skate.remote(Counting)
    assert_type(made, ActorClass[Counting])
    assert_type(made.remote(), ActorHandle[Counting])
    assert_type(made.options(name="one"), ActorClass[Counting])
    assert_type(skate.remote(num_cpus=1)(Counting), ActorClass[Counting])
    assert_type(skate.get_actor("one"), ActorHandle[Any])


def of_the_session() -> None:
    assert_type(skate.is_initialized(), bool)
    assert_type(skate.nodes(), list[dict[str, Any]])
    assert_type(skate.cluster_resources(), dict[str, float])
    assert_type(skate.get_runtime_context().get_node_id(), str)
    assert_type(skate.get_runtime_context().get_task_id(), str | None)
    with skate.init() as context:
        assert_type(context.address_info, dict[str, Any])


def of_utilities(pool: Pool, executor: SkateExecutor) -> None:
    assert_type(list(as_completed([length.remote("a")])), list[int])
    assert_type(executor.submit(len, "text"), Future[int])
    assert_type(executor.submit(str.split, "a b").result(), list[str])
    assert_type(list(executor.map(len, ["a"])), list[int])
    assert_type(pool.map_async(len, ["a"]), AsyncResult)
    assert_type(pool.imap(len, ["a"]), IMapIterator)
    assert_type(inspect_serializability(1), tuple[bool, set[FailureTuple]])
    assert_type(Counter("jobs").set_default_tags({}), Metric)


def of_mistakes() -> None:
    # Arguments are not checked: a task takes values, or references to values.
    skate.wait(length.remote("text"))  # type: ignore[call-overload]
    skate.get(5)  # type: ignore[call-overload]
