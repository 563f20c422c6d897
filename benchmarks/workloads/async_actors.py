"""Actors with coroutine methods."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Loop, Registry
from benchmarks.workloads.actors import (
    SOURCE,
    calls_async,
    calls_sync,
    many_to_many,
    one_to_many,
    ready_actors,
)


def calls_with_arguments(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """A batch of calls at once, each with another number."""
    actors = ready_actors(peer, served.AsyncServer, 1)
    send = peer.method(actors[0], "small_value_arg")

    def run(count: int) -> None:
        for _ in range(count):
            peer.together_over(send, range(sizes.batch))

    yield Loop(run, sizes.batch)
    peer.release(actors)


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    needs = {Capability.ACTORS, Capability.ASYNC_ACTORS}
    clients = needs | {Capability.ACTOR_CLIENTS}
    registry.shared(
        "async_actor_sync",
        "1:1 async actor calls sync",
        "calls/s",
        "an empty coroutine call and get of its result, one after the other",
        needs,
        source=SOURCE,
    )(calls_sync(served.AsyncServer))
    registry.shared(
        "async_actor_async",
        "1:1 async actor calls async",
        "calls/s",
        "1000 empty coroutine calls at once, then get of all",
        needs,
        source=SOURCE,
    )(calls_async(served.AsyncServer))
    registry.shared(
        "async_actor_arguments",
        "1:1 async actor calls with args",
        "calls/s",
        "the same, each call with an integer",
        needs,
        source=SOURCE,
    )(calls_with_arguments)
    registry.shared(
        "async_one_to_n",
        "1:n async actor calls async",
        "calls/s",
        "as 1:n, the called actors' methods are coroutines",
        clients,
        source=SOURCE,
    )(one_to_many(served.AsyncServer))
    registry.shared(
        "async_n_to_n",
        "n:n async actor calls async",
        "calls/s",
        "as n:n, the called actors' methods are coroutines",
        clients | {Capability.TASKS, Capability.NESTED},
        source=SOURCE,
    )(many_to_many(served.AsyncServer))
