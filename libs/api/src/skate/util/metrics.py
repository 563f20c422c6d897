"""``Counter``, ``Gauge`` and ``Histogram``: what a program measures, on the node's ``/metrics``.

Recording costs a few microseconds and sends nothing by itself: what is new goes to the node's
daemon about once a second, from drivers, tasks and actors alike. There the values of the node's
processes are added up (of a gauge the latest counts) and shown as ``skate_NAME``, counters as
``skate_NAME_total``. Each metric keeps 200 combinations of tags apart; further ones are shown
together as ``__other__``. Source: SURFACE M1.
"""

from __future__ import annotations

import logging
import numbers
import re
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from skate_rpc.node_protocol import COUNTER, GAUGE, HISTOGRAM
from skate_worker.user_metrics import RecordedMetric, metrics_recorder

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_TAG: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")

_log = logging.getLogger(__name__)

Tags = dict[str, str]


class Metric:
    """What the three kinds have in common. Picklable: a copy is the same metric elsewhere."""

    _kind: ClassVar[int]

    def __init__(
        self, name: str, description: str = "", tag_keys: tuple[str, ...] | None = None
    ) -> None:
        """Declare a metric.

        Args:
            name: Letters, digits and underscores. One that Prometheus does not allow is warned of
                once, and the metric then records nothing.
            description: For people.
            tag_keys: The tags that every record has, a value for each.

        Raises:
            ValueError: an empty name, or a tag that can not be called so.
            TypeError: ``tag_keys`` is not a tuple of strings.
        """
        if not name:
            raise ValueError("A metric needs a name.")
        keys: Any = tag_keys if tag_keys is not None else ()
        if not isinstance(keys, tuple) or not all(isinstance(key, str) for key in keys):
            raise TypeError(f"tag_keys must be a tuple of strings, got {tag_keys!r}.")
        for key in keys:
            if not _TAG.fullmatch(key):
                raise ValueError(f"A tag can not be called {key!r}: letters, digits, underscores.")
        self._name = name
        self._description = description
        self._tag_keys: tuple[str, ...] = keys
        self._default_tags: Tags = {}
        self._is_valid = _NAME.fullmatch(name) is not None
        self._recorded: RecordedMetric | None = None
        if not self._is_valid:
            _log.warning("The metric name %r is invalid; the metric records nothing.", name)
        elif ":" in name:
            warnings.warn(
                f"The metric name {name!r} has a colon, which is kept for rules of Prometheus.",
                FutureWarning,
                stacklevel=3,
            )

    def set_default_tags(self, default_tags: Tags) -> Metric:
        """Values of tags for records that do not give them; returns the metric.

        Raises:
            ValueError: a tag that the metric does not have.
            TypeError: a value that is not a string.
        """
        self._check_tags(default_tags)
        self._default_tags = dict(default_tags)
        return self

    @property
    def info(self) -> dict[str, Any]:
        """Name, description, tag keys and default tags."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": dict(self._default_tags),
        }

    def _boundaries(self) -> tuple[float, ...]:
        return ()

    def _record(self, value: float, tags: Tags | None) -> None:
        values = self._tag_values(tags)
        if not self._is_valid:
            return
        recorder = metrics_recorder()
        if self._recorded is None:
            self._recorded = recorder.metric(
                self._name, self._kind, self._description, self._tag_keys, self._boundaries()
            )
        recorder.record(self._recorded, values, float(value))

    def _tag_values(self, tags: Tags | None) -> tuple[str, ...]:
        if not self._tag_keys and not tags:
            return ()
        if tags:
            self._check_tags(tags)
        given = {**self._default_tags, **tags} if tags else self._default_tags
        missing = [key for key in self._tag_keys if key not in given]
        if missing:
            raise ValueError(
                f"{self._name} lacks a value of the tags {', '.join(missing)}: give them to the"
                " record, or by set_default_tags()."
            )
        return tuple(given[key] for key in self._tag_keys)

    def _check_tags(self, tags: Any) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                known = ", ".join(self._tag_keys) or "none"
                raise ValueError(f"{self._name} has no tag {key!r}; its tags are: {known}.")
            if not isinstance(value, str):
                raise TypeError(f"The values of tags are strings, got {key}={value!r}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._arguments(), self._default_tags)

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self._tag_keys


class Counter(Metric):
    """A number that only grows."""

    _kind = COUNTER

    def inc(self, value: float = 1.0, tags: Tags | None = None) -> None:
        """Add ``value``.

        Raises:
            ValueError: not a positive number, or a tag is missing or unknown.
            TypeError: not a number, or a tag's value that is not a string.
        """
        _check_number("inc", value)
        if value <= 0:
            raise ValueError(f"inc() takes a positive number, got {value}.")
        self._record(value, tags)


class Gauge(Metric):
    """A number that goes up and down; the node shows what was set last."""

    _kind = GAUGE

    def set(self, value: float | None, tags: Tags | None = None) -> None:
        """Set it; None changes nothing.

        Raises:
            ValueError: a tag is missing or unknown.
            TypeError: not a number, or a tag's value that is not a string.
        """
        if value is None:
            return
        _check_number("set", value)
        self._record(value, tags)


class Histogram(Metric):
    """How many observations fell into which range."""

    _kind = HISTOGRAM

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: Sequence[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        """``boundaries``: upper bounds of the buckets, positive and growing; one more is above.

        Raises:
            ValueError: as of every metric, or other boundaries.
        """
        if not boundaries:
            raise ValueError(f"The histogram {name!r} needs boundaries, such as [0.1, 1, 10].")
        bounds = tuple(float(bound) for bound in boundaries)
        if bounds[0] <= 0 or list(bounds) != sorted(set(bounds)):
            raise ValueError(f"Boundaries must be positive and grow, got {list(boundaries)}.")
        super().__init__(name, description, tag_keys)
        self._bounds = bounds

    @property
    def info(self) -> dict[str, Any]:
        """As of every metric, and the boundaries."""
        return {**super().info, "boundaries": list(self._bounds)}

    def observe(self, value: float, tags: Tags | None = None) -> None:
        """Record an observation.

        Raises:
            ValueError: a tag is missing or unknown.
            TypeError: not a number, or a tag's value that is not a string.
        """
        _check_number("observe", value)
        self._record(value, tags)

    def _boundaries(self) -> tuple[float, ...]:
        return self._bounds

    def _arguments(self) -> tuple[Any, ...]:
        return self._name, self._description, self._bounds, self._tag_keys


def _check_number(function: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}() takes a number, got {value!r}.")


def _rebuild(kind: type[Metric], arguments: tuple[Any, ...], default_tags: Tags) -> Metric:
    return kind(*arguments).set_default_tags(default_tags)
