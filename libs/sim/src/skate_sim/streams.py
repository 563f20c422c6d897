"""What stands for sockets and threads in a simulated process: connections, listeners, loops.

``SimConnection`` answers like ``skate_rpc.stream.StreamConnection``: what was sent before one end
closed is delivered, then ``on_close`` follows; what is sent to an end that is gone vanishes. Both
sides of the task plane encode what they send, so that no object is shared by two processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from skate_rpc.stream import TCP_SILENCE_S, StreamClosedError, make_decoder
from skate_sim.agenda import Agenda, Alarm
from skate_sim.network import Network, Pipe

_encode = msgspec.msgpack.Encoder().encode
_CLOSE = b""


class Life:
    """What ends with a process: its loop, and its ends of connections."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host
        self.is_alive = True


class SimLoop:
    """Stands for ``IoThread``. Callbacks of a dead process never run."""

    def __init__(self, agenda: Agenda, life: Life) -> None:
        self._agenda = agenda
        self._life = life

    def is_current(self) -> bool:
        """There is one thread."""
        return True

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call back behind what happens at this moment."""
        self._agenda.after(0.0, self._run, callback, args)

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> Alarm:
        """Call back when so much time has passed."""
        return self._agenda.after(delay_s, self._run, callback, args)

    def _run(self, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        if self._life.is_alive:
            callback(*args)


class SimConnection:
    """One end of a connection."""

    def __init__(
        self,
        network: Network,
        life: Life,
        on_messages: Callable[[Any, list[Any]], None],
        on_close: Callable[[Any, str], None],
        decoder: msgspec.msgpack.Decoder[list[Any]] | None,
    ) -> None:
        self._network = network
        self.life = life
        self._on_messages = on_messages
        self._on_close = on_close
        self._decoder = decoder
        self.pipe: Pipe  # what this end sends
        self.other: SimConnection
        self.is_closed = False
        self.has_ended = False
        self.is_first = True  # nothing was sent: the first message says who it is
        self.context: Any = None

    def join(self, other: SimConnection) -> None:
        """Become the two ends of one connection."""
        self.other, other.other = other, self
        for near, far in ((self, other), (other, self)):
            near.pipe = Pipe(self._network, near.life.host, far.life.host, far.arrive)

    def queue(self, message: Any) -> None:
        """Send. Raises :class:`StreamClosedError` once this end is closed."""
        if self.is_closed:
            raise StreamClosedError("closed")
        if not self.life.is_alive:
            return
        if self._decoder is None:
            self.pipe.send(message)
            return
        data = _encode([message])
        self.pipe.send(data)
        network = self._network
        share = network.habits.repeat_share
        if share and not self.is_first and network.random.random() < share:
            network.agenda.after(network.random.uniform(0.0, 0.5), self._repeat, data)
        self.is_first = False

    post = send = queue

    def _repeat(self, data: bytes) -> None:
        if not self.is_closed and self.life.is_alive:
            self.pipe.send(data)

    def flush(self) -> None:
        """Everything queued is on its way already."""

    schedule_flush = flush

    def close(self, reason: str = "closed by this process") -> None:
        """Close this end; the other one hears of it after what was said."""
        if not self.is_closed:
            self.is_closed = True
            self.pipe.send(_CLOSE)
            self._network.agenda.after(0.0, self._finish, reason)

    def die(self, lost: int, *, is_told: bool) -> None:
        """The process of this end is gone, and the last ``lost`` messages that it sent with it.

        ``is_told`` False: its host is gone too, so that nobody tells the other end.
        """
        self.is_closed = self.has_ended = True
        self.other.pipe.is_closed = True
        self.pipe.lose_end(lost)
        if is_told:
            self.pipe.send(_CLOSE)
        else:
            self._network.agenda.after(TCP_SILENCE_S, self.other.notice_break, "the peer is silent")

    def snap(self) -> None:
        """The connection breaks while both ends live; each finds out by itself."""
        random, agenda = self._network.random, self._network.agenda
        for end in (self, self.other):
            end.pipe.is_closed = True
            agenda.after(random.uniform(0.0, 0.2), end.notice_break, "the connection broke")

    def notice_break(self, reason: str) -> None:
        """This end finds out that the connection is broken."""
        self.is_closed = True
        self._finish(reason)

    def arrive(self, batch: list[Any]) -> None:
        """Take what came through the other end's pipe."""
        if self.has_ended or not self.life.is_alive:
            return
        messages: list[Any] = []
        for item in batch:
            if item == _CLOSE:
                break
            messages += [item] if self._decoder is None else self._decoder.decode(item)
        if messages:
            self._on_messages(self, messages)
        if _CLOSE in batch:
            self.is_closed = True
            self._finish("the peer closed the connection")

    def _finish(self, reason: str) -> None:
        if not self.has_ended and self.life.is_alive:
            self.has_ended = True
            self._on_close(self, reason)


