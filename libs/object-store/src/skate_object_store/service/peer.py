"""One client's connection as the server's loop sees it: admission, frames in, bytes out.

Before it: the listener accepted a socket of the right user. After it: the dispatcher gets whole
frames of an admitted client. Until HELLO is accepted the peer may send ``HANDSHAKE_BYTES_MAX``
bytes and nothing else.
"""

from __future__ import annotations

import socket

from skate_object_store.constants import (
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    OUTPUT_BYTES_MAX,
)
from skate_object_store.handshake import HandshakeLike
from skate_object_store.protocol import (
    PROTOCOL_VERSION,
    Kind,
    MalformedFrameError,
    split_frames,
    unpack_hello,
)

_RECEIVE_BYTES = 1 << 18
assert _RECEIVE_BYTES < FRAME_BYTES_MAX

Frame = tuple[int, int, memoryview]
"""(kind, request, body)."""


class PeerEndedError(Exception):
    """The connection is over; the text says why."""


class Peer:
    """A connection. The loop calls :meth:`receive` when there is something to read."""

    def __init__(
        self, number: int, connection: socket.socket, handshake: HandshakeLike | None, now_s: float
    ) -> None:
        connection.setblocking(False)
        self.number = number
        self.connection = connection
        self.deadline_s = now_s + HANDSHAKE_TIMEOUT_S
        """When the connection ends unless it is admitted."""
        self.is_admitted = False
        self.is_writable_watched = False
        self.owner = b""
        self._handshake = handshake
        self._has_proved = handshake is None
        self._bytes_before_admission = 0
        self._input = b""
        self._output = bytearray()

    def receive(self) -> list[Frame]:
        """Read once and return the whole frames that there are; admission eats its own.

        Raises:
            PeerEndedError: the peer hung up, broke the protocol, or failed its handshake.
        """
        try:
            data = self.connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            raise PeerEndedError(f"receive failed: {error}") from None
        if not data:
            raise PeerEndedError("the client hung up")
        if not self.is_admitted:
            self._bytes_before_admission += len(data)
            if self._bytes_before_admission > HANDSHAKE_BYTES_MAX:
                raise PeerEndedError("too many bytes before admission")
            if self._handshake is not None and not self._has_proved:
                data = self._shake_hands(self._handshake, data)
        try:
            frames, used = split_frames(self._input + data if self._input else data)
            self._input = (self._input + data)[used:]
            if frames and not self.is_admitted:
                self._admit(frames.pop(0))
        except MalformedFrameError as error:
            raise PeerEndedError(f"malformed frame: {error}") from None
        return frames

    def send(self, data: bytes) -> None:
        """Queue bytes. Raises ``PeerEndedError`` for a peer that asks but does not read."""
        self._output += data
        if len(self._output) > OUTPUT_BYTES_MAX:
            raise PeerEndedError("the client does not read its replies")

    def flush(self) -> bool:
        """Send what can be sent at once; True if nothing is left."""
        while self._output:
            try:
                sent = self.connection.send(self._output)
            except BlockingIOError:
                return False
            except OSError as error:
                raise PeerEndedError(f"send failed: {error}") from None
            del self._output[:sent]
        return True

    def send_descriptor(self, data: bytes, fd: int) -> None:
        """Send the first frame with a descriptor; everything queued before must have been sent."""
        try:
            if not self.flush() or socket.send_fds(self.connection, [data], [fd]) != len(data):
                raise PeerEndedError("the client does not read during admission")
        except OSError as error:
            raise PeerEndedError(f"send failed: {error}") from None

    def close(self, farewell: bytes = b"") -> None:
        """End the connection, after a last frame if the socket takes it."""
        if farewell and self._has_proved:
            try:
                self.send(farewell)
                self.flush()
            except PeerEndedError:
                pass  # It is ending anyway.
        self.connection.close()

    def _shake_hands(self, handshake: HandshakeLike, data: bytes) -> bytes:
        """Feed the handshake; returns the bytes that came after it."""
        try:
            answer = handshake.receive(data)
        except Exception as error:
            # Boundary: whatever a foreign handshake raises, it refused.
            raise PeerEndedError(f"handshake refused: {error}") from error
        self.send(answer)
        self._has_proved = handshake.done
        return handshake.leftover if self._has_proved else b""

    def _admit(self, first: Frame) -> None:
        kind, _, body = first
        if kind != Kind.HELLO:
            raise PeerEndedError(f"expected a hello, got frame kind {kind}")
        version, self.owner = unpack_hello(body)
        if version != PROTOCOL_VERSION:
            raise PeerEndedError(
                f"the client speaks version {version} of the protocol, the store {PROTOCOL_VERSION}"
            )
        self.is_admitted = True
