"""What the machines want done.

The runner carries commands out in their order, with one exception: every :class:`Persist` of a
batch is committed, in one transaction, before anything else of that batch happens. So nobody,
neither a caller nor a subscriber nor a node, learns of a change that a crash could undo.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from skate_gcs.machine.answers import Answer
from skate_gcs.machine.records import ActorSpec, Announced, BundleRef, DeathCause, Row


class Table(StrEnum):
    """Names of the stored tables."""

    NODES = "nodes"
    JOBS = "jobs"
    ACTOR_SPECS = "actor_specs"
    ACTORS = "actors"
    WORKERS = "workers"
    KILLS = "kills"
    KV = "kv"
    PLACEMENT_GROUPS = "placement_groups"
    COUNTERS = "counters"
    META = "meta"  # the runner's own: the cluster's id


class Persist(msgspec.Struct, frozen=True):
    """Store a row, or delete it (``row`` None); durable before any other command of the batch.

    ``is_lazy``: losing it is harmless (a cache is cut, an obligation would be fulfilled twice), so
    it may wait for the next commit that is needed anyway. No event answers it.
    """

    table: Table
    key: bytes
    row: Row | None
    is_lazy: bool = False


class Publish(msgspec.Struct, frozen=True):
    """Send the row to its channel's subscribers, in the order of commands. Not answered."""

    record: Announced


class Reply(msgspec.Struct, frozen=True):
    """Answer the request that is being handled. Exactly one for each request."""

    answer: Answer


class StartActorOnNode(msgspec.Struct, frozen=True):
    """Ask a node to start an incarnation. The choice of the node must be durable before.

    Answered by ``StartAnswered``, or ``StartUnanswered`` when it is unknown whether it arrived.
    """

    node_id: bytes
    endpoint: str
    spec: ActorSpec
    incarnation: int


class KillActorOnNode(msgspec.Struct, frozen=True):
    """Tell a node to end an incarnation. Answered by ``KillAnswered``."""

    node_id: bytes
    endpoint: str
    actor_id: bytes
    incarnation: int
    cause: DeathCause


class PrepareBundlesOnNode(msgspec.Struct, frozen=True):
    """Ask a node to set bundles aside. The attempt must be durable before.

    ``commits``: no other node takes part, so what it sets aside is open at once. Answered by
    ``BundlesPrepared``.
    """

    node_id: bytes
    endpoint: str
    group_id: bytes
    attempt: int
    bundles: dict[int, dict[str, int]]  # by index
    commits: bool


class CommitBundlesOnNode(msgspec.Struct, frozen=True):
    """Tell a node that its bundles hold. The decision must be durable before.

    Answered by ``BundlesCommitted``.
    """

    node_id: bytes
    endpoint: str
    ref: BundleRef


class ReturnBundlesOnNode(msgspec.Struct, frozen=True):
    """Have a node give bundles back. That they are not wanted must be durable before.

    Not answered: as long as the node reports that it holds them it is told again.
    """

    node_id: bytes
    endpoint: str
    ref: BundleRef


class ProbeNode(msgspec.Struct, frozen=True):
    """See whether anything listens at a node's endpoint. Answered by ``NodeProbed``."""

    node_id: bytes
    endpoint: str


class ForgetNode(msgspec.Struct, frozen=True):
    """The node is dead: drop the connection to it. Not answered; open calls end unanswered."""

    node_id: bytes


BundleOrder = PrepareBundlesOnNode | CommitBundlesOnNode | ReturnBundlesOnNode
Command = (
    Persist
    | Publish
    | Reply
    | StartActorOnNode
    | KillActorOnNode
    | BundleOrder
    | ProbeNode
    | ForgetNode
)
