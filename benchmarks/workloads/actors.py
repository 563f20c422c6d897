"""Actors: creating them, and calling them from one client and from many."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks import served
from benchmarks.peers.peer import Actor, Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Body, Capability, Loop, Registry

SOURCE = "ray_perf.py"


def servers_count() -> int:
    """Half the machine's processors, at least one: Ray's `n_cpu`."""
    return max(1, (os.cpu_count() or 1) // 2)


def ready_actors(peer: Peer, served_class: type, count: int, threads: int = 1) -> list[Actor]:
    """Actors that have answered a call."""
    actors = [peer.actor(served_class, threads=threads) for _ in range(count)]
    peer.all_at_once([peer.method(actor, "small_value") for actor in actors])
    return actors


def ready_clients(peer: Peer, servers_of_each: list[list[Actor]]) -> list[Actor]:
    """Clients of the servers that have answered a call."""
    clients = [peer.client(servers) for servers in servers_of_each]
    peer.all_at_once([peer.method(client, "ready") for client in clients])
    return clients


def actors_created(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Create actors and get the first answer of each; they are ended between the samples."""
    live: list[Actor] = []

    def run(_count: int) -> None:
        live.extend(ready_actors(peer, served.Server, sizes.actors_created))

    def after() -> None:
        peer.release(live)
        live.clear()

    yield Loop(run, sizes.actors_created, is_single=True, is_warmed=False, after=after)


def calls_sync(served_class: type) -> Body:
    """One call after the other."""

    def body(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
        actors = ready_actors(peer, served_class, 1)
        send = peer.method(actors[0], "small_value")
        yield Loop(lambda count: peer.in_turn(send, count))
        peer.release(actors)

    return body


def calls_async(served_class: type, is_threaded: bool = False) -> Body:
    """A batch of calls at once."""

    def body(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
        threads = sizes.actor_threads if is_threaded else 1
        actors = ready_actors(peer, served_class, 1, threads)
        send = peer.method(actors[0], "small_value")

        def run(count: int) -> None:
            for _ in range(count):
                peer.together(send, sizes.batch)

        yield Loop(run, sizes.batch)
        peer.release(actors)

    return body


def one_to_many(served_class: type) -> Body:
    """One client actor calls every server."""

    def body(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
        servers = ready_actors(peer, served_class, servers_count())
        clients = ready_clients(peer, [servers])
        send = peer.method(clients[0], "call")

        def run(count: int) -> None:
            peer.in_turn(send, count, sizes.calls_per_client)

        yield Loop(run, sizes.calls_per_client * len(servers))
        peer.release([*clients, *servers])

    return body


def many_to_many(served_class: type) -> Body:
    """Tasks that call the servers in turn."""

    def body(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
        servers = ready_actors(peer, served_class, servers_count())
        send = peer.task(served.call_round_robin)

        def run(count: int) -> None:
            for _ in range(count):
                peer.together(send, sizes.submitters, peer.name, servers, sizes.calls_per_client)

        yield Loop(run, sizes.submitters * sizes.calls_per_client)
        peer.release(servers)

    return body


def many_to_many_with_argument(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """As many clients as servers, each calls its own with a reference it put."""
    servers = ready_actors(peer, served.Server, servers_count())
    clients = ready_clients(peer, [[server] for server in servers])
    sends = [peer.method(client, "call_with_reference") for client in clients]

    def run(count: int) -> None:
        for _ in range(count):
            peer.all_at_once(sends, sizes.argument_calls_per_client)

    yield Loop(run, sizes.argument_calls_per_client * len(clients))
    peer.release([*clients, *servers])


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "actors_created",
        "actors created",
        "actors/s",
        "8 actors created at once, each called once; until all have answered",
        {Capability.ACTORS, Capability.ACTOR_PROCESSES},
    )(actors_created)
    registry.shared(
        "actor_sync",
        "1:1 actor calls sync",
        "calls/s",
        "an empty call and get of its result, one after the other",
        {Capability.ACTORS},
        source=SOURCE,
    )(calls_sync(served.Server))
    registry.shared(
        "actor_async",
        "1:1 actor calls async",
        "calls/s",
        "1000 empty calls at once, then get of all",
        {Capability.ACTORS},
        source=SOURCE,
    )(calls_async(served.Server))
    registry.shared(
        "actor_concurrent",
        "1:1 actor calls concurrent",
        "calls/s",
        "the same with an actor of 16 threads",
        {Capability.ACTORS, Capability.ACTOR_THREADS},
        source=SOURCE,
    )(calls_async(served.Server, is_threaded=True))
    registry.shared(
        "one_to_n",
        "1:n actor calls async",
        "calls/s",
        "an actor makes 5000 calls to each of n actors at once, then gets all; "
        "n is half the processors",
        {Capability.ACTORS, Capability.ACTOR_CLIENTS},
        source=SOURCE,
    )(one_to_many(served.Server))
    registry.shared(
        "n_to_n",
        "n:n actor calls async",
        "calls/s",
        "4 tasks at once, each makes 5000 calls to n actors in turn and gets all",
        {Capability.TASKS, Capability.ACTORS, Capability.ACTOR_CLIENTS, Capability.NESTED},
        source=SOURCE,
    )(many_to_many(served.Server))
    registry.shared(
        "n_to_n_argument",
        "n:n actor calls with arg",
        "calls/s",
        "n actors at once, each makes 1000 calls to an actor of its own with a reference it put",
        {
            Capability.ACTORS,
            Capability.ACTOR_CLIENTS,
            Capability.SMALL_OBJECTS,
            Capability.TASK_REFERENCES,
        },
        source=SOURCE,
    )(many_to_many_with_argument)
