"""A process between all machines of a cluster: every connection between two of them is two.

It runs in no machine; its sockets are in the namespaces that stand for all other machines towards
each one (``relayed.RelayedNetwork``). What it knows of the protocols:

- The stream of the task plane is told by its handshake, and is in the clear after it. There it
  works on whole frames: gives one again at once (``again``) or after later ones (``late``), holds
  one and all behind it (``held``), or loses one (``lost``).
- On all others (gRPC, and what carries objects between nodes) it works on the bytes of a read:
  holds them, or loses them.
- A gRPC connection can have a twin (``twice``): another connection to the same server, which is
  sent the same bytes and whose answers nobody gets. So the server gets each call twice.

TCP loses nothing in the middle of a connection that goes on, and a stream with a hole or with
foreign bytes in it is no stream, so what is lost is lost with all that comes after it: the
connection ends there, for both sides, in order or by a reset. With ``broken`` it ends in the middle
of a message, some of whose bytes arrived.

Started with one line of JSON, a :class:`Plan`; says ``ready``. Each further line is a new set of
rates, and is answered with what was done so far. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from skate_rpc.handshake import ACCEPTED, CHALLENGE_BYTES, HELLO_BYTES, MAGIC, PROOF_BYTES
from tests.namespaces import inside

READ_BYTES = 64 << 10
HELD_MAX_S = 1.0
LATE_MAX = 20
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Rates:
    """How likely each fault is: for each frame or read, ``twice`` for each connection."""

    again: float = 0.0
    late: float = 0.0
    held: float = 0.0
    lost: float = 0.0
    broken: float = 0.0
    twice: float = 0.0


@dataclass(frozen=True)
class Road:
    """Connections that come in at ``address`` of one namespace go on to it from another one."""

    inlet: str
    outlet: str
    address: str
    source: str


@dataclass(frozen=True)
class Plan:
    """Every road is open on the ports from ``port_first`` to ``port_last``."""

    seed: int
    port_first: int
    port_last: int
    roads: list[Road] = field(default_factory=list)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """What :meth:`to_json` gave."""
        values = json.loads(line)
        return cls(**{**values, "roads": [Road(**road) for road in values["roads"]]})


class Relay:
    """All connections. ``rates`` may change at any time; ``done`` counts faults by kind."""

    def __init__(self, plan: Plan) -> None:
        self.rates = Rates()
        self.done: Counter[str] = Counter()
        self._plan = plan
        self._connections = 0
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Listen everywhere."""
        for road in self._plan.roads:
            with inside(road.inlet):
                socks = [
                    socket.create_server((road.address, port), backlog=128)
                    for port in range(self._plan.port_first, self._plan.port_last + 1)
                ]
            for sock in socks:
                self._servers.append(
                    await asyncio.start_server(
                        lambda reader, writer, road=road: self._serve(road, reader, writer),  # type: ignore[misc]
                        sock=sock,
                        limit=READ_BYTES,
                    )
                )

    async def _serve(
        self, road: Road, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections += 1
        rng = random.Random(f"{self._plan.seed}/{self._connections}")
        port = writer.get_extra_info("sockname")[1]
        try:
            far_reader, far_writer = await self._dial(road, port)
        except OSError:
            reset(writer)  # nobody is there
            return
        line = Line(self, rng, writer, far_writer, lambda: self._dial(road, port))
        try:
            await line.carry(reader, far_reader)
        finally:
            writer.close()
            far_writer.close()
            line.end_twin()

    async def _dial(
        self, road: Road, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with inside(road.outlet):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((road.source, 0))
            await asyncio.get_running_loop().sock_connect(sock, (road.address, port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=READ_BYTES)


class Line:
    """One connection through the relay."""

    def __init__(
        self,
        relay: Relay,
        rng: random.Random,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        dial: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
    ) -> None:
        """``dial`` makes another connection to the server."""
        self._relay = relay
        self._dial = dial
        self._twin: asyncio.StreamWriter | None = None
        self._drain: asyncio.Task[None] | None = None
        self._rng = rng
        self._client = client
        self._server = server
        self._has_frames = asyncio.get_running_loop().create_future()

    async def carry(self, client: asyncio.StreamReader, server: asyncio.StreamReader) -> None:
        """Until both directions have ended."""
        await asyncio.gather(
            self._pump(self._from_client(client), client, self._server),
            self._pump(self._from_server(server), server, self._client),
        )

    async def _pump(
        self, opening: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            if await opening:
                await self._carry_frames(reader, writer)
            else:
                await self._carry_bytes(reader, writer)
            writer.write_eof()
        except (asyncio.IncompleteReadError, OSError, Ended):
            self._end()
        finally:
            if not self._has_frames.done():
                self._has_frames.set_result(False)

    async def _from_client(self, reader: asyncio.StreamReader) -> bool:
        """Pass the handshake on, if there is one; whether frames follow."""
        start = await reader.readexactly(len(MAGIC))
        self._server.write(start)
        has_frames = False
        if start == MAGIC:
            self._server.write(await reader.readexactly(HELLO_BYTES - len(MAGIC)))
            self._server.write(await reader.readexactly(PROOF_BYTES))
            # A frame begins with its length and an array of messages; a request for objects has
            # the highest byte of an offset there.
            start = await reader.readexactly(_LENGTH.size + 1)
            has_frames = start[-1] >= 0x80
            self._has_frames.set_result(has_frames)
            if has_frames:
                (size,) = _LENGTH.unpack_from(start)
                start += await reader.readexactly(size - 1)
            self._server.write(start)
        else:
            self._has_frames.set_result(False)
            if self._happens("twice"):
                await self._begin_twin(start)
        return has_frames

    async def _begin_twin(self, start: bytes) -> None:
        reader, self._twin = await self._dial()
        self._twin.write(start)
        self._drain = asyncio.create_task(_read_away(reader))

    def end_twin(self) -> None:
        """It lives no longer than this one."""
        if self._twin is not None and self._drain is not None:
            self._twin.close()
            self._drain.cancel()

    async def _from_server(self, reader: asyncio.StreamReader) -> bool:
        start = await reader.read(len(MAGIC))
        self._client.write(start)
        if not MAGIC.startswith(start) or not start:
            return False
        self._client.write(await reader.readexactly(CHALLENGE_BYTES - len(start)))
        self._client.write(await reader.readexactly(len(ACCEPTED)))
        has_frames: bool = await self._has_frames
        return has_frames

    async def _carry_frames(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        late: list[tuple[int, bytes]] = []
        number = 0
        while head := await reader.read(1):
            head += await reader.readexactly(_LENGTH.size - 1)
            frame = head + await reader.readexactly(_LENGTH.unpack(head)[0])
            await self._hold_or_lose(frame, writer)
            writer.write(frame)
            number += 1
            if self._happens("again"):
                writer.write(frame)
            if self._happens("late"):
                late.append((number + self._rng.randint(1, LATE_MAX), frame))
            for due in [one for one in late if one[0] <= number]:
                writer.write(due[1])
                late.remove(due)
            await writer.drain()

    async def _carry_bytes(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(READ_BYTES):
            await self._hold_or_lose(data, writer)
            writer.write(data)
            if self._twin is not None and writer is self._server:
                self._twin.write(data)
            await writer.drain()

    async def _hold_or_lose(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._happens("held"):
            await asyncio.sleep(self._rng.uniform(0.0, HELD_MAX_S))
        if self._happens("lost"):
            raise Ended
        if self._happens("broken"):
            writer.write(data[: self._rng.randrange(len(data))])
            raise Ended

    def _happens(self, fault: str) -> bool:
        happens = self._rng.random() < getattr(self._relay.rates, fault)
        if happens:
            self._relay.done[fault] += 1
        return happens

    def _end(self) -> None:
        """End it for both, what was passed on arriving in some cases only."""
        end = reset if self._rng.random() < 0.5 else asyncio.StreamWriter.close
        end(self._client)
        end(self._server)


class Ended(Exception):
    """The relay has ended this connection."""


async def _read_away(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(READ_BYTES):
            pass


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection at once, with what waits to be sent."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main() -> None:
    """Serve until the standard input ends."""
    loop = asyncio.get_running_loop()
    relay = Relay(Plan.from_json(await loop.run_in_executor(None, sys.stdin.readline)))
    await relay.start()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        relay.rates = Rates(**json.loads(line))
        print(json.dumps(relay.done), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
