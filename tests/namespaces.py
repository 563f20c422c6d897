"""Hosts of a test network: network namespaces on a switch, with nodes started inside them.

Each host has its own namespace, loopback and address, as machines have; the switch is a bridge in a
namespace of its own, so that nothing of the machine's own network is touched. Unix sockets are
files, so the test talks to every node from where it is. Needs root and ``ip`` (iproute2).

::

    with Network(2) as network:
        head = network.start_head(0)
        other = network.start_node(1, head)
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from skate_node import NodeOptions, RunningNode, start_node

COMMAND_TIMEOUT_S = 20.0
STORE_BYTES = 300 << 20
NOBODY = "02:00:00:00:00:00"
_CLONE_NEWNET = 0x40000000
_NUMBERS = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


def why_not() -> str:
    """Why namespaces can not be made here; empty: they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need ip (iproute2)"
    name = f"skt{os.getpid()}x"
    try:
        run_ip("netns", "add", name)
        run_ip("netns", "del", name)
    except RuntimeError as error:
        return str(error)
    return ""


class Network:
    """``hosts`` hosts on one switch, numbered from 0. Close it, or use it as a context manager.

    Raises ``RuntimeError`` with what ``ip`` said when it can not be made; nothing is left then.
    """

    def __init__(self, hosts: int) -> None:
        # Unique among processes and within this one; interfaces are short and live inside.
        self.stem = f"skt{os.getpid()}n{next(_NUMBERS)}"
        self._switch = f"{self.stem}s"
        self._names = [f"{self.stem}h{number}" for number in range(hosts)]
        self._made: list[str] = []
        self._nodes: list[RunningNode] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def address(self, host: int) -> str:
        """The host's address."""
        return f"10.203.0.{host + 1}"

    @contextlib.contextmanager
    def entered(self, host: int) -> Iterator[None]:
        """What the calling thread opens or starts in the block is inside the host's network."""
        with inside(self._names[host]):
            yield

    def set_link(self, host: int, is_up: bool) -> None:
        """Plug the host's cable in or out."""
        run_ip("-n", self._switch, "link", "set", f"p{host}", "up" if is_up else "down")

    def cut(self, source: int, target: int) -> None:
        """From now on what ``source`` sends to ``target`` is lost on the way; nobody is told.

        One way only: what ``target`` sends arrives. The address of the card to which packets go is
        one that nobody has.
        """
        where = ("neigh", "replace", self.address(target), "dev", "eth0")
        run_ip("-n", self._names[source], *where, "lladdr", NOBODY, "nud", "permanent")

    def mend(self, source: int, target: int) -> None:
        """Undo :meth:`cut`."""
        where = ("neigh", "del", self.address(target), "dev", "eth0")
        run_ip("-n", self._names[source], *where)

    def start_head(self, host: int, **options: Any) -> RunningNode:
        """A head on this host, for others to join. Options are those of ``NodeOptions``."""
        return self._start(host, port=0, **options)

    def start_node(self, host: int, head: RunningNode, **options: Any) -> RunningNode:
        """A node on this host that joins."""
        return self._start(
            host, is_head=False, gcs_address=head.gcs_endpoint, token=head.token, **options
        )

    def close(self) -> None:
        """End the nodes that were started here, the last first, and remove the network."""
        while self._nodes:
            self._nodes.pop().stop()
        while self._made:
            run_ip("netns", "del", self._made.pop())  # its interfaces go with it

    def _start(self, host: int, **options: Any) -> RunningNode:
        settings = {
            "host": self.address(host),
            "num_cpus": 1,
            "num_gpus": 0,
            "object_store_memory": STORE_BYTES,
            "metrics_port": None,
            **options,
        }
        with self.entered(host):
            node = start_node(NodeOptions(**settings))
        self._nodes.append(node)
        return node

    def _add(self, name: str) -> None:
        run_ip("netns", "add", name)
        self._made.append(name)

    def _build(self) -> None:
        for name in (self._switch, *self._names):
            self._add(name)
        run_ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        run_ip("-n", self._switch, "link", "set", "br0", "up")
        for host, name in enumerate(self._names):
            port = f"p{host}"
            peer = ("peer", "name", "eth0", "netns", name)
            run_ip("-n", self._switch, "link", "add", port, "type", "veth", *peer)
            run_ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
            run_ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            run_ip("-n", name, "link", "set", "eth0", "up")
            run_ip("-n", name, "link", "set", "lo", "up")


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the network namespace of this name in the block."""
    with open("/proc/thread-self/ns/net") as before:
        with open(f"/run/netns/{name}") as there:
            _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def run_ip(*arguments: str) -> None:
    """Run ``ip``. Raises ``RuntimeError`` with what it said."""
    done = subprocess.run(
        ["ip", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
