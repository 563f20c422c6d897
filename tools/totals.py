"""Add up what all nox sessions found, and say it in one last line.

    python tools/totals.py build/reports --status 0

Reads nox's report (``nox.json``) and the JUnit file that each session's pytest left beside it. A
session without a JUnit file (lint, types, ...) counts as one check. A session that failed although
its tests passed (an install that broke, a crash after the last test) counts as one failure, so that
the line never says "0 failed" about a run that failed. The exit status follows the line.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

COORDINATORS = {"ci"}  # sessions that only queue others


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers of tests and checks. ``notes`` names each session that failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def __add__(self, other: Totals) -> Totals:
        """The sum, notes in order."""
        return Totals(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.notes + other.notes,
        )

    def line(self) -> str:
        """``N passed, N failed`` and, when there are any, ``, N skipped``."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def report_name(session: str) -> str:
    """The JUnit file of a session: ``tests(core-ids)`` leaves ``tests-core-ids.xml``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", session).strip("-") + ".xml"


def read_junit(path: Path) -> Totals:
    """Totals of one JUnit file. Errors in fixtures and collection count as failures.

    Raises:
        ET.ParseError: the file was cut short.
    """
    tests = failed = skipped = 0
    for suite in ET.parse(path).getroot().iter("testsuite"):
        tests += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return Totals(passed=max(0, tests - failed - skipped), failed=failed, skipped=skipped)


def session_totals(name: str, result: str, reports: Path) -> Totals:
    """What one session adds. ``result`` is nox's word: success, failed, aborted or skipped."""
    junit = reports / report_name(name)
    if junit.exists():
        try:
            totals = read_junit(junit)
        except ET.ParseError:
            return Totals(failed=1, notes=(f"{name}: its test report was cut short",))
        if result in {"success", "skipped"} and not totals.failed:
            return totals
        if totals.failed:
            return totals + Totals(notes=(f"{name}: {totals.line()}",))
        return totals + Totals(failed=1, notes=(f"{name}: tests passed, the session {result}",))
    if result == "success":
        return Totals(passed=1)
    if result == "skipped":
        return Totals(skipped=1)
    return Totals(failed=1, notes=(f"{name}: {result}",))


def collect(reports: Path, status: int) -> Totals:
    """Totals over all sessions of the run whose exit status was ``status``."""
    report = reports / "nox.json"
    if not report.exists():
        return Totals(failed=1, notes=(f"nox ended with status {status} before it reported",))
    totals = Totals()
    for session in json.loads(report.read_text("utf-8"))["sessions"]:
        name = (session["signatures"] or [session["name"]])[0]
        if name not in COORDINATORS or session["result"] != "success":
            totals += session_totals(name, session["result"], reports)
    if status != 0 and totals.failed == 0:
        totals += Totals(failed=1, notes=(f"nox ended with status {status}",))
    return totals


def main(arguments: list[str]) -> int:
    """Print the failed sessions and the line of totals."""
    parser = argparse.ArgumentParser(description="Totals over all nox sessions.")
    parser.add_argument("reports", type=Path)
    parser.add_argument("--status", type=int, default=0, help="exit status of nox")
    options = parser.parse_args(arguments)
    totals = collect(options.reports, options.status)
    for note in totals.notes:
        print(f"failed: {note}")
    print(totals.line(), flush=True)
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
