"""RayletService, for the GCS and the command line. Thin: convert, pass on, answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import msgspec

from skate_raylet.machine.lease_table import ActorRequest, Ending, Granted
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.convert import death_from_proto, resources_to_proto
from skate_raylet.service.local_process import LocalProcesses
from skate_raylet.service.logs.log_reader import LogReader
from skate_raylet.service.object_reporter import ObjectReporter
from skate_rpc.gen.skate.v1 import raylet_pb2, raylet_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class RayletServicer(raylet_pb2_grpc.RayletServiceServicer):
    """Every call may be repeated."""

    def __init__(
        self,
        machine: NodeMachine,
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
    ) -> None:
        self._machine = machine
        self._actors = actors
        self._processes = processes
        self._clock = clock
        self._fill_status = fill_status
        self._shut_down = shut_down
        self._serve_borrower = serve_borrower
        self._serve_forwarder = serve_forwarder
        self._log_reader = log_reader
        self._objects = objects

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
                )
        for waiting in self._machine.waiting(now_s):
            reply.pending.add(
                holder_id=waiting.holder_id,
                resources=resources_to_proto(waiting.needs),
                reason=waiting.reason.sentence(),
                waiting_s=now_s - waiting.reason.since_s,
            )
        return reply

    async def Objects(  # noqa: N802
        self, request: raylet_pb2.NodeObjectsRequest, context: Context
    ) -> raylet_pb2.NodeObjectsReply:
        """What the processes and the store of this node, or of all, say of their objects."""
        if request.whole_cluster:
            nodes = await self._objects.cluster(request.rows_max, request.timeout_s)
        else:
            nodes = [await self._objects.node(request.rows_max, request.timeout_s)]
        return raylet_pb2.NodeObjectsReply(nodes=map(msgspec.msgpack.encode, nodes))

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
