"""What runs while faults are injected that kill nothing: graphs, tasks that may start once, calls.

Every value is compared. Tasks with ``max_retries=0`` write a line when they start, so a start too
many shows, and an actor that restarts never numbers its calls, so a call that is lost, repeated or
overtaken shows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import skate
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos import graphs
from tests.chaos.watched import Watched

GRAPHS_AT_ONCE = 3
TASKS_PER_ROUND = 8
CALLS_PER_ROUND = 5


@skate.remote(max_retries=0, scheduling_strategy="SPREAD")
def started_once(path: str, number: int) -> int:
    """Leaves a line; ``O_APPEND`` keeps lines of different processes whole."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number * number


@skate.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class Counter:
    """Says how many calls came before, and what they were."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def add(self, number: int) -> list[int]:
        self.seen.append(number)
        return self.seen[-3:]


class Workload(Watched):
    """Work for a cluster that loses no process. ``values`` counts what was compared."""

    def __init__(self, seed: int, folder: Path, node_ids: Iterable[str]) -> None:
        super().__init__()
        self.graphs = 0
        self._rng = random.Random(seed)
        self._path = folder / "starts"
        self._path.touch()
        self._running: list[tuple[int, list[graphs.Step], dict[int, Any], Any]] = []
        self._tasks = 0
        self._calls = 0
        places = [NodeAffinitySchedulingStrategy(one, soft=False) for one in node_ids]
        self._actors = [Counter.options(scheduling_strategy=place).remote() for place in places]

    def run_while(self, is_wanted: Callable[[], bool]) -> None:
        """Until then, and to the end of what is under way; raises with what is wrong."""
        while is_wanted():
            self.run_once()
        self.finish()

    def run_once(self) -> None:
        """One graph more is checked, and a round of tasks and calls."""
        while len(self._running) < GRAPHS_AT_ONCE:
            self._running.append(self._submit())
        numbers = range(self._tasks, self._tasks + TASKS_PER_ROUND)
        tasks = [started_once.remote(str(self._path), number) for number in numbers]
        self._tasks += TASKS_PER_ROUND
        first = self._calls
        self._calls += CALLS_PER_ROUND
        calls = [
            [actor.add.remote(number) for number in range(first, self._calls)]
            for actor in self._actors
        ]
        assert self.get(tasks) == [number * number for number in numbers]
        expected = [
            list(range(max(0, number - 2), number + 1)) for number in range(first, self._calls)
        ]
        for one in calls:
            assert self.get(one) == expected
        self._check(*self._running.pop(0))

    def finish(self) -> None:
        """Check what is left; every task has started once."""
        while self._running:
            self._check(*self._running.pop(0))
        starts = sorted(int(line) for line in self._path.read_text().splitlines())
        assert starts == list(range(self._tasks)), "tasks did not start once each"
        self._actors.clear()

    def _submit(self) -> tuple[int, list[graphs.Step], dict[int, Any], Any]:
        seed = self._rng.randrange(1 << 30)
        steps = graphs.make_graph(seed)
        refs, actor = graphs.submit(seed, steps)
        self.graphs += 1
        return seed, steps, refs, actor

    def _check(self, seed: int, steps: list[graphs.Step], refs: dict[int, Any], _: Any) -> None:
        check_graph(seed, steps, refs, self.get)


def check_graph(
    seed: int,
    steps: list[graphs.Step],
    refs: dict[int, Any],
    get: Callable[[list[Any]], list[Any]],
) -> None:
    """Compare what the cluster has for these steps with a sequential run."""
    expected = graphs.run_in_sequence(seed, steps)
    for number in sorted(refs):
        (value,) = get([refs[number]])
        digest = graphs.digest_of(value, get)
        assert digest == expected[number], f"graph {seed}, step {number} is wrong"


def without_calls(steps: list[graphs.Step]) -> list[graphs.Step]:
    """The same graph with tasks in place of calls of its actor."""
    return [replace(step, kind="nested") if step.kind == "call" else step for step in steps]


def is_alive(node_id: str) -> bool:
    """Whether the cluster holds this node for alive."""
    return any(row["Alive"] for row in skate.nodes() if row["NodeID"] == node_id)
