"""``python -m skate_sim``: run a seed, many seeds, or the measurements.

::

    python -m skate_sim run --seed 17 --trace          one run, with everything that happened
    python -m skate_sim run --seed 17 --shrink         the same failure with fewer actions
    python -m skate_sim run --seeds 20000 --jobs 2     many, with a summary
    python -m skate_sim measure                        cost and growth of the machines' work

The exit status is 1 when a seed failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from skate_sim.measure import as_records, measure, table
from skate_sim.runs import bound, explain, run_many, run_seed, shrink
from skate_sim.scenarios import NAMES

PROGRESS_SEEDS = 1000


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m skate_sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run seeds")
    run.add_argument("--seed", type=int, default=None, help="run this one")
    run.add_argument("--seeds", type=int, default=2000, help="run so many")
    run.add_argument("--first", type=int, default=0, help="the first of them")
    run.add_argument("--scenario", choices=NAMES, default="", help="instead of the seed's own")
    run.add_argument("--trace", action="store_true", help="show everything that happened")
    run.add_argument("--shrink", action="store_true", help="leave out what a failure does not need")
    run.add_argument("--jobs", type=int, default=1, help="processes")
    cost = commands.add_parser("measure", help="cost and growth of the machines' work")
    cost.add_argument("--short", action="store_true", help="without the largest sizes")
    cost.add_argument("--json", default="", help="write the rows to this file too")
    options = parser.parse_args(arguments)
    if options.command == "measure":
        return _measure(options)
    if options.seed is not None:
        return _run_one(options)
    return _run_many(options)


def _measure(options: argparse.Namespace) -> int:
    rows = []
    for row in measure(is_short=options.short):
        rows.append(row)
        sys.stderr.write(f"{row.what}, {row.size:,} {row.of}: {row.us_per_event:g} us\n")
    sys.stdout.write(table(rows) + "\n")
    if options.json:
        Path(options.json).write_text(json.dumps(as_records(rows), indent=1) + "\n", "utf-8")
    return 0


def _run_one(options: argparse.Namespace) -> int:
    result = run_seed(options.seed, options.scenario, trace=options.trace or options.shrink)
    if options.shrink and result.problem:
        before = len(result.actions)
        result = shrink(result)
        sys.stdout.write(f"{len(result.actions)} of {before} actions: {result.actions}\n")
    shown = len(result.lines) if options.trace else 120
    sys.stdout.write(explain(result, lines_max=shown))
    sys.stdout.write(f"{result.events} events, hash {result.digest}\n")
    return 1 if result.problem else 0


def _run_many(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds)
    counts: Counter[str] = Counter()
    scenarios: Counter[str] = Counter()
    failed: list[tuple[int, str, str]] = []
    began_s = time.monotonic()
    for result in run_many(seeds, options.scenario, jobs=options.jobs):
        counts.update(result.counts)
        counts["events"] += result.events
        scenarios[result.scenario] += 1
        done = scenarios.total()
        if done % PROGRESS_SEEDS == 0:
            sys.stderr.write(f"{done:,} seeds, {len(failed)} failed\n")
        if result.problem:
            failed.append((result.seed, result.scenario, result.problem))
            sys.stdout.write(f"seed {result.seed} ({result.scenario}): {result.problem[:300]}\n")
            sys.stdout.flush()
    took_s = time.monotonic() - began_s
    sys.stdout.write(
        f"{len(seeds)} seeds in {took_s:.0f} s ({len(seeds) / took_s:.1f}/s),"
        f" {len(failed)} failed\n"
    )
    for name, count in sorted(scenarios.items()):
        sys.stdout.write(f"  {count:8,} {name}\n")
    for what, count in sorted(counts.items()):
        sys.stdout.write(f"  {count:8,} {what}\n")
    if failed:
        seed, name, _ = failed[0]
        sys.stdout.write(explain(run_seed(seed, name, trace=True)))
        return 1
    sys.stdout.write(bound(len(seeds)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
