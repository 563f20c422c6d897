"""Proof of the cluster's token on a fresh connection, before a single byte of it is parsed.

Both sides prove that they know the token without sending it: each answers the other's random
challenge with an HMAC. Messages have fixed sizes, so an unauthenticated peer can neither make the
other side allocate nor reach a parser. The roles are part of what is signed, so a challenge can not
be reflected back, and both nonces are, so a recorded exchange can not be replayed.

::

    client                                   server
      magic 8 | nonce_c 32          ---->
                                    <----    magic 8 | nonce_s 32 | HMAC(token, "server" nonce_c
                                    nonce_s) 32
      HMAC(token, "client" nonce_s nonce_c)  ---->
                                    <----    0x01

The two classes hold no socket: they take the bytes that came and return the bytes to send. Rules:
RELIABILITY, Security (b).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import time

from skate_core_ids import SkateError

MAGIC = b"SKATE\x00\x00\x01"  # the last byte is the version of the stream protocol
NONCE_BYTES = 32
PROOF_BYTES = 32
HELLO_BYTES = len(MAGIC) + NONCE_BYTES
CHALLENGE_BYTES = len(MAGIC) + NONCE_BYTES + PROOF_BYTES
ACCEPTED = b"\x01"
DEADLINE_S = 5.0


class AuthenticationError(SkateError):
    """The peer did not prove that it knows this cluster's token."""


def _proof(token: bytes, role: bytes, first: bytes, second: bytes) -> bytes:
    return hmac.new(token, role + first + second, hashlib.sha256).digest()


def _check_magic(received: bytes) -> None:
    if received[: len(MAGIC)] != MAGIC:
        raise AuthenticationError(
            "The peer does not speak Skate's stream protocol version 1;"
            " connect with a Skate of the same minor version."
        )


class ServerHandshake:
    """The accepting side. Feed it what arrives until ``done``; ``leftover`` is what came after."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._received = b""
        self._nonce_client = b""
        self._nonce_server = b""
        self.done = False
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return bytes to send. Raises :class:`AuthenticationError` on deviation."""
        self._received += data
        answer = b""
        if not self._nonce_client:
            if len(self._received) < HELLO_BYTES:
                if not MAGIC.startswith(self._received[: len(MAGIC)]):
                    _check_magic(self._received)
                return b""
            _check_magic(self._received)
            self._nonce_client = self._received[len(MAGIC) : HELLO_BYTES]
            self._received = self._received[HELLO_BYTES:]
            self._nonce_server = os.urandom(NONCE_BYTES)
            answer = (
                MAGIC
                + self._nonce_server
                + _proof(self._token, b"server", self._nonce_client, self._nonce_server)
            )
        if len(self._received) < PROOF_BYTES:
            return answer
        expected = _proof(self._token, b"client", self._nonce_server, self._nonce_client)
        if not hmac.compare_digest(self._received[:PROOF_BYTES], expected):
            raise AuthenticationError("The peer's proof of the cluster token is wrong.")
        self.leftover = self._received[PROOF_BYTES:]
        self.done = True
        return answer + ACCEPTED


class ClientHandshake:
    """The connecting side. Call ``receive(b"")`` first for the hello, then feed it what arrives."""

    def __init__(self, token: bytes) -> None:
        self._token = token
        self._received = b""
        self._nonce = os.urandom(NONCE_BYTES)
        self._said_hello = False
        self._proved = False
        self.done = False
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return bytes to send. Raises :class:`AuthenticationError` on deviation."""
        if not self._said_hello:
            self._said_hello = True
            return MAGIC + self._nonce
        self._received += data
        answer = b""
        if not self._proved:
            if len(self._received) < CHALLENGE_BYTES:
                return b""
            _check_magic(self._received)
            nonce_server = self._received[len(MAGIC) : HELLO_BYTES]
            proof = self._received[HELLO_BYTES:CHALLENGE_BYTES]
            expected = _proof(self._token, b"server", self._nonce, nonce_server)
            if not hmac.compare_digest(proof, expected):
                raise AuthenticationError(
                    "The server holds another cluster's token; check the address and the token."
                )
            self._received = self._received[CHALLENGE_BYTES:]
            self._proved = True
            answer = _proof(self._token, b"client", nonce_server, self._nonce)
        if self._received:
            if self._received[:1] != ACCEPTED:
                raise AuthenticationError("The server refused the handshake.")
            self.leftover = self._received[1:]
            self.done = True
        return answer


def run_client_handshake(sock: socket.socket, token: bytes, timeout_s: float = DEADLINE_S) -> bytes:
    """Prove the token over a blocking socket and return the bytes that came after.

    Raises :class:`AuthenticationError` when the server is not of this cluster, or hangs up, or
    takes longer than ``timeout_s`` in all. The socket's own timeout is restored.
    """
    deadline = time.monotonic() + timeout_s
    previous = sock.gettimeout()
    handshake = ClientHandshake(token)
    try:
        sock.settimeout(timeout_s)
        sock.sendall(handshake.receive(b""))
        while not handshake.done:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            data = sock.recv(4096)
            if not data:
                raise AuthenticationError(
                    "The server closed the connection during the handshake; the token may be wrong."
                )
            answer = handshake.receive(data)
            if answer:
                sock.sendall(answer)
    except TimeoutError:
        raise AuthenticationError(
            f"The server did not finish the handshake within {timeout_s:g} s."
        ) from None
    except ConnectionError as error:
        raise AuthenticationError(f"The connection broke during the handshake: {error}.") from None
    finally:
        sock.settimeout(previous)
    return handshake.leftover
