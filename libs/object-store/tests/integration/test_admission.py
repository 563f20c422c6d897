from __future__ import annotations

import hmac
import os
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skate_object_store import (
    StoreAuthenticationError,
    StoreClient,
    StoreClosedError,
    StoreProtocolError,
    StoreServer,
    StoreTimeoutError,
)
from skate_object_store.protocol import Kind, frame, pack_get, pack_hello, pack_welcome
from skate_object_store.service import peer, reception

MIB = 1 << 20
Serve = Callable[..., StoreServer]
Eventually = Callable[[Callable[[], bool]], None]


class Password:
    """The least that can be called a handshake: one side names the word, the other says yes."""

    def __init__(self, word: bytes, *, is_client: bool = False) -> None:
        self.done = False
        self.leftover = b""
        self._word = word
        self._is_client = is_client
        self._received = b""

    def receive(self, data: bytes) -> bytes:
        self._received += data
        if self._is_client:
            if not data:
                return self._word
            if self._received[:3] != b"yes":
                raise PermissionError("the server did not say yes")
            self.done, self.leftover = True, self._received[3:]
            return b""
        if len(self._received) < len(self._word):
            return b""
        if not hmac.compare_digest(self._received[: len(self._word)], self._word):
            raise PermissionError("wrong word")
        self.done, self.leftover = True, self._received[len(self._word) :]
        return b"yes"


def path_of(server: StoreServer) -> str:
    return server.endpoint.removeprefix("unix:")


def dial(server: StoreServer) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(path_of(server))
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    received = b""
    try:
        while data := connection.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass  # The server closed with our bytes unread.
    return received


def test_right_word_is_admitted_and_works(serve: Serve) -> None:
    server = serve(handshake=lambda: Password(b"sesame"))
    with StoreClient(server.endpoint, handshake=Password(b"sesame", is_client=True)) as client:
        client.put(b"id", [b"x"])
        assert client.contains(b"id")


@pytest.mark.parametrize("word", [b"swordf", b"sesamx"])
def test_wrong_word_is_refused(serve: Serve, word: bytes) -> None:
    server = serve(handshake=lambda: Password(b"sesame"))
    with pytest.raises(StoreAuthenticationError):
        StoreClient(server.endpoint, handshake=Password(word, is_client=True), timeout_s=5)
    assert server.statistics().refused_connections_total == 1
    assert server.statistics().clients == 0


def test_client_without_handshake_is_refused(serve: Serve) -> None:
    server = serve(handshake=lambda: Password(b"sesame"))
    with pytest.raises(StoreAuthenticationError):
        StoreClient(server.endpoint, timeout_s=5)


def test_client_with_handshake_refuses_a_server_without(serve: Serve) -> None:
    server = serve()
    handshake = Password(b"open, sesame, please", is_client=True)
    with pytest.raises(StoreAuthenticationError, match="did not say yes"):
        StoreClient(server.endpoint, handshake=handshake, timeout_s=5)


def test_bytes_before_the_proof_are_not_parsed(serve: Serve) -> None:
    server = serve(handshake=lambda: Password(b"x" * 100))
    with dial(server) as connection:
        connection.sendall(pack_hello(b"me") + pack_get(1, [b"a"], 0.0))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert server.statistics().clients == 0


def test_handshake_byte_by_byte_works(serve: Serve) -> None:
    server = serve(handshake=lambda: Password(b"sesame"))
    with dial(server) as connection:
        for byte in b"sesame" + pack_hello(b""):
            connection.sendall(bytes([byte]))
        assert connection.recv(3) == b"yes"
        received = b""
        while len(received) < len(pack_welcome(1)):
            received += connection.recv(100)
        assert server.statistics().clients == 1


def test_silent_connection_is_closed_at_the_deadline(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "HANDSHAKE_TIMEOUT_S", 0.1)
    server = serve()
    with dial(server) as connection:
        assert b"took too long" in read_to_end(connection)


def test_unadmitted_connections_are_bounded_and_do_not_shut_others_out_for_ever(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(reception, "UNAUTHENTICATED_MAX", 4)
    server = serve()
    idle = [dial(server) for _ in range(4)]
    eventually(lambda: server.statistics().connections == 4)
    with pytest.raises(StoreAuthenticationError, match="too many connections"):
        StoreClient(server.endpoint)
    for connection in idle:
        connection.close()
    eventually(lambda: server.statistics().connections == 0)
    StoreClient(server.endpoint).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("is_socket_open", [False, True])
def test_other_users_process_is_refused(serve: Serve, is_socket_open: bool) -> None:
    server = serve()
    if is_socket_open:  # As if the file system had not done its part.
        os.chmod(path_of(server), 0o666)
        for parent in Path(path_of(server)).parents[:-1]:
            if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
                os.chmod(parent, 0o755)
    code = f"""
import os, sys
import skate_object_store
skate_object_store.StoreClient  # imported on first use, and the other user may not read it
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    skate_object_store.StoreClient({server.endpoint!r}, timeout_s=5)
except skate_object_store.StoreAuthenticationError as error:
    print(error)
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    expected = "user 65534 is not" if is_socket_open else "Permission denied"
    assert expected in child.stdout
    assert server.statistics().clients == 0


def test_socket_and_directory_are_private(tmp_path: Path) -> None:
    path = tmp_path / "made" / "store.sock"
    with StoreServer(str(path), MIB):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    server = StoreServer(str(tmp_path / "store.sock"), MIB)
    with pytest.raises(ValueError, match="open to others"):
        server.start()
    server.close()


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    server = StoreServer(str(tmp_path / ("x" * 120)), MIB)
    with pytest.raises(ValueError, match="107 bytes"):
        server.start()
    server.close()


def test_endpoint_of_another_form_is_refused() -> None:
    for endpoint in ("tcp:localhost:1", "unix:", "/tmp/x"):
        with pytest.raises(ValueError, match="unix:<path>"):
            StoreClient(endpoint)


def test_absent_server_is_a_closed_store(tmp_path: Path) -> None:
    with pytest.raises(StoreClosedError, match="nobody listens"):
        StoreClient(f"unix:{tmp_path}/none.sock")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_server_of_another_kind_or_version_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "fake.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        other_version = frame(Kind.WELCOME, 0, struct.pack("<HQ", 99, 1 << 20))
        for answer, error in (
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", StoreProtocolError),
            (other_version, StoreProtocolError),
            (pack_welcome(1 << 20), StoreProtocolError),  # without the descriptor
            (b"", StoreTimeoutError),
        ):
            pid = os.fork()
            if pid == 0:
                connection, _ = listener.accept()
                connection.sendall(answer)
                connection.settimeout(10)
                while connection.recv(100):
                    pass
                os._exit(0)
            try:
                with pytest.raises(error):
                    StoreClient(f"unix:{path}", timeout_s=0.5)
            finally:
                os.waitpid(pid, 0)


def test_client_of_another_version_is_told_so(serve: Serve) -> None:
    server = serve()
    with dial(server) as connection:
        connection.sendall(frame(Kind.HELLO, 0, struct.pack("<H", 99) + b"whatever"))
        assert b"version 99" in read_to_end(connection)
