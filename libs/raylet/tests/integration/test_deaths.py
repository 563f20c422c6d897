"""What is said when a process ends, and what is left of it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from skate_rpc import node_protocol as node


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "kind", "exit_code", "number", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signaled", 0, signal.SIGSEGV, "SIGSEGV"),
        ("os.abort()", "signaled", 0, signal.SIGABRT, "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "signaled", 0, signal.SIGBUS, "SIGBUS"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signaled", 0, signal.SIGKILL, "memory ran out"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "signaled", 0, signal.SIGTERM, "SIGTERM"),
        ("os._exit(7)", "exited", 7, 0, "exited with code 7"),
        ("os._exit(0)", "exited", 0, 0, "exited with code 0"),
    ],
)
def test_dead_worker_is_reported_with_its_true_cause(
    play: Any, wait_until: Any, code: str, kind: str, exit_code: int, number: int, text: str
) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        say = "import sys; print('my last words', file=sys.stderr, flush=True)\n"
        await cluster.tell_worker(grant.endpoint, say)
        await cluster.tell_worker(grant.endpoint, code)
        lost = await driver.one(node.LeaseLost, lease_id=grant.lease_id)
        cause = lost.cause
        assert (cause.kind, cause.exit_code, cause.signal) == (kind, exit_code, number)
        assert cause.pid == grant.pid
        assert text in cause.message
        assert "my last words" in cause.log_tail
        died = await driver.one(node.WorkerDied, worker_id=grant.worker_id)
        assert died.cause.kind == kind
        reported = (await wait_until(lambda: cluster.gcs.dead))[0]
        assert reported.worker_id == grant.worker_id
        assert reported.death_cause.pid == grant.pid
        assert cluster.raylet.statistics().node.available["CPU"] == 20_000

    play(test)


def test_worker_killed_by_its_holder_says_so(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        driver.send(node.KillWorker(grant.lease_id, "cancel(force=True)."))
        lost = await driver.one(node.LeaseLost, lease_id=grant.lease_id)
        assert lost.cause.kind == "killed_by_user"
        assert "cancel(force=True)" in lost.cause.message

    play(test)


def test_worker_that_announced_its_exit_ended_on_purpose(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = "connection.send(node.Exiting('max_calls reached.'))\nos._exit(0)"
        await cluster.tell_worker(grant.endpoint, code)
        lost = await driver.one(node.LeaseLost, lease_id=grant.lease_id)
        assert lost.cause.kind == "intended_exit"
        assert "max_calls reached" in lost.cause.message

    play(test)


def test_worker_that_hangs_up_and_lives_on_is_killed(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skate_raylet.service import worker_processes

    monkeypatch.setattr(worker_processes, "SILENT_GRACE_S", 0.1)

    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = "connection.connection._on_close = lambda c, r: None\n"
        await cluster.tell_worker(grant.endpoint, code + "connection.close()")
        lost = await driver.one(node.LeaseLost, lease_id=grant.lease_id)
        assert "connection to the node closed" in lost.cause.message

    play(test)


def test_stubborn_worker_is_killed_when_its_grace_is_over(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease(env_vars={"TINY_STUBBORN": "1"})
        driver.send(node.ReturnLease(grant.lease_id))
        driver.connection.close()
        await wait_until(lambda: not is_alive(grant.pid))

    play(test)


def test_children_in_the_workers_session_die_with_it_and_are_waited_for(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        # One in the group, one in a group of its own, one orphan, all in the session.
        code = (
            "import subprocess, sys\n"
            "a = subprocess.Popen(['sleep', '1000'])\n"
            "b = subprocess.Popen(['sleep', '1000'], process_group=0)\n"
            "c = subprocess.run(['sh', '-c', 'sleep 1000 >/dev/null 2>&1 & echo $!'],"
            " capture_output=True, text=True)\n"
            "answer = f'{a.pid} {b.pid} {c.stdout.strip()}'\n"
        )
        pids = [int(pid) for pid in (await cluster.tell_worker(grant.endpoint, code)).split()]
        assert len(pids) == 3
        await asyncio.sleep(0.1)
        assert all(is_alive(pid) for pid in pids), "they live as long as their worker"
        os.kill(grant.pid, signal.SIGKILL)
        await wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))

    play(test)


def test_process_that_left_the_session_ends_with_the_node(play: Any, wait_until: Any) -> None:
    pids: list[int] = []

    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = (
            "import subprocess\n"
            "answer = subprocess.Popen(['sleep', '1000'], start_new_session=True).pid\n"
        )
        pids.append(int(await cluster.tell_worker(grant.endpoint, code)))
        os.kill(grant.pid, signal.SIGKILL)
        await driver.one(node.LeaseLost)
        assert is_alive(pids[0])

    play(test)
    assert not is_alive(pids[0])


def test_driver_that_hangs_up_finishes_its_job(play: Any, wait_until: Any) -> None:
    gone: list[bytes] = []

    async def test(cluster: Any) -> None:
        cluster.raylet.on_driver_gone = gone.append
        other = await cluster.driver()
        driver = await cluster.driver()
        job_id = (await driver.registered()).job_id
        busy = await driver.lease()
        idle = await driver.lease()
        driver.send(node.ReturnLease(idle.lease_id))
        driver.request(CPU=2)
        driver.connection.close()
        await wait_until(lambda: not is_alive(busy.pid) and not is_alive(idle.pid))
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)
        await wait_until(lambda: cluster.gcs.finished == [job_id])
        assert gone == [job_id]
        died = await other.one(node.WorkerDied, worker_id=driver.worker_id)
        assert "is gone" in died.cause.message
        statistics = cluster.raylet.statistics()
        assert statistics.node.available["CPU"] == 20_000
        assert statistics.node.waiting == 0

    play(test)


def test_worker_of_a_dead_parent_ends_with_what_it_leased(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        parent = await driver.lease()
        code = (
            "import time\n"
            "connection.send(node.RequestLease(1, {'CPU': 10000}))\n"
            "grants = []\n"
            "while not grants:\n"
            "    grants = [m for m in log if isinstance(m, node.LeaseGranted)]\n"
            "    time.sleep(0.005)\n"
            "answer = grants[0].pid\n"
        )
        child_pid = int(await cluster.tell_worker(parent.endpoint, code))
        os.kill(parent.pid, signal.SIGKILL)
        await wait_until(lambda: not is_alive(child_pid))

    play(test)


def test_dead_owner_gives_its_store_memory_back(play: Any, wait_until: Any) -> None:
    from skate_object_store import StoreClient
    from skate_rpc.handshake import ClientHandshake

    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        endpoint = (await driver.registered()).store_endpoint

        def fill() -> None:
            handshake = ClientHandshake(b"0123456789abcdef" * 4)
            client = StoreClient(endpoint, owner=driver.worker_id, handshake=handshake)
            client.put(b"o" * 28, [b"x" * 1_000_000])
            client.close()

        await asyncio.to_thread(fill)
        assert cluster.raylet.statistics().store.used_bytes >= 1_000_000
        driver.connection.close()
        await wait_until(lambda: cluster.raylet.statistics().store.used_bytes == 0)

    play(test)


@pytest.mark.invariant("I15")
def test_stopped_raylet_leaves_no_process_even_with_a_stopped_worker(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        os.kill(grant.pid, signal.SIGSTOP)

    play(test)


MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(
    not (MEMORY_CGROUPS / "memory.limit_in_bytes").exists()
    or not os.access(MEMORY_CGROUPS, os.W_OK),
    reason="needs a writable memory cgroup (version 1)",
)
@pytest.mark.invariant("I24")
def test_worker_that_the_kernel_killed_for_memory_died_out_of_memory(play: Any) -> None:
    group = MEMORY_CGROUPS / f"skate-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(60 << 20))

        async def test(cluster: Any) -> None:
            driver = await cluster.driver()
            grant = await driver.lease()
            (group / "cgroup.procs").write_text(str(grant.pid))
            await cluster.tell_worker(grant.endpoint, "kept = bytearray(500 << 20)")
            lost = await driver.one(node.LeaseLost)
            assert lost.cause.kind == "out_of_memory"
            # And the next kill is no longer explained by it.
            other = await driver.lease()
            os.kill(other.pid, signal.SIGKILL)
            lost = await driver.one(node.LeaseLost, lease_id=other.lease_id)
            assert lost.cause.kind == "signaled"

        play(test)
    finally:
        group.rmdir()


@pytest.mark.invariant("I14", "I15")
def test_storm_of_kills_leaves_nothing_and_loses_no_resource(play: Any, wait_until: Any) -> None:
    seed = 20261123
    rng = random.Random(seed)

    async def test(cluster: Any) -> None:
        drivers = [await cluster.driver() for _ in range(3)]
        held: dict[bytes, tuple[Any, Any]] = {}
        for step in range(150):
            for driver in drivers:
                for message in driver.got:
                    if isinstance(message, node.LeaseGranted):
                        held[message.lease_id] = (driver, message)
                    elif isinstance(message, node.LeaseLost):
                        held.pop(message.lease_id, None)
                driver.got.clear()
            deed = rng.random()
            if deed < 0.5:
                rng.choice(drivers).request(CPU=rng.choice([1, 1, 2]))
            elif deed < 0.8 and held:
                driver, grant = held.pop(rng.choice(list(held)))
                driver.send(node.ReturnLease(grant.lease_id, rng.random() < 0.2))
            elif held:
                _, grant = held[rng.choice(list(held))]
                if is_alive(grant.pid):
                    os.kill(grant.pid, rng.choice([signal.SIGKILL, signal.SIGTERM]))
            if step == 75 and cluster.raylet._zygote.pid:
                os.kill(cluster.raylet._zygote.pid, signal.SIGKILL)
            await asyncio.sleep(0.005)
        for driver in drivers:
            driver.connection.close()
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)
        statistics = cluster.raylet.statistics().node
        assert statistics.available == statistics.total
        assert statistics.waiting == 0
        cluster.raylet._machine.check_invariants()

    play(test, resources={"CPU": 40_000})
