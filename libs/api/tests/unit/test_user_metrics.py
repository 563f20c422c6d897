"""What ``skate.util.metrics`` checks before it records."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from skate.util.metrics import Counter, Gauge, Histogram
from skate_worker import user_metrics
from skate_worker.user_metrics import MetricsRecorder

pytestmark = pytest.mark.surface("M1")


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> MetricsRecorder:
    made = MetricsRecorder(interval_s=0.001)
    monkeypatch.setattr(user_metrics, "_recorder", [made])
    return made


def values(recorder: MetricsRecorder) -> dict[str, dict[tuple[str, ...], float]]:
    return {metric.name: metric.values for metric in recorder._metrics.values()}


def test_values_are_recorded_under_their_tags(recorder: MetricsRecorder) -> None:
    jobs = Counter("jobs", "Jobs done.", ("queue", "user"))
    jobs.set_default_tags({"user": "nobody"})
    jobs.inc(tags={"queue": "a"})
    jobs.inc(2, tags={"queue": "a", "user": "me"})
    depth = Gauge("depth")
    depth.set(4)
    depth.set(None)
    sizes = Histogram("sizes", boundaries=[1, 10])
    sizes.observe(3)
    assert values(recorder) == {
        "jobs": {("a", "nobody"): 1.0, ("a", "me"): 2.0},
        "depth": {(): 4.0},
        "sizes": {(): 3.0},
    }
    assert jobs.info == {
        "name": "jobs",
        "description": "Jobs done.",
        "tag_keys": ("queue", "user"),
        "default_tags": {"user": "nobody"},
    }
    assert sizes.info["boundaries"] == [1.0, 10.0]


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Counter(""), ValueError, "needs a name"),
        (lambda: Counter("a", tag_keys=["b"]), TypeError, "tuple"),
        (lambda: Counter("a", tag_keys=(1,)), TypeError, "tuple"),
        (lambda: Counter("a", tag_keys=("b-c",)), ValueError, "b-c"),
        (lambda: Histogram("a"), ValueError, "boundaries"),
        (lambda: Histogram("a", boundaries=[]), ValueError, "boundaries"),
        (lambda: Histogram("a", boundaries=[0, 1]), ValueError, "positive"),
        (lambda: Histogram("a", boundaries=[2, 1]), ValueError, "grow"),
        (lambda: Counter("a").set_default_tags({"b": "c"}), ValueError, "no tag 'b'"),
    ],
)
def test_wrong_declarations_are_refused(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("record", "error", "text"),
    [
        (lambda: Counter("a").inc(0), ValueError, "positive"),
        (lambda: Counter("a").inc(-1), ValueError, "positive"),
        (lambda: Counter("a").inc("1"), TypeError, "number"),
        (lambda: Gauge("a").set(True), TypeError, "number"),
        (lambda: Gauge("a", tag_keys=("b",)).set(1), ValueError, "lacks a value of the tags b"),
        (lambda: Gauge("a", tag_keys=("b",)).set(1, {"b": 2}), TypeError, "strings"),
        (lambda: Gauge("a").set(1, {"b": "2"}), ValueError, "no tag 'b'"),
    ],
)
def test_wrong_records_are_refused(
    record: Any, error: type[Exception], text: str, recorder: MetricsRecorder
) -> None:
    with pytest.raises(error, match=text):
        record()
    assert not values(recorder)


def test_invalid_name_is_warned_of_and_records_nothing(
    recorder: MetricsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    metric = Counter("not-a-name")
    assert "not-a-name" in caplog.text
    metric.inc()
    assert not values(recorder)
    with pytest.warns(FutureWarning, match="colon"):
        Counter("a:b")


def test_metric_that_was_pickled_is_the_same_metric(recorder: MetricsRecorder) -> None:
    sizes = Histogram("sizes", "Sizes.", [1, 10], ("of",))
    sizes.set_default_tags({"of": "boxes"})
    sizes.observe(2)
    copy = pickle.loads(pickle.dumps(sizes))
    copy.observe(3)
    assert copy.info == sizes.info
    assert values(recorder) == {"sizes": {("boxes",): 5.0}}
