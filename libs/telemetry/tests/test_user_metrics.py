from __future__ import annotations

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from skate_telemetry.families import Family, Kind
from skate_telemetry.metrics import MetricsRegistry
from skate_telemetry.readings import HistogramValue
from skate_telemetry.series_cap import OTHER, SERIES_MAX
from skate_telemetry.user_metrics import GAUGE_KEPT_S, METRICS_MAX, UserMetrics, user_family

JOBS = user_family("jobs", Kind.COUNTER, "Jobs done.", ("queue",))
DEPTH = user_family("depth", Kind.GAUGE, "Items.", ())
SIZE = user_family("size", Kind.HISTOGRAM, "Sizes.", (), (1, 10))


def series(metrics: UserMetrics, family: Family) -> dict[tuple[str, ...], object]:
    return dict(dict(metrics.collect()).get(family, {}))


def test_exported_names_have_the_prefix_and_counters_their_ending() -> None:
    assert JOBS.name == "skate_jobs_total"
    assert user_family("skate_jobs_total", Kind.COUNTER, "").name == "skate_jobs_total"
    assert DEPTH.name == "skate_depth"


@pytest.mark.parametrize(
    ("name", "labels", "buckets"),
    [("no-dash", (), ()), ("good", ("a-b",), ()), ("good", ("__own",), ())],
)
def test_what_prometheus_does_not_allow_is_refused(
    name: str, labels: tuple[str, ...], buckets: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="can not be called"):
        user_family(name, Kind.GAUGE, "", labels, buckets)


def test_increments_of_all_processes_add_up() -> None:
    metrics = UserMetrics()
    metrics.record(b"1", JOBS, [(("a",), 2.0), (("b",), 1.0)])
    metrics.record(b"2", JOBS, [(("a",), 3.0)])
    metrics.forget(b"1")
    assert series(metrics, JOBS) == {("a",): 5.0, ("b",): 1.0}


def test_observations_of_all_processes_add_up() -> None:
    metrics = UserMetrics()
    metrics.record(b"1", SIZE, [((), HistogramValue((1, 0, 2), 30.0))])
    metrics.record(b"2", SIZE, [((), HistogramValue((0, 1, 0), 5.0))])
    assert series(metrics, SIZE) == {(): HistogramValue((1, 1, 2), 35.0)}


def test_gauge_shows_the_latest_and_ends_some_time_after_its_process() -> None:
    now = [0.0]
    metrics = UserMetrics(lambda: now[0])
    metrics.record(b"1", DEPTH, [((), 4.0)])
    metrics.record(b"2", DEPTH, [((), 7.0)])
    metrics.forget(b"1")  # It was not the one that set it last.
    now[0] = GAUGE_KEPT_S + 1
    assert series(metrics, DEPTH) == {(): 7.0}
    metrics.forget(b"2")
    now[0] += GAUGE_KEPT_S - 1
    assert series(metrics, DEPTH) == {(): 7.0}
    now[0] += 1
    assert metrics.collect() == []


def test_combinations_over_the_cap_are_counted_together() -> None:
    metrics = UserMetrics()
    for number in range(SERIES_MAX + 5):
        metrics.record(b"1", JOBS, [((str(number),), 1.0)])
    found = series(metrics, JOBS)
    assert len(found) == SERIES_MAX + 1
    assert found[(OTHER,)] == 5.0


def test_metrics_that_contradict_are_refused_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = UserMetrics()
    assert metrics.record(b"1", JOBS, [(("a",), 1.0)])
    other = user_family("jobs", Kind.COUNTER, "Jobs done.", ("user",))
    own = user_family("nodes", Kind.GAUGE, "")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not metrics.record(b"2", other, [(("a",), 1.0)])
            assert not metrics.record(b"2", own, [((), 1.0)])
    assert series(metrics, JOBS) == {("a",): 1.0}
    assert len(caplog.records) == 2


def test_number_of_metrics_is_bounded() -> None:
    metrics = UserMetrics()
    for number in range(METRICS_MAX):
        assert metrics.record(b"1", user_family(f"m{number}", Kind.GAUGE, ""), [((), 1.0)])
    assert not metrics.record(b"1", user_family("one_more", Kind.GAUGE, ""), [((), 1.0)])


def test_page_shows_them_behind_what_is_declared() -> None:
    metrics = UserMetrics()
    metrics.record(b"1", JOBS, [(("a",), 2.0)])
    metrics.record(b"1", DEPTH, [((), 4.0)])
    metrics.record(b"1", SIZE, [((), HistogramValue((1, 0, 2), 30.0))])
    registry = MetricsRegistry()
    registry.add_undeclared(metrics.collect)
    families = {f.name: f for f in text_string_to_metric_families(registry.render().decode())}
    assert families["skate_jobs"].samples[0].value == 2.0
    assert families["skate_jobs"].samples[0].labels == {"queue": "a"}
    assert families["skate_depth"].samples[0].value == 4.0
    sizes = {s.labels.get("le", s.name): s.value for s in families["skate_size"].samples}
    assert sizes == {
        "1.0": 1,
        "10.0": 1,
        "+Inf": 3,
        "skate_size_count": 3,
        "skate_size_sum": 30,
    }
