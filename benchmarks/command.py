"""The command line: choose peers, workloads and plan; make environments; run; print and keep."""

from __future__ import annotations

import argparse
import datetime as dt
import fnmatch
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environments import InstallationError, ensure_environment
from benchmarks.machine_facts import machine_facts
from benchmarks.peers import PEER_NAMES
from benchmarks.plan import Plan, default_plan, full_plan, quick_plan
from benchmarks.report import Run, as_json, failures, markdown, save
from benchmarks.rounds import Turn, run_rounds
from benchmarks.summary import summarise
from benchmarks.workload import Registry
from benchmarks.workloads import all_workloads

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_PEERS = "skate,ray,memcpy,pickling"
DEFAULT_ROUNDS = 3
CPUS_MAX = 2
PLANS = {"default": default_plan, "full": full_plan, "quick": quick_plan}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 when all was measured, 1 when not, 2 on misuse."""
    options = _parser().parse_args(arguments)
    registry = all_workloads()
    ids = select(registry, options.only)
    peers = list(dict.fromkeys((options.peers or _default_peers(options.quick)).split(",")))
    unknown = [peer for peer in peers if peer not in PEER_NAMES]
    if unknown or not ids:
        what = f"no peer is called {unknown[0]!r}" if unknown else "no workload matches"
        print(f"{what}; --list shows the names", file=sys.stderr)
        return 2
    if options.list:
        _print_list(registry, ids)
        return 0
    try:
        pythons = {peer: _python(peer, options.python, options.in_place) for peer in peers}
    except InstallationError as error:
        print(error, file=sys.stderr)
        return 1
    if options.set_up_only:
        return 0
    plan_name = "quick" if options.quick else options.plan
    cpus = options.cpus or min(CPUS_MAX, os.cpu_count() or 1)
    run = _run(registry, ids, pythons, plan_name, PLANS[plan_name](cpus), options)
    print(markdown(run))
    if options.json:
        Path(options.json).write_text(as_json(run))
    if run.turns and not options.no_save and not options.quick:
        _progress(f"kept in {save(run, RESULTS)}")
    failed = failures(run)
    if failed:
        print("failed: " + "; ".join(failed), file=sys.stderr)
    return 1 if failed or not run.is_complete else 0


def select(registry: Registry, patterns: Sequence[str]) -> list[str]:
    """The ids of the workloads that match any pattern, all without one.

    A pattern is part of an id or a title, or a glob over an id.
    """
    return [
        workload.id
        for workload in registry
        if not patterns
        or any(
            pattern in workload.id
            or pattern.lower() in workload.title.lower()
            or fnmatch.fnmatch(workload.id, pattern)
            for pattern in patterns
        )
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--peers",
        help=f"comma-separated, the first is compared with the others "
        f"(default {DEFAULT_PEERS}; all: {','.join(PEER_NAMES)})",
    )
    parser.add_argument("--only", metavar="PATTERN", action="append", default=[], help="repeatable")
    parser.add_argument("--rounds", type=_positive, help=f"default {DEFAULT_ROUNDS}")
    parser.add_argument("--plan", choices=sorted(PLANS), default="default")
    parser.add_argument(
        "--quick", action="store_true", help="smoke test: Skate alone, one small round, not kept"
    )
    parser.add_argument("--cpus", type=_positive, help="given to each cluster (default: at most 2)")
    parser.add_argument("--label", default="run", help="part of the name of the kept files")
    parser.add_argument("--json", metavar="PATH", help="write the JSON there too")
    parser.add_argument("--no-save", action="store_true", help="keep nothing under results/")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter on which the environments are based"
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="make no environments: every peer is installed beside the running interpreter",
    )
    parser.add_argument("--set-up-only", action="store_true", help="make the environments and stop")
    parser.add_argument("--list", action="store_true", help="show the workloads and stop")
    return parser


def _run(
    registry: Registry,
    ids: list[str],
    pythons: dict[str, str],
    plan_name: str,
    plan: Plan,
    options: argparse.Namespace,
) -> Run:
    """All the rounds. Ctrl-C ends the run early; what was measured by then is reported."""
    rounds = options.rounds or (1 if options.quick else DEFAULT_ROUNDS)
    started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    machine = machine_facts()
    turns: list[Turn] = []
    is_complete = False
    # A run that is asked to end does so as on Ctrl-C, and so leaves no process behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for turn in run_rounds(registry, ids, pythons, plan, rounds, _progress):
            turns.append(turn)
            _progress(f"  took {turn.wall_s:.0f} s")
        is_complete = True
    except KeyboardInterrupt:
        _progress("\ninterrupted; reporting the turns that are complete")
    peers = list(pythons)
    rows = summarise(registry, ids, turns, peers)
    return Run(options.label, started, plan_name, plan, peers, machine, turns, rows, is_complete)


def _default_peers(is_quick: bool) -> str:
    return "skate" if is_quick else DEFAULT_PEERS


def _python(peer: str, base: str, is_in_place: bool) -> str:
    if is_in_place:
        return sys.executable
    _progress(f"environment of {peer}")
    return ensure_environment(peer, base)


def _print_list(registry: Registry, ids: Sequence[str]) -> None:
    for workload_id in ids:
        workload = registry[workload_id]
        print(f"{workload_id:24}{workload.title} ({workload.unit}): {workload.definition}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
