"""A thread that stops processes of a cluster with SIGSTOP for a while, one after the other."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator

from skate.cluster_utils import Cluster
from tests.chaos.killer import processes
from tests.process_tree import gcs_of

PAUSE_S = 0.3
SHORTEST_S = 0.05
LONGEST_S = 3.0
"""Well below the ten seconds after which a silent node is dead, but past the two after which it is
looked whether it listens."""
KINDS = ("worker", "daemon", "daemon", "machine", "machine", "gcs", "head")


class Stopper:
    """Stops until it is left, as many times as are asked for at most.

    A ``worker`` is one process, a ``daemon`` the raylet of a node (``head``: of the driver's), a
    ``machine`` all of a node's processes at once, ``gcs`` the process of the tables. ``stops``
    counts what was stopped, by kind; ``error`` is what ended the thread, if anything did.
    """

    def __init__(self, cluster: Cluster, seed: int, wanted: int) -> None:
        self.stops: Counter[str] = Counter()
        self.stopped_s = 0.0
        self.error: Exception | None = None
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._wanted = wanted
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stopper", daemon=True)

    def __enter__(self) -> Stopper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def is_at_work(self) -> bool:
        """Whether stops are still to come."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self.stops.total() < self._wanted and not self._is_over.wait(PAUSE_S):
                self._stop_one()
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _stop_one(self) -> None:
        kind = self._rng.choice(KINDS)
        pids = self._victims(kind)
        if not pids:
            return
        with stopped(pids):
            length_s = self._rng.uniform(SHORTEST_S, LONGEST_S)
            self._is_over.wait(length_s)
        self.stops[kind] += 1
        self.stopped_s += length_s

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
