"""Collected series as Prometheus text, by prometheus-client."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from skate_telemetry.families import Family, Kind
from skate_telemetry.readings import HistogramValue
from skate_telemetry.series_cap import Series


class _Collected(Collector):
    def __init__(self, collected: Sequence[tuple[Family, Series]]) -> None:
        self._collected = collected

    def collect(self) -> Iterable[Metric]:
        return [_metric(family, series) for family, series in self._collected]


def render_text(collected: Sequence[tuple[Family, Series]]) -> bytes:
    """The text format 0.0.4, families in the given order."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(collected))
    return generate_latest(registry)


def _metric(family: Family, series: Series) -> Metric:
    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        bounds = [*(str(float(bound)) for bound in family.buckets), "+Inf"]
        for labels, value in series.items():
            if isinstance(value, HistogramValue):
                cumulative = itertools.accumulate(value.counts)
                histogram.add_metric(
                    labels, list(zip(bounds, cumulative, strict=True)), sum_value=value.total
                )
        return histogram
    metric: CounterMetricFamily | GaugeMetricFamily
    if family.kind is Kind.COUNTER:
        metric = CounterMetricFamily(family.name, family.help, labels=family.labels)
    else:
        metric = GaugeMetricFamily(family.name, family.help, labels=family.labels)
    for labels, value in series.items():
        if not isinstance(value, HistogramValue):
            metric.add_metric(labels, value)
    return metric