class SimSockets:
    """Who listens where, and every open connection."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._listeners: dict[str, SimListener] = {}
        self._decoders: dict[Any, msgspec.msgpack.Decoder[list[Any]]] = {}
        self.open: dict[SimConnection, None] = {}  # the dialling ends
        self.dark_hosts: dict[str, None] = {}  # without power: nobody there refuses anything

    def decoder_of(self, incoming: Any) -> msgspec.msgpack.Decoder[list[Any]]:
        """The decoder for these messages, made once."""
        decoder = self._decoders.get(incoming)
        if decoder is None:
            decoder = self._decoders[incoming] = make_decoder(incoming)
        return decoder

    def listen(self, listener: SimListener) -> None:
        """Take connections at an endpoint."""
        self._listeners[listener.endpoint] = listener

    def unlisten(self, listener: SimListener) -> None:
        """Take none any more."""
        if self._listeners.get(listener.endpoint) is listener:
            del self._listeners[listener.endpoint]

    def dial(
        self,
        life: Life,
        endpoint: str,
        incoming: Any,
        on_messages: Callable[[Any, list[Any]], None],
        on_close: Callable[[Any, str], None],
    ) -> SimConnection:
        """Open a connection in the background; where nobody listens it closes."""
        network = self._network
        near = SimConnection(network, life, on_messages, on_close, self.decoder_of(incoming))
        listener = self._listeners.get(endpoint)
        if listener is None or not listener.life.is_alive:
            near.join(SimConnection(network, Life("nobody", life.host), _drop, _drop, None))
            if endpoint.partition("/")[0] not in self.dark_hosts:
                delay_s = network.delay_s(life.host, life.host)
                network.agenda.after(delay_s, near.arrive, [_CLOSE])
            return near
        far = SimConnection(
            network,
            listener.life,
            listener.on_messages,
            listener.on_close,
            self.decoder_of(incoming),
        )
        near.join(far)
        listener.on_open(far)
        self.open = {end: None for end in self.open if not end.has_ended}
        self.open[near] = None
        return near

    def ends_of(self, life: Life) -> list[SimConnection]:
        """The ends of a process's connections."""
        return [
            end
            for near in self.open
            for end in (near, near.other)
            if end.life is life and not end.has_ended
        ]


class SimListener:
    """Stands for ``StreamListener``."""

    def __init__(
        self,
        sockets: SimSockets,
        life: Life,
        endpoint: str,
        on_open: Callable[[Any], None],
        on_messages: Callable[[Any, list[Any]], None],
        on_close: Callable[[Any, str], None],
    ) -> None:
        self.endpoint = endpoint
        self.life = life
        self.on_open = on_open
        self.on_messages = on_messages
        self.on_close = on_close
        self._sockets = sockets
        sockets.listen(self)

    def close(self) -> None:
        """Take no connections any more."""
        self._sockets.unlisten(self)


def _drop(*about: Any) -> None:
    return None
