"""Sends this node's objects to other nodes: one thread a connection, straight from the arena.

What comes before: the listener, which has authenticated the peer. An object is pinned by a view for
as long as it is being sent, so it can neither be evicted nor overwritten meanwhile.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from skate_object_store import StoreError
from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.sockets import (
    prepare,
    receive_exactly,
    send_all,
)
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import (
    REQUEST_BYTES,
    Deletion,
    MalformedError,
    Status,
    pack_reply,
    unpack_ids,
    unpack_request,
)

_log = logging.getLogger(__name__)

PEERS_MAX = 256
"""Connections at a time; beyond them the longest idle one is closed, or else the new one."""
IDLE_S = 60.0
"""A connection without a request for this long is closed; the peer gives up idle ones earlier."""
SILENT_S = 15.0
"""A peer that takes nothing for this long has stopped; its object is unpinned."""
RESTORE_S = 60.0
"""How long an object may take to come back from this node's disk."""
RESTORE_TICK_S = 1.0


class _Peer:
    """One connection."""

    __slots__ = ("idle_since_s", "sock", "unread")

    def __init__(self, sock: socket.socket, unread: bytes) -> None:
        self.sock = sock
        self.unread = unread  # came with the end of the handshake
        self.idle_since_s = float("inf")  # infinite while a request is being answered

    def receive(self, count: int, timeout_s: float) -> bytes:
        start, self.unread = self.unread[:count], self.unread[count:]
        return start + receive_exactly(self.sock, count - len(start), timeout_s)

    def hang_up(self) -> None:
        """Wake the thread that serves it; that one closes the socket."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It is closed already.


class ObjectServer:
    """Thread-safe. :meth:`serve` is called for each authenticated connection."""

    def __init__(self, store: StoreAccess) -> None:
        self._store = store
        self._threads = DaemonThreads("skate-object-server", PEERS_MAX)
        self._lock = threading.Lock()
        self._peers: dict[_Peer, None] = {}
        self._is_closed = False
        self.served_bytes_total = 0

    def serve(self, sock: socket.socket, leftover: bytes) -> None:
        """Answer this peer's requests until it hangs up. Returns at once."""
        peer = _Peer(sock, leftover)
        with self._lock:
            crowded = len(self._peers) >= PEERS_MAX
            idlest = min(self._peers, key=lambda one: one.idle_since_s) if crowded else None
            is_refused = self._is_closed or (
                idlest is not None and idlest.idle_since_s == float("inf")
            )
            if not is_refused:
                self._peers[peer] = None
        if is_refused:
            _log.warning("event=object_peer_refused peers=%d", PEERS_MAX)
            sock.close()
            return
        if idlest is not None:
            idlest.hang_up()
        self._threads.run(lambda: self._serve(peer))

    def close(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            self._is_closed = True
            peers = list(self._peers)
        for peer in peers:
            peer.hang_up()

    def peers(self) -> int:
        """Connections that are open."""
        return len(self._peers)

    def _serve(self, peer: _Peer) -> None:
        try:
            prepare(peer.sock)
            while True:
                peer.idle_since_s = time.monotonic()
                head = peer.receive(REQUEST_BYTES, IDLE_S)
                peer.idle_since_s = float("inf")
                request = unpack_request(head)
                if isinstance(request, Deletion):
                    self._delete(peer, unpack_ids(peer.receive(request.length, SILENT_S)))
                    continue
                object_id = peer.receive(request.id_bytes, SILENT_S)
                self._answer(peer, object_id, request.offset, request.length)
        except ConnectionError as error:
            _log.debug("event=object_peer_left why=%r", str(error))
        except (OSError, MalformedError) as error:
            _log.warning("event=object_peer_failed error=%r", str(error))
        finally:
            with self._lock:
                self._peers.pop(peer, None)
            peer.sock.close()

    def _delete(self, peer: _Peer, object_ids: list[bytes]) -> None:
        status = Status.OK
        try:
            self._store.client().delete(object_ids)
        except StoreError as error:
            _log.warning("event=copies_not_deleted error=%s", error)
            status = Status.FAILED
        send_all(peer.sock, pack_reply(status), SILENT_S)

    def _answer(self, peer: _Peer, object_id: bytes, offset: int, length: int) -> None:
        try:
            view = self._find(peer, object_id)
        except StoreError as error:
            _log.warning("event=object_unreadable id=%s error=%s", object_id.hex(), error)
            send_all(peer.sock, pack_reply(Status.FAILED), SILENT_S)
            return
        if view is None:
            send_all(peer.sock, pack_reply(Status.ABSENT), SILENT_S)
        elif offset + length > len(view):
            send_all(peer.sock, pack_reply(Status.OUT_OF_RANGE, len(view)), SILENT_S)
        else:
            send_all(peer.sock, pack_reply(Status.OK, len(view)), SILENT_S)
            send_all(peer.sock, view[offset : offset + length], SILENT_S)
            with self._lock:
                self.served_bytes_total += length

    def _find(self, peer: _Peer, object_id: bytes) -> memoryview | None:
        """A view that pins the object. What lies on disk is waited for, and the peer is told."""
        client = self._store.client()
        view = client.get([object_id], 0)[0]
        give_up_s = time.monotonic() + RESTORE_S
        while view is None and time.monotonic() < give_up_s and client.contains(object_id):
            send_all(peer.sock, pack_reply(Status.WAIT), SILENT_S)
            view = client.get([object_id], RESTORE_TICK_S)[0]
        return view
