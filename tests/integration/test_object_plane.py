"""Objects whose owner is on one node and whose bytes are on another, on real nodes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import ObjectLostError, OwnerDiedError
from skate.experimental import get_object_locations
from skate_node import RunningNode
from skate_object_store import StoreClient
from skate_rpc.handshake import ClientHandshake
from tests.waiting import wait_for

WAIT_S = 30.0
LARGE = 200_000

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster(session_root: Path) -> Iterator[Cluster]:
    """A head that this process is connected to, and two nodes with a resource of their own."""
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2, resources={"left": 10})
    cluster.add_node(num_cpus=2, resources={"right": 10})
    cluster.wait_for_nodes()
    yield cluster
    skate.shutdown()
    cluster.shutdown()


def holds(running: RunningNode, *refs: Any) -> list[bool]:
    """Which of the objects are in a node's store."""
    client = StoreClient(running.store_endpoint, handshake=ClientHandshake(running.token.encode()))
    with client:
        return [client.contains(ref.binary()) for ref in refs]


class Named:
    """An object's name without a reference to it."""

    def __init__(self, object_id: bytes) -> None:
        self._object_id = object_id

    def binary(self) -> bytes:
        return self._object_id


def is_owner_dead(ref: Any) -> bool:
    try:
        skate.get(ref, timeout=5)
    except OwnerDiedError:
        return True
    return False


@skate.remote
class Holder:
    """Makes, reads and keeps objects on its node."""

    def __init__(self) -> None:
        self.kept: Any = None

    def make(self, number: int) -> Any:
        return np.full(LARGE, number)

    def total(self, values: Any) -> int:
        return int(values.sum())

    def own(self) -> Any:
        self.kept = skate.put(np.ones(LARGE))
        return [self.kept]

    def read(self, refs: list[Any]) -> int:
        return sum(int(values.sum()) for values in skate.get(refs))

    def pid(self) -> int:
        return os.getpid()


def on(name: str) -> Any:
    return Holder.options(resources={name: 1}).remote()


def test_value_made_on_another_node_is_read_passed_on_and_freed_everywhere(
    cluster: Cluster,
) -> None:
    left, right = on("left"), on("right")
    ref = left.make.remote(3)
    assert skate.get(ref, timeout=WAIT_S)[0] == 3
    assert skate.get(right.total.remote(ref), timeout=WAIT_S) == 3 * LARGE
    assert skate.get(right.read.remote([ref]), timeout=WAIT_S) == 3 * LARGE
    nodes = [cluster.head_node, *cluster.worker_nodes]
    assert [holds(node, ref) for node in nodes if node is not None] == [[True]] * 3
    name = Named(ref.binary())
    del ref
    wait_for(lambda: not any(holds(node, name)[0] for node in nodes if node is not None))


@pytest.mark.invariant("I5")
def test_owner_on_another_node_is_named_when_it_dies(cluster: Cluster) -> None:
    left = on("left")
    (ref,) = skate.get(left.own.remote(), timeout=WAIT_S)
    pid = skate.get(left.pid.remote(), timeout=WAIT_S)
    assert skate.get(ref, timeout=WAIT_S).sum() == LARGE
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_owner_dead(ref), within_s=5)
    with pytest.raises(OwnerDiedError, match=f"pid={pid}"):
        skate.get(ref, timeout=5)
    # The copy on this node goes too.
    assert cluster.head_node is not None
    head = cluster.head_node
    wait_for(lambda: holds(head, ref) == [False], within_s=10)


@pytest.mark.invariant("I5")
def test_owner_dies_with_its_node(cluster: Cluster) -> None:
    right = on("right")
    (ref,) = skate.get(right.own.remote(), timeout=WAIT_S)
    assert skate.get(ref, timeout=WAIT_S).sum() == LARGE
    assert cluster.head_node is not None
    head = cluster.head_node
    assert holds(head, ref) == [True]
    cluster.remove_node(cluster.worker_nodes[1], allow_graceful=False)

    wait_for(lambda: is_owner_dead(ref), within_s=10)
    wait_for(lambda: holds(head, ref) == [False], within_s=10)


def test_method_result_that_dies_with_its_node_says_so(cluster: Cluster) -> None:
    right = on("right")
    ref = right.make.remote(4)
    skate.wait([ref], timeout=WAIT_S, fetch_local=False)
    node = cluster.worker_nodes[1]
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(ObjectLostError, match="max_task_retries") as caught:
        skate.get(ref, timeout=WAIT_S)
    assert str(node.node_id) in str(caught.value)


@skate.remote(max_retries=5)
def made(number: int) -> Any:
    return np.full(LARGE, number)


@skate.remote(max_retries=5)
def added(left: Any, right: Any) -> Any:
    return left + right


@pytest.mark.invariant("I2")
def test_results_of_tasks_survive_the_death_of_their_node(cluster: Cluster) -> None:
    cluster.add_node(num_cpus=2, resources={"spare": 10})
    there = {"resources": {"right": 1}}
    leaves = [made.options(**there).remote(n) for n in range(4)]
    sums = [added.options(**there).remote(leaves[n], leaves[n + 1]) for n in range(3)]
    skate.wait(sums, num_returns=3, timeout=WAIT_S, fetch_local=False)
    total = added.options(resources={"left": 1}).remote(sums[0], sums[2])
    assert skate.get(total, timeout=WAIT_S)[0] == 6
    del leaves
    cluster.remove_node(cluster.worker_nodes[1], allow_graceful=False)
    cluster.add_node(num_cpus=2, resources={"right": 10})  # where they can be made again
    assert [int(values[0]) for values in skate.get(sums, timeout=60)] == [1, 3, 5]


@pytest.mark.invariant("I2")
def test_last_copy_of_a_value_outlives_a_full_store(session_root: Path) -> None:
    cluster = Cluster(
        initialize_head=True,
        connect=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20},
    )
    try:
        cluster.add_node(num_cpus=1, resources={"right": 10})
        cluster.wait_for_nodes()
        ref = made.options(resources={"right": 1}, max_retries=0).remote(8)
        assert skate.get(ref, timeout=WAIT_S)[0] == 8
        wait_for(lambda: len(locations(ref)) == 2)
        cluster.remove_node(cluster.worker_nodes[0], allow_graceful=False)
        wait_for(lambda: len(locations(ref)) == 1)
        kept = [skate.put(np.zeros(1_000_000)) for _ in range(20)]  # twice what there is room for
        assert skate.get(ref, timeout=WAIT_S)[0] == 8
        assert skate.get(kept[0], timeout=WAIT_S)[0] == 0
    finally:
        skate.shutdown()
        cluster.shutdown()


def locations(ref: Any) -> list[str]:
    found: list[str] = get_object_locations([ref])[ref]["node_ids"]
    return found


def test_broadcast_reaches_every_node_and_is_freed_from_all(cluster: Cluster) -> None:
    ref = skate.put(np.ones(2_000_000))
    holders = [on("left"), on("right"), on("left"), on("right")]
    totals = skate.get([holder.read.remote([ref]) for holder in holders], timeout=WAIT_S)
    assert totals == [2_000_000] * 4
    nodes = [node for node in (cluster.head_node, *cluster.worker_nodes) if node is not None]
    name = Named(ref.binary())
    assert [holds(node, name) for node in nodes] == [[True]] * 3
    del ref
    wait_for(lambda: not any(holds(node, name)[0] for node in nodes))
