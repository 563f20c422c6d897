"""The runner: rounds in which each peer has its turn, every turn in fresh processes.

Before: command.py chooses peers, workloads and plan. After: summary.py condenses the turns.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import processes
from benchmarks.events import Event, Kind
from benchmarks.plan import Plan
from benchmarks.round_process import Spec
from benchmarks.workload import Registry, Stage
from benchmarks.workloads import lifecycle

ROOT = Path(__file__).resolve().parent.parent
# Under /tmp and short, whatever TMPDIR says: peers put Unix sockets below it (107 bytes at most).
SCRATCH_PARENT = "/tmp"
END_GRACE_S = 15.0
LIMIT_SLACK_S = 5.0
LOG_LINES = 15
READ_BYTES = 65536


@dataclass(slots=True)
class Turn:
    """One peer's part of one round. Seconds; `load` is the one-minute average when it began."""

    round: int
    peer: str
    load: float
    results: dict[str, Event] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    calibration_s: float = 0.0
    wall_s: float = 0.0
    processes_left: list[str] = field(default_factory=list)


Progress = Callable[[str], None]


def run_rounds(
    registry: Registry,
    workload_ids: Sequence[str],
    pythons: Mapping[str, str],
    plan: Plan,
    rounds: int,
    progress: Progress,
) -> Iterator[Turn]:
    """Each round gives each peer of `pythons` (name to interpreter) a turn, in that order."""
    processes.adopt_orphans()
    for number in range(1, rounds + 1):
        ids = [
            workload_id
            for workload_id in workload_ids
            if plan.is_every_round_complete
            or (
                registry[workload_id].rounds_max is None
                or number <= (registry[workload_id].rounds_max or 0)
            )
        ]
        for peer, python in pythons.items():
            progress(f"round {number} of {rounds}: {peer}")
            yield run_turn(registry, ids, peer, python, plan, number, progress)


def run_turn(
    registry: Registry,
    workload_ids: Sequence[str],
    peer: str,
    python: str,
    plan: Plan,
    number: int,
    progress: Progress,
) -> Turn:
    """All workloads on one peer: a process for those that share a cluster, one for each other."""
    turn = Turn(number, peer, os.getloadavg()[0])
    start_s = time.monotonic()
    shared = [
        workload_id
        for workload_id in workload_ids
        if registry[workload_id].stage is not Stage.ISOLATED
    ]
    isolated = [
        workload_id for workload_id in workload_ids if registry[workload_id].stage is Stage.ISOLATED
    ]
    for together in (shared, *([workload_id] for workload_id in isolated)):
        while unsettled := [each for each in together if each not in turn.results]:
            _run_process(turn, unsettled, python, plan, progress)
    turn.wall_s = time.monotonic() - start_s
    return turn


def _run_process(
    turn: Turn, remaining: list[str], python: str, plan: Plan, progress: Progress
) -> None:
    """Run one process until it ends or fails. Settles at least one of `remaining`."""
    before = frozenset(processes.descendants(os.getpid()))
    settled = len(turn.results)
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=SCRATCH_PARENT))
    log = scratch / "output.log"
    read_fd, write_fd = os.pipe()
    spec = Spec(turn.peer, remaining, plan, write_fd)
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                [python, "-m", "benchmarks.round_process", spec.to_json()],
                cwd=scratch,
                env=peer_variables(scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_fd],
                start_new_session=True,
            )
        os.close(write_fd)
        try:
            phase, problem = _follow(turn, child, read_fd, remaining, progress)
        finally:
            # Also when the runner is interrupted: nothing may be left behind.
            was_ended_here = end(child)
            left = processes.end_descendants(before)
            # A peer that was cut off had no chance to end its own.
            turn.processes_left += [] if was_ended_here else left
        if problem:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            _settle_problem(turn, remaining, phase, f"{problem}\n{tail}".strip())
        if len(turn.results) == settled:
            # Never loop: a process that ended well but said nothing has failed.
            for workload_id in remaining:
                turn.results[workload_id] = Event(
                    Kind.FAILED, workload_id, text="the process reported nothing"
                )
    finally:
        os.close(read_fd)
        shutil.rmtree(scratch, ignore_errors=True)


def _follow(
    turn: Turn,
    child: subprocess.Popen[bytes],
    read_fd: int,
    remaining: list[str],
    progress: Progress,
) -> tuple[str, str]:
    """Take events until the process ends: the phase it was in, and what went wrong if anything."""
    phase, limit_s = "facts", 60.0
    deadline_s = time.monotonic() + limit_s
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(read_fd, selectors.EVENT_READ)
        while True:
            wait_s = deadline_s - time.monotonic()
            if wait_s <= 0:
                return phase, f"not finished within {limit_s:g} s"
            if not selector.select(min(wait_s, 0.5)):
                # A descendant may hold the pipe open after the process has ended.
                if child.poll() is None:
                    continue
                break
            chunk = os.read(read_fd, READ_BYTES)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                event = Event.from_line(line.decode())
                if event.kind is Kind.BEGUN:
                    phase, limit_s = event.workload, event.limit_s
                    deadline_s = time.monotonic() + limit_s + LIMIT_SLACK_S
                elif event.kind is Kind.FACTS:
                    turn.facts = event.facts
                    turn.calibration_s = event.details["calibration_s"]
                elif event.workload in remaining or event.workload == lifecycle.INIT:
                    turn.results[event.workload] = event
                    _tell(progress, event)
                    if event.kind is Kind.FAILED and event.workload == lifecycle.INIT:
                        _settle_problem(turn, remaining, lifecycle.INIT, event.text)
    try:
        status = child.wait(timeout=END_GRACE_S)
    except subprocess.TimeoutExpired:
        return phase, f"the process did not end within {END_GRACE_S:g} s after its last event"
    return phase, f"the process ended with status {status}" if status else ""


def _settle_problem(turn: Turn, remaining: list[str], phase: str, problem: str) -> None:
    """Write a problem of the process down as the failure of what it was doing.

    Without a cluster nothing else can be measured either, so every unsettled workload fails then.
    """
    is_hopeless = phase in {"facts", lifecycle.INIT, lifecycle.SHUTDOWN}
    for workload_id in remaining:
        if workload_id not in turn.results and (is_hopeless or workload_id == phase):
            text = problem if workload_id == phase else f"{phase} failed: {problem}"
            turn.results[workload_id] = Event(Kind.FAILED, workload_id, text=text)


def end(child: subprocess.Popen[bytes]) -> bool:
    """End a turn's process, at the latest by SIGKILL; False if it had ended by itself."""
    if child.poll() is not None:
        return False
    child.terminate()
    try:
        child.wait(timeout=END_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return True


def peer_variables(scratch: Path) -> dict[str, str]:
    """The runner's environment, with every temporary file of the peer in the scratch folder."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": str(scratch),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _tell(progress: Progress, event: Event) -> None:
    if event.kind is Kind.MEASURED:
        figures = " ".join(f"{sample:,.4g}" for sample in event.samples)
        progress(f"  {event.workload}: {figures}")
    elif event.kind is Kind.FAILED:
        last = event.text.splitlines()[-1] if event.text else ""
        progress(f"  {event.workload}: failed: {last}")
