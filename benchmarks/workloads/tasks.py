"""Submitting tasks: one at a time, many at once, from several places, and waiting for them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Loop, Registry
from benchmarks.workloads.objects import zeros

SOURCE = "ray_perf.py"


def tasks_sync(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """One task after the other."""
    send = peer.task(served.small_value)
    yield Loop(lambda count: peer.in_turn(send, count))


def tasks_async(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """A batch of tasks at once."""
    send = peer.task(served.small_value)

    def run(count: int) -> None:
        for _ in range(count):
            peer.together(send, sizes.batch)

    yield Loop(run, sizes.batch)


def multi_tasks_async(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Actors that submit a batch of tasks each."""
    submitters = [peer.actor(served.Submitter, peer.name) for _ in range(sizes.submitters)]
    peer.all_at_once([peer.method(submitter, "ready") for submitter in submitters])
    sends = [peer.method(submitter, "submit") for submitter in submitters]

    def run(count: int) -> None:
        for _ in range(count):
            peer.all_at_once(sends, sizes.tasks_per_submitter)

    yield Loop(run, sizes.submitters * sizes.tasks_per_submitter)
    peer.release(submitters)


def tasks_queued(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Many more tasks at once than can run."""
    send = peer.task(served.small_value)
    yield Loop(
        lambda _count: peer.together(send, sizes.queued_tasks),
        sizes.queued_tasks,
        is_single=True,
        is_warmed=False,
    )


def wait_each(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Submit tasks, then take one ready result after the other."""
    send = peer.task(served.small_value)

    def run(count: int) -> None:
        for _ in range(count):
            peer.wait_each([send() for _ in range(sizes.waited_references)])

    yield Loop(run)


def task_with_array(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Tasks that read the same large array by reference."""
    send = peer.task(served.first_and_last)
    reference = peer.put(zeros(sizes.medium_array_bytes))

    def run(count: int) -> None:
        for _ in range(count):
            peer.together(send, sizes.medium_array_tasks, reference)

    yield Loop(run, sizes.medium_array_tasks)


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "tasks_sync",
        "tasks sync",
        "tasks/s",
        "an empty task and get of its result, one after the other",
        {Capability.TASKS},
        source=SOURCE,
    )(tasks_sync)
    registry.shared(
        "tasks_async",
        "tasks async",
        "tasks/s",
        "1000 empty tasks at once, then get of all",
        {Capability.TASKS},
        source=SOURCE,
    )(tasks_async)
    registry.shared(
        "multi_tasks_async",
        "multi client tasks async",
        "tasks/s",
        "4 actors at once, each submits 1000 empty tasks and gets all (Ray's file: 10,000; "
        "`--plan full` has them)",
        {Capability.TASKS, Capability.NESTED, Capability.ACTORS},
        source=SOURCE,
    )(multi_tasks_async)
    registry.shared(
        "tasks_queued",
        "10k queued tasks",
        "tasks/s",
        "10,000 empty tasks at once, then get of all",
        {Capability.TASKS},
    )(tasks_queued)
    registry.shared(
        "wait_each",
        "wait on 1k refs",
        "batches/s",
        "1000 empty tasks at once, then wait for one of the rest 1000 times",
        {Capability.TASKS, Capability.WAIT},
        source=SOURCE,
    )(wait_each)
    registry.shared(
        "task_with_array",
        "task with an 8 MB reference argument",
        "tasks/s",
        "100 tasks at once, each given one put array of 1,000,000 int64 and reading both ends",
        {Capability.TASKS, Capability.TASK_REFERENCES, Capability.LARGE_PUT},
    )(task_with_array)
