"""The metrics of one node: sources that are asked at each scrape, rendered as Prometheus text.

Nothing is counted twice: components keep the figures that they need anyway, and a scrape reads
them. A node has one registry, and one reporter per fact, so that sums over nodes are right.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable

from skate_telemetry.errors import MissingExtraError
from skate_telemetry.families import DROPPED_SERIES, FAMILIES, SOURCE_ERRORS, Family
from skate_telemetry.readings import Reading, Source
from skate_telemetry.series_cap import SERIES_MAX, Series, SeriesCap

_log = logging.getLogger(__name__)


Collect = Callable[[], list[tuple[Family, Series]]]


class MetricsRegistry:
    """Sources of readings, and their exposition. Thread-safe.

    A source that fails costs its own series only: the error is counted and logged, and the rest
    of the exposition is rendered.
    """

    def __init__(self, series_max: int = SERIES_MAX) -> None:
        """``series_max``: label combinations that each family keeps apart.

        Raises:
            MissingExtraError: prometheus-client is not installed.
        """
        if importlib.util.find_spec("prometheus_client") is None:
            raise MissingExtraError("Metrics", "metrics", "prometheus-client")
        self._caps = {family.name: SeriesCap(family, series_max) for family in FAMILIES}
        # Bounded by the declarations themselves.
        self._caps[DROPPED_SERIES.name] = SeriesCap(DROPPED_SERIES, len(FAMILIES))
        self._sources: dict[str, Source] = {}
        self._errors: dict[str, int] = {}
        self._undeclared: Collect | None = None
        self._lock = threading.Lock()  # one exposition at a time

    def add_source(self, name: str, source: Source) -> None:
        """Ask ``source`` at each scrape, under a name for logs and error counts.

        A source that had the name is replaced.
        """
        with self._lock:
            self._sources[name] = source
            self._errors.setdefault(name, 0)

    def add_undeclared(self, collect: Collect) -> None:
        """Also show these families, which only running programs know, behind the declared ones.

        ``collect`` bounds its series itself.
        """
        with self._lock:
            self._undeclared = collect

    def remove_source(self, name: str) -> None:
        """Ask it no more; nothing happens when it is not there."""
        with self._lock:
            self._sources.pop(name, None)

    def collect(self) -> list[tuple[Family, Series]]:
        """Every family that has a value now, in the declared order."""
        with self._lock:
            readings: dict[str, list[Reading]] = {family.name: [] for family in FAMILIES}
            for name, source in self._sources.items():
                self._read(name, source, readings)
            for name, count in self._errors.items():
                readings[SOURCE_ERRORS.name].append(Reading(SOURCE_ERRORS, count, (name,)))
            collected = [
                (family, self._caps[family.name].fold(readings[family.name]))
                for family in FAMILIES
                if family is not DROPPED_SERIES
            ]
            # Last, because folding is what counts them. Zeros too: a rate needs a series to start
            # from.
            dropped = (
                Reading(DROPPED_SERIES, cap.dropped_total, (cap.family.name,))
                for cap in self._caps.values()
                if cap.family.labels
            )
            collected.append((DROPPED_SERIES, self._caps[DROPPED_SERIES.name].fold(dropped)))
            declared = [(family, series) for family, series in collected if series]
            return declared + (self._undeclared() if self._undeclared else [])

    def render(self) -> bytes:
        """The exposition in the Prometheus text format 0.0.4."""
        # Imported at the first scrape, not at the daemon's start: 84 ms.
        from skate_telemetry.exposition import render_text  # noqa: PLC0415

        return render_text(self.collect())

    def _read(self, name: str, source: Source, readings: dict[str, list[Reading]]) -> None:
        try:
            _check_and_append(source(), readings)
        except Exception as error:  # noqa: BLE001  (boundary to a component)
            self._errors[name] += 1
            if self._errors[name] & (self._errors[name] - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...
                _log.warning(
                    "metrics source failed",
                    exc_info=error,
                    extra={"source": name, "failures": self._errors[name]},
                )


def _check_and_append(source: Iterable[Reading], readings: dict[str, list[Reading]]) -> None:
    for reading in source:
        if len(reading.labels) != len(reading.family.labels):
            raise ValueError(f"{reading.family.name} takes the labels {reading.family.labels}.")
        readings[reading.family.name].append(reading)
