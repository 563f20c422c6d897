"""Gathers a cluster's status: the node table from the GCS, then each live node's own account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from skate_cluster.demand import Demands, amounts_of, demands_of
from skate_rpc.clients import GcsClient, RayletClient
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2
from skate_rpc.grpc_channel import open_channel

SCHEMA = "skate.status/1"
_CALLS_MAX = 64
_STATE_PREFIX = "PLACEMENT_GROUP_STATE_"


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker in use. Amounts are whole resources, not units."""

    lease_id: str
    worker_pid: int
    actor_id: str
    resources: dict[str, float]
    is_blocked: bool
    """Waits in get or wait, and lends its CPUs meanwhile."""


@dataclass(frozen=True, slots=True)
class PendingLease:
    """A request that waits, and why."""

    resources: dict[str, float]
    reason: str
    waiting_s: float


@dataclass(frozen=True, slots=True)
class PlacementGroup:
    """A placement group that is not removed. Amounts are whole resources, not units."""

    group_id: str
    name: str
    state: str
    strategy: str
    bundles: list[dict[str, float]]
    node_ids: list[str]
    """One for each bundle; empty where it is not reserved."""
    reason: str
    """Why it is not created; empty otherwise."""
    waiting_s: float


@dataclass(frozen=True, slots=True)
class Node:
    """One row of the node table and, when it answered, what it says of itself."""

    node_id: str
    name: str
    ip_address: str
    is_head: bool
    is_alive: bool
    death: str
    total: dict[str, float]
    available: dict[str, float]
    labels: dict[str, str]
    metrics_endpoint: str
    is_suspect: bool = False
    """Silent for some seconds, and not yet held for dead."""
    drain: str = ""
    """Why it is to leave, or left; empty: it is not."""
    drain_deadline_s: float = 0.0
    """Unix time at which it leaves whatever runs there; 0: when it is idle."""
    problem: str = ""
    """Why the node itself did not answer; empty when it did."""
    workers_idle: int = 0
    workers_total: int = 0
    store_capacity_bytes: int = 0
    store_used_bytes: int = 0
    store_objects: int = 0
    leases: list[Lease] = field(default_factory=list)
    pending: list[PendingLease] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The cluster at one moment, head first."""

    address: str
    nodes: list[Node]
    placement_groups: list[PlacementGroup] = field(default_factory=list)
    demands: Demands = field(default_factory=Demands)

    @property
    def live_nodes(self) -> list[Node]:
        """The nodes that are up."""
        return [node for node in self.nodes if node.is_alive]

    def resources(self) -> dict[str, tuple[float, float]]:
        """Used and total amount by resource, over the live nodes, in order of first appearance."""
        sums: dict[str, tuple[float, float]] = {}
        for node in self.live_nodes:
            for name, total in node.total.items():
                used, whole = sums.get(name, (0.0, 0.0))
                sums[name] = (used + total - node.available.get(name, 0.0), whole + total)
        return sums

    def to_json(self) -> dict[str, Any]:
        """The report under its versioned schema."""
        return {
            "schema": SCHEMA,
            "address": self.address,
            "resources": {
                name: {"used": used, "total": total}
                for name, (used, total) in self.resources().items()
            },
            "nodes": [asdict(node) for node in self.nodes],
            "placement_groups": [asdict(group) for group in self.placement_groups],
            "demands": asdict(self.demands),
        }


async def collect_report(gcs_endpoint: str, token: str, timeout_s: float) -> Report:
    """Ask the GCS and every live node.

    A node that does not answer is in the report with its problem. Raises ``RpcError`` when the GCS
    itself does not answer.
    """
    gcs_channel = open_channel(gcs_endpoint, token)
    try:
        client = GcsClient(gcs_channel, gcs_endpoint)
        rows, groups, demands = await asyncio.gather(
            client.nodes.list(timeout_s=timeout_s),
            client.groups.list(timeout_s=timeout_s),
            client.nodes.list_demands(timeout_s=timeout_s),
        )
    finally:
        await gcs_channel.close()
    slots = asyncio.Semaphore(_CALLS_MAX)
    nodes = await asyncio.gather(*(_describe(row, token, timeout_s, slots) for row in rows))
    nodes.sort(key=lambda node: (not node.is_head, node.node_id))
    return Report(gcs_endpoint, nodes, _groups(groups, time.time()), demands_of(demands))


def _groups(infos: Iterable[gcs_pb2.PlacementGroupInfo], now_s: float) -> list[PlacementGroup]:
    return [
        PlacementGroup(
            group_id=info.spec.group_id.hex(),
            name=info.spec.name,
            state=gcs_pb2.PlacementGroupState.Name(info.state).removeprefix(_STATE_PREFIX),
            strategy=info.spec.strategy,
            bundles=[amounts_of(bundle.resources.amounts) for bundle in info.spec.bundles],
            node_ids=[node_id.hex() for node_id in info.node_ids],
            reason=info.pending_reason,
            waiting_s=max(0.0, now_s - info.pending_since_s) if info.pending_since_s else 0.0,
        )
        for info in infos
        if info.state != gcs_pb2.PLACEMENT_GROUP_STATE_REMOVED
    ]


async def _describe(
    row: gcs_pb2.NodeInfo, token: str, timeout_s: float, slots: asyncio.Semaphore
) -> Node:
    if row.state != gcs_pb2.NodeInfo.STATE_ALIVE:
        return _node(row, None, "")
    async with slots:
        channel = open_channel(row.raylet_endpoint, token)
        try:
            client = RayletClient(channel, row.raylet_endpoint)
            return _node(row, await client.status(timeout_s=timeout_s), "")
        except RpcError as error:
            return _node(row, None, str(error))
        finally:
            await channel.close()


def _node(row: gcs_pb2.NodeInfo, status: raylet_pb2.NodeStatusReply | None, problem: str) -> Node:
    status_or_empty = raylet_pb2.NodeStatusReply() if status is None else status
    available = row.available if status is None else status.node.available
    return Node(
        node_id=row.node_id.hex(),
        name=row.node_name or row.hostname,
        ip_address=row.ip_address,
        is_head=row.is_head,
        is_alive=row.state == gcs_pb2.NodeInfo.STATE_ALIVE,
        death=row.death_cause.message,
        total=amounts_of(row.total.amounts),
        available=amounts_of(available.amounts),
        labels=dict(row.labels),
        metrics_endpoint=row.metrics_endpoint,
        is_suspect=row.suspect,
        drain=_drain(row),
        drain_deadline_s=row.drain.deadline_s,
        problem=problem,
        workers_idle=status_or_empty.workers_idle,
        workers_total=status_or_empty.workers_total,
        store_capacity_bytes=status_or_empty.store_capacity_bytes,
        store_used_bytes=status_or_empty.store_used_bytes,
        store_objects=status_or_empty.store_objects,
        leases=[
            Lease(
                lease_id=lease.lease_id.hex(),
                worker_pid=lease.worker_pid,
                actor_id=lease.actor_id.hex(),
                resources=amounts_of(lease.resources.amounts),
                is_blocked=lease.lending_cpu,
            )
            for lease in status_or_empty.leases
        ],
        pending=[
            PendingLease(amounts_of(item.resources.amounts), item.reason, item.waiting_s)
            for item in status_or_empty.pending
        ],
    )


def _drain(row: gcs_pb2.NodeInfo) -> str:
    if not row.HasField("drain"):
        return ""
    is_idle = row.drain.reason == gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION
    name = "idle termination" if is_idle else "preemption"
    return f"{name}: {row.drain.message}" if row.drain.message else name
