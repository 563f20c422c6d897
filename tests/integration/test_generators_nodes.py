"""Streams whose items go with a node, on real nodes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import skate
from skate.cluster_utils import Cluster

WAIT_S = 30.0
LARGE = 200_000

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster(session_root: Path) -> Iterator[Cluster]:
    """A head without the resource that the streams need, and a node that has it."""
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1, resources={"left": 1})
    cluster.wait_for_nodes()
    yield cluster
    skate.shutdown()
    cluster.shutdown()


@skate.remote(resources={"left": 1}, num_cpus=0)
def arrays(n: int, pause_after: int, path: str) -> Iterator[Any]:
    for number in range(n):
        yield np.full(LARGE if number % 2 == 0 else 1, number)
        while number == pause_after and not os.path.exists(path):
            time.sleep(0.01)


def first(values: Any) -> int:
    return int(values[0])


def replace_node(cluster: Cluster) -> None:
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1, resources={"left": 1})
    cluster.wait_for_nodes()


@pytest.mark.parametrize("bound", [-1, 2])
def test_items_of_a_stream_that_ended_are_made_again(cluster: Cluster, bound: int) -> None:
    generator = arrays.options(_generator_backpressure_num_objects=bound).remote(6, -1, "")
    refs = list(generator)
    del generator
    del refs[4]
    replace_node(cluster)
    got = [first(skate.get(ref, timeout=WAIT_S)) for ref in refs]
    assert got == [0, 1, 2, 3, 5]


def test_items_of_a_running_stream_are_made_again(cluster: Cluster, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    generator = arrays.remote(6, 3, str(go_on))
    refs = [next(generator) for _ in range(4)]
    replace_node(cluster)
    assert [first(skate.get(ref, timeout=WAIT_S)) for ref in refs] == [0, 1, 2, 3]
    go_on.touch()
    assert [first(skate.get(ref, timeout=WAIT_S)) for ref in generator] == [4, 5]


def test_items_of_a_stream_without_retries_fail_with_its_node(cluster: Cluster) -> None:
    refs = list(arrays.options(max_retries=0).remote(3, -1, ""))
    replace_node(cluster)
    assert first(skate.get(refs[1], timeout=WAIT_S)) == 1  # it was small
    with pytest.raises(skate.exceptions.ObjectReconstructionFailedError, match="max_retries is 0"):
        skate.get(refs[0], timeout=WAIT_S)


def test_static_and_dynamic_returns_are_made_again(cluster: Cluster) -> None:
    static: Any = arrays.options(num_returns=3).remote(9, -1, "")
    dynamic = skate.get(arrays.options(num_returns="dynamic").remote(3, -1, ""), timeout=WAIT_S)
    skate.wait(static, num_returns=3, timeout=WAIT_S, fetch_local=False)
    replace_node(cluster)
    assert [first(skate.get(ref, timeout=WAIT_S)) for ref in static] == [0, 1, 2]
    assert [first(skate.get(ref, timeout=WAIT_S)) for ref in dynamic] == [0, 1, 2]
