"""What type checkers see of the public API. Checked by ``nox -s types``; never run.

Each ``assert_type`` is exact: a type that became wider or ``Any`` is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import Future
from typing import Any, assert_type

import skate
from skate import ObjectRef, ObjectRefGenerator
from skate.actor import ActorClass, ActorHandle, ActorProxy, typed
from skate.cluster_utils import Cluster
from skate.job_submission import JobDetails, JobStatus, JobSubmissionClient
from skate.util import ActorPool, SkateExecutor, as_completed
from skate.util.check_serialize import FailureTuple, inspect_serializability
from skate.util.metrics import Counter, Metric
from skate.util.multiprocessing import AsyncResult, IMapIterator, Pool
from skate.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    placement_group_table,
)
from skate.util.queue import Queue
from skate_node import RunningNode


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


@skate.remote
async def fetched(url: str) -> bytes:
    return url.encode()


@skate.remote
async def lines(url: str) -> AsyncIterator[str]:
    yield url


class Counting:
    def add(self, amount: int) -> int:
        return amount


class Typed:
    """Its methods are known to handles; see ``skate.actor.typed``."""

    def __init__(self, start: int) -> None:
        self.start = start

    @skate.method
    def add(self, amount: int, *, twice: bool = False) -> int:
        assert_type(self.add(1), int)
        return amount + self.start

    @skate.method
    async def later(self, text: str) -> list[str]:
        return [text]

    @skate.method
    def items(self) -> Iterator[int]:
        yield 1

    @skate.method
    async def parts(self) -> AsyncIterator[bytes]:
        yield b""

    @skate.method(max_task_retries=2)
    def retried(self, part: float) -> float:
        return part

    @skate.method(concurrency_group="io")
    async def grouped(self) -> None:
        return None

    @skate.method
    def nothing(self) -> None:
        return None


class Derived(Typed):
    @skate.method
    def name(self) -> str:
        return "derived"


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


def of_async_tasks() -> None:
    assert_type(fetched.remote("a"), ObjectRef[bytes])
    assert_type(fetched.remote(skate.put("a")), ObjectRef[bytes])
    assert_type(fetched.options(num_cpus=2).remote("a"), ObjectRef[bytes])
    assert_type(skate.get(fetched.remote("a")), bytes)
    assert_type(lines.remote("a"), ObjectRefGenerator[str])
    assert_type(skate.get(next(lines.remote("a"))), str)


def of_references_as_arguments() -> None:
    assert_type(length.remote(skate.put("text")), ObjectRef[int])
    assert_type(length.remote(skate.put("text"), limit=skate.put(3)), ObjectRef[int])
    assert_type(words.remote(text=skate.put("a b")), ObjectRef[list[str]])
    assert_type(numbers.remote(skate.put(3)), ObjectRefGenerator[int])
    assert_type(skate.get([words.remote("a"), words.remote("b")]), list[list[str]])


def of_typed_actors() -> None:
    made = skate.remote(Typed)
    assert_type(made, ActorClass[Typed])
    assert_type(made.remote(1), ActorHandle[Typed])
    actor = typed(made.remote(1))
    assert_type(actor, Typed)
    assert_type(actor.add.remote(1), ObjectRef[int])
    assert_type(actor.add.remote(1, twice=True), ObjectRef[int])
    assert_type(actor.add.remote(skate.put(1)), ObjectRef[int])
    assert_type(actor.add.remote(amount=skate.put(1), twice=skate.put(True)), ObjectRef[int])
    assert_type(skate.get(actor.add.remote(1)), int)
    assert_type(actor.later.remote("a"), ObjectRef[list[str]])
    assert_type(actor.items.remote(), ObjectRefGenerator[int])
    assert_type(actor.parts.remote(), ObjectRefGenerator[bytes])
    assert_type(actor.retried.remote(1.5), ObjectRef[float])
    assert_type(actor.retried.options(name="half").remote(0.5), ObjectRef[float])
    assert_type(actor.grouped.remote(), ObjectRef[None])
    assert_type(actor.nothing.remote(), ObjectRef[None])
    assert_type(skate.get([actor.add.remote(1), actor.add.remote(2)]), list[int])
    assert_type(typed(skate.remote(Derived).remote(1)).name.remote(), ObjectRef[str])
    assert_type(typed(skate.remote(Derived).remote(1)).add.remote(1), ObjectRef[int])
    assert_type(Typed.add(Typed(1), 2), int)


def of_ends(actor: ActorHandle[Typed], ref: ObjectRef[int]) -> None:
    assert_type(skate.cancel(ref), None)
    assert_type(skate.kill(actor), None)
    assert_type(skate.wait([ref], timeout=1)[0], list[ObjectRef[int]])
    assert_type(typed(actor), Typed)
    assert_type(ref.is_nil(), bool)
    assert_type(hash(ref), int)


def of_annotated_handles(actor: ActorProxy[Typed]) -> None:
    assert_type(actor.add.remote(1), ObjectRef[int])
    assert_type(actor.items.remote(), ObjectRefGenerator[int])


async def of_awaiting_actors(actor: ActorProxy[Typed]) -> None:
    assert_type(await actor.add.remote(1), int)
    assert_type(await actor.later.remote("a"), list[str])
    assert_type(await asyncio.wait_for(actor.add.remote(1), 1), int)
    async for ref in actor.parts.remote():
        assert_type(await ref, bytes)


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


def of_the_runtime_context() -> None:
    context = skate.get_runtime_context()
    assert_type(context.get_job_id(), str)
    assert_type(context.get_worker_id(), str)
    assert_type(context.get_actor_id(), str | None)
    assert_type(context.get_actor_name(), str | None)
    assert_type(context.get_task_name(), str | None)
    assert_type(context.get_assigned_resources(), dict[str, float])
    assert_type(context.get_placement_group_id(), str | None)
    assert_type(context.get_attempt_number(), int)
    assert_type(context.is_canceled(), bool)
    assert_type(context.namespace, str)
    assert_type(context.runtime_env, dict[str, Any])
    assert_type(context.current_actor, ActorHandle[Any])


def of_placement_groups() -> None:
    group = placement_group([{"CPU": 1}], strategy="PACK")
    assert_type(group, PlacementGroup)
    assert_type(group.ready(), ObjectRef[PlacementGroup])
    assert_type(skate.get(group.ready()), PlacementGroup)
    assert_type(group.wait(1), bool)
    assert_type(group.bundle_count, int)
    assert_type(group.bundle_specs, list[dict[str, float]])
    assert_type(get_current_placement_group(), PlacementGroup | None)
    assert_type(placement_group_table(), dict[str, Any])


def of_queues(queue: Queue, pool: ActorPool) -> None:
    assert_type(queue.qsize(), int)
    assert_type(queue.empty(), bool)
    assert_type(queue.get_nowait_batch(2), list[Any])
    assert_type(pool.has_next(), bool)


def of_jobs(client: JobSubmissionClient) -> None:
    assert_type(client.submit_job(entrypoint="true"), str)
    assert_type(client.get_job_status("a"), JobStatus)
    assert_type(client.get_job_info("a"), JobDetails)
    assert_type(client.list_jobs(), list[JobDetails])
    assert_type(client.get_job_logs("a"), str)
    assert_type(client.follow_job_logs("a"), Iterator[str])
    assert_type(client.stop_job("a"), bool)


def of_clusters(cluster: Cluster) -> None:
    assert_type(cluster.address, str)
    assert_type(cluster.list_all_nodes(), list[RunningNode])
    assert_type(cluster.add_node(num_cpus=1), RunningNode)
    assert_type(cluster.remaining_processes_alive(), bool)


def of_mistakes() -> None:
    # Arguments are not checked: a task takes values, or references to values.
    skate.wait(length.remote("text"))  # type: ignore[call-overload]
    skate.get(5)  # type: ignore[call-overload]
