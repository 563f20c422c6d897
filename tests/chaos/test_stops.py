"""Processes that are stopped (SIGSTOP) and go on while random task graphs run.

One that is stopped for less than the deadline of health was only slow: nothing is lost, nothing
runs twice, nobody is held for dead. A node that is stopped for longer is dead, its work is done
elsewhere, and when it goes on it is fenced and ends. RELIABILITY I1, I7, I9, I10, I12, I22.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skate
from skate.cluster_utils import Cluster
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos import graphs
from tests.chaos.attempts import (
    Resident,
    attempt,
    read_everywhere,
    wait_until_begun,
    wait_until_dead,
)
from tests.chaos.end_check import assert_ends, assert_settled, rest_of
from tests.chaos.killer import processes
from tests.chaos.stopper import Stopper, stopped
from tests.chaos.watched import GET_S
from tests.chaos.workload import Workload, check_graph, without_calls
from tests.process_tree import gcs_of

NODES = 3
NODE_ARGS = {"num_cpus": 1, "object_store_memory": 80 << 20}
FAULTS_PER_STOP = 5  # a stop takes that much longer than a kill
FAULTS_PER_DEATH = 50
DEATH_S = 30.0  # ten of silence, more on a machine that has other things to do
FENCED_S = 15.0
GRAPHS_PER_DEATH = 3

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]  # bounded by the number of stops


@pytest.fixture
def nodes(session_root: Path) -> Iterator[Cluster]:
    """A cluster whose GCS is a process of its own, so that it can be stopped alone."""
    storage = f"sqlite:{session_root}/gcs.sqlite"
    head_args = {**NODE_ARGS, "storage": storage}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=head_args)
    for _ in range(NODES):
        cluster.add_node(**NODE_ARGS)
    cluster.wait_for_nodes()
    yield cluster
    skate.shutdown()
    cluster.shutdown()


@pytest.mark.invariant("I7", "I9", "I22")
def test_stops_below_the_deadline_lose_nothing(
    nodes: Cluster, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(nodes)
    stops = max(1, faults // FAULTS_PER_STOP)
    print(f"\nagain: nox -s chaos -- -k below --chaos-seed {chaos_seed} --faults {faults}")
    head = nodes.head_node
    assert head is not None
    gcs = gcs_of(head.pid)
    node_ids = [node.node_id for node in nodes.list_all_nodes()]
    work = Workload(chaos_seed, tmp_path, node_ids)
    start_s = time.monotonic()
    with Stopper(nodes, chaos_seed, stops) as stopper:
        work.run_while(stopper.is_at_work)
    stopper.assert_done()
    print(
        f"{work.graphs} graphs, {work.values} values compared, {dict(stopper.done)} stopped for"
        f" {stopper.lasted_s:.0f} s in all, longest wait {work.longest_s:.1f} s,"
        f" {time.monotonic() - start_s:.0f} s"
    )
    assert {row["NodeID"]: row["Alive"] for row in skate.nodes()} == dict.fromkeys(node_ids, True)
    assert gcs_of(head.pid) == gcs
    del work
    gc.collect()
    assert_settled(nodes, base, new_work_s)
    assert_ends(nodes)


@pytest.mark.invariant("I1", "I10", "I12", "I22")
def test_node_stopped_past_its_death_is_replaced_and_fenced(
    nodes: Cluster, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(nodes)
    print(f"\nagain: nox -s chaos -- -k fenced --chaos-seed {chaos_seed} --faults {faults}")
    rng = random.Random(chaos_seed)
    for number in range(max(1, faults // FAULTS_PER_DEATH)):
        folder = tmp_path / str(number)
        folder.mkdir()
        victim = rng.choice(nodes.worker_nodes)
        there = NodeAffinitySchedulingStrategy(victim.node_id, soft=True)
        resident = Resident.options(scheduling_strategy=there).remote()
        assert skate.get(resident.place.remote(), timeout=GET_S) == victim.node_id
        race = attempt.options(scheduling_strategy=there).remote(str(folder))
        wait_until_begun(folder, victim.node_id)
        seeds = [rng.randrange(1 << 30) for _ in range(GRAPHS_PER_DEATH)]
        running = [
            (seed, steps, graphs.submit(seed, steps)[0])
            for seed in seeds
            for steps in [without_calls(graphs.make_graph(seed))]
        ]
        with stopped(processes([victim.session_dir])[victim.session_dir]):
            wait_until_dead(victim.node_id, DEATH_S)
            home = skate.get(resident.place.remote(), timeout=GET_S)
            assert home != victim.node_id
            (folder / "go").touch()
            ended = skate.get(race, timeout=GET_S)
            assert ended != victim.node_id
            for one in running:
                check_graph(*one, get=lambda refs: skate.get(refs, timeout=GET_S))
        assert victim.wait(FENCED_S) is not None, "a node that is held for dead must end"
        assert skate.get(resident.place.remote(), timeout=GET_S) == home
        nodes.remove_node(victim)
        nodes.add_node(**NODE_ARGS)
        assert read_everywhere(nodes, race) == {ended}
        del resident, race, running, one
    gc.collect()
    assert_settled(nodes, base, new_work_s)
    assert_ends(nodes)
