"""Metrics of programs, from the messages of their processes to the node's page."""

from __future__ import annotations

import logging
from typing import Final

from skate_rpc import node_protocol as node
from skate_telemetry.families import Kind
from skate_telemetry.readings import HistogramValue
from skate_telemetry.user_metrics import Row, UserMetrics, user_family

_log = logging.getLogger(__name__)

_KINDS: Final = {
    node.COUNTER: Kind.COUNTER,
    node.GAUGE: Kind.GAUGE,
    node.HISTOGRAM: Kind.HISTOGRAM,
}


class ProgramMetrics:
    """The raylet's ``UserMetricsSink``: what is malformed is logged and left out. Thread-safe."""

    def __init__(self) -> None:
        self._metrics = UserMetrics()
        self.collect = self._metrics.collect

    def record(self, worker_id: bytes, metrics: list[node.MetricRows], /) -> None:
        """Take what a process has measured."""
        for metric in metrics:
            try:
                family = user_family(
                    metric.name,
                    _KINDS[metric.kind],
                    metric.description,
                    metric.tag_keys,
                    metric.boundaries,
                )
                rows = [_row(metric, row) for row in metric.rows]
            except (KeyError, ValueError) as problem:
                _log.warning("event=metric_malformed name=%r problem=%r", metric.name, problem)
                continue
            self._metrics.record(worker_id, family, rows)

    def forget(self, worker_id: bytes, /) -> None:
        """The process is gone: its gauges hold no more."""
        self._metrics.forget(worker_id)


def _row(metric: node.MetricRows, row: node.MetricRow) -> Row:
    if len(row.tags) != len(metric.tag_keys):
        raise ValueError(f"a row has {len(row.tags)} tags instead of {len(metric.tag_keys)}")
    labels = tuple(row.tags)
    if metric.kind != node.HISTOGRAM:
        return labels, row.value
    if len(row.counts) != len(metric.boundaries) + 1:
        raise ValueError(f"a row has {len(row.counts)} buckets")
    return labels, HistogramValue(tuple(row.counts), row.value)
