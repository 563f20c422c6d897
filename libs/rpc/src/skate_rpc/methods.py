"""Every RPC of the control plane: whether it may be repeated, and how long it may take.

The clients retry by this table. A call that is missing here fails a test, so that adding one to
``protos/`` makes its author decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skate_rpc.repeats import Repeat

DEFAULT_DEADLINE_S = 10.0
KV_BYTES_PER_S = 10_000_000
"""The slowest transfer that is still waited for: a KV value adds its size over this to the
deadline."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC."""

    service: str
    name: str
    repeat: Repeat
    key: str
    """What makes a repetition recognisable; empty for a read."""
    deadline_s: float | None = DEFAULT_DEADLINE_S
    """For all attempts together. None: a stream that lasts."""

    @property
    def full_name(self) -> str:
        """``Service.Method``, for people and as the key of ``METHODS``."""
        return f"{self.service}.{self.name}"


_READ = Repeat.READ_ONLY
_IDEMPOTENT = Repeat.IDEMPOTENT

_TABLE = (
    Method("NodeService", "Register", _IDEMPOTENT, "node_id"),
    Method("NodeService", "Unregister", _IDEMPOTENT, "node_id"),
    Method("NodeService", "List", _READ, ""),
    # Repeated, it states the same wish; the node asks itself again whether it is idle.
    Method("NodeService", "Drain", _IDEMPOTENT, "node_id"),
    Method("NodeService", "ReportResources", _IDEMPOTENT, "node_id and version"),
    Method("NodeService", "ListDemands", _READ, ""),
    Method("JobService", "Add", _IDEMPOTENT, "the driver's worker_id"),
    Method("JobService", "Finish", _IDEMPOTENT, "job_id"),
    Method("JobService", "List", _READ, ""),
    Method("ActorService", "Register", _IDEMPOTENT, "actor_id"),
    Method("ActorService", "Get", _READ, ""),
    Method("ActorService", "GetNamed", _READ, ""),
    Method("ActorService", "List", _READ, ""),
    # A kill that allows a restart would kill the next incarnation too.
    Method("ActorService", "Kill", Repeat.CONDITIONAL, "actor_id, with no_restart"),
    Method("ActorService", "Release", _IDEMPOTENT, "actor_id"),
    Method("ActorService", "ReportStarted", _IDEMPOTENT, "actor_id and incarnation"),
    Method("ActorService", "ReportFailed", _IDEMPOTENT, "actor_id and incarnation"),
    Method("PlacementGroupService", "Register", _IDEMPOTENT, "group_id"),
    Method("PlacementGroupService", "Remove", _IDEMPOTENT, "group_id"),
    Method("PlacementGroupService", "Get", _READ, ""),
    Method("PlacementGroupService", "List", _READ, ""),
    Method("WorkerService", "ReportDeath", _IDEMPOTENT, "worker_id"),
    Method("WorkerService", "ListDead", _READ, ""),
    # The last write of a key holds; one that is repeated behind another's counts as a new write.
    Method("KvService", "Put", _IDEMPOTENT, "namespace and key"),
    Method("KvService", "Get", _READ, "", deadline_s=50.0),  # the size is not known beforehand
    Method("KvService", "Delete", _IDEMPOTENT, "namespace and key"),
    Method("KvService", "Keys", _READ, ""),
    Method("EventService", "Subscribe", _READ, "", deadline_s=None),
    Method("RayletService", "StartActor", _IDEMPOTENT, "actor_id and incarnation"),
    Method("RayletService", "KillActor", _IDEMPOTENT, "actor_id and incarnation"),
    Method("RayletService", "PrepareBundles", _IDEMPOTENT, "group_id and attempt"),
    Method("RayletService", "CommitBundles", _IDEMPOTENT, "group_id and attempt"),
    Method("RayletService", "ReturnBundles", _IDEMPOTENT, "group_id and attempt"),
    Method("RayletService", "Objects", _READ, ""),
    Method("RayletService", "Status", _READ, ""),
    Method("RayletService", "Waits", _READ, ""),
    Method("RayletService", "Why", _READ, ""),
    Method("RayletService", "ListLogs", _READ, ""),
    Method("RayletService", "ReadLog", _READ, ""),
    Method("RayletService", "Shutdown", _IDEMPOTENT, "the node"),
    Method("RayletService", "Drain", _IDEMPOTENT, "the node"),
    Method("RayletService", "MoveGcs", _IDEMPOTENT, "gcs_life"),
    Method("RayletService", "Borrow", _IDEMPOTENT, "the borrower and its ask_id", deadline_s=None),
    Method("RayletService", "ForwardLogs", _IDEMPOTENT, "file and offset", deadline_s=None),
)

METHODS: Mapping[str, Method] = {method.full_name: method for method in _TABLE}
