"""Sends this node's objects to other nodes: one thread a connection, straight from the arena.

What comes before: the listener, which has authenticated the peer. An object is pinned by a view for
as long as it is being sent, so it can neither be evicted nor overwritten meanwhile.
"""

from __future__ import annotations

import logging
import socket
import threading
import time

from skate_object_store import SpilledObjectLostError, StoreError
from skate_raylet.service.transfer.arrivals import Arrival, ArrivalEndedError, Arrivals
from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.sockets import (
    PeerClosedError,
    PeerSilentError,
    prepare,
    receive_exactly,
    send_all,
)
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import (
    REQUEST_BYTES,
    Deletion,
    KeepRequest,
    MalformedError,
    Request,
    Status,
    pack_ids,
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
ARRIVAL_S = 1.0
"""How long news that an object is on its way to this node are waited for."""
FIRST_BYTES_S = 5.0
"""And how long for the first bytes of it that a peer wants."""
PATIENCE_TICK_S = 1.0
"""A peer whose object is still on its way from this node's disk is told so this often."""


class _Peer:
    """One connection."""

    __slots__ = ("idle_since_s", "looking_since_s", "sending", "sock", "unread")

    def __init__(self, sock: socket.socket, unread: bytes) -> None:
        self.sock = sock
        self.unread = unread  # came with the end of the handshake
        self.idle_since_s = float("inf")  # infinite while a request is being answered
        self.looking_since_s = float("inf")  # since when its object is looked for
        self.sending = threading.Lock()  # over the line between "looking" and "found"

    def receive(self, count: int, timeout_s: float) -> bytes:
        start, self.unread = self.unread[:count], self.unread[count:]
        return start + receive_exactly(self.sock, count - len(start), timeout_s)

    def set_looking(self, since_s: float) -> None:
        with self.sending:
            self.looking_since_s = since_s

    def ask_for_patience(self) -> None:
        """Say that its object is being looked for, if it is, and has been for a while."""
        with self.sending:
            if time.monotonic() - self.looking_since_s < PATIENCE_TICK_S:
                return
            try:
                # Nothing else is in the socket: it is sent at once, or the peer is broken.
                self.sock.send(pack_reply(Status.WAIT), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError as error:
                _log.debug("event=object_peer_gone why=%r", str(error))

    def hang_up(self) -> None:
        """Wake the thread that serves it; that one closes the socket."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It is closed already.


class ObjectServer:
    """Thread-safe. :meth:`serve` is called for each authenticated connection."""

    def __init__(self, store: StoreAccess, arrivals: Arrivals) -> None:
        self._store = store
        self._arrivals = arrivals
        self._threads = DaemonThreads("skate-object-server", PEERS_MAX)
        self._soothers = DaemonThreads("skate-object-patience", 1)
        self._lock = threading.Lock()
        self._peers: dict[_Peer, None] = {}
        self._is_soothing = False  # a thread asks peers for patience
        self._closing = threading.Event()
        self.served_bytes_total = 0

    def serve(self, sock: socket.socket, leftover: bytes) -> None:
        """Answer this peer's requests until it hangs up. Returns at once."""
        peer = _Peer(sock, leftover)
        with self._lock:
            crowded = len(self._peers) >= PEERS_MAX
            idlest = min(self._peers, key=lambda one: one.idle_since_s) if crowded else None
            is_refused = self._closing.is_set() or (
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
            self._closing.set()
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
                if isinstance(request, KeepRequest):
                    self._keep(peer, unpack_ids(peer.receive(request.length, SILENT_S)))
                    continue
                object_id = peer.receive(request.id_bytes, SILENT_S)
                self._answer(peer, object_id, request)
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

    def _keep(self, peer: _Peer, object_ids: list[bytes]) -> None:
        status, kept = Status.OK, b""
        try:
            kept = pack_ids(self._store.client().keep(object_ids))
        except StoreError as error:
            _log.warning("event=copies_not_kept error=%s", error)
            status = Status.FAILED
        send_all(peer.sock, pack_reply(status, len(kept)) + kept, SILENT_S)

    def _answer(self, peer: _Peer, object_id: bytes, request: Request) -> None:
        self._start_soothing()
        peer.set_looking(time.monotonic())
        try:
            status, view = self._look_up(object_id)
            if status is Status.ABSENT and request.waits:
                if self._pass_on(peer, object_id, request):
                    return
                status, view = self._look_up(object_id)  # it may have come meanwhile
        finally:
            peer.set_looking(float("inf"))
        end = request.offset + request.length
        size_bytes = 0 if view is None else len(view)
        if view is not None and end > size_bytes:
            status = Status.OUT_OF_RANGE
        send_all(peer.sock, pack_reply(status, size_bytes), SILENT_S)
        if view is not None and status is Status.OK:
            send_all(peer.sock, view[request.offset : end], SILENT_S)
            self._count(request.length)

    def _look_up(self, object_id: bytes) -> tuple[Status, memoryview | None]:
        try:
            # An object that lies on this node's disk is brought back first.
            view = self._store.client().get([object_id], 0)[0]
        except SpilledObjectLostError as error:
            # For the puller that is as if it had never been here: another copy, or lineage.
            _log.warning("event=object_damaged id=%s error=%s", object_id.hex(), error)
            return Status.ABSENT, None
        except StoreError as error:
            _log.warning("event=object_unreadable id=%s error=%s", object_id.hex(), error)
            return Status.FAILED, None
        return (Status.ABSENT if view is None else Status.OK), view

    # ---- copies under way ----

    def _pass_on(self, peer: _Peer, object_id: bytes, request: Request) -> bool:
        """Send what arrives, as it does. False: nothing came, and nothing was said."""
        arrival = self._arrivals.find(object_id, time.monotonic() + ARRIVAL_S)
        if arrival is None:
            return False
        try:
            # The peer is asked for patience until the first bytes are here, but not for ever: the
            # two nodes may be waiting for each other.
            end = request.offset + request.length
            part = arrival.next_part(request.offset, end, time.monotonic() + FIRST_BYTES_S)
            size_bytes = arrival.size_bytes
            if part is None or size_bytes is None or end > size_bytes:
                return False
            peer.set_looking(float("inf"))
            send_all(peer.sock, pack_reply(Status.OK, size_bytes), SILENT_S)
            self._send_parts(peer, arrival, part, request.offset, end)
        except ArrivalEndedError:
            return False
        finally:
            arrival.leave()
        return True

    def _send_parts(
        self, peer: _Peer, arrival: Arrival, part: memoryview, offset: int, end: int
    ) -> None:
        """A copy that does not come to its end ends the connection."""
        while True:
            with part:
                offset += len(part)
                send_all(peer.sock, part, SILENT_S)
                self._count(len(part))
            if offset == end:
                return
            try:
                following = arrival.next_part(offset, end, time.monotonic() + SILENT_S)
            except ArrivalEndedError as error:
                raise PeerClosedError(f"the object it was sent does not come: {error}") from None
            if following is None:
                raise PeerSilentError(f"nothing of the object came for {SILENT_S:g} s")
            part = following

    def _count(self, count: int) -> None:
        with self._lock:
            self.served_bytes_total += count

    # ---- signs of life ----

    def _start_soothing(self) -> None:
        with self._lock:
            if not self._is_soothing:
                self._is_soothing = True
                self._soothers.run(self._soothe)

    def _soothe(self) -> None:
        """While there are peers: tell those who wait for long that they do not wait in vain."""
        while not self._closing.wait(PATIENCE_TICK_S):
            with self._lock:
                peers = list(self._peers)
                self._is_soothing = bool(peers)
            if not peers:
                return
            for peer in peers:
                peer.ask_for_patience()
