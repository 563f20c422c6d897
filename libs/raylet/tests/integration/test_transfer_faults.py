"""What a transfer does when sources lie, stall, cut and vanish, and who may talk to a source."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from libs.raylet.tests.integration.transfer_nodes import PROCESS, TOKEN, MakeNode, Node
from skate_raylet.service.transfer import object_server
from skate_raylet.service.transfer.wire import Status, pack_reply, pack_request
from skate_rpc import listener
from skate_rpc import node_protocol as node
from skate_rpc.handshake import (
    CHALLENGE_BYTES,
    AuthenticationError,
    ServerHandshake,
    run_client_handshake,
)

HANDSHAKE_BYTES = CHALLENGE_BYTES + 1
REPLY_BYTES = 16
SIZE_BYTES = 1 << 20
STEP_BYTES = 4096

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


class Proxy:
    """Stands before a source; cuts connections after so many bytes towards the receiver."""

    def __init__(self, target: Node, path: Path) -> None:
        self.target = target.endpoint.removeprefix("unix:")
        self.path = path
        self.cuts: list[int] = []  # one for each of the next connections; then none is cut
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_unix_server(self.serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        await self.drop_all()

    async def drop_all(self) -> None:
        """Cut every connection there is."""
        for writer in self.writers:
            await close(writer)
        self.writers.clear()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = self.cuts.pop(0) if self.cuts else 1 << 62
        source, to_source = await asyncio.open_unix_connection(self.target)
        self.writers += [writer, to_source]
        for task in (
            asyncio.create_task(self.pump(reader, to_source, 1 << 62)),
            asyncio.create_task(self.pump(source, writer, limit)),
        ):
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int
    ) -> None:
        with suppress(ConnectionError):
            while limit and (data := await reader.read(min(limit, 1 << 16))):
                writer.write(data)
                await writer.drain()
                limit -= len(data)
        await close(writer)


class FalseSource:
    """Proves the token, reads a request, and then does what ``answer`` does."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = path
        self.answer = answer
        self.node_id = b"false".ljust(28, b".")
        self.endpoint = f"unix:{path}"
        self.requests = 0

    async def __aenter__(self) -> FalseSource:
        self.server = await asyncio.start_unix_server(self.serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handshake = ServerHandshake(TOKEN)
        with suppress(ConnectionError):
            while not handshake.done:
                writer.write(handshake.receive(await reader.read(4096)))
            await reader.readexactly(20 + 28)
            self.requests += 1
            await self.answer(reader, writer)
        await close(writer)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send half, then nothing until the receiver leaves."""
    writer.write(pack_reply(Status.OK, SIZE_BYTES) + bytes(SIZE_BYTES // 2))
    await reader.read()


@pytest.mark.invariant("I3")
def test_transfer_cut_at_every_page_is_completed_by_the_next_try(
    play_nodes: Any, short_folder: Path
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near", retry_pause_s=0.001), make("far")
        async with Proxy(far, short_folder / "proxy") as proxy:
            near.transfers.node_seen(far.node_id, f"unix:{proxy.path}")
            near.knows = lambda *_: None  # type: ignore[method-assign]
            for offset in range(0, SIZE_BYTES, STEP_BYTES):
                content = os.urandom(SIZE_BYTES)
                object_id = far.put(content)
                await proxy.drop_all()  # also what near has kept, so that this pull connects anew
                proxy.cuts = [HANDSHAKE_BYTES + REPLY_BYTES + offset]
                assert (await near.pull(object_id, SIZE_BYTES, far)).kind == ""
                assert near.content(object_id) == content
                assert not proxy.cuts
                far.store.delete([object_id])
                near.store.delete([object_id])

    play_nodes(test)


@pytest.mark.invariant("I3")
def test_transfer_cut_at_every_page_each_time_is_lost_and_leaves_nothing(
    play_nodes: Any, short_folder: Path
) -> None:
    async def test(make: MakeNode) -> None:
        # Two tries that each bring less than half do not make an object.
        near, far = make("near", retry_pause_s=0.001), make("far")
        async with Proxy(far, short_folder / "proxy") as proxy:
            near.transfers.node_seen(far.node_id, f"unix:{proxy.path}")
            near.knows = lambda *_: None  # type: ignore[method-assign]
            content = os.urandom(SIZE_BYTES)
            for offset in range(0, SIZE_BYTES // 2, STEP_BYTES):
                object_id = far.put(content)
                proxy.cuts = [HANDSHAKE_BYTES + REPLY_BYTES + offset] * 2
                ended = await near.pull(object_id, SIZE_BYTES, far)
                assert ended.kind == "lost"
                assert ended.lost_at == [far.node_id]
                assert near.content(object_id) is None
                far.store.delete([object_id])
            assert (await near.pull(far.put(content), SIZE_BYTES, far)).kind == ""

    play_nodes(test)


@pytest.mark.parametrize(
    "cut", [0, 1, 8, HANDSHAKE_BYTES - 1, HANDSHAKE_BYTES, HANDSHAKE_BYTES + 7]
)
def test_connection_cut_before_the_first_byte_is_tried_again(
    play_nodes: Any, short_folder: Path, cut: int
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        async with Proxy(far, short_folder / "proxy") as proxy:
            near.transfers.node_seen(far.node_id, f"unix:{proxy.path}")
            near.knows = lambda *_: None  # type: ignore[method-assign]
            proxy.cuts = [cut]
            object_id = far.put(b"content")
            assert (await near.pull(object_id, 7, far)).kind == ""
            assert near.content(object_id) == b"content"

    play_nodes(test)


def test_kept_connection_that_the_source_closed_is_no_failure(
    play_nodes: Any, short_folder: Path
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near", retry_pause_s=60.0), make("far")  # a retry would come too late
        async with Proxy(far, short_folder / "proxy") as proxy:
            near.transfers.node_seen(far.node_id, f"unix:{proxy.path}")
            near.knows = lambda *_: None  # type: ignore[method-assign]
            for _ in range(5):
                assert (await near.pull(far.put(b"content"), 7, far)).kind == ""
                await proxy.drop_all()

    play_nodes(test)


def test_stalled_source_is_left_and_the_other_sends_what_is_missing(
    play_nodes: Any, short_folder: Path
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near", stall_s=0.5), make("far")
        content = bytes(SIZE_BYTES // 2) + os.urandom(SIZE_BYTES // 2)
        object_id = far.put(content)
        async with FalseSource(short_folder / "false", silent) as false:
            near.transfers.node_seen(false.node_id, false.endpoint)
            assert (await near.pull(object_id, SIZE_BYTES, false, far)).kind == ""
            assert near.content(object_id) == content
            assert near.transfers.statistics().pulled_bytes_total == SIZE_BYTES

    play_nodes(test)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"\x09" + bytes(15), "unknown status"),
        (b"\xff" * 16, "unknown status"),
        (pack_reply(Status.OK, 1 << 63), "bytes, not"),
        (pack_reply(Status.OUT_OF_RANGE, 1), "bytes, not"),
        (pack_reply(Status.FAILED), "does not answer"),
        (pack_reply(Status.OK, SIZE_BYTES)[:7], "hung up"),
    ],
)
def test_source_that_talks_nonsense_is_given_up(
    play_nodes: Any, short_folder: Path, reply: bytes, words: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()

    async def test(make: MakeNode) -> None:
        near = make("near")
        async with FalseSource(short_folder / "false", answer) as false:
            ended = await near.pull(b"x" * 28, SIZE_BYTES, false)
            assert ended.kind == "lost"
            assert words in ended.message
            assert false.requests == 2
            assert near.content(b"x" * 28) is None

    play_nodes(test)


def test_source_that_restores_from_its_disk_is_waited_for(
    play_nodes: Any, short_folder: Path
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(6):
            writer.write(pack_reply(Status.WAIT))
            await asyncio.sleep(0.4)
        writer.write(pack_reply(Status.OK, 4) + b"late")
        await writer.drain()

    async def test(make: MakeNode) -> None:
        near = make("near", stall_s=2.0)  # the answer takes longer, with signs of life
        async with FalseSource(short_folder / "false", answer) as false:
            assert (await near.pull(b"x" * 28, 4, false)).kind == ""
            assert near.content(b"x" * 28) == b"late"

    play_nodes(test)


def test_source_whose_store_takes_long_says_that_it_lives(
    play_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_server, "PATIENCE_TICK_S", 0.1)

    async def test(make: MakeNode) -> None:
        near, far = make("near", stall_s=1.8), make("far")
        object_id = far.put(b"content")
        client = await asyncio.to_thread(far.transfers._store.client)
        get, is_over = client.get, threading.Event()

        def slow_get(ids: Any, timeout_s: float | None = 0) -> Any:
            is_over.wait(2.5)  # longer than silence would be borne
            return get(ids, timeout_s)

        monkeypatch.setattr(client, "get", slow_get)
        assert (await near.pull(object_id, 7, far)).kind == ""
        assert near.content(object_id) == b"content"

    play_nodes(test)


def test_cancelled_pull_and_ended_process_stop_the_transfer(
    play_nodes: Any, short_folder: Path, wait_until: Any
) -> None:
    async def test(make: MakeNode) -> None:
        near = make("near")
        async with FalseSource(short_folder / "false", silent) as false:
            pull_id = near.ask(b"x" * 28, SIZE_BYTES, false)
            await wait_until(lambda: false.requests == 1)
            near.transfers.cancel(PROCESS, node.CancelPull(pull_id))
            assert (await near.ended_as(pull_id)).kind == "cancelled"
            near.ask(b"y" * 28, SIZE_BYTES, false)
            await wait_until(lambda: false.requests == 2)
            near.transfers.process_ended(PROCESS)
            await wait_until(lambda: near.transfers.statistics().pulls.under_way == 0)
            await wait_until(lambda: near.server.statistics().used_bytes == 0)

    play_nodes(test)


@pytest.mark.invariant("I5")
def test_death_of_the_owner_ends_the_pull(play_nodes: Any, short_folder: Path) -> None:
    async def test(make: MakeNode) -> None:
        near = make("near")
        async with FalseSource(short_folder / "false", silent) as false:
            pull_id = near.ask(b"x" * 28, SIZE_BYTES, false)
            near.transfers.owner_died(b"owner", "signal 9")
            ended = await near.ended_as(pull_id)
            assert (ended.kind, "signal 9" in ended.message) == ("lost", True)

    play_nodes(test)


def test_node_of_another_cluster_is_not_believed_and_gets_nothing(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, foreign = make("near"), make("foreign", token=b"another token" * 5)
        object_id = foreign.put(b"secret")
        ended = await near.pull(object_id, 6, foreign)
        assert ended.kind == "lost"
        assert "token" in ended.message
        assert foreign.transfers.statistics().served_bytes_total == 0

    play_nodes(test)


# ---- who may talk to a source ----


def connect(target: Node) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10.0)
    sock.connect(target.endpoint.removeprefix("unix:"))
    return sock


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionError):
        while part := sock.recv(1 << 16):
            data += part
    return data


def test_request_without_the_token_is_not_read(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        far = make("far")
        request = pack_request(far.put(b"secret"), 0, 6)

        def talk() -> bytes:
            with connect(far) as sock:
                sock.sendall(request)
                return read_to_end(sock)

        assert await asyncio.to_thread(talk) == b""

        def guess() -> None:
            with connect(far) as sock, pytest.raises(AuthenticationError):
                run_client_handshake(sock, b"wrong")

        await asyncio.to_thread(guess)
        assert far.transfers.statistics().peers == 0

    play_nodes(test)


@pytest.mark.parametrize(
    "request_bytes",
    [
        struct.pack("!BBxxQQ", 2, 28, 0, 1) + b"x" * 28,  # an unknown kind
        struct.pack("!BBxxQQ", 1, 0, 0, 1),  # an empty id
        struct.pack("!BBxxQQ", 1, 28, 1 << 63, 1) + b"x" * 28,
        struct.pack("!BBxxQQ", 1, 28, 0, (1 << 64) - 1) + b"x" * 28,
        b"\xff" * 20,
    ],
)
def test_malformed_request_closes_the_connection_and_nothing_else(
    play_nodes: Any, request_bytes: bytes
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")

        def talk() -> bytes:
            with connect(far) as sock:
                run_client_handshake(sock, TOKEN)
                sock.sendall(request_bytes)
                return read_to_end(sock)

        assert await asyncio.to_thread(talk) == b""
        assert (await near.pull(far.put(b"fine"), 4, far)).kind == ""

    play_nodes(test)


def test_range_outside_the_object_is_refused_with_its_size(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        far = make("far")
        object_id = far.put(b"four")

        def talk(offset: int, length: int) -> bytes:
            with connect(far) as sock:
                run_client_handshake(sock, TOKEN)
                sock.sendall(pack_request(object_id, offset, length))
                sock.shutdown(socket.SHUT_WR)
                return read_to_end(sock)

        refused = pack_reply(Status.OUT_OF_RANGE, 4)
        assert await asyncio.to_thread(talk, 0, 5) == refused
        assert await asyncio.to_thread(talk, 5, 0) == refused
        assert await asyncio.to_thread(talk, 1 << 62, 1 << 62) == refused
        assert await asyncio.to_thread(talk, 1, 2) == pack_reply(Status.OK, 4) + b"ou"

    play_nodes(test)


def test_peers_that_prove_nothing_are_bounded_and_keep_nobody_out(
    play_nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "UNAUTHENTICATED_MAX", 4)

    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        crowd = [await asyncio.to_thread(connect, far) for _ in range(20)]
        assert (await near.pull(far.put(b"fine"), 4, far)).kind == ""
        for sock in crowd[:16]:
            assert await asyncio.to_thread(read_to_end, sock) == b""
        for sock in crowd:
            sock.close()

    play_nodes(test)
