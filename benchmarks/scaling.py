"""What one call, task or object costs as there are more of them.

    python -m benchmarks.scaling [--quick] [--only actors,queue] [--json FILE] [--plots DIR]

Runs in the interpreter's own environment, which must have Skate. Every point is measured up to
three times, the smallest is reported (whatever else runs on the machine only adds), and no further
repetition starts once a point has taken `POINT_S`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import skate
from benchmarks.machine_facts import machine_facts
from benchmarks.svg_plot import Line, plot
from skate.cluster_utils import Cluster

POINT_S = 8.0
REPETITIONS = 3
KIB = 1024
CALLS = 20_000
CPUS = 2
MEMORY_FROM = 100_000


@dataclass(frozen=True, slots=True)
class Point:
    """`value` at `count`, in the unit of its series."""

    count: int
    value: float


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot."""

    plot: str
    name: str
    unit: str
    points: list[Point]


# What a measurement yields: the series and its point.
Found = tuple[str, str, Point]


class Echo:
    """The called actor."""

    def call(self) -> bytes:
        """Do nothing."""
        return b"ok"


class Caller:
    """An actor that submits."""

    def tasks(self, count: int) -> None:
        """Submit empty tasks at once and get them all."""
        function = skate.remote(_empty)
        skate.get([function.remote() for _ in range(count)])

    def calls(self, actor: Any, count: int) -> None:
        """Make calls at once and get them all."""
        skate.get([actor.call.remote() for _ in range(count)])


def _empty() -> bytes:
    return b"ok"


def _wait_for_file(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)


