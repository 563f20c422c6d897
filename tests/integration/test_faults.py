"""What is promised when processes die. Kills go to processes of the session under test only."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import skate

GONE_S = 3.0  # how long anything of a dead session may last
WAIT_S = 20.0
STARTS = [
    "import skate",
    "skate.init(num_cpus=2)",
    "@skate.remote\ndef f(n):\n    return n",
    "@skate.remote\nclass A:\n    def g(self):\n        return bytes(200_000)",
    "a = A.remote()",
    "while True:\n    skate.get([f.remote(n) for n in range(50)] + [a.g.remote()])",
]
DRIVER = "\n".join(STARTS)


def session_pids(root: Path) -> list[int]:
    """Every live process whose environment or command names the session root; never this one."""
    mark = str(root).encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = file.read()
            with open(f"/proc/{entry}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if mark in environment and state != "Z":
            found.append(int(entry))
    return found


def session_files(root: Path) -> list[str]:
    """What a session left on disk: sockets, tokens, logs, databases."""
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_socket() or (path.is_file() and "session_" in str(path.relative_to(root)))
    ]


def assert_nothing_is_left(root: Path) -> None:
    deadline = time.monotonic() + GONE_S
    while (pids := session_pids(root)) or (files := session_files(root)):
        if time.monotonic() > deadline:
            names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
            pytest.fail(f"left after {GONE_S} s: processes {pids} {names}, files {files or []}")
        files = []
        time.sleep(0.02)


def start_driver(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env={**os.environ, "SKATE_TMPDIR": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def moments(count: int, seed: int) -> list[float]:
    """Seconds after the start, half of them while ``init`` runs."""
    rng = random.Random(seed)
    return [rng.uniform(0.0, 0.8) if n % 2 else rng.uniform(0.0, 1.6) for n in range(count)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["sigkill", "ctrl-c"])
@pytest.mark.invariant("I15", "I16", "I29")
def test_driver_ended_at_any_moment_leaves_nothing(
    how: signal.Signals, session_root: Path, faults: int
) -> None:
    for moment_s in moments(max(1, faults // 2), seed=how):
        driver = start_driver(session_root)
        try:
            time.sleep(moment_s)
            driver.send_signal(how)
            driver.wait(WAIT_S)
        finally:
            driver.kill()
            driver.wait(WAIT_S)
        assert_nothing_is_left(session_root)


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "starts"


@pytest.mark.usefixtures("cluster")
class TestWorkers:
    @pytest.mark.invariant("I8")
    def test_killed_task_is_retried_and_its_result_is_right(self, pids: Path) -> None:
        @skate.remote
        def die_once(path: str) -> int:
            with open(path, "a") as file:
                file.write("x")
            if os.path.getsize(path) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return 42

        assert skate.get(die_once.remote(str(pids)), timeout=WAIT_S) == 42
        assert pids.read_text() == "xx"

    @pytest.mark.invariant("I7")
    def test_task_without_retries_starts_once_and_names_the_cause(self, pids: Path) -> None:
        @skate.remote(max_retries=0)
        def die(path: str) -> None:
            with open(path, "a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGSEGV)

        with pytest.raises(skate.exceptions.WorkerCrashedError, match="SIGSEGV"):
            skate.get(die.remote(str(pids)), timeout=WAIT_S)
        assert pids.read_text() == "x"

    def test_exit_code_of_a_worker_is_in_the_error(self) -> None:
        @skate.remote(max_retries=0)
        def leave() -> None:
            os._exit(7)

        with pytest.raises(skate.exceptions.WorkerCrashedError, match="7"):
            skate.get(leave.remote(), timeout=WAIT_S)

    def test_killed_actor_fails_its_calls_with_the_cause(self) -> None:
        actor: Any = Victim.remote()
        os.kill(skate.get(actor.pid.remote()), signal.SIGKILL)
        with pytest.raises(skate.exceptions.ActorDiedError, match="SIGKILL"):
            skate.get(actor.pid.remote(), timeout=WAIT_S)

    @pytest.mark.invariant("I11")
    def test_actor_restarts_as_often_as_it_may(self) -> None:
        actor: Any = Victim.options(max_restarts=2, max_task_retries=-1).remote()
        seen = set()
        for _ in range(2):
            pid = skate.get(actor.pid.remote(), timeout=WAIT_S)
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
        last = skate.get(actor.pid.remote(), timeout=WAIT_S)
        assert len(seen | {last}) == 3
        os.kill(last, signal.SIGKILL)
        with pytest.raises(skate.exceptions.ActorDiedError):
            skate.get(actor.pid.remote(), timeout=WAIT_S)

    @pytest.mark.invariant("I2")
    def test_random_worker_kills_lose_and_change_no_result(self, faults: int) -> None:
        rng = random.Random(7)

        @skate.remote(max_retries=-1)
        def square(n: int) -> tuple[int, int]:
            time.sleep(0.002)
            return n * n, os.getpid()

        for _ in range(max(1, faults // 3)):
            refs = [square.remote(n) for n in range(40)]
            victim = skate.get(refs[rng.randrange(3)], timeout=WAIT_S)[1]
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                pass  # retired already
            assert [v for v, _ in skate.get(refs, timeout=WAIT_S)] == [n * n for n in range(40)]

    @pytest.mark.invariant("I15")
    def test_children_of_a_killed_worker_end_with_it(self) -> None:
        actor: Any = Victim.remote()
        child = skate.get(actor.spawn.remote())
        os.kill(skate.get(actor.pid.remote()), signal.SIGKILL)
        deadline = time.monotonic() + GONE_S
        while os.path.exists(f"/proc/{child}"):
            assert time.monotonic() < deadline, "the worker's child lives on"
            time.sleep(0.02)


@skate.remote
class Victim:
    def pid(self) -> int:
        return os.getpid()

    def spawn(self) -> int:
        return subprocess.Popen(["sleep", "1000"]).pid
