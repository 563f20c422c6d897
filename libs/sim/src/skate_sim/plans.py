"""What simulated programs do: tasks and actors whose fate is decided beforehand.

A plan says how long a task runs, how many of its first attempts die or raise, and what it submits
itself. So what should come of it is known without asking the machines.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from skate_worker.specs import Strategy


@dataclass(slots=True)
class Plan:
    """One task, call, or constructor. Times in seconds."""

    name: str
    task_id: bytes
    duration_s: float
    max_retries: int = 0
    deaths: int = 0  # so many first attempts kill their worker
    raises: int = 0  # and so many after these raise
    retries_errors: bool = False
    exits: bool = False  # ends its worker on purpose instead of returning
    cpus: float = 1.0
    resources: dict[str, float] = field(default_factory=dict)  # beside CPUs
    strategy: Strategy | None = None
    children: list[Plan] = field(default_factory=list)
    caller: str = ""
    sequence: int = 0  # of a call, within its caller and actor
    actor_id: bytes = b""
    is_settled: bool = False
    resolves_s: float = 0.0  # of a call: so long its arguments are not there
    group_id: bytes = b""  # inside this placement group


@dataclass(slots=True)
class ActorPlan:
    """One actor. ``deaths``: so many first constructors kill their worker."""

    name: str
    actor_id: bytes
    duration_s: float
    max_restarts: int = 0
    deaths: int = 0
    raises: bool = False
    is_detached: bool = False
    placement: dict[str, float] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)
    strategy: Strategy | None = None
    max_task_retries: int = 0
    kills: int = 0  # orders by the user
    is_released: bool = False
    is_doomed: bool = False  # it could not be registered
    is_registered: bool = False  # so that others than its creator may have its handle
    creator: str = ""
    group_id: bytes = b""  # inside this placement group


@dataclass(slots=True)
class GroupPlan:
    """One placement group. Amounts of bundles by name."""

    name: str
    group_id: bytes
    strategy: str
    bundles: tuple[dict[str, float], ...]
    is_detached: bool = False
    creator: str = ""
    job_id: bytes = b""
    is_known: bool = False  # the GCS acknowledged it
    is_removed: bool = False  # by the user, or with its job: what is inside may fail
    holds: bool = False  # an actor holds CPUs of it for as long as it lives
