"""Putting and getting objects, small and large."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from benchmarks import served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Loop, Registry

SOURCE = "ray_perf.py"
# Ray counts an array of 100 Mi int64 (838.9 MB) as 0.8 GB; its figure is kept comparable.
RAY_GB_PER_BYTE = 0.8 / (100 * 1024 * 1024 * 8)


# A put of new memory costs many times one of memory used before, and stores differ in when they do
# which: warm-up and samples are four times as long as elsewhere, so that each sample has both.
STORE_PATIENCE = 4.0


def zeros(size_bytes: int) -> Any:
    """An array of int64 zeros whose pages are all there, so that reading it faults none in."""
    numpy = importlib.import_module("numpy")
    array = numpy.empty(size_bytes // 8, dtype=numpy.int64)
    array.fill(0)
    return array


def get_small(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Get one small object again and again."""
    reference = peer.put(0)
    get = peer.get

    def run(count: int) -> None:
        for _ in range(count):
            get(reference)

    yield Loop(run)


def put_small(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Put a small integer; the reference is dropped at once."""
    put = peer.put

    def run(count: int) -> None:
        for _ in range(count):
            put(0)

    yield Loop(run)


def multi_put_small(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Tasks that put small integers."""
    send = peer.task(served.put_small)

    def run(count: int) -> None:
        for _ in range(count):
            peer.together(send, sizes.put_clients, peer.name, sizes.puts_per_client)

    yield Loop(run, sizes.put_clients * sizes.puts_per_client)


def put_gigabytes(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Put a large array; the reference is dropped at once."""
    array = zeros(sizes.array_bytes)
    put = peer.put

    def run(count: int) -> None:
        for _ in range(count):
            put(array)

    yield Loop(run, sizes.array_bytes * RAY_GB_PER_BYTE, patience=STORE_PATIENCE)


def multi_put_gigabytes(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Tasks that put arrays."""
    send = peer.task(served.put_arrays)

    def run(count: int) -> None:
        for _ in range(count):
            peer.together(
                send,
                sizes.put_clients,
                peer.name,
                sizes.array_puts_per_client,
                sizes.client_array_bytes,
            )

    puts = sizes.put_clients * sizes.array_puts_per_client
    yield Loop(run, puts * sizes.client_array_bytes * RAY_GB_PER_BYTE, patience=STORE_PATIENCE)


def get_array(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Get one array again and again, each dropped before the next."""
    reference = peer.put(zeros(sizes.medium_array_bytes))
    get = peer.get

    def run(count: int) -> None:
        for _ in range(count):
            get(reference)

    yield Loop(run)


def get_contained(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Get a list of references to objects that a task's worker owns."""
    reference = peer.task(served.references)(peer.name, sizes.contained_references)
    get = peer.get

    def run(count: int) -> None:
        for _ in range(count):
            contained = get(reference)
            assert len(contained) == sizes.contained_references

    yield Loop(run)


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "get_small",
        "single client get, small",
        "gets/s",
        "get of one put 0, one after the other",
        {Capability.SMALL_OBJECTS},
        source=SOURCE,
    )(get_small)
    registry.shared(
        "put_small",
        "single client put, small",
        "puts/s",
        "put of 0, one after the other",
        {Capability.SMALL_OBJECTS},
        source=SOURCE,
    )(put_small)
    registry.shared(
        "multi_put_small",
        "multi client put, small",
        "puts/s",
        "10 tasks at once, each puts 0 100 times",
        {Capability.SMALL_OBJECTS, Capability.NESTED},
        source=SOURCE,
    )(multi_put_small)
    registry.shared(
        "put_gigabytes",
        "single client put, gigabytes",
        "GB/s",
        "put of an array of 100 Mi int64, one after the other; counted as 0.8 GB each",
        {Capability.LARGE_PUT},
        source=SOURCE,
    )(put_gigabytes)
    registry.shared(
        "multi_put_gigabytes",
        "multi client put, gigabytes",
        "GB/s",
        "10 tasks at once, each makes and puts 10 arrays of 10 Mi int64; counted as 0.08 GB each",
        {Capability.LARGE_PUT, Capability.NESTED},
        source=SOURCE,
    )(multi_put_gigabytes)
    registry.shared(
        "get_array",
        "get of an 8 MB array",
        "gets/s",
        "get of one put array of 1,000,000 int64, one after the other",
        {Capability.LARGE_GET},
    )(get_array)
    registry.shared(
        "get_contained",
        "get object containing 10k refs",
        "gets/s",
        "get of a list of 10,000 references that a task put and returned",
        {Capability.BORROWED, Capability.NESTED},
        source=SOURCE,
    )(get_contained)
