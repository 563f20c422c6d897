"""This process's part in explaining waits: its unfinished tasks, what it runs, what it waits for.

Found out when somebody asks, so that no task pays for it. Before it: the raylet's ``AskWaits``.
After it: ``skate_rpc.wait_report``, and the raylet, which joins the reports of all processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from skate_rpc.node_protocol import AskWaits, WaitsReport
from skate_rpc.wait_report import ARGUMENTS, NODE, SUBMITTED, BlockedRow, RunRow, TaskRow
from skate_worker.machine.references import PENDING, STORED, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from skate_worker.core import CoreWorker
    from skate_worker.machine.lease_pool import KeyQueue
    from skate_worker.submission import Submission

OBJECTS_MAX = 100  # that one row names
TASK_ID_BYTES = 24
UNITS = 10_000  # of one whole resource


def make_waits(core: CoreWorker, ask: AskWaits) -> WaitsReport:
    """The answer, of at most ``rows_max`` tasks and those that are asked for by name. Any thread.

    What was sent or waits for arguments comes first: of tasks that wait for a worker a few of each
    kind tell as much as all. O(rows), and O(unfinished tasks) when some are asked for by name.
    """
    with core.ownership.lock:
        rows = [*_begun(core)]
        left_out = max(0, len(rows) - ask.rows_max)
        if left_out:
            rows = [*rows[: ask.rows_max], *(row for row in rows[ask.rows_max :] if _is(row, ask))]
        for queue in core.tasks.queues():
            left_out += _queued(queue, ask, rows)
    executor = core.executor
    now_s = time.monotonic()
    blocked = [
        BlockedRow(
            one.task_id,
            [entry.object_id for entry in islice(one.entries, OBJECTS_MAX)],
            one.needed if one.needed >= 0 else len(one.entries),
            now_s - one.since_s,
            one.has_timeout,
        )
        for one in list(core.blocked.values())
        if len(one.entries) <= OBJECTS_MAX or one.needed < 0
    ]
    return WaitsReport(
        ask.number,
        rows,
        left_out,
        blocked,
        [] if executor is None else [RunRow(*one) for one in executor.running()],
        b"" if executor is None else executor.actor_id,
        1 if executor is None else executor.slots,
    )


def reason_here(core: CoreWorker, entry: Entry) -> str:
    """Why a value is not there, as far as this process alone knows. O(unfinished tasks)."""
    report = make_waits(core, AskWaits(0, 0, entry.object_id[:TASK_ID_BYTES]))
    if not report.tasks:
        return "Its task was submitted by another process."
    row = report.tasks[0]
    match row.state:
        case "PENDING_ARGS_AVAIL":
            what = f"waits for {len(row.waits_for)} of its arguments"
        case "SUBMITTED_TO_WORKER":
            what = "was sent to its worker"
        case _ if row.actor_id:
            what = f"waits for actor {row.actor_id.hex()}"
        case _:
            names = ", ".join(f"{name} {units / UNITS:g}" for name, units in row.needs.items())
            what = f"waits for a worker with {names or 'no resources'}"
    return f"The task {row.name} {what}."


def _is(row: TaskRow | Submission, ask: AskWaits) -> bool:
    return bool(ask.prefix) and row.task_id.startswith(ask.prefix)


def _begun(core: CoreWorker) -> Iterator[TaskRow]:
    """Tasks that wait for arguments or were sent, and all calls. With the lock."""
    for submission in core.tasks.unresolved():
        yield _row(submission, ARGUMENTS, _missing(submission))
    for queue in core.tasks.queues():
        key: Any = queue.key  # a SchedulingKey
        for lease in queue.leases.values():
            for submission in lease.in_flight.values():
                yield _row(submission, SUBMITTED, needs=dict(key[0]), worker_id=lease.worker_id)
    for calls in core.actor_calls.all_calls():
        view = calls.view
        worker_id = b"" if view is None else view.worker_id
        for call in calls.in_flight.values():
            yield _row(call, SUBMITTED, worker_id=worker_id, actor_id=calls.actor_id)
        for call in calls.waiting:
            state = NODE if call.is_resolved else ARGUMENTS
            yield _row(call, state, _missing(call), actor_id=calls.actor_id)


def _queued(queue: KeyQueue[Submission], ask: AskWaits, rows: list[TaskRow]) -> int:
    """Add the tasks of a queue that wait for a worker; returns how many are left out."""
    key: Any = queue.key
    room = max(0, ask.rows_max - len(rows))
    chosen = list(islice(queue.pending, room))
    if ask.prefix:
        chosen += (one for one in islice(queue.pending, room, None) if _is(one, ask))
    for submission in chosen:
        row = _row(submission, NODE, needs=dict(key[0]), request_ids=list(queue.requests))
        row.queued = len(queue.pending)
        rows.append(row)
    return len(queue.pending) - len(chosen)


def _row(
    submission: Submission,
    state: str,
    waits_for: list[bytes] | None = None,
    **fields: Any,
) -> TaskRow:
    message = submission.message
    return TaskRow(
        submission.task_id, message.name, state, waits_for or [], attempt=message.attempt, **fields
    )


def _missing(submission: Submission) -> list[bytes]:
    entries: Iterable[Entry] = (entry for _, entry in submission.top_level or ())
    missing = (
        entry.object_id
        for entry in entries
        if entry.state == PENDING or (entry.state == STORED and not entry.node_id)
    )
    return list(islice(missing, OBJECTS_MAX))
