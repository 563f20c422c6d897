"""What must hold on a cluster after all references are dropped, however many processes died."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skate
from skate.cluster_utils import Cluster
from skate.util.placement_group import placement_group, remove_placement_group
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from skate.util.state import list_objects
from skate_worker.current import require_core
from tests.chaos.killer import processes

SETTLED_S = 30.0
SHUTDOWN_S = 3.0
SLACK = 2  # descriptors and threads that may have come and gone
OF_A_WORKER = 4  # descriptors: two sockets, its end, its output
OF_A_PEER = 4  # descriptors: idle connections for objects, to and from each other node
OF_AN_IDLE_PEER = 1  # descriptors: a call of the control plane that comes and goes
IDLE_S = 90.0  # connections for objects are closed after half a minute without use
THREADS_OF_A_PEER = 4  # serve idle connections, or wait half a minute for more objects to bring
WORRYING = re.compile(r"unexpected|assert|never retrieved|was destroyed|Traceback", re.IGNORECASE)


@skate.remote
def probe() -> bytes:
    return bytes(200_000)


@skate.remote
class Probe:
    def answer(self) -> int:
        return 1


@dataclass(frozen=True)
class Rest:
    """What the head's daemon holds when nothing happens."""

    descriptors: int
    threads: int
    workers: int


def rest_of(cluster: Cluster) -> Rest:
    """Once every node has had something to do, and its workers are idle."""
    use_everywhere(cluster, SETTLED_S)
    eventually("stores are empty", stored)
    return _rest(cluster)


def assert_settled(cluster: Cluster, base: Rest, new_work_s: float) -> None:
    """New work runs everywhere; resources, stores, reference tables and processes are at rest.

    RELIABILITY promises new work within 2 s; a CI machine that does other things at the same time
    has to be given more (``--new-work-s``).
    """
    cluster.wait_for_nodes(SETTLED_S)
    use_everywhere(cluster, new_work_s)
    eventually("stores are empty", stored)
    eventually("reference tables are empty", referenced)
    eventually("nothing is lent", lent)
    eventually("the driver has nothing under way", under_way)
    eventually("no process but a node's", lambda: strangers(cluster))
    eventually("descriptors and threads are back", lambda: grown(cluster, base))
    lines = worrying_lines()
    assert not lines, "\n".join(["the logs say:", *lines])


def assert_idle(cluster: Cluster, base: Rest) -> None:
    """Once nothing was fetched for a while the head's daemon holds what it held at first."""
    eventually("the daemon is idle", lambda: grown(cluster, base, is_idle=True), IDLE_S)


def use_everywhere(cluster: Cluster, within_s: float) -> None:
    """A task, an actor and a bundle of a placement group on each node."""
    nodes = cluster.list_all_nodes()
    deadline_s = time.monotonic() + within_s
    places = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
    refs = [probe.options(scheduling_strategy=place).remote() for place in places]
    left_s = deadline_s - time.monotonic()
    assert [len(value) for value in skate.get(refs, timeout=left_s)] == [200_000] * len(nodes)
    actors = [Probe.options(scheduling_strategy=place).remote() for place in places]
    answers = skate.get([a.answer.remote() for a in actors], timeout=deadline_s - time.monotonic())
    assert answers == [1] * len(nodes)
    del actors
    group = placement_group([{"CPU": 1}] * len(nodes), strategy="STRICT_SPREAD")
    assert group.wait(max(1.0, deadline_s - time.monotonic()))
    remove_placement_group(group)


def _rest(cluster: Cluster) -> Rest:
    head = cluster.head_node
    assert head is not None
    folder = Path("/proc", str(head.pid))
    workers = processes([head.session_dir], "skate-worker")[head.session_dir]
    return Rest(len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")), len(workers))


def grown(cluster: Cluster, base: Rest, *, is_idle: bool = False) -> list[Any]:
    """What the head's daemon holds beyond what it held at first. The others are new."""
    now = _rest(cluster)
    workers = max(0, now.workers - base.workers)  # idle ones stay for a while
    peers = len(cluster.list_all_nodes()) - 1
    may_stay = workers * OF_A_WORKER + peers * (OF_AN_IDLE_PEER if is_idle else OF_A_PEER)
    threads = 0 if is_idle else peers * THREADS_OF_A_PEER
    is_at_rest = (
        now.descriptors <= base.descriptors + SLACK + may_stay
        and now.threads <= base.threads + SLACK + threads
    )
    return [] if is_at_rest else [("at first", base, "now", now)]


def under_way() -> dict[str, int]:
    """Tasks of the driver that have not ended, leases and requests that it holds."""
    return {name: count for name, count in require_core().tasks.statistics().items() if count}


def worrying_lines() -> list[str]:
    """Lines of any log of any session that tell of a bug."""
    found: list[str] = []
    for path in Path(os.environ["SKATE_TMPDIR"]).rglob("logs/**/*"):
        if path.is_file():
            lines = path.read_text(errors="replace").splitlines()
            at = [number for number, line in enumerate(lines) if WORRYING.search(line)]
            found += [f"{path.name}: {' | '.join(lines[number : number + 12])}" for number in at]
    return found[:20]


def assert_ends(cluster: Cluster, within_s: float = SHUTDOWN_S) -> None:
    """An orderly end takes no longer than it may, and leaves no process and no file."""
    sessions = [node.session_dir for node in cluster.list_all_nodes()]
    start_s = time.monotonic()
    skate.shutdown()
    took_s = time.monotonic() - start_s
    cluster.shutdown()
    assert took_s < within_s, f"shutdown took {took_s:.1f} s"
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
    folders = Path(os.environ["SKATE_TMPDIR"]).rglob("spill")
    spilled = [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]
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
