"""The reports of all nodes joined: one row per process and object, with what the stores say.

Before it: ``object_report``, whose records travel. After it: the state API and ``skate memory``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from skate_rpc.object_report import (
    ACTOR_HANDLE,
    BORROWED,
    CAPTURED_IN_OBJECT,
    LOCAL_REFERENCE,
    OUT_OF_BAND,
    PINNED_BY_RUNTIME,
    PINNED_IN_MEMORY,
    UNEXPLAINED,
    UNREAD_ITEM,
    USED_BY_PENDING_TASK,
    NodeObjects,
    ObjectRow,
    ProcessObjects,
    StoredObject,
)

# Which reason stands for a row that has several, as in Ray.
_MOST_TELLING: Final = (
    ACTOR_HANDLE,
    USED_BY_PENDING_TASK,
    LOCAL_REFERENCE,
    UNREAD_ITEM,
    CAPTURED_IN_OBJECT,
    BORROWED,
    OUT_OF_BAND,
    PINNED_BY_RUNTIME,
    PINNED_IN_MEMORY,
)


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """One object as held by one process, joined with what the stores say. Ids in hex."""

    object_id: str
    object_size: int
    """In bytes; -1 while it is not there yet."""
    state: str
    reference_type: str
    """The most telling of ``reasons``."""
    reasons: dict[str, int]
    call_site: str
    task_name: str
    task_status: str
    attempt_number: int
    type: str
    """``DRIVER`` or ``WORKER``; empty when only a store knows the object."""
    pid: int
    ip: str
    node_id: str
    worker_id: str
    owner_id: str
    owner_pid: int
    """0: the owner did not report, or is dead."""
    stored_on: list[str] = field(default_factory=list)
    is_spilled: bool = False
    view_count: int = 0


def rows_of(nodes: Iterable[NodeObjects]) -> list[ReferenceRow]:
    """Join the reports. O(rows). An object that only a store knows has a row of its own."""
    nodes = list(nodes)
    pids = {p.worker_id: p.pid for node in nodes for p in node.processes}
    places: dict[bytes, list[tuple[NodeObjects, StoredObject]]] = {}
    for node in nodes:
        for item in node.stored:
            places.setdefault(item.object_id, []).append((node, item))
    sites: dict[bytes, str] = {}
    for node in nodes:
        for process in node.processes:
            for row in process.rows:
                if row.site and (row.owner_id == process.worker_id or row.object_id not in sites):
                    sites[row.object_id] = row.site
    rows: list[ReferenceRow] = []
    referenced: set[bytes] = set()
    for node in nodes:
        for process in node.processes:
            for row in process.rows:
                referenced.add(row.object_id)
                where = places.get(row.object_id, [])
                rows.append(_row(node, process, row, where, sites, pids))
    for object_id, where in places.items():
        if object_id not in referenced:
            rows += (_store_row(node, item, pids) for node, item in where)
    return rows


def _row(
    node: NodeObjects,
    process: ProcessObjects,
    row: ObjectRow,
    where: list[tuple[NodeObjects, StoredObject]],
    sites: dict[bytes, str],
    pids: dict[bytes, int],
) -> ReferenceRow:
    reasons = dict(row.reasons)
    views = sum(item.pins for _, item in where)
    if views and row.owner_id == process.worker_id:
        reasons[PINNED_IN_MEMORY] = views
    note = next((item.note for _, item in where if item.note), "")
    stored_on = dict.fromkeys([n.node_id.hex() for n, _ in where])
    stored_on.update(dict.fromkeys(node_id.hex() for node_id in row.node_ids))
    return ReferenceRow(
        object_id=row.object_id.hex(),
        object_size=-1 if row.state == "PENDING" else row.size_bytes,
        state=row.state,
        reference_type=most_telling(reasons),
        reasons=reasons,
        call_site=sites.get(row.object_id, "") or note,
        task_name=row.task_name,
        task_status=row.task_status or _ended_status(row),
        attempt_number=row.attempt,
        type="DRIVER" if process.is_driver else "WORKER",
        pid=process.pid,
        ip=node.ip,
        node_id=node.node_id.hex(),
        worker_id=process.worker_id.hex(),
        owner_id=row.owner_id.hex(),
        owner_pid=pids.get(row.owner_id, 0),
        stored_on=list(stored_on),
        is_spilled=any(item.is_spilled for _, item in where),
        view_count=views,
    )


def _ended_status(row: ObjectRow) -> str:
    is_put = row.object_id[-4] & 0x80  # the index of what put() made; see skate_core_ids
    if is_put or row.state == "PENDING" or ACTOR_HANDLE in row.reasons:
        return "NIL"
    return "FAILED" if row.state == "FAILED" else "FINISHED"


def _store_row(node: NodeObjects, item: StoredObject, pids: dict[bytes, int]) -> ReferenceRow:
    reasons = {PINNED_IN_MEMORY: item.pins} if item.pins else {}
    return ReferenceRow(
        object_id=item.object_id.hex(),
        object_size=item.size_bytes,
        state="STORED" if item.is_sealed else "BEING_WRITTEN",
        reference_type=most_telling(reasons),
        reasons=reasons,
        call_site=item.note,
        task_name="",
        task_status="",
        attempt_number=0,
        type="",
        pid=0,
        ip=node.ip,
        node_id=node.node_id.hex(),
        worker_id="",
        owner_id=item.owner_id.hex(),
        owner_pid=pids.get(item.owner_id, 0),
        stored_on=[node.node_id.hex()],
        is_spilled=item.is_spilled,
        view_count=item.pins,
    )


def most_telling(reasons: dict[str, int]) -> str:
    """The one reason that stands for all."""
    return next((reason for reason in _MOST_TELLING if reason in reasons), UNEXPLAINED)
