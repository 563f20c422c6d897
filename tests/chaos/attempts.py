"""Attempts of one task that race, an actor that moves, and what all nodes see of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import skate
from skate.cluster_utils import Cluster
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos.watched import GET_S
from tests.chaos.workload import is_alive

BEGIN_S = 30.0


@skate.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Resident:
    def place(self) -> str:
        node_id: str = skate.get_runtime_context().get_node_id()
        return node_id


@skate.remote(num_cpus=0, max_retries=-1)
def attempt(folder: str) -> str:
    """Another value on every node; each attempt says that it runs and waits for leave to end."""
    node_id: str = skate.get_runtime_context().get_node_id()
    Path(folder, node_id).touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return node_id


@skate.remote(num_cpus=0)
def read(refs: list[Any]) -> str:
    value: str = skate.get(refs[0])
    return value


def read_everywhere(nodes: Cluster, ref: Any) -> set[str]:
    """What readers on every node and the owner find."""
    places = [
        NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes.list_all_nodes()
    ]
    reads = [read.options(scheduling_strategy=place).remote([ref]) for place in places]
    return {skate.get(ref, timeout=GET_S), *skate.get(reads, timeout=GET_S)}


def wait_until_begun(folder: Path, node_id: str) -> None:
    """Wait for an attempt on this node."""
    deadline_s = time.monotonic() + BEGIN_S
    while not (folder / node_id).exists():
        assert time.monotonic() < deadline_s, f"no attempt begins on node {node_id}"
        time.sleep(0.01)


def wait_until_dead(node_id: str, within_s: float) -> None:
    """Wait until the cluster holds a silent node for dead."""
    deadline_s = time.monotonic() + within_s
    while is_alive(node_id):
        assert time.monotonic() < deadline_s, f"node {node_id} is silent and not dead"
        time.sleep(0.05)
