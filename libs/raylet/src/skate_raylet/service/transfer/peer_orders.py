"""Orders about objects that are carried out at other nodes, until each node has done so or is dead.

Before it: what the orders mean (``copy_deletions``, ``copy_keeping``). After it: threads of the
daemon. Orders that wait for the same node travel together. A node that does not answer is tried
again until it does or is dead.
"""

from __future__ import annotations

import logging
import socket
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Final, Generic, TypeVar

from skate_object_store import StoreError
from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.peer_connections import PeerConnections
from skate_raylet.service.transfer.sockets import receive_exactly, send_all
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import REPLY_BYTES, MalformedError, Status, unpack_reply
from skate_rpc.handshake import AuthenticationError

_log = logging.getLogger(__name__)

ORDERS_PER_REQUEST: Final = 500
WAITING_MAX: Final = 1_000_000
"""Orders that wait for one node; the oldest are given up beyond it."""
ANSWER_S: Final = 15.0
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0

Order = TypeVar("Order")


class PeerOrders(ABC, Generic[Order]):
    """Thread-safe. Invariant: at most one thread works for each node."""

    def __init__(
        self,
        node_id: bytes,
        store: StoreAccess,
        connections: PeerConnections,
        threads: DaemonThreads,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._connections = connections
        self._threads = threads
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._endpoints: dict[bytes, str] = {}
        self._waiting: dict[bytes, deque[Order]] = {}
        self._busy: dict[bytes, None] = {}

    @abstractmethod
    def _carry_out(self, node_id: bytes, endpoint: str, orders: list[Order]) -> None:
        """Do it now, at this node or, with an empty endpoint, here. Raises what went wrong."""

    def order(self, node_id: bytes, orders: list[Order]) -> None:
        """Have these carried out at a node. Returns at once."""
        with self._lock:
            waiting = self._waiting.setdefault(node_id, deque(maxlen=WAITING_MAX))
            waiting.extend(orders)
        self._work_on(node_id)

    def node_seen(self, node_id: bytes, endpoint: str) -> None:
        """Where a node serves."""
        with self._lock:
            self._endpoints[node_id] = endpoint
        self._work_on(node_id)

    def node_died(self, node_id: bytes) -> None:
        """What was to be done there is void."""
        with self._lock:
            self._endpoints.pop(node_id, None)
            self._waiting.pop(node_id, None)

    def close(self) -> None:
        """Give up; threads end within a moment."""
        self._ended.set()

    def _work_on(self, node_id: bytes) -> None:
        with self._lock:
            is_known = node_id == self._node_id or node_id in self._endpoints
            if not is_known or node_id in self._busy or not self._waiting.get(node_id):
                return
            self._busy[node_id] = None
        self._threads.run(lambda: self._work(node_id))

    def _work(self, node_id: bytes) -> None:
        pause_s = RETRY_FIRST_S
        while not self._ended.is_set():
            with self._lock:
                waiting = self._waiting.get(node_id)
                if not waiting:
                    self._waiting.pop(node_id, None)
                    del self._busy[node_id]
                    return
                count = min(ORDERS_PER_REQUEST, len(waiting))
                orders = [waiting.popleft() for _ in range(count)]
                endpoint = self._endpoints.get(node_id, "")
            problem = self._try(node_id, endpoint, orders)
            if not problem:
                pause_s = RETRY_FIRST_S
                continue
            _log.info("event=peer_order_failed endpoint=%s why=%r", endpoint, problem)
            with self._lock:
                if node_id in self._waiting:
                    self._waiting[node_id].extendleft(reversed(orders))
            self._ended.wait(pause_s)
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    def _try(self, node_id: bytes, endpoint: str, orders: list[Order]) -> str:
        """Carry out now; returns why it could not be done."""
        if node_id != self._node_id and not endpoint:
            return ""  # it died meanwhile
        try:
            self._carry_out(node_id, "" if node_id == self._node_id else endpoint, orders)
        except (StoreError, OSError, AuthenticationError, MalformedError) as error:
            return str(error) or repr(error)
        return ""

    def _ask(self, endpoint: str, request: bytes) -> bytes:
        """A node's answer: what follows its reply, if anything."""
        sock = self._connections.take(endpoint)
        if sock is not None:
            try:
                return self._exchange(endpoint, sock, request)
            except OSError:
                pass  # The peer closed it while it was idle; an order may be repeated.
        return self._exchange(endpoint, self._connections.connect(endpoint), request)

    def _exchange(self, endpoint: str, sock: socket.socket, request: bytes) -> bytes:
        is_clean = False
        try:
            send_all(sock, request, ANSWER_S)
            status, length = unpack_reply(receive_exactly(sock, REPLY_BYTES, ANSWER_S))
            if status is not Status.OK:
                raise MalformedError("its object store does not answer")
            if length > len(request):
                raise MalformedError("it answers with more than it was asked for")
            answer = receive_exactly(sock, length, ANSWER_S) if length else b""
            is_clean = True
        finally:
            if is_clean:
                self._connections.give(endpoint, sock)
            else:
                sock.close()
        return answer
