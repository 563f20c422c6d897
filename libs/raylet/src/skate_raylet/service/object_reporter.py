"""Explains the memory of this node, and on request of every node: ``skate memory``.

Each process of the node is asked over its stream and answers from its I/O thread; one that does not
by the deadline (it is stopped, or holds the interpreter lock) is named in the report. The store's
listing is added here, and :mod:`skate_rpc.object_report` says how both are read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor

import msgspec

from skate_object_store import ObjectState, StoreServer
from skate_object_store.errors import StoreClosedError
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_raylet.service.process_questions import ProcessEndedError, ProcessQuestions
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.grpc_channel import open_channel
from skate_rpc.node_protocol import AskObjects, ListObjects, ObjectsReport
from skate_rpc.object_report import (
    ANSWER_S,
    ROWS_MAX,
    NodeObjects,
    ProcessObjects,
    StoredObject,
)
from skate_rpc.raylet_client import GRACE_S, RayletClient

_log = logging.getLogger(__name__)

NODES_AT_ONCE_MAX = 64
TIMEOUT_MAX_S = 60.0

_NOT_IN_MEMORY = (ObjectState.SPILLED, ObjectState.LOST)


class ObjectReporter:
    """On the daemon's event loop. ``list_nodes`` asks the GCS."""

    def __init__(
        self,
        info: Callable[[], gcs_pb2.NodeInfo],
        token: str,
        processes: LocalProcesses,
        store: StoreServer,
        store_calls: Executor,
        list_nodes: Callable[[], Awaitable[Sequence[gcs_pb2.NodeInfo]]],
    ) -> None:
        self._info = info
        self._token = token
        self._processes = processes
        self._store = store
        self._store_calls = store_calls
        self._list_nodes = list_nodes
        self._questions: ProcessQuestions[ObjectsReport] = ProcessQuestions()

    def on_report(self, process: LocalProcess, message: ObjectsReport) -> None:
        """A process answered, perhaps too late."""
        self._questions.answered(process, message.number, message)

    async def list_objects(self, _: LocalProcess, body: ListObjects) -> list[NodeObjects]:
        """The control call of a local process."""
        return await self.cluster(body.rows_max, body.timeout_s)

    async def cluster(self, rows_max: int, timeout_s: float) -> list[NodeObjects]:
        """Every live node's objects. Raises ``RpcError`` when the GCS does not list the nodes."""
        own_id = self._info().node_id
        rows = [
            row for row in await self._list_nodes() if row.state == gcs_pb2.NodeInfo.STATE_ALIVE
        ]
        slots = asyncio.Semaphore(NODES_AT_ONCE_MAX)

        async def ask(row: gcs_pb2.NodeInfo) -> NodeObjects:
            if row.node_id == own_id:
                return await self.node(rows_max, timeout_s)
            async with slots:
                return await self._ask_node(row, rows_max, timeout_s)

        return list(await asyncio.gather(*map(ask, rows)))

    async def node(self, rows_max: int, timeout_s: float) -> NodeObjects:
        """This node's objects."""
        rows_max = min(max(rows_max, 0), ROWS_MAX)
        timeout_s = min(max(timeout_s, 0.0), TIMEOUT_MAX_S)
        info = self._info()
        report = NodeObjects(info.node_id, info.node_name or info.hostname, info.ip_address)
        # The processes first: what they drop before the store is read is then in neither.
        answers = await asyncio.gather(
            *(self._ask_process(p, rows_max, min(ANSWER_S, timeout_s)) for p in self._processes)
        )
        report.processes = [answer for answer in answers if answer is not None]
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._store_calls, self._fill_store, report, rows_max)
        except StoreClosedError as error:
            report.problem = str(error)
        return report

    async def _ask_process(
        self, process: LocalProcess, rows_max: int, timeout_s: float
    ) -> ProcessObjects | None:
        report = ProcessObjects(process.worker_id, process.pid, process.is_driver, process.job_id)
        try:
            message = await self._questions.ask(
                process, lambda number: AskObjects(number, rows_max), timeout_s
            )
        except ProcessEndedError:
            return None  # and its references with it
        except TimeoutError as error:
            report.problem = str(error)
        else:
            report.rows = message.rows
            report.left_out = message.left_out
            report.left_out_bytes = message.left_out_bytes
        return report

    def _fill_store(self, report: NodeObjects, rows_max: int) -> None:
        # On the thread for the store's calls, which wait for the store's own.
        statistics = self._store.statistics()
        records = self._store.objects(rows_max)
        report.capacity_bytes = statistics.capacity_bytes
        report.used_bytes = statistics.used_bytes
        report.stored = [
            StoredObject(
                record.object_id,
                record.owner,
                record.size_bytes,
                record.age_s,
                record.pins,
                record.state != ObjectState.WRITING,
                record.state == ObjectState.DELETED,
                record.note,
                record.state == ObjectState.EVICTABLE,
                record.state in _NOT_IN_MEMORY,
            )
            for record in records
        ]
        report.copies_bytes = sum(item.size_bytes for item in report.stored if item.is_copy)
        if len(records) == rows_max:
            objects = statistics.objects + statistics.spilled_objects
            report.stored_left_out = max(0, objects - rows_max)
            left_bytes = statistics.used_bytes - report.listed_bytes() - report.copies_bytes
            report.stored_left_out_bytes = max(0, left_bytes)

    async def _ask_node(
        self, row: gcs_pb2.NodeInfo, rows_max: int, timeout_s: float
    ) -> NodeObjects:
        channel = open_channel(row.raylet_endpoint, self._token)
        try:
            client = RayletClient(channel, row.raylet_endpoint)
            async with asyncio.timeout(timeout_s + GRACE_S):
                found = await client.objects(
                    whole_cluster=False, rows_max=rows_max, timeout_s=timeout_s
                )
            return found[0]
        except (RpcError, TimeoutError, IndexError, msgspec.MsgspecError) as error:
            _log.info("event=node_did_not_report node_id=%s error=%r", row.node_id.hex(), error)
            return NodeObjects(
                row.node_id,
                row.node_name or row.hostname,
                row.ip_address,
                problem=f"It did not answer: {str(error) or type(error).__name__}",
            )
        finally:
            await channel.close()
