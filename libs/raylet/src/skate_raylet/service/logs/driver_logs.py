"""A driver of this node, to whom goes what the workers of its job print, here and elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from skate_raylet.service.local_process import LocalProcess
from skate_raylet.service.logs.log_tailer import LogChunk, LogTailer
from skate_raylet.service.outbox import Outbox
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import raylet_pb2

POSITIONS_MAX: Final = 4000  # files of one node of which it is known how far they were printed


class ForwarderLine:
    """The open line of another node, whose workers print for a driver here."""

    def __init__(self) -> None:
        self.orders: Outbox[raylet_pb2.LogOrder] = Outbox()
        self._flushes: dict[int, Callable[[], None]] = {}
        self._count = 0

    def flush(self, done: Callable[[], None]) -> None:
        """Have that node send what was printed by now; ``done`` also when the line breaks."""
        self._count += 1
        self._flushes[self._count] = done
        self.orders.put(raylet_pb2.LogOrder(flush=self._count))

    def flushed(self, number: int) -> None:
        """That node has."""
        done = self._flushes.pop(number, None)
        if done is not None:
            done()

    def close(self) -> None:
        """Nothing comes on this line any more."""
        self.orders.close()
        for number in list(self._flushes):
            self.flushed(number)


class DriverLogs:
    """Implements :class:`LogSink` for the workers of the driver's own node.

    Each line is given to the driver once: what a node sends again, because its line broke before it
    knew how far it had come, is left out.
    """

    def __init__(self, process: LocalProcess, tailer: LogTailer) -> None:
        self.lines: dict[bytes, ForwarderLine] = {}  # by node
        self._process = process
        self._tailer = tailer
        self._positions: dict[bytes, dict[str, tuple[int, str]]] = {}  # of other nodes' files
        self._sent = 0
        self._taken = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self.is_closed = False

    def has_room(self) -> bool:
        """Whether the driver has printed enough of what it was sent."""
        return self._sent - self._taken < node.LOG_LINES_UNDER_WAY_MAX

    def take(self, chunk: LogChunk, ip: str = "") -> None:
        """Send lines to the driver."""
        self._sent += 1
        if not self.has_room():
            self._has_room.clear()
        self._process.send(
            node.LogLines(self._sent, chunk.name, chunk.pid, ip, chunk.is_error, chunk.lines)
        )

    def taken(self, number: int) -> None:
        """The driver has printed what it was sent up to this number."""
        self._taken = max(self._taken, min(number, self._sent))
        if self.has_room():
            self._has_room.set()
            self._tailer.look_soon()

    def flush(self, number: int) -> None:
        """Send all that has been printed by now, and then say so."""
        waiting = 1 + len(self.lines)

        def one_done() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                self._process.send(node.LogsFlushed(number))

        self._tailer.flush(self._process.job_id, one_done)
        for line in self.lines.values():
            line.flush(one_done)

    def welcome(self, node_id: bytes) -> raylet_pb2.LogOrder:
        """Where another node is to go on."""
        positions = {
            file: raylet_pb2.LogPosition(end=end, name=name)
            for file, (end, name) in self._positions.get(node_id, {}).items()
        }
        return raylet_pb2.LogOrder(welcome=raylet_pb2.LogWelcome(positions=positions))

    async def receive(
        self,
        node_id: bytes,
        ip: str,
        line: ForwarderLine,
        items: AsyncIterator[raylet_pb2.LogForward],
    ) -> None:
        """Take what another node sends, until its line or the driver ends."""
        positions = self._positions.setdefault(node_id, {})
        async for item in items:
            match item.WhichOneof("item"):
                case "flushed":
                    line.flushed(item.flushed)
                case "chunk":
                    await self._has_room.wait()
                    if self.is_closed or line.orders.is_closed:
                        return
                    chunk = item.chunk
                    if chunk.end > positions.get(chunk.file, (0, ""))[0]:
                        positions.pop(chunk.file, None)  # the newest are the last
                        positions[chunk.file] = (chunk.end, chunk.name)
                        if len(positions) > POSITIONS_MAX:
                            del positions[next(iter(positions))]
                        self.take(_chunk_of(chunk), ip)
                case _:
                    return

    def close(self) -> None:
        """The driver is gone."""
        self.is_closed = True
        self._has_room.set()
        for line in self.lines.values():
            line.close()


def _chunk_of(chunk: raylet_pb2.LogChunk) -> LogChunk:
    return LogChunk(chunk.file, chunk.end, chunk.name, chunk.pid, chunk.is_error, list(chunk.lines))
