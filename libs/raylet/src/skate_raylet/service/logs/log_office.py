r"""This node's part in bringing what workers print to their drivers.

::

    worker --> its files --> LogTailer --> DriverLogs --> a driver of this node
                                      \-> LogForwarder --> the driver's node: DriverLogs --> driver

A node opens a line to a driver's node when the first worker of the job starts there, so nodes that
do nothing for a job have no line for it. Source: SURFACE W1-W4, W6.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from skate_raylet.service.job_book import JobBook
from skate_raylet.service.local_process import LocalProcess
from skate_raylet.service.logs.driver_logs import DriverLogs, ForwarderLine
from skate_raylet.service.logs.log_forwarder import LogForwarder
from skate_raylet.service.logs.log_tailer import LogTailer
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2


class LogOffice:
    """Runs on the event loop's thread alone."""

    def __init__(self, node_id: bytes, token: str, jobs: JobBook) -> None:
        self._node_id = node_id
        self._token = token
        self._jobs = jobs
        self._tailer = LogTailer()
        self._drivers: dict[bytes, DriverLogs] = {}  # of this node, by job
        self._forwarders: dict[bytes, LogForwarder] = {}  # by job
        self._nodes: dict[bytes, tuple[str, str]] = {}  # endpoint and ip of the others
        self._closing: set[asyncio.Task[None]] = set()

    # ---- workers here ----

    def worker_started(
        self, startup_id: int, job_id: bytes, pid: int, log_paths: tuple[str, str]
    ) -> None:
        """``log_paths``: of its stderr and its stdout."""
        job = self._jobs.get(job_id)
        if job.is_finished or not job.wants_logs:
            return
        self._tailer.worker_started(startup_id, job_id, pid, *log_paths)
        if job.driver_node_id != self._node_id and job_id not in self._forwarders:
            hello = raylet_pb2.LogHello(
                node_id=self._node_id, job_id=job_id, driver_node_id=job.driver_node_id
            )
            self._forwarders[job_id] = LogForwarder(
                hello, self._token, self._tailer, self.endpoint_of
            )

    def worker_ended(self, startup_id: int) -> None:
        """What it printed last is still read."""
        self._tailer.worker_ended(startup_id)

    # ---- drivers here ----

    def driver_joined(self, process: LocalProcess) -> None:
        """A driver that wants to show what its workers print."""
        driver = DriverLogs(process, self._tailer)
        self._drivers[process.job_id] = driver
        self._tailer.attach(process.job_id, driver)

    def on_taken(self, process: LocalProcess, message: node.LogsTaken) -> None:
        """A driver has printed."""
        driver = self._drivers.get(process.job_id)
        if driver is not None:
            driver.taken(message.number)

    def on_flush(self, process: LocalProcess, message: node.FlushLogs) -> None:
        """A driver wants what has been printed by now."""
        driver = self._drivers.get(process.job_id)
        if driver is not None:
            driver.flush(message.number)
        else:
            process.send(node.LogsFlushed(message.number))

    # ---- news ----

    def node_seen(self, info: gcs_pb2.NodeInfo) -> None:
        """A row of the node table."""
        if info.state == gcs_pb2.NodeInfo.STATE_DEAD:
            self._nodes.pop(info.node_id, None)
        else:
            self._nodes[info.node_id] = (info.raylet_endpoint, info.ip_address)

    def job_finished(self, job_id: bytes) -> None:
        """Nobody wants its output any more."""
        driver = self._drivers.pop(job_id, None)
        if driver is not None:
            driver.close()
        self._tailer.job_finished(job_id)
        forwarder = self._forwarders.pop(job_id, None)
        if forwarder is not None:
            task = asyncio.create_task(forwarder.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def endpoint_of(self, node_id: bytes) -> str:
        """Where another node's raylet listens; empty when it is not known to live."""
        return self._nodes.get(node_id, ("", ""))[0]

    # ---- lines of other nodes ----

    async def serve(
        self, items: AsyncIterator[raylet_pb2.LogForward]
    ) -> AsyncGenerator[raylet_pb2.LogOrder, None]:
        """One node's line for one job. Ends at once when no driver here wants it."""
        first = await anext(items, None)
        if first is None or not first.HasField("hello"):
            return
        hello = first.hello
        driver = self._drivers.get(hello.job_id)
        if hello.driver_node_id != self._node_id or driver is None:
            return
        older = driver.lines.get(hello.node_id)
        if older is not None:
            older.close()
        line = driver.lines[hello.node_id] = ForwarderLine()
        ip = self._nodes.get(hello.node_id, ("", ""))[1]
        reader = asyncio.create_task(self._read(driver, hello.node_id, ip, line, items))
        try:
            yield driver.welcome(hello.node_id)
            async for batch in line.orders.batches():
                for order in batch:
                    yield order
        finally:
            line.close()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if driver.lines.get(hello.node_id) is line:
                del driver.lines[hello.node_id]

    async def close(self) -> None:
        """End every line, and read no more."""
        for driver in self._drivers.values():
            driver.close()
        forwarders = [forwarder.close() for forwarder in self._forwarders.values()]
        self._forwarders.clear()
        await asyncio.gather(*forwarders, *self._closing, return_exceptions=True)
        await self._tailer.close()

    async def _read(
        self,
        driver: DriverLogs,
        node_id: bytes,
        ip: str,
        line: ForwarderLine,
        items: AsyncIterator[raylet_pb2.LogForward],
    ) -> None:
        try:
            await driver.receive(node_id, ip, line, items)
        finally:
            line.close()  # the other node hung up
