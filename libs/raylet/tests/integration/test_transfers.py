"""Objects between two nodes: two stores, two transfer services, real sockets and bytes."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from skate_object_store import StoreClient, StoreServer
from skate_raylet.machine.pull_config import PullConfig
from skate_raylet.service.transfer.object_transfers import ObjectTransfers
from skate_rpc import node_protocol as node
from skate_rpc.handshake import ClientHandshake, ServerHandshake

TOKEN = b"0123456789abcdef" * 4
WAIT_S = 20.0
PROCESS = b"p" * 28


class Node:
    """A store and its transfers."""

    def __init__(self, folder: Path, name: str, endpoint: str = "", **options: Any) -> None:
        self.node_id = name.encode().ljust(28, b".")
        capacity_bytes = options.pop("capacity_bytes", 100 << 20)
        token = options.pop("token", TOKEN)
        path = str(folder / f"{name}.sock")
        self.server = StoreServer(path, capacity_bytes, handshake=lambda: ServerHandshake(token))
        self.server.start()
        self.store = StoreClient(self.server.endpoint, handshake=ClientHandshake(token))
        self.asked: dict[int, asyncio.Future[node.PullEnded]] = {}
        self.pull_ids = itertools.count(1)
        settings: dict[str, Any] = {"bytes_max": 64 << 20, "retry_pause_s": 0.05, **options}
        self.transfers = ObjectTransfers(
            self.node_id, token, self.server.endpoint, PullConfig(**settings), self.take
        )
        self.endpoint = self.transfers.start(endpoint or f"unix:{folder}/{name}.objects")

    def take(self, process_id: bytes, message: Any) -> None:
        assert process_id == PROCESS
        self.asked[message.pull_id].set_result(message)  # raises when told twice

    def put(self, content: bytes) -> bytes:
        object_id = os.urandom(28)
        self.store.put(object_id, [content])
        return object_id

    def knows(self, *others: Node) -> None:
        for other in others:
            self.transfers.node_seen(other.node_id, other.endpoint)

    def ask(self, object_id: bytes, size_bytes: int, *sources: Node, priority: int = 0) -> int:
        self.knows(*sources)
        pull_id = next(self.pull_ids)
        self.asked[pull_id] = asyncio.get_running_loop().create_future()
        names = [source.node_id for source in sources]
        message = node.PullObject(pull_id, object_id, size_bytes, b"owner", names, priority)
        self.transfers.pull(PROCESS, message)
        return pull_id

    async def ended_as(self, pull_id: int) -> node.PullEnded:
        async with asyncio.timeout(WAIT_S):
            return await self.asked[pull_id]

    async def pull(self, object_id: bytes, size_bytes: int, *sources: Node) -> node.PullEnded:
        return await self.ended_as(self.ask(object_id, size_bytes, *sources))

    def content(self, object_id: bytes) -> bytes | None:
        view = self.store.get([object_id])[0]
        return None if view is None else bytes(view)

    async def close(self) -> None:
        await self.transfers.close()
        self.store.close()
        self.server.close()


MakeNode = Callable[..., Node]


@asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[MakeNode]:
    made: list[Node] = []

    def make(name: str, *arguments: Any, **options: Any) -> Node:
        made.append(Node(folder, name, *arguments, **options))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            await one.close()


@pytest.fixture
def play(short_folder: Path) -> Callable[[Callable[[MakeNode], Awaitable[None]]], None]:
    """Runs ``async def test(make_node)``."""

    def run(test: Callable[[MakeNode], Awaitable[None]]) -> None:
        async def main() -> None:
            async with nodes(short_folder) as make:
                await test(make)

        asyncio.run(asyncio.wait_for(main(), 50))

    return run


def served_bytes(source: Node) -> int:
    """Counted after the last byte was sent, so it may lag behind the pull's end."""
    return source.transfers.statistics().served_bytes_total


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 1 << 20, 20_000_003])
@pytest.mark.parametrize("endpoint", ["", "tcp:127.0.0.1:0"])
def test_object_pulled_from_another_node_has_the_same_bytes(
    play: Any, wait_until: Any, size_bytes: int, endpoint: str
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far", endpoint)
        content = os.urandom(size_bytes)
        object_id = far.put(content)
        assert await near.pull(object_id, size_bytes, far) == node.PullEnded(1)
        assert near.content(object_id) == content
        assert near.transfers.statistics().pulled_bytes_total == size_bytes
        await wait_until(lambda: served_bytes(far) == size_bytes)

    play(test)


def test_large_object_comes_in_pieces_from_both_holders(play: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near = make("near", split_bytes=8 << 20, piece_bytes=1 << 20)
        left, right = make("left"), make("right")
        content = os.urandom((20 << 20) + 17)
        object_id = left.put(content)
        right.store.put(object_id, [content])
        assert await near.pull(object_id, len(content), left, right) == node.PullEnded(1)
        found = near.content(object_id)
        assert found is not None
        assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()
        await wait_until(lambda: served_bytes(left) + served_bytes(right) == len(content))
        assert min(served_bytes(left), served_bytes(right)) > 0

    play(test)


def test_object_that_no_source_has_is_lost_and_names_them(play: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        ended = await near.pull(b"x" * 28, 10, far)
        assert (ended.kind, ended.lost_at) == ("lost", [far.node_id])
        assert "does not have the object" in ended.message
        assert near.content(b"x" * 28) is None

    play(test)
