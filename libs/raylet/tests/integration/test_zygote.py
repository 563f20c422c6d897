"""The zygote: what workers inherit, and what happens when it dies."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from skate_raylet import ZygoteStartError
from skate_raylet.service import zygote as ours
from skate_raylet.zygote_process import ZygoteProcess, spawn_zygote
from skate_rpc import node_protocol as node


def test_messages_agree_with_the_workers_side() -> None:
    from skate_worker import zygote as theirs

    for name in ("ZygoteBoot", "ForkRequest", "ForkReply"):
        fields = [
            [(field.name, str(field.type)) for field in msgspec.structs.fields(getattr(side, name))]
            for side in (ours, theirs)
        ]
        assert fields[0] == fields[1]


def test_killed_zygote_is_replaced_and_no_request_fails(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        first = await driver.lease()
        killed_pid = cluster.raylet._zygote.pid
        os.kill(killed_pid, signal.SIGKILL)
        numbers = [driver.request(env_vars={"N": str(n)}) for n in range(3)]
        for number in numbers:
            await driver.one(node.LeaseGranted, request_id=number)
        assert not driver.all(node.LeaseRefused)
        assert not driver.all(node.LeaseLost), "workers outlive their zygote"
        os.kill(first.pid, 0)
        assert cluster.raylet._zygote.pid not in {None, killed_pid}
        assert cluster.raylet.statistics().zygote_restarts == 1

    play(test, resources={"CPU": 100_000})


@pytest.mark.invariant("I1")
def test_zygote_killed_at_random_moments_of_a_burst_fails_no_request(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        numbers = [driver.request(env_vars={"N": str(n)}) for n in range(12)]
        for index, number in enumerate(numbers):
            await driver.one(node.LeaseGranted, request_id=number)
            if index in {2, 6} and cluster.raylet._zygote.pid:
                os.kill(cluster.raylet._zygote.pid, signal.SIGKILL)
        assert not driver.all(node.LeaseRefused)

    play(test, resources={"CPU": 200_000})


def test_zygote_that_never_starts_refuses_with_its_log(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        number = driver.request()
        refusal = await driver.one(node.LeaseRefused, request_id=number)
        assert refusal.kind == "worker_start_failed"
        assert "no such luck" in refusal.message

    command = (sys.executable, "-c", "import sys; sys.exit('no such luck')")
    play(test, zygote_command=command)


def test_waiting_for_the_first_zygote_returns_when_it_can_fork(play: Any) -> None:
    async def test(cluster: Any) -> None:
        await cluster.raylet.wait_zygote_ready(20.0)
        assert cluster.raylet.statistics().is_zygote_ready
        os.kill(cluster.raylet._zygote.pid, signal.SIGKILL)
        await (await cluster.driver()).lease()
        await cluster.raylet.wait_zygote_ready(0.1)  # a later death is no failure to start

    play(test)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import sys; sys.exit(3)", "exited with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_waiting_for_a_zygote_that_ends_says_how_it_ended(
    play: Any, code: str, status: str
) -> None:
    async def test(cluster: Any) -> None:
        with pytest.raises(ZygoteStartError, match="ended before it was ready") as caught:
            await cluster.raylet.wait_zygote_ready(20.0)
        assert caught.value.component == "zygote"
        assert caught.value.exit_status == status
        assert not cluster.raylet.statistics().is_zygote_ready
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    play(test, zygote_command=(sys.executable, "-c", code))


def test_waiting_for_a_zygote_that_hangs_ends_in_time(play: Any) -> None:
    async def test(cluster: Any) -> None:
        with pytest.raises(ZygoteStartError, match=r"not ready within 0\.01 s") as caught:
            await cluster.raylet.wait_zygote_ready(0.01)
        assert caught.value.exit_status == ""

    play(test, zygote_command=(sys.executable, "-c", "import time; time.sleep(600)"))


@pytest.mark.parametrize("is_dead", [False, True])
def test_zygote_spawned_ahead_becomes_the_first(play: Any, is_dead: bool) -> None:
    """One that died before anybody looked is replaced like any other."""
    early: list[ZygoteProcess] = []

    async def test(cluster: Any) -> None:
        await (await cluster.driver()).lease()
        zygote_pid = cluster.raylet._zygote.pid
        assert (zygote_pid != early[0].process.pid) == is_dead
        assert cluster.raylet.statistics().zygote_restarts == int(is_dead)

    def spawn(session_dir: str, node_id: bytes) -> ZygoteProcess:
        early.append(spawn_zygote(TINY_WORKER, session_dir, node_id, os.environ))
        if is_dead:
            os.kill(early[0].process.pid, signal.SIGKILL)
            os.waitid(os.P_PID, early[0].process.pid, os.WEXITED | os.WNOWAIT)
        return early[0]

    play(test, spawn_ahead=spawn)


def test_importing_the_spawn_loads_neither_grpc_nor_msgspec() -> None:
    code = "import sys, skate_raylet.zygote_process\n"
    code += "print(sorted({'grpc', 'google', 'msgspec', 'asyncio'} & set(sys.modules)))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_zygote_keeps_no_descriptor_and_no_thread_after_many_forks(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        await driver.lease()
        pid = cluster.raylet._zygote.pid

        def size() -> tuple[int, int]:
            return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

        before = size()
        for n in range(20):
            grant = await driver.lease(env_vars={"N": str(n)})
            driver.send(node.ReturnLease(grant.lease_id, True))
        assert size() == before
        assert before[1] == 1

    play(test, resources={"CPU": 400_000})


def test_worker_starts_with_pythons_own_signal_handlers_and_a_fresh_random_state(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        code = (
            "import random, sys\n"
            "numbers = signal.SIGINT, signal.SIGTERM, signal.SIGCHLD\n"
            "handlers = [signal.getsignal(number) for number in numbers]\n"
            "assert handlers == [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]\n"
            "assert sys.modules['__main__'].__dict__.get('Zygote') is None\n"
            "assert open('/proc/self/comm').read() == 'skate-worker\\n'\n"
            "answer = random.random()\n"
        )
        values = [
            await cluster.tell_worker((await driver.lease()).endpoint, code) for _ in range(2)
        ]
        assert float(values[0]) != float(values[1])

    play(test)


@pytest.mark.invariant("I15")
def test_daemon_that_is_killed_takes_everything_with_it(
    short_folder: Path, wait_until: Any
) -> None:
    """The zygote outlives the daemon for a moment, to end what nobody else would."""
    for name in ("sockets", "logs"):
        (short_folder / name).mkdir(mode=0o700)
    folder = Path(__file__).parent
    node_id = os.urandom(28)
    daemon = f"""
