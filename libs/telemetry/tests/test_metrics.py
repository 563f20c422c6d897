"""The declared families, the registry and its exposition."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from skate_telemetry import families, readings
from skate_telemetry.families import FAMILIES, Family, Kind, Unit, families_table
from skate_telemetry.metrics import MetricsRegistry
from skate_telemetry.readings import HistogramValue, Reading, Source, run_on_loop
from skate_telemetry.series_cap import OTHER, SeriesCap
from skate_telemetry.task_metrics import TaskMetrics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: bytes) -> Samples:
    """The exposition read back by prometheus-client, with checks that its writer does not make."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text.decode("utf-8")):
        assert family.documentation, f"{family.name} has no HELP"
        assert family.type != "unknown", f"{family.name} has no TYPE"
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"{key} appears twice"
            samples[key] = sample.value
    return samples


def registry_of(*sources: Source, series_max: int = 200) -> MetricsRegistry:
    registry = MetricsRegistry(series_max)
    for index, source in enumerate(sources):
        registry.add_source(f"source-{index}", source)
    return registry


def value(samples: Samples, name: str, /, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


# ---- declarations ----


def test_families_are_all_listed_once() -> None:
    declared = [thing for thing in vars(families).values() if isinstance(thing, Family)]
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert sorted(declared, key=lambda f: f.name) == sorted(FAMILIES, key=lambda f: f.name)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_follows_the_naming_rules(family: Family) -> None:
    assert re.fullmatch(r"skate_[a-z][a-z0-9_]*", family.name)
    assert family.name.endswith("_total") is (family.kind is Kind.COUNTER)
    assert family.name.removesuffix("_total").endswith(family.unit.value)
    for unit in ("seconds", "bytes"):
        if re.search(rf"_{unit}(_total)?$", family.name):
            assert family.unit.value == unit
    assert not re.search(
        r"_(ms|milliseconds|kb|mb|percent|count|sum|bucket|info_total)\b", family.name
    )
    assert family.help.endswith(".")
    assert "\n" not in family.help
    for label in family.labels:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", label)
        assert label not in {
            "le",
            "quantile",
            "job",
            "instance",
            "task_id",
            "actor_id",
            "worker_id",
        }


def test_readme_table_is_the_declared_one() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    assert families_table() in readme, "paste the output of families_table() into README.md"


@pytest.mark.parametrize("buckets", [(1.0, 1.0), (2.0, 1.0), ()])
def test_family_histogram_with_odd_buckets_is_refused(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="skate_x"):
        Family("skate_x", Kind.HISTOGRAM, Unit.NONE, "X.", (), buckets)


# ---- exposition ----


def every_reading() -> Iterator[Reading]:
    yield from readings.build_readings("0.1.0")
    yield from readings.node_readings(
        node_id="ab", node_name="head", session_name="s", is_head=True
    )
    yield from readings.process_readings()
    yield from readings.resource_readings(
        total={"CPU": 40_000, "GPU": 5_000}, available={"CPU": 12_500}
    )
    yield from readings.lease_readings(tasks=3, actors=1, waiting=2, infeasible=1, granted_total=9)
    yield from readings.worker_readings(
        idle=1, busy=4, starting=2, started_total=11, died_total={"exited": 3, "signaled": 1}
    )
    yield from readings.store_readings(
        capacity_bytes=1000,
        used_bytes=400,
        objects=7,
        pinned_bytes=100,
        evictable_bytes=50,
        created_total=20,
        evicted_total=2,
        evicted_bytes_total=80,
        spilled_bytes=300,
        disk_bytes=350,
        spilled_bytes_total=900,
        restored_bytes_total=600,
    )
    yield from readings.transfer_readings(
        queued=3,
        under_way=2,
        done_total=9,
        failed_total=1,
        pulled_bytes_total=4096,
        served_bytes_total=1024,
    )
    yield from readings.gcs_readings(
        nodes={"ALIVE": 2, "DEAD": 1},
        actors={"ALIVE": 5, "PENDING_CREATION": 0},
        jobs={"RUNNING": 1},
        kv_entries=4,
        kv_bytes=512,
        placement_groups={"CREATED": 7, "PENDING": 0},
        group_creations=9,
        group_creation_s=0.5,
    )
    yield from readings.rpc_readings("gcs", calls=100, refused=3)
    yield from readings.span_readings(recorded=9, exported=8, failed=1, rejected=2)
    yield Reading(families.EVENT_LOOP_LAG, 0.001, ("node",))


def test_exposition_of_every_family_reads_back_with_its_values() -> None:
    tasks = TaskMetrics()
    tasks.record("train", 0.05, is_error=False)
    tasks.record("train", 5.0, is_error=True)
    text = registry_of(every_reading, tasks.readings).render()
    samples = parse(text)
    for family in FAMILIES:
        assert f"# TYPE {family.name} {family.kind.value}\n" in text.decode()
    assert value(samples, "skate_resource_capacity", resource="CPU") == 4
    assert value(samples, "skate_resource_available", resource="CPU") == 1.25
    assert value(samples, "skate_resource_available", resource="GPU") == 0
    assert value(samples, "skate_leases", kind="task") == 3
    assert value(samples, "skate_lease_requests", state="infeasible") == 1
    assert value(samples, "skate_leases_granted_total") == 9
    assert value(samples, "skate_workers", state="busy") == 4
    assert value(samples, "skate_worker_deaths_total", reason="signaled") == 1
    assert value(samples, "skate_object_store_used_bytes") == 400
    assert value(samples, "skate_actors", state="pending_creation") == 0
    assert value(samples, "skate_placement_groups", state="created") == 7
    assert value(samples, "skate_placement_groups", state="pending") == 0
    assert value(samples, "skate_placement_group_creations_total") == 9
    assert value(samples, "skate_placement_group_creation_seconds_total") == 0.5
    assert value(samples, "skate_nodes", state="alive") == 2
    assert value(samples, "skate_rpc_refused_calls_total", server="gcs") == 3
    assert value(samples, "skate_trace_spans_total", outcome="rejected") == 2
    assert value(samples, "skate_build_info", version="0.1.0", python=_python()) == 1
    assert value(samples, "skate_tasks_finished_total", name="train", outcome="failed") == 1
    assert value(samples, "skate_task_duration_seconds_count", name="train") == 2
    assert value(samples, "skate_task_duration_seconds_bucket", name="train", le="0.1") == 1
    assert value(samples, "skate_task_duration_seconds_sum", name="train") == 5.05
    assert value(samples, "skate_process_resident_memory_bytes") > 1e6
    assert value(samples, "skate_process_open_files") > 2


def _python() -> str:
    import platform

    return platform.python_version()


@given(st.text(max_size=200))
def test_exposition_any_label_value_reads_back(text: str) -> None:
    def source() -> Iterator[Reading]:
        yield Reading(families.RESOURCE_CAPACITY, 1.0, (text,))

    cleaned = text[:128].encode("utf-8", "replace").decode()
    samples = parse(registry_of(source).render())
    assert value(samples, "skate_resource_capacity", resource=cleaned) == 1


@pytest.mark.parametrize("weapon", ['"} 1\nskate_x 2', "\\", "\\n", "\n# HELP x", "\ud800", "\0"])
def test_exposition_label_value_as_weapon_stays_a_value(weapon: str) -> None:
    samples = parse(registry_of(lambda: [Reading(families.LEASES, 2.0, (weapon,))]).render())
    assert [key for key in samples if key[0] == "skate_x"] == []
    assert sum(v for key, v in samples.items() if key[0] == "skate_leases") == 2


@pytest.mark.parametrize("number", [math.inf, -math.inf, 1e300, -1, 0, 2**60])
def test_exposition_extreme_values_read_back(number: float) -> None:
    samples = parse(registry_of(lambda: [Reading(families.KV_BYTES, number)]).render())
    assert value(samples, "skate_kv_bytes") == number


def test_exposition_without_sources_is_valid() -> None:
    parse(MetricsRegistry().render())


def test_registry_same_series_from_two_sources_is_added_up() -> None:
    source = lambda: [Reading(families.WORKERS_STARTED, 2)]  # noqa: E731
    samples = parse(registry_of(source, source).render())
    assert value(samples, "skate_workers_started_total") == 4


def test_registry_replaces_and_removes_sources() -> None:
    registry = MetricsRegistry()
    registry.add_source("x", lambda: [Reading(families.KV_ENTRIES, 1)])
    registry.add_source("x", lambda: [Reading(families.KV_ENTRIES, 2)])
    assert value(parse(registry.render()), "skate_kv_entries") == 2
    registry.remove_source("x")
    registry.remove_source("never there")
    assert not [key for key in parse(registry.render()) if key[0] == "skate_kv_entries"]


def test_registry_failing_source_costs_only_its_own_series(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> Iterator[Reading]:
        yield Reading(families.KV_ENTRIES, 5)
        raise RuntimeError("out of order")

    def odd() -> Iterator[Reading]:
        yield Reading(families.KV_BYTES, 5, ("a label too many",))

    registry = registry_of(broken, odd, lambda: [Reading(families.WORKERS_STARTED, 2)])
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            samples = parse(registry.render())
    assert value(samples, "skate_workers_started_total") == 2
    assert value(samples, "skate_kv_entries") == 5
    assert value(samples, "skate_metrics_source_errors_total", source="source-0") == 5
    assert value(samples, "skate_metrics_source_errors_total", source="source-1") == 5
    assert value(samples, "skate_metrics_source_errors_total", source="source-2") == 0
    assert len([r for r in caplog.records if getattr(r, "source", "") == "source-0"]) == 3


# ---- the cap ----


def test_registry_over_the_cap_folds_into_other_and_keeps_the_sum() -> None:
    def source() -> list[Reading]:
        return [Reading(families.RESOURCE_CAPACITY, 1.0, (f"r{i}",)) for i in range(50)]

    registry = registry_of(source, series_max=10)
    first = parse(registry.render())
    second = parse(registry.render())
    assert first == second
    own = {key: v for key, v in first.items() if key[0] == "skate_resource_capacity"}
    assert len(own) == 11
    assert sum(own.values()) == 50
    assert value(first, "skate_resource_capacity", resource=OTHER) == 40
    dropped = value(second, "skate_metrics_dropped_series_total", metric="skate_resource_capacity")
    assert dropped == 40


def fold(cap: SeriesCap, *names: str) -> dict[str, object]:
    series = cap.fold(Reading(cap.family, 1.0, (name,)) for name in names)
    return {labels[0]: v for labels, v in series.items()}


def test_cap_gauge_place_is_given_on_when_its_series_is_gone() -> None:
    cap = SeriesCap(families.WORKERS, series_max=2)
    assert fold(cap, "a", "b", "c") == {"a": 1, "b": 1, OTHER: 1}
    assert fold(cap, "b", "c") == {"b": 1, "c": 1}


def test_cap_counter_never_falls_by_losing_its_place() -> None:
    cap = SeriesCap(families.WORKER_DEATHS, series_max=2)
    assert fold(cap, "a", "b", "c") == {"a": 1, "b": 1, OTHER: 1}
    assert fold(cap, "b", "c") == {"b": 1, OTHER: 1}
    assert fold(cap, "a", "b", "c", "d") == {"a": 1, "b": 1, OTHER: 2}
    assert cap.dropped_total == 2


def test_cap_histograms_are_added_bucket_by_bucket() -> None:
    cap = SeriesCap(families.TASK_DURATION, series_max=1)
    values = [HistogramValue((n,) * 10, float(n)) for n in (1, 2, 3)]
    series = cap.fold(
        Reading(families.TASK_DURATION, v, (name,)) for name, v in zip("abc", values, strict=True)
    )
    assert series == {("a",): values[0], (OTHER,): HistogramValue((5,) * 10, 5.0)}


def test_cap_number_and_histogram_do_not_mix() -> None:
    cap = SeriesCap(families.TASK_DURATION)
    mixed = [
        Reading(families.TASK_DURATION, 1.0, ("a",)),
        Reading(families.TASK_DURATION, HistogramValue((1,), 1.0), ("a",)),
    ]
    with pytest.raises(ValueError, match="histogram"):
        cap.fold(mixed)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12), max_size=6))
