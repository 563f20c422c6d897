"""What the machines are told.

Requests come from outside and get exactly one ``Reply``; facts come from the runner and get none.
Facts and reports are named in the past tense, questions after what they ask for. Every request may
arrive twice: what makes the second harmless is said beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from skate_gcs.machine import answers
from skate_gcs.machine.demand import Demand
from skate_gcs.machine.records import (
    ActorSpec,
    Address,
    BundleRef,
    DeathCause,
    DrainRecord,
    JobRecord,
    NodeRecord,
    PlacementGroupSpec,
    WorkerRecord,
)

A_co = TypeVar("A_co", covariant=True)


class Request(msgspec.Struct, Generic[A_co], frozen=True):
    """Base of what is answered: with an ``A_co``, or with ``Refused``."""


class Query(Request[A_co], frozen=True):
    """A request that changes nothing and so may be repeated freely."""


class Channel(StrEnum):
    """What can be subscribed to."""

    ACTOR = "actor"
    NODE = "node"
    JOB = "job"
    WORKER = "worker"
    PLACEMENT_GROUP = "placement_group"


# ---- nodes ----


class NodeRegistered(Request[answers.NodeAccepted], frozen=True):
    """A raylet came up, or announces itself again. Key: node_id. Refused for a dead node."""

    node: NodeRecord


class NodeUnregistered(Request[answers.Done], frozen=True):
    """A raylet leaves on purpose. Key: node_id."""

    node_id: bytes
    cause: DeathCause


class ResourcesReported(Request[answers.Reported], frozen=True):
    """A raylet's heartbeat. Answered False when the node is fenced: it must exit. Key: version.

    ``bundles``: all that it holds, or None when this report does not say.
    """

    node_id: bytes
    version: int
    available: Mapping[str, int]
    total: Mapping[str, int]
    bundles: tuple[BundleRef, ...] | None = None
    drain: DrainRecord | None = None  # as the node knows it
    demands: tuple[Demand, ...] | None = None  # all that waits there, or None: as reported before
    demands_left_out: int = 0  # shapes that wait there and are not among them


class NodeDrained(Request[answers.Accepted], frozen=True):
    """A node has agreed to leave. Answered False when it is dead or unknown. Key: node_id."""

    node_id: bytes
    drain: DrainRecord


class ListNodes(Query[answers.Nodes], frozen=True):
    """All nodes."""


class ListDemands(Query[answers.Demands], frozen=True):
    """What waits for room, by shape."""


# ---- jobs ----


class JobAdded(Request[answers.JobAssigned], frozen=True):
    """A driver came. ``job_id`` empty: a number is assigned. Key: the driver's worker_id."""

    job: JobRecord


class JobFinished(Request[answers.Done], frozen=True):
    """A driver left. Key: job_id."""

    job_id: bytes
    cause: DeathCause


class ListJobs(Query[answers.Jobs], frozen=True):
    """All jobs."""


# ---- actors ----


class ActorRegistered(Request[answers.ActorAssigned], frozen=True):
    """Create an actor, or (named) find the one that holds the name. Key: actor_id."""

    spec: ActorSpec
    get_if_exists: bool


class ActorKilled(Request[answers.Accepted], frozen=True):
    """The user's kill; answered whether the actor is known. Key: actor_id, with ``no_restart``.

    Without it, a second kill that arrives while the actor restarts changes nothing, but one that
    arrives after the restart kills again.
    """

    actor_id: bytes
    no_restart: bool
    cause: DeathCause | None


class ActorReleased(Request[answers.Done], frozen=True):
    """No handle is left, and no caller waits for a call. Key: actor_id."""

    actor_id: bytes


class ActorStarted(Request[answers.Accepted], frozen=True):
    """A node's worker runs the actor. Answered False when that incarnation is stale: kill it.

    Key: actor_id and incarnation.
    """

    actor_id: bytes
    incarnation: int
    address: Address
    pid: int


class ActorFailed(Request[answers.Done], frozen=True):
    """An incarnation's worker ended or could not start. Stale incarnations change nothing.

    Key: actor_id and incarnation.
    """

    actor_id: bytes
    incarnation: int
    cause: DeathCause
    creation_error: bytes


class GetActor(Query[answers.ActorFound], frozen=True):
    """One actor by its id."""

    actor_id: bytes


