"""Metrics that programs make: sums of what the processes of one node have measured.

Before it: what each process says is new (increments of counters and histograms, present values of
gauges). After it: families for :class:`~skate_telemetry.metrics.MetricsRegistry`. Names get the
prefix ``skate_``, and counters end in ``_total``, whatever the program called them.

Everything is bounded: so many metrics, so many combinations of tags of each; those over it are
counted together under ``__other__``.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from skate_telemetry.families import FAMILIES, Family, Kind, Unit
from skate_telemetry.readings import HistogramValue
from skate_telemetry.series_cap import OTHER, SERIES_MAX, Series, clean_label

PREFIX: Final = "skate_"
METRICS_MAX: Final = 500
GAUGE_KEPT_S: Final = 60.0
"""How long a gauge is shown after the process that set it has ended."""
HELP_CHARS_MAX: Final = 1000
_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

_log = logging.getLogger(__name__)

Labels = tuple[str, ...]
Row = tuple[Labels, float | HistogramValue]


@dataclass(slots=True)
class _Metric:
    family: Family
    series: Series = field(default_factory=dict)
    set_by: dict[Labels, bytes] = field(default_factory=dict)  # of gauges


class UserMetrics:
    """All metrics of the programs on a node. Thread-safe."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """``now``: seconds, of any clock that does not go back."""
        self._now = now
        self._metrics: dict[str, _Metric] = {}
        self._gone: dict[bytes, float] = {}
        self._refused: dict[str, None] = {}
        self._taken = {family.name for family in FAMILIES}
        self._lock = threading.Lock()

    def record(self, process: bytes, family: Family, rows: Iterable[Row]) -> bool:
        """Add what ``process`` has measured; False when the metric is refused (logged once).

        Refused are a metric over the limit, one with the name of a metric of Skate's own, and one
        that another process has made with other labels, buckets or another kind.
        """
        with self._lock:
            metric = self._metrics.get(family.name)
            if metric is None:
                problem = self._problem_of_new(family)
                if problem:
                    return self._refuse(family.name, problem)
                metric = self._metrics[family.name] = _Metric(family)
            problem = _difference(metric.family, family)
            if problem:
                return self._refuse(family.name, problem)
            for labels, value in rows:
                self._add(metric, process, tuple(clean_label(label) for label in labels), value)
        return True

    def forget(self, process: bytes) -> None:
        """The process has ended; the gauges that it set last are shown only a while longer."""
        with self._lock:
            if any(process in metric.set_by.values() for metric in self._metrics.values()):
                self._gone[process] = self._now()

    def collect(self) -> list[tuple[Family, Series]]:
        """Every metric that has a value now, in the order in which they came up."""
        with self._lock:
            self._drop_stale_gauges()
            return [
                (metric.family, dict(metric.series))
                for metric in self._metrics.values()
                if metric.series
            ]

    def _add(
        self, metric: _Metric, process: bytes, labels: Labels, value: float | HistogramValue
    ) -> None:
        series = metric.series
        if labels not in series and len(series) >= SERIES_MAX:
            labels = (OTHER,) * len(labels)
        before = series.get(labels)
        if metric.family.kind is Kind.GAUGE:
            series[labels] = value
            metric.set_by[labels] = process
        elif isinstance(before, HistogramValue) and isinstance(value, HistogramValue):
            counts = tuple(x + y for x, y in zip(before.counts, value.counts, strict=True))
            series[labels] = HistogramValue(counts, before.total + value.total)
        elif isinstance(before, float) and isinstance(value, float):
            series[labels] = before + value
        else:
            series[labels] = value

    def _drop_stale_gauges(self) -> None:
        limit = self._now() - GAUGE_KEPT_S
        stale = [process for process, ended in self._gone.items() if ended <= limit]
        for process in stale:
            del self._gone[process]
            for metric in self._metrics.values():
                dropped = [labels for labels, by in metric.set_by.items() if by == process]
                for labels in dropped:
                    del metric.series[labels], metric.set_by[labels]

    def _problem_of_new(self, family: Family) -> str:
        if family.name in self._taken:
            return "Skate has a metric of its own of that name"
        if len(self._metrics) >= METRICS_MAX:
            return f"there are {METRICS_MAX} metrics of programs on this node already"
        return ""

    def _refuse(self, name: str, problem: str) -> bool:
        if name not in self._refused and len(self._refused) < METRICS_MAX:
            self._refused[name] = None
            _log.warning("event=metric_refused name=%s problem=%r", name, problem)
        return False


def user_family(
    name: str,
    kind: Kind,
    description: str,
    labels: Iterable[str] = (),
    buckets: Iterable[float] = (),
) -> Family:
    """The family of a program's metric, under its exported name.

    Raises:
        ValueError: a name or label that Prometheus does not allow, or buckets that do not grow.
    """
    labels = tuple(labels)
    if not _NAME.fullmatch(name):
        raise ValueError(f"A metric can not be called {name!r}.")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(f"A label of {name} can not be called {label!r}.")
    exported = PREFIX + name.removeprefix(PREFIX)
    if kind is Kind.COUNTER:
        exported = exported.removesuffix("_total") + "_total"
    return Family(
        exported,
        kind,
        Unit.NONE,
        description[:HELP_CHARS_MAX],
        labels,
        tuple(float(bound) for bound in buckets),
    )


def _difference(known: Family, other: Family) -> str:
    for what in ("kind", "labels", "buckets"):
        if getattr(known, what) != getattr(other, what):
            return f"it was made before with other {what}: {getattr(known, what)}"
    return ""
