"""Bugs that are planted in the machines have to be noticed, or a clean run says nothing."""

from __future__ import annotations

import pytest
from planted import PLANTED

from skate_sim.runs import run_seed

SEEDS_MAX = 600  # most are noticed within five
# Planted with every change, to see that bugs are noticed at all; the others are `nox -s sim`'s.
PLANTED_USUALLY = {
    "broken_connection_keeps_its_lease",
    "second_phase_is_forgotten",
    "tasks_of_a_group_run_outside",
    "dead_task_without_retries_runs_again",
    "retried_calls_go_last",
    "restarted_actor_is_not_called_again",
    "returned_lease_keeps_its_resources",
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in PLANTED_USUALLY else [pytest.mark.planted])
        for name in PLANTED
    ],
)
def test_cluster_with_a_planted_bug_is_noticed(name: str) -> None:
    scenario, plant = PLANTED[name]
    with plant():
        found = any(run_seed(seed, scenario).problem for seed in range(SEEDS_MAX))
    assert found, plant.__doc__
