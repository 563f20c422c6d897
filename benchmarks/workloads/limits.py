"""Large counts of arguments, return values and objects: from Ray's single-node scalability test."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks import served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Figures, Registry

SOURCE = "test_single_node.py"


def many_arguments(peer: Peer, sizes: Sizes) -> Iterator[Figures]:
    """One task with many lists as arguments."""
    arguments = [[1] * sizes.list_length for _ in range(sizes.arguments)]
    send = peer.task(served.sum_lists)
    start_s = time.perf_counter()
    total = peer.get(send(*arguments))
    elapsed_s = time.perf_counter() - start_s
    assert total == sizes.arguments * sizes.list_length, total
    yield Figures([elapsed_s])


def many_returns(peer: Peer, sizes: Sizes) -> Iterator[Figures]:
    """One task with many lists as return values, taken one at a time."""
    send = peer.task(served.many_lists, returns=sizes.returns)
    expected = list(range(sizes.list_length))
    start_s = time.perf_counter()
    references = send(sizes.returns, sizes.list_length)
    assert len(references) == sizes.returns
    for reference in references:
        assert peer.get(reference) == expected
    yield Figures([time.perf_counter() - start_s])


def many_objects(peer: Peer, sizes: Sizes) -> Iterator[Figures]:
    """Put many lists, then get them all in one call."""
    value = list(range(sizes.list_length))
    start_s = time.perf_counter()
    references = [peer.put(value) for _ in range(sizes.fetched_objects)]
    values = peer.get(references)
    elapsed_s = time.perf_counter() - start_s
    assert len(values) == sizes.fetched_objects
    assert all(each == value for each in values)
    yield Figures([elapsed_s])


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "arguments_10k",
        "10,000 arguments",
        "s",
        "one task with 10,000 lists of 10,000 ones as arguments, summed; "
        "call to result, the lists made before",
        {Capability.TASKS},
        source=SOURCE,
        is_rate=False,
        rounds_max=1,
    )(many_arguments)
    registry.shared(
        "returns_3k",
        "3,000 returns",
        "s",
        "one task with 3,000 return values, each a list of 10,000 integers; all got and compared",
        {Capability.TASKS, Capability.TASK_RETURNS},
        source=SOURCE,
        is_rate=False,
        rounds_max=1,
    )(many_returns)
    registry.shared(
        "get_10k_objects",
        "put and get of 10,000 objects",
        "s",
        "10,000 puts of a list of 10,000 integers, then one get of all",
        {Capability.SMALL_OBJECTS},
        source=SOURCE,
        is_rate=False,
        rounds_max=1,
    )(many_objects)
