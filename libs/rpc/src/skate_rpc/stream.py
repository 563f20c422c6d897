"""The task plane's transport: authenticated connections that carry batches of msgpack messages.

A frame is a 4-byte little-endian length and a msgpack array of messages. Whoever finds the line
idle writes at once, from its own thread; while a write is under way, what others send is queued,
and the writer takes all of it in its next frame. So a lone call pays no thread hop and no timer,
and a burst pays one system call for hundreds of messages.

Bounds: a frame is at most ``FRAME_BYTES_MAX`` and ``BATCH_MESSAGES_MAX`` messages; a sender that is
ahead of its peer by ``UNSENT_BYTES_MAX`` or ``PENDING_MESSAGES_MAX`` waits (unless it is the loop's
own thread, which must never wait for itself).

Before this module: ``handshake`` (nothing is parsed before it). After it: ``node_protocol`` and the
worker's task protocol, which say what the messages are.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from skate_core_ids import SkateError
from skate_rpc.event_loop import EventLoop, TimerHandle
from skate_rpc.handshake import (
    DEADLINE_S,
    AuthenticationError,
    ClientHandshake,
    run_client_handshake,
)
from skate_rpc.listener import TokenListener, parse_endpoint

FRAME_BYTES_MAX = 64 << 20
BATCH_MESSAGES_MAX = 512
UNSENT_BYTES_MAX = 32 << 20
PENDING_MESSAGES_MAX = 100_000
BLOCKED_MESSAGES_MAX = 16
READ_BYTES = 256 << 10
SOCKET_BUFFER_BYTES = 1 << 20
TCP_SILENCE_S = 10  # a machine that vanished says nothing; this long after it is noticed
_TCP_IDLE_S = 3  # without traffic, after this long the peer is asked whether it is there
_TCP_ASK_AGAIN_S = 2
LAST_WORDS_S = 1.0  # how long reading goes on after a write failed
_LENGTH = struct.Struct("<I")

assert READ_BYTES < FRAME_BYTES_MAX, "a read must fit a frame, or large frames starve small ones"

_log = logging.getLogger(__name__)

In = TypeVar("In")
Out = TypeVar("Out")


class StreamClosedError(SkateError):
    """The connection is closed: the peer ended, or this side closed it."""


class MessageTooLargeError(SkateError):
    """A single message is larger than a frame; send large values through the object store."""


class StreamConnection(Generic[In, Out]):
    """One authenticated connection. ``send``, ``post``, ``flush`` and ``close`` may be called on
    any thread.

    ``is_closed``: nothing more can be sent. What the peer sent before it closed is delivered all
    the same, until ``has_ended``. ``on_messages(connection, batch)`` and
    ``on_close(connection, reason)`` run on the loop's
    thread; ``on_close`` runs exactly once, also after :meth:`close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: EventLoop,
        decoder: msgspec.msgpack.Decoder[list[In]],
        on_messages: Callable[[StreamConnection[In, Out], list[In]], None],
        on_close: Callable[[StreamConnection[In, Out], str], None],
        *,
        peer: str,
    ) -> None:
        self.peer = peer
        self.is_closed: bool = False  # nothing more can be sent
        self.has_ended: bool = (
            False  # nothing more will be delivered either; on_close has been called
        )
        self.context: Any = None  # for the owner of the connection: who the peer is
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()
        self._on_messages = on_messages
        self._on_close = on_close
        self._pending: deque[Out] = deque()
        self._write_lock = threading.Lock()
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._is_writer_set = False
        self._is_flush_scheduled = False
        self._room = threading.Event()
        self._room.set()
        self._loop_thread: int | None = None
        self._partial = bytearray()
        self._partial_have = 0  # bytes of _partial that are filled
        self.is_open = True

    # ---- sending ----

    def send(self, message: Out) -> None:
        """Send now if nobody is writing, else let the writer take it along.

        Waits while the peer is far behind. Raises :class:`StreamClosedError` when closed; a message
        accepted before the peer's death may still be lost with it.
        """
        if self.is_closed:
            raise StreamClosedError(f"The connection to {self.peer} is closed.")
        if not self._room.is_set():
            self._wait_for_room()
        self._pending.append(message)
        if self.is_open:
            self._drain()

    def post(self, message: Out) -> None:
        """Queue the message; the loop sends it with whatever else is queued by then."""
        self.queue(message)
        self.schedule_flush()

    def queue(self, message: Out) -> None:
        """Queue the message and wake nobody; never waits, so it may be called with a lock held.

        The caller promises a :meth:`flush` or :meth:`schedule_flush` after it has released its
        locks.
        """
        if self.is_closed:
            raise StreamClosedError(f"The connection to {self.peer} is closed.")
        self._pending.append(message)

    def schedule_flush(self) -> None:
        """Have the loop write what is queued, soon. Waits while the peer is far behind."""
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon_threadsafe(self._scheduled_flush)
        elif len(self._pending) > PENDING_MESSAGES_MAX and self.is_open:
            self._drain()
        if not self._room.is_set():
            self._wait_for_room()

    def flush(self) -> None:
        """Write what is queued, on this thread."""
        if self._pending and not self.is_closed and self.is_open:
            self._drain()

    def _scheduled_flush(self) -> None:
        self._is_flush_scheduled = False
        self.flush()

    def _drain(self) -> None:
        # The check after the release closes the gap in which another thread queued a message, found
        # the lock taken and left. While the peer is behind, messages wait here to share a frame,
        # but only a few: their bytes are counted against the bound once they are encoded.
        while (
            self._pending
            and (not self._unsent or len(self._pending) > BLOCKED_MESSAGES_MAX)
            and self._write_lock.acquire(blocking=False)
        ):
            try:
                while (
                    self._pending
                    and (not self._unsent or len(self._pending) > BLOCKED_MESSAGES_MAX)
                    and not self.is_closed
                ):
                    self._write_batch()
            finally:
                self._write_lock.release()
            if self.is_closed:
                return

    def _write_batch(self) -> None:
        pending = self._pending
        if len(pending) == 1:
            batch = [pending.popleft()]
        else:
            batch = []
            with contextlib.suppress(IndexError):  # only this thread pops: IndexError is the end
                for _ in range(BATCH_MESSAGES_MAX):
                    batch.append(pending.popleft())
        for frame in self._frames(batch):
            self._write(frame)

    def _frames(self, batch: list[Out]) -> list[bytearray]:
        frame = bytearray(4)
        self._encoder.encode_into(batch, frame, 4)
        size = len(frame) - 4
        if size <= FRAME_BYTES_MAX:
            _LENGTH.pack_into(frame, 0, size)
            return [frame]
        if len(batch) == 1:
            raise MessageTooLargeError(
                f"A message of {size} bytes exceeds the frame limit of {FRAME_BYTES_MAX} bytes;"
                " put large values in the object store and pass the reference."
            )
        middle = len(batch) // 2
        return self._frames(batch[:middle]) + self._frames(batch[middle:])

    def _write(self, frame: bytearray) -> None:
        view = memoryview(frame)
        if not self._unsent:
            try:
                sent = self._sock.send(view)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail_writing(f"{error.strerror or error}")
                return
            if sent == len(view):
                return
            view = view[sent:]
        self._unsent.append(view)
        self._unsent_bytes += len(view)
        if self._unsent_bytes > UNSENT_BYTES_MAX:
            self._room.clear()
        if not self._is_writer_set:
            self._is_writer_set = True
            self._loop.call_soon_threadsafe(self._set_writer)

    def _set_writer(self) -> None:
        if not self.is_closed:
            self._loop.add_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        with self._write_lock:
            while self._unsent:
                view = self._unsent[0]
                try:
                    sent = self._sock.send(view)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError as error:
                    self._fail_writing(f"{error.strerror or error}")
                    return
                self._unsent_bytes -= sent
                if sent < len(view):
                    self._unsent[0] = view[sent:]
                    return
                self._unsent.popleft()
            if self._unsent_bytes <= UNSENT_BYTES_MAX // 2:
                self._room.set()
            self._loop.remove_writer(self._fd)
            self._is_writer_set = False
        self._drain()

    def _wait_for_room(self) -> None:
        if threading.get_ident() == self._loop_thread:
            return  # the loop's thread makes the room; it must not wait for itself
        # Ends when the peer reads on or the connection closes: the peer's death is such an end.
        while not self.is_closed and not self._room.wait(1.0):
            pass
        if self.is_closed:
            raise StreamClosedError(f"The connection to {self.peer} is closed.")

    # ---- receiving; on the loop's thread ----

    def start_reading(self, leftover: bytes = b"") -> None:
        """Begin to deliver messages. ``leftover``: bytes that came with the handshake."""
        self._loop_thread = threading.get_ident()
        # Not `is_closed`: a write may have failed before this runs, and what the peer had said
        # before it ended is to be read all the same.
        if self.has_ended:
            return
        self._loop.add_reader(self._fd, self._on_readable)
        if leftover:
            self._deliver(leftover)

    def _on_readable(self) -> None:
        try:
            if self._partial_have:
                # A frame is half here: read straight into its buffer.
                view = memoryview(self._partial)
                received = self._sock.recv_into(view[self._partial_have :])
                view.release()
                if received:
                    self._partial_have += received
                    self._continue_partial()
                    return
                data = b""
            else:
                data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(f"{error.strerror or error}")
            return
        if not data:
            self._fail("the peer closed the connection")
            return
        self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        at = 0
        end = len(data)
        view = memoryview(data)
        while end - at >= 4:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > FRAME_BYTES_MAX:
                self._fail(f"the peer announced a frame of {size} bytes")
                return
            if end - at - 4 < size:
                break
            if not self._decode(view[at + 4 : at + 4 + size]):
                return
            at += 4 + size
        if at < end:
            self._begin_partial(view[at:])

    def _begin_partial(self, tail: memoryview) -> None:
        if len(tail) >= 4:
            (size,) = _LENGTH.unpack_from(tail, 0)
            # Grows with what arrives, doubling: a peer can not make this side allocate by
            # announcing.
            self._partial = bytearray(min(4 + size, max(READ_BYTES, 2 * len(tail))))
        else:
            self._partial = bytearray(4)
        self._partial[: len(tail)] = tail
        self._partial_have = len(tail)

    def _continue_partial(self) -> None:
        have = self._partial_have
        if have < 4:
            return
        (size,) = _LENGTH.unpack_from(self._partial, 0)
        if size > FRAME_BYTES_MAX:
            self._fail(f"the peer announced a frame of {size} bytes")
            return
        whole = 4 + size
        if have < whole:
            if have == len(self._partial):
                self._partial.extend(bytes(min(whole - have, max(READ_BYTES, have))))
            return
        frame = self._partial
        self._partial = bytearray()
        self._partial_have = 0
        self._decode(memoryview(frame)[4:whole])

    def _decode(self, frame: memoryview) -> bool:
        try:
            messages = self._decoder.decode(frame)
        except msgspec.MsgspecError as error:
            self._fail(f"the peer sent a malformed frame: {error}")
            return False
        if messages:
            self._on_messages(self, messages)
        return not self.has_ended

    # ---- closing ----

    def close(self, reason: str = "closed by this process") -> None:
        """Close the connection; ``on_close`` follows on the loop's thread."""
        self._fail(reason)

    def _fail_writing(self, reason: str) -> None:
        # The peer reads no more, but what it said before is still on its way and may matter: its
        # last results, or why it ended. Reading goes on to the end of the stream.
        if not self.is_closed:
            self.is_closed = True
            self._room.set()
            self._loop.call_soon_threadsafe(self._read_to_the_end, reason)

    def _read_to_the_end(self, reason: str) -> None:
        self._loop.remove_writer(self._fd)
        self._loop.call_later(LAST_WORDS_S, self._finish, reason)

    def _fail(self, reason: str) -> None:
        self.is_closed = True
        self._room.set()
        self._loop.call_soon_threadsafe(self._finish, reason)

    def _finish(self, reason: str) -> None:
        if self.has_ended:  # two threads may see the failure at once
            return
        self.has_ended = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self._pending.clear()
        self._unsent.clear()
        self._on_close(self, reason)


def make_decoder(incoming: Any) -> msgspec.msgpack.Decoder[list[Any]]:
    """A decoder for frames whose messages are of the union ``incoming``."""
    return msgspec.msgpack.Decoder(list[incoming])


def _tune(sock: socket.socket) -> None:
    sock.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):  # a smaller buffer is slower, not wrong
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    if sock.family != socket.AF_UNIX:
        _tune_tcp(sock)


def _tune_tcp(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # The end of a process closes its connections, the end of a machine or of the way to it closes
    # none: what was sent is acknowledged in this time, and an idle peer answers the kernel's probe.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _TCP_IDLE_S),
        ("TCP_KEEPINTVL", _TCP_ASK_AGAIN_S),
        ("TCP_KEEPCNT", (TCP_SILENCE_S - _TCP_IDLE_S) // _TCP_ASK_AGAIN_S),
        ("TCP_USER_TIMEOUT", TCP_SILENCE_S * 1000),
    ):
        option = getattr(socket, name, None)  # not every system has every one
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def connect_stream(
    endpoint: str,
    token: bytes,
    loop: EventLoop,
    *,
    incoming: Any,
    on_messages: Callable[[StreamConnection[Any, Any], list[Any]], None],
    on_close: Callable[[StreamConnection[Any, Any], str], None],
    timeout_s: float = DEADLINE_S,
    context: Any = None,
) -> StreamConnection[Any, Any]:
    """Connect, prove the token, and start delivering messages on ``loop``. Blocks at most
    ``timeout_s``.

    Raises :class:`AuthenticationError` or :class:`StreamClosedError` (nobody listens there).
    """
    family, address = parse_endpoint(endpoint)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        try:
            sock.connect(address)
        except OSError as error:
            raise StreamClosedError(
                f"Nothing answers at {endpoint}: {error.strerror or error}."
            ) from None
        leftover = run_client_handshake(sock, token, timeout_s)
        _tune(sock)
    except BaseException:
        sock.close()
        raise
    connection: StreamConnection[Any, Any] = StreamConnection(
        sock, loop, make_decoder(incoming), on_messages, on_close, peer=endpoint
    )
    connection.context = context
    loop.call_soon_threadsafe(connection.start_reading, leftover)
    return connection


def open_stream(
    endpoint: str,
    token: bytes,
    loop: EventLoop,
    *,
    incoming: Any,
    on_messages: Callable[[StreamConnection[Any, Any], list[Any]], None],
    on_close: Callable[[StreamConnection[Any, Any], str], None],
    context: Any = None,
) -> StreamConnection[Any, Any]:
    """Like :func:`connect_stream` but returns at once; what is sent meanwhile waits for the
    handshake.

    A failure to connect or to authenticate is reported by ``on_close``, on the loop's thread.
    """
    family, address = parse_endpoint(endpoint)
    sock = socket.socket(family, socket.SOCK_STREAM)
    _tune(sock)
    connection: StreamConnection[Any, Any] = StreamConnection(
        sock, loop, make_decoder(incoming), on_messages, on_close, peer=endpoint
    )
    connection.context = context
    connection.is_open = False
    _Opening(connection, sock, token, loop, address)
    return connection


class _Opening:
    """The client's handshake on a loop: connect, prove, then hand over to the connection."""

    def __init__(
        self,
        connection: StreamConnection[Any, Any],
        sock: socket.socket,
        token: bytes,
        loop: EventLoop,
        address: Any,
    ) -> None:
        self._connection = connection
        self._sock = sock
        self._loop = loop
        self._address = address
        self._handshake = ClientHandshake(token)
        self._timer: TimerHandle | None = None
        self._is_over = False
        loop.call_soon_threadsafe(self._connect)

    def _connect(self) -> None:
        self._timer = self._loop.call_later(DEADLINE_S, self._fail, "no handshake within 5 s")
        self._try_connect()

    def _try_connect(self) -> None:
        if self._is_over:
            return
        code = self._sock.connect_ex(self._address)
        if code == errno.EAGAIN and self._sock.family == socket.AF_UNIX:
            # The peer's accept queue is full, and a Unix socket gives no event for room in it.
            self._loop.call_later(0.005, self._try_connect)
        elif code == errno.EINPROGRESS:
            self._loop.add_writer(self._sock.fileno(), self._on_connected)
        elif code:
            self._fail(os.strerror(code))
        else:
            self._say_hello()

    def _on_connected(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(os.strerror(code))
        else:
            self._say_hello()

    def _say_hello(self) -> None:
        if self._connection.is_closed:
            self._fail("closed by this process")
            return
        try:
            self._sock.send(self._handshake.receive(b""))
        except OSError as error:
            self._fail(f"{error.strerror or error}")
            return
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        if self._connection.is_closed:
            self._fail("closed by this process")
            return
        try:
            data = self._sock.recv(4096)
            if not data:
                self._fail("the peer closed the connection during the handshake")
                return
            answer = self._handshake.receive(data)
            if answer and self._sock.send(answer) != len(answer):
                self._fail("the peer does not read")
                return
        except (BlockingIOError, InterruptedError):
            return
        except (AuthenticationError, OSError) as error:
            self._fail(str(error))
            return
        if self._handshake.done:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            self._loop.remove_reader(self._sock.fileno())
            self._connection.is_open = True
            self._connection.start_reading(self._handshake.leftover)
            self._connection.flush()

    def _fail(self, reason: str) -> None:
        if not self._is_over:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            self._connection.close(reason)


class StreamListener:
    """Accepts connections on ``endpoint`` and delivers those that prove the token.

    ``on_open(connection)`` runs on the loop's thread after the handshake. What holds for the
    endpoint and for peers that prove nothing: see ``listener.TokenListener``. Must be made and
    closed on the loop's thread. Raises ``OSError`` when the endpoint can not be bound.
    """

    def __init__(
        self,
        endpoint: str,
        token: bytes,
        loop: EventLoop,
        *,
        incoming: Any,
        on_open: Callable[[StreamConnection[Any, Any]], None],
        on_messages: Callable[[StreamConnection[Any, Any], list[Any]], None],
        on_close: Callable[[StreamConnection[Any, Any], str], None],
    ) -> None:
        self._loop = loop
        self._decoder = make_decoder(incoming)
        self._on_open = on_open
        self._on_messages = on_messages
        self._on_close = on_close
        self._listener = TokenListener(endpoint, token, loop, self._on_peer)
        self.endpoint = self._listener.endpoint

    def close(self) -> None:
        """Stop accepting and drop unfinished handshakes. Open connections stay open."""
        self._listener.close()

    def _on_peer(self, sock: socket.socket, leftover: bytes) -> None:
        _tune(sock)
        connection: StreamConnection[Any, Any] = StreamConnection(
            sock, self._loop, self._decoder, self._on_messages, self._on_close, peer=self.endpoint
        )
        self._on_open(connection)
        connection.start_reading(leftover)