def test_cap_any_history_stays_within_the_cap_and_keeps_sums(history: list[list[str]]) -> None:
    for family in (families.WORKERS, families.WORKER_DEATHS):
        cap = SeriesCap(family, series_max=3)
        for scrape in history:
            series = cap.fold(Reading(family, 1.0, (name,)) for name in scrape)
            assert len(series) <= 4
            assert sum(v for v in series.values() if isinstance(v, float)) == len(scrape)


# ---- task metrics ----


def test_task_metrics_names_over_the_bound_are_accounted_as_other() -> None:
    tasks = TaskMetrics(names_max=2)
    for index in range(10):
        tasks.record(f"task-{index}", 0.5, is_error=index == 9)
    tasks.record("x" * 1000, 0.5, is_error=False)
    finished = {r.labels: r.value for r in tasks.readings() if r.family is families.TASKS_FINISHED}
    assert finished == {
        ("task-0", "succeeded"): 1,
        ("task-0", "failed"): 0,
        ("task-1", "succeeded"): 1,
        ("task-1", "failed"): 0,
        (OTHER, "succeeded"): 8,
        (OTHER, "failed"): 1,
    }


@pytest.mark.parametrize(
    ("duration_s", "bucket"), [(-1.0, 0), (0.0, 0), (0.0001, 0), (0.00011, 1), (3600, 8), (1e9, 9)]
)
def test_task_metrics_duration_falls_into_its_bucket(duration_s: float, bucket: int) -> None:
    tasks = TaskMetrics()
    tasks.record("f", duration_s, is_error=False)
    (histogram,) = (r.value for r in tasks.readings() if r.family is families.TASK_DURATION)
    assert isinstance(histogram, HistogramValue)
    assert [i for i, count in enumerate(histogram.counts) if count] == [bucket]


