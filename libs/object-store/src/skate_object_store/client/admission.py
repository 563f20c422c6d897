"""From an endpoint to an admitted connection: connect, prove, say hello, receive the arena.

Before it: nothing. After it: :class:`~skate_object_store.client.link.Link` takes the socket over.
"""

from __future__ import annotations

import array
import os
import socket
import time
from dataclasses import dataclass

from skate_object_store.constants import HANDSHAKE_BYTES_MAX
from skate_object_store.errors import (
    StoreAuthenticationError,
    StoreClosedError,
    StoreError,
    StoreProtocolError,
    StoreTimeoutError,
)
from skate_object_store.handshake import HandshakeLike
from skate_object_store.protocol import (
    PROTOCOL_VERSION,
    Kind,
    MalformedFrameError,
    pack_hello,
    split_frames,
    unpack_refused,
    unpack_welcome,
)

_SCHEME = "unix:"
_DESCRIPTORS_MAX = 4


@dataclass(frozen=True, slots=True)
class Admission:
    """What an admitted client holds. The receiver owns both descriptors."""

    connection: socket.socket
    arena_fd: int
    arena_bytes: int


def be_admitted(
    endpoint: str, owner: bytes, handshake: HandshakeLike | None, timeout_s: float
) -> Admission:
    """Connect to ``unix:<path>`` and go through admission, in ``timeout_s`` altogether.

    Raises:
        ValueError: the endpoint is not of that form.
        StoreClosedError: nobody listens there.
        StoreAuthenticationError: this process was refused, or the server did not prove itself.
        StoreProtocolError: what answers is no store, or one of another version.
        StoreTimeoutError: no answer in time.
    """
    if not endpoint.startswith(_SCHEME) or len(endpoint) == len(_SCHEME):
        raise ValueError(f"a store's endpoint is '{_SCHEME}<path>', got {endpoint!r}")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    conversation = _Conversation(endpoint, connection, timeout_s)
    try:
        conversation.connect(endpoint.removeprefix(_SCHEME))
        if handshake is not None:
            conversation.shake_hands(handshake)
        return conversation.say_hello(owner)
    except TimeoutError as error:
        conversation.close()
        if isinstance(error, StoreError):
            raise
        raise StoreTimeoutError(endpoint, timeout_s) from None
    except BaseException:
        conversation.close()
        raise


class _Conversation:
    """Bytes and descriptors that came, until a whole WELCOME has."""

    def __init__(self, endpoint: str, connection: socket.socket, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._received = b""
        self._descriptors: list[int] = []

    def connect(self, path: str) -> None:
        self._connection.settimeout(self._timeout_s)
        try:
            self._connection.connect(path)
        except PermissionError as error:
            raise StoreAuthenticationError(
                self._endpoint, f"{error.strerror}; the socket belongs to another user"
            ) from None
        except TimeoutError:
            raise
        except OSError as error:
            raise StoreClosedError(self._endpoint, f"nobody listens there ({error})") from None

    def shake_hands(self, handshake: HandshakeLike) -> None:
        self._send(_step(self._endpoint, handshake, b""))
        while not handshake.done:
            self._send(_step(self._endpoint, handshake, self._receive("during the handshake")))
        self._received = handshake.leftover

    def say_hello(self, owner: bytes) -> Admission:
        self._send(pack_hello(owner))
        while True:
            try:
                frames, used = split_frames(self._received)
                if frames:
                    return self._read_welcome(frames[0], is_last=used == len(self._received))
            except MalformedFrameError as error:
                raise StoreProtocolError(self._endpoint, str(error)) from None
            if len(self._received) > HANDSHAKE_BYTES_MAX:
                raise StoreProtocolError(self._endpoint, "no welcome but a flood of bytes")
            self._received += self._receive("instead of a welcome")

    def close(self) -> None:
        self._connection.close()
        for fd in self._descriptors:
            os.close(fd)

    def _read_welcome(self, frame: tuple[int, int, memoryview], *, is_last: bool) -> Admission:
        kind, _, body = frame
        if kind == Kind.REFUSED:
            raise StoreAuthenticationError(self._endpoint, unpack_refused(body))
        if kind != Kind.WELCOME or not is_last or len(self._descriptors) != 1:
            raise StoreProtocolError(self._endpoint, f"frame kind {kind} instead of a welcome")
        version, arena_bytes = unpack_welcome(body)
        if version != PROTOCOL_VERSION:
            raise StoreProtocolError(
                self._endpoint, f"it speaks version {version}, this client {PROTOCOL_VERSION}"
            )
        return Admission(self._connection, self._descriptors.pop(), arena_bytes)

    def _send(self, data: bytes) -> None:
        if not data:
            return
        self._connection.settimeout(self._left_s())
        try:
            self._connection.sendall(data)
        except ConnectionError:
            pass  # What the server said before it hung up is still to be read.

    def _receive(self, when: str) -> bytes:
        self._connection.settimeout(self._left_s())
        # Descriptors come with the first byte of a frame, which may be read along with handshake
        # bytes.
        size = array.array("i").itemsize * _DESCRIPTORS_MAX
        try:
            data, ancillary, _, _ = self._connection.recvmsg(
                HANDSHAKE_BYTES_MAX, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array.array("i")
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
                self._descriptors += descriptors
        if not data:
            raise StoreAuthenticationError(
                self._endpoint, f"the server hung up {when}; the token or the user may be wrong"
            )
        return data

    def _left_s(self) -> float:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise StoreTimeoutError(self._endpoint, self._timeout_s)
        return left_s


def _step(endpoint: str, handshake: HandshakeLike, data: bytes) -> bytes:
    try:
        return handshake.receive(data)
    except Exception as error:
        # Boundary: whatever a foreign handshake raises, the other side did not prove itself.
        raise StoreAuthenticationError(endpoint, str(error)) from error
