"""Connections to other nodes' object servers: kept for the next object, closed when idle."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque

from skate_raylet.service.transfer.sockets import prepare
from skate_rpc.handshake import run_client_handshake
from skate_rpc.listener import parse_endpoint

CONNECT_TIMEOUT_S = 5.0
IDLE_S = 30.0
"""Less than the server's, so that a connection is rarely found closed by the other side."""
IDLE_PER_PEER_MAX = 4


class PeerConnections:
    """From any thread. A connection is in use by one thread at a time."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._lock = threading.Lock()
        self._idle: dict[str, deque[tuple[float, socket.socket]]] = {}  # oldest first
        self._is_closed = False

    def take(self, endpoint: str) -> socket.socket | None:
        """A connection that was used before, if one is idle; it may prove to be broken."""
        with self._lock:
            idle = self._idle.get(endpoint)
            return idle.pop()[1] if idle else None

    def connect(self, endpoint: str) -> socket.socket:
        """A fresh connection, authenticated.

        Raises ``OSError`` when nobody answers there, ``AuthenticationError`` when it is not one of
        this cluster, ``ValueError`` when the endpoint is malformed.
        """
        family, address = parse_endpoint(endpoint)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address)
            run_client_handshake(sock, self._token)
            prepare(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def give(self, endpoint: str, sock: socket.socket) -> None:
        """Keep a connection on which nothing is under way."""
        with self._lock:
            idle = self._idle.setdefault(endpoint, deque())
            is_kept = not self._is_closed and len(idle) < IDLE_PER_PEER_MAX
            if is_kept:
                idle.append((time.monotonic(), sock))
        if not is_kept:
            sock.close()

    def close_idle(self) -> bool:
        """Close what was idle for too long; returns whether any is left."""
        limit_s = time.monotonic() - IDLE_S
        old: list[socket.socket] = []
        with self._lock:
            for endpoint, idle in list(self._idle.items()):
                while idle and idle[0][0] <= limit_s:
                    old.append(idle.popleft()[1])
                if not idle:
                    del self._idle[endpoint]
            is_any_left = bool(self._idle)
        for sock in old:
            sock.close()
        return is_any_left

    def close(self) -> None:
        """Close all that are idle, and each that is given back later."""
        with self._lock:
            self._is_closed = True
            socks = [sock for idle in self._idle.values() for _, sock in idle]
            self._idle.clear()
        for sock in socks:
            sock.close()
