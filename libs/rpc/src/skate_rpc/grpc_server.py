"""A gRPC server that answers nobody without the cluster's token.

The token is checked before a call's first message is read, for unknown methods too. Without a
token a server listens on loopback or in a private folder only; anything else is refused at start.

Source: RELIABILITY.md, security rules (a) and (d), tests S02, S03, S25.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio

from skate_rpc.endpoints import TcpEndpoint, UnixEndpoint, resolve_bind_endpoint
from skate_rpc.errors import BindError
from skate_rpc.grpc_channel import AUTHORIZATION_KEY, BEARER_PREFIX, TRACEPARENT_KEY
from skate_rpc.grpc_limits import CONCURRENT_CALLS_MAX, SERVER_OPTIONS
from skate_rpc.tokens import check_token, tokens_match
from skate_telemetry.context import parse_traceparent, set_current_trace

_log = logging.getLogger(__name__)

_Servicer = TypeVar("_Servicer")
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")

SOCKET_MODE = 0o600


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What a server has seen since it started."""

    calls: int
    """Calls with the right token."""
    refused: int
    """Calls without it."""


class SecureServer:
    """A ``grpc.aio`` server behind the cluster's token.

    Add servicers, then start; a stopped server is not started again.
    """

    def __init__(self, token: str | None) -> None:
        """Take the token; None switches the check off, where nobody else can connect.

        Raises:
            TokenError: the token is unusable; an empty one counts as a mistake, not as "off".
        """
        self._has_token = token is not None
        self._gate = _TokenGate(None if token is None else check_token(token))
        self._adders: list[Callable[[grpc.aio.Server], None]] = []
        self._server: grpc.aio.Server | None = None
        self.endpoint = ""
        """Where it listens, with the real port; empty before :meth:`start`."""

    def add(self, adder: Callable[[_Servicer, grpc.aio.Server], None], servicer: _Servicer) -> None:
        """Serve ``servicer``; ``adder`` is the generated ``add_<Service>Servicer_to_server``."""
        if self._server is not None:
            raise RuntimeError("Add servicers before starting the server.")
        self._adders.append(lambda server: adder(servicer, server))

    async def start(self, endpoint: str) -> str:
        """Listen on ``unix:/path`` or ``host:port`` (0: any free port); returns the bound endpoint.

        A unix socket gets mode 0600. A host name is resolved first, and its address is bound.

        Raises:
            BindError: the endpoint is taken, malformed, or open to others while there is no token.
        """
        if self._server is not None:
            raise RuntimeError("This server has been started already.")
        resolved = resolve_bind_endpoint(endpoint)
        if not self._has_token:
            _check_private(endpoint, resolved)
        server = grpc.aio.server(
            interceptors=[self._gate],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=CONCURRENT_CALLS_MAX,
        )
        for add in self._adders:
            add(server)
        try:
            port = server.add_insecure_port(str(resolved))
            if isinstance(resolved, UnixEndpoint):
                os.chmod(resolved.path, SOCKET_MODE)
        except (RuntimeError, OSError) as error:
            await server.stop(None)
            raise BindError(
                endpoint, "the address is taken or not available on this machine."
            ) from error
        await server.start()
        self._server = server
        self.endpoint = (
            str(resolved)
            if isinstance(resolved, UnixEndpoint)
            else str(TcpEndpoint(resolved.address, port, resolved.is_loopback))
        )
        return self.endpoint

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, give open ones ``grace_s``, then cancel them. May be repeated."""
        if self._server is not None:
            await self._server.stop(grace_s)

    def statistics(self) -> ServerStatistics:
        """Counts since the start."""
        return ServerStatistics(calls=self._gate.calls, refused=self._gate.refused)


class _TokenGate(grpc.aio.ServerInterceptor):
    """Refuses calls without the token; puts the trace context of the others into the contextvar."""

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else BEARER_PREFIX + token
        self.calls = 0
        self.refused = 0

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails],
            Awaitable[grpc.RpcMethodHandler[_Request, _Reply] | None],
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[_Request, _Reply] | None:
        offered: list[str] = []
        trace_parents: list[str] = []
        for key, value in handler_call_details.invocation_metadata or ():
            if key == AUTHORIZATION_KEY:
                offered.append(value if isinstance(value, str) else "")
            elif key == TRACEPARENT_KEY and isinstance(value, str):
                trace_parents.append(value)
        if self._expected is not None and not (
            len(offered) == 1 and tokens_match(offered[0], self._expected)
        ):
            self._count_refusal(handler_call_details.method)
            return _REFUSAL
        self.calls += 1
        if len(trace_parents) == 1:
            # Each call runs in a task of its own, so the context ends with it.
            set_current_trace(parse_traceparent(trace_parents[0]))
        return await continuation(handler_call_details)

    def _count_refusal(self, method: str) -> None:
        self.refused += 1
        # A flood of wrong calls must not become a flood of lines: the 1st, 2nd, 4th, 8th, ... is
        # logged.
        if self.refused & (self.refused - 1) == 0:
            _log.warning(
                "call without the cluster's token",
                extra={"method": method[:200], "refused": self.refused},
            )


async def _refuse(
    _messages: object,  # an outsider's messages stay unread
    context: grpc.aio.ServicerContext[Any, Any],
) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "The call does not carry this cluster's token; use the token file of its session.",
    )


# A stream handler is started before any message is read; a unary one is given the parsed request.
_REFUSAL: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_refuse)


def _check_private(endpoint: str, resolved: UnixEndpoint | TcpEndpoint) -> None:
    if isinstance(resolved, TcpEndpoint):
        if not resolved.is_loopback:
            raise BindError(
                endpoint,
                "without a cluster token only loopback addresses are allowed, because anyone who"
                " connects could run code here. Set a token or use 127.0.0.1.",
            )
        return
    folder = os.path.dirname(resolved.path)
    try:
        status = os.stat(folder)
    except OSError as error:
        raise BindError(endpoint, f"its folder can not be used ({error.strerror}).") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise BindError(
            endpoint,
            f"without a cluster token the folder {folder} must belong to this user with mode 0700.",
        )
