"""Where the microseconds of one call go.

    python -m benchmarks.budget [--quick] [--tracing] [--json FILE]

Runs in the interpreter's own environment, which must have Skate, and takes under a minute. It
prints: round trips of growing completeness (`ladder`); one call at a time by stage, from stamps on
both sides (`probes`); what the threads cost for a call at a time and for pipelined calls; the
pipelined call in single steps (`steps`); system calls where strace is installed (`syscalls`); and
with `--tracing` the price of tracing (`tracing_price`).
"""

# ruff: noqa: SLF001 - a probe looks inside on purpose

from __future__ import annotations

import argparse
import bisect
import dataclasses
import json
import os
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import skate
from benchmarks import probes
from benchmarks.ladder import hand_over_us, measure_ladder
from benchmarks.machine_facts import MachineFacts, machine_facts
from benchmarks.steps import Step, measure_steps
from benchmarks.syscalls import count_syscalls
from benchmarks.tracing_price import TracingResult, measure_tracing
from skate_worker.current import require_core

BATCH = 1000
TRACED_CALLS = 2000
TRACED_BATCHES = 20

# (who, what, the stamp that ends it); a call begins with the stamp "d.call".
STAGES = (
    ("driver thread", "check, serialise, own, choose the worker, encode", "d.send"),
    ("wake-up 1", "send; the worker's I/O thread wakes", "w.polled"),
    ("worker I/O thread", "receive, decode, queue", "w.release"),
    ("wake-up 2", "the worker's main thread wakes", "w.woken"),
    ("worker main thread", "take it, find the function, deserialise", "w.begin"),
    ("worker main thread", "the function (empty)", "w.end"),
    ("worker main thread", "serialise the result, encode", "w.send"),
    ("wake-up 3", "send; the driver's I/O thread wakes", "d.polled"),
    ("driver I/O thread", "receive, decode, settle the result", "d.settled"),
    ("wake-up 4", "the driver's thread wakes", "d.woken"),
    ("driver thread", "deserialise, return from get", "d.returned"),
)

Costs = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ThreadCost:
    """What one call costs one thread: CPU microseconds, and how often it slept."""

    thread: str
    cpu_us: float
    sleeps: float


@dataclass(slots=True)
class Budget:
    """One kind of call."""

    kind: str
    sync_us: float = 0.0
    sync_p90_us: float = 0.0
    probed_us: float = 0.0
    stages: list[tuple[str, str, float]] = field(default_factory=list)
    sync_threads: list[ThreadCost] = field(default_factory=list)
    async_us: float = 0.0
    async_threads: list[ThreadCost] = field(default_factory=list)
    syscalls: dict[str, list[dict[str, float]] | str] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """All that was measured; times in microseconds."""

    machine: MachineFacts
    ladder: dict[str, float]
    hand_over_us: float
    budgets: list[Budget]
    steps: list[Step]
    tracing: TracingResult | str


