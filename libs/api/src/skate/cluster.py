"""The cluster as its programs see it: nodes, and what they have to offer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from skate_rpc.node_protocol import DrainOrder
from skate_scheduler import from_units
from skate_worker.current import require_core

if TYPE_CHECKING:
    from skate_rpc.node_protocol import NodeView


# ``NodeDeathInfo.Reason`` of Ray.
EXPECTED_TERMINATION: Final = 1
UNEXPECTED_TERMINATION: Final = 2
_DRAINED: Final = {"preemption": 3, "idle_termination": 4}


def nodes() -> list[dict[str, Any]]:
    """One dict per node, dead ones included (the last 1000), under Ray's names.

    ``DeathReason`` is Ray's number: 1 it left on purpose, 2 it died, 3 it was drained because its
    machine would go, 4 it was drained because it was idle; 0 while it lives. ``State`` is Skate's:
    ``ALIVE``, ``SUSPECT`` (silent for some seconds: it gets no new actors), ``DRAINING`` or
    ``DEAD``.

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


def drain_node(
    node_id: str,
    reason: str = "preemption",
    message: str = "",
    deadline_s: float | None = None,
) -> str:
    """Have a node take no new work, and leave the cluster when it is idle or at a deadline.

    Args:
        node_id: The node, in hex, as in ``nodes()``.
        reason: ``"preemption"``: its machine will go. It leaves at the deadline whatever runs
            there; its tasks run again elsewhere and its actors restart (those with
            ``max_restarts``), and neither is counted. ``"idle_termination"``: it is not needed;
            refused unless it is idle.
        message: Why, for people.
        deadline_s: Seconds from now; None: it stays until it is idle.

    Returns:
        Why it will not, or an empty string: it leaves, or is dead already.

    Raises:
        ValueError: a reason that does not exist, a negative deadline, or no such node.
        GcsUnavailableError: the GCS or the node did not answer.
        NotInitializedError: there is no session.

    Source: SURFACE Z9.
    """
    if reason not in _DRAINED:
        raise ValueError(f"reason is one of {', '.join(_DRAINED)}, got {reason!r}.")
    if deadline_s is not None and not deadline_s >= 0:
        raise ValueError(f"deadline_s is not negative, got {deadline_s}.")
    core = require_core()
    wanted = bytes.fromhex(node_id)
    if all(node.node_id != wanted for node in core.nodes()):
        raise ValueError(f"There is no node {node_id}; see nodes().")
    due_s = 0.0 if deadline_s is None else time.time() + deadline_s
    answer = core.drain_node(DrainOrder(wanted, reason, message, due_s))
    return "" if answer.is_accepted else answer.rejection


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
        "State": _state(node),
        "DeathReason": _death_reason(node),
        "DeathReasonMessage": "" if node.death is None else node.death.message,
        "IsHead": node.is_head,
        "Labels": dict(node.labels),
        "Resources": {n: from_units(amount) for n, amount in total.items()}
        if node.is_alive
        else {},
    }


def _state(node: NodeView) -> str:
    if not node.is_alive:
        return "DEAD"
    if node.is_suspect:
        return "SUSPECT"
    return "DRAINING" if node.drain_reason else "ALIVE"


def _death_reason(node: NodeView) -> int:
    if node.death is None:
        return 0
    # A node that was to leave and did not get to say so left all the same.
    if node.drain_reason and node.death.kind in ("node_preempted", "intended_exit"):
        return _DRAINED[node.drain_reason]
    if node.death.kind == "intended_exit":
        return EXPECTED_TERMINATION
    return UNEXPECTED_TERMINATION


def _port(endpoint: str) -> int:
    port = endpoint.removeprefix("http://").partition("/")[0].rpartition(":")[2]
    return int(port) if port.isdigit() else 0
