"""A cluster whose nodes are machines of their own as far as the network is concerned."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import skate
from skate.cluster_utils import Cluster
from skate_node import RunningNode
from tests.namespaces import Network


class Machines:
    """One node per host of a network, the head on host 0, where the calling thread is as well.

    ``cluster`` is for the end check. Nodes and hosts are numbered alike.
    """

    def __init__(self, network: Network, node_args: dict[str, Any]) -> None:
        self.network = network
        self.cluster = Cluster()
        self.hosts: dict[str, int] = {}  # by node id
        self._node_args = node_args

    def start(self, host: int) -> RunningNode:
        """Start a node there; the first one is the head."""
        with self.network.entered(host):
            node = self.cluster.add_node(
                node_ip_address=self.network.address(host), **self._node_args
            )
        self.hosts[node.node_id] = host
        return node

    def replace(self, node: RunningNode) -> RunningNode:
        """Another node on the host of one that has ended."""
        self.cluster.remove_node(node)
        return self.start(self.hosts.pop(node.node_id))


@contextlib.contextmanager
def machines(network: Network, hosts: int, node_args: dict[str, Any]) -> Iterator[Machines]:
    """A node on each host; the calling thread is on host 0 in the block, and is a driver there."""
    with network.entered(0):
        made = Machines(network, node_args)
        try:
            for host in range(hosts):
                made.start(host)
            head = made.cluster.head_node
            assert head is not None
            skate.init(head.session_dir)
            made.cluster.wait_for_nodes()
            yield made
        finally:
            skate.shutdown()
            made.cluster.shutdown()
