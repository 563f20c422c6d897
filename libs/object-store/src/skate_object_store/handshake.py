"""What the store asks of a handshake, so that it depends on none in particular."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class HandshakeLike(Protocol):
    """One side of one connection's proof, without a socket.

    The client's side is called with ``b""`` first, for its opening bytes; the server's side is only
    fed what arrives. Any exception from :meth:`receive` ends the connection.
    """

    @property
    def done(self) -> bool:
        """Whether the other side has proved itself."""

    @property
    def leftover(self) -> bytes:
        """Bytes that came after the proof; meaningful once ``done``."""

    def receive(self, data: bytes) -> bytes:
        """Take what came, return what to send."""


HandshakeFactory = Callable[[], HandshakeLike]
"""Makes the server's side for a new connection."""
