"""One round of one peer: a fresh process that measures the workloads it is given, then ends.

`python -m benchmarks.round_process SPEC`: the runner (rounds.py) starts it with the peer's
interpreter and reads its events from an inherited pipe. The first failure ends the process, so that
nothing is measured on a cluster in an unknown state.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from benchmarks import processes, served
from benchmarks.events import Emit, Event, Kind
from benchmarks.measuring import measure
from benchmarks.peers import Lacking, Peer, load_peer
from benchmarks.plan import Plan, Sizes
from benchmarks.workload import Loop, Stage, Workload
from benchmarks.workloads import all_workloads, lifecycle

CALIBRATION_LOOPS = 1_000_000
CALIBRATION_SAMPLES = 5
ERROR_CHARACTERS_MAX = 4000
GONE_TIMEOUT_S = 5.0
IMPORT_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What a round's process is asked to do; crosses the process boundary as JSON."""

    peer: str
    workloads: list[str]
    plan: Plan
    events_fd: int

    def to_json(self) -> str:
        """The spec as the process's argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """The spec of a process's argument. Raises ValueError, TypeError, KeyError."""
        values: dict[str, Any] = json.loads(text)
        sizes = Sizes(**values["plan"].pop("sizes"))
        values["plan"] = Plan(**values["plan"], sizes=sizes)
        return cls(**values)


class StopRoundError(Exception):
    """A workload failed and was reported; the round ends here."""


def run_round(spec: Spec, peer: Peer, emit: Emit) -> None:
    """Measure the workloads of `spec` in order and report each. Returns early after a failure."""
    registry = all_workloads()
    wanted: list[Workload] = []
    for workload in (registry[workload_id] for workload_id in spec.workloads):
        reason = peer.missing(workload.needs)
        if reason is None:
            wanted.append(workload)
        else:
            emit(Event(Kind.LACKING, workload.id, text=reason))
    lifecycle_ids = {each.id for each in wanted if each.stage is Stage.LIFECYCLE}
    bodies = [each for each in wanted if each.stage is not Stage.LIFECYCLE]
    imports = {
        lifecycle.IMPORT: peer.import_statement,
        lifecycle.IMPORT_USED: peer.use_statement or peer.import_statement,
    }
    try:
        for workload_id, statement in imports.items():
            if workload_id in lifecycle_ids:
                _measure_import(workload_id, statement, spec.plan, emit)
        if not bodies and not lifecycle_ids - imports.keys():
            return
        _start(peer, spec.plan, lifecycle_ids, emit)
    except StopRoundError:
        return
    try:
        for workload in bodies:
            _measure_body(workload, peer, spec.plan, emit)
    except StopRoundError:
        # Its cluster is stopped all the same, but says nothing about shutdown.
        lifecycle_ids = set()
    _stop(peer, spec.plan, lifecycle_ids, emit)


def calibrate() -> list[float]:
    """Seconds that a fixed amount of plain Python takes: shows a machine that was not at rest."""
    samples = []
    for _ in range(CALIBRATION_SAMPLES):
        start_s = time.perf_counter()
        total = 0
        for number in range(CALIBRATION_LOOPS):
            total += number
        samples.append(time.perf_counter() - start_s)
    return samples


def versions(peer: Peer) -> dict[str, str]:
    """The versions of Python and of the peer's distributions that are installed."""
    found = {"python": platform.python_version()}
    for name in peer.distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _measure_import(workload_id: str, statement: str, plan: Plan, emit: Emit) -> None:
    emit(Event(Kind.BEGUN, workload_id, limit_s=IMPORT_LIMIT_S))
    code = (
        "import time; start_s = time.perf_counter()\n"
        f"{statement}\n"
        "print(time.perf_counter() - start_s)"
    )
    samples = []
    try:
        for _ in range(plan.import_samples + 1):
            run = subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            )
            samples.append(float(run.stdout.splitlines()[-1]))
    except (subprocess.CalledProcessError, ValueError) as error:
        _fail(workload_id, error, emit)
    # The first one may have compiled and read files that the others find in the cache.
    emit(Event(Kind.MEASURED, workload_id, samples[1:], {"first_s": samples[0]}))


