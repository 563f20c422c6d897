"""What the node's machines want done. The shell carries each out once, in order."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skate_raylet.machine.events import EnvVars, WorkerHanded, WorkerRefused

DeviceIds = Mapping[str, tuple[tuple[int, int], ...]]
"""For each device resource the devices assigned: ``(index, units of it)``."""


class GrantLease(msgspec.Struct, frozen=True):
    """Tell the holder which worker is its own."""

    holder_id: bytes
    request_id: int
    lease_id: bytes
    startup_id: int
    worker_id: bytes
    device_ids: DeviceIds = msgspec.field(default_factory=dict)


class RefuseLease(msgspec.Struct, frozen=True):
    """Tell the requester that its request failed."""

    holder_id: bytes
    request_id: int
    kind: str  # "worker_start_failed", "invalid", "unschedulable", "placement_group_removed"
    message: str


class WarnHolder(msgspec.Struct, frozen=True):
    """Tell the holder, once for a shape, that no node can ever hold what it waits for."""

    holder_id: bytes
    request_id: int
    message: str


class LoseLease(msgspec.Struct, frozen=True):
    """Tell the holder that its worker died. The shell knows the cause."""

    holder_id: bytes
    lease_id: bytes
    worker_id: bytes


class AskLeaseBack(msgspec.Struct, frozen=True):
    """Tell the holder that others wait. Answered, sooner or later, by ``LeaseReturned``."""

    holder_id: bytes
    lease_id: bytes


class TellOthersWait(msgspec.Struct, frozen=True):
    """Tell the holder, once per lease, to return it at its first pause. Needs no answer."""

    holder_id: bytes
    lease_id: bytes


class PlaceActor(msgspec.Struct, frozen=True):
    """Send the actor's creation to this worker."""

    actor_id: bytes
    incarnation: int
    lease_id: bytes
    startup_id: int
    worker_id: bytes
    device_ids: DeviceIds = msgspec.field(default_factory=dict)


class RefuseActor(msgspec.Struct, frozen=True):
    """Report to the GCS that this life of the actor did not come about."""

    actor_id: bytes
    incarnation: int
    kind: str
    message: str


class LoseActor(msgspec.Struct, frozen=True):
    """Report to the GCS that the actor's worker died. The shell knows the cause."""

    actor_id: bytes
    incarnation: int
    worker_id: bytes


class AskForGroup(msgspec.Struct, frozen=True):
    """Ask the GCS for a placement group. Answered by ``GroupSeen``, ``GroupGone`` or
    ``GroupUnanswered``.
    """

    group_id: bytes


class StartWorker(msgspec.Struct, frozen=True):
    """Fork a worker. Answered by ``WorkerRegistered`` or ``WorkerStartFailed``, always."""

    startup_id: int
    job_id: bytes
    env_vars: EnvVars


class EndWorker(msgspec.Struct, frozen=True):
    """End a worker's process: ask, then kill after ``grace_s``. Answered by its death.

    Repeated with a shorter grace it tightens the deadline. The first cause stands.
    ``grace_s`` infinite: ask only; the worker leaves once nobody needs what it owns.
    """

    startup_id: int
    kind: str
    message: str
    grace_s: float


class AcquireWorker(msgspec.Struct, frozen=True):
    """From the leases to the pool. Answered by ``WorkerHanded`` or ``WorkerRefused``."""

    lease_id: bytes
    job_id: bytes
    env_vars: EnvVars
    is_actor: bool
    holder_id: bytes  # never its own worker


class AbandonWorker(msgspec.Struct, frozen=True):
    """From the leases to the pool: the lease no longer needs a worker. No answer."""

    lease_id: bytes


class ReleaseWorker(msgspec.Struct, frozen=True):
    """From the leases to the pool: the worker is free again."""

    startup_id: int


class RetireWorker(msgspec.Struct, frozen=True):
    """From the leases to the pool: end this worker. Answered by its death."""

    startup_id: int
    kind: str
    message: str
    grace_s: float


NodeCommand = (
    GrantLease
    | RefuseLease
    | WarnHolder
    | LoseLease
    | AskLeaseBack
    | TellOthersWait
    | PlaceActor
    | RefuseActor
    | LoseActor
    | AskForGroup
    | StartWorker
    | EndWorker
)
"""What the shell carries out."""

PoolRequest = AcquireWorker | AbandonWorker | ReleaseWorker | RetireWorker
LeaseCommand = (
    GrantLease
    | RefuseLease
    | WarnHolder
    | LoseLease
    | AskLeaseBack
    | TellOthersWait
    | PlaceActor
    | RefuseActor
    | LoseActor
    | PoolRequest
)
PoolCommand = StartWorker | EndWorker | WorkerHanded | WorkerRefused
