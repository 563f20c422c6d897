"""The GCS's tables as plain rows: what ``skate list``, ``get`` and ``summary`` show.

A row is a dict of JSON values; its first column is its id, ``state`` is among the others. Columns
that a person rarely wants (``DETAILS``) are shown on request. Source: SURFACE rows S4 and K4.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skate_cluster.demand import amounts_of
from skate_rpc.clients import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """One kind of thing: how it is asked for, and which columns are left out of a short look."""

    rows: Callable[[GcsClient, float], Awaitable[list[Row]]]
    details: frozenset[str] = frozenset()


async def _nodes(gcs: GcsClient, timeout_s: float) -> list[Row]:
    return [
        {
            "node_id": one.node_id.hex(),
            "state": _node_state(one),
            "node_name": one.node_name,
            "ip_address": one.ip_address,
            "is_head": one.is_head,
            "resources_total": amounts_of(one.total.amounts),
            "resources_available": amounts_of(one.available.amounts),
            "labels": dict(one.labels),
            "pid": one.pid,
            "metrics_endpoint": one.metrics_endpoint,
            "session_dir": one.session_dir,
            "start_time_s": one.start_time_s,
            "end_time_s": one.end_time_s,
            "cause": one.death_cause.message or one.drain.message,
        }
        for one in await gcs.nodes.list(timeout_s=timeout_s)
    ]


def _node_state(node: gcs_pb2.NodeInfo) -> str:
    if node.state == gcs_pb2.NodeInfo.STATE_DEAD:
        return "DEAD"
    if node.HasField("drain"):
        return "DRAINING"
    return "SUSPECT" if node.suspect else "ALIVE"


async def _actors(gcs: GcsClient, timeout_s: float) -> list[Row]:
    return [
        {
            "actor_id": one.spec.actor_id.hex(),
            "state": gcs_pb2.ActorState.Name(one.state).removeprefix("ACTOR_STATE_"),
            "class_name": one.spec.class_name,
            "name": one.spec.name,
            "namespace": one.spec.namespace,
            "node_id": one.address.node_id.hex(),
            "pid": one.pid,
            "job_id": one.spec.job_id.hex(),
            "is_detached": one.spec.detached,
            "num_restarts": one.incarnation,
            "max_restarts": one.spec.max_restarts,
            "resources": amounts_of(one.spec.running_resources.amounts),
            "worker_id": one.address.worker_id.hex(),
            "start_time_s": one.start_time_s,
            "end_time_s": one.end_time_s,
            "cause": one.pending_reason or _cause(one.death_cause),
        }
        for one in await gcs.actors.list(timeout_s=timeout_s)
    ]


async def _jobs(gcs: GcsClient, timeout_s: float) -> list[Row]:
    return [
        {
            "job_id": one.job_id.hex(),
            "state": "FINISHED" if one.finished else "RUNNING",
            "entrypoint": one.entrypoint,
            "driver_pid": one.driver_pid,
            "node_id": one.driver.node_id.hex(),
            "namespace": one.namespace,
            "start_time_s": one.start_time_s,
            "end_time_s": one.end_time_s,
            "metadata": dict(one.metadata),
        }
        for one in await gcs.jobs.list(timeout_s=timeout_s)
    ]


async def _placement_groups(gcs: GcsClient, timeout_s: float) -> list[Row]:
    prefix = "PLACEMENT_GROUP_STATE_"
    return [
        {
            "placement_group_id": one.spec.group_id.hex(),
            "state": gcs_pb2.PlacementGroupState.Name(one.state).removeprefix(prefix),
            "name": one.spec.name,
            "strategy": one.spec.strategy,
            "bundles": [amounts_of(bundle.resources.amounts) for bundle in one.spec.bundles],
            "node_ids": [node_id.hex() for node_id in one.node_ids],
            "attempts": one.attempts,
            "creation_latency_ms": one.creation_latency_ms,
            "cause": one.pending_reason or one.removal_reason,
        }
        for one in await gcs.groups.list(timeout_s=timeout_s)
    ]


async def _workers(gcs: GcsClient, timeout_s: float) -> list[Row]:
    return [
        {
            "worker_id": one.worker_id.hex(),
            "state": "DEAD",
            "node_id": one.node_id.hex(),
            "pid": one.pid,
            "job_id": one.job_id.hex(),
            "end_time_s": one.end_time_s,
            "cause": _cause(one.death_cause),
            "log_tail": one.death_cause.log_tail,
        }
        for one in await gcs.workers.list_dead(timeout_s=timeout_s)
    ]


def _cause(cause: common_pb2.DeathCause) -> str:
    if cause.kind == common_pb2.DeathCause.KIND_UNSPECIFIED:
        return ""
    kind = common_pb2.DeathCause.Kind.Name(cause.kind).removeprefix("KIND_").lower()
    return f"{kind}: {cause.message}" if cause.message else kind


TABLES: Final[dict[str, Table]] = {
    "nodes": Table(
        _nodes,
        frozenset(
            {"pid", "metrics_endpoint", "session_dir", "start_time_s", "end_time_s", "labels"}
        ),
    ),
    "actors": Table(
        _actors,
        frozenset(
            {"worker_id", "start_time_s", "end_time_s", "max_restarts", "is_detached", "resources"}
        ),
    ),
    "jobs": Table(_jobs, frozenset({"metadata", "end_time_s"})),
    "placement-groups": Table(_placement_groups, frozenset({"attempts", "creation_latency_ms"})),
    "dead-workers": Table(_workers, frozenset({"log_tail"})),
}


class BadFilterError(ValueError):
    """A filter that names no column, or has no ``=`` in it."""


def filtered(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows of which every condition (``column=value``, ``column!=value``) is true.

    Values are compared as text without regard to case, ids by their beginning. Raises
    :class:`BadFilterError`.
    """
    tests = [_condition(text) for text in conditions]
    known = {column for row in rows for column in row}
    for column, _, _ in tests:
        if rows and column not in known:
            raise BadFilterError(
                f"There is no column {column!r}; the columns are: {', '.join(sorted(known))}."
            )
    return [row for row in rows if all(_holds(row, *test) for test in tests)]


def _condition(text: str) -> tuple[str, bool, str]:
    column, separator, value = text.partition("=")
    if not separator or not column.rstrip("!").strip():
        raise BadFilterError(f"A filter is written column=value or column!=value, got {text!r}.")
    return column.rstrip("!").strip(), not column.endswith("!"), value.strip()


def _holds(row: Row, column: str, is_equal: bool, value: str) -> bool:
    found, wanted = str(row[column]).lower(), value.lower()
    is_id = column.endswith("_id") and len(wanted) >= 4
    return (found.startswith(wanted) if is_id else found == wanted) == is_equal
