"""Stops processes of a cluster with SIGSTOP for a while."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from skate.cluster_utils import Cluster
from tests.chaos.injector import Injector
from tests.chaos.killer import processes
from tests.process_tree import gcs_of

PAUSE_S = 0.3
SHORTEST_S = 0.05
LONGEST_S = 3.0
"""Well below the ten seconds after which a silent node is dead, but past the two after which it is
looked whether it listens."""
KINDS = ("worker", "daemon", "daemon", "machine", "machine", "gcs", "head")


class Stopper(Injector):
    """Stops processes of a cluster.

    A ``worker`` is one process, a ``daemon`` the raylet of a node (``head``: of the driver's), a
    ``machine`` all of a node's processes at once, ``gcs`` the process of the tables.
    """

    def __init__(self, cluster: Cluster, seed: int, wanted: int) -> None:
        super().__init__(seed, wanted)
        self._cluster = cluster

    def _inject(self) -> float:
        kind = self._rng.choice(KINDS)
        if pids := self._victims(kind):
            with stopped(pids):
                self._hold(kind, self._rng.uniform(SHORTEST_S, LONGEST_S))
        return PAUSE_S

    def _victims(self, kind: str) -> list[int]:
        head = self._cluster.head_node
        assert head is not None
        if kind == "gcs":
            pid = gcs_of(head.pid)
            assert pid is not None, "the GCS is not there"
            return [pid]
        if kind == "head":
            return [head.pid]
        if kind == "worker":
            sessions = [node.session_dir for node in self._cluster.list_all_nodes()]
            found = processes(sessions, "skate-worker").values()
            workers = sorted(pid for pids in found for pid in pids)
            return [self._rng.choice(workers)] if workers else []
        node = self._rng.choice(self._cluster.worker_nodes)
        if kind == "daemon":
            return [node.pid]
        return processes([node.session_dir])[node.session_dir]


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """These processes do not run in the block; those that have ended are left out."""
    held = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                held.append(pid)
        yield
    finally:
        for pid in held:
            with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                os.kill(pid, signal.SIGCONT)
