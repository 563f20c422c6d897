"""Putting and getting objects, small and large."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Figures, Loop, Registry

SOURCE = "ray_perf.py"
# Ray counts an array of 100 Mi int64 (838.9 MB) as 0.8 GB; its figure is kept comparable.
RAY_GB_PER_BYTE = 0.8 / (100 * 1024 * 1024 * 8)


# Of the machine's memory: more than a store has by default (Ray's 30 %), so that so many bytes put
# one after the other have been everywhere in it.
WARM_STORE_SHARE = 0.4
MULTI_PUT_PATIENCE = 4.0  # A batch is 8 GB and touches new memory in the workers too.


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


def put_gigabytes(peer: Peer, sizes: Sizes) -> Iterator[Figures]:
    """Put a large array some times into a fresh store; each reference is dropped at once."""
    array = zeros(sizes.array_bytes)
    peer.put(array)
    start_s = time.perf_counter()
    for _ in range(sizes.fresh_store_puts):
        peer.put(array)
    elapsed_s = time.perf_counter() - start_s
    put_bytes = sizes.fresh_store_puts * sizes.array_bytes
    yield Figures([put_bytes * RAY_GB_PER_BYTE / elapsed_s])


def put_gigabytes_warm(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """The same into a store whose memory has all been used before."""
    array = zeros(sizes.array_bytes)
    put = peer.put
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    warm_bytes = min(sizes.warm_store_bytes_max, int(memory_bytes * WARM_STORE_SHARE))
    for _ in range(warm_bytes // sizes.array_bytes):
        put(array)

    def run(count: int) -> None:
        for _ in range(count):
            put(array)

    yield Loop(run, sizes.array_bytes * RAY_GB_PER_BYTE)


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
    yield Loop(run, puts * sizes.client_array_bytes * RAY_GB_PER_BYTE, patience=MULTI_PUT_PATIENCE)


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
        "10 puts of an array of 100 Mi int64 into a fresh store, after one; 0.8 GB each",
        {Capability.LARGE_PUT},
        source=SOURCE,
    )(put_gigabytes)
    registry.shared(
        "put_gigabytes_warm",
        "single client put, gigabytes, warm store",
        "GB/s",
        "the same, one after the other, when as much as the store holds has been put before",
        {Capability.LARGE_PUT},
    )(put_gigabytes_warm)
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
