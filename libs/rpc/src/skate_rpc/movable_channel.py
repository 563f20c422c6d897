"""A channel whose other end may move: the GCS of a cluster whose head starts again elsewhere.

Stubs are made once. Each call, and each attempt of a call that is repeated, goes to where the
channel points at that moment; what is under way stays on the old channel, which is closed when the
longest of it must be over.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
import grpc.aio

from skate_rpc.grpc_channel import open_channel

CLOSE_AFTER_S: Final = 60.0


class MovableChannel(grpc.aio.Channel):
    """Use it on the loop that made it."""

    def __init__(self, target: str, token: str | None) -> None:
        """As :func:`open_channel`."""
        self._token = token
        self._channel = open_channel(target, token)
        self._moves = 0
        self._closing: set[asyncio.Task[None]] = set()
        self.target = target
        """Where calls go."""

    def move(self, target: str) -> None:
        """Send further calls elsewhere."""
        if target == self.target:
            return
        old, self._channel, self.target = self._channel, open_channel(target, self._token), target
        self._moves += 1
        task = asyncio.create_task(_close_later(old))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def current(self) -> tuple[int, grpc.aio.Channel]:
        """How often it has moved, and the channel in use."""
        return self._moves, self._channel

    async def close(self, grace: float | None = None) -> None:
        """Close all that was opened."""
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close(grace)

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """See ``grpc.aio.Channel``."""
        return _Late(self, "unary_unary", args, options)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """See ``grpc.aio.Channel``."""
        return _Late(self, "unary_stream", args, options)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """See ``grpc.aio.Channel``."""
        return _Late(self, "stream_unary", args, options)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """See ``grpc.aio.Channel``."""
        return _Late(self, "stream_stream", args, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See ``grpc.aio.Channel``."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See ``grpc.aio.Channel``."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See ``grpc.aio.Channel``."""
        await self._channel.channel_ready()

    async def __aenter__(self) -> MovableChannel:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()


class _Late:
    """One method of a stub, bound to a channel when it is called."""

    def __init__(
        self, channel: MovableChannel, kind: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._kind = kind
        self._args = args
        self._options = options
        self._moves = -1
        self._bound: Any = None

    def __call__(self, *args: Any, **options: Any) -> Any:
        moves, channel = self._channel.current()
        if moves != self._moves:
            self._bound = getattr(channel, self._kind)(*self._args, **self._options)
            self._moves = moves
        return self._bound(*args, **options)


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(CLOSE_AFTER_S)
    finally:
        await channel.close()