@dataclass(frozen=True, slots=True)
class Kind:
    """How to make one kind of call, and how to reach into the worker that serves it."""

    name: str
    empty: Callable[[], Any]
    stamped: Callable[[], Any]
    probe: Callable[[], Any]
    unprobe: Callable[[], Any]
    marks: Callable[[], Any]
    costs: Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a stage could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    parser.add_argument("--tracing", action="store_true", help="the price of tracing too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    scale = 0.1 if options.quick else 1.0
    machine = machine_facts()
    # What forks comes first, while there is one thread.
    ladder = measure_ladder(int(5000 * scale))
    tracing: TracingResult | str = "not asked for: --tracing"
    if options.tracing:
        tracing = measure_tracing(1 if options.quick else 3, scale)
    hand_over = hand_over_us(int(5000 * scale))
    budgets, steps = _measure_calls(scale)
    report = Report(machine, ladder, hand_over, budgets, steps, tracing)
    print(as_text(report))
    if options.json is not None:
        options.json.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")
    return 0 if all(budget.stages for budget in budgets) else 1


def _measure_calls(scale: float) -> tuple[list[Budget], list[Step]]:
    # One CPU: every task goes to the same worker, which is the one that is probed.
    skate.init(address="local", num_cpus=1)
    try:
        actor: Any = skate.remote(num_cpus=0)(probes.Probed).remote()
        kinds = (_task_kind(), _actor_kind(actor))
        budgets = [_measure_kind(kind, scale) for kind in kinds]
        return budgets, measure_steps()
    finally:
        skate.shutdown()


def _task_kind() -> Kind:
    functions = [
        skate.remote(function).remote
        for function in (
            probes.empty,
            probes.stamped,
            probes.probe_worker,
            probes.unprobe_worker,
            probes.take_marks,
            probes.worker_costs,
        )
    ]
    return Kind("task", *functions)


def _actor_kind(actor: Any) -> Kind:
    methods = (
        actor.empty,
        actor.stamped,
        actor.probe_worker,
        actor.unprobe_worker,
        actor.take_marks,
        actor.worker_costs,
    )
    return Kind("actor call", *(method.remote for method in methods))


def _measure_kind(kind: Kind, scale: float) -> Budget:
    budget = Budget(kind.name)
    sync, rounds = int(5000 * scale), max(2, int(40 * scale))
    for _ in range(max(200, sync // 5)):
        skate.get(kind.empty())
    samples: list[float] = []

    def one_at_a_time(count: int) -> None:
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            skate.get(kind.empty())
            samples.append((time.perf_counter_ns() - start_ns) / 1e3)

    def pipelined(batches: int) -> None:
        for _ in range(batches):
            start_ns = time.perf_counter_ns()
            skate.get([kind.empty() for _ in range(BATCH)])
            samples.append((time.perf_counter_ns() - start_ns) / 1e3 / BATCH)

    budget.sync_threads = _thread_costs(kind, sync, lambda: one_at_a_time(sync))
    budget.sync_us = statistics.median(samples)
    budget.sync_p90_us = statistics.quantiles(samples, n=10)[-1]
    _stages(kind, sync, budget)
    pipelined(max(2, rounds // 5))
    samples.clear()
    budget.async_threads = _thread_costs(kind, rounds * BATCH, lambda: pipelined(rounds))
    budget.async_us = statistics.median(samples)
    worker_pid = skate.get(kind.costs())[0]
    pids = [os.getpid(), worker_pid, _raylet_pid()]
    budget.syscalls = {
        "one at a time": count_syscalls(pids, TRACED_CALLS, lambda: one_at_a_time(TRACED_CALLS)),
        "pipelined": count_syscalls(
            pids, TRACED_BATCHES * BATCH, lambda: pipelined(TRACED_BATCHES)
        ),
    }
    return budget


def _thread_costs(kind: Kind, calls: int, run: Callable[[], None]) -> list[ThreadCost]:
    pid, worker_before = skate.get(kind.costs())
    driver_before = probes.thread_costs()
    run()
    driver_after = probes.thread_costs()
    same_pid, worker_after = skate.get(kind.costs())
    if same_pid != pid:
        raise RuntimeError("another worker served the calls; run it again on a quiet machine")
    return [
        ThreadCost(
            f"{side} {'I/O' if name == 'skate-io' else name} thread",
            (after[name][0] - before[name][0]) / calls / 1e3,
            (after[name][1] - before[name][1]) / calls,
        )
        for side, before, after in (
            ("driver", driver_before, driver_after),
            ("worker", worker_before, worker_after),
        )
        for name in ("main", "skate-io")
    ]


def _stages(kind: Kind, calls: int, budget: Budget) -> None:
    """Probe both sides, make calls, and split each at its stamps."""
    skate.get(kind.probe())
    probes.probe_connections("d")
    undo = probes.probe_waits()
    begin, end = probes.marker("d.call"), probes.marker("d.returned")
    try:
        for _ in range(200):
            skate.get(kind.stamped())
        skate.get(kind.marks())
        probes.take_marks()
        for _ in range(calls):
            begin(probes.now_ns())
            skate.get(kind.stamped())
            end(probes.now_ns())
        marks = probes.take_marks()
    finally:
        undo()
        probes.unprobe_connections()
    marks.update(skate.get(kind.marks()))
    skate.get(kind.unprobe())
    whole = [spans for spans in _split(marks) if spans]
    whole.sort(key=sum)
    # The middle half: its means add up, unlike medians, and it holds no pause of the machine.
    middle = whole[len(whole) // 4 : -(len(whole) // 4) or None]
    if middle:
        means = [statistics.fmean(spans) / 1e3 for spans in zip(*middle, strict=True)]
        budget.stages = [(who, what, us) for (who, what, _), us in zip(STAGES, means, strict=True)]
        budget.probed_us = sum(means)


def _split(marks: probes.Marks) -> list[list[int]]:
    """For each call the ns of every stage; empty when a stage did not occur in its order."""
    calls: list[list[int]] = []
    for start_ns, end_ns in zip(marks["d.call"], marks["d.returned"], strict=True):
        at = start_ns
        spans: list[int] = []
        for _, _, label in STAGES:
            times = marks.get(label, [])
            place = bisect.bisect_left(times, at)
            if place == len(times) or times[place] > end_ns:
                spans = []
                break
            spans.append(times[place] - at)
            at = times[place]
        calls.append(spans)
    return calls


def _raylet_pid() -> int:
    sock: socket.socket = require_core().raylet._connection._sock
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def as_text(report: Report) -> str:
    """The report for people, in Markdown."""
    lines = [f"{report.machine}", "", "| round trip | us |", "| --- | ---: |"]
    lines += [f"| {name} | {us:.1f} |" for name, us in report.ladder.items()]
    lines += [f"| {one.kind}, one at a time | {one.sync_us:.1f} |" for one in report.budgets]
    lines += [f"| a lock, from release to the sleeper's run | {report.hand_over_us:.1f} |", ""]
    for budget in report.budgets:
        lines += _budget_lines(budget)
    lines += ["| thread | step of a pipelined task, alone | us |", "| --- | --- | ---: |"]
    lines += [f"| {step.thread} | {step.name} | {step.us:.2f} |" for step in report.steps]
    lines += ["", "price of tracing:"]
    tracing = report.tracing
    if isinstance(tracing, str):
        return "\n".join([*lines, f"skipped: {tracing}"])
    lines += ["| workload | off, us | on, us | ratio |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {one.workload} | {one.off_us:.1f} | {one.on_us:.1f} | {one.on_us / one.off_us:.2f} |"
        for one in tracing.prices
    ]
    return "\n".join([*lines, f"spans received: {tracing.spans} of {tracing.spans_made}"])


def _budget_lines(budget: Budget) -> list[str]:
    lines = [
        (
            f"{budget.kind}, one at a time: median {budget.sync_us:.1f} us, nine in ten within "
            f"{budget.sync_p90_us:.1f}; with stamps {budget.probed_us:.1f}"
        ),
        "",
        "| who | what | us | share |",
        "| --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {who} | {what} | {us:.1f} | {us / budget.probed_us:.0%} |"
        for who, what, us in budget.stages
    ]
    lines += ["", f"{budget.kind}, pipelined: {budget.async_us:.2f} us", ""]
    lines += ["| thread | one at a time: CPU us | sleeps | pipelined: CPU us | sleeps |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {s.thread} | {s.cpu_us:.1f} | {s.sleeps:.2f} | {a.cpu_us:.2f} | {a.sleeps:.4f} |"
        for s, a in zip(budget.sync_threads, budget.async_threads, strict=True)
    ]
    lines += ["", "system calls per call (strace):"]
    for name, found in budget.syscalls.items():
        if isinstance(found, str):
            lines.append(f"- {name}: skipped, {found}")
            continue
        for process, counts in zip(("driver", "worker", "raylet"), found, strict=True):
            text = ", ".join(f"{call} {count:g}" for call, count in counts.items()) or "none"
            lines.append(f"- {name}, {process}: {text}")
    return [*lines, ""]


if __name__ == "__main__":
    sys.exit(main())
