"""The GCS is killed, or its head started again here or elsewhere; the cluster goes on.

RELIABILITY I17; SURFACE F3.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster
from skate_gcs.redis_for_tests import OwnRedisServer, is_redis_installed
from skate_node import NodeOptions, RunningNode, start_node
from skate_node.session import find_node
from tests.process_tree import gcs_of
from tests.waiting import wait_for

WAIT_S = 30.0
STORE_BYTES = 80 << 20


@pytest.fixture(params=["sqlite", "redis"])
def storage(request: pytest.FixtureRequest, session_root: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{session_root}/gcs.sqlite"
        return
    if not is_redis_installed():
        pytest.skip("redis-server is not installed")
    server = OwnRedisServer(str(session_root))
    server.start()
    yield server.url
    server.kill()


@skate.remote
def double(number: int) -> int:
    return 2 * number


@skate.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        return os.getpid()


def head_again(head: RunningNode, storage: str, port: int) -> RunningNode:
    return start_node(
        NodeOptions(
            port=port,
            token=head.token,
            storage=storage,
            num_cpus=1,
            object_store_memory=STORE_BYTES,
            metrics_port=None,
        )
    )


@pytest.mark.invariant("I17")
@pytest.mark.surface("F3")
def test_work_goes_on_while_the_gcs_is_stopped_and_after_it_was_killed(
    nodes: Cluster, storage: str
) -> None:
    head = nodes.add_node(num_cpus=2, storage=storage)
    nodes.connect()
    counter = Counter.options(name="counter", lifetime="detached").remote()
    before = skate.get([counter.pid.remote(), double.remote(1)])
    gcs = gcs_of(head.pid)
    assert gcs is not None
    os.kill(gcs, signal.SIGSTOP)
    assert skate.get([double.remote(n) for n in range(50)], timeout=WAIT_S)[-1] == 98
    assert skate.get(skate.put(b"x" * 1_000_000), timeout=WAIT_S) == b"x" * 1_000_000
    assert skate.get(counter.add.remote(), timeout=WAIT_S) == 1
    os.kill(gcs, signal.SIGKILL)
    assert skate.get(counter.add.remote(), timeout=WAIT_S) == 2
    found = skate.get_actor("counter")  # needs the GCS: it waits until there is one
    assert skate.get(found.pid.remote(), timeout=WAIT_S) == before[0]
    fresh = Counter.remote()
    assert skate.get(fresh.add.remote(), timeout=WAIT_S) == 1
    assert gcs_of(head.pid) != gcs
    assert [node["Alive"] for node in skate.nodes()] == [True]


@pytest.mark.invariant("I17")
@pytest.mark.timeout(240)
def test_gcs_killed_again_and_again_under_load_loses_no_actor(nodes: Cluster, storage: str) -> None:
    head = nodes.add_node(num_cpus=2, storage=storage)
    nodes.add_node(num_cpus=2)
    nodes.connect()
    names: list[str] = []
    is_over = threading.Event()

    def make_actors() -> None:
        while not is_over.is_set() and len(names) < 40:
            name = f"actor{len(names)}"
            # Named: acknowledged by the GCS when this returns.
            Counter.options(name=name, lifetime="detached").remote()
            names.append(name)

    maker = threading.Thread(target=make_actors)
    maker.start()
    for kill in range(4):
        wait_for(lambda wanted=4 * (kill + 1): len(names) >= wanted)  # type: ignore[misc]
        os.kill(wait_for(lambda: gcs_of(head.pid)), signal.SIGKILL)
        assert skate.get([double.remote(n) for n in range(20)], timeout=WAIT_S)[-1] == 38
    is_over.set()
    maker.join()
    actors = [skate.get_actor(name) for name in names]
    assert skate.get([actor.add.remote() for actor in actors], timeout=WAIT_S) == [1] * len(names)


@pytest.mark.invariant("I17")
@pytest.mark.surface("F3")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_head_that_was_killed_is_started_again_on_its_storage(
    nodes: Cluster, storage: str, session_root: Path, place: str
) -> None:
    head = nodes.add_node(num_cpus=1, storage=storage)
    other = nodes.add_node(num_cpus=2)
    skate.init(other.session_dir)
    far = {"scheduling_strategy": affinity(other)}
    counter = Counter.options(name="counter", namespace="n", lifetime="detached", **far).remote()
    # The first use of a function needs the GCS, which then knows it.
    assert skate.get([counter.add.remote(), double.remote(1)]) == [1, 2]
    port = int(head.gcs_endpoint.rpartition(":")[2])
    nodes.remove_node(head, allow_graceful=False)
    assert skate.get(counter.add.remote(), timeout=WAIT_S) == 2
    assert skate.get([double.remote(n) for n in range(20)], timeout=WAIT_S)[-1] == 38
    again = head_again(head, storage, port if place == "here" else 0)
    try:
        assert (again.gcs_endpoint == head.gcs_endpoint) == (place == "here")
        found = skate.get_actor("counter", namespace="n")
        assert skate.get(found.add.remote(), timeout=WAIT_S) == 3

        def states() -> dict[str, bool]:
            return {node["NodeID"]: node["Alive"] for node in skate.nodes()}

        expected = {head.node_id: False, other.node_id: True, again.node_id: True}
        wait_for(lambda: states() == expected)
        # Commands on the other node's machine find the cluster where it is now.
        assert find_node(again.gcs_endpoint).pid in {other.pid, again.pid}
        assert skate.get(Counter.options(**far).remote().add.remote(), timeout=WAIT_S) == 1
    finally:
        skate.shutdown()
        again.stop()


def affinity(node: RunningNode) -> Any:
    from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


@pytest.mark.surface("F3", "F4")
def test_node_whose_head_stays_away_ends_and_says_why(nodes: Cluster, session_root: Path) -> None:
    head = nodes.add_node(num_cpus=1, storage=f"sqlite:{session_root}/gcs.sqlite")
    options = NodeOptions(
        is_head=False,
        gcs_address=head.gcs_endpoint,
        token=head.token,
        num_cpus=1,
        object_store_memory=STORE_BYTES,
        metrics_port=None,
        gcs_reconnect_s=2.0,
        keep_logs=True,
    )
    node = start_node(options)
    nodes.remove_node(head, allow_graceful=False)
    assert node.wait(WAIT_S) is not None
    log = Path(node.session_dir, "logs", "daemon.log").read_text()
    assert "The GCS has not answered for 2 s" in log
    node.stop()
