"""The timer: warm up, choose how many repetitions fill a sample, take samples within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.plan import Plan
from benchmarks.workload import Loop

GROWTH_MAX = 8  # A warm-up run is at most this many times longer than the one before.


def measure(loop: Loop, plan: Plan, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Samples of a loop in operations per second, in the order in which they were taken.

    Takes about `plan.warm_up_s` x 2 plus `plan.samples_max` x `plan.sample_s`, or `plan.budget_s`
    when one repetition is longer than a sample; each of them times the loop's patience.
    """
    started_s = clock()
    warm_up_s, sample_s = plan.warm_up_s * loop.patience, plan.sample_s * loop.patience
    repetitions = _warm_up(loop, warm_up_s, sample_s, clock) if loop.is_warmed else 1
    samples: list[float] = []
    while True:
        elapsed_s = _time(loop, repetitions, clock)
        samples.append(repetitions * loop.operations / elapsed_s)
        if len(samples) >= plan.samples_max or clock() - started_s >= plan.budget_s * loop.patience:
            return samples


def _warm_up(loop: Loop, warm_up_s: float, sample_s: float, clock: Callable[[], float]) -> int:
    """Run until a run has lasted `warm_up_s`; the repetitions that fill a sample."""
    repetitions = 1
    while True:
        elapsed_s = _time(loop, repetitions, clock)
        if loop.is_single:
            return 1
        if elapsed_s >= warm_up_s:
            return max(1, round(repetitions * sample_s / elapsed_s))
        wanted = repetitions * warm_up_s / elapsed_s * 1.2
        repetitions = min(repetitions * GROWTH_MAX, max(repetitions + 1, round(wanted)))


def _time(loop: Loop, repetitions: int, clock: Callable[[], float]) -> float:
    start_s = clock()
    loop.run(repetitions)
    elapsed_s = clock() - start_s
    if loop.after is not None:
        loop.after()
    # A clock that did not advance must not divide by zero; no real loop is that short.
    return max(elapsed_s, 1e-9)
