"""A thread that kills random workers and nodes of a cluster, never its head, at a steady pace."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from skate.cluster_utils import Cluster

PERIOD_S = 0.5
NODE_SHARE = 0.2


class Killer:
    """Kills until it is stopped; the cluster has as many nodes again after each kill.

    ``faults`` counts what was killed, by kind; ``error`` is what ended the thread, if anything did.
    """

    def __init__(self, cluster: Cluster, seed: int, node_args: dict[str, Any]) -> None:
        self.faults: Counter[str] = Counter()
        self.error: Exception | None = None
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._node_args = node_args
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def total(self) -> int:
        """Kills so far."""
        return self.faults.total()

    def _run(self) -> None:
        try:
            while not self._is_over.wait(PERIOD_S):
                self._kill_one()
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _kill_one(self) -> None:
        if self._rng.random() < NODE_SHARE:
            self._cluster.remove_node(
                self._rng.choice(self._cluster.worker_nodes), allow_graceful=False
            )
            self.faults["node"] += 1
            self._cluster.add_node(**self._node_args)
            return
        sessions = [node.session_dir for node in self._cluster.list_all_nodes()]
        workers = [pid for pids in processes(sessions, "skate-worker").values() for pid in pids]
        if not workers:
            return
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(self._rng.choice(sorted(workers)), signal.SIGKILL)
            self.faults["worker"] += 1


def processes(session_dirs: list[str], name: str = "") -> dict[str, list[int]]:
    """The processes of each session, those of this name only if one is given."""
    marks = {f"SKATE_SESSION={os.path.basename(path)}".encode(): path for path in session_dirs}
    found: dict[str, list[int]] = {path: [] for path in session_dirs}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        folder = Path("/proc", entry)
        try:
            settings = (folder / "environ").read_bytes().split(b"\0")
            fields = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        state = fields.rpartition(")")[2].split()[0]
        if state == "Z" or (name and f"({name})" not in fields):
            continue
        for setting in settings:
            if setting in marks:
                found[marks[setting]].append(int(entry))
    return found
