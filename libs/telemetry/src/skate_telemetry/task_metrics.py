"""Counts and durations of tasks by name, from the events that workers send while tracing is on."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator

from skate_telemetry.families import TASK_DURATION, TASKS_FINISHED
from skate_telemetry.readings import HistogramValue, Reading
from skate_telemetry.series_cap import OTHER, SERIES_MAX, clean_label


class _Durations:
    __slots__ = ("counts", "failed", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(TASK_DURATION.buckets) + 1)
        self.total_s = 0.0
        self.failed = 0


class TaskMetrics:
    """Accumulates finished attempts. Thread-safe; memory is bounded by ``names_max`` names.

    Task names come from user code: names over the bound are accounted as ``__other__``.
    """

    def __init__(self, names_max: int = SERIES_MAX // 2) -> None:
        # Half, because each name has two series of TASKS_FINISHED: succeeded and failed.
        self._names_max = names_max
        self._by_name: dict[str, _Durations] = {}
        self._lock = threading.Lock()

    def record(self, name: str, duration_s: float, is_error: bool) -> None:
        """An attempt of the task ``name`` ended. A negative duration counts as 0."""
        duration_s = max(duration_s, 0.0)
        name = clean_label(name)
        with self._lock:
            durations = self._by_name.get(name)
            if durations is None:
                key = name if len(self._by_name) < self._names_max else OTHER
                durations = self._by_name.setdefault(key, _Durations())
            durations.counts[bisect.bisect_left(TASK_DURATION.buckets, duration_s)] += 1
            durations.total_s += duration_s
            durations.failed += is_error

    def readings(self) -> Iterator[Reading]:
        """A source for ``MetricsRegistry.add_source``."""
        with self._lock:
            rows = [
                (name, tuple(durations.counts), durations.total_s, durations.failed)
                for name, durations in self._by_name.items()
            ]
        for name, counts, total_s, failed in rows:
            yield Reading(TASKS_FINISHED, sum(counts) - failed, (name, "succeeded"))
            yield Reading(TASKS_FINISHED, failed, (name, "failed"))
            yield Reading(TASK_DURATION, HistogramValue(counts, total_s), (name,))
