"""What a cluster with many live actors weighs when nothing runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from benchmarks import processes, served
from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Figures, Registry, Stage
from benchmarks.workloads.actors import ready_actors

SETTLE_S = 10.0
SETTLE_STEP_S = 1.0
SETTLED_CHANGE = 0.02
BYTES_PER_MB = 1e6


def live_actors(peer: Peer, sizes: Sizes) -> Iterator[Figures]:
    """Create actors, wait until the memory stands still, then sum it up."""
    start_s = time.perf_counter()
    actors = ready_actors(peer, served.Server, sizes.live_actors)
    created_s = time.perf_counter() - start_s
    cluster = settled_memory()
    driver = processes.memory_of([os.getpid()])
    yield Figures(
        [cluster.pss_bytes / BYTES_PER_MB],
        {
            "cluster_processes": cluster.processes,
            "cluster_rss_mb": cluster.rss_bytes / BYTES_PER_MB,
            "driver_pss_mb": driver.pss_bytes / BYTES_PER_MB,
            "machine_shared_memory_mb": processes.shared_memory_bytes() / BYTES_PER_MB,
            "creation_s": created_s,
        },
    )
    peer.release(actors)


def settled_memory() -> processes.Memory:
    """The memory of all processes of the cluster without the driver, once it changes no more."""
    deadline_s = time.monotonic() + SETTLE_S
    before = processes.memory_of(processes.cluster_pids())
    while True:
        time.sleep(SETTLE_STEP_S)
        now = processes.memory_of(processes.cluster_pids())
        change = abs(now.pss_bytes - before.pss_bytes) / max(1, before.pss_bytes)
        if change < SETTLED_CHANGE or time.monotonic() >= deadline_s:
            return now
        before = now


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "memory",
        "memory of 41 live actors and the services",
        "MB",
        "PSS of every process but the driver, 41 actors created and called once, all idle",
        {Capability.ACTORS, Capability.ACTOR_PROCESSES},
        is_rate=False,
        rounds_max=1,
        stage=Stage.ISOLATED,
    )(live_actors)
