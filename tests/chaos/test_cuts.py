"""Lines between machines are cut, both ways and one way, while random task graphs run.

The machines are network namespaces; packets vanish and nobody is told, so only silence shows that
something is wrong. What is shorter than the deadlines loses nothing. Two nodes that can not reach
each other for long, but both their head, are both alive, and what needs the line between them ends
with the right value some other way, or when it is mended. A node that its head can not hear, or
that can not hear its head, is dead, is replaced, and ends when the line is mended.

Needs root; skipped elsewhere. RELIABILITY I1, I2, I7, I9, I10, I12, I22.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos import graphs
from tests.chaos.attempts import (
    Resident,
    attempt,
    read_everywhere,
    wait_until_begun,
    wait_until_dead,
)
from tests.chaos.cutter import Cutter, both_ways, cut
from tests.chaos.end_check import assert_ends, assert_settled, rest_of
from tests.chaos.machines import Machines, machines
from tests.chaos.watched import GET_S
from tests.chaos.workload import Workload, check_graph, without_calls
from tests.namespaces import Network, why_not

HOSTS = 4
NODE_ARGS = {"num_cpus": 1, "object_store_memory": 80 << 20}
FAULTS_PER_CUT = 6
FAULTS_PER_DEATH = 50
LONG_S = 14.0  # streams give a silent peer up after ten
DEATH_S = 30.0
FENCED_S = 30.0  # TCP tries a line that was cut for long again only after a while
GRAPHS_PER_CUT = 3

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]  # bounded by the number of cuts


@pytest.fixture
def apart(session_root: Path) -> Iterator[Machines]:
    """Four nodes on four hosts, this thread on the first."""
    if reason := why_not():
        pytest.skip(reason)
    with Network(HOSTS) as network, machines(network, HOSTS, NODE_ARGS) as made:
        yield made


def get(refs: list[Any]) -> list[Any]:
    found: list[Any] = skate.get(refs, timeout=GET_S)
    return found


def submit_graphs(rng: random.Random) -> list[tuple[int, list[graphs.Step], dict[int, Any]]]:
    """Without calls of actors: these may have to run again."""
    seeds = [rng.randrange(1 << 30) for _ in range(GRAPHS_PER_CUT)]
    return [
        (seed, steps, graphs.submit(seed, steps)[0])
        for seed in seeds
        for steps in [without_calls(graphs.make_graph(seed))]
    ]


@pytest.mark.invariant("I1", "I7", "I9", "I22")
def test_short_cuts_lose_nothing(
    apart: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(apart.cluster)
    cuts = max(1, faults // FAULTS_PER_CUT)
    print(f"\nagain: nox -s chaos -- -k short_cuts --chaos-seed {chaos_seed} --faults {faults}")
    work = Workload(chaos_seed, tmp_path, list(apart.hosts))
    start_s = time.monotonic()
    with Cutter(apart.network, HOSTS, chaos_seed, cuts) as cutter:
        work.run_while(cutter.is_at_work)
    cutter.assert_done()
    print(
        f"{work.graphs} graphs, {work.values} values compared, {dict(cutter.done)} cut for"
        f" {cutter.lasted_s:.0f} s in all, longest wait {work.longest_s:.1f} s,"
        f" {time.monotonic() - start_s:.0f} s"
    )
    assert {row["NodeID"]: row["Alive"] for row in skate.nodes()} == dict.fromkeys(
        apart.hosts, True
    )
    del work
    gc.collect()
    assert_settled(apart.cluster, base, new_work_s)
    assert_ends(apart.cluster)


@pytest.mark.invariant("I1", "I2")
@pytest.mark.parametrize("ways", ["one way", "both ways"])
def test_long_cut_between_two_nodes_that_both_live(
    apart: Machines, faults: int, chaos_seed: int, new_work_s: float, ways: str
) -> None:
    base = rest_of(apart.cluster)
    print(f"\nagain: nox -s chaos -- -k long_cut --chaos-seed {chaos_seed} --faults {faults}")
    rng = random.Random(chaos_seed)
    for _ in range(max(1, faults // FAULTS_PER_DEATH)):
        first, second = rng.sample(range(1, HOSTS), 2)
        lines = [(first, second)] if ways == "one way" else both_ways(first, second)
        before = submit_graphs(rng)
        with cut(apart.network, lines):
            start_s = time.monotonic()
            while time.monotonic() < start_s + LONG_S:
                for one in submit_graphs(rng):
                    check_graph(*one, get=get)
            during = submit_graphs(rng)
        for one in before + during:
            check_graph(*one, get=get)
        alive = {row["NodeID"]: row["Alive"] for row in skate.nodes()}
        assert alive == dict.fromkeys(apart.hosts, True)
        del before, during, one
    gc.collect()
    assert_settled(apart.cluster, base, new_work_s)
    assert_ends(apart.cluster)


@pytest.mark.invariant("I1", "I10", "I12", "I22")
@pytest.mark.parametrize("ways", ["to the head", "from the head"])
def test_node_cut_off_from_its_head_is_replaced_and_fenced(
    apart: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path, ways: str
) -> None:
    base = rest_of(apart.cluster)
    print(f"\nagain: nox -s chaos -- -k cut_off --chaos-seed {chaos_seed} --faults {faults}")
    rng = random.Random(chaos_seed)
    for number in range(max(1, faults // FAULTS_PER_DEATH)):
        folder = tmp_path / str(number)
        folder.mkdir()
        victim = rng.choice(apart.cluster.worker_nodes)
        host = apart.hosts[victim.node_id]
        there = NodeAffinitySchedulingStrategy(victim.node_id, soft=True)
        resident = Resident.options(scheduling_strategy=there).remote()
        assert get([resident.place.remote()]) == [victim.node_id]
        race = attempt.options(scheduling_strategy=there).remote(str(folder))
        wait_until_begun(folder, victim.node_id)
        running = submit_graphs(rng)
        with cut(apart.network, [(host, 0) if ways == "to the head" else (0, host)]):
            wait_until_dead(victim.node_id, DEATH_S)
            (home,) = get([resident.place.remote()])
            assert home != victim.node_id
            (folder / "go").touch()  # both attempts see it, and end
            (ended,) = get([race])
            assert ended != victim.node_id
            for one in running:
                check_graph(*one, get=get)
        assert victim.wait(FENCED_S) is not None, "a node that is held for dead must end"
        assert get([resident.place.remote()]) == [home]
        apart.replace(victim)
        assert read_everywhere(apart.cluster, race) == {ended}
        del resident, race, running, one
    gc.collect()
    assert_settled(apart.cluster, base, new_work_s)
    assert_ends(apart.cluster)
