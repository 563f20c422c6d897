"""The runtime of a driver or worker, as the API sees it.

One class in four layers, each of which relies only on those before it: ``membership``,
``object_access``, ``task_submission``, ``actor_management``.
"""

from __future__ import annotations

from skate_rpc import node_protocol as node
from skate_worker.actor_management import ActorManagement
from skate_worker.execution import Executor
from skate_worker.outcome import OutcomeWriter
from skate_worker.streams import Streams


class CoreWorker(ActorManagement):
    """One process's membership in a cluster, with all it can do. Thread-safe.

    Made by :meth:`connect_driver` or :meth:`connect_worker`.
    """

    def nodes(self) -> list[node.NodeView]:
        """The node table, dead nodes included."""
        return self.raylet.call("list_nodes", node.Empty(), list[node.NodeView])

    def _make_streams(self) -> Streams:
        return Streams(self, self.ownership)

    def _prepare_execution(self) -> None:
        from skate_worker.actor_host import ActorHost  # noqa: PLC0415 - imports asyncio; drivers never run tasks

        self.outcomes = OutcomeWriter(self.ownership, self.ip)
        self.executor = Executor(self, self.outcomes)
        self.actor_host = ActorHost(self, self.executor, self.outcomes)
