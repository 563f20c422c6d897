"""Starting and ending: what goes wrong is named, and nothing stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import skate

CYCLES = 200
CLUSTERS = 20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    """Ids of this process's children; those of earlier tests may be among them."""
    tasks = Path("/proc/self/task")
    return {child for task in tasks.iterdir() for child in (task / "children").read_text().split()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.invariant("I16")
def test_cycles_of_init_and_shutdown_leave_the_process_as_it_was(session_root: Path) -> None:
    @skate.remote
    def one() -> int:
        return 1

    def cycle() -> None:
        skate.init(num_cpus=1)
        assert skate.get(one.remote(), timeout=20) == 1
        skate.shutdown()

    cycle()
    gc.collect()
    before = (
        open_files(),
        threading.active_count(),
        children(),
        dict(os.environ),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    )
    for _ in range(CYCLES):
        cycle()
    gc.collect()
    after = (
        open_files(),
        threading.active_count(),
        children(),
        dict(os.environ),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
    )
    assert after == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clusters_started_at_once_all_work(session_root: Path) -> None:
    program = (
        "import skate\nskate.init(num_cpus=1)\n"
        "@skate.remote\ndef f(n):\n    return n * 2\n"
        "assert skate.get([f.remote(n) for n in range(20)]) == [n * 2 for n in range(20)]\n"
        "print('done')"
    )
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(CLUSTERS)
    ]
    outcomes = [driver.communicate(timeout=200) for driver in drivers]
    failed = [err.decode() for out, err in outcomes if out != b"done\n"]
    assert not failed, f"{len(failed)} of {CLUSTERS} failed; the first: {failed[0]}"


def test_idle_cluster_is_at_most_three_processes(session_root: Path) -> None:
    before = children()
    skate.init(num_cpus=2)
    try:
        daemon = children() - before
        assert len(daemon) == 1
        below = Path(f"/proc/{next(iter(daemon))}/task")
        zygotes = {c for t in below.iterdir() for c in (t / "children").read_text().split()}
        assert len(zygotes) <= 1
    finally:
        skate.shutdown()


def test_second_init_is_refused_unless_asked_for(session_root: Path) -> None:
    skate.init(num_cpus=1)
    try:
        with pytest.raises(RuntimeError, match="ignore_reinit_error"):
            skate.init()
        skate.init(ignore_reinit_error=True)
        assert skate.is_initialized()
    finally:
        skate.shutdown()
    assert not skate.is_initialized()
    skate.shutdown()


def test_references_of_an_ended_session_are_refused(session_root: Path) -> None:
    skate.init(num_cpus=1)
    old = skate.put(1)
    skate.shutdown()
    skate.init(num_cpus=1)
    try:
        with pytest.raises(ValueError, match="session"):
            skate.get(old)
    finally:
        skate.shutdown()


def test_unusable_session_root_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("SKATE_TMPDIR", str(blocked))
    with pytest.raises(skate.exceptions.SkateError, match=str(blocked)):
        skate.init(num_cpus=1)
    assert not skate.is_initialized()


@pytest.mark.invariant("I1")
def test_zygote_that_dies_is_replaced_without_failing_a_task(session_root: Path) -> None:
    before = children()
    skate.init(num_cpus=2)
    try:

        @skate.remote(num_cpus=0.1)
        def pid() -> int:
            return os.getpid()

        first = skate.get(pid.remote())
        daemon = next(iter(children() - before))
        below = Path(f"/proc/{daemon}/task")
        pids = {int(c) for t in below.iterdir() for c in (t / "children").read_text().split()}
        zygote = next(
            p for p in pids if b"zygote" in Path(f"/proc/{p}/cmdline").read_bytes() and p != first
        )
        os.kill(zygote, signal.SIGKILL)

        @skate.remote
        class Fresh:
            def pid(self) -> int:
                return os.getpid()

        actors = [Fresh.remote() for _ in range(3)]
        assert len(set(skate.get([a.pid.remote() for a in actors], timeout=20))) == 3
    finally:
        skate.shutdown()
