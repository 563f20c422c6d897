"""System calls of live processes, counted by strace."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ATTACH_S = 5.0
POLL_S = 0.02
LEAST_TOTAL = 0.02  # per call: a process with fewer has no part in the calls
SHOWN_SHARE = 0.02  # of all: below it, timers, and this module's own look at /proc


def count_syscalls(
    pids: Sequence[int], calls: int, run: Callable[[], None]
) -> list[dict[str, float]] | str:
    """System calls of each process per call while `run` makes `calls` of them.

    A text instead says why there is none: no strace, or no permission to trace.
    """
    if shutil.which("strace") is None:
        return "strace is not installed"
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{pid}.txt" for pid in pids]
        tracers = [
            subprocess.Popen(
                ["strace", "-f", "-c", "-o", str(file), "-p", str(pid)],
                stderr=subprocess.DEVNULL,
            )
            for pid, file in zip(pids, files, strict=True)
        ]
        try:
            if not all(_is_traced(pid) for pid in pids):
                return "strace may not attach to the processes"
            run()
        finally:
            for tracer in tracers:
                tracer.send_signal(signal.SIGINT)
            for tracer in tracers:
                tracer.wait()
        return [_parse(file.read_text(), calls) for file in files]


def _is_traced(pid: int) -> bool:
    deadline_s = time.monotonic() + ATTACH_S
    while time.monotonic() < deadline_s:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        if all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks):
            return True
        time.sleep(POLL_S)
    return False


def _parse(text: str, calls: int) -> dict[str, float]:
    """Rows are: % time, seconds, usecs/call, calls, [errors], name."""
    counts: dict[str, float] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdecimal() and fields[-1] != "total":
            counts[fields[-1]] = int(fields[3]) / calls
    least = SHOWN_SHARE * max(LEAST_TOTAL, sum(counts.values()))
    shown = [(name, round(count, 4)) for name, count in counts.items() if count >= least]
    return dict(sorted(shown, key=lambda item: -item[1]))
