from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import totals

SUITE = (
    '<testsuites><testsuite name="pytest" errors="{errors}" failures="{failures}"'
    ' skipped="{skipped}" tests="{tests}"></testsuite></testsuites>'
)


def write_junit(
    folder: Path, name: str, *, tests: int, failures: int = 0, errors: int = 0, skipped: int = 0
) -> None:
    text = SUITE.format(tests=tests, failures=failures, errors=errors, skipped=skipped)
    (folder / totals.report_name(name)).write_text(text, "utf-8")


def write_nox_report(folder: Path, results: dict[str, str]) -> None:
    sessions = [
        {"name": name.split("(")[0], "signatures": [name], "result": result}
        for name, result in results.items()
    ]
    (folder / "nox.json").write_text(json.dumps({"sessions": sessions}), "utf-8")


def test_totals_of_several_sessions_are_their_sum(tmp_path: Path) -> None:
    write_junit(tmp_path, "tests(rpc)", tests=10, skipped=2)
    write_junit(tmp_path, "tests(gcs)", tests=5)
    write_nox_report(tmp_path, {"tests(rpc)": "success", "tests(gcs)": "success"})
    assert totals.collect(tmp_path, 0).line() == "13 passed, 0 failed, 2 skipped"


def test_totals_with_failures_and_errors_count_both_and_name_the_session(tmp_path: Path) -> None:
    write_junit(tmp_path, "tests(rpc)", tests=10, failures=2, errors=1)
    write_nox_report(tmp_path, {"tests(rpc)": "failed"})
    found = totals.collect(tmp_path, 1)
    assert found.line() == "7 passed, 3 failed"
    assert found.notes == ("tests(rpc): 7 passed, 3 failed",)


def test_totals_count_a_session_without_tests_as_one_check(tmp_path: Path) -> None:
    write_nox_report(tmp_path, {"lint": "success", "types": "failed", "layers": "skipped"})
    assert totals.collect(tmp_path, 1).line() == "1 passed, 1 failed, 1 skipped"


def test_totals_of_failed_session_with_passing_tests_say_failed(tmp_path: Path) -> None:
    write_junit(tmp_path, "integration", tests=3)
    write_nox_report(tmp_path, {"integration": "aborted"})
    found = totals.collect(tmp_path, 1)
    assert found.line() == "3 passed, 1 failed"
    assert "aborted" in found.notes[0]


def test_totals_leave_out_the_session_that_only_queues_others(tmp_path: Path) -> None:
    write_nox_report(tmp_path, {"ci": "success", "lint": "success"})
    assert totals.collect(tmp_path, 0).line() == "1 passed, 0 failed"


def test_totals_of_failed_run_without_a_report_say_failed(tmp_path: Path) -> None:
    assert totals.collect(tmp_path, 2).line() == "0 passed, 1 failed"


def test_totals_of_failed_run_with_only_successes_say_failed(tmp_path: Path) -> None:
    write_nox_report(tmp_path, {"lint": "success"})
    assert totals.collect(tmp_path, 130).line() == "1 passed, 1 failed"


def test_totals_with_a_cut_junit_file_say_failed(tmp_path: Path) -> None:
    (tmp_path / totals.report_name("integration")).write_text("<testsuites><tests", "utf-8")
    write_nox_report(tmp_path, {"integration": "success"})
    assert totals.collect(tmp_path, 0).line() == "0 passed, 1 failed"


def test_totals_command_ends_with_the_line_and_fails_on_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nox_report(tmp_path, {"lint": "failed"})
    assert totals.main([str(tmp_path), "--status", "1"]) == 1
    assert capsys.readouterr().out.splitlines() == ["failed: lint: failed", "0 passed, 1 failed"]


@pytest.mark.parametrize(
    ("session", "file"),
    [("lint", "lint.xml"), ("tests-3.12(core-ids)", "tests-3.12-core-ids.xml")],
)
def test_report_name_of_a_session_is_a_plain_file_name(session: str, file: str) -> None:
    assert totals.report_name(session) == file
