"""What a request is answered with."""

from __future__ import annotations

from enum import Enum

import msgspec

from skate_gcs.machine.demand import Demand, GroupDemand
from skate_gcs.machine.records import (
    ActorRecord,
    Announced,
    BundleRef,
    JobRecord,
    NodeRecord,
    PlacementGroupRecord,
    WorkerRecord,
)


class RefusalKind(Enum):
    """Whose fault a refusal is."""

    INVALID = "invalid"  # the request makes no sense
    FENCED = "fenced"  # the caller's node is dead to this cluster


class Refused(msgspec.Struct, frozen=True):
    """The request was not carried out, and nothing changed."""

    kind: RefusalKind
    message: str


class Done(msgspec.Struct, frozen=True):
    """Carried out, or already so."""


class Accepted(msgspec.Struct, frozen=True):
    """Yes or no; what that means is said at the request."""

    value: bool


class Reported(msgspec.Struct, frozen=True):
    """``value`` False: the node is fenced. ``stale_bundles``: it holds these and must not."""

    value: bool
    stale_bundles: tuple[BundleRef, ...] = ()


class NodeAccepted(msgspec.Struct, frozen=True):
    """The node is part of this cluster."""

    cluster_id: str


class JobAssigned(msgspec.Struct, frozen=True):
    """The driver's job."""

    job_id: bytes


class ActorAssigned(msgspec.Struct, frozen=True):
    """``is_new`` False: another actor holds the name, and this is it."""

    record: ActorRecord
    is_new: bool


class ActorFound(msgspec.Struct, frozen=True):
    """One actor, or None."""

    record: ActorRecord | None


class Nodes(msgspec.Struct, frozen=True):
    """All nodes, in order of registration."""

    records: list[NodeRecord]


class Demands(msgspec.Struct, frozen=True):
    """What waits for room, the most numerous shapes first; what was left out past the limits."""

    demands: list[Demand]
    groups: list[GroupDemand]
    demands_left_out: int  # shapes
    groups_left_out: int  # groups


class Jobs(msgspec.Struct, frozen=True):
    """All jobs, in order of their numbers."""

    records: list[JobRecord]


class Actors(msgspec.Struct, frozen=True):
    """All actors, in order of registration."""

    records: list[ActorRecord]


class GroupRegistered(msgspec.Struct, frozen=True):
    """``is_new`` False: another group holds the name, and this is it."""

    record: PlacementGroupRecord
    is_new: bool


class GroupFound(msgspec.Struct, frozen=True):
    """One placement group, or None."""

    record: PlacementGroupRecord | None


class Groups(msgspec.Struct, frozen=True):
    """All placement groups, in order of registration."""

    records: list[PlacementGroupRecord]


class Workers(msgspec.Struct, frozen=True):
    """Dead workers, newest last."""

    records: list[WorkerRecord]


class KvValue(msgspec.Struct, frozen=True):
    """The value, or None when the key does not exist."""

    value: bytes | None


class KvCount(msgspec.Struct, frozen=True):
    """How many keys were deleted."""

    count: int


class KvKeys(msgspec.Struct, frozen=True):
    """Keys in byte order."""

    keys: list[bytes]


class Snapshot(msgspec.Struct, frozen=True):
    """The present rows of the channels that were asked for."""

    records: list[Announced]


Answer = (
    Refused
    | Done
    | Accepted
    | Reported
    | NodeAccepted
    | JobAssigned
    | ActorAssigned
    | ActorFound
    | Nodes
    | Demands
    | Jobs
    | Actors
    | GroupRegistered
    | GroupFound
    | Groups
    | Workers
    | KvValue
    | KvCount
    | KvKeys
    | Snapshot
)
