"""``Cluster``: several real nodes on this machine, and what a driver sees of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster

WAIT_S = 20.0


def alive_ids() -> set[str]:
    return {node["NodeID"] for node in skate.nodes() if node["Alive"]}


@skate.remote(num_cpus=0)
class Where:
    def node_id(self) -> str:
        node_id: str = skate.get_runtime_context().get_node_id()
        return node_id

    def variable(self, name: str) -> str:
        return os.environ.get(name, "")


def where(resource: str) -> Any:
    return Where.options(resources={resource: 1}).remote()


def test_added_nodes_are_seen_with_their_resources(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=2)
    other = nodes.add_node(num_cpus=3, resources={"disk": 5}, labels={"zone": "b"})
    nodes.connect()

    assert alive_ids() == {head.node_id, other.node_id}
    assert nodes.list_all_nodes() == [head, other]
    assert skate.cluster_resources()["CPU"] == 5
    assert skate.cluster_resources()["disk"] == 5
    (row,) = (node for node in skate.nodes() if node["NodeID"] == other.node_id)
    assert row["Labels"] == {"zone": "b", "ray.io/node-id": other.node_id}
    assert nodes.remaining_processes_alive()


def test_actor_runs_on_the_node_that_has_its_resource(nodes: Cluster) -> None:
    nodes.add_node()
    other = nodes.add_node(resources={"disk": 1}, env_vars={"SKATE_TEST_MARK": "other"})
    nodes.connect()

    actor = where("disk")

    assert skate.get(actor.node_id.remote(), timeout=WAIT_S) == other.node_id
    assert skate.get(actor.variable.remote("SKATE_TEST_MARK"), timeout=WAIT_S) == "other"


def test_removed_node_is_dead_to_the_cluster_and_gone_from_the_machine(nodes: Cluster) -> None:
    head = nodes.add_node()
    other = nodes.add_node()
    nodes.connect()

    nodes.remove_node(other)
    nodes.wait_for_nodes(timeout=WAIT_S)

    assert alive_ids() == {head.node_id}
    assert not other.is_running()
    assert not os.path.exists(other.session_dir)


@pytest.mark.invariant("I22")
def test_killed_node_is_found_dead(nodes: Cluster) -> None:
    nodes.add_node()
    other = nodes.add_node()

    nodes.remove_node(other, allow_graceful=False)

    assert not other.is_running()
    assert not os.path.exists(other.session_dir)
    nodes.wait_for_nodes(timeout=WAIT_S)  # through a connection of its own


def test_wait_for_nodes_names_what_it_did_not_see(nodes: Cluster) -> None:
    nodes.add_node()
    other = nodes.add_node()
    nodes.connect()
    other.kill()
    deadline_s = time.monotonic() + WAIT_S
    while other.node_id in alive_ids() and time.monotonic() < deadline_s:
        time.sleep(0.05)

    with pytest.raises(TimeoutError, match=other.node_id):
        nodes.wait_for_nodes(timeout=0.2)  # it was never removed from this object


def test_shutdown_ends_the_session_and_every_node(nodes: Cluster, session_root: Path) -> None:
    started = [nodes.add_node(), nodes.add_node()]
    nodes.connect()

    nodes.shutdown()

    assert not skate.is_initialized()
    assert not any(node.is_running() for node in started)
    assert not list(session_root.rglob("session_*/node.json"))
    assert nodes.list_all_nodes() == []


def test_driver_attaches_to_a_node_of_its_choice(nodes: Cluster) -> None:
    nodes.add_node()
    other = nodes.add_node()

    skate.init(other.session_dir)

    assert skate.get_runtime_context().get_node_id() == other.node_id


def test_foreign_node_and_unknown_argument_are_refused(nodes: Cluster) -> None:
    head = nodes.add_node()

    with pytest.raises(TypeError, match="num_cpus"):
        nodes.add_node(num_cpu=1)
    with pytest.raises(ValueError, match="no node of this cluster"):
        Cluster(shutdown_at_exit=False).remove_node(head)
    with pytest.raises(ValueError, match="initialize_head"):
        Cluster(connect=True)


def test_head_and_connection_can_be_asked_for_at_once(session_root: Path) -> None:
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 4})
    try:
        assert cluster.head_node is not None
        assert cluster.address == cluster.gcs_address == cluster.head_node.gcs_endpoint
        deadline_s = time.monotonic() + WAIT_S
        while skate.available_resources().get("CPU") != 4 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert skate.available_resources()["CPU"] == 4
    finally:
        cluster.shutdown()
