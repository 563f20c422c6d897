"""The daemon's end of a GCS's process: its two pipes and its end, on one event loop.

What comes before: ``gcs_spawn``. What comes after: ``gcs_messages``, on the pipes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess

from skate_node.gcs_messages import LINE_BYTES_MAX, News, Order, decode_news, encode


class GcsChild:
    """One process, from its spawn to its end. Somebody has to :meth:`wait` for that."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        news: asyncio.StreamReader,
        outgoing: asyncio.WriteTransport,
        incoming: asyncio.BaseTransport,
    ) -> None:
        """Use :meth:`adopt`."""
        self._process = process
        self._news = news
        self._outgoing = outgoing
        self._incoming = incoming
        self._ended = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._on_end)

    @classmethod
    async def adopt(cls, process: subprocess.Popen[bytes]) -> GcsChild:
        """Take over a process that ``spawn_gcs`` started and nobody has waited for.

        It may have ended already.
        """
        loop = asyncio.get_running_loop()
        news = asyncio.StreamReader(LINE_BYTES_MAX, loop)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(news, loop=loop), process.stdout
        )
        outgoing, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        return cls(process, news, outgoing, incoming)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, order: Order) -> None:
        """Send an order. One that has ended does not hear it."""
        if not self._outgoing.is_closing():
            self._outgoing.write(encode(order) + b"\n")

    def say_no_more(self) -> None:
        """Close its standard input: it is to stop in order."""
        self._outgoing.close()

    async def next_news(self) -> News | None:
        """What it says next; None when it says nothing more."""
        line = await self._news.readline()
        return decode_news(line) if line.endswith(b"\n") else None

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """Wait for its end; returns how it ended, as ``waitpid`` says it."""
        code: int = await asyncio.shield(self._ended)
        return -code if code < 0 else code << 8

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._outgoing.close()
        self._ended.set_result(self._process.wait())
