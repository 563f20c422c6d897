"""Authenticated gRPC channels.

Each call carries the cluster's token and, where a trace context is set, its W3C ``traceparent``.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

import grpc
import grpc.aio

from skate_rpc.grpc_limits import CHANNEL_OPTIONS
from skate_rpc.tokens import check_token
from skate_telemetry.context import current_trace

AUTHORIZATION_KEY = "authorization"
BEARER_PREFIX = "Bearer "
TRACEPARENT_KEY = "traceparent"

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


def open_channel(target: str, token: str | None) -> grpc.aio.Channel:
    """A channel to ``target`` (``unix:/path`` or ``host:port``), made on the running loop.

    It connects at the first call, reconnects by itself with bounded backoff (0.1 to 2 s), and
    uses no proxy of the environment. ``token`` None: for a server that was started without one.

    Raises:
        TokenError: the token is unusable.
    """
    entries: tuple[tuple[str, str], ...] = ()
    if token is not None:
        entries = ((AUTHORIZATION_KEY, BEARER_PREFIX + check_token(token)),)
    return grpc.aio.insecure_channel(
        target,
        options=CHANNEL_OPTIONS,
        # gRPC sorts an interceptor into one list by its class, so each kind of call needs its own.
        interceptors=[_UnaryMetadata(entries), _StreamMetadata(entries), _BothMetadata(entries)],
    )


class _UnaryMetadata(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, entries: tuple[tuple[str, str], ...]) -> None:
        self._entries = entries

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request],
            Awaitable[grpc.aio.UnaryUnaryCall[_Request, _Reply]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> _Reply | grpc.aio.UnaryUnaryCall[_Request, _Reply]:
        return await continuation(_with_metadata(client_call_details, self._entries), request)


class _StreamMetadata(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, entries: tuple[tuple[str, str], ...]) -> None:
        self._entries = entries

    async def intercept_unary_stream(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request],
            Awaitable[grpc.aio.UnaryStreamCall[_Request, _Reply]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> AsyncIterator[_Reply] | grpc.aio.UnaryStreamCall[_Request, _Reply]:
        return await continuation(_with_metadata(client_call_details, self._entries), request)


class _BothMetadata(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, entries: tuple[tuple[str, str], ...]) -> None:
        self._entries = entries

    async def intercept_stream_stream(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, AsyncIterable[_Request] | Iterable[_Request]],
            Awaitable[grpc.aio.StreamStreamCall[_Request, _Reply]],
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request_iterator: AsyncIterable[_Request] | Iterable[_Request],
    ) -> AsyncIterator[_Reply] | grpc.aio.StreamStreamCall[_Request, _Reply]:
        details = _with_metadata(client_call_details, self._entries)
        return await continuation(details, request_iterator)


def _with_metadata(
    details: grpc.aio.ClientCallDetails, entries: tuple[tuple[str, str], ...]
) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *entries)
    trace = current_trace()
    if trace is not None:
        metadata.add(TRACEPARENT_KEY, trace.traceparent())
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=details.timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )
