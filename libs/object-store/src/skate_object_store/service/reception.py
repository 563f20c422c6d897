"""The server's connections: accepting, admitting, reading, replying, ending.

Before it: the loop's selector says what is ready. After it: whole frames of admitted clients go to
the dispatcher. Runs on the server's loop.
"""

from __future__ import annotations

import logging
import selectors
import time
from typing import Protocol

from skate_object_store.constants import CONNECTIONS_MAX, UNAUTHENTICATED_MAX
from skate_object_store.handshake import HandshakeFactory
from skate_object_store.machine.records import ClientMisuseError
from skate_object_store.protocol import MalformedFrameError, pack_refused, pack_welcome
from skate_object_store.service.arena import Arena
from skate_object_store.service.listener import Listener
from skate_object_store.service.peer import Peer, PeerEndedError

logger = logging.getLogger(__name__)

_ACCEPT_PAUSE_S = 0.1
"""After the process ran out of descriptors, the listener rests this long."""


class Guests(Protocol):
    """Who is told of admitted clients and their frames."""

    def client_came(self, client: int) -> None:
        """A connection was admitted."""

    def handle(self, client: int, kind: int, request: int, body: memoryview, now_s: float) -> None:
        """A frame came. ``MalformedFrameError`` and ``ClientMisuseError`` end the connection."""

    def client_gone(self, client: int, now_s: float) -> None:
        """An admitted connection ended."""


class Reception:
    """The listener and every connection, registered with the loop's selector."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        arena: Arena,
        handshake: HandshakeFactory | None,
    ) -> None:
        self.refused_total = 0
        self._selector = selector
        self._arena = arena
        self._handshake = handshake
        self._listener: Listener | None = None
        self._accept_again_s: float | None = None
        self._next_number = 1
        self._peers: dict[int, Peer] = {}
        self._unadmitted: dict[int, Peer] = {}  # in order of their deadlines
        self._dirty: dict[int, Peer] = {}  # with queued output
        self._doomed: dict[int, str] = {}  # to be ended, and why
        self._guests: Guests | None = None

    def __len__(self) -> int:
        return len(self._peers)

    def open(self, listener: Listener, guests: Guests) -> None:
        """Begin to accept. Takes the listener over."""
        self._listener = listener
        self._guests = guests
        self._selector.register(listener.fileno(), selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """End every connection with a word of farewell, and the listener."""
        for peer in self._peers.values():
            peer.close(pack_refused("the store was closed"))
        self._peers.clear()
        if self._listener is not None:
            self._listener.close()

    def send(self, client: int, data: bytes) -> None:
        """Queue bytes for a client; :meth:`flush` sends them. Never raises."""
        peer = self._peers.get(client)
        if peer is None:
            return  # It ended earlier in this step.
        self._dirty[client] = peer
        try:
            peer.send(data)
        except PeerEndedError as error:
            # Not now: the table may be in the middle of this client's own request.
            self._doomed[client] = str(error)

    def flush(self) -> None:
        """Send what is queued, and end the connections that failed."""
        while self._dirty or self._doomed:
            dirty, self._dirty = self._dirty, {}
            for peer in dirty.values():
                if peer.number not in self._peers:
                    continue
                try:
                    self._watch_writable(peer, is_wanted=not peer.flush())
                except PeerEndedError as error:
                    self._doomed[peer.number] = str(error)
            doomed, self._doomed = self._doomed, {}
            for number, reason in doomed.items():
                if number in self._peers:
                    self._end(self._peers[number], reason)

    def expire(self, now_s: float) -> None:
        """End connections that were not admitted in time; accept again after a pause."""
        while self._unadmitted:
            peer = next(iter(self._unadmitted.values()))
            if peer.deadline_s > now_s:
                break
            self._end(peer, "the handshake took too long")
        if self._accept_again_s is not None and self._accept_again_s <= now_s:
            self._accept_again_s = None
            assert self._listener is not None
            self._selector.register(self._listener.fileno(), selectors.EVENT_READ, self._accept)

    def next_deadline_s(self) -> float | None:
        """When :meth:`expire` has something to do."""
        deadlines = [peer.deadline_s for peer in list(self._unadmitted.values())[:1]]
        if self._accept_again_s is not None:
            deadlines.append(self._accept_again_s)
        return min(deadlines, default=None)

    def serve(self, peer: Peer, events: int) -> None:
        """A connection is ready to be read or written."""
        if peer.number not in self._peers:
            return  # It ended earlier in this batch of events.
        if events & selectors.EVENT_WRITE:
            self._dirty[peer.number] = peer
        if not events & selectors.EVENT_READ:
            return
        assert self._guests is not None
        try:
            frames = peer.receive()
            if peer.number in self._unadmitted and not self._welcome(peer, self._guests):
                return
            now_s = time.monotonic()
            for kind, request, body in frames:
                self._guests.handle(peer.number, kind, request, body, now_s)
        except (PeerEndedError, MalformedFrameError, ClientMisuseError) as error:
            self._end(peer, str(error))

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            logger.warning("event=store_accept_paused error=%s", error)
            self._selector.unregister(self._listener.fileno())
            self._accept_again_s = time.monotonic() + _ACCEPT_PAUSE_S
            return
        if connection is None:
            self.refused_total += 1
            return
        handshake = None if self._handshake is None else self._handshake()
        peer = Peer(self._next_number, connection, handshake, time.monotonic())
        self._next_number += 1
        if len(self._unadmitted) >= UNAUTHENTICATED_MAX or len(self._peers) >= CONNECTIONS_MAX:
            self.refused_total += 1
            peer.close(pack_refused("the store has too many connections"))
            return
        self._peers[peer.number] = self._unadmitted[peer.number] = peer
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _welcome(self, peer: Peer, guests: Guests) -> bool:
        """Admit a peer that said hello; False if it has not yet."""
        if not peer.is_admitted:
            self._dirty[peer.number] = peer  # The handshake's answer.
            return False
        peer.send_descriptor(pack_welcome(self._arena.size_bytes), self._arena.fd)
        del self._unadmitted[peer.number]
        guests.client_came(peer.number)
        return True

    def _watch_writable(self, peer: Peer, *, is_wanted: bool) -> None:
        if is_wanted == peer.is_writable_watched:
            return
        peer.is_writable_watched = is_wanted
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_wanted else 0)
        self._selector.modify(peer.connection, events, peer)

    def _end(self, peer: Peer, reason: str) -> None:
        """Close a connection; what its client held is released."""
        del self._peers[peer.number]
        was_admitted = self._unadmitted.pop(peer.number, None) is None
        self._selector.unregister(peer.connection)
        peer.close(pack_refused(reason))
        logger.debug("event=store_client_ended client=%d reason=%s", peer.number, reason)
        if was_admitted:
            assert self._guests is not None
            self._guests.client_gone(peer.number, time.monotonic())
        else:
            self.refused_total += 1
