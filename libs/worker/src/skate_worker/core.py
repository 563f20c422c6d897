"""The runtime of a driver or worker, as the API sees it.

One class in layers, each of which relies only on those before it: ``membership``,
``object_access``, and on that ``object_control`` beside ``task_submission`` and
``actor_management``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from skate_rpc import node_protocol as node
from skate_rpc import wait_report
from skate_rpc.object_report import ROWS_MAX, NodeObjects
from skate_rpc.wait_report import Explanation
from skate_worker.actor_management import ActorManagement
from skate_worker.call_site import call_site, clipped, records_all
from skate_worker.execution import Executor
from skate_worker.machine.references import Entry
from skate_worker.object_giving import ObjectGiving
from skate_worker.object_ref import ObjectRef
from skate_worker.object_report import make_report
from skate_worker.outcome import OutcomeWriter
from skate_worker.placement_groups import PlacementGroups
from skate_worker.streams import Streams
from skate_worker.submission import Submission
from skate_worker.wait_report import make_waits, reason_here
from skate_worker.why import explain_ready

ANSWER_MORE_S = 10.0  # for the list of nodes and the way back, beyond what those asked may take


class CoreWorker(ActorManagement, ObjectGiving):
    """One process's membership in a cluster, with all it can do. Thread-safe.

    Made by :meth:`connect_driver` or :meth:`connect_worker`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.placement_groups: PlacementGroups = PlacementGroups(self)
        super().__init__(*args, **kwargs)
        if records_all():
            self.records_sites = True
            self._note_all_sites()

    def list_objects(self, timeout_s: float) -> list[NodeObjects]:
        """What every live node and process says of its objects; who is late, with why."""
        body = node.ListObjects(ROWS_MAX, timeout_s)
        return self.raylet.call("list_objects", body, list[NodeObjects], timeout_s + ANSWER_MORE_S)

    def close(self) -> None:
        """Send what the program measured last, and leave the cluster. Idempotent."""
        measured = sys.modules.get("skate_worker.user_metrics")
        if measured is not None and not self.is_closed and hasattr(self, "raylet"):
            measured.metrics_recorder().flush(self)
        super().close()

    def _handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            **super()._handlers(),
            node.AskObjects: self._on_ask_objects,
            node.AskWaits: self._on_ask_waits,
            node.PlacementGroupUpdate: self.placement_groups.on_update,
        }

    def _on_ask_waits(self, message: node.AskWaits) -> None:
        self.raylet.post(make_waits(self, message))

    def reason_here(self, entry: Entry) -> str:
        """A sentence on a value that is waited for. O(unfinished tasks)."""
        group_id = self.placement_groups.awaited_by(entry)
        if group_id:
            return f"It waits for placement group {group_id.hex()}."
        return reason_here(self, entry)

    def why_object(self, entry: Entry, timeout_s: float) -> Explanation:
        """What is known of a value, also of one that stands for a placement group."""
        group_id = self.placement_groups.awaited_by(entry)
        if group_id:
            return explain_ready(self, entry, group_id, timeout_s)
        return super().why_object(entry, timeout_s)

    def why(self, prefix: str, timeout_s: float = wait_report.TIMEOUT_S) -> list[Explanation]:
        """Explain whatever has an id (hex) that begins so, as far as the cluster answers in time.

        Raises :class:`ControlCallError`, :class:`LocalRayletDiedError` or
        :class:`SkateSystemError`.
        """
        body = node.Why(prefix, timeout_s)
        return self.raylet.call("why", body, list[Explanation], timeout_s + ANSWER_MORE_S)

    def _on_ask_objects(self, message: node.AskObjects) -> None:
        self.raylet.post(make_report(self, message))

    def _note_all_sites(self) -> None:
        # In the place of a question in every put and submission, which would cost all programs.
        put, prepare = self.put, self._prepare

        def noting_put(value: Any) -> ObjectRef[Any]:
            ref = put(value)
            self.ownership.sites[ref._entry.object_id] = call_site()
            return ref

        def noting_prepare(submission: Submission, *rest: Any) -> list[ObjectRef[Any]]:
            refs = prepare(submission, *rest)
            site = clipped(f"{submission.message.name}() from {call_site()}")
            for ref in refs:
                self.ownership.sites[ref._entry.object_id] = site
            return refs

        setattr(self, "put", noting_put)  # noqa: B010 - over the method, for this object alone
        self._prepare = noting_prepare  # type: ignore[assignment]

    def nodes(self) -> list[node.NodeView]:
        """The node table, dead nodes included."""
        return self.raylet.call("list_nodes", node.Empty(), list[node.NodeView])

    def drain_node(self, order: node.DrainOrder) -> node.DrainAnswer:
        """Have a node take no new work and leave."""
        return self.raylet.call("drain_node", order, node.DrainAnswer)

    def _make_streams(self) -> Streams:
        return Streams(self, self.ownership)

    def _prepare_execution(self) -> None:
        from skate_worker.actor_host import ActorHost  # noqa: PLC0415 - imports asyncio; drivers never run tasks

        self.outcomes: OutcomeWriter = OutcomeWriter(self.ownership, self.ip, self._on_raylet_lost)
        self.executor: Executor | None = Executor(self, self.outcomes)
        self.actor_host: ActorHost | None = ActorHost(self, self.executor, self.outcomes)
