"""How many leases one raylet grants and takes back a second, and what one on another node costs.

``python -m benchmarks.leases [--leases 5000] [--rounds 5] [--quick] [--save]``. A process that
speaks to its raylet as a driver does, without tasks, asks for a worker with one CPU and gives it
back as soon as it has it; the workers run already, and the time of one is from the request to the
grant. Two nodes of ``cluster_utils.Cluster`` on this machine, the first with 2 CPUs, the second
with 8:

- *one at a time*: of the first node, to which the request is bound, so that the policy does not
  weigh the other; how many a second is what a lone owner gets;
- *16 under way*: the same with 16 requests that compete for the 2 CPUs: what one raylet can do. The
  time of each has the others before it in it;
- *spilled*: the request is not bound, and the first node is full, so its raylet asks the second on
  the process's behalf (decision 0006): one at a time again, so that *one at a time* is what it
  costs without the other node. All rows have a turn in each round.

Median of the rounds' medians, and of their 99th percentiles, with the range over rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine_facts import machine_facts
from skate.cluster_utils import Cluster
from skate_rpc import node_protocol as node
from tests.raw_process import RawProcess

ROWS = ("one at a time", "16 under way", "spilled")
WIDE = 16
CPU = 10_000  # units
HERE_CPUS, THERE_CPUS = 2, 8
WARM_UP = 50
SPILLED_SHARE = 5  # there are so many times fewer of these, which take longer
SERIES_S = 120.0
HELD_S = 30.0
RESULTS = Path(__file__).resolve().parent / "results"


class Series:
    """The latencies of one row in one round, in seconds, and how long it took as a whole."""

    def __init__(self, latencies_s: list[float], elapsed_s: float) -> None:
        ordered = sorted(latencies_s)
        self.per_second = len(ordered) / elapsed_s
        self.p50_us = 1e6 * statistics.median(ordered)
        self.p99_us = 1e6 * ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]

    def to_json(self) -> dict[str, float]:
        """The three figures."""
        return {"per_second": self.per_second, "p50_us": self.p50_us, "p99_us": self.p99_us}


class LeaseAsker(RawProcess):
    """A driver that asks for workers and gives them back, on the thread that hears the raylet."""

    def __init__(self, stream_endpoint: str, token: str) -> None:
        self._numbers = itertools.count(1)
        self._asked_s: dict[int, float] = {}
        self._latencies_s: list[float] = []
        self._left = 0  # to be asked for
        self._is_over = threading.Event()
        self._expected = b""
        self._strategy: dict[str, Any] = {}
        self._kept: list[bytes] | None = None  # leases that are not given back, while they are held
        self._problem = ""
        super().__init__(stream_endpoint, token)

    def series(self, count: int, width: int, node_id: str, *, is_bound: bool) -> Series:
        """Ask for ``count`` leases, ``width`` under way; each must come from this node.

        ``is_bound``: the requests say so, too.
        Raises ``RuntimeError`` when one comes from elsewhere, is refused, or does not come.
        """
        self._latencies_s, self._left = [], count
        self._expected = bytes.fromhex(node_id)
        self._strategy = {"node_id": self._expected} if is_bound else {}
        self._is_over.clear()
        began_s = time.perf_counter()
        for _ in range(min(width, count)):
            self._ask()
        self._await("the series did not end", SERIES_S)
        return Series(self._latencies_s, time.perf_counter() - began_s)

    def hold(self, count: int, node_id: str) -> list[bytes]:
        """Take ``count`` leases of one node and keep them; returns their ids."""
        self._kept, self._expected = [], bytes.fromhex(node_id)
        self._left, self._strategy = count, {"node_id": self._expected}
        self._is_over.clear()
        for _ in range(count):
            self._ask()
        self._await("the node was not filled", HELD_S)
        held, self._kept = self._kept, None
        return held

    def give_back(self, lease_ids: Sequence[bytes]) -> None:
        """Return leases that were held."""
        for lease_id in lease_ids:
            self.send(node.ReturnLease(lease_id))

    def _await(self, what: str, timeout_s: float) -> None:
        if not self._is_over.wait(timeout_s):
            raise RuntimeError(f"{what} within {timeout_s:g} s")
        if self._problem:
            raise RuntimeError(self._problem)

    def _ask(self) -> None:
        self._left -= 1
        number = next(self._numbers)
        self._asked_s[number] = time.perf_counter()
        self.send(node.RequestLease(number, {"CPU": CPU}, **self._strategy))

    def _take(self, batch: Sequence[Any]) -> None:
        for message in batch:
            if isinstance(message, node.LeaseGranted):
                self._granted(message)
            elif isinstance(message, node.LeaseRefused):
                self._fail(f"a lease was refused: {message.message}")
            else:
                super()._take([message])

    def _granted(self, grant: node.LeaseGranted) -> None:
        self._latencies_s.append(time.perf_counter() - self._asked_s.pop(grant.request_id))
        if grant.node_id != self._expected:
            self._fail(f"a lease came from node {grant.node_id.hex()}")
        if self._kept is None:
            self.send(node.ReturnLease(grant.lease_id))
            if self._left > 0:
                self._ask()
        else:
            self._kept.append(grant.lease_id)
        if not self._asked_s:
            self._is_over.set()

    def _fail(self, problem: str) -> None:
        self._problem = problem
        self._is_over.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leases")
    parser.add_argument("--leases", type=int, default=5000, help="of one row in one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="50 leases, one round")
    parser.add_argument("--save", action="store_true", help="keep the table under results/")
    options = parser.parse_args(arguments)
    leases, rounds = (50, 1) if options.quick else (options.leases, options.rounds)
    facts = machine_facts().line()
    samples = measure(leases, rounds)
    text = render(samples, leases, facts)
    print(text)
    if options.save:
        path = RESULTS / f"{time.strftime('%Y-%m-%d')}-leases"
        rows = {row: [one.to_json() for one in series] for row, series in samples.items()}
        document = {"leases": leases, "machine": facts, "rows": rows}
        path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        path.with_suffix(".md").write_text(text + "\n")
    return 0


def measure(leases: int, rounds: int) -> dict[str, list[Series]]:
    """Each row's series, one a round. Raises as :meth:`LeaseAsker.series`."""
    samples: dict[str, list[Series]] = {row: [] for row in ROWS}
    cluster = Cluster()
    try:
        here = cluster.add_node(num_cpus=HERE_CPUS)
        there = cluster.add_node(num_cpus=THERE_CPUS)
        cluster.wait_for_nodes()
        with LeaseAsker(here.stream_endpoint, here.token) as asker:
            for number in range(1 + rounds):  # the first starts the workers
                is_warm = number > 0
                for row in ROWS:
                    count = leases if is_warm else WARM_UP
                    if row == "spilled":
                        held = asker.hold(HERE_CPUS, here.node_id)
                        fewer = max(10, count // SPILLED_SHARE)
                        series = asker.series(fewer, 1, there.node_id, is_bound=False)
                        asker.give_back(held)
                    else:
                        width = WIDE if row == ROWS[1] else 1
                        series = asker.series(count, width, here.node_id, is_bound=True)
                    if is_warm:
                        samples[row].append(series)
    finally:
        cluster.shutdown()
    return samples


def render(samples: dict[str, list[Series]], leases: int, facts: str) -> str:
    """A table of medians and ranges."""
    lines = [
        f"Leases asked for and given back, {leases} a row and round (spilled: a fifth)",
        facts,
        "",
        "| median [range over rounds] | leases/s | p50, us | p99, us |",
        "| --- | --- | --- | --- |",
    ]
    for row, series in samples.items():
        cells = [
            _cell([one.per_second for one in series]),
            _cell([one.p50_us for one in series]),
            _cell([one.p99_us for one in series]),
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} [{min(values):.0f}-{max(values):.0f}]"


if __name__ == "__main__":
    sys.exit(main())
