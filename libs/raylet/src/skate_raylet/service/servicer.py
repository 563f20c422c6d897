"""RayletService, for the GCS and the command line. Thin: convert, pass on, answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import msgspec

from skate_raylet.machine import events as on
from skate_raylet.machine.lease_table import ActorRequest, Ending, Granted
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.convert import death_from_proto, resources_to_proto
from skate_raylet.service.local_process import LocalProcesses
from skate_raylet.service.logs.log_reader import LogReader
from skate_raylet.service.object_reporter import ObjectReporter
from skate_raylet.service.wait_reporter import WaitReporter
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_scheduler import ResourceSet

Context = grpc.aio.ServicerContext[Any, Any]


class RayletServicer(raylet_pb2_grpc.RayletServiceServicer):
    """Every call may be repeated."""

    def __init__(
        self,
        machine: NodeMachine,
        tell: Callable[[on.NodeEvent], None],
        actors: ActorHost,
        processes: LocalProcesses,
        clock: Callable[[], float],
        fill_status: Callable[[raylet_pb2.NodeStatusReply], None],
        shut_down: Callable[[str, float], None],
        serve_borrower: Callable[
            [AsyncIterator[raylet_pb2.LoanOrders]], AsyncGenerator[raylet_pb2.LoanNews, None]
        ],
        serve_forwarder: Callable[
            [AsyncIterator[raylet_pb2.LogForward]], AsyncGenerator[raylet_pb2.LogOrder, None]
        ],
        log_reader: LogReader,
        objects: ObjectReporter,
        waits: WaitReporter,
        drain: Callable[[gcs_pb2.DrainInfo], str],
        follow_gcs: Callable[[str, str, int], bool],
    ) -> None:
        self._machine = machine
        self._tell = tell
        self._actors = actors
        self._processes = processes
        self._clock = clock
        self._fill_status = fill_status
        self._shut_down = shut_down
        self._serve_borrower = serve_borrower
        self._serve_forwarder = serve_forwarder
        self._log_reader = log_reader
        self._objects = objects
        self._waits = waits
        self._drain = drain
        self._follow_gcs = follow_gcs

    async def StartActor(  # noqa: N802  gRPC's name
        self, request: raylet_pb2.StartActorRequest, context: Context
    ) -> raylet_pb2.StartActorReply:
        """Accept or refuse one life of an actor; its outcome is reported to the GCS."""
        refusal = self._actors.start(request.spec, request.incarnation)
        return raylet_pb2.StartActorReply(accepted=not refusal, refusal=refusal)

    async def KillActor(  # noqa: N802
        self, request: raylet_pb2.KillActorOnNodeRequest, context: Context
    ) -> raylet_pb2.KillActorOnNodeReply:
        """End one life of an actor."""
        cause = death_from_proto(request.cause)
        self._actors.kill(request.actor_id, request.incarnation, cause)
        return raylet_pb2.KillActorOnNodeReply()

    async def PrepareBundles(  # noqa: N802
        self, request: raylet_pb2.PrepareBundlesRequest, context: Context
    ) -> raylet_pb2.PrepareBundlesReply:
        """Set bundles aside, or say why not."""
        refusals: list[str] = []
        for order in request.orders:
            bundles = {index: ResourceSet(one.amounts) for index, one in order.bundles.items()}
            refusal = self._machine.bundle_refusal(order.group_id, order.attempt, bundles)
            if not refusal:
                self._tell(on.BundlesWanted(order.group_id, order.attempt, bundles, order.commit))
            refusals.append(refusal)
        return raylet_pb2.PrepareBundlesReply(refusals=refusals)

    async def CommitBundles(  # noqa: N802
        self, request: raylet_pb2.CommitBundlesRequest, context: Context
    ) -> raylet_pb2.CommitBundlesReply:
        """Open bundles that were set aside."""
        refusals: list[str] = []
        for ref in request.orders:
            indices = tuple(ref.indices)
            is_held = self._machine.holds_bundles(ref.group_id, ref.attempt, indices)
            if is_held:
                self._tell(on.BundlesOpened(ref.group_id, ref.attempt, indices))
            refusals.append("" if is_held else "The node does not hold them (any more).")
        return raylet_pb2.CommitBundlesReply(refusals=refusals)

    async def ReturnBundles(  # noqa: N802
        self, request: raylet_pb2.ReturnBundlesRequest, context: Context
    ) -> raylet_pb2.ReturnBundlesReply:
        """Give bundles back; who uses them is ended."""
        for ref in request.orders:
            self._tell(on.BundlesReturned(ref.group_id, ref.attempt, tuple(ref.indices)))
        return raylet_pb2.ReturnBundlesReply()

    async def Status(  # noqa: N802
        self, request: raylet_pb2.NodeStatusRequest, context: Context
    ) -> raylet_pb2.NodeStatusReply:
        """Leases, workers and store of this moment, and why what waits does."""
        now_s = self._clock()
        reply = raylet_pb2.NodeStatusReply()
        self._fill_status(reply)
        for lease in self._machine.leases():
            state = lease.state
            process = self._processes.get(lease.worker_id)
            request_ = lease.request
            if isinstance(state, (Granted, Ending)):
                reply.leases.add(
                    lease_id=lease.lease_id,
                    worker_id=state.worker_id,
                    worker_pid=process.pid if process is not None else 0,
                    holder_id=lease.holder_id,
                    resources=resources_to_proto(lease.resources),
                    actor_id=request_.actor_id if isinstance(request_, ActorRequest) else b"",
                    lending_cpu=lease.is_blocked,
                    placement_group_id=lease.bundle_key.group_id if lease.bundle_key else b"",
                    bundle_index=lease.bundle_key.index if lease.bundle_key else -1,
                )
        for bundle in self._machine.bundles():
            reply.bundles.add(
                group_id=bundle.key.group_id,
                index=bundle.key.index,
                total=resources_to_proto(bundle.total),
                available=resources_to_proto(bundle.available),
                committed=bundle.is_open,
                returning=bundle.is_returning,
            )
        for waiting in self._machine.waiting(now_s):
            reply.pending.add(
                holder_id=waiting.holder_id,
                resources=resources_to_proto(waiting.needs),
                reason=waiting.reason.sentence(),
                waiting_s=now_s - waiting.reason.since_s,
            )
        return reply

    async def Drain(  # noqa: N802
        self, request: raylet_pb2.DrainRequest, context: Context
    ) -> raylet_pb2.DrainReply:
        """Agree to leave, or say why not."""
        rejection = self._drain(request.drain)
        return raylet_pb2.DrainReply(accepted=not rejection, rejection=rejection)

    async def MoveGcs(  # noqa: N802
        self, request: raylet_pb2.MoveGcsRequest, context: Context
    ) -> raylet_pb2.MoveGcsReply:
        """Follow the GCS to where it is now."""
        accepted = self._follow_gcs(request.endpoint, request.cluster_id, request.gcs_life)
        return raylet_pb2.MoveGcsReply(accepted=accepted)

    async def Objects(  # noqa: N802
        self, request: raylet_pb2.NodeObjectsRequest, context: Context
    ) -> raylet_pb2.NodeObjectsReply:
        """What the processes and the store of this node, or of all, say of their objects."""
        if request.whole_cluster:
            nodes = await self._objects.cluster(request.rows_max, request.timeout_s)
        else:
            nodes = [await self._objects.node(request.rows_max, request.timeout_s)]
        return raylet_pb2.NodeObjectsReply(nodes=map(msgspec.msgpack.encode, nodes))

    async def Waits(  # noqa: N802
        self, request: raylet_pb2.NodeWaitsRequest, context: Context
    ) -> raylet_pb2.NodeWaitsReply:
        """What waits here, and for what."""
        node = await self._waits.node(request.prefix, request.timeout_s)
        return raylet_pb2.NodeWaitsReply(node=msgspec.msgpack.encode(node))

    async def Why(  # noqa: N802
        self, request: raylet_pb2.WhyRequest, context: Context
    ) -> raylet_pb2.WhyReply:
        """Why something of the cluster waits."""
        try:
            found = await self._waits.why(request.prefix, request.timeout_s)
        except RpcError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"The GCS did not answer: {error}")
        return raylet_pb2.WhyReply(explanations=map(msgspec.msgpack.encode, found))

    async def ListLogs(  # noqa: N802
        self, request: raylet_pb2.ListLogsRequest, context: Context
    ) -> raylet_pb2.ListLogsReply:
        """The files among this node's logs."""
        files = await self._log_reader.list_here()
        return raylet_pb2.ListLogsReply(
            files=[
                raylet_pb2.LogFile(name=file.name, size=file.size, changed_s=file.changed_s)
                for file in files
            ]
        )

    async def ReadLog(  # noqa: N802
        self, request: raylet_pb2.ReadLogRequest, context: Context
    ) -> raylet_pb2.ReadLogReply:
        """Part of one of them."""
        reader = self._log_reader
        part = await reader.read_here(request.file, request.offset, request.bytes_max)
        if part is None:
            return raylet_pb2.ReadLogReply(found=False)
        return raylet_pb2.ReadLogReply(
            found=True, data=part.data, offset=part.offset, size=part.size
        )

    async def Shutdown(  # noqa: N802
        self, request: raylet_pb2.ShutdownNodeRequest, context: Context
    ) -> raylet_pb2.ShutdownNodeReply:
        """Begin to stop; answered before it has."""
        self._shut_down(request.reason or "It was asked to shut down.", request.grace_s)
        return raylet_pb2.ShutdownNodeReply()

    async def Borrow(  # noqa: N802
        self, request_iterator: AsyncIterator[raylet_pb2.LoanOrders], context: Context
    ) -> AsyncIterator[raylet_pb2.LoanNews]:
        """The line of a node that asks for leases here."""
        is_welcome = False
        async with aclosing(self._serve_borrower(request_iterator)) as news:
            async for batch in news:
                is_welcome = True
                yield batch
        if not is_welcome:
            await context.abort(grpc.StatusCode.NOT_FOUND, "The line is meant for another node.")

    async def ForwardLogs(  # noqa: N802
        self, request_iterator: AsyncIterator[raylet_pb2.LogForward], context: Context
    ) -> AsyncIterator[raylet_pb2.LogOrder]:
        """The line of a node whose workers print for a driver here."""
        is_welcome = False
        async with aclosing(self._serve_forwarder(request_iterator)) as orders:
            async for order in orders:
                is_welcome = True
                yield order
        if not is_welcome:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No driver here wants these logs.")
