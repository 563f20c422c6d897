"""Why something waits, in sentences: of a task, an object, an actor, a placement group, a node or a
worker.

Before it: ``wait_snapshot``. After it: ``skate why``, ``ref.why()``, the warning of a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from skate_raylet.service.explain_groups import lines_of_group, name_of_group
from skate_raylet.service.wait_snapshot import TASK_ID_BYTES, At, Snapshot
from skate_rpc import wait_report as report
from skate_rpc.node_protocol import PlacementGroupView
from skate_rpc.wait_report import Explanation
from skate_scheduler import ResourceSet
from skate_scheduler.wait_graph import (
    Room,
    Turn,
    Values,
    WaitState,
    blockers,
    find_circles,
    find_stuck,
)

SUBJECTS_MAX: Final = 20
DEPTH_MAX: Final = 8  # how far a chain of waits is followed
BREADTH_MAX: Final = 3  # how many of the things waited for are followed
CIRCLE_SHOWN_MAX: Final = 50
OBJECT_ID_BYTES: Final = 28


def explain(prefix: str, snapshot: Snapshot, asked_for_s: float) -> list[Explanation]:
    """Of everything whose id in hex begins so, at most ``SUBJECTS_MAX``; empty: nothing does.

    ``asked_for_s``: how long the reports of the snapshot took to come.
    """
    return _Explainer(snapshot, asked_for_s).explain(prefix.lower())


class _Explainer:
    def __init__(self, snapshot: Snapshot, asked_for_s: float) -> None:
        self._snapshot = snapshot
        self._state: WaitState = snapshot.graph(asked_for_s)
        self._stuck: Mapping[bytes, None] = find_stuck(self._state)
        self._circles = find_circles(self._state, self._stuck)
        self._problems = tuple(snapshot.problems())

    def explain(self, prefix: str) -> list[Explanation]:
        found: list[Explanation] = []
        for explanation in self._matching(prefix):
            found.append(explanation)
            if len(found) == SUBJECTS_MAX:
                break
        return found

    def _matching(self, prefix: str) -> Iterator[Explanation]:
        snapshot = self._snapshot
        task_prefix = prefix[: 2 * TASK_ID_BYTES]
        is_object = len(prefix) > len(task_prefix)
        for task_id in dict.fromkeys([*snapshot.tasks, *snapshot.running]):
            if task_id.hex().startswith(task_prefix):
                yield self._task(task_id, prefix if is_object else "")
        for actor_id in dict.fromkeys([*snapshot.actors, *snapshot.hosts]):
            if actor_id.hex().startswith(prefix):
                yield self._actor(actor_id)
        for group_id, group in snapshot.groups.items():
            if group_id.hex().startswith(prefix):
                yield self._group(group)
        for node_id, node in snapshot.nodes.items():
            if node_id.hex().startswith(prefix):
                yield self._node(node)
        for worker_id, at in snapshot.processes.items():
            if worker_id.hex().startswith(prefix):
                yield self._worker(at)

    # ---- tasks ----

    def _task(self, task_id: bytes, object_id: str) -> Explanation:
        subject, kind = self._name(task_id), "task"
        if object_id:
            subject, kind = f"object {object_id}, made by {subject}", "object"
        lines = self._lines_of(task_id, 0, {})
        circle = self._circle_from(task_id)
        return Explanation(
            subject, kind, self._task_state(task_id), tuple(lines), circle, self._problems
        )

    def _task_state(self, task_id: bytes) -> str:
        snapshot = self._snapshot
        if task_id in snapshot.blocked:
            return report.BLOCKED
        if task_id in snapshot.running:
            return report.RUNNING
        owned = snapshot.tasks.get(task_id)
        return "" if owned is None else owned[1].state

    def _lines_of(self, task_id: bytes, depth: int, seen: dict[bytes, None]) -> list[str]:
        """What a task does or waits for; what that waits for follows, indented."""
        pad = "  " * depth
        if task_id in seen:
            return [f"{pad}It was named above."]
        if depth > DEPTH_MAX:
            return [f"{pad}And so on."]
        seen[task_id] = None
        run = self._snapshot.running.get(task_id)
        if run is not None:
            return self._lines_of_run(*run, depth, seen)
        owned = self._snapshot.tasks.get(task_id)
        if owned is None:
            return [
                f"{pad}Nobody who answered knows it: it has ended, or its owner did not answer."
            ]
        at, task = owned
        owner = f"{pad}It was submitted by {_process(at)}."
        match task.state:
            case report.ARGUMENTS:
                text = f"{pad}It waits for {_count(len(task.waits_for), 'argument')}:"
                return [owner, text, *self._lines_of_objects(task.waits_for, depth, seen)]
            case report.SUBMITTED:
                return [owner, *self._lines_of_sent(task, depth, seen)]
            case _ if task.actor_id:
                return [owner, *self._lines_of_actor(task.actor_id, depth)]
            case _:
                return [owner, *self._lines_of_queued(at, task, depth)]

    def _lines_of_run(
        self, at: At, run: report.RunRow, depth: int, seen: dict[bytes, None]
    ) -> list[str]:
        pad = "  " * depth
        lines = [f"{pad}It has run on {_process(at)} for {_seconds(run.run_s)}."]
        blocked = self._snapshot.blocked.get(run.task_id)
        if blocked is not None:
            wait = blocked[1]
            some = "" if wait.needed >= len(wait.object_ids) else f"{wait.needed} of "
            text = f"in get() or wait(), for {some}{_count(len(wait.object_ids), 'object')}:"
            lines.append(f"{pad}It has waited for {_seconds(wait.waited_s)} {text}")
            lines += self._lines_of_objects(wait.object_ids, depth, seen)
        return lines

    def _lines_of_objects(
        self, object_ids: list[bytes], depth: int, seen: dict[bytes, None]
    ) -> list[str]:
        pad = "  " * (depth + 1)
        lines: list[str] = []
        makers = dict.fromkeys(object_id[:TASK_ID_BYTES] for object_id in object_ids)
        for maker in list(makers)[:BREADTH_MAX]:
            lines.append(f"{pad}{self._name(maker)}:")
            lines += self._lines_of(maker, depth + 2, seen)
        if len(makers) > BREADTH_MAX:
            lines.append(f"{pad}and {len(makers) - BREADTH_MAX} more.")
        return lines

    def _lines_of_sent(
        self, task: report.TaskRow, depth: int, seen: dict[bytes, None]
    ) -> list[str]:
        pad = "  " * depth
        at = self._snapshot.processes.get(task.worker_id)
        if at is None:
            return [
                f"{pad}It was sent to worker {task.worker_id.hex()[:12]}, which did not answer."
            ]
        before = [run.task_id for run in at.process.running]
        if not before:
            return [f"{pad}It was sent to {_process(at)}, and starts or has just ended."]
        slots = at.process.slots
        limit = f", which runs at most {slots} at a time" if task.actor_id and slots > 1 else ""
        lines = [f"{pad}It was sent to {_process(at)}{limit}, and stands behind:"]
        for other in before[:BREADTH_MAX]:
            lines.append(f"{pad}  {self._name(other)}:")
            lines += self._lines_of(other, depth + 2, seen)
        return lines

    def _lines_of_queued(self, at: At, task: report.TaskRow, depth: int) -> list[str]:
        pad = "  " * depth
        needs = ResourceSet(task.needs)
        others = f", as do {task.queued - 1} others like it" if task.queued > 1 else ""
        lines = [f"{pad}It waits for a worker with {needs}{others}."]
        for node, request in self._snapshot.requests_of(at, task)[:1]:
            waited = _seconds(request.waited_s)
            lines.append(f"{pad}Asked for at {_node(node)} {waited} ago: {request.reason}")
            lines += self._lines_of_waiting_group(request.group_id, depth)
        return lines

    # ---- actors, nodes, workers ----

    def _actor(self, actor_id: bytes) -> Explanation:
        row = self._snapshot.actors.get(actor_id)
        state = "ALIVE" if row is None else row.state
        lines = self._lines_of_actor(actor_id, 0)
        return Explanation(
            self._name_of_actor(actor_id),
            "actor",
            state,
            tuple(lines),
            self._circle_of_actor(actor_id),
            self._problems,
        )

    def _lines_of_actor(self, actor_id: bytes, depth: int) -> list[str]:
        pad = "  " * depth
        snapshot = self._snapshot
        row = snapshot.actors.get(actor_id)
        at = snapshot.hosts.get(actor_id)
        lines: list[str] = []
        if row is not None and row.state == "DEAD":
            return [f"{pad}{self._name_of_actor(actor_id)} is dead: {row.death}"]
        if at is not None:
            running, slots = at.process.running, at.process.slots
            what = f"{len(running)} of at most {slots} calls run" if running else "no call runs"
            lines.append(f"{pad}{self._name_of_actor(actor_id)} lives on {_process(at)}; {what}.")
            for run in running[:BREADTH_MAX]:
                lines.append(f"{pad}  {self._name(run.task_id)}:")
                lines += self._lines_of(run.task_id, depth + 2, {})
            return lines
        if row is None:
            return [f"{pad}The GCS knows no such actor."]
        if row.pending_reason:
            lines.append(
                f"{pad}{self._name_of_actor(actor_id)} is not placed: {row.pending_reason}"
            )
            lines += self._lines_of_waiting_group(row.group_id, depth)
        start = snapshot.starts.get(actor_id)
        if start is not None:
            node, request = start
            waited = _seconds(request.waited_s)
            lines.append(f"{pad}Asked for at {_node(node)} {waited} ago: {request.reason}")
        if not lines and row.node_id:
            place = snapshot.nodes.get(row.node_id)
            where = _node(place) if place is not None else f"node {row.node_id.hex()[:12]}"
            doing = "lives" if row.state == "ALIVE" else "starts"
            lines.append(f"{pad}{self._name_of_actor(actor_id)} {doing} on {where}.")
        return lines or [f"{pad}{self._name_of_actor(actor_id)} is {row.state}."]

    def _group(self, group: PlacementGroupView) -> Explanation:
        lines = lines_of_group(group, self._snapshot, self._holders())
        name = name_of_group(group)
        return Explanation(name, "placement group", group.state, tuple(lines), (), self._problems)

    def _lines_of_waiting_group(self, group_id: bytes, depth: int) -> list[str]:
        """Why the group is not there, for what waits inside it."""
        group = self._snapshot.groups.get(group_id)
        if group is None or group.state == "CREATED":
            return []
        pad = "  " * (depth + 1)
        lines = lines_of_group(group, self._snapshot, self._holders())
        heading = f"{pad}{name_of_group(group)}: {group.state}"
        return [heading, *(f"{pad}  {line}" for line in lines)]

    def _holders(self) -> dict[bytes, str]:
        """What to call the workers that are leased: by what they run, or whose they are."""
        snapshot = self._snapshot
        holders: dict[bytes, str] = {}
        for worker_id, (_, lease) in snapshot.leases.items():
            at = snapshot.processes.get(worker_id)
            if lease.actor_id:
                holders[worker_id] = self._name_of_actor(lease.actor_id)
            elif at is not None and at.process.running:
                holders[worker_id] = self._name(at.process.running[0].task_id)
            else:
                holders[worker_id] = f"a worker of {lease.holder_id.hex()[:12]}"
        return holders

    def _node(self, node: report.NodeWaits) -> Explanation:
        lines: list[str] = []
        if node.state != "ALIVE":
            lines.append(f"It is dead: {node.death}")
        else:
            held = ResourceSet.total_of(ResourceSet(lease.holds) for lease in node.leases)
            lines.append(f"It has {ResourceSet(node.total)}; in use: {held}.")
            reasons: dict[str, int] = {}
            for request in node.requests:
                reasons[request.reason] = reasons.get(request.reason, 0) + 1
            lines += [
                f"{_count(count, 'request')} waits: {reason}"
                if count == 1
                else f"{count} requests wait: {reason}"
                for reason, count in list(reasons.items())[:SUBJECTS_MAX]
            ]
        return Explanation(_node(node), "node", node.state, tuple(lines), (), self._problems)

    def _worker(self, at: At) -> Explanation:
        process = at.process
        lines: list[str] = []
        for run in process.running[:SUBJECTS_MAX]:
            lines.append(f"It runs {self._name(run.task_id)}:")
            lines += self._lines_of(run.task_id, 1, {})
        lease = self._snapshot.leases.get(process.worker_id)
        if lease is not None:
            lines.append(f"It holds {ResourceSet(lease[1].holds)}.")
        kind = "driver" if process.is_driver else "worker"
        state = report.RUNNING if process.running else "IDLE"
        name = f"{kind} {process.worker_id.hex()}: {_process(at)}"
        return Explanation(name, "worker", state, tuple(lines), (), self._problems)

    # ---- circles ----

    def _circle_of_actor(self, actor_id: bytes) -> tuple[str, ...]:
        if actor_id in self._stuck:
            return self._circle_from(actor_id)
        at = self._snapshot.hosts.get(actor_id)
        for run in () if at is None else at.process.running:
            if run.task_id in self._stuck:
                return self._circle_from(run.task_id)
        return ()

    def _circle_from(self, task_id: bytes) -> tuple[str, ...]:
        """The circle that a stuck task is in or leads to, one sentence a member."""
        if task_id not in self._stuck:
            return ()
        of_member = {one: circle for circle in self._circles for one in circle}
        while task_id not in of_member:
            task_id = blockers(task_id, self._state, self._stuck)[0]
        circle = of_member[task_id]
        lines = [
            self._link(one, after)
            for one, after in zip(circle, [*circle[1:], circle[0]], strict=True)
        ]
        return tuple(lines[:CIRCLE_SHOWN_MAX])

    def _link(self, one: bytes, after: bytes) -> str:
        gate = self._state.gates[one]
        name, other = self._name(one), self._name(after)
        run = self._snapshot.running.get(one)
        where = f", on {_process(run[0])}," if run is not None else ""
        match gate:
            case Values():
                return f"  {name}{where} waits for {other}."
            case Turn(actor_id):
                actor = self._name_of_actor(actor_id)
                return f"  {name} waits for its turn at {actor}, which runs {other}."
            case Room(needs):
                return f"  {name} waits for {needs}, which is held by {other}."

    # ---- names ----

    def _name(self, task_id: bytes) -> str:
        snapshot = self._snapshot
        if task_id in snapshot.starts or task_id in snapshot.actors:
            return f"the start of {self._name_of_actor(task_id)}"
        owned, run = snapshot.tasks.get(task_id), snapshot.running.get(task_id)
        name = owned[1].name if owned is not None else run[1].name if run is not None else "?"
        is_call = owned is not None and owned[1].actor_id
        kind = "call" if is_call or (run and run[0].process.actor_id) else "task"
        return f"{kind} {name} ({task_id.hex()})"

    def _name_of_actor(self, actor_id: bytes) -> str:
        row = self._snapshot.actors.get(actor_id)
        name = "" if row is None else f"{row.class_name} "
        return f"actor {name}({actor_id.hex()})"


def _process(at: At) -> str:
    kind = "the driver" if at.process.is_driver else "worker"
    return f"{kind}, pid {at.process.pid}, on {_node(at.node)}"


def _node(node: report.NodeWaits) -> str:
    name = f" ({node.node_name})" if node.node_name else ""
    return f"node {node.node_id.hex()[:12]}{name}"


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.1f} s"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
