"""Nodes that know each other by an address: their processes talk over TCP, with the same proof."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import skate
from skate.cluster_utils import Cluster
from skate_rpc.handshake import AuthenticationError, run_client_handshake

WAIT_S = 20.0
HEAD_IP = "127.0.0.2"
OTHER_IP = "127.0.0.3"


@pytest.fixture
def nodes(session_root: Path) -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.add_node(node_ip_address=HEAD_IP, num_cpus=2)
    cluster.add_node(node_ip_address=OTHER_IP, resources={"other": 4})
    cluster.connect()
    yield cluster
    cluster.shutdown()


@skate.remote(num_cpus=0)
class Person:
    def __init__(self) -> None:
        self.friend: Person | None = None

    def pid(self) -> int:
        return os.getpid()

    def meet(self, friend: Person) -> int:
        pid: int = skate.get(friend.pid.remote(), timeout=WAIT_S)
        return pid

    def crash(self) -> None:
        os._exit(7)

    def unix_peers(self) -> int:
        return count_unix_peers(os.getpid())


def count_unix_peers(pid: int) -> int:
    """Connections of a process to Unix sockets of other processes' task plane."""
    inodes = socket_inodes(pid)
    count = 0
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in inodes and len(fields) > 7 and "/p-" in fields[7]:
            count += fields[3] == "00000000"  # not the listening one
    return count


def socket_inodes(pid: int) -> set[str]:
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def tcp_sockets(pid: int, state: str) -> list[tuple[str, int]]:
    """Own addresses of a process's IPv4 sockets in this state (0A: listening, 01: connected)."""
    inodes = socket_inodes(pid)
    found = []
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == state and fields[9] in inodes:
            address, _, port = fields[1].partition(":")
            found.append((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return sorted(found)


def test_actors_of_two_nodes_call_each_other_over_tcp(nodes: Cluster) -> None:
    here = Person.remote()
    there = Person.options(resources={"other": 1}).remote()

    pids = skate.get([here.pid.remote(), there.pid.remote()], timeout=WAIT_S)

    assert skate.get(here.meet.remote(there), timeout=WAIT_S) == pids[1]
    assert skate.get(there.meet.remote(here), timeout=WAIT_S) == pids[0]
    assert tcp_sockets(pids[1], "01"), "the far actor was reached by no TCP connection"


def test_processes_of_one_node_use_the_unix_socket(nodes: Cluster) -> None:
    here = Person.remote()
    other = Person.remote()
    pids = skate.get([here.pid.remote(), other.pid.remote()], timeout=WAIT_S)

    assert skate.get(here.meet.remote(other), timeout=WAIT_S) == pids[1]

    assert count_unix_peers(pids[1]) >= 2  # the driver's and the other actor's
    assert tcp_sockets(pids[0], "01") == tcp_sockets(pids[1], "01") == []


def test_every_process_listens_at_its_nodes_address_and_no_other(nodes: Cluster) -> None:
    here = Person.remote()
    there = Person.options(resources={"other": 1}).remote()
    pids = skate.get([here.pid.remote(), there.pid.remote()], timeout=WAIT_S)

    for pid, ip in ((os.getpid(), HEAD_IP), (pids[0], HEAD_IP), (pids[1], OTHER_IP)):
        assert [address for address, _ in tcp_sockets(pid, "0A")] == [ip]


def test_strangers_and_wrong_tokens_are_refused_over_tcp(
    nodes: Cluster, session_root: Path
) -> None:
    there = Person.options(resources={"other": 1}).remote()
    pid = skate.get(there.pid.remote(), timeout=WAIT_S)
    token = next(session_root.rglob("token")).read_text().strip().encode()
    targets = tcp_sockets(pid, "0A") + tcp_sockets(os.getpid(), "0A")
    assert len(targets) == 2

    for target in targets:
        for wrong in (b"", token[:-1], token + b"0", os.urandom(32)):
            with (
                socket.create_connection(target, WAIT_S) as sock,
                pytest.raises(AuthenticationError),
            ):
                run_client_handshake(sock, wrong, WAIT_S)
        for payload in (os.urandom(512), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff" * 4096):
            with socket.create_connection(target, WAIT_S) as sock:
                try:
                    sock.sendall(payload)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except ConnectionError:
                    pass  # closed on us: the refusal that we want
    assert skate.get(there.pid.remote(), timeout=WAIT_S) == pid


def test_far_actors_death_is_reported_with_its_nodes_address(nodes: Cluster) -> None:
    there = Person.options(resources={"other": 1}).remote()
    skate.get(there.pid.remote(), timeout=WAIT_S)

    with pytest.raises(skate.exceptions.ActorDiedError, match="7"):
        skate.get(there.crash.remote(), timeout=WAIT_S)


def test_error_of_a_far_task_names_its_nodes_address(nodes: Cluster) -> None:
    @skate.remote(num_cpus=0, resources={"other": 1})
    class Broken:
        def fail(self) -> None:
            raise KeyError("x")

    with pytest.raises(KeyError, match=OTHER_IP):
        skate.get(Broken.remote().fail.remote(), timeout=WAIT_S)
