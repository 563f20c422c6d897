"""What a program measures in this process, on its way to the node's ``/metrics``.

``skate.util.metrics`` records into the one :class:`MetricsRecorder` of the process; a thread of its
own, started by the first record, sends what is new to the raylet about once a second, and the end
of a session sends the rest. A process that measures nothing has neither thread nor table.

Counters and histograms travel as increments and gauges as present values, so that a daemon needs to
know nothing of a process's past. What was recorded before a session waits for one.
"""

from __future__ import annotations

import bisect
import os
import threading
from typing import TYPE_CHECKING, Final

from skate_rpc import node_protocol as node
from skate_worker.current import current_core

if TYPE_CHECKING:
    from skate_worker.membership import Membership

INTERVAL_S: Final = 1.0
OTHER: Final = "__other__"  # as the daemon names what is over a limit

Tags = tuple[str, ...]


class RecordedMetric:
    """One metric of this process, and what of it was not sent yet."""

    __slots__ = (
        "boundaries",
        "counts",
        "description",
        "known",
        "name",
        "kind",
        "tag_keys",
        "values",
    )

    def __init__(
        self, name: str, kind: int, description: str, tag_keys: Tags, boundaries: tuple[float, ...]
    ) -> None:
        self.name = name
        self.kind = kind
        self.description = description
        self.tag_keys = tag_keys
        self.boundaries = boundaries
        self.known: set[Tags] = set()  # at most METRIC_SERIES_MAX
        self.values: dict[Tags, float] = {}
        self.counts: dict[Tags, list[int]] = {}

    def add(self, tags: Tags, value: float) -> None:
        """Record; under the recorder's lock."""
        if tags not in self.known:
            if len(self.known) < node.METRIC_SERIES_MAX:
                self.known.add(tags)
            else:
                tags = (OTHER,) * len(tags)
        if self.kind == node.GAUGE:
            self.values[tags] = value
            return
        self.values[tags] = self.values.get(tags, 0.0) + value
        if self.kind == node.HISTOGRAM:
            counts = self.counts.get(tags)
            if counts is None:
                counts = self.counts[tags] = [0] * (len(self.boundaries) + 1)
            # A bucket's bound belongs to it, as Prometheus has it.
            counts[bisect.bisect_left(self.boundaries, value)] += 1

    def take(self) -> node.MetricRows | None:
        """What is new, and forget it; under the recorder's lock."""
        if not self.values:
            return None
        rows = [
            node.MetricRow(list(tags), value, self.counts.get(tags, []))
            for tags, value in self.values.items()
        ]
        self.values = {}
        self.counts = {}
        return node.MetricRows(
            self.name,
            self.kind,
            self.description,
            list(self.tag_keys),
            list(self.boundaries),
            rows,
        )


class MetricsRecorder:
    """Everything that this process measures. Thread-safe."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._metrics: dict[tuple[object, ...], RecordedMetric] = {}
        self._lock = threading.Lock()
        self._is_new = threading.Event()
        self._sender: threading.Thread | None = None

    def metric(
        self, name: str, kind: int, description: str, tag_keys: Tags, boundaries: tuple[float, ...]
    ) -> RecordedMetric:
        """The metric with these properties; two objects of a program may be the same one."""
        key = (name, kind, tag_keys, boundaries)
        with self._lock:
            found = self._metrics.get(key)
            if found is None:
                found = RecordedMetric(name, kind, description, tag_keys, boundaries)
                self._metrics[key] = found
        return found

    def record(self, metric: RecordedMetric, tags: Tags, value: float) -> None:
        """Record a value; ``tags`` are in the order of the metric's keys."""
        with self._lock:
            metric.add(tags, value)
            if self._sender is None:
                self._sender = threading.Thread(
                    target=self._send_now_and_then, name="skate-metrics", daemon=True
                )
                self._sender.start()
        if not self._is_new.is_set():
            self._is_new.set()

    def flush(self, core: Membership) -> None:
        """Send what is new to the raylet of this process; a lost one hears nothing any more."""
        if self._sender is None:
            return
        with self._lock:
            taken = [rows for metric in self._metrics.values() if (rows := metric.take())]
        if taken:
            core.raylet.post(node.UserMetrics(taken))

    def _send_now_and_then(self) -> None:
        pause = threading.Event()  # never set: a sleep that ends with the process all the same
        while True:
            self._is_new.wait()
            pause.wait(self._interval_s)
            self._is_new.clear()
            core = current_core()
            if core is None or core.is_closed:
                self._is_new.set()  # It is still new when there is a session.
            else:
                self.flush(core)


_recorder = [MetricsRecorder()]


def metrics_recorder() -> MetricsRecorder:
    """That of this process."""
    return _recorder[0]


def _start_anew() -> None:
    # A fork has neither the thread nor a session; what its parent recorded is its parent's.
    _recorder[0] = MetricsRecorder()


os.register_at_fork(after_in_child=_start_anew)
