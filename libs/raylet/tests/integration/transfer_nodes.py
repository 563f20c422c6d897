"""Nodes that are no more than a store and a transfer service, with real sockets and bytes."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
        self.server = StoreServer(
            path,
            capacity_bytes,
            handshake=lambda: ServerHandshake(token),
            config=options.pop("store_config", None),
        )
        self.server.start()
        self.store = StoreClient(self.server.endpoint, handshake=ClientHandshake(token))
        self.asked: dict[int, asyncio.Future[node.PullEnded]] = {}
        self.kept: list[node.CopiesKept] = []
        self.pull_ids = itertools.count(1)
        settings: dict[str, Any] = {"bytes_max": 64 << 20, "retry_pause_s": 0.05, **options}
        self.transfers = ObjectTransfers(
            self.node_id, token, self.server.endpoint, PullConfig(**settings), self.take
        )
        self.endpoint = self.transfers.start(endpoint or f"unix:{folder}/{name}.objects")

    def take(self, process_id: bytes, message: Any) -> None:
        assert process_id == PROCESS
        if isinstance(message, node.CopiesKept):
            self.kept.append(message)
            return
        self.asked[message.pull_id].set_result(message)  # raises when told twice

    def put(self, content: bytes) -> bytes:
        object_id = os.urandom(28)
        self.store.put(object_id, [content])
        return object_id

    def knows(self, *others: Node) -> None:
        for other in others:
            self.transfers.node_seen(other.node_id, other.endpoint)

    def ask(
        self,
        object_id: bytes,
        size_bytes: int,
        *sources: Node,
        priority: int = 0,
        arriving_at: Sequence[Node] = (),
    ) -> int:
        self.knows(*sources, *arriving_at)
        pull_id = next(self.pull_ids)
        self.asked[pull_id] = asyncio.get_running_loop().create_future()
        names = [source.node_id for source in sources]
        relays = [relay.node_id for relay in arriving_at]
        message = node.PullObject(pull_id, object_id, size_bytes, b"owner", names, priority, relays)
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


def served_bytes(source: Node) -> int:
    """Counted after the last byte was sent, so it may lag behind the pull's end."""
    return source.transfers.statistics().served_bytes_total
