"""Deletes released objects on this node and on others, for owners of this node.

What comes before: owners (``DeleteCopies``). What comes after: the store, and the object servers of
other nodes. Ids that wait for the same node travel together. A node that does not answer is tried
again until it does or is dead: a deletion that is given up is a leak.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from typing import Final

from skate_object_store import StoreError
from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.peer_connections import PeerConnections
from skate_raylet.service.transfer.sockets import receive_exactly, send_all
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import (
    REPLY_BYTES,
    MalformedError,
    Status,
    pack_deletion,
    unpack_reply,
)
from skate_rpc.handshake import AuthenticationError

_log = logging.getLogger(__name__)

IDS_PER_REQUEST: Final = 500
WAITING_MAX: Final = 1_000_000
"""Ids that wait for one node; the oldest are given up beyond it, and evicted when room is short."""
ANSWER_S: Final = 15.0
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
THREADS: Final = 16


class CopyDeletions:
    """Thread-safe. Invariant: at most one thread works for each node."""

    def __init__(self, node_id: bytes, store: StoreAccess, connections: PeerConnections) -> None:
        self._node_id = node_id
        self._store = store
        self._connections = connections
        self._threads = DaemonThreads("skate-delete", THREADS)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._endpoints: dict[bytes, str] = {}
        self._waiting: dict[bytes, deque[bytes]] = {}
        self._busy: dict[bytes, None] = {}

    def delete(self, copies: dict[bytes, list[bytes]]) -> None:
        """Have these objects deleted, by node. Returns at once."""
        for node_id, object_ids in copies.items():
            with self._lock:
                waiting = self._waiting.setdefault(node_id, deque(maxlen=WAITING_MAX))
                waiting.extend(object_ids)
            self._work_on(node_id)

    def node_seen(self, node_id: bytes, endpoint: str) -> None:
        """Where a node serves."""
        with self._lock:
            self._endpoints[node_id] = endpoint
        self._work_on(node_id)

    def node_died(self, node_id: bytes) -> None:
        """What was to be deleted there is gone."""
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
                object_ids = [waiting.popleft() for _ in range(min(IDS_PER_REQUEST, len(waiting)))]
                endpoint = self._endpoints.get(node_id, "")
            problem = self._delete_at(node_id, endpoint, object_ids)
            if not problem:
                pause_s = RETRY_FIRST_S
                continue
            _log.info("event=copies_not_deleted endpoint=%s why=%r", endpoint, problem)
            with self._lock:
                if node_id in self._waiting:
                    self._waiting[node_id].extendleft(reversed(object_ids))
            self._ended.wait(pause_s)
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    def _delete_at(self, node_id: bytes, endpoint: str, object_ids: list[bytes]) -> str:
        """Delete now; returns why it could not be done."""
        try:
            if node_id == self._node_id:
                self._store.client().delete(object_ids)
            elif endpoint:
                self._ask(endpoint, object_ids)
        except (StoreError, OSError, AuthenticationError, MalformedError) as error:
            return str(error) or repr(error)
        return ""

    def _ask(self, endpoint: str, object_ids: list[bytes]) -> None:
        sock = self._connections.take(endpoint)
        if sock is not None:
            try:
                self._exchange(endpoint, sock, object_ids)
            except OSError:
                pass  # The peer closed it while it was idle; a deletion may be repeated.
            else:
                return
        self._exchange(endpoint, self._connections.connect(endpoint), object_ids)

    def _exchange(self, endpoint: str, sock: socket.socket, object_ids: list[bytes]) -> None:
        is_clean = False
        try:
            send_all(sock, pack_deletion(object_ids), ANSWER_S)
            status, _ = unpack_reply(receive_exactly(sock, REPLY_BYTES, ANSWER_S))
            if status is not Status.OK:
                raise MalformedError("its object store does not answer")
            is_clean = True
        finally:
            if is_clean:
                self._connections.give(endpoint, sock)
            else:
                sock.close()
