"""The client of a node's control service, used by the GCS and the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import grpc.aio
import msgspec

from skate_rpc.calls import Caller, RetryPolicy
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_rpc.object_report import ROWS_MAX, NodeObjects
from skate_rpc.wait_report import Explanation, NodeWaits

GRACE_S = 2.0  # for the reply, beyond what those who are asked may take


class RayletClient:
    """RayletService of one node."""

    def __init__(
        self, channel: grpc.aio.Channel, target: str = "", retry: RetryPolicy | None = None
    ) -> None:
        """``target`` is named in errors. The channel stays the caller's to close."""
        self._caller = Caller(channel, target, retry)
        self._stub = raylet_pb2_grpc.RayletServiceStub(channel)

    async def start_actor(
        self, spec: gcs_pb2.ActorSpec, incarnation: int, *, timeout_s: float | None = None
    ) -> raylet_pb2.StartActorReply:
        """Ask the node to start one life of an actor; the outcome is reported to the GCS."""
        return await self._caller.unary(
            "RayletService.StartActor",
            self._stub.StartActor,
            raylet_pb2.StartActorRequest(spec=spec, incarnation=incarnation),
            timeout_s,
        )

    async def kill_actor(
        self,
        actor_id: bytes,
        incarnation: int,
        cause: common_pb2.DeathCause | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """End the worker of one life of an actor; nothing happens when it has ended."""
        await self._caller.unary(
            "RayletService.KillActor",
            self._stub.KillActor,
            raylet_pb2.KillActorOnNodeRequest(
                actor_id=actor_id, incarnation=incarnation, cause=cause
            ),
            timeout_s,
        )

    async def prepare_bundles(
        self, orders: Sequence[raylet_pb2.PrepareBundles], *, timeout_s: float | None = None
    ) -> list[str]:
        """Have the node set bundles aside; for each order why it did not, or nothing."""
        reply = await self._caller.unary(
            "RayletService.PrepareBundles",
            self._stub.PrepareBundles,
            raylet_pb2.PrepareBundlesRequest(orders=orders),
            timeout_s,
        )
        return list(reply.refusals)

    async def commit_bundles(
        self, orders: Sequence[gcs_pb2.BundleRef], *, timeout_s: float | None = None
    ) -> list[str]:
        """Open bundles that were set aside; for each order why it can not, or nothing."""
        reply = await self._caller.unary(
            "RayletService.CommitBundles",
            self._stub.CommitBundles,
            raylet_pb2.CommitBundlesRequest(orders=orders),
            timeout_s,
        )
        return list(reply.refusals)

    async def return_bundles(
        self, orders: Sequence[gcs_pb2.BundleRef], *, timeout_s: float | None = None
    ) -> None:
        """Have the node give bundles back; who uses them is killed."""
        await self._caller.unary(
            "RayletService.ReturnBundles",
            self._stub.ReturnBundles,
            raylet_pb2.ReturnBundlesRequest(orders=orders),
            timeout_s,
        )

    def borrow(
        self, orders: AsyncIterator[raylet_pb2.LoanOrders]
    ) -> AsyncGenerator[raylet_pb2.LoanNews, None]:
        """The line on which a node asks this one for leases: ``orders`` there, news back.

        The first of ``orders`` says hello; the first news, an empty one, says that the line is
        open. It lasts until it breaks with an error, or ``orders`` ends.
        """
        return self._caller.stream("RayletService.Borrow", self._stub.Borrow, orders)

    def forward_logs(
        self, items: AsyncIterator[raylet_pb2.LogForward]
    ) -> AsyncGenerator[raylet_pb2.LogOrder, None]:
        """Send what workers here print to their driver's node: ``items`` there, orders back.

        The first of ``items`` says hello; the first order says where to go on.
        """
        return self._caller.stream("RayletService.ForwardLogs", self._stub.ForwardLogs, items)

    async def status(self, *, timeout_s: float | None = None) -> raylet_pb2.NodeStatusReply:
        """Leases, workers and store of the node at this moment."""
        return await self._caller.unary(
            "RayletService.Status", self._stub.Status, raylet_pb2.NodeStatusRequest(), timeout_s
        )

    async def list_logs(self, *, timeout_s: float | None = None) -> Sequence[raylet_pb2.LogFile]:
        """The files among the node's logs, by name."""
        reply = await self._caller.unary(
            "RayletService.ListLogs", self._stub.ListLogs, raylet_pb2.ListLogsRequest(), timeout_s
        )
        return reply.files

    async def read_log(
        self, file: str, offset: int, bytes_max: int, *, timeout_s: float | None = None
    ) -> raylet_pb2.ReadLogReply:
        """Part of a file of :meth:`list_logs`; a negative offset counts from its end."""
        return await self._caller.unary(
            "RayletService.ReadLog",
            self._stub.ReadLog,
            raylet_pb2.ReadLogRequest(file=file, offset=offset, bytes_max=bytes_max),
            timeout_s,
        )

    async def objects(
        self, *, whole_cluster: bool, rows_max: int = ROWS_MAX, timeout_s: float
    ) -> list[NodeObjects]:
        """What the node, or every live node of its cluster, knows of its objects.

        ``timeout_s`` is for the nodes and processes that are asked; who is late is in the answer
        with why. The call itself may take ``GRACE_S`` longer.
        """
        reply = await self._caller.unary(
            "RayletService.Objects",
            self._stub.Objects,
            raylet_pb2.NodeObjectsRequest(
                whole_cluster=whole_cluster, rows_max=rows_max, timeout_s=timeout_s
            ),
            timeout_s + GRACE_S,
        )
        return [msgspec.msgpack.decode(node, type=NodeObjects) for node in reply.nodes]

    async def waits(self, prefix: str, *, timeout_s: float) -> NodeWaits:
        """What waits at the node, and for what. ``timeout_s`` and ``GRACE_S`` as above."""
        reply = await self._caller.unary(
            "RayletService.Waits",
            self._stub.Waits,
            raylet_pb2.NodeWaitsRequest(prefix=prefix, timeout_s=timeout_s),
            timeout_s + GRACE_S,
        )
        return msgspec.msgpack.decode(reply.node, type=NodeWaits)

    async def why(self, prefix: str, *, timeout_s: float) -> list[Explanation]:
        """Explain what has an id (hex) that begins so, asking the whole cluster by this node."""
        reply = await self._caller.unary(
            "RayletService.Why",
            self._stub.Why,
            raylet_pb2.WhyRequest(prefix=prefix, timeout_s=timeout_s),
            timeout_s + 2 * GRACE_S,
        )
        return [msgspec.msgpack.decode(one, type=Explanation) for one in reply.explanations]

    async def drain(
        self, drain: gcs_pb2.DrainInfo, *, timeout_s: float | None = None
    ) -> raylet_pb2.DrainReply:
        """Ask the node to take no new work and to leave; it may refuse if it is to be idle."""
        return await self._caller.unary(
            "RayletService.Drain",
            self._stub.Drain,
            raylet_pb2.DrainRequest(drain=drain),
            timeout_s,
        )

    async def move_gcs(
        self, endpoint: str, cluster_id: str, gcs_life: int, *, timeout_s: float | None = None
    ) -> bool:
        """Tell the node where the GCS is now; False: it knows a later one, or another cluster."""
        reply = await self._caller.unary(
            "RayletService.MoveGcs",
            self._stub.MoveGcs,
            raylet_pb2.MoveGcsRequest(endpoint=endpoint, cluster_id=cluster_id, gcs_life=gcs_life),
            timeout_s,
        )
        return reply.accepted

    async def shutdown(
        self, grace_s: float, reason: str, *, timeout_s: float | None = None
    ) -> None:
        """Ask the node to stop within ``grace_s``; it answers before it has stopped."""
        await self._caller.unary(
            "RayletService.Shutdown",
            self._stub.Shutdown,
            raylet_pb2.ShutdownNodeRequest(grace_s=grace_s, reason=reason),
            timeout_s,
        )
