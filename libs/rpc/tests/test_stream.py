"""The stream over real sockets: delivery, coalescing, backpressure, and what strangers get."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skate_rpc import listener, stream
from skate_rpc.event_loop import IoThread
from skate_rpc.handshake import AuthenticationError, ClientHandshake, ServerHandshake
from skate_rpc.stream import (
    MessageTooLargeError,
    StreamClosedError,
    StreamConnection,
    StreamListener,
    connect_stream,
)

TOKEN = b"t" * 64
WAIT_S = 10.0


class Note(msgspec.Struct, array_like=True, tag=1):
    number: int
    body: bytes = b""


class Inbox:
    """Collects what a connection delivers; waits are bounded."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.batches = 0
        self.closed: list[str] = []
        self._changed = threading.Condition()

    def on_messages(self, connection: StreamConnection[Any, Any], batch: list[Note]) -> None:
        with self._changed:
            self.notes.extend(batch)
            self.batches += 1
            self._changed.notify_all()

    def on_close(self, connection: StreamConnection[Any, Any], reason: str) -> None:
        with self._changed:
            self.closed.append(reason)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)


class Pair:
    def __init__(self, loop: IoThread, path: Path) -> None:
        self.loop = loop
        self.endpoint = f"unix:{path}/s.sock"
        self.server = Inbox()
        self.client = Inbox()
        self.accepted: list[StreamConnection[Any, Any]] = []
        self.connections: list[StreamConnection[Any, Any]] = []
        self._opened = threading.Event()
        ready = threading.Event()

        def listen() -> None:
            self.listener = StreamListener(
                self.endpoint,
                TOKEN,
                loop,
                incoming=Note,
                on_open=self._on_open,
                on_messages=self.server.on_messages,
                on_close=self.server.on_close,
            )
            ready.set()

        loop.call_soon_threadsafe(listen)
        assert ready.wait(WAIT_S)

    def close(self) -> None:
        done = threading.Event()

        def close_all() -> None:
            self.listener.close()
            for connection in self.accepted + self.connections:
                connection.close()
            self.loop.call_soon_threadsafe(done.set)

        self.loop.call_soon_threadsafe(close_all)
        assert done.wait(WAIT_S)

    def _on_open(self, connection: StreamConnection[Any, Any]) -> None:
        self.accepted.append(connection)
        self._opened.set()

    def connect(self, token: bytes = TOKEN) -> StreamConnection[Any, Any]:
        connection = connect_stream(
            self.endpoint,
            token,
            self.loop,
            incoming=Note,
            on_messages=self.client.on_messages,
            on_close=self.client.on_close,
        )
        self.connections.append(connection)
        assert self._opened.wait(WAIT_S)
        return connection


