"""Figures, ratios, tables and kept files, from turns made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.environments import ROOT
from benchmarks.events import Event, Kind
from benchmarks.machine_facts import MachineFacts, machine_facts
from benchmarks.plan import quick_plan
from benchmarks.report import (
    Run,
    as_json,
    cell,
    failures,
    markdown,
    number,
    ratio_cell,
    save,
    without_places,
)
from benchmarks.rounds import Turn
from benchmarks.summary import Failed, Lacking, Measured, Ratio, compare, summarise
from benchmarks.workloads import all_workloads

MACHINE = MachineFacts("A CPU", 2, 2, 25.0, "6.1", "Debian", "3.11.7", (0.1, 0.1, 0.1))
PEERS = ["skate", "ray"]


def turn(number: int, peer: str, *events: Event, calibration_s: float = 0.05) -> Turn:
    results = {event.workload: event for event in events}
    facts = {"python": "3.11.7", peer: "1.0"}
    return Turn(number, peer, 0.1, results, facts, calibration_s, wall_s=60.0)


def measured(workload: str, *samples: float) -> Event:
    return Event(Kind.MEASURED, workload, list(samples))


def run_of(*turns: Turn, ids: tuple[str, ...] = ("init", "tasks_sync")) -> Run:
    rows = summarise(all_workloads(), ids, turns, PEERS)
    started = "2026-11-23T08:00:00+00:00"
    return Run("test", started, "quick", quick_plan(2), PEERS, MACHINE, list(turns), rows)


def clean_run() -> Run:
    return run_of(
        turn(1, "skate", measured("init", 0.5), measured("tasks_sync", 5000, 6000)),
        turn(1, "ray", measured("init", 8.0), measured("tasks_sync", 500, 600)),
        turn(2, "skate", measured("init", 0.4), measured("tasks_sync", 7000)),
        turn(2, "ray", measured("init", 6.0), measured("tasks_sync", 700)),
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00861, "0.00861"),
        (0.0000123, "0.000012"),
        (1.234, "1.23"),
        (15.0, "15"),
        (563.4, "563"),
        (12345.6, "12,300"),
        (999.9, "1,000"),
        (1234567, "1,230,000"),
    ],
)
def test_number_is_shown_with_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_measured_samples_are_pooled_over_rounds() -> None:
    outcome = Measured([[1.0, 5.0], [2.0]])
    assert (outcome.median, outcome.spread) == (2.0, (1.0, 5.0))


def test_compare_rate_divides_subject_by_other_with_range_over_rounds() -> None:
    ratio = compare(Measured([[10.0], [30.0]]), Measured([[1.0], [2.0]]), is_rate=True)
    assert (ratio.lowest, ratio.highest) == (10.0, 15.0)
    assert ratio.value == pytest.approx(20 / 1.5)


def test_compare_duration_divides_other_by_subject() -> None:
    ratio = compare(Measured([[0.5]]), Measured([[8.0]]), is_rate=False)
    assert ratio == Ratio(16.0, 16.0, 16.0)


def test_cell_shows_median_and_spread() -> None:
    assert cell(Measured([[5000.0, 6000.0, 7000.0]])) == "6,000 (5,000-7,000)"
    assert cell(Measured([[4.0]])) == "4"
    assert cell(Lacking("no actors")) == "-"
    assert cell(Failed("boom", [])) == "failed"
    assert cell(None) == "-"


def test_ratio_cell_shows_range_when_there_is_one() -> None:
    assert ratio_cell(Ratio(10.0, 9.0, 11.0)) == "10x (9-11)"
    assert ratio_cell(Ratio(10.0, 10.0, 10.0)) == "10x"
    assert ratio_cell(None) == ""


def test_markdown_of_two_peers_has_figures_ratios_and_facts() -> None:
    text = markdown(clean_run())
    assert "| init | s | 0.45 (0.4-0.5) | 7 (6-8) | 15.6x (15-16) |" in text
    assert "| tasks sync | tasks/s | 6,000 (5,000-7,000) | 600 (500-700) | 10x |" in text
    assert "A CPU, 2 cores (2 usable), 25 GB" in text
    assert "skate: python 3.11.7, skate 1.0" in text
    assert "Warning" not in text


def test_markdown_of_lacking_peer_gives_the_reason() -> None:
    lacking = Event(Kind.LACKING, "init", text="it has no cluster")
    text = markdown(run_of(turn(1, "skate", measured("init", 1.0)), turn(1, "ray", lacking)))
    assert "| init | s | 1 | - |  |" in text
    assert "- `-` ray: it has no cluster (init)" in text


def test_markdown_of_failed_workload_shows_its_error() -> None:
    failed = Event(Kind.FAILED, "init", text="Traceback\nOSError: no port")
    run = run_of(turn(1, "skate", failed), turn(1, "ray", measured("init", 1.0)))
    assert "| init | s | failed | 1 |  |" in markdown(run)
    assert "OSError: no port" in markdown(run)
    assert failures(run) == ["skate: init"]


def test_summary_of_workload_that_failed_in_one_round_is_failed_and_keeps_the_others() -> None:
    run = run_of(
        turn(1, "skate", measured("init", 0.5)),
        turn(2, "skate", Event(Kind.FAILED, "init", text="lost")),
    )
    assert run.rows[0].outcomes["skate"] == Failed("lost", [[0.5]])


def test_markdown_of_disturbed_turn_warns() -> None:
    run = run_of(
        turn(1, "skate", measured("init", 1.0)),
        turn(1, "ray", measured("init", 1.0), calibration_s=0.1),
    )
    assert "round 1 of ray: plain Python ran 2.00 times slower" in markdown(run)


def test_markdown_of_turn_that_left_processes_warns() -> None:
    left = turn(1, "ray", measured("init", 1.0))
    left.processes_left = ["gcs_server --x"]
    assert "round 1 of ray left 1 processes: gcs_server --x" in markdown(run_of(left))


def test_json_keeps_every_sample_by_round() -> None:
    document = json.loads(as_json(clean_run()))
    tasks = next(row for row in document["workloads"] if row["id"] == "tasks_sync")
    assert tasks["peers"]["skate"]["by_round"] == [[5000, 6000], [7000]]
    assert tasks["ratios"]["ray"]["value"] == 10.0
    assert document["machine"]["cpu_model"] == "A CPU"
    assert [entry["peer"] for entry in document["turns"]] == ["skate", "ray", "skate", "ray"]


def test_save_twice_keeps_both(tmp_path: Path) -> None:
    first, second = (save(clean_run(), tmp_path) for _ in range(2))
    assert [first.name, second.name] == ["2026-11-23-test.json", "2026-11-23-test-2.json"]
    assert first.with_suffix(".md").read_text() == markdown(clean_run())


def test_machine_facts_are_read_from_this_machine() -> None:
    facts = machine_facts()
    assert facts.cores_usable >= 1
    assert facts.memory_gb > 0
    assert facts.cpu_model


def test_kept_report_does_not_say_where_it_was_made() -> None:
    text = f"{ROOT}/benchmarks/x.py and {Path.home()}/y"

    assert without_places(text) == "./benchmarks/x.py and ~/y"
