"""Keeps the number of series of each family bounded, whatever values its labels take.

The first combinations of label values that appear keep series of their own; those over the cap
share one series whose labels all say ``__other__``, so that sums stay right. A gauge's
combination that is gone gives its place to another; a counter's never does, because a counter
must not fall.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate_telemetry.families import Family, Kind
from skate_telemetry.readings import HistogramValue, Reading

OTHER = "__other__"
SERIES_MAX = 200
"""Per family. A full exposition then has a few thousand series, which render in about 10 ms per
2000."""
DROPPED_REMEMBERED_MAX = 10_000
"""Combinations over the cap that are remembered to count each once; beyond it, each sight
counts."""
LABEL_CHARS_MAX = 128

Series = dict[tuple[str, ...], float | HistogramValue]


class SeriesCap:
    """The state of one family. Not thread-safe: a registry renders one exposition at a time."""

    def __init__(self, family: Family, series_max: int = SERIES_MAX) -> None:
        self.family = family
        self.dropped_total = 0
        """Combinations that went into ``__other__``."""
        self._series_max = series_max
        self._kept: dict[tuple[str, ...], None] = {}
        self._dropped: set[tuple[str, ...]] = set()

    def fold(self, readings: Iterable[Reading]) -> Series:
        """One scrape's series; readings with the same labels are added up."""
        present: Series = {}
        for reading in readings:
            labels = tuple(clean_label(value) for value in reading.labels)
            _add(present, labels, reading.value)
        if self.family.kind is Kind.GAUGE:
            self._kept = {labels: None for labels in self._kept if labels in present}
        folded: Series = {}
        other = (OTHER,) * len(self.family.labels)
        for labels, value in present.items():
            if labels not in self._kept and labels != other:
                if len(self._kept) >= self._series_max:
                    self._count_dropped(labels)
                    _add(folded, other, value)
                    continue
                self._kept[labels] = None
            _add(folded, labels, value)
        return folded

    def _count_dropped(self, labels: tuple[str, ...]) -> None:
        if labels in self._dropped:
            return
        self.dropped_total += 1
        if len(self._dropped) < DROPPED_REMEMBERED_MAX:
            self._dropped.add(labels)


def clean_label(value: str) -> str:
    """A label value of bounded length that UTF-8 can encode."""
    return value[:LABEL_CHARS_MAX].encode("utf-8", "replace").decode("utf-8")


def _add(series: Series, labels: tuple[str, ...], value: float | HistogramValue) -> None:
    before = series.get(labels)
    if before is None:
        series[labels] = value
    elif isinstance(before, HistogramValue) and isinstance(value, HistogramValue):
        counts = tuple(x + y for x, y in zip(before.counts, value.counts, strict=True))
        series[labels] = HistogramValue(counts, before.total + value.total)
    elif not isinstance(before, HistogramValue) and not isinstance(value, HistogramValue):
        series[labels] = before + value
    else:
        raise ValueError("A histogram can not be added to a number.")