def test_task_metrics_from_many_threads_loses_nothing() -> None:
    tasks = TaskMetrics()

    def work() -> None:
        for _ in range(2000):
            tasks.record("f", 0.01, is_error=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {r.value for r in tasks.readings() if r.labels == ("f", "failed")} == {8000}


# ---- sources on an event loop ----


def test_run_on_loop_reads_on_the_loops_thread_and_gives_its_lag() -> None:
    threads: list[threading.Thread] = []

    def source() -> list[Reading]:
        threads.append(threading.current_thread())
        return [Reading(families.KV_ENTRIES, 3)]

    async def test() -> None:
        registry = MetricsRegistry()
        registry.add_source("node", run_on_loop(asyncio.get_running_loop(), "node", source))
        samples = parse(await asyncio.to_thread(registry.render))
        assert value(samples, "skate_kv_entries") == 3
        assert value(samples, "skate_event_loop_lag_seconds", loop="node") >= 0
        assert threads == [threading.current_thread()]

    asyncio.run(test())


def test_run_on_loop_stuck_loop_is_reported_by_its_lag() -> None:
    loop = asyncio.new_event_loop()  # does not run
    try:
        read = run_on_loop(loop, "node", lambda: [Reading(families.KV_ENTRIES, 3)], timeout_s=0.05)
        samples = parse(registry_of(read).render())
        assert value(samples, "skate_event_loop_lag_seconds", loop="node") >= 0.05
        assert value(samples, "skate_metrics_source_errors_total", source="source-0") == 1
        assert not [key for key in samples if key[0] == "skate_kv_entries"]
    finally:
        loop.run_until_complete(asyncio.sleep(0))  # the late callback does nothing
        loop.close()


def test_run_on_loop_closed_loop_and_failing_source_are_counted() -> None:
    def broken() -> list[Reading]:
        raise RuntimeError("out of order")

    async def test() -> None:
        loop = asyncio.get_running_loop()
        registry = registry_of(run_on_loop(loop, "node", broken), run_on_loop(closed, "x", broken))
        samples = parse(await asyncio.to_thread(registry.render))
        for source in ("source-0", "source-1"):
            assert value(samples, "skate_metrics_source_errors_total", source=source) == 1

    closed = asyncio.new_event_loop()
    closed.close()
    asyncio.run(test())
