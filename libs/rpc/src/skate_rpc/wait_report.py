"""What a cluster waits for: the records that travel, and the explanation that comes of them.

A process reports the tasks that it owns and that have not ended, what it runs, and what its threads
wait for; a node adds the requests that wait there and its leases; ``skate_raylet.service.explain``
joins them. Every struct is an array on the wire; fields may only be appended, each with a default.
Times are seconds before the report, -1 when they are not known. Amounts are in units of 1e-4.
"""

from __future__ import annotations

from typing import Final

import msgspec

ROWS_MAX: Final = 10_000  # tasks of one process in one report
ANSWER_S: Final = 2.0  # a process that takes longer is named in the report, not waited for
TIMEOUT_S: Final = 5.0  # for an explanation, from the question to the answer

ARGUMENTS: Final = "PENDING_ARGS_AVAIL"
NODE: Final = "PENDING_NODE_ASSIGNMENT"
SUBMITTED: Final = "SUBMITTED_TO_WORKER"
RUNNING: Final = "RUNNING"
DEADLOCK: Final = "Deadlock: these wait for each other in a circle and never end."

BLOCKED: Final = "RUNNING_IN_RAY_GET"


class TaskRow(msgspec.Struct, array_like=True, gc=False):
    """A task or call that has not ended, as its owner knows it."""

    task_id: bytes
    name: str
    state: str  # ARGUMENTS, NODE or SUBMITTED
    waits_for: list[bytes] = []  # the objects that are not there: arguments
    needs: dict[str, int] = {}
    request_ids: list[int] = []  # the lease requests that it may be served by
    queued: int = 0  # tasks like it that wait for a worker, itself included
    worker_id: bytes = b""  # where it was sent
    actor_id: bytes = b""  # of a call
    attempt: int = 0


class BlockedRow(msgspec.Struct, array_like=True, gc=False):
    """A thread that waits in ``get`` or ``wait``."""

    task_id: bytes  # the task that it runs
    object_ids: list[bytes]
    needed: int  # so many of them must come
    waited_s: float
    has_timeout: bool = False  # it goes on without them in time


class RunRow(msgspec.Struct, array_like=True, gc=False):
    """A task or call that runs."""

    task_id: bytes
    name: str
    run_s: float


class ProcessWaits(msgspec.Struct, array_like=True, gc=False):
    """One process."""

    worker_id: bytes
    pid: int
    is_driver: bool
    tasks: list[TaskRow] = []
    left_out: int = 0  # tasks past the limit
    blocked: list[BlockedRow] = []
    running: list[RunRow] = []
    actor_id: bytes = b""
    slots: int = 1  # calls that the actor runs at a time
    problem: str = ""  # why it did not report


class RequestRow(msgspec.Struct, array_like=True, gc=False):
    """A request at a node that has no worker yet."""

    holder_id: bytes
    request_id: int
    needs: dict[str, int]
    kind: str  # as in ``skate_scheduler.WaitKind``
    reason: str  # a sentence
    waited_s: float
    actor_id: bytes = b""  # of an actor's start
    group_id: bytes = b""  # it waits for room inside this placement group


class LeaseRow(msgspec.Struct, array_like=True, gc=False):
    """A worker that is leased, and what it holds now."""

    worker_id: bytes
    holder_id: bytes
    holds: dict[str, int]
    actor_id: bytes = b""
    group_id: bytes = b""  # it is inside this placement group, and holds of its bundle


class ActorRow(msgspec.Struct, array_like=True, gc=False):
    """An actor as the GCS knows it."""

    actor_id: bytes
    class_name: str
    state: str
    name: str = ""
    node_id: bytes = b""
    worker_id: bytes = b""
    pid: int = 0
    incarnation: int = 0
    pending_reason: str = ""
    death: str = ""
    needs: dict[str, int] = {}  # to be placed
    group_id: bytes = b""  # it belongs inside this placement group


class NodeWaits(msgspec.Struct, array_like=True, gc=False):
    """One node with its processes."""

    node_id: bytes
    node_name: str = ""
    ip: str = ""
    total: dict[str, int] = {}
    processes: list[ProcessWaits] = []
    requests: list[RequestRow] = []
    leases: list[LeaseRow] = []
    problem: str = ""  # why it did not report
    state: str = "ALIVE"
    death: str = ""


class Explanation(msgspec.Struct, array_like=True, frozen=True):
    """Why something waits, or what it does. ``str()`` gives the whole text."""

    subject: str  # "task f (8f3a...)"
    kind: str  # "task", "object", "actor", "placement group", "node", "worker"
    state: str  # by Ray's names; "" when nothing is known
    lines: tuple[str, ...] = ()  # sentences; what something waits for follows it, indented
    circle: tuple[str, ...] = ()  # when it waits in or for a circle: who waits for whom, in order
    problems: tuple[str, ...] = ()  # who did not answer

    def to_json(self) -> dict[str, object]:
        """The fields, for ``--format json``."""
        return msgspec.structs.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.subject}: {self.state}" if self.state else self.subject, *self.lines]
        if self.circle:
            lines += [DEADLOCK, *self.circle]
        return "\n".join([*lines, *(f"({problem})" for problem in self.problems)])
