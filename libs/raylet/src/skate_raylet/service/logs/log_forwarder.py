"""Sends what this node's workers print for a driver of another node to that node.

The line is opened again whenever it breaks, and goes on where the driver's node says that it
stands; what waits meanwhile lies in the workers' files.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

from skate_raylet.service.logs.log_tailer import LogChunk, LogTailer
from skate_raylet.service.outbox import Outbox
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import raylet_pb2
from skate_rpc.grpc_channel import open_channel
from skate_rpc.raylet_client import RayletClient

_log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
UNSENT_CHUNKS_MAX: Final = 16


class LogForwarder:
    """The line for one job. Implements :class:`LogSink` while it is open."""

    def __init__(
        self,
        hello: raylet_pb2.LogHello,
        token: str,
        tailer: LogTailer,
        endpoint_of: Callable[[bytes], str],
    ) -> None:
        """``endpoint_of``: where a node's raylet listens; empty while it is not known."""
        self._hello = hello
        self._token = token
        self._tailer = tailer
        self._endpoint_of = endpoint_of
        self._outbox: Outbox[raylet_pb2.LogForward] = Outbox()
        self._task = asyncio.create_task(self._keep_open())

    def has_room(self) -> bool:
        """Whether gRPC has taken enough of what it was given."""
        return len(self._outbox) < UNSENT_CHUNKS_MAX

    def take(self, chunk: LogChunk) -> None:
        """Send lines."""
        item = raylet_pb2.LogChunk(
            file=chunk.file,
            end=chunk.end,
            name=chunk.name,
            pid=chunk.pid,
            is_error=chunk.is_error,
            lines=chunk.lines,
        )
        self._outbox.put(raylet_pb2.LogForward(chunk=item))

    async def close(self) -> None:
        """The job is over."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_open(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            endpoint = self._endpoint_of(self._hello.driver_node_id)
            if endpoint:
                channel = open_channel(endpoint, self._token)
                try:
                    if await self._talk(RayletClient(channel, endpoint)):
                        pause_s = RETRY_FIRST_S
                except RpcError as error:
                    # Of a driver that is gone too, until the end of its job is heard of.
                    _log.info("event=log_line_lost error=%s", error)
                finally:
                    self._tailer.detach(self._hello.job_id, self)
                    await channel.close()
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    async def _talk(self, client: RayletClient) -> bool:
        """Until the line ends; returns whether it was open at all."""
        outbox = self._outbox = Outbox()
        outbox.put(raylet_pb2.LogForward(hello=self._hello))
        is_welcome = False
        try:
            async with aclosing(client.forward_logs(self._items(outbox))) as orders:
                async for order in orders:
                    is_welcome = True
                    self._obey(order, outbox)
        finally:
            outbox.close()
        return is_welcome

    def _obey(self, order: raylet_pb2.LogOrder, outbox: Outbox[raylet_pb2.LogForward]) -> None:
        job_id = self._hello.job_id
        match order.WhichOneof("order"):
            case "welcome":
                positions = order.welcome.positions
                stands = {file: (at.end, at.name) for file, at in positions.items()}
                self._tailer.seek(job_id, stands)
                self._tailer.attach(job_id, self)
            case "flush":
                flushed = raylet_pb2.LogForward(flushed=order.flush)
                self._tailer.flush(job_id, lambda: outbox.put(flushed))
            case _:
                pass  # of a newer node

    async def _items(
        self, outbox: Outbox[raylet_pb2.LogForward]
    ) -> AsyncIterator[raylet_pb2.LogForward]:
        async for batch in outbox.batches():
            for item in batch:
                yield item
            self._tailer.look_soon()  # there is room again
