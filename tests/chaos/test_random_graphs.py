"""Random task graphs while workers and nodes are killed: every leaf as in a sequential run."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster
from tests.chaos import graphs
from tests.chaos.end_check import (
    SHUTDOWN_S,
    assert_ends,
    assert_idle,
    assert_settled,
    eventually,
    rest_of,
    stored,
)
from tests.chaos.killer import Killer
from tests.chaos.watched import Watched

NODES = 3
AT_ONCE = 4
BALLAST = 4 * (NODES + 1)
NODE_ARGS = {"num_cpus": 1, "object_store_memory": 80 << 20}  # little above the least
LONG = 50  # faults, from which on it is waited until idle connections are closed
PER_FAULT_S = 5.0  # how long a run may take for each fault

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]


@pytest.fixture
def chaos_cluster(session_root: Path) -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=NODE_ARGS)
    for _ in range(NODES):
        cluster.add_node(**NODE_ARGS)
    cluster.wait_for_nodes()
    yield cluster
    skate.shutdown()
    cluster.shutdown()


def check(seed: int, submitted: tuple[dict[int, Any], Any], watched: Watched) -> None:
    expected = graphs.run_in_sequence(seed, graphs.make_graph(seed))
    refs = submitted[0]  # the other one is only held
    for number in sorted(refs):
        (value,) = watched.get([refs[number]])
        digest = graphs.digest_of(value, watched.get)
        assert digest == expected[number], f"graph {seed}, step {number} is wrong"


def test_leaves_are_those_of_a_sequential_run(
    chaos_cluster: Cluster, faults: int, chaos_seed: int, new_work_s: float
) -> None:
    base = rest_of(chaos_cluster)
    print(
        f"\nseed {chaos_seed}; again: nox -s chaos -- -k leaves --chaos-seed {chaos_seed}"
        f" --faults {faults}"
    )
    rng = random.Random(chaos_seed)
    watched = Watched()
    running: list[tuple[int, tuple[dict[int, Any], Any]]] = []
    made = 0
    # Fills most of every store, so that the graphs' values make it spill.
    ballast = [graphs.ballast.remote(number) for number in range(BALLAST)]
    start_s = time.monotonic()
    with Killer(chaos_cluster, chaos_seed, NODE_ARGS) as killer:
        while killer.total() < faults and killer.error is None:
            assert time.monotonic() < start_s + 60 + PER_FAULT_S * faults, "too slow to go on"
            while len(running) < AT_ONCE:
                seed = rng.randrange(1 << 30)
                running.append((seed, graphs.submit(seed, graphs.make_graph(seed))))
                made += 1
            check(*running.pop(0), watched)
        while running:
            check(*running.pop(0), watched)
        for number, ref in enumerate(ballast):
            assert watched.get([ref]) == [graphs.ballast_of(number)], f"ballast {number} is wrong"
        del ballast, ref
    if killer.error is not None:
        raise killer.error
    print(
        f"{made} graphs, {watched.values} values compared, survived {dict(killer.faults)},"
        f" longest wait {watched.longest_s:.1f} s, {time.monotonic() - start_s:.0f} s"
    )
    gc.collect()
    assert_settled(chaos_cluster, base, new_work_s)
    if faults >= LONG:
        assert_idle(chaos_cluster, base)
    assert_ends(chaos_cluster, max(SHUTDOWN_S, new_work_s))


def test_end_check_sees_what_is_spilled(chaos_cluster: Cluster) -> None:
    refs = [skate.put(bytes(16 << 20)) for _ in range(8)]  # more than the head's store holds
    assert [found for found in stored() if isinstance(found, str)] != []
    del refs
    eventually("stores are empty", stored)
