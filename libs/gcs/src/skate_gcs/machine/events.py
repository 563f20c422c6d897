"""What the machines are told.

Requests come from outside and get exactly one ``Reply``; facts come from the runner and get none.
Facts and reports are named in the past tense, questions after what they ask for. Every request may
arrive twice: what makes the second harmless is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from skate_gcs.machine import answers
from skate_gcs.machine.records import (
    ActorSpec,
    Address,
    DeathCause,
    JobRecord,
    NodeRecord,
    WorkerRecord,
)

A_co = TypeVar("A_co", covariant=True)


class Request(Generic[A_co]):
    """Base of what is answered: with an ``A_co``, or with ``Refused``."""

    __slots__ = ()


class Query(Request[A_co]):
    """A request that changes nothing and so may be repeated freely."""

    __slots__ = ()


class Channel(StrEnum):
    """What can be subscribed to."""

    ACTOR = "actor"
    NODE = "node"
    JOB = "job"
    WORKER = "worker"


# ---- nodes ----


@dataclass(frozen=True, slots=True)
class NodeRegistered(Request[answers.NodeAccepted]):
    """A raylet came up, or announces itself again. Key: node_id. Refused for a dead node."""

    node: NodeRecord


@dataclass(frozen=True, slots=True)
class NodeUnregistered(Request[answers.Done]):
    """A raylet leaves on purpose. Key: node_id."""

    node_id: bytes
    cause: DeathCause


@dataclass(frozen=True, slots=True)
class ResourcesReported(Request[answers.Accepted]):
    """A raylet's heartbeat. Answered False when the node is fenced: it must exit. Key: version."""

    node_id: bytes
    version: int
    available: Mapping[str, int]
    total: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ListNodes(Query[answers.Nodes]):
    """All nodes."""


# ---- jobs ----


@dataclass(frozen=True, slots=True)
class JobAdded(Request[answers.JobAssigned]):
    """A driver came. ``job_id`` empty: a number is assigned. Key: the driver's worker_id."""

    job: JobRecord


@dataclass(frozen=True, slots=True)
class JobFinished(Request[answers.Done]):
    """A driver left. Key: job_id."""

    job_id: bytes
    cause: DeathCause


@dataclass(frozen=True, slots=True)
class ListJobs(Query[answers.Jobs]):
    """All jobs."""


# ---- actors ----


@dataclass(frozen=True, slots=True)
class ActorRegistered(Request[answers.ActorAssigned]):
    """Create an actor, or (named) find the one that holds the name. Key: actor_id."""

    spec: ActorSpec
    get_if_exists: bool


@dataclass(frozen=True, slots=True)
class ActorKilled(Request[answers.Accepted]):
    """The user's kill; answered whether the actor is known. Key: actor_id, with ``no_restart``.

    Without it, a second kill that arrives while the actor restarts changes nothing, but one that
    arrives after the restart kills again.
    """

    actor_id: bytes
    no_restart: bool
    cause: DeathCause | None


@dataclass(frozen=True, slots=True)
class ActorReleased(Request[answers.Done]):
    """No handle is left, and no caller waits for a call. Key: actor_id."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class ActorStarted(Request[answers.Accepted]):
    """A node's worker runs the actor. Answered False when that incarnation is stale: kill it.

    Key: actor_id and incarnation.
    """

    actor_id: bytes
    incarnation: int
    address: Address
    pid: int


@dataclass(frozen=True, slots=True)
class ActorFailed(Request[answers.Done]):
    """An incarnation's worker ended or could not start. Stale incarnations change nothing.

    Key: actor_id and incarnation.
    """

    actor_id: bytes
    incarnation: int
    cause: DeathCause
    creation_error: bytes


@dataclass(frozen=True, slots=True)
class GetActor(Query[answers.ActorFound]):
    """One actor by its id."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class GetNamedActor(Query[answers.ActorFound]):
    """The actor that holds a name."""

    name: str
    namespace: str


@dataclass(frozen=True, slots=True)
class ListActors(Query[answers.Actors]):
    """All actors."""


# ---- workers ----


@dataclass(frozen=True, slots=True)
class WorkerDied(Request[answers.Done]):
    """A process that may own objects and actors died. Key: worker_id."""

    worker: WorkerRecord


@dataclass(frozen=True, slots=True)
class ListDeadWorkers(Query[answers.Workers]):
    """The newest dead workers."""


# ---- key-value store ----


@dataclass(frozen=True, slots=True)
class KvPut(Request[answers.Accepted]):
    """Store a value; answered False if the key exists and ``overwrite`` is False. Key: key."""

    namespace: str
    key: bytes
    value: bytes
    overwrite: bool


@dataclass(frozen=True, slots=True)
class KvDelete(Request[answers.KvCount]):
    """Delete a key, or all keys with this prefix. Key: the key."""

    namespace: str
    key: bytes
    is_prefix: bool


@dataclass(frozen=True, slots=True)
class KvGet(Query[answers.KvValue]):
    """One value."""

    namespace: str
    key: bytes


@dataclass(frozen=True, slots=True)
class KvList(Query[answers.KvKeys]):
    """All keys with a prefix."""

    namespace: str
    prefix: bytes


# ---- subscriptions ----


@dataclass(frozen=True, slots=True)
class TakeSnapshot(Query[answers.Snapshot]):
    """The present rows of some channels, at this point of the stream of changes."""

    channels: tuple[Channel, ...]


# ---- facts from the runner ----


@dataclass(frozen=True, slots=True)
class StartAnswered:
    """A node took a start order (its outcome comes as a report), or refused it with a reason."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    refusal: str | None  # None: taken


@dataclass(frozen=True, slots=True)
class StartUnanswered:
    """The order may or may not have arrived."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    problem: str


@dataclass(frozen=True, slots=True)
class KillAnswered:
    """A node obeyed a kill order (or had nothing to kill), or did not answer."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    is_done: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Question = (
    ListNodes
    | ListJobs
    | GetActor
    | GetNamedActor
    | ListActors
    | ListDeadWorkers
    | KvGet
    | KvList
    | TakeSnapshot
)
Change = (
    NodeRegistered
    | NodeUnregistered
    | ResourcesReported
    | JobAdded
    | JobFinished
    | ActorRegistered
    | ActorKilled
    | ActorReleased
    | ActorStarted
    | ActorFailed
    | WorkerDied
    | KvPut
    | KvDelete
)
Fact = StartAnswered | StartUnanswered | KillAnswered | Tick
Event = Question | Change | Fact
