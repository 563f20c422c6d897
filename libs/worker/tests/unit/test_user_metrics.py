from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from skate_rpc import node_protocol as node
from skate_worker import current, user_metrics
from skate_worker.user_metrics import OTHER, MetricsRecorder


class Raylet:
    def __init__(self) -> None:
        self.sent: list[node.MetricRows] = []
        self.has_sent = threading.Event()

    def post(self, message: node.UserMetrics) -> None:
        self.sent += message.metrics
        self.has_sent.set()


@pytest.fixture
def core() -> Any:
    return SimpleNamespace(raylet=Raylet(), is_closed=False)


def flushed(recorder: MetricsRecorder, core: Any) -> dict[str, list[node.MetricRow]]:
    core.raylet.sent.clear()
    recorder.flush(core)
    return {rows.name: rows.rows for rows in core.raylet.sent}


def test_counters_send_what_was_added_since(core: Any) -> None:
    recorder = MetricsRecorder(interval_s=3600)
    jobs = recorder.metric("jobs", node.COUNTER, "", ("queue",), ())
    recorder.record(jobs, ("a",), 1.0)
    recorder.record(jobs, ("a",), 2.0)
    assert flushed(recorder, core) == {"jobs": [node.MetricRow(["a"], 3.0)]}
    assert flushed(recorder, core) == {}
    recorder.record(jobs, ("a",), 5.0)
    assert flushed(recorder, core) == {"jobs": [node.MetricRow(["a"], 5.0)]}


def test_gauges_send_the_latest_and_histograms_their_buckets(core: Any) -> None:
    recorder = MetricsRecorder(interval_s=3600)
    depth = recorder.metric("depth", node.GAUGE, "", (), ())
    size = recorder.metric("size", node.HISTOGRAM, "", (), (1.0, 10.0))
    for value in (3.0, 1.0):
        recorder.record(depth, (), value)
    for value in (0.5, 1.0, 1.5, 100.0):
        recorder.record(size, (), value)
    assert flushed(recorder, core) == {
        "depth": [node.MetricRow([], 1.0)],
        "size": [node.MetricRow([], 103.0, [2, 1, 1])],
    }


def test_same_metric_made_twice_is_one() -> None:
    recorder = MetricsRecorder()
    first = recorder.metric("jobs", node.COUNTER, "", ("queue",), ())
    assert recorder.metric("jobs", node.COUNTER, "again", ("queue",), ()) is first
    assert recorder.metric("jobs", node.COUNTER, "", (), ()) is not first


def test_combinations_of_tags_are_bounded(core: Any) -> None:
    recorder = MetricsRecorder(interval_s=3600)
    jobs = recorder.metric("jobs", node.COUNTER, "", ("id",), ())
    for number in range(node.METRIC_SERIES_MAX + 7):
        recorder.record(jobs, (str(number),), 1.0)
    rows = flushed(recorder, core)["jobs"]
    assert len(rows) == node.METRIC_SERIES_MAX + 1
    assert rows[-1] == node.MetricRow([OTHER], 7.0)


def test_nothing_measured_starts_no_thread_and_sends_nothing(core: Any) -> None:
    recorder = MetricsRecorder()
    recorder.metric("jobs", node.COUNTER, "", (), ())
    assert flushed(recorder, core) == {}
    assert recorder._sender is None


def test_records_are_sent_by_themselves_once_there_is_a_session(core: Any) -> None:
    recorder = MetricsRecorder(interval_s=0.001)
    recorder.record(recorder.metric("jobs", node.COUNTER, "", (), ()), (), 1.0)
    assert not core.raylet.has_sent.wait(0.01)
    current.set_current_core(core)
    try:
        assert core.raylet.has_sent.wait(10)
    finally:
        current.set_current_core(None)
    assert [rows.name for rows in core.raylet.sent] == ["jobs"]


def test_fork_starts_anew() -> None:
    before = user_metrics.metrics_recorder()
    user_metrics._start_anew()
    assert user_metrics.metrics_recorder() is not before
