"""Asks this node's processes, or every node, what waits and for what, and explains it.

The counterpart of ``object_reporter`` for waits. A process or node that does not answer in time is
named in the explanation. Source: USERS P08.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from skate_raylet.machine.lease_table import ActorRequest
from skate_raylet.machine.node_machine import NodeMachine, WaitingRequest
from skate_raylet.service.convert import group_view
from skate_raylet.service.explain import explain
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_raylet.service.process_questions import ProcessEndedError, ProcessQuestions
from skate_raylet.service.wait_snapshot import TASK_ID_BYTES, Snapshot
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.grpc_channel import open_channel
from skate_rpc.node_protocol import AskWaits, WaitsReport, Why
from skate_rpc.raylet_client import GRACE_S, RayletClient
from skate_rpc.wait_report import (
    ANSWER_S,
    ROWS_MAX,
    ActorRow,
    Explanation,
    LeaseRow,
    NodeWaits,
    ProcessWaits,
    RequestRow,
)

_log = logging.getLogger(__name__)

NODES_AT_ONCE_MAX = 64
TIMEOUT_MAX_S = 60.0
REQUESTS_MAX = 10_000  # of one node in one report


class WaitReporter:
    """On the daemon's event loop. The functions that list something ask the GCS."""

    def __init__(
        self,
        info: Callable[[], gcs_pb2.NodeInfo],
        token: str,
        processes: LocalProcesses,
        machine: NodeMachine,
        list_nodes: Callable[[], Awaitable[Sequence[gcs_pb2.NodeInfo]]],
        list_actors: Callable[[], Awaitable[Sequence[gcs_pb2.ActorInfo]]],
        list_groups: Callable[[], Awaitable[Sequence[gcs_pb2.PlacementGroupInfo]]],
    ) -> None:
        self._info = info
        self._token = token
        self._processes = processes
        self._machine = machine
        self._list_nodes = list_nodes
        self._list_actors = list_actors
        self._list_groups = list_groups
        self._questions: ProcessQuestions[WaitsReport] = ProcessQuestions()

    def on_report(self, process: LocalProcess, message: WaitsReport) -> None:
        """A process answered, perhaps too late."""
        self._questions.answered(process, message.number, message)

    async def answer(self, _: LocalProcess, body: Why) -> list[Explanation]:
        """The control call of a local process."""
        return await self.why(body.prefix, body.timeout_s)

    async def why(self, prefix: str, timeout_s: float) -> list[Explanation]:
        """Explain what has an id (hex) that begins so. Asks the whole cluster.

        Raises ``RpcError`` when the GCS does not list the nodes.
        """
        timeout_s = min(max(timeout_s, 0.1), TIMEOUT_MAX_S)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        nodes, actors, groups = await asyncio.gather(
            self._cluster(prefix, timeout_s), self._list_actors(), self._list_groups()
        )
        snapshot = Snapshot(
            nodes, [_actor_row(info) for info in actors], list(map(group_view, groups)), time.time()
        )
        return explain(prefix, snapshot, loop.time() - began_s)

    async def _cluster(self, prefix: str, timeout_s: float) -> list[NodeWaits]:
        rows = await self._list_nodes()
        own_id = self._info().node_id
        slots = asyncio.Semaphore(NODES_AT_ONCE_MAX)

        async def ask(row: gcs_pb2.NodeInfo) -> NodeWaits:
            if row.state == gcs_pb2.NodeInfo.STATE_DEAD:
                name = row.node_name or row.hostname
                death = row.death_cause.message
                return NodeWaits(row.node_id, name, row.ip_address, state="DEAD", death=death)
            if row.node_id == own_id:
                return await self.node(prefix, timeout_s)
            async with slots:
                return await self._ask_node(row, prefix, timeout_s)

        return list(await asyncio.gather(*map(ask, rows)))

    async def node(self, prefix: str, timeout_s: float) -> NodeWaits:
        """This node's waits."""
        timeout_s = min(max(timeout_s, 0.0), TIMEOUT_MAX_S)
        info = self._info()
        report = NodeWaits(
            info.node_id,
            info.node_name or info.hostname,
            info.ip_address,
            dict(info.total.amounts),
        )
        wanted = _whole_bytes(prefix)[:TASK_ID_BYTES]
        report.processes = [
            answer
            for answer in await asyncio.gather(
                *(
                    self._ask_process(one, wanted, min(ANSWER_S, timeout_s))
                    for one in self._processes
                )
            )
            if answer is not None
        ]
        now_s = asyncio.get_running_loop().time()
        waiting = self._machine.waiting(now_s)
        report.requests = [
            _request_row(one, now_s) for one in waiting[:REQUESTS_MAX] if not one.is_foreign
        ]
        report.leases = [
            LeaseRow(
                lease.worker_id,
                lease.holder_id,
                lease.effective.to_dict(),
                lease.request.actor_id if isinstance(lease.request, ActorRequest) else b"",
                b"" if lease.bundle_key is None else lease.bundle_key.group_id,
            )
            for lease in self._machine.leases()
            if lease.worker_id
        ]
        return report

    async def _ask_process(
        self, process: LocalProcess, prefix: bytes, timeout_s: float
    ) -> ProcessWaits | None:
        report = ProcessWaits(process.worker_id, process.pid, process.is_driver)
        try:
            message = await self._questions.ask(
                process, lambda number: AskWaits(number, ROWS_MAX, prefix), timeout_s
            )
        except ProcessEndedError:
            return None
        except TimeoutError as error:
            report.problem = str(error)
        else:
            report.tasks, report.left_out = message.tasks, message.left_out
            report.blocked, report.running = message.blocked, message.running
            report.actor_id, report.slots = message.actor_id, message.slots
        return report

    async def _ask_node(self, row: gcs_pb2.NodeInfo, prefix: str, timeout_s: float) -> NodeWaits:
        channel = open_channel(row.raylet_endpoint, self._token)
        try:
            client = RayletClient(channel, row.raylet_endpoint)
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await client.waits(prefix, timeout_s=timeout_s)
        except (RpcError, TimeoutError, msgspec.MsgspecError) as error:
            _log.info("event=node_did_not_report node_id=%s error=%r", row.node_id.hex(), error)
            return NodeWaits(
                row.node_id,
                row.node_name or row.hostname,
                row.ip_address,
                dict(row.total.amounts),
                problem=f"it did not answer: {str(error) or type(error).__name__}",
            )
        finally:
            await channel.close()


def _whole_bytes(prefix: str) -> bytes:
    """The bytes that a prefix in hex spells out; empty when it is no hex."""
    try:
        return bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    except ValueError:
        return b""


def _request_row(one: WaitingRequest, now_s: float) -> RequestRow:
    request, reason = one.request, one.reason
    return RequestRow(
        one.holder_id,
        0 if isinstance(request, ActorRequest) else request.request_id,
        one.needs.to_dict(),
        reason.kind.value,
        reason.sentence(),
        now_s - reason.since_s,
        request.actor_id if isinstance(request, ActorRequest) else b"",
        one.group_id,
    )


def _actor_row(info: gcs_pb2.ActorInfo) -> ActorRow:
    spec = info.spec
    state = gcs_pb2.ActorState.Name(info.state).removeprefix("ACTOR_STATE_")
    return ActorRow(
        spec.actor_id,
        spec.class_name,
        state,
        spec.name,
        info.address.node_id,
        info.address.worker_id,
        info.pid,
        info.incarnation,
        info.pending_reason,
        info.death_cause.message,
        dict(spec.placement_resources.amounts),
        spec.strategy.placement_group_id,
    )
