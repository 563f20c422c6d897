"""What a start costs: ``init``, the first task, and the CPU time of driver, daemon and zygote.

Run it as ``python libs/api/benches/start.py [ROUNDS]``. Each round is a fresh driver. One round
before the others writes the bytecode, where that is not forbidden.
"""
# ruff: noqa: INP001, T201  A script that talks to a terminal.

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 8
UNITS = {
    "init_ms": "skate.init()",
    "first_ms": "the first task after it",
    "driver_ms": "CPU of the driver until then, its interpreter included",
    "daemon_ms": "CPU of the daemon until it is ready",
    "zygote_ms": "CPU of the zygote until it is ready",
    "shutdown_ms": "skate.shutdown()",
}


def main() -> None:
    """Print the least and the median of each figure."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    figures = [run_driver() for _ in range(rounds + 1)][1:]
    print(f"bytecode is written: {not sys.dont_write_bytecode}; load {os.getloadavg()[0]:.1f}")
    for name, what in UNITS.items():
        values = [figure[name] for figure in figures]
        print(f"{min(values):8.1f} {statistics.median(values):8.1f} ms  {what}")


def run_driver() -> dict[str, float]:
    """The figures of one fresh driver."""
    command = [sys.executable, "-P", __file__, "driver"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def drive() -> None:
    """Be the driver: start a cluster, run a task, print the figures."""
    import skate  # noqa: PLC0415 - the parent measures, and imports nothing of it

    begin_s = time.perf_counter()
    context = skate.init("local", num_cpus=2)
    ready_s = time.perf_counter()
    driver_ms = time.process_time() * 1e3
    node = json.loads(Path(context.address_info["session_dir"], "node.json").read_text())
    daemon_ms = cpu_ms(node["pid"])
    zygote_ms = cpu_ms(zygote_of(node["pid"]))
    first_s = time.perf_counter()
    skate.get(skate.remote(lambda: None).remote())
    done_s = time.perf_counter()
    skate.shutdown()
    figures = {
        "init_ms": (ready_s - begin_s) * 1e3,
        "first_ms": (done_s - first_s) * 1e3,
        "driver_ms": driver_ms,
        "daemon_ms": daemon_ms,
        "zygote_ms": zygote_ms,
        "shutdown_ms": (time.perf_counter() - done_s) * 1e3,
    }
    print(json.dumps(figures))


def zygote_of(daemon_pid: int) -> int:
    """The daemon's child of that name."""
    children = Path(f"/proc/{daemon_pid}/task/{daemon_pid}/children").read_text().split()
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): int(pid) for pid in children}
    return names["skate-zygote"]


def cpu_ms(pid: int) -> float:
    """CPU time of all live threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


if __name__ == "__main__":
    drive() if sys.argv[1:] == ["driver"] else main()
