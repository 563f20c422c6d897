"""What must hold on a cluster after all references are dropped, however many processes died."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import skate
from skate.cluster_utils import Cluster
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from skate.util.state import list_objects
from skate_worker.current import require_core
from tests.chaos.killer import processes

SETTLED_S = 30.0
NEW_TASK_S = 30.0
SHUTDOWN_S = 3.0


@skate.remote
def probe() -> bytes:
    return bytes(200_000)


def assert_settled(cluster: Cluster) -> None:
    """New tasks run everywhere; resources, stores, reference tables and processes are at rest."""
    cluster.wait_for_nodes(SETTLED_S)
    nodes = cluster.list_all_nodes()
    places = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
    refs = [probe.options(scheduling_strategy=place).remote() for place in places]
    assert [len(value) for value in skate.get(refs, timeout=NEW_TASK_S)] == [200_000] * len(nodes)
    del refs
    eventually("stores are empty", stored)
    eventually("reference tables are empty", referenced)
    eventually("nothing is lent", lent)
    eventually("no process but a node's", lambda: strangers(cluster))


def assert_ends(cluster: Cluster) -> None:
    """An orderly end takes no longer than it may, and leaves no process and no file."""
    sessions = [node.session_dir for node in cluster.list_all_nodes()]
    start_s = time.monotonic()
    skate.shutdown()
    took_s = time.monotonic() - start_s
    cluster.shutdown()
    assert took_s < SHUTDOWN_S, f"shutdown took {took_s:.1f} s"
    eventually("no process is left", lambda: [p for p in processes(sessions).values() if p])
    assert [path for path in sessions if Path(path, "sockets").exists()] == []


def eventually(what: str, left: Callable[[], Any], within_s: float = SETTLED_S) -> None:
    """Wait until ``left`` gives nothing; fails with what it gives at last."""
    deadline_s = time.monotonic() + within_s
    while found := left():
        assert time.monotonic() < deadline_s, f"not so after {within_s:g} s: {what}: {found}"
        time.sleep(0.05)


def stored() -> list[Any]:
    """What lies in any store or on its disk."""
    found: list[Any] = [
        (node.node_id.hex()[:8], node.problem, node.used_bytes, node.stored[:5])
        for node in require_core().list_objects(10.0)
        if node.problem or node.stored or node.used_bytes
    ]
    spilled = [str(p) for p in Path(os.environ["SKATE_TMPDIR"]).rglob("*spill*/*") if p.is_file()]
    return found + spilled


def referenced() -> list[Any]:
    """What any process refers to."""
    return list_objects(limit=10, raise_on_missing_output=False)


def lent() -> dict[str, float]:
    """How much of each resource is not available."""
    total, free = skate.cluster_resources(), skate.available_resources()
    return {
        name: value - free.get(name, 0)
        for name, value in total.items()
        if value != free.get(name, 0)
    }


def strangers(cluster: Cluster) -> list[Any]:
    """Processes of the session's nodes beyond daemon, zygote and as many workers as CPUs twice."""
    cpus = skate.cluster_resources().get("CPU", 0)
    found = processes([node.session_dir for node in cluster.list_all_nodes()])
    per_node = 2 * cpus / len(found) + 3
    return [(path, pids) for path, pids in found.items() if len(pids) > per_node]
