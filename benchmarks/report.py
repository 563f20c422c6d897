"""The Markdown that a run prints, and the JSON that it keeps."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.machine_facts import MachineFacts
from benchmarks.plan import Plan
from benchmarks.rounds import Turn
from benchmarks.summary import Failed, Lacking, Measured, Outcome, Ratio, Row

SCHEMA = 1
LEGEND = (
    "Median (smallest-largest sample). A ratio above 1 means that {subject} is that many times "
    "better, whatever the row's unit; in brackets its range over the rounds."
)
QUICK_LEGEND = "A smoke test with small batches: it shows what runs, not how fast."
TITLES_MAX = 3  # Workloads named beside a reason; the others are counted.
BUSY_LOAD = 0.5  # Per core and before the run: above it, the table warns.
SLOW_CALIBRATION = 1.15  # A turn this much slower than the fastest was disturbed.


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: what was asked, where it ran, what came out."""

    label: str
    started: str  # ISO 8601, UTC.
    plan_name: str
    plan: Plan
    peers: list[str]  # The first is the subject of the ratios.
    machine: MachineFacts
    turns: list[Turn]
    rows: list[Row]
    is_complete: bool = True  # False: interrupted, and only the turns before that are here.


def markdown(run: Run) -> str:
    """The table with ratios, then reasons, errors and facts: everything a reader needs."""
    subject, *others = run.peers
    head = ["workload", "unit", *run.peers, *(f"{subject} vs {other}" for other in others)]
    lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
    for row in run.rows:
        cells = [row.workload.title, row.workload.unit]
        cells += [cell(row.outcomes.get(peer)) for peer in run.peers]
        cells += [ratio_cell(row.ratios.get(other)) for other in others]
        lines.append(_line(cells))
    sections = [
        QUICK_LEGEND if run.plan_name == "quick" else LEGEND.format(subject=subject),
        "\n".join(lines),
        *_remarks(run),
        _facts(run),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def cell(outcome: Outcome | None) -> str:
    """A peer's figure: `-` when it cannot do it, and why stands below the table."""
    match outcome:
        case Measured():
            low, high = outcome.spread
            if low == high:
                return number(outcome.median)
            return f"{number(outcome.median)} ({number(low)}-{number(high)})"
        case Failed():
            return "failed"
        case Lacking() | None:
            return "-"


def ratio_cell(ratio: Ratio | None) -> str:
    """A ratio with its range over the rounds."""
    if ratio is None:
        return ""
    if ratio.lowest == ratio.highest:
        return f"{number(ratio.value)}x"
    return f"{number(ratio.value)}x ({number(ratio.lowest)}-{number(ratio.highest)})"


def number(value: float) -> str:
    """Three significant digits, thousands with commas, never an exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        rounded = float(f"{value:.3g}")
        return f"{rounded:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}".rstrip("0")


def as_json(run: Run) -> str:
    """Everything that was measured, by round, with machine facts; indented and sorted by run."""
    document = {
        "schema": SCHEMA,
        "label": run.label,
        "started": run.started,
        "is_complete": run.is_complete,
        "plan_name": run.plan_name,
        "plan": dataclasses.asdict(run.plan),
        "peers": run.peers,
        "machine": dataclasses.asdict(run.machine),
        "turns": [
            {
                "round": turn.round,
                "peer": turn.peer,
                "load": turn.load,
                "calibration_s": turn.calibration_s,
                "wall_s": round(turn.wall_s, 1),
                "versions": turn.facts,
                "processes_left": turn.processes_left,
            }
            for turn in run.turns
        ],
        "workloads": [_row_json(row) for row in run.rows],
    }
    return json.dumps(document, indent=1) + "\n"


def save(run: Run, folder: Path) -> Path:
    """Write the JSON and the table beside each other; the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{run.started[:10]}-{run.label}"
    path = folder / f"{stem}.json"
    count = 1
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}.json"
    path.write_text(without_places(as_json(run)))
    path.with_suffix(".md").write_text(without_places(markdown(run)))
    return path


