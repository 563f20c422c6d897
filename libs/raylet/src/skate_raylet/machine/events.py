"""What happened, as the node's machines learn it. Times come beside it, ids are raw bytes."""

from __future__ import annotations

from dataclasses import dataclass

from skate_scheduler import ResourceSet

EnvVars = tuple[tuple[str, str], ...]
"""Environment variables of a worker, sorted by name, so that equal environments are equal keys."""


@dataclass(frozen=True, slots=True)
class LeaseRequested:
    """A process asks for a worker. Repeating a known ``request_id`` changes nothing."""

    holder_id: bytes
    request_id: int
    job_id: bytes
    resources: ResourceSet
    env_vars: EnvVars = ()
    backlog: int = 0  # tasks that wait behind this request


@dataclass(frozen=True, slots=True)
class LeaseRequestCancelled:
    """A process no longer wants a request; if it was granted meanwhile, it returns the lease."""

    holder_id: bytes
    request_id: int


@dataclass(frozen=True, slots=True)
class LeaseReturned:
    """A holder gave its lease back. ``discard``: the worker must not be used again."""

    holder_id: bytes
    lease_id: bytes
    discard: bool = False


@dataclass(frozen=True, slots=True)
class ActorRequested:
    """The GCS wants this life of an actor here. Repeating it changes nothing."""

    actor_id: bytes
    incarnation: int
    job_id: bytes
    placement: ResourceSet  # the node must be large enough for it
    running: ResourceSet  # held while the actor lives
    env_vars: EnvVars = ()


@dataclass(frozen=True, slots=True)
class ActorEnded:
    """This life of the actor is over or not wanted: whatever it has here is to go."""

    actor_id: bytes
    incarnation: int
    kind: str  # cause, as in ``Death.kind``
    message: str
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerBlocked:
    """The worker waits for values: its CPUs may be lent."""

    worker_id: bytes


@dataclass(frozen=True, slots=True)
class WorkerUnblocked:
    """The worker runs again, with its CPUs."""

    worker_id: bytes


@dataclass(frozen=True, slots=True)
class WorkerRegistered:
    """A started process introduced itself."""

    startup_id: int
    worker_id: bytes


@dataclass(frozen=True, slots=True)
class WorkerStartFailed:
    """A start came to nothing: no fork, or the process ended before it registered."""

    startup_id: int
    message: str  # for people, with the end of the log
    is_transient: bool  # worth another try


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """A registered worker's process ended, for whatever reason."""

    startup_id: int
    worker_id: bytes


@dataclass(frozen=True, slots=True)
class WorkerRetiring:
    """A worker said that it will end by itself; it must not be handed out again."""

    startup_id: int


@dataclass(frozen=True, slots=True)
class WorkerUnfit:
    """A worker must end: killed by its lease's holder, or it no longer speaks to the node."""

    startup_id: int
    kind: str
    message: str
    grace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class HolderGone:
    """A process that held leases ended or hung up."""

    holder_id: bytes


@dataclass(frozen=True, slots=True)
class JobFinished:
    """A job is over: its workers go as soon as nobody uses them.

    Its actors are ended by the GCS, which knows which of them outlive it.
    """

    job_id: bytes


@dataclass(frozen=True, slots=True)
class TimePassed:
    """``next_wakeup`` came."""


@dataclass(frozen=True, slots=True)
class WorkerHanded:
    """From the pool to the leases: here is the worker for this lease."""

    lease_id: bytes
    startup_id: int
    worker_id: bytes


@dataclass(frozen=True, slots=True)
class WorkerRefused:
    """From the pool to the leases: there will be no worker for this lease."""

    lease_id: bytes
    kind: str  # as in ``LeaseRefused.kind``
    message: str


NodeEvent = (
    LeaseRequested
    | LeaseRequestCancelled
    | LeaseReturned
    | ActorRequested
    | ActorEnded
    | WorkerBlocked
    | WorkerUnblocked
    | WorkerRegistered
    | WorkerStartFailed
    | WorkerGone
    | WorkerRetiring
    | WorkerUnfit
    | HolderGone
    | JobFinished
    | TimePassed
)
"""What the shell tells :class:`~skate_raylet.machine.node_machine.NodeMachine`."""

LeaseEvent = (
    LeaseRequested
    | LeaseRequestCancelled
    | LeaseReturned
    | ActorRequested
    | ActorEnded
    | WorkerBlocked
    | WorkerUnblocked
    | WorkerGone
    | HolderGone
    | JobFinished
    | TimePassed
    | WorkerHanded
    | WorkerRefused
)
