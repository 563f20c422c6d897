"""Running seeds: one with its verdict, many on all CPUs, and a failing one made smaller."""

from __future__ import annotations

import multiprocessing
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from skate_sim.oracle import Violation
from skate_sim.scenarios import Scenario, draw
from skate_sim.world import World

SEEDS_PER_JOB = 100
SHRINKS_MAX = 400
LEGEND = """\
n1 is a raylet, d1 a driver, w7 a worker, t3 a task, c5 a call, a0 an actor; a line is what one of
them does or hears, with the simulated second in front. Replay it with:"""


@dataclass(slots=True)
class Result:
    """What came of one seed. ``problem`` empty: every promise was kept."""

    seed: int
    scenario: str
    problem: str
    digest: str
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    actions: tuple[int, ...] = ()
    events: int = 0


def run_seed(
    seed: int, name: str = "", *, trace: bool = False, keep: frozenset[int] | None = None
) -> Result:
    """Run one seed's scenario. ``keep``: only these of its actions."""
    scenario = draw(seed, name)
    world = World(scenario, trace=trace, keep=keep)
    problem = ""
    try:
        world.run()
    except Violation as error:
        problem = str(error)
    except Exception as error:  # noqa: BLE001 - any error at all is a finding, with a seed to it
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{error!r} in {where.name} ({where.filename}:{where.lineno})"
    return Result(
        seed,
        scenario.name,
        problem,
        world.journal.digest(),
        world.journal.lines(),
        world.counts,
        tuple(
            action.number for action in scenario.actions if keep is None or action.number in keep
        ),
        world.journal.count,
    )


def run_many(seeds: range, name: str = "", *, jobs: int = 1) -> Iterator[Result]:
    """Run seeds, ``jobs`` at a time in processes of their own. Results in order, without lines."""
    parts = [seeds[at : at + SEEDS_PER_JOB] for at in range(0, len(seeds), SEEDS_PER_JOB)]
    if jobs == 1:
        for part in parts:
            yield from _run_part((part, name))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for results in pool.imap(_run_part, [(part, name) for part in parts]):
            yield from results


def _run_part(part: tuple[Iterable[int], str]) -> list[Result]:
    results = []
    for seed in part[0]:
        result = run_seed(seed, part[1])
        result.lines = []
        results.append(result)
    return results


def shrink(result: Result) -> Result:
    """The same failure with fewer actions, as far as leaving some out still fails.

    A failure of any kind counts: what is sought is something small to read. At most
    ``SHRINKS_MAX`` runs.
    """
    best = result
    size = max(1, len(best.actions) // 2)
    runs = 0
    while size and runs < SHRINKS_MAX:
        at = 0
        while at < len(best.actions) and runs < SHRINKS_MAX:
            keep = frozenset(best.actions[:at] + best.actions[at + size :])
            smaller = run_seed(result.seed, result.scenario, trace=True, keep=keep)
            runs += 1
            if smaller.problem:
                best = smaller
            else:
                at += size
        size //= 2
    return best


def explain(result: Result, *, lines_max: int = 120) -> str:
    """A failure for people: what is wrong, the last lines, and how to see it again."""
    command = f"python -m skate_sim run --seed {result.seed} --scenario {result.scenario} --trace"
    shown = result.lines[-lines_max:]
    head = f"seed {result.seed} ({result.scenario}): {result.problem or 'every promise was kept'}"
    return "\n".join([head, "", *shown, "", LEGEND, "", f"    {command}", ""])


def bound(count: int) -> str:
    """What so many seeds without a failure show (the rule of three)."""
    return f"with 95 % certainty fewer than one seed in {max(1, count // 3)} fails (3/n)"


__all__ = ["Result", "Scenario", "bound", "explain", "run_many", "run_seed", "shrink"]
