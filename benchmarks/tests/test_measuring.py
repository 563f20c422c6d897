"""The timer, driven by a clock that only the timed loop moves."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.measuring import measure
from benchmarks.plan import default_plan
from benchmarks.workload import Loop

PLAN = dataclasses.replace(
    default_plan(2), warm_up_s=0.3, sample_s=0.5, samples_max=3, budget_s=4.0
)


class FakeTime:
    """A clock that a loop moves by `cost_s` for each repetition."""

    def __init__(self, cost_s: float) -> None:
        self.now_s = 0.0
        self.runs: list[int] = []
        self._cost_s = cost_s

    def clock(self) -> float:
        return self.now_s

    def run(self, count: int) -> None:
        self.runs.append(count)
        self.now_s += count * self._cost_s


def test_measure_steady_loop_gives_its_rate_times_operations() -> None:
    time = FakeTime(cost_s=0.001)
    samples = measure(Loop(time.run, operations=10), PLAN, time.clock)
    assert samples == pytest.approx([10_000.0] * 3)


def test_measure_fast_loop_fills_each_sample() -> None:
    time = FakeTime(cost_s=1e-6)
    measure(Loop(time.run), PLAN, time.clock)
    assert time.runs[-3:] == pytest.approx([500_000] * 3, rel=0.01)


def test_measure_warm_up_stays_near_its_length() -> None:
    time = FakeTime(cost_s=1e-6)
    measure(Loop(time.run), PLAN, time.clock)
    assert sum(time.runs[:-3]) * 1e-6 < 3 * PLAN.warm_up_s


def test_measure_patient_loop_has_longer_samples() -> None:
    time = FakeTime(cost_s=0.001)
    measure(Loop(time.run, patience=4.0), PLAN, time.clock)
    assert time.runs[-3:] == pytest.approx([2000] * 3, rel=0.01)


def test_measure_loop_longer_than_budget_gives_one_sample_after_warm_up() -> None:
    time = FakeTime(cost_s=5.0)
    samples = measure(Loop(time.run), PLAN, time.clock)
    assert samples == pytest.approx([0.2])
    assert time.runs == [1, 1]


def test_measure_single_unwarmed_loop_runs_once_per_sample_and_cleans_up_untimed() -> None:
    time = FakeTime(cost_s=0.1)
    cleaned: list[int] = []

    def after() -> None:
        cleaned.append(1)
        time.now_s += 1.0

    loop = Loop(time.run, operations=8, is_single=True, is_warmed=False, after=after)
    assert measure(loop, PLAN, time.clock) == pytest.approx([80.0] * 3)
    assert time.runs == [1, 1, 1]
    assert len(cleaned) == 3


def test_measure_loop_that_moves_no_clock_gives_finite_samples() -> None:
    loop = Loop(lambda _count: None, is_single=True, is_warmed=False)
    assert measure(loop, PLAN, iter(range(100)).__next__)


def test_measure_error_of_the_loop_reaches_the_caller() -> None:
    def run(_count: int) -> None:
        raise ConnectionError("lost")

    with pytest.raises(ConnectionError, match="lost"):
        measure(Loop(run), PLAN)