class GetNamedActor(Query[answers.ActorFound], frozen=True):
    """The actor that holds a name."""

    name: str
    namespace: str


class ListActors(Query[answers.Actors], frozen=True):
    """All actors."""


# ---- placement groups ----


class GroupCreated(Request[answers.GroupRegistered], frozen=True):
    """Create a placement group; answered before it is placed. Key: group_id."""

    spec: PlacementGroupSpec


class GroupRemoved(Request[answers.Done], frozen=True):
    """The user's removal; unknown ones are nothing to remove. Key: group_id."""

    group_id: bytes
    reason: str


class GetGroup(Query[answers.GroupFound], frozen=True):
    """One placement group by its id."""

    group_id: bytes


class GetNamedGroup(Query[answers.GroupFound], frozen=True):
    """The placement group that holds a name."""

    name: str
    namespace: str


class ListGroups(Query[answers.Groups], frozen=True):
    """All placement groups."""


# ---- workers ----


class WorkerDied(Request[answers.Done], frozen=True):
    """A process that may own objects and actors died. Key: worker_id."""

    worker: WorkerRecord


class ListDeadWorkers(Query[answers.Workers], frozen=True):
    """The newest dead workers."""


# ---- key-value store ----


class KvPut(Request[answers.Accepted], frozen=True):
    """Store a value; answered False if the key exists and ``overwrite`` is False. Key: key."""

    namespace: str
    key: bytes
    value: bytes
    overwrite: bool


class KvDelete(Request[answers.KvCount], frozen=True):
    """Delete a key, or all keys with this prefix. Key: the key."""

    namespace: str
    key: bytes
    is_prefix: bool


class KvGet(Query[answers.KvValue], frozen=True):
    """One value."""

    namespace: str
    key: bytes


class KvList(Query[answers.KvKeys], frozen=True):
    """All keys with a prefix."""

    namespace: str
    prefix: bytes


# ---- subscriptions ----


class TakeSnapshot(Query[answers.Snapshot], frozen=True):
    """The present rows of some channels, at this point of the stream of changes."""

    channels: tuple[Channel, ...]


# ---- facts from the runner ----


class StartAnswered(msgspec.Struct, frozen=True):
    """A node took a start order (its outcome comes as a report), or refused it with a reason."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    refusal: str | None  # None: taken


class StartUnanswered(msgspec.Struct, frozen=True):
    """The order may or may not have arrived."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    problem: str


class KillAnswered(msgspec.Struct, frozen=True):
    """A node obeyed a kill order (or had nothing to kill), or did not answer."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    is_done: bool


class BundlesPrepared(msgspec.Struct, frozen=True):
    """A node set bundles aside (``problem`` empty), refused, or did not answer."""

    node_id: bytes
    group_id: bytes
    attempt: int
    problem: str = ""


class BundlesCommitted(msgspec.Struct, frozen=True):
    """A node knows that its bundles hold; ``is_lost``: it does not hold them (any more).

    Neither: it did not answer.
    """

    node_id: bytes
    group_id: bytes
    attempt: int
    is_done: bool
    is_lost: bool = False


class NodeProbed(msgspec.Struct, frozen=True):
    """Whether a node's endpoint refuses connections: its process is gone."""

    node_id: bytes
    endpoint: str
    is_refused: bool


class SubscriberLeft(msgspec.Struct, frozen=True):
    """A node's subscription ended, by whatever cause."""

    node_id: bytes


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Question = (
    ListNodes
    | ListDemands
    | ListJobs
    | GetActor
    | GetNamedActor
    | ListActors
    | GetGroup
    | GetNamedGroup
    | ListGroups
    | ListDeadWorkers
    | KvGet
    | KvList
    | TakeSnapshot
)
Change = (
    NodeRegistered
    | NodeUnregistered
    | ResourcesReported
    | NodeDrained
    | JobAdded
    | JobFinished
    | ActorRegistered
    | ActorKilled
    | ActorReleased
    | ActorStarted
    | ActorFailed
    | GroupCreated
    | GroupRemoved
    | WorkerDied
    | KvPut
    | KvDelete
)
Fact = (
    StartAnswered
    | StartUnanswered
    | KillAnswered
    | BundlesPrepared
    | BundlesCommitted
    | NodeProbed
    | SubscriberLeft
    | Tick
)
Event = Question | Change | Fact