import asyncio, importlib.util, sys
spec = importlib.util.spec_from_file_location("conf", {str(folder / "conftest.py")!r})
conf = importlib.util.module_from_spec(spec)
sys.modules["conf"] = conf
spec.loader.exec_module(conf)
from pathlib import Path
conf.NODE_ID = bytes.fromhex({node_id.hex()!r})
async def main():
    folder = Path({str(short_folder)!r})
    for name in ("sockets", "logs"): (folder / name).rmdir()
    async with conf.start_cluster(folder, node_id=conf.NODE_ID) as cluster:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = "import subprocess as s; a = s.Popen(['sleep', '99'], start_new_session=True)"
        code += "; answer = a.pid"
        pid = await cluster.tell_worker(grant.endpoint, code)
        print(grant.pid, pid, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", daemon], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    mark = b"SKATE_NODE_MARK=" + node_id.hex().encode()

    def left() -> list[str]:
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdecimal() and mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(name)
            except OSError:
                continue
        return found

    deadline = time.monotonic() + 10
    while left():
        assert time.monotonic() < deadline, left()
        time.sleep(0.01)


TINY_WORKER = (sys.executable, str(Path(__file__).with_name("tiny_worker.py")))


@pytest.mark.parametrize("command", [TINY_WORKER, (*TINY_WORKER, "fork-twice")])
def test_worker_can_use_threads_signals_and_processes_however_it_was_forked(
    play: Any, command: tuple[str, ...]
) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = (
            "import multiprocessing, subprocess, threading\n"
            "assert os.getppid() == %d\n"
            # Reaches the main thread, which is what cancellation relies on.
            "signal.pthread_kill(threading.main_thread().ident, 0)\n"
            "assert subprocess.run(['true']).returncode == 0\n"
            "process = multiprocessing.get_context('fork').Process(target=os.getpid)\n"
            "process.start(); process.join(); assert process.exitcode == 0\n"
            "pid = os.fork()\n"
            "if pid == 0: os.abort()\n"
            "answer = os.WTERMSIG(os.waitpid(pid, 0)[1])\n"
        )
        answer = await cluster.tell_worker(grant.endpoint, code % os.getpid())
        assert answer == str(int(signal.SIGABRT)), answer
        os.kill(grant.pid, signal.SIGABRT)
        lost = await driver.one(node.LeaseLost)
        assert lost.cause.signal == signal.SIGABRT

    play(test, zygote_command=command)


def test_worker_has_the_users_file_mode_mask(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        assert await cluster.tell_worker(grant.endpoint, "answer = oct(os.umask(0))") == "0o27"

    play(test, worker_umask=0o027)
