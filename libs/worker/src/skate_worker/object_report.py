"""This process's part in explaining memory: what it refers to, and why each object is held.

The counts of the reference table say how many uses an object has, not which; they are told apart
here, when somebody asks, so that no task pays for it. Before it: the raylet's ``AskObjects``. After
it: ``skate_rpc.object_report``, which joins the reports.
"""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final

from skate_rpc import object_report as why
from skate_rpc.node_protocol import AskObjects, ObjectsReport
from skate_rpc.object_report import ObjectRow
from skate_worker.machine.lineage import TASK_ID_BYTES
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker
    from skate_worker.submission import Submission

_STATES: Final = {PENDING: "PENDING", INLINE: "INLINE", STORED: "STORED", FAILED: "FAILED"}


def make_report(core: CoreWorker, ask: AskObjects) -> ObjectsReport:
    """The answer, the largest objects first. O(entries + unfinished tasks); any thread."""
    ownership = core.ownership
    ownership.drain_dropped()
    with ownership.lock:
        ownership.table.count_adopted()
        entries = list(ownership.table.entries.values())
        unread = {entry.object_id for entry in core.streams.unread()}
    captured: Counter[bytes] = Counter()
    for entry in entries:
        for inner in entry.contained or ():
            captured[inner.object_id] += 1
    unfinished = [*core.tasks.unfinished(), *core.actor_calls.unfinished()]
    used: Counter[bytes] = Counter()
    maker: dict[bytes, tuple[Submission, str]] = {}
    generators: dict[bytes, tuple[Submission, str]] = {}  # by task id: their items become more
    for submission, status in unfinished:
        used.update(entry.object_id for entry in submission.pinned)
        for entry in submission.entries:
            maker[entry.object_id] = submission, status
        if submission.message.num_returns < 0:
            generators[submission.task_id] = submission, status
    shown = heapq.nlargest(ask.rows_max, entries, key=_size)
    report = ObjectsReport(ask.number, [])
    for entry in shown:
        object_id = entry.object_id
        is_unread = int(object_id in unread)
        row = _row(core, entry, captured[object_id], used[object_id], is_unread)
        made = maker.get(object_id) or generators.get(object_id[:TASK_ID_BYTES])
        if made is not None:
            submission, row.task_status = made
            row.task_name = submission.message.name
            row.attempt = submission.message.attempt
        report.rows.append(row)
    report.left_out = len(entries) - len(shown)
    if report.left_out:
        report.left_out_bytes = sum(map(_size, entries)) - sum(map(_size, shown))
    return report


def _row(core: CoreWorker, entry: Entry, captured: int, used: int, unread: int) -> ObjectRow:
    object_id = entry.object_id
    owner_id = core.ownership.worker_id if entry.owner is None else entry.owner.worker_id
    is_handle = object_id[:8] == object_id[8:16]  # see `keeper_id_of`
    out_of_band = int(object_id in core.out_of_band)
    counts = (
        (why.ACTOR_HANDLE if is_handle else why.LOCAL_REFERENCE, entry.local - unread),
        (why.UNREAD_ITEM, unread),
        (why.CAPTURED_IN_OBJECT, captured),
        (why.USED_BY_PENDING_TASK, used),
        (why.OUT_OF_BAND, out_of_band),
        # Closures of exported functions, and returned values that the caller has not taken over.
        (why.PINNED_BY_RUNTIME, entry.pins - captured - used - out_of_band),
        (why.BORROWED, len(entry.borrowers or ())),
    )
    return ObjectRow(
        object_id,
        _STATES[entry.state],
        _size(entry),
        owner_id,
        {reason: count for reason, count in counts if count > 0},
        _places(core, entry) if entry.state == STORED else [],
        core.ownership.sites.get(object_id, ""),
    )


def _places(core: CoreWorker, entry: Entry) -> list[bytes]:
    if entry.owner is not None:
        return [entry.node_id]
    with core.ownership.lock:
        return core.plane.directory.copies(entry.object_id, entry.node_id)


def _size(entry: Entry) -> int:
    data = entry.data  # read once: another thread may settle the entry
    return len(data) if data else entry.size_bytes
