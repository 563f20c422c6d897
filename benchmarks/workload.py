"""What a workload is: its definition, what it needs of a peer, and the loop that is timed.

A workload is a generator function over a `Peer`: what comes before its one `yield` is set-up, the
`Loop` it yields is what the timer drives, and what comes after is clean-up. Workloads whose figure
is not a loop (start-up, shutdown, memory) yield a `Figures` instead.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.peers.peer import Peer
    from benchmarks.plan import Sizes


class Capability(enum.StrEnum):
    """Something a workload needs of a peer; a peer that lacks it says why in `Peer.lacks`."""

    CLUSTER = "start and stop a set of worker processes"
    SMALL_OBJECTS = "put and get of small values"
    LARGE_PUT = "put of large arrays"
    LARGE_GET = "get of large arrays"
    TASKS = "tasks"
    TASK_REFERENCES = "an object given to a task by reference"
    TASK_RETURNS = "a task with many return values"
    WAIT = "wait for the first of many results"
    NESTED = "tasks and actors that submit work"
    BORROWED = "references inside objects"
    ACTORS = "actors"
    ACTOR_PROCESSES = "a process for each actor"
    ACTOR_THREADS = "actors with several threads"
    ASYNC_ACTORS = "actors with coroutine methods"
    ACTOR_CLIENTS = "actors that call actors"
    PLACEMENT_GROUPS = "placement groups"


@dataclass(frozen=True, slots=True)
class Loop:
    """A timed loop: `run(n)` does the thing n times and returns when all of it is done.

    `operations` counted per repetition give the rate. With `is_single` every sample is one
    repetition, `after` is called untimed behind it, and no warm-up runs unless `is_warmed`.
    `patience` stretches warm-up, samples and budget: for loops whose repetitions differ much.
    """

    run: Callable[[int], None]
    operations: float = 1.0
    is_single: bool = False
    is_warmed: bool = True
    patience: float = 1.0
    after: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures that the workload itself measured, in the workload's unit, with remarks kept."""

    samples: list[float]
    details: dict[str, float] = field(default_factory=dict)


Body = Callable[["Peer", "Sizes"], Iterator[Loop | Figures]]


class Stage(enum.Enum):
    """Which part of a round measures a workload."""

    LIFECYCLE = "lifecycle"  # By the round itself, around its one cluster.
    SHARED = "shared"  # One after the other in the round's cluster.
    ISOLATED = "isolated"  # In a fresh process and a fresh cluster of its own.


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table.

    `unit` is what a sample counts; `is_rate` says that more is better (else less is better).
    `rounds_max`: how many rounds of a default run include it (None: all), for those that take long.
    `source` names whose definition it is.
    """

    id: str
    title: str
    unit: str
    definition: str
    source: str
    needs: frozenset[Capability]
    stage: Stage
    body: Body | None = None
    is_rate: bool = True
    rounds_max: int | None = None


class Registry:
    """The workloads in the order in which they run and are printed."""

    def __init__(self) -> None:
        self._workloads: dict[str, Workload] = {}

    def add(self, workload: Workload) -> None:
        """Add one. Raises ValueError when its id is taken."""
        if workload.id in self._workloads:
            raise ValueError(f"two workloads are called {workload.id!r}")
        self._workloads[workload.id] = workload

    def shared(
        self,
        workload_id: str,
        title: str,
        unit: str,
        definition: str,
        needs: set[Capability],
        *,
        source: str = "Skate",
        is_rate: bool = True,
        rounds_max: int | None = None,
        stage: Stage = Stage.SHARED,
    ) -> Callable[[Body], Body]:
        """Decorate a generator function as the body of a workload that needs a cluster."""

        def register(body: Body) -> Body:
            self.add(
                Workload(
                    id=workload_id,
                    title=title,
                    unit=unit,
                    definition=definition,
                    source=source,
                    needs=frozenset(needs),
                    stage=stage,
                    body=body,
                    is_rate=is_rate,
                    rounds_max=rounds_max,
                )
            )
            return body

        return register

    def __iter__(self) -> Iterator[Workload]:
        return iter(self._workloads.values())

    def __getitem__(self, workload_id: str) -> Workload:
        return self._workloads[workload_id]
