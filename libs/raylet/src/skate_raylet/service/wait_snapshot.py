"""The waits of a whole cluster at one moment, indexed, and as the graph in which circles are found.

Before it: ``wait_reporter``, which asks every process and node. After it: ``explain``, which puts
it in sentences. No I/O here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from skate_rpc import wait_report as report
from skate_rpc.node_protocol import PlacementGroupView
from skate_scheduler import ResourceSet, WaitKind
from skate_scheduler.wait_graph import ActorLine, Gate, Hold, Room, Turn, Values, WaitState

TASK_ID_BYTES: Final = 24
# Reports are not all of one moment. A wait that is older than the whole question was there in all
# of them; one that is younger may have come of the other's end.
SETTLED_S: Final = 1.0
_FOR_ROOM: Final = frozenset(
    kind.value
    for kind in (
        WaitKind.RESOURCES,
        WaitKind.RESERVED,
        WaitKind.TURN,
        WaitKind.ELSEWHERE,
        WaitKind.ASKED,
    )
)


class At(msgspec.Struct, frozen=True):
    """A process and its node."""

    node: report.NodeWaits
    process: report.ProcessWaits


class Snapshot:
    """Rows of all nodes by what they are about. O(rows) to make."""

    def __init__(
        self,
        nodes: Sequence[report.NodeWaits],
        actors: Sequence[report.ActorRow] = (),
        groups: Sequence[PlacementGroupView] = (),
        unix_s: float = 0.0,
    ) -> None:
        """``unix_s``: the present, to tell since when a group waits."""
        self.groups = {group.group_id: group for group in groups}
        self.unix_s = unix_s
        self.nodes = {node.node_id: node for node in nodes}
        self.actors = {actor.actor_id: actor for actor in actors}
        self.processes: dict[bytes, At] = {}
        self.tasks: dict[bytes, tuple[At, report.TaskRow]] = {}
        self.running: dict[bytes, tuple[At, report.RunRow]] = {}
        self.blocked: dict[bytes, tuple[At, report.BlockedRow]] = {}
        self.requests: dict[tuple[bytes, int], tuple[report.NodeWaits, report.RequestRow]] = {}
        self.starts: dict[bytes, tuple[report.NodeWaits, report.RequestRow]] = {}  # of actors
        self.leases: dict[bytes, tuple[report.NodeWaits, report.LeaseRow]] = {}  # by worker
        self.hosts: dict[bytes, At] = {}  # where an actor lives
        for node in nodes:
            for process in node.processes:
                self._index_process(At(node, process))
            for request in node.requests:
                if request.actor_id:
                    self.starts[request.actor_id] = (node, request)
                else:
                    self.requests[request.holder_id, request.request_id] = (node, request)
            for lease in node.leases:
                self.leases[lease.worker_id] = (node, lease)

    def _index_process(self, at: At) -> None:
        process = at.process
        self.processes[process.worker_id] = at
        if process.actor_id:
            self.hosts[process.actor_id] = at
        for task in process.tasks:
            self.tasks[task.task_id] = (at, task)
        for run in process.running:
            self.running[run.task_id] = (at, run)
        for wait in process.blocked:
            self.blocked.setdefault(wait.task_id, (at, wait))

    def requests_of(
        self, at: At, task: report.TaskRow
    ) -> list[tuple[report.NodeWaits, report.RequestRow]]:
        """The lease requests that may bring a task a worker."""
        found = (self.requests.get((at.process.worker_id, one)) for one in task.request_ids)
        return [one for one in found if one is not None]

    def problems(self) -> list[str]:
        """Who did not report, or not everything."""
        found: list[str] = []
        for node in self.nodes.values():
            name = f"node {node.node_id.hex()[:12]}"
            if node.problem:
                found.append(f"{name}: {node.problem}")
            for process in node.processes:
                who = f"process {process.pid} on {name}"
                if process.problem:
                    found.append(f"{who}: {process.problem}")
                elif process.left_out:
                    found.append(f"{who}: {process.left_out} more of its tasks are not looked at")
        return found

    def graph(self, asked_for_s: float) -> WaitState:
        """Who waits for what, as far as it is certain; ``asked_for_s``: how long the reports took.

        What is not certain is left out: it may go on.
        """
        settled_s = max(SETTLED_S, asked_for_s)
        state = WaitState(
            totals={node_id: ResourceSet(node.total) for node_id, node in self.nodes.items()},
            actors={
                actor_id: ActorLine(
                    at.process.slots, tuple(run.task_id for run in at.process.running)
                )
                for actor_id, at in self.hosts.items()
            },
        )
        for task_id, (at, task) in self.tasks.items():
            gate = self._gate_of(at, task, settled_s)
            if gate is not None:
                state.gates[task_id] = gate
        for task_id, (_, wait) in self.blocked.items():
            if wait.waited_s >= settled_s and not wait.has_timeout:
                state.gates[task_id] = Values(_makers(wait.object_ids), wait.needed)
        for actor_id, (node, request) in self.starts.items():
            if request.kind in _FOR_ROOM and request.waited_s >= settled_s:
                state.gates[actor_id] = Room(ResourceSet(request.needs), (node.node_id,))
        for worker_id, (node, lease) in self.leases.items():
            known = self.processes.get(worker_id)
            if known is not None and lease.holds:
                tasks = tuple(run.task_id for run in known.process.running)
                state.holds.append(Hold(node.node_id, ResourceSet(lease.holds), tasks))
        return state

    def _gate_of(self, at: At, task: report.TaskRow, settled_s: float) -> Gate | None:
        if task.state == report.ARGUMENTS:
            makers = _makers(task.waits_for)
            return Values(makers, len(makers)) if makers else None
        if task.task_id in self.running:
            return None  # what it waits for, if it does, its own process says
        if task.actor_id:
            if task.state == report.SUBMITTED:
                return Turn(task.actor_id)
            return Values((task.actor_id,), 1) if task.actor_id in self.starts else None
        if task.state != report.NODE:
            return None
        requests = [request for _, request in self.requests_of(at, task)]
        is_settled = requests and all(
            request.kind in _FOR_ROOM and request.waited_s >= settled_s for request in requests
        )
        return Room(ResourceSet(task.needs)) if is_settled else None


def _makers(object_ids: Sequence[bytes]) -> tuple[bytes, ...]:
    return tuple(object_id[:TASK_ID_BYTES] for object_id in object_ids)
