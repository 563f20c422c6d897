"""Accepts connections and lets their peers prove the token, on an event loop.

Before a peer has proved itself not a byte of it is parsed, it may take five seconds, and it costs a
descriptor and no thread. What comes after: ``stream``, or whatever else speaks over the socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from skate_rpc.event_loop import EventLoop, TimerHandle
from skate_rpc.handshake import DEADLINE_S, AuthenticationError, ServerHandshake
from skate_rpc.process_endpoints import tcp_endpoint

UNAUTHENTICATED_MAX = 64
"""Of more peers that have not proved themselves the oldest is dropped."""
ACCEPT_PAUSE_S = 0.1
"""After an accept that failed, as when no descriptor is free."""
_BACKLOG = 256

_log = logging.getLogger(__name__)


class TokenListener:
    """Make and close it on the loop's thread. Raises ``OSError`` when it can not listen.

    A Unix socket is made with mode 0600. A TCP port of 0 picks a free one; ``endpoint`` then names
    it. ``on_peer(sock, leftover)`` gets each peer that proved the token, its socket non-blocking,
    and the bytes that came after the proof.
    """

    def __init__(
        self,
        endpoint: str,
        token: bytes,
        loop: EventLoop,
        on_peer: Callable[[socket.socket, bytes], None],
    ) -> None:
        self._loop = loop
        self._token = token
        self._on_peer = on_peer
        self._candidates: dict[socket.socket, tuple[ServerHandshake, TimerHandle]] = {}
        self._pause: TimerHandle | None = None
        self._sock, self.endpoint = _listen(endpoint)
        self._path = self._sock.getsockname() if self._sock.family == socket.AF_UNIX else None
        self._loop.add_reader(self._sock.fileno(), self._on_acceptable)

    def close(self) -> None:
        """Stop accepting and drop unfinished handshakes."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for sock in list(self._candidates):
            self._drop(sock)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):  # the session's folder may be gone
                os.unlink(self._path)

    def _on_acceptable(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                _log.warning("event=accept_failed endpoint=%s error=%s", self.endpoint, error)
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            sock.setblocking(False)
            while len(self._candidates) >= UNAUTHENTICATED_MAX:
                self._drop(next(iter(self._candidates)))
            timer = self._loop.call_later(DEADLINE_S, self._drop, sock)
            self._candidates[sock] = (ServerHandshake(self._token), timer)
            self._loop.add_reader(sock.fileno(), self._on_candidate, sock)

    def _resume(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._on_acceptable)

    def _release(self, sock: socket.socket) -> None:
        _, timer = self._candidates.pop(sock)
        timer.cancel()
        self._loop.remove_reader(sock.fileno())

    def _drop(self, sock: socket.socket) -> None:
        self._release(sock)
        sock.close()

    def _on_candidate(self, sock: socket.socket) -> None:
        handshake, _ = self._candidates[sock]
        try:
            data = sock.recv(4096)
            if not data:
                self._drop(sock)
                return
            answer = handshake.receive(data)
            # An answer is at most 73 bytes on a fresh socket: it is sent whole, or never.
            if answer and sock.send(answer, socket.MSG_NOSIGNAL) != len(answer):
                self._drop(sock)
                return
        except (BlockingIOError, InterruptedError):
            return
        except (AuthenticationError, OSError) as error:
            _log.warning("event=handshake_refused endpoint=%s error=%s", self.endpoint, error)
            self._drop(sock)
            return
        if handshake.done:
            self._release(sock)
            self._on_peer(sock, handshake.leftover)


def parse_endpoint(endpoint: str) -> tuple[socket.AddressFamily, Any]:
    """Split ``"unix:/path"``, ``"tcp:host:port"`` or ``"tcp:[ipv6]:port"``.

    Raises ``ValueError`` for anything else.
    """
    scheme, _, rest = endpoint.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        return socket.AF_UNIX, rest
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and port.isdigit():
        if host.startswith("[") and host.endswith("]"):
            return socket.AF_INET6, (host[1:-1], int(port))
        if host and ":" not in host and "[" not in host:
            return socket.AF_INET, (host, int(port))
    raise ValueError(f"{endpoint!r} is not an endpoint; write 'unix:/path' or 'tcp:host:port'.")


def _listen(endpoint: str) -> tuple[socket.socket, str]:
    family, address = parse_endpoint(endpoint)
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_UNIX:
            # The mode is set before the bind, so there is no moment at which another user could
            # connect; the umask is process-wide and other threads may be using it.
            os.fchmod(listener.fileno(), stat.S_IRUSR | stat.S_IWUSR)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    if family == socket.AF_UNIX:
        return listener, endpoint
    return listener, tcp_endpoint(*listener.getsockname()[:2])
