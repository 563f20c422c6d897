"""What runs inside the workers: the tasks and the actors of every workload, written once.

Plain functions and classes, with no peer in sight but through `connected`; each adapter makes
tasks and actors of them. Bodies are as small as in Ray's microbenchmark: `b"ok"` comes back.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer

OK = b"ok"


@functools.cache
def connected(peer_name: str) -> Peer:
    """The adapter of the peer whose worker this process is."""
    # Here, not above: only workers that submit work pay for the import of an adapter.
    from benchmarks.peers import load_peer  # noqa: PLC0415

    peer = load_peer(peer_name)
    peer.attach()
    return peer


def small_value() -> bytes:
    """The empty task."""
    return OK


def first_and_last(array: Any) -> bytes:
    """Touch both ends of an array that came as an argument."""
    assert array[0] == array[-1]
    return OK


def put_small(peer_name: str, count: int) -> None:
    """Put a small value `count` times from a worker."""
    put = connected(peer_name).put
    for _ in range(count):
        put(0)


def put_arrays(peer_name: str, count: int, size_bytes: int) -> None:
    """Put `count` arrays of zeros, each made anew as Ray's definition has it."""
    # Here, not above: numpy must not be imported by every worker of every peer.
    import numpy as np  # noqa: PLC0415

    put = connected(peer_name).put
    for _ in range(count):
        put(np.zeros(size_bytes // 8, dtype=np.int64))


def references(peer_name: str, count: int) -> list[Any]:
    """A list of references to `count` small objects that the worker put."""
    put = connected(peer_name).put
    return [put(1) for _ in range(count)]


def sum_lists(*lists: list[int]) -> int:
    """Sum all elements of all arguments."""
    return sum(sum(numbers) for numbers in lists)


def many_lists(count: int, length: int) -> tuple[list[int], ...]:
    """`count` lists, for a task with as many return values."""
    return tuple(list(range(length)) for _ in range(count))


def call_round_robin(peer_name: str, actors: Sequence[Any], count: int) -> None:
    """Call actors in turn from a task, `count` calls in all, and wait for all of them."""
    peer = connected(peer_name)
    sends = [peer.method(actor, "small_value") for actor in actors]
    peer.get([sends[index % len(sends)]() for index in range(count)])


class Server:
    """The actor that is called."""

    def small_value(self) -> bytes:
        """The empty call."""
        return OK

    def small_value_arg(self, _value: object) -> bytes:
        """The empty call with an argument."""
        return OK


class AsyncServer:
    """The actor with coroutine methods that is called."""

    async def small_value(self) -> bytes:
        """The empty call."""
        return OK

    async def small_value_arg(self, _value: object) -> bytes:
        """The empty call with an argument."""
        return OK


class Submitter:
    """An actor that submits tasks."""

    def __init__(self, peer_name: str) -> None:
        self._peer = connected(peer_name)
        self._send = self._peer.task(small_value)

    def ready(self) -> bytes:
        """Answer once the constructor has run."""
        return OK

    def submit(self, count: int) -> None:
        """Submit `count` empty tasks and wait for all of them."""
        self._peer.together(self._send, count)


class Client:
    """An actor that calls other actors."""

    def __init__(self, peer_name: str, servers: Sequence[Any]) -> None:
        self._peer = connected(peer_name)
        self._servers = list(servers)  # Kept: a method alone need not keep its actor alive.
        self._sends = [self._peer.method(server, "small_value") for server in servers]

    def ready(self) -> bytes:
        """Answer once the constructor has run."""
        return OK

    def call(self, count: int) -> None:
        """Call each server `count` times at once and wait for all answers."""
        results: list[Any] = []
        for send in self._sends:
            results.extend([send() for _ in range(count)])
        self._peer.get(results)

    def call_with_reference(self, count: int) -> None:
        """The same, each call with a reference to an object that this client put."""
        argument = self._peer.put(0)
        results: list[Any] = []
        for server in self._servers:
            send = self._peer.method(server, "small_value_arg")
            results.extend([send(argument) for _ in range(count)])
        self._peer.get(results)
