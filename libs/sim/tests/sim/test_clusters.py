"""Whole clusters under faults, seed by seed: every promise kept, and every run repeatable.

The usual run tries ``SEEDS_USUAL`` seeds; ``nox -s sim -- --seeds 20000`` spreads more over all
CPUs. A failure prints the seed, the command that replays it, and what happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from skate_sim.runs import bound, explain, run_many, run_seed
from skate_sim.scenarios import NAMES

HERE = Path(__file__).parent
SEEDS_USUAL = range(200)
DIGESTS = [(seed, name) for name in NAMES for seed in range(2)]


def known_seeds() -> list[tuple[int, str]]:
    """The seeds that once failed."""
    lines = (HERE / "seeds.txt").read_text("utf-8").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(int(seed), name) for seed, name, *_ in words]


@pytest.mark.timeout(3600)
@pytest.mark.invariant("I1", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I14")
def test_clusters_under_faults_keep_every_promise(
    seeds: range | None, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = SEEDS_USUAL if seeds is None else seeds
    jobs = 1 if len(chosen) <= len(SEEDS_USUAL) else os.cpu_count() or 1
    failed = [result for result in run_many(chosen, jobs=jobs) if result.problem]
    if failed:
        first = run_seed(failed[0].seed, failed[0].scenario, trace=True)
        pytest.fail(f"{len(failed)} of {len(chosen)} seeds fail.\n\n{explain(first)}")
    if seeds is not None:
        with capsys.disabled():
            print(f"\n{len(chosen)} clusters, none failed: {bound(len(chosen))}")


@pytest.mark.parametrize(("seed", "name"), known_seeds())
def test_cluster_with_a_known_seed_keeps_every_promise(seed: int, name: str) -> None:
    result = run_seed(seed, name)
    assert not result.problem, explain(result)


@pytest.mark.parametrize("name", NAMES)
def test_scenario_makes_its_faults_happen(name: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(12):
        counts.update(run_seed(seed, name).counts)
    assert counts["successes"] > 20
    expected = {
        "tasks": ["workers killed", "leases on other nodes"],
        "actors": ["workers killed", "ActorDiedError"],
        "nodes": ["nodes crashed", "LocalRayletDiedError"],
        "network": ["cuts", "streams broken", "lines broken"],
        "gcs": ["gcs crashes"],
        "groups": ["groups ready", "groups removed", "starts in groups", "gcs crashes"],
        "everything": ["gcs crashes", "nodes crashed", "cuts", "workers killed"],
    }
    for what in expected.get(name, []):
        assert counts[what], what


def digests() -> list[str]:
    """The hashes of some runs."""
    return [run_seed(seed, name).digest for seed, name in DIGESTS]


def test_run_of_the_same_seed_repeats_event_for_event() -> None:
    first = digests()
    assert first == digests()
    assert len(set(first)) == len(DIGESTS)


def test_run_is_the_same_when_it_is_traced() -> None:
    plain, traced = run_seed(3, "everything"), run_seed(3, "everything", trace=True)
    assert plain.events == traced.events


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_run_does_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
        "from test_clusters import digests\n"
        "print(*digests())"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )
    assert run.stdout.split() == digests()
