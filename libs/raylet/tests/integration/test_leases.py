"""Leases, end to end: a driver on the stream, a real zygote, real processes."""

from __future__ import annotations

import os
from typing import Any

from skate_rpc import node_protocol as node


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def test_lease_is_granted_with_a_process_of_the_daemon(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease(env_vars={"COLOUR": "blue"})
        assert grant.node_id == (await driver.registered()).node_id
        code = (
            "answer = (os.getppid(), os.getpid(), os.getsid(0), os.getpgrp(), os.environ['COLOUR'])"
        )
        answer = await cluster.tell_worker(grant.endpoint, code)
        assert answer == str((os.getpid(), grant.pid, grant.pid, grant.pid, "blue"))

    play(test)


def test_worker_inherits_no_descriptor_of_the_daemon_or_the_zygote(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        code = (
            "answer = sorted(os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
            " if os.path.exists(f'/proc/self/fd/{n}') or int(n) < 3)"
        )
        targets = (
            (await cluster.tell_worker(grant.endpoint, code))[1:-1].replace("'", "").split(", ")
        )
        files = [target for target in targets if target.startswith("/")]
        assert [os.path.basename(name) for name in files if "logs" in name] == [
            "worker-00000001-1.err",
            "worker-00000001-1.out",
        ]
        assert "/dev/null" in files
        # Its own: the listening socket, the one being served, the stream; epoll and eventfd.
        assert sum(target.startswith("socket:") for target in targets) == 3
        assert sum(target.startswith("anon_inode:") for target in targets) == 2

    play(test)


def test_returned_worker_is_used_again_and_the_next_holder_gets_the_same_process(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        first = await driver.lease()
        driver.send(node.ReturnLease(first.lease_id))
        second = await driver.lease()
        assert second.pid == first.pid
        assert second.lease_id != first.lease_id

    play(test)


def test_many_requests_on_two_cpus_start_two_processes(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        for _ in range(30):
            driver.request()
        await wait_until(lambda: len(driver.all(node.LeaseGranted)) == 2)
        reply = await cluster.client.status()
        assert reply.workers_total == 2
        assert len(reply.pending) == 28
        assert all("CPU 1 (free 0 of 2)" in pending.reason for pending in reply.pending)

    play(test)


def test_blocked_worker_lends_its_cpu_to_its_child(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        parent = await driver.lease()
        code = (
            "connection.send(node.RequestLease(7, {'CPU': 10000}))\n"
            "connection.send(node.Blocked())\n"
            "import time\n"
            "deadline = time.monotonic() + 10\n"
            "grants = []\n"
            "while not grants and time.monotonic() < deadline:\n"
            "    grants = [m for m in log if isinstance(m, node.LeaseGranted)]\n"
            "    time.sleep(0.005)\n"
            "connection.send(node.Unblocked())\n"
            "answer = grants[0].pid\n"
        )
        child_pid = int(await cluster.tell_worker(parent.endpoint, code))
        assert child_pid != parent.pid
        assert is_alive(child_pid)

    play(test, resources={"CPU": 10_000})


def test_lease_is_asked_back_for_another_driver(play: Any) -> None:
    async def test(cluster: Any) -> None:
        first = await cluster.driver()
        grant = await first.lease()
        second = await cluster.driver()
        number = second.request()
        reclaim = await first.one(node.ReclaimLease)
        assert reclaim.lease_id == grant.lease_id
        first.send(node.ReturnLease(grant.lease_id))
        other = await second.one(node.LeaseGranted, request_id=number)
        assert other.pid != grant.pid, "workers are not shared between jobs"

    play(test, resources={"CPU": 10_000})


def test_cancelled_request_is_not_granted(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        held = await driver.lease()
        cancelled = driver.request()
        driver.send(node.CancelLeaseRequest(cancelled))
        last = driver.request()
        driver.send(node.ReturnLease(held.lease_id))
        await driver.one(node.LeaseGranted, request_id=last)
        assert not driver.all(node.LeaseGranted, request_id=cancelled)

    play(test, resources={"CPU": 10_000})


def test_impossible_request_is_refused_with_what_is_missing(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        number = driver.request(GPU=1)
        refusal = await driver.one(node.LeaseRefused, request_id=number)
        assert refusal.kind == "unschedulable"
        assert "GPU 1 and the node has GPU 0" in refusal.message

    play(test, infeasible_grace_s=0.05)


def test_worker_that_fails_to_start_refuses_the_request_with_the_end_of_its_log(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        number = driver.request(env_vars={"TINY_EXIT": "9"})
        refusal = await driver.one(node.LeaseRefused, request_id=number)
        assert refusal.kind == "worker_start_failed"
        assert "exited with code 9" in refusal.message
        assert "refuses to start" in refusal.message
        await driver.lease()

    play(test)


def test_environment_too_large_refuses_the_request(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        number = driver.request(env_vars={"BIG": "x" * (2 << 20)})
        refusal = await driver.one(node.LeaseRefused, request_id=number)
        assert "1 MiB is the most" in refusal.message

    play(test)


def test_idle_workers_past_the_soft_limit_end(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grants = [await driver.lease() for _ in range(3)]
        for grant in grants:
            driver.send(node.ReturnLease(grant.lease_id))
        await wait_until(lambda: sum(is_alive(grant.pid) for grant in grants) == 1)
        assert cluster.raylet.statistics().node.workers_idle == 1

    play(test, resources={"CPU": 30_000}, workers_soft_limit=1)


def test_workers_max_is_kept_and_named_as_the_reason(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        for _ in range(2):
            driver.request()
        await driver.one(node.LeaseGranted)
        reply = await cluster.client.status()
        assert reply.workers_total == 1
        assert "as many worker processes as it may" in reply.pending[0].reason

    play(test, workers_max=1)


def test_unknown_worker_that_registers_is_refused(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        code = (
            "stranger = connect_stream(config.raylet_endpoint, config.token.encode(), loop,"
            " incoming=node.FromRaylet, on_messages=on_messages, on_close=lambda *_: None)\n"
            "stranger.send(node.RegisterProcess(os.urandom(28), os.getpid(), '', False, 77))\n"
            "import time\n"
            "while not (found := [m for m in log if isinstance(m, node.ProcessRegistered)][1:]):\n"
            "    time.sleep(0.005)\n"
            "answer = found[0].error\n"
        )
        grant = await driver.lease()
        assert "did not start" in await cluster.tell_worker(grant.endpoint, code)


def test_lease_can_be_returned_by_its_holder_alone(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver, other = await cluster.driver(), await cluster.driver()
        grant = await driver.lease()
        other.send(node.ReturnLease(grant.lease_id))
        await other.call("list_nodes", node.Empty())  # ordered behind it
        assert len((await cluster.client.status()).leases) == 1

    play(test)
