"""The network that chaos tests run on does to packets what it says."""

from __future__ import annotations

import socket

import pytest

from tests.chaos.relayed import PORTS, RelayedNetwork
from tests.namespaces import Network, why_not

SILENCE_S = 0.3
WAIT_S = 10.0


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    if reason := why_not():
        pytest.skip(reason)


def bound_at(network: Network, host: int) -> socket.socket:
    with network.entered(host):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((network.address(host), 0))
    return sock


def gets_over(source: socket.socket, target: socket.socket, wait_s: float) -> bool:
    target.settimeout(wait_s)
    source.sendto(b"x", target.getsockname())
    try:
        return target.recv(1) == b"x"
    except TimeoutError:
        return False


def end_of(sock: socket.socket) -> bool:
    """Whether nothing more comes: it was closed, in order or not."""
    sock.settimeout(WAIT_S)
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_cut_line_carries_nothing_one_way_only_and_is_mended() -> None:
    with Network(3) as network:
        first, second, third = (bound_at(network, host) for host in range(3))
        with first, second, third:
            assert gets_over(first, second, WAIT_S)
            assert gets_over(second, first, WAIT_S)
            network.cut(0, 1)
            assert not gets_over(first, second, SILENCE_S)
            assert gets_over(second, first, WAIT_S)
            assert gets_over(first, third, WAIT_S)
            network.mend(0, 1)
            assert gets_over(first, second, WAIT_S)


def test_relay_carries_bytes_both_ways_until_it_is_to_lose_them() -> None:
    with RelayedNetwork(2, seed=1) as network:
        with network.entered(1):
            listener = socket.create_server((network.address(1), 0))
        assert PORTS[0] <= listener.getsockname()[1] <= PORTS[1]
        with listener:
            with network.entered(0):
                client = socket.create_connection(listener.getsockname(), WAIT_S)
            server, peer = listener.accept()
        with client, server:
            assert peer[0] == network.address(0)
            client.sendall(b"there and")
            assert server.recv(9, socket.MSG_WAITALL) == b"there and"
            server.sendall(b"back")
            assert client.recv(4, socket.MSG_WAITALL) == b"back"
            network.spoil(lost=1.0)
            client.sendall(b"gone")
            assert end_of(server)
            assert end_of(client)
            assert network.spoil() == {"lost": 1}


def test_relay_gives_a_server_the_bytes_of_a_connection_twice() -> None:
    with RelayedNetwork(2, seed=1) as network:
        network.spoil(twice=1.0)
        with network.entered(1):
            listener = socket.create_server((network.address(1), 0))
        listener.settimeout(WAIT_S)
        with network.entered(0):
            client = socket.create_connection(listener.getsockname(), WAIT_S)
        with listener, client:
            client.sendall(b"twelve bytes")
            first, _ = listener.accept()
            second, _ = listener.accept()
            with first, second:
                assert first.recv(12, socket.MSG_WAITALL) == b"twelve bytes"
                assert second.recv(12, socket.MSG_WAITALL) == b"twelve bytes"
                for answering in (first, second):
                    answering.sendall(b"answer")
                client.settimeout(WAIT_S)
                assert client.recv(6, socket.MSG_WAITALL) == b"answer"
                client.settimeout(SILENCE_S)
                with pytest.raises(TimeoutError):
                    client.recv(1)
