"""The gateway, the heartbeat, and a GCS that goes away."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec

from skate_raylet.service.gateway import Gateway
from skate_raylet.service.group_desk import GroupDesk
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2


def test_gateway_serves_exactly_the_control_methods() -> None:
    gateway = Gateway(None, b"", None, dict)  # type: ignore[arg-type]
    GroupDesk(None, b"", None, list).serve_by(gateway)  # type: ignore[arg-type]
    by_other_parts = ("list_objects", "list_logs", "read_log", "why")  # of the raylet
    assert sorted([*gateway.methods, *by_other_parts]) == sorted(node.CONTROL_METHODS)


def test_control_calls_reach_the_gcs_and_come_back(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        reply = await driver.call("kv_put", node.KvPut("app", b"k", b"v"))
        assert msgspec.msgpack.decode(reply.body) is True
        reply = await driver.call("kv_get", node.KvGet("app", b"k"))
        assert msgspec.msgpack.decode(reply.body) == b"v"
        reply = await driver.call("kv_get", node.KvGet("app", b"other"))
        assert msgspec.msgpack.decode(reply.body) is None

    play(test)


def test_functions_are_fetched_once_per_node(play: Any) -> None:
    async def test(cluster: Any) -> None:
        cluster.gcs.kv["fun", b"f"] = b"code"
        driver, other = await cluster.driver(), await cluster.driver()
        for one in (driver, other, driver):
            reply = await one.call("kv_get", node.KvGet("fun", b"f"))
            assert msgspec.msgpack.decode(reply.body) == b"code"
        assert cluster.gcs.kv_gets == 1

    play(test)


def test_actor_name_that_is_taken_is_an_error_of_its_own_kind(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()

        def registration(actor_id: bytes, get_if_exists: bool) -> node.ActorRegistration:
            return node.ActorRegistration(
                actor_id, "bob", "ns", False, "C", 0, {}, {}, {}, b"", b"", get_if_exists
            )

        first = await driver.call("register_actor", registration(b"1" * 16, False))
        assert msgspec.msgpack.decode(first.body, type=node.RegisteredActor).is_new
        again = await driver.call("register_actor", registration(b"2" * 16, False))
        assert (again.error_kind, again.body) == ("already_exists", b"")
        assert "bob" in again.error
        known = await driver.call("register_actor", registration(b"2" * 16, True))
        found = msgspec.msgpack.decode(known.body, type=node.RegisteredActor)
        assert (found.is_new, found.actor.actor_id) == (False, b"1" * 16)

    play(test)


def test_unknown_method_and_malformed_body_are_answered(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        assert (await driver.call("no_such", node.Empty())).error_kind == "invalid"
        assert (await driver.call("kv_put", node.Empty())).error_kind == "invalid"

    play(test)


def test_driver_gets_a_job_and_a_namespace_of_its_own(play: Any) -> None:
    async def test(cluster: Any) -> None:
        first = await (await cluster.driver()).registered()
        second = await (await cluster.driver(namespace="shared")).registered()
        assert first.job_id != second.job_id
        assert (len(first.namespace), second.namespace) == (32, "shared")
        assert cluster.gcs.jobs[second.job_id].namespace == "shared"

    play(test)


def test_workers_get_their_jobs_paths(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver(sys_path=["/somewhere"])
        grant = await driver.lease()
        answer = await cluster.tell_worker(grant.endpoint, "answer = config.sys_path")
        assert answer == "('/somewhere',)"

    play(test)


def test_resources_are_reported_when_they_change_and_demand_with_them(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        await driver.lease(CPU=2)
        await wait_until(lambda: cluster.gcs.reports[-1].available.amounts.get("CPU", 0) == 0)
        driver.request(CPU=1)
        (demand,) = await wait_until(lambda: demands_told(cluster.gcs))
        assert (dict(demand.shape.amounts), demand.count) == ({"CPU": 10_000}, 1)
        versions = [report.version for report in cluster.gcs.reports]
        assert versions == sorted(set(versions))

    play(test)


def test_demand_is_told_once_to_each_gcs_and_again_when_it_is_gone(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        gcs = cluster.gcs
        driver = await cluster.driver()
        number = driver.request(GPU=1)
        (demand,) = await wait_until(lambda: demands_told(gcs))
        assert demand.infeasible
        seen = len(gcs.reports)
        await wait_until(lambda: len(gcs.reports) >= seen + 2)
        assert not any(report.has_demands for report in gcs.reports[seen:])
        gcs.life = 2
        seen = len(gcs.reports)
        await wait_until(lambda: any(report.demands for report in gcs.reports[seen:]))
        driver.send(node.CancelLeaseRequest(number))
        await wait_until(lambda: demands_told(gcs) == [])

    play(test)


def demands_told(gcs: Any) -> list[Any]:
    """What the GCS was last told."""
    told = [report for report in gcs.reports if report.has_demands]
    return list(told[-1].demands) if told else []


def test_node_that_the_gcs_gave_up_stops(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        await driver.lease()
        cluster.gcs.knows_node = False
        assert "holds this node for dead" in await cluster.raylet.wait_stopped()

    play(test)


def test_leases_go_on_and_reports_wait_while_the_gcs_is_away(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        await cluster.gcs.stop()
        first = await driver.lease()
        os.kill(first.pid, signal.SIGKILL)
        await driver.one(node.LeaseLost, lease_id=first.lease_id)
        await driver.lease()
        assert not cluster.gcs.dead
        subscriptions = len(cluster.gcs.queues)
        await cluster.gcs.start()
        await wait_until(lambda: cluster.gcs.dead)
        assert [worker.worker_id for worker in cluster.gcs.dead] == [first.worker_id]
        await wait_until(lambda: len(cluster.gcs.queues) > subscriptions)

    play(test)


def test_job_finished_elsewhere_ends_its_idle_workers_here(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        grant = await driver.lease()
        driver.send(node.ReturnLease(grant.lease_id))
        await wait_until(lambda: cluster.gcs.queues)
        job_id = (await driver.registered()).job_id
        cluster.gcs.publish(gcs_pb2.Event(job=gcs_pb2.JobInfo(job_id=job_id, finished=True)))
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)

    play(test)


def test_stopped_raylet_unregisters_its_node(play: Any) -> None:
    seen: list[Any] = []

    async def test(cluster: Any) -> None:
        seen.append(cluster.gcs)
        seen.append((await (await cluster.driver()).registered()).node_id)
        await cluster.client.shutdown(0.5, "maintenance")
        assert await cluster.raylet.wait_stopped() == "maintenance"

    play(test)
    assert seen[0].unregistered == [seen[1]]


def test_node_ends_when_the_gcs_stays_away_and_says_so(play: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        await cluster.gcs.stop()
        reply = await driver.call("kv_keys", node.KvGet("app", b"k"))
        assert reply.error_kind == "unavailable"  # before the node ends
        reason = await cluster.raylet.wait_stopped()
        assert "The GCS has not answered for 1.5 s" in reason

    play(test, gcs_reconnect_s=1.5)


def test_node_follows_a_gcs_that_moved_but_not_an_older_or_another_one(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        raylet = cluster.raylet
        cluster_id = raylet._cluster_id
        here = cluster.gcs.endpoint
        assert not raylet._follow_gcs("unix:/other", cluster_id + "x", 99)
        assert not raylet._follow_gcs("unix:/older", cluster_id, 0)
        subscriptions = len(cluster.gcs.queues)
        moved: list[str] = []
        raylet.on_gcs_moved = moved.append
        there = here.replace("gcs", "moved")
        await cluster.gcs.serve_also(there)
        assert raylet._follow_gcs(there, cluster_id, 1)
        assert raylet._follow_gcs(there, cluster_id, 1)  # said twice
        assert moved == [there]
        await wait_until(lambda: len(cluster.gcs.queues) > subscriptions)
        await cluster.gcs.stop()  # at the old place
        driver = await cluster.driver()
        reply = await driver.call("kv_put", node.KvPut("app", b"k", b"v"))
        assert not reply.error

    play(test)