def _start(peer: Peer, plan: Plan, wanted: set[str], emit: Emit) -> None:
    emit(Event(Kind.BEGUN, lifecycle.INIT, limit_s=plan.start_limit_s))
    try:
        start_s = time.perf_counter()
        peer.start(plan.cpus)
        started_s = time.perf_counter() - start_s
        count = len(processes.cluster_pids()) + 1
        if lifecycle.FIRST_RESULT in wanted:
            peer.in_turn(peer.task(served.small_value), 1)
        first_s = time.perf_counter() - start_s
    except Exception as error:  # noqa: BLE001 - the boundary to the peer under test
        _fail(lifecycle.INIT, error, emit)
    for workload_id, figure in (
        (lifecycle.INIT, started_s),
        (lifecycle.PROCESSES, float(count)),
        (lifecycle.FIRST_RESULT, first_s),
    ):
        if workload_id in wanted:
            emit(Event(Kind.MEASURED, workload_id, [figure]))


def _measure_body(workload: Workload, peer: Peer, plan: Plan, emit: Emit) -> None:
    emit(Event(Kind.BEGUN, workload.id, limit_s=plan.limit_s))
    assert workload.body is not None
    details: dict[str, float] = {}
    try:
        # A workload that fails is not cleaned up after: its whole cluster is stopped.
        steps = workload.body(peer, plan.sizes)
        subject = next(steps)
        if isinstance(subject, Loop):
            samples = measure(subject, plan)
        else:
            samples, details = subject.samples, subject.details
        next(steps, None)
    except Lacking as lacking:
        emit(Event(Kind.LACKING, workload.id, text=str(lacking)))
        return
    except Exception as error:  # noqa: BLE001 - the boundary to the peer under test
        _fail(workload.id, error, emit)
    emit(Event(Kind.MEASURED, workload.id, samples, details))


def _stop(peer: Peer, plan: Plan, wanted: set[str], emit: Emit) -> None:
    emit(Event(Kind.BEGUN, lifecycle.SHUTDOWN, limit_s=plan.stop_limit_s))
    start_s = time.perf_counter()
    try:
        peer.stop()
    except Exception as error:  # The boundary to the peer under test.
        if lifecycle.SHUTDOWN in wanted:
            _fail(lifecycle.SHUTDOWN, error, emit)
        raise
    stopped_s = time.perf_counter() - start_s
    left = processes.wait_alone(os.getppid(), os.getpid(), peer.driver_processes, GONE_TIMEOUT_S)
    gone_s = time.perf_counter() - start_s
    if lifecycle.SHUTDOWN in wanted:
        emit(Event(Kind.MEASURED, lifecycle.SHUTDOWN, [stopped_s]))
    if lifecycle.GONE in wanted:
        if left:
            text = f"left after {GONE_TIMEOUT_S} s: {'; '.join(left)}"
            emit(Event(Kind.FAILED, lifecycle.GONE, text=text))
        else:
            emit(Event(Kind.MEASURED, lifecycle.GONE, [gone_s]))


def _fail(workload_id: str, error: Exception, emit: Emit) -> NoReturn:
    """Report a failure and end the round. Raises StopRoundError."""
    text = "".join(traceback.format_exception(error)).strip()
    if isinstance(error, subprocess.CalledProcessError):
        text += "\n" + str(error.stderr)
    emit(Event(Kind.FAILED, workload_id, text=text[-ERROR_CHARACTERS_MAX:]))
    raise StopRoundError(workload_id) from error


def main() -> int:
    """Run the round that the argument specifies."""
    spec = Spec.from_json(sys.argv[1])
    processes.end_with_parent()
    os.set_inheritable(spec.events_fd, False)
    pipe = os.fdopen(spec.events_fd, "w")

    def emit(event: Event) -> None:
        pipe.write(event.to_line())
        pipe.flush()

    emit(Event(Kind.BEGUN, "facts", limit_s=spec.plan.start_limit_s))
    peer = load_peer(spec.peer)
    calibration = calibrate()
    emit(
        Event(
            Kind.FACTS,
            samples=calibration,
            facts=versions(peer),
            details={"calibration_s": statistics.median(calibration)},
        )
    )
    run_round(spec, peer, emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
