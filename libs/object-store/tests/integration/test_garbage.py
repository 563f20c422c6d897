from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from skate_object_store import StoreClient, StoreServer
from skate_object_store.constants import FRAME_BYTES_MAX
from skate_object_store.protocol import (
    Kind,
    frame,
    pack_create,
    pack_get,
    pack_hello,
    pack_release,
    pack_seal,
    pack_welcome,
)

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def rogue(server: StoreServer) -> Iterator[socket.socket]:
    """An admitted connection that will say what it likes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(server.endpoint.removeprefix("unix:"))
        connection.sendall(pack_hello(b""))
        data, fds, _, _ = socket.recv_fds(connection, len(pack_welcome(0)), 1)
        assert data[4] == Kind.WELCOME
        os.close(fds[0])
        yield connection


def is_ended(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass  # Ended all the same.
    return True


BAD_FRAMES = {
    "unknown kind": frame(99, 1),  # type: ignore[arg-type]
    "kind of a reply": frame(Kind.WELCOME, 1, b"x" * 10),
    "second hello": pack_hello(b"again"),
    "oversized": struct.pack("<IBQ", FRAME_BYTES_MAX + 1, Kind.GET, 1),
    "cut get": frame(Kind.GET, 1, b"\0" * 5),
    "get of nothing": frame(Kind.GET, 1, struct.pack("<dI", 0.0, 0)),
    "empty id": frame(Kind.GET, 1, struct.pack("<dI", 0.0, 1) + b"\0"),
    "time that is none": pack_get(1, [b"a"], float("nan")),
    "seal of nothing": pack_seal(12345, keeps_pin=False),
    "pin not held": pack_release([(12345, 1)]),
    "create without an id": frame(Kind.CREATE, 1, struct.pack("<QdB", 1, 0.0, 0) + b"\0\0"),
    "strange flags": frame(Kind.CREATE, 1, struct.pack("<QdB", 1, 0.0, 7) + b"\1a\0"),
}


@pytest.mark.parametrize("bad", BAD_FRAMES.values(), ids=BAD_FRAMES.keys())
def test_bad_frame_ends_only_its_own_connection(
    server: StoreServer,
    client: StoreClient,
    rogue: socket.socket,
    bad: bytes,
    eventually: Eventually,
) -> None:
    client.put(b"id", [b"value"])
    views = client.get([b"id"])
    rogue.sendall(pack_create(1, b"half", 100, b"", is_evictable=False, wait_s=0.0))
    rogue.sendall(pack_get(2, [b"id"], 0.0))
    rogue.sendall(bad)
    assert is_ended(rogue)
    eventually(lambda: server.statistics().clients == 1)
    assert server.statistics().unsealed_bytes == 0
    assert client.get([b"id"]) == views == [b"value"]
    server.check_invariants()


def test_random_bytes_end_connections_and_nothing_else(
    server: StoreServer, client: StoreClient
) -> None:
    source = random.Random(5)
    for _ in range(200):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(server.endpoint.removeprefix("unix:"))
            data = source.randbytes(source.randrange(1, 300))
            if source.random() < 0.7:
                data = pack_hello(b"") + data
            try:
                connection.sendall(data)
            except ConnectionError:
                pass  # It was ended in the middle of it.
    client.put(b"id", [b"value"])
    assert client.contains(b"id")
    server.check_invariants()


def test_mutated_frames_end_connections_and_nothing_else(
    server: StoreServer, client: StoreClient
) -> None:
    source = random.Random(6)
    good = (
        pack_create(1, b"mutant", 1000, b"me", is_evictable=True, wait_s=0.5)
        + pack_seal(1, keeps_pin=True)
        + pack_get(2, [b"mutant", b"other"], 0.5)
        + pack_release([(1, 1)])
    )
    for _ in range(300):
        mutant = bytearray(good)
        for _ in range(source.randrange(1, 6)):
            mutant[source.randrange(len(mutant))] = source.randrange(256)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(server.endpoint.removeprefix("unix:"))
            try:
                connection.sendall(pack_hello(b"") + mutant)
            except ConnectionError:
                pass  # It was ended in the middle of it.
    client.put(b"id", [b"value"])
    assert client.contains(b"id")
    server.check_invariants()


def test_client_that_never_reads_is_ended(
    server: StoreServer, client: StoreClient, rogue: socket.socket, eventually: Eventually
) -> None:
    ask = pack_get(1, [b"x" * 20] * 2000, 0.0) * 20
    with pytest.raises((ConnectionError, TimeoutError)):  # noqa: PT012  Until it is cut off.
        for _ in range(100):
            rogue.sendall(ask)
    eventually(lambda: server.statistics().clients == 1)
    client.put(b"id", [b"x"])


def test_too_many_requests_at_a_time_end_the_connection(
    server: StoreServer, rogue: socket.socket
) -> None:
    for number in range(5000):
        try:
            rogue.sendall(pack_get(number, [b"never"], float("inf")))
        except ConnectionError:
            break
    assert is_ended(rogue)
    assert server.statistics().waiting_requests == 0


def test_request_number_used_twice_ends_the_connection(
    server: StoreServer, client: StoreClient, rogue: socket.socket
) -> None:
    rogue.sendall(pack_get(7, [b"never"], float("inf")) * 2)
    assert is_ended(rogue)
    client.put(b"never", [b"x"])
    server.check_invariants()
