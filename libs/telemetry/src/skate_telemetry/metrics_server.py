"""``GET /metrics`` behind the cluster's token, and ``GET /healthz`` for everyone; nothing else.

One thread with its own event loop serves a bounded number of connections, one request each; a
second thread renders, so that a slow component does not keep ``/healthz`` waiting. A request must
be complete within seconds, and when all places are taken the longest-waiting one is given up, so
that peers that hold connections open can not keep a scraper out.

Source: RELIABILITY.md, security rules (a), (d), (g) and tests S01, S02, S08, S17, S18, S32.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from skate_telemetry.errors import MetricsBindError
from skate_telemetry.http_connection import HttpConnection
from skate_telemetry.http_request import Request, is_host_allowed, response

_log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
CONNECTIONS_MAX = 64
RENDERS_PENDING_MAX = 4
"""Scrapes in progress; more are answered with 503."""
BACKLOG = 128
STOP_S_MAX = 5.0


class Renderer(Protocol):
    """What is served; ``MetricsRegistry`` is one."""

    def render(self) -> bytes:
        """The exposition."""


class MetricsServer:
    """Serves one registry over HTTP, from its own threads, until closed."""

    def __init__(
        self,
        registry: Renderer,
        host: str,
        port: int,
        token: str,
        *,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        """Listen on ``host:port`` (port 0: any free port); serving begins at once.

        ``allowed_hosts``: names, besides ``localhost`` and this machine's, that scrapers may use to
        reach the server; addresses always work.

        Raises:
            ValueError: the token is empty.
            MetricsBindError: the address can not be bound.
        """
        if not token:
            raise ValueError("The metrics server needs the cluster's token.")
        self._registry = registry
        self._expected = f"Bearer {token}".encode()
        machine = socket.gethostname().lower()
        self._allowed_hosts = frozenset(
            {"localhost", machine, machine.partition(".")[0], *map(str.lower, allowed_hosts)}
        )
        self._socket = _listen(host, port)
        address, bound_port = self._socket.getsockname()[:2]
        self.endpoint = f"[{address}]:{bound_port}" if ":" in address else f"{address}:{bound_port}"
        """Where it listens, as ``address:port``."""
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._connections: dict[HttpConnection, None] = {}  # in the order of their arrival
        self._renders_pending = 0
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="skate-metrics-render")
        self._thread = threading.Thread(target=self._serve, name="skate-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and end the threads. May be repeated."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # closed in this very moment
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(STOP_S_MAX)
        self._renderer.shutdown(wait=False, cancel_futures=True)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()

    async def _run(self) -> None:
        server = await self._loop.create_server(
            lambda: HttpConnection(self._loop, self), sock=self._socket, backlog=BACKLOG
        )
        await self._stopping.wait()
        server.close()
        for connection in list(self._connections):
            connection.abort()
        await asyncio.sleep(0)  # one more turn, in which the transports close their sockets

    def admit(self, connection: HttpConnection) -> None:
        """Take a connection in, in the place of the longest-waiting one when all are taken."""
        if len(self._connections) >= CONNECTIONS_MAX:
            waiting = next((c for c in self._connections if not c.is_answering), None)
            victim = waiting or next(iter(self._connections))
            # Now, and not when it has closed: the next one must find another victim.
            del self._connections[victim]
            victim.abort()
        self._connections[connection] = None

    def discard(self, connection: HttpConnection) -> None:
        """A connection has ended."""
        self._connections.pop(connection, None)

    def answer(self, request: Request, connection: HttpConnection) -> None:
        """Decide on a request: Host, then the open route, then the token, then everything else."""
        is_head = request.method == "HEAD"
        if not is_host_allowed(request.host, self._allowed_hosts):
            connection.finish(
                response(http.HTTPStatus.FORBIDDEN, b"unknown Host\n", is_head=is_head)
            )
        elif request.path == "/healthz" and request.method in {"GET", "HEAD"}:
            connection.finish(response(http.HTTPStatus.OK, b"ok\n", is_head=is_head))
        elif not hmac.compare_digest(request.authorization.encode(), self._expected):
            connection.finish(_UNAUTHORIZED)
        elif request.path != "/metrics":
            connection.finish(response(http.HTTPStatus.NOT_FOUND, is_head=is_head))
        elif request.method not in {"GET", "HEAD"}:
            connection.finish(
                response(http.HTTPStatus.METHOD_NOT_ALLOWED, headers=("Allow: GET, HEAD",))
            )
        elif self._renders_pending >= RENDERS_PENDING_MAX:
            connection.finish(response(http.HTTPStatus.SERVICE_UNAVAILABLE, is_head=is_head))
        else:
            self._render(connection, is_head)

    def _render(self, connection: HttpConnection, is_head: bool) -> None:
        self._renders_pending += 1
        rendering = self._loop.run_in_executor(self._renderer, self._registry.render)

        def done(future: asyncio.Future[bytes]) -> None:
            self._renders_pending -= 1
            if future.cancelled():
                connection.abort()
                return
            error = future.exception()
            if error is not None:
                _log.error("rendering metrics failed", exc_info=error)
                connection.finish(response(http.HTTPStatus.INTERNAL_SERVER_ERROR))
                return
            connection.finish(
                response(http.HTTPStatus.OK, future.result(), CONTENT_TYPE, is_head=is_head)
            )

        rendering.add_done_callback(done)


_UNAUTHORIZED = response(http.HTTPStatus.UNAUTHORIZED, headers=("WWW-Authenticate: Bearer",))


def _listen(host: str, port: int) -> socket.socket:
    endpoint = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError, OverflowError) as error:
        raise MetricsBindError(endpoint, f"the host can not be used ({error}).") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise MetricsBindError(endpoint, f"{error.strerror}.") from error
    listener.setblocking(False)
    return listener