@pytest.fixture
def loop() -> Iterator[IoThread]:
    thread = IoThread()
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture
def pair(loop: IoThread, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(loop, tmp_path)
    yield pair
    pair.close()


def test_messages_sent_from_many_threads_arrive_once_and_in_order_per_thread(pair: Pair) -> None:
    connection = pair.connect()

    def send(start: int) -> None:
        for number in range(start, start + 2000):
            (connection.send if number % 3 else connection.post)(Note(number))

    threads = [threading.Thread(target=send, args=(n * 10_000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    pair.server.wait_for(lambda: len(pair.server.notes) == 8000)
    for start in range(0, 40_000, 10_000):
        numbers = [n.number for n in pair.server.notes if start <= n.number < start + 10_000]
        assert numbers == list(range(start, start + 2000))
    assert pair.server.batches < 8000


def test_posted_messages_travel_together(pair: Pair, loop: IoThread) -> None:
    connection = pair.connect()
    gate = threading.Event()
    loop.call_soon_threadsafe(gate.wait, WAIT_S)
    for number in range(100):
        connection.post(Note(number))
    gate.set()
    pair.server.wait_for(lambda: len(pair.server.notes) == 100)
    assert pair.server.batches == 1


def test_large_message_arrives_whole(pair: Pair) -> None:
    connection = pair.connect()
    body = os.urandom(9 << 20)
    connection.send(Note(1))
    connection.send(Note(2, body))
    connection.send(Note(3))
    pair.server.wait_for(lambda: len(pair.server.notes) == 3)
    assert pair.server.notes[1].body == body
    assert [n.number for n in pair.server.notes] == [1, 2, 3]


def test_message_above_the_frame_limit_is_refused_and_the_line_goes_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FRAME_BYTES_MAX", 1 << 20)
    connection = pair.connect()
    with pytest.raises(MessageTooLargeError):
        connection.send(Note(1, b"x" * (1 << 20)))
    connection.send(Note(2))
    pair.server.wait_for(lambda: [n.number for n in pair.server.notes] == [2])


def test_sender_ahead_of_a_stopped_reader_waits_until_it_reads(
    pair: Pair, loop: IoThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "UNSENT_BYTES_MAX", 1 << 20)
    other = IoThread("other")
    other.start()
    inbox = Inbox()
    try:
        connection = connect_stream(
            pair.endpoint,
            TOKEN,
            other,
            incoming=Note,
            on_messages=inbox.on_messages,
            on_close=inbox.on_close,
        )
        gate = threading.Event()
        loop.call_soon_threadsafe(gate.wait, WAIT_S)
        done = threading.Event()

        def send() -> None:
            for number in range(64):
                connection.send(Note(number, b"x" * (256 << 10)))
            done.set()

        thread = threading.Thread(target=send)
        thread.start()
        assert not done.wait(0.2)
        gate.set()
        assert done.wait(WAIT_S)
        thread.join(WAIT_S)
        pair.server.wait_for(lambda: len(pair.server.notes) == 64)
        connection.close()
        inbox.wait_for(lambda: len(inbox.closed) == 1)
    finally:
        other.stop()


def test_peer_that_closes_is_noticed_once_on_both_sides(pair: Pair) -> None:
    connection = pair.connect()
    connection.close("enough")
    pair.client.wait_for(lambda: pair.client.closed == ["enough"])
    pair.server.wait_for(lambda: len(pair.server.closed) == 1)
    with pytest.raises(StreamClosedError):
        connection.send(Note(1))


def test_last_words_of_a_peer_that_no_longer_reads_are_delivered(
    pair: Pair, loop: IoThread
) -> None:
    connection = pair.connect()
    pair.server.wait_for(lambda: len(pair.accepted) == 1)
    gate = threading.Event()
    loop.call_soon_threadsafe(gate.wait, WAIT_S)
    server = pair.accepted[0]
    for number in range(3):
        server.send(Note(number))
    server._sock.shutdown(socket.SHUT_RDWR)  # as a process that ends does
    connection.send(Note(9))
    assert connection.is_closed
    gate.set()
    pair.client.wait_for(lambda: len(pair.client.closed) == 1)
    assert [note.number for note in pair.client.notes] == [0, 1, 2]


def test_last_words_that_came_before_reading_began_are_delivered(pair: Pair) -> None:
    other = IoThread("other")
    other.start()
    gate = threading.Event()
    inbox = Inbox()
    try:
        other.call_soon_threadsafe(gate.wait, WAIT_S)
        connection = connect_stream(
            pair.endpoint,
            TOKEN,
            other,
            incoming=Note,
            on_messages=inbox.on_messages,
            on_close=inbox.on_close,
        )
        assert pair._opened.wait(WAIT_S)
        pair.accepted[0].send(Note(1))
        pair.accepted[0]._sock.shutdown(socket.SHUT_RDWR)
        connection.send(Note(9))
        assert connection.is_closed
        gate.set()
        inbox.wait_for(lambda: len(inbox.closed) == 1)
        assert [note.number for note in inbox.notes] == [1]
    finally:
        gate.set()
        other.stop()


def test_socket_file_is_private_under_any_umask(loop: IoThread, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        pair = Pair(loop, tmp_path)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(pair.endpoint.removeprefix("unix:")).st_mode) == 0o600
    pair.close()


def test_wrong_token_is_a_typed_error_on_the_client(pair: Pair) -> None:
    with pytest.raises(AuthenticationError):
        pair.connect(b"wrong")
    assert pair.accepted == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + b"\0" * 200,
        b"\x80\x05." * 50,
        b"SKATE" + b"\xff" * 99,
    ],
    ids=["http", "tls", "pickle", "bad-magic"],
)
def test_stranger_is_dropped_without_a_parse(pair: Pair, garbage: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(pair.endpoint.removeprefix("unix:"))
        sock.sendall(garbage)
        try:
            assert sock.recv(100) == b""
        except ConnectionResetError:
            pass  # closed with our bytes unread: the same refusal
    assert pair.accepted == []


def test_candidates_beyond_the_limit_push_out_the_oldest(pair: Pair) -> None:
    strangers = []
    for _ in range(listener.UNAUTHENTICATED_MAX + 5):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(WAIT_S)
        sock.connect(pair.endpoint.removeprefix("unix:"))
        strangers.append(sock)
    assert strangers[0].recv(1) == b""
    connection = pair.connect()
    connection.send(Note(7))
    pair.server.wait_for(lambda: len(pair.server.notes) == 1)
    for sock in strangers:
        sock.close()


@pytest.mark.parametrize(
    "frame",
    [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00abc", b"\x04\x00\x00\x00\x91\x92\x01\xa1"],
    ids=["oversize", "not-msgpack", "wrong-type"],
)
def test_malformed_frame_after_login_closes_only_that_connection(pair: Pair, frame: bytes) -> None:
    good = pair.connect()
    bad = pair.connect()
    bad._sock.send(frame)
    pair.client.wait_for(lambda: len(pair.client.closed) == 1)
    good.send(Note(1))
    pair.server.wait_for(lambda: len(pair.server.notes) == 1)


def run_handshake(
    client_token: bytes, server_token: bytes
) -> tuple[ClientHandshake, ServerHandshake]:
    client, server = ClientHandshake(client_token), ServerHandshake(server_token)
    to_server = client.receive(b"")
    while to_server:
        to_client = b"".join(server.receive(to_server[i : i + 1]) for i in range(len(to_server)))
        to_server = client.receive(to_client) if to_client else b""
    return client, server


def test_handshake_succeeds_one_byte_at_a_time() -> None:
    client, server = run_handshake(TOKEN, TOKEN)
    assert client.done
    assert server.done


@pytest.mark.parametrize("token", [b"", TOKEN[:-1], TOKEN + b"t", b"\0" + TOKEN[1:]])
def test_handshake_with_a_near_token_fails(token: bytes) -> None:
    with pytest.raises(AuthenticationError):
        run_handshake(token, TOKEN)


def test_handshake_replayed_or_reflected_fails() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    hello = client.receive(b"")
    proof = client.receive(server.receive(hello))
    replayed = ServerHandshake(TOKEN)
    replayed.receive(hello)
    with pytest.raises(AuthenticationError):
        replayed.receive(proof)
    mirror = ServerHandshake(TOKEN)
    challenge = mirror.receive(hello)
    with pytest.raises(AuthenticationError):
        mirror.receive(challenge[40:72])
