"""Endpoints of processes: Unix alone or with TCP, which part a peer takes, and TCP streams."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from skate_rpc.event_loop import IoThread
from skate_rpc.process_endpoints import choose_endpoint, listens_on_tcp, tcp_endpoint, with_tcp
from skate_rpc.stream import (
    TCP_SILENCE_S,
    StreamConnection,
    StreamListener,
    open_stream,
    parse_endpoint,
)

TOKEN = b"t" * 32
WAIT_S = 10.0
UNIX = "unix:/a,b/p.sock"  # a comma may be part of a path


@pytest.mark.parametrize(
    ("endpoint", "own_ip", "chosen"),
    [
        (UNIX, "10.0.0.7", UNIX),
        (with_tcp(UNIX, "tcp:10.0.0.7:5"), "10.0.0.7", UNIX),
        (with_tcp(UNIX, "tcp:10.0.0.7:5"), "10.0.0.70", "tcp:10.0.0.7:5"),
        (with_tcp(UNIX, "tcp:10.0.0.7:5"), "127.0.0.1", "tcp:10.0.0.7:5"),
        (with_tcp(UNIX, "tcp:[fd00::7]:5"), "fd00::7", UNIX),
        (with_tcp(UNIX, "tcp:[fd00::7]:5"), "fd00::8", "tcp:[fd00::7]:5"),
    ],
)
def test_choice_is_unix_on_the_same_machine_and_tcp_elsewhere(
    endpoint: str, own_ip: str, chosen: str
) -> None:
    assert choose_endpoint(endpoint, own_ip) == chosen


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "localhost"])
def test_loopback_node_listens_on_unix_alone(ip: str) -> None:
    assert not listens_on_tcp(ip)


@pytest.mark.parametrize("ip", ["10.0.0.7", "127.0.0.2", "fd00::7"])
def test_node_with_an_address_of_its_own_listens_on_tcp(ip: str) -> None:
    assert listens_on_tcp(ip)
    assert parse_endpoint(tcp_endpoint(ip, 5))[1] == (ip, 5)


@pytest.mark.parametrize(
    "text", ["tcp:fd00::7:5", "tcp::5", "tcp:10.0.0.7", "10.0.0.7:5", "tcp:[x:5"]
)
def test_malformed_tcp_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an endpoint"):
        parse_endpoint(text)


class Note(msgspec.Struct, tag="note"):
    text: str


class TcpPair:
    """A listener and a connection to it, at one address."""

    def __init__(self, loop: IoThread, ip: str) -> None:
        self.loop = loop
        self.heard: list[str] = []
        self.has_heard = threading.Event()
        self.accepted: list[StreamConnection[Any, Any]] = []
        ready = threading.Event()

        def listen() -> None:
            self.listener = StreamListener(
                tcp_endpoint(ip, 0),
                TOKEN,
                loop,
                incoming=Note,
                on_open=self.accepted.append,
                on_messages=self._on_messages,
                on_close=lambda connection, reason: None,
            )
            ready.set()

        loop.call_soon_threadsafe(listen)
        assert ready.wait(WAIT_S)
        self.client: StreamConnection[Any, Any] = open_stream(
            self.listener.endpoint,
            TOKEN,
            loop,
            incoming=Note,
            on_messages=self._on_messages,
            on_close=lambda connection, reason: None,
        )

    def _on_messages(self, connection: Any, batch: list[Note]) -> None:
        self.heard += [note.text for note in batch]
        self.has_heard.set()

    def close(self) -> None:
        done = threading.Event()

        def close_all() -> None:
            self.listener.close()
            for connection in [self.client, *self.accepted]:
                connection.close()
            self.loop.call_soon_threadsafe(done.set)

        self.loop.call_soon_threadsafe(close_all)
        assert done.wait(WAIT_S)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(params=["127.0.0.2", "::1"])
def tcp_pair(request: pytest.FixtureRequest) -> Iterator[TcpPair]:
    if request.param == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    loop = IoThread()
    loop.start()
    pair = TcpPair(loop, request.param)
    yield pair
    pair.close()
    loop.stop()


def test_messages_travel_over_tcp(tcp_pair: TcpPair) -> None:
    tcp_pair.client.send(Note("there"))

    assert tcp_pair.has_heard.wait(WAIT_S)
    assert tcp_pair.heard == ["there"]
    assert not tcp_pair.listener.endpoint.endswith(":0")


def test_silent_peer_is_noticed_by_the_kernel_on_both_sides(tcp_pair: TcpPair) -> None:
    tcp_pair.client.send(Note("there"))
    assert tcp_pair.has_heard.wait(WAIT_S)

    for connection in (tcp_pair.client, tcp_pair.accepted[0]):
        sock = connection._sock
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        option = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert option == TCP_SILENCE_S * 1000
        idle_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        asked_s = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        times = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
        assert idle_s + asked_s * times <= TCP_SILENCE_S
