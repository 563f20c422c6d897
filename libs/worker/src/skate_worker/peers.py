"""The connections of a process to the other processes that own or execute.

At most one connection is used per peer: the first one made, whichever side made it. Messages to one
peer therefore keep their order, which the borrowing protocol relies on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from skate_rpc.event_loop import IoThread
from skate_rpc.process_endpoints import (
    LOOPBACK,
    choose_endpoint,
    listens_on_tcp,
    tcp_endpoint,
    with_tcp,
)
from skate_rpc.serials import Serials
from skate_rpc.stream import StreamClosedError, StreamConnection, StreamListener, open_stream
from skate_worker.task_protocol import AnyMessage, Hello

Connection = StreamConnection[Any, Any]


class _WithSerial(Protocol):
    serial: int


M = TypeVar("M", bound=_WithSerial)


class Peer:
    """Another process, and what this process has to do with it."""

    __slots__ = ("actor", "connection", "endpoint", "lease", "node_id", "serials", "worker_id")

    def __init__(
        self, worker_id: bytes, endpoint: str, connection: Connection, serials: Serials
    ) -> None:
        """``serials``: one for all connections with the process."""
        self.worker_id: bytes = worker_id
        self.serials: Serials = serials
        self.endpoint: str = endpoint
        self.connection: Connection = connection
        self.node_id: bytes = b""  # where it runs, once that is known
        self.lease: Any = None  # the lease on this worker, when it is leased to us
        self.actor: Any = None  # the queue of the actor that it is, when we call it

    def stamp(self, message: M) -> M:
        """Give a message its serial, so that the peer knows a repetition. To be sent to it."""
        message.serial = next(self.serials.sent)
        return message


class Peers:
    """Connections by worker id. ``get`` may be called on any thread."""

    def __init__(
        self,
        worker_id: bytes,
        endpoint: str,
        token: bytes,
        loop: IoThread,
        on_messages: Callable[[Peer, list[Any]], None],
        on_lost: Callable[[Peer, str], None],
        ip_address: str = LOOPBACK,
        *,
        dial: Callable[..., Any] | None = None,
        listen_at: Callable[..., Any] | None = None,
    ) -> None:
        """``endpoint``: the Unix socket; with an ``ip_address`` that others can call, TCP too.

        ``dial`` and ``listen_at``: what makes connections, with the signatures of ``open_stream``
        and ``StreamListener``, which are the default.
        """
        self.endpoint: str = endpoint
        self._dial = dial or open_stream
        self._listen_at = listen_at or StreamListener
        self._ip_address = ip_address
        self.node_id = b""  # this process's, once it is registered
        self.on_known: Callable[[Peer], None] = _nobody_asks
        self._worker_id = worker_id
        self._token = token
        self._loop = loop
        self._handle_messages = on_messages
        self._handle_lost = on_lost
        self._peers: dict[bytes, Peer] = {}
        self._connections: dict[Connection, None] = {}
        self._serials: dict[bytes, Serials] = {}  # by worker id, while there is a connection
        self._ends = 0  # processes whose last connection broke
        self._lock = threading.Lock()
        self._listeners: list[StreamListener] = []
        self._is_closed = False

    def listen(self) -> None:
        """Start to accept; ``endpoint`` is whole afterwards. On the loop's thread.

        Raises ``OSError`` when it can not listen.
        """
        self._accept_at(self.endpoint)
        if listens_on_tcp(self._ip_address):
            bound = self._accept_at(tcp_endpoint(self._ip_address, 0))
            self.endpoint = with_tcp(self.endpoint, bound)

    def _accept_at(self, endpoint: str) -> str:
        listener: StreamListener = self._listen_at(
            endpoint,
            self._token,
            self._loop,
            incoming=AnyMessage,
            on_open=self._on_open,
            on_messages=self._on_messages,
            on_close=self._on_close,
        )
        self._listeners.append(listener)
        return listener.endpoint

    def get(self, worker_id: bytes, endpoint: str) -> Peer:
        """The peer, connecting in the background if there is no connection yet."""
        with self._lock:
            peer = self._peers.get(worker_id)
            if peer is not None and not peer.connection.is_closed:
                return peer
            connection: Connection = self._dial(
                choose_endpoint(endpoint, self._ip_address),
                self._token,
                self._loop,
                incoming=AnyMessage,
                on_messages=self._on_messages,
                on_close=self._on_close,
            )
            peer = Peer(worker_id, endpoint, connection, self._one_more_line(worker_id))
            connection.context = peer
            try:
                connection.queue(Hello(self._worker_id, self.endpoint, self.node_id))
            except StreamClosedError as error:
                # It could not be opened, which was noticed before it had a peer to be told of.
                self._loop.call_soon_threadsafe(self._on_close, connection, str(error))
                return peer
            self._peers[worker_id] = peer
            self._connections[connection] = None
            return peer

    def find(self, worker_id: bytes) -> Peer | None:
        """The peer if there is a connection to it."""
        return self._peers.get(worker_id)

    def lives_on(self, peer: Peer, node_id: bytes) -> None:
        """It is known on which node a peer runs."""
        if node_id and peer.node_id != node_id:
            peer.node_id = node_id
            self.on_known(peer)

    def on_node(self, node_id: bytes) -> list[Peer]:
        """The connected peers that are known to run on a node."""
        return [peer for peer in list(self._peers.values()) if peer.node_id == node_id]

    def close(self) -> None:
        """Close everything. On the loop's thread."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.close()

    def _on_open(self, connection: Connection) -> None:
        with self._lock:
            self._connections[connection] = None

    def _on_messages(self, connection: Connection, batch: list[Any]) -> None:
        peer: Peer | None = connection.context
        if peer is None:
            first = batch[0]
            if type(first) is not Hello:
                connection.close("the peer did not say who it is")
                return
            with self._lock:
                serials = self._one_more_line(first.worker_id)
            peer = Peer(first.worker_id, first.endpoint, connection, serials)
            connection.context = peer
            self.lives_on(peer, first.node_id)
            with self._lock:
                known = self._peers.get(first.worker_id)
                if known is None or known.connection.is_closed:
                    self._peers[first.worker_id] = peer
            batch = batch[1:]
            if not batch:
                return
        self._handle_messages(peer, batch)

    def _on_close(self, connection: Connection, reason: str) -> None:
        peer: Peer | None = connection.context
        with self._lock:
            self._connections.pop(connection, None)
            if peer is not None:
                self._one_line_less(peer)
                if self._peers.get(peer.worker_id) is peer:
                    del self._peers[peer.worker_id]
        if peer is not None and not self._is_closed:
            self._handle_lost(peer, reason)

    def _one_more_line(self, worker_id: bytes) -> Serials:
        serials = self._serials.get(worker_id)
        if serials is None:
            serials = self._serials[worker_id] = Serials(self._ends)
        serials.lines += 1
        return serials

    def _one_line_less(self, peer: Peer) -> None:
        peer.serials.lines -= 1
        if not peer.serials.lines:
            del self._serials[peer.worker_id]
            self._ends += 1


def _nobody_asks(peer: Peer) -> None:
    return None