def measure_actors(counts: Sequence[int], calls: int) -> Iterator[Found]:
    """One driver spreads calls over 1 to 64 actors."""
    actor_class = skate.remote(num_cpus=0)(Echo)
    actors: list[Any] = []
    for count in counts:
        actors += [actor_class.remote() for _ in range(count - len(actors))]
        skate.get([actor.call.remote() for actor in actors])
        yield "pipelined", "us", Point(count, _least(partial(_pipelined_us, actors, calls)))
        yield "one at a time", "us", Point(count, _least(partial(_in_turn_us, actors, calls // 20)))
    for actor in actors:
        skate.kill(actor)


def _pipelined_us(actors: list[Any], calls: int) -> float:
    rounds = max(1, calls // len(actors))
    return _per_call_us(
        rounds * len(actors),
        lambda: skate.get([actor.call.remote() for _ in range(rounds) for actor in actors]),
    )


def _in_turn_us(actors: list[Any], calls: int) -> float:
    rounds = max(1, calls // len(actors))
    return _per_call_us(
        rounds * len(actors),
        lambda: [skate.get(actor.call.remote()) for _ in range(rounds) for actor in actors],
    )


def measure_callers(counts: Sequence[int], calls: int) -> Iterator[Found]:
    """Several actors submit at once: tasks to the shared workers, or calls, each to an actor of
    its own.

    Wall time over all calls of all callers, so perfect sharing of the machine is a flat line.
    """
    caller_class, actor_class = skate.remote(num_cpus=0)(Caller), skate.remote(num_cpus=0)(Echo)
    pairs: list[tuple[Any, Any]] = []
    for count in counts:
        pairs += [(caller_class.remote(), actor_class.remote()) for _ in range(count - len(pairs))]
        _tasks_us(pairs, 10 * count)
        _calls_us(pairs, 10 * count)
        yield "tasks", "us", Point(count, _least(partial(_tasks_us, pairs, calls)))
        yield "actor calls", "us", Point(count, _least(partial(_calls_us, pairs, calls)))
    for caller, actor in pairs:
        skate.kill(caller)
        skate.kill(actor)


def _tasks_us(pairs: list[tuple[Any, Any]], calls: int) -> float:
    each = calls // len(pairs)
    return _per_call_us(
        each * len(pairs), lambda: skate.get([caller.tasks.remote(each) for caller, _ in pairs])
    )


def _calls_us(pairs: list[tuple[Any, Any]], calls: int) -> float:
    each = calls // len(pairs)
    return _per_call_us(
        each * len(pairs),
        lambda: skate.get([caller.calls.remote(actor, each) for caller, actor in pairs]),
    )


def measure_queue(counts: Sequence[int], calls: int) -> Iterator[Found]:
    """Tasks queue while the workers are held; then they are let go and all are got."""
    del calls
    function, hold = skate.remote(_empty), skate.remote(_wait_for_file)
    skate.get([function.remote() for _ in range(1000)])
    for count in counts:
        best = [float("inf")] * 2
        queued_bytes = 0
        started_s = time.perf_counter()
        for _ in range(REPETITIONS):
            gc.collect()
            with tempfile.TemporaryDirectory() as folder:
                gate = Path(folder) / "gate"
                held = [hold.remote(str(gate)) for _ in range(CPUS)]
                before_bytes = _resident_bytes()
                start_s = time.perf_counter()
                refs = [function.remote() for _ in range(count)]
                submitted_s = time.perf_counter()
                queued_bytes = max(queued_bytes, _resident_bytes() - before_bytes)
                gate.touch()
                skate.get(refs)
                finished_s = time.perf_counter()
                skate.get(held)
            del refs, held
            best[0] = min(best[0], (submitted_s - start_s) / count * 1e6)
            best[1] = min(best[1], (finished_s - submitted_s) / count * 1e6)
            if time.perf_counter() - started_s > POINT_S:
                break
        yield "submit", "us", Point(count, best[0])
        yield "run and get", "us", Point(count, best[1])
        # Fewer tasks live partly in memory that the allocator has kept from before.
        if count >= MEMORY_FROM:
            yield "memory of a queued task", "KiB", Point(count, queued_bytes / count / KIB)


def measure_objects(counts: Sequence[int], calls: int) -> Iterator[Found]:
    """Small objects are put, got in one `get`, and dropped."""
    del calls
    for count in counts:
        best = [float("inf")] * 3
        started_s = time.perf_counter()
        for _ in range(REPETITIONS):
            gc.collect()
            times = [time.perf_counter()]
            refs = [skate.put(number) for number in range(count)]
            times.append(time.perf_counter())
            skate.get(refs)
            times.append(time.perf_counter())
            del refs
            times.append(time.perf_counter())
            spans = itertools.pairwise(times)
            best = [min(b, (e - s) / count * 1e6) for b, (s, e) in zip(best, spans, strict=True)]
            if time.perf_counter() - started_s > POINT_S:
                break
        for name, value in zip(("put", "get", "drop"), best, strict=True):
            yield name, "us", Point(count, value)


def measure_nodes(counts: Sequence[int], calls: int) -> Iterator[Found]:
    """Tasks of one driver on clusters of more and more nodes of this machine, one CPU each.

    The machine has no more processors for it, so a flat line means that a node costs nothing.
    """
    for count in counts:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1}, connect=True)
        try:
            for _ in range(count - 1):
                cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            task = skate.remote(_empty)
            run = partial(_burst_us, task, calls)
            run()
            yield "tasks", "us", Point(count, _least(run))
        finally:
            skate.shutdown()
            cluster.shutdown()


def _burst_us(task: Any, calls: int) -> float:
    return _per_call_us(calls, lambda: skate.get([task.remote() for _ in range(calls)]))


@dataclass(frozen=True, slots=True)
class Subject:
    """A family of series: what it is called, its axis, its counts, how it is measured."""

    title: str
    axis: str
    counts: tuple[int, ...]
    quick_counts: tuple[int, ...]
    measure: Callable[[Sequence[int], int], Iterator[Found]]
    has_own_clusters: bool = False


SUBJECTS = {
    "actors": Subject(
        "An actor call, by the number of actors",
        "actors called by one driver",
        (1, 2, 4, 8, 16, 32, 64),
        (1, 4),
        measure_actors,
    ),
    "callers": Subject(
        "A task or call, by the number of callers",
        "actors that submit at once (wall time over all their calls)",
        (1, 2, 4, 8),
        (1, 2),
        measure_callers,
    ),
    "nodes": Subject(
        "A task, by the number of nodes",
        "nodes of one CPU on one machine",
        (1, 2, 4, 8),
        (1, 2),
        measure_nodes,
        has_own_clusters=True,
    ),
    "queue": Subject(
        "A task, by the number queued",
        "tasks queued",
        (100, 1000, 10_000, 100_000, 1_000_000),
        (100, 10_000),
        measure_queue,
    ),
    "objects": Subject(
        "A small object, by the number held",
        "objects",
        (100, 1000, 10_000, 100_000),
        (100, 10_000),
        measure_objects,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few points: does it run at all")
    parser.add_argument("--only", default=",".join(SUBJECTS), help="subjects, comma-separated")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write DIR/scaling-*.svg")
    options = parser.parse_args(arguments)
    machine = machine_facts()
    series: list[Series] = []
    for key in options.only.split(","):
        subject = SUBJECTS.get(key)
        if subject is None:
            parser.error(f"there is no subject {key!r}; there are {', '.join(SUBJECTS)}")
        series += _measure(key, subject, is_quick=options.quick)
    if options.json is not None:
        document = {
            "machine": dataclasses.asdict(machine),
            "is_quick": options.quick,
            "series": [dataclasses.asdict(one) for one in series],
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
        _write_plots(options.plots, series)
    print(f"\n{machine}")
    return 0


def _measure(key: str, subject: Subject, *, is_quick: bool) -> list[Series]:
    """All series of a subject, in a cluster of its own."""
    counts = subject.quick_counts if is_quick else subject.counts
    found: dict[str, Series] = {}
    print(f"\n{subject.title}\n{'':>26}" + "".join(f"{count:>11,}" for count in counts))
    started_s = time.perf_counter()
    if not subject.has_own_clusters:
        skate.init(address="local", num_cpus=CPUS)
    try:
        for name, unit, point in subject.measure(counts, CALLS // 10 if is_quick else CALLS):
            found.setdefault(name, Series(key, name, unit, [])).points.append(point)
    finally:
        skate.shutdown()
    for one in found.values():
        values = {point.count: f"{point.value:.2f}" for point in one.points}
        cells = "".join(f"{values.get(count, '-'):>11}" for count in counts)
        print(f"{one.name + ' (' + one.unit + ')':26}{cells}")
    print(f"took {time.perf_counter() - started_s:.1f} s", file=sys.stderr)
    return list(found.values())


def _write_plots(folder: Path, series: Sequence[Series]) -> None:
    grouped: dict[tuple[str, str], list[Line]] = {}
    for one in series:
        line = Line(one.name, [(float(p.count), p.value) for p in one.points])
        # A cost of 100 us beside one of 10 would press the smaller one flat.
        part = one.name.replace(" ", "-") if one.unit != "us" or one.name == "one at a time" else ""
        grouped.setdefault((one.plot, part), []).append(line)
    for (key, part), lines in grouped.items():
        subject = SUBJECTS[key]
        unit = "KiB" if "memory" in part else "microseconds each"
        title = subject.title + (f": {lines[0].name}" if part else "")
        name = f"scaling-{key}{'-' + part if part else ''}.svg"
        (folder / name).write_text(plot(title, subject.axis, unit, lines))


def _least(sample: Callable[[], float]) -> float:
    started_s = time.perf_counter()
    least = float("inf")
    for _ in range(REPETITIONS):
        least = min(least, sample())
        if time.perf_counter() - started_s > POINT_S:
            break
    return least


def _per_call_us(calls: int, run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return (time.perf_counter() - start_s) / calls * 1e6


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    # Workers find what they run by this name; as `__main__` it would travel by value.
    from benchmarks.scaling import main as _main

    sys.exit(_main())
