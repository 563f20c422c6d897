"""The served classes as xoscar's actors: only imported where xoscar is installed."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks import served

xoscar: Any = importlib.import_module("xoscar")


class XoscarServer(served.Server, xoscar.Actor):  # type: ignore[misc]
    """The actor that is called; one call at a time, as `Actor` has it."""


class XoscarAsyncServer(served.AsyncServer, xoscar.StatelessActor):  # type: ignore[misc]
    """The actor with coroutine methods; calls interleave, as `StatelessActor` has it."""


class XoscarClient(xoscar.Actor):  # type: ignore[misc]
    """`served.Client` in xoscar's idiom: the same calls, awaited."""

    def __init__(self, servers: Sequence[Any]) -> None:
        super().__init__()
        self._servers = list(servers)

    async def ready(self) -> bytes:
        """Answer once the constructor has run."""
        return served.OK

    async def call(self, count: int) -> None:
        """Call each server `count` times at once and wait for all answers."""
        calls: list[Any] = []
        for server in self._servers:
            calls.extend([server.small_value() for _ in range(count)])
        await asyncio.gather(*calls)


ACTOR_CLASSES: dict[type, type] = {
    served.Server: XoscarServer,
    served.AsyncServer: XoscarAsyncServer,
    served.Client: XoscarClient,
}
