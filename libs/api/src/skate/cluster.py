"""The cluster as its programs see it: nodes, and what they have to offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from skate_scheduler import from_units
from skate_worker.current import require_core

if TYPE_CHECKING:
    from skate_rpc.node_protocol import NodeView


def nodes() -> list[dict[str, Any]]:
    """One dict per node, dead ones included, under Ray's names.

    Raises:
        NotInitializedError: there is no session; this call never starts one.
    """
    return [_as_dict(node) for node in require_core().nodes()]


def cluster_resources() -> dict[str, float]:
    """The total resources of all live nodes. Raises ``NotInitializedError`` without a session."""
    return _sum(node.total for node in require_core().nodes() if node.is_alive)


def available_resources() -> dict[str, float]:
    """What of it is free now, as the nodes last reported; what is used up is left out.

    Raises ``NotInitializedError`` without a session.
    """
    return _sum(node.available for node in require_core().nodes() if node.is_alive)


def _sum(parts: Any) -> dict[str, float]:
    units: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            units[name] = units.get(name, 0) + amount
    return {name: from_units(amount) for name, amount in sorted(units.items()) if amount > 0}


def _as_dict(node: NodeView) -> dict[str, Any]:
    total: Mapping[str, int] = node.total
    return {
        "NodeID": node.node_id.hex(),
        "Alive": node.is_alive,
        "alive": node.is_alive,
        "NodeName": node.node_name,
        "NodeManagerAddress": node.ip_address,
        "NodeManagerHostname": node.hostname,
        "NodeManagerPort": _port(node.raylet_endpoint),
        "ObjectManagerPort": 0,
        "ObjectStoreSocketName": node.store_endpoint,
        "RayletSocketName": node.stream_endpoint,
        "MetricsExportPort": _port(node.metrics_endpoint),
        "MetricsAgentPort": 0,
        "DashboardAgentListenPort": 0,
        "RuntimeEnvAgentPort": 0,
        "DeathReason": 0 if node.death is None else node.death.kind,
        "DeathReasonMessage": "" if node.death is None else node.death.message,
        "IsHead": node.is_head,
        "Labels": dict(node.labels),
        "Resources": {n: from_units(amount) for n, amount in total.items()}
        if node.is_alive
        else {},
    }


def _port(endpoint: str) -> int:
    port = endpoint.removeprefix("http://").partition("/")[0].rpartition(":")[2]
    return int(port) if port.isdigit() else 0
