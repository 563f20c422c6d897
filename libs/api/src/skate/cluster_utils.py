"""A cluster of several real nodes on one machine, for tests and for trying things out.

Each node is a daemon of its own, with its own session folder, object store and workers; all of them
end with this process, however it ends. Source: SURFACE U7 (``ray.cluster_utils.Cluster``).
"""

from __future__ import annotations

import atexit
import os
import time
from typing import Any, Final

from skate.options import unknown_option
from skate.session import init, is_initialized, shutdown
from skate_node import NodeOptions, RunningNode, start_node
from skate_worker.core import CoreWorker
from skate_worker.current import require_core

WAIT_S: Final = 30.0
POLL_S: Final = 0.05
STORE_BYTES: Final = 150 << 20
_DEFAULTS: Final[dict[str, Any]] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "object_store_memory": STORE_BYTES,
    "metrics_port": None,
}
# Arguments of a node, by the field of NodeOptions that each becomes.
_FIELDS: Final = {
    "num_cpus": "num_cpus",
    "num_gpus": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
    "resources": "resources",
    "labels": "labels",
    "infeasible_timeout_s": "infeasible_timeout_s",
    "node_name": "node_name",
    "node_ip_address": "host",
    "metrics_export_port": "metrics_port",
    "gcs_reconnect_s": "gcs_reconnect_s",
    "storage": "storage",
}


class Cluster:
    """Nodes on this machine that together are one cluster. The first one added is the head.

    ``address`` is what ``skate.init`` takes. Nodes listen on loopback unless they are given a
    ``node_ip_address``. By default a node offers 1 CPU, no GPU and 150 MiB of object store.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        """Make an empty cluster, or one with a head.

        Args:
            initialize_head: Start the head, with ``head_node_args``.
            connect: Connect this process to it as a driver.
            head_node_args: As for :meth:`add_node`.
            shutdown_at_exit: Shut the cluster down in an orderly way when the process exits; the
                nodes end with the process anyway.

        Raises:
            ValueError: ``connect`` or ``head_node_args`` without ``initialize_head``.
            NodeStartError: the head did not come up.
        """
        self.head_node: RunningNode | None = None
        self.worker_nodes: list[RunningNode] = []
        self.address: str = ""
        if not initialize_head and (connect or head_node_args):
            raise ValueError("connect and head_node_args need initialize_head=True.")
        if shutdown_at_exit:
            atexit.register(self.shutdown)
        if initialize_head:
            self.add_node(**(head_node_args or {}))
        if connect:
            self.connect()

    @property
    def gcs_address(self) -> str:
        """The same as ``address``, under Ray's other name for it."""
        return self.address

    def connect(self, namespace: str | None = None) -> Any:
        """Connect this process to the cluster as a driver; returns what ``skate.init`` returns."""
        self._require_head()
        return init(self.address, namespace=namespace)

    def add_node(
        self, wait: bool = True, env_vars: dict[str, str] | None = None, **node_args: Any
    ) -> RunningNode:
        """Start a node and return it; the first one becomes the head.

        Args:
            wait: As in Ray, but a node is known to the cluster when this returns in any case.
            env_vars: Added to the environment of the node and of its workers.
            **node_args: ``num_cpus``, ``num_gpus``, ``memory``, ``object_store_memory``,
                ``resources``, ``labels``, ``node_name``, ``node_ip_address``,
                ``metrics_export_port``, ``infeasible_timeout_s`` (see ``NodeOptions``).
                ``metrics_export_port``, ``gcs_reconnect_s``, ``storage`` (of the head).

        Raises:
            TypeError: an argument that does not exist.
            ValueError: a wrong value.
            NodeStartError: the node did not come up; nothing of it is left.
        """
        values = dict(_DEFAULTS)
        for name, value in node_args.items():
            if name not in _FIELDS:
                raise TypeError(unknown_option("add_node()", name, _FIELDS))
            values[_FIELDS[name]] = value
        head = self.head_node
        if head is None:
            options = NodeOptions(port=0, **values)
        else:
            options = NodeOptions(
                is_head=False, gcs_address=head.gcs_endpoint, token=head.token, **values
            )
        node = start_node(options, environment={**os.environ, **(env_vars or {})})
        if head is None:
            self.head_node = node
            self.address = node.gcs_endpoint
        else:
            self.worker_nodes.append(node)
        return node

    def remove_node(self, node: RunningNode, allow_graceful: bool = True) -> None:
        """End a node with all its processes.

        With ``allow_graceful=False`` its daemon is killed, and nobody is told: the cluster notices
        that nothing listens there any more, after about a second.

        Raises:
            ValueError: the node is not one of this cluster.
        """
        if node is self.head_node:
            self.head_node = None
        elif node in self.worker_nodes:
            self.worker_nodes.remove(node)
        else:
            raise ValueError(f"{node!r} is no node of this cluster.")
        if allow_graceful:
            node.stop()
        else:
            node.kill()

    def list_all_nodes(self) -> list[RunningNode]:
        """The head, if there is one, and the other nodes in the order of their start."""
        head = [] if self.head_node is None else [self.head_node]
        return [*head, *self.worker_nodes]

    def wait_for_nodes(self, timeout: float = WAIT_S) -> None:
        """Wait until the cluster's live nodes are exactly those of this object.

        Without a session it looks through a short-lived connection of its own.

        Raises:
            TimeoutError: they are not within ``timeout`` seconds.
        """
        expected = {node.node_id for node in self.list_all_nodes()}
        self._wait_until_alive(expected, timeout)

    def remaining_processes_alive(self) -> bool:
        """Whether the daemon of every node runs."""
        return all(node.is_running() for node in self.list_all_nodes())

    def shutdown(self) -> None:
        """Disconnect this process if it is connected to this cluster, and end all nodes."""
        atexit.unregister(self.shutdown)
        if self._is_connected():
            shutdown()
        for node in reversed(self.list_all_nodes()):
            self.remove_node(node)
        self.address = ""

    def _require_head(self) -> RunningNode:
        if self.head_node is None:
            raise RuntimeError("The cluster has no head; add a node first.")
        return self.head_node

    def _is_connected(self) -> bool:
        return is_initialized() and require_core().gcs_endpoint == self.address

    def _wait_until_alive(self, expected: set[str], timeout_s: float) -> None:
        head = self._require_head()
        if self._is_connected():
            _poll(require_core(), expected, timeout_s)
            return
        core = CoreWorker.connect_driver(
            raylet_endpoint=head.stream_endpoint,
            token=head.token,
            entrypoint="skate.cluster_utils.Cluster.wait_for_nodes",
            ip_address=head.ip_address,
        )
        try:
            _poll(core, expected, timeout_s)
        finally:
            core.close()


def _poll(core: CoreWorker, expected: set[str], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while True:
        alive = {node.node_id.hex() for node in core.nodes() if node.is_alive}
        if alive == expected:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"After {timeout_s:g} s the live nodes are {sorted(alive)}, not {sorted(expected)}."
            )
        time.sleep(POLL_S)