def without_places(text: str) -> str:
    """A report without the folders of the machine it was made on: they say nothing to others."""
    for place, name in ((ROOT, "."), (Path(sys.base_prefix), "python"), (Path.home(), "~")):
        if place != place.parent:  # a home at the root of all folders is in every path
            text = text.replace(str(place), name)
    return text


def failures(run: Run) -> list[str]:
    """What failed, as `peer: workload`."""
    return [
        f"{peer}: {row.workload.title}"
        for row in run.rows
        for peer, outcome in row.outcomes.items()
        if isinstance(outcome, Failed)
    ]


def _row_json(row: Row) -> dict[str, Any]:
    return {
        "id": row.workload.id,
        "title": row.workload.title,
        "unit": row.workload.unit,
        "is_rate": row.workload.is_rate,
        "source": row.workload.source,
        "definition": row.workload.definition,
        "peers": {peer: _outcome_json(outcome) for peer, outcome in row.outcomes.items()},
        "ratios": {peer: dataclasses.asdict(ratio) for peer, ratio in row.ratios.items()},
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    match outcome:
        case Measured():
            low, high = outcome.spread
            return {
                "status": "measured",
                "median": outcome.median,
                "min": low,
                "max": high,
                "by_round": outcome.by_round,
                "details": outcome.details,
            }
        case Failed():
            return {"status": "failed", "error": outcome.error, "by_round": outcome.by_round}
        case Lacking():
            return {"status": "lacking", "reason": outcome.reason}


def _remarks(run: Run) -> list[str]:
    """Reasons of dashes, errors of failures, and what made the run less than clean."""
    reasons: dict[tuple[str, str], list[str]] = {}
    errors = []
    for row in run.rows:
        for peer, outcome in row.outcomes.items():
            if isinstance(outcome, Lacking):
                reasons.setdefault((peer, outcome.reason), []).append(row.workload.title)
            elif isinstance(outcome, Failed):
                text = "\n".join("    " + line for line in outcome.error.splitlines())
                errors.append(f"Failed: {row.workload.title} on {peer}:\n\n{text}")
    sections = []
    if reasons:
        sections.append(
            "\n".join(
                f"- `-` {peer}: {reason} ({_titles(titles)})"
                for (peer, reason), titles in reasons.items()
            )
        )
    sections += errors
    warnings = _warnings(run)
    if warnings:
        sections.append("\n".join(f"- Warning: {warning}" for warning in warnings))
    return sections


def _titles(titles: Sequence[str]) -> str:
    named = "; ".join(titles[:TITLES_MAX])
    more = len(titles) - TITLES_MAX
    return f"{named}; {more} more" if more > 0 else named


def _warnings(run: Run) -> list[str]:
    warnings = []
    if not run.is_complete:
        warnings.append("the run was interrupted; only complete turns are shown")
    if run.machine.load_before[0] > BUSY_LOAD * run.machine.cores_usable:
        warnings.append(f"the machine was busy before: load {run.machine.load_before[0]:.1f}")
    fastest_s = min((turn.calibration_s for turn in run.turns if turn.calibration_s), default=0.0)
    for turn in run.turns:
        if turn.calibration_s > SLOW_CALIBRATION * fastest_s:
            warnings.append(
                f"round {turn.round} of {turn.peer}: plain Python ran "
                f"{turn.calibration_s / fastest_s:.2f} times slower than in the quietest turn"
            )
        if turn.processes_left:
            warnings.append(
                f"round {turn.round} of {turn.peer} left {len(turn.processes_left)} processes: "
                + "; ".join(turn.processes_left[:3])
            )
    return warnings


def _facts(run: Run) -> str:
    machine = run.machine
    versions: dict[str, dict[str, str]] = {turn.peer: turn.facts for turn in run.turns}
    rounds = max((turn.round for turn in run.turns), default=0)
    wall_s = sum(turn.wall_s for turn in run.turns)
    run_line = (
        f"- {run.started}, plan {run.plan_name}, {rounds} rounds, {run.plan.cpus} CPUs to each "
        f"cluster, {wall_s / 60:.1f} minutes"
    )
    lines = [f"- {machine.line()}", run_line]
    for peer in run.peers:
        found = ", ".join(f"{name} {version}" for name, version in versions.get(peer, {}).items())
        lines.append(f"- {peer}: {found}")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
