"""How long one object takes to several nodes, on Skate and beside it on Ray.

``python -m benchmarks.broadcast [--nodes 4] [--megabytes 256] [--rounds 3] [--peers skate,ray]``.
A head and as many nodes, all on this machine, made with each peer's ``cluster_utils.Cluster``; an
actor on each node is given the object by reference and answers with its node and a checksum. The
time runs from the first call to the last answer. *First*: into memory that the stores have never
used; *repeated*: into memory that earlier copies left. Peers take turns, each turn in fresh
processes in the peer's own environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.environments import InstallationError, ensure_environment
from benchmarks.machine_facts import MachineFacts, machine_facts
from benchmarks.rounds import SCRATCH_PARENT, end, peer_variables

PEERS = ("skate", "ray")
RESULTS = Path(__file__).resolve().parent / "results"
MB = 1_000_000
REPEATS = 3
TURN_LIMIT_S = 180.0
LOG_LINES = 15
ROWS = ("first", "repeated")

Samples = dict[str, list[float]]
"""Seconds by row."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    nodes: int
    megabytes: int
    rounds: int
    repeats: int
    peers: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 when a turn failed, 2 when nothing could be measured."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    peers = tuple(parsed.peers.split(",")) if parsed.peers else PEERS[: 1 if parsed.quick else None]
    if unknown := [peer for peer in peers if peer not in PEERS]:
        print(f"broadcast: unknown peers {', '.join(unknown)}", file=sys.stderr)
        return 2
    options = Options(parsed.nodes, parsed.megabytes, parsed.rounds, REPEATS, peers)
    if parsed.quick:
        options = Options(nodes=2, megabytes=8, rounds=1, repeats=1, peers=peers)
    if min(options.nodes, options.megabytes, options.rounds) < 1:
        print("broadcast: nodes, megabytes and rounds are at least 1", file=sys.stderr)
        return 2
    try:
        pythons = {
            peer: sys.executable if parsed.in_place else ensure_environment(peer) for peer in peers
        }
    except InstallationError as error:
        print(error, file=sys.stderr)
        return 2
    machine = machine_facts()
    samples, problems = run_rounds(options, pythons)
    text = render(options, machine, samples)
    print("\n".join([text, *problems]))
    document = json.dumps(as_json(options, machine, samples, problems), indent=1)
    if parsed.json:
        Path(parsed.json).write_text(document)
    if parsed.save:
        path = RESULTS / f"{time.strftime('%Y-%m-%d')}-broadcast"
        path.with_suffix(".json").write_text(document + "\n")
        path.with_suffix(".md").write_text(text + "\n")
    return 1 if problems else 0


def run_rounds(
    options: Options, pythons: Mapping[str, str]
) -> tuple[dict[str, Samples], list[str]]:
    """Seconds by peer and row, and what went wrong."""
    processes.adopt_orphans()
    samples: dict[str, Samples] = {peer: {row: [] for row in ROWS} for peer in pythons}
    problems: list[str] = []
    for number in range(1, options.rounds + 1):
        for peer, python in pythons.items():
            load = os.getloadavg()[0]
            seconds, problem = run_turn(options, peer, python)
            if problem:
                problems.append(f"Failed: {peer} in round {number}: {problem}")
            samples[peer]["first"] += seconds[:1]
            samples[peer]["repeated"] += seconds[1:]
            figures = " ".join(f"{each:.3f}" for each in seconds)
            print(f"round {number}: {peer}: {figures} s, load {load:.1f}", file=sys.stderr)
    return samples, problems


def run_turn(options: Options, peer: str, python: str) -> tuple[list[float], str]:
    """One cluster: its seconds, or why there are none. Nothing of it is left afterwards."""
    before = frozenset(processes.descendants(os.getpid()))
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=SCRATCH_PARENT))
    result, log = scratch / "seconds.json", scratch / "output.log"
    sizes = [str(options.nodes), str(options.megabytes * MB), str(options.repeats)]
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                [python, "-m", "benchmarks.broadcast_round", peer, *sizes, str(result)],
                cwd=scratch,
                env=peer_variables(scratch),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            status = child.wait(TURN_LIMIT_S)
            problem = f"it ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            problem = f"not finished within {TURN_LIMIT_S:g} s"
        finally:
            end(child)
            processes.end_descendants(before)
        if problem:
            tail = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            return [], "\n".join([problem, *tail])
        return json.loads(result.read_text()), ""
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def render(options: Options, machine: MachineFacts, samples: Mapping[str, Samples]) -> str:
    """The table in Markdown. A ratio above 1: the first peer takes that many times less."""
    first, *others = samples
    heads = ["s", *samples, *(f"{first} : {other}" for other in others)]
    lines = [f"| {' | '.join(heads)} |", "| --- " + "| ---: " * (len(heads) - 1) + "|"]
    for row in ROWS:
        cells = [row, *(_spread(taken[row]) for taken in samples.values())]
        for other in others:
            pair = samples[first][row], samples[other][row]
            ratio = statistics.median(pair[1]) / statistics.median(pair[0]) if all(pair) else 0.0
            cells.append(f"{ratio:.2f}" if ratio else "-")
        lines.append(f"| {' | '.join(cells)} |")
    title = f"{options.megabytes} MB from a head to {options.nodes} nodes of one machine"
    return "\n".join([f"{title}: median [fastest-slowest]", "", *lines, "", machine.line()])


def as_json(
    options: Options,
    machine: MachineFacts,
    samples: Mapping[str, Samples],
    problems: Sequence[str],
) -> dict[str, Any]:
    """Everything, every sample included."""
    return {
        "options": dataclasses.asdict(options),
        "machine": dataclasses.asdict(machine),
        "seconds": samples,
        "problems": list(problems),
    }


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "failed"
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}-{max(seconds):.3f}]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=4, help="beside the head")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="default: skate,ray; with --quick: skate")
    parser.add_argument("--quick", action="store_true", help="8 MB to two nodes, one round")
    parser.add_argument("--in-place", action="store_true", help="the running interpreter has them")
    parser.add_argument("--json", metavar="PATH", help="write every sample there")
    parser.add_argument("--save", action="store_true", help="keep the results under results/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
