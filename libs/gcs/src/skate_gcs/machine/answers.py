"""What a request is answered with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from skate_gcs.machine.records import (
    ActorRecord,
    Announced,
    JobRecord,
    NodeRecord,
    WorkerRecord,
)


class RefusalKind(Enum):
    """Whose fault a refusal is."""

    INVALID = "invalid"  # the request makes no sense
    FENCED = "fenced"  # the caller's node is dead to this cluster


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was not carried out, and nothing changed."""

    kind: RefusalKind
    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """Carried out, or already so."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Yes or no; what that means is said at the request."""

    value: bool


@dataclass(frozen=True, slots=True)
class NodeAccepted:
    """The node is part of this cluster."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class JobAssigned:
    """The driver's job."""

    job_id: bytes


@dataclass(frozen=True, slots=True)
class ActorAssigned:
    """``is_new`` False: another actor holds the name, and this is it."""

    record: ActorRecord
    is_new: bool


@dataclass(frozen=True, slots=True)
class ActorFound:
    """One actor, or None."""

    record: ActorRecord | None


@dataclass(frozen=True, slots=True)
class Nodes:
    """All nodes, in order of registration."""

    records: list[NodeRecord]


@dataclass(frozen=True, slots=True)
class Jobs:
    """All jobs, in order of their numbers."""

    records: list[JobRecord]


@dataclass(frozen=True, slots=True)
class Actors:
    """All actors, in order of registration."""

    records: list[ActorRecord]


@dataclass(frozen=True, slots=True)
class Workers:
    """Dead workers, newest last."""

    records: list[WorkerRecord]


@dataclass(frozen=True, slots=True)
class KvValue:
    """The value, or None when the key does not exist."""

    value: bytes | None


@dataclass(frozen=True, slots=True)
class KvCount:
    """How many keys were deleted."""

    count: int


@dataclass(frozen=True, slots=True)
class KvKeys:
    """Keys in byte order."""

    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The present rows of the channels that were asked for."""

    records: list[Announced]


Answer = (
    Refused
    | Done
    | Accepted
    | NodeAccepted
    | JobAssigned
    | ActorAssigned
    | ActorFound
    | Nodes
    | Jobs
    | Actors
    | Workers
    | KvValue
    | KvCount
    | KvKeys
    | Snapshot
)
