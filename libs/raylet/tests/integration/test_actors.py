"""Actors on a node: from the GCS's order to the report of their end."""

from __future__ import annotations

import os
import signal
from typing import Any

from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

JOB = b"\0\0\0\1"


def spec(name: bytes = b"a", creation_task: bytes = b"", cpu: int = 0, **options: Any) -> Any:
    running = common_pb2.ResourceSet(amounts={"CPU": cpu} if cpu else {})
    placement = common_pb2.ResourceSet(amounts={"CPU": cpu or 10_000})
    return gcs_pb2.ActorSpec(
        actor_id=name.ljust(16, b"\0"),
        job_id=JOB,
        creation_task=creation_task,
        placement_resources=placement,
        running_resources=running,
        **options,
    )


def test_actor_is_started_reported_and_its_death_reported_with_its_cause(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        reply = await cluster.client.start_actor(spec(), 0)
        assert reply.accepted
        started = (await wait_until(lambda: cluster.gcs.started))[0]
        assert started.address.node_id == (await driver.registered()).node_id
        os.kill(started.pid, signal.SIGSEGV)
        failed = (await wait_until(lambda: cluster.gcs.failed))[0]
        assert (failed.incarnation, failed.cause.signal) == (0, signal.SIGSEGV)
        assert failed.cause.kind == common_pb2.DeathCause.KIND_SIGNALED

    play(test)


def test_order_repeated_starts_one_life(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        for _ in range(3):
            assert (await cluster.client.start_actor(spec(), 0)).accepted
        await wait_until(lambda: cluster.gcs.started)
        assert (await cluster.client.start_actor(spec(), 0)).accepted
        assert cluster.raylet.statistics().actors == 1
        assert len(cluster.gcs.started) == 1

    play(test)


def test_order_larger_than_the_node_is_refused(play: Any) -> None:
    async def test(cluster: Any) -> None:
        reply = await cluster.client.start_actor(spec(cpu=990_000), 0)
        assert not reply.accepted
        assert "can never hold CPU 99" in reply.refusal

    play(test)


def test_constructor_that_raises_is_reported_once_with_its_error(
    play: Any, wait_until: Any
) -> None:
    async def test(cluster: Any) -> None:
        await cluster.client.start_actor(spec(creation_task=b"raise", cpu=10_000), 2)
        failed = (await wait_until(lambda: cluster.gcs.failed))[0]
        assert (failed.incarnation, failed.creation_error) == (2, b"pickled")
        assert failed.cause.kind == common_pb2.DeathCause.KIND_CREATION_FAILED
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)
        await wait_until(lambda: cluster.raylet.statistics().unsent_reports == 0)
        assert len(cluster.gcs.failed) == 1
        assert cluster.raylet.statistics().node.available["CPU"] == 20_000

    play(test)


def test_killed_actor_ends_while_it_is_made(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        await cluster.client.start_actor(spec(creation_task=b"hang"), 0)
        await wait_until(lambda: any(lease.worker_id for lease in cluster.raylet._machine.leases()))
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KIND_KILLED_BY_USER, message="skate.kill()."
        )
        await cluster.client.kill_actor(spec().actor_id, 0, cause)
        failed = (await wait_until(lambda: cluster.gcs.failed))[0]
        assert failed.cause.kind == common_pb2.DeathCause.KIND_KILLED_BY_USER
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)

    play(test)


def test_killed_actor_that_waits_is_reported_and_never_starts(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        await cluster.client.start_actor(spec(b"big", cpu=20_000), 0)
        await wait_until(lambda: cluster.gcs.started)
        await cluster.client.start_actor(spec(b"waits", cpu=20_000), 0)
        await cluster.client.kill_actor(spec(b"waits").actor_id, 0)
        failed = (await wait_until(lambda: cluster.gcs.failed))[0]
        assert failed.actor_id == spec(b"waits").actor_id
        assert cluster.raylet.statistics().actors == 1

    play(test)


def test_kill_before_start_keeps_the_life_from_starting(play: Any) -> None:
    async def test(cluster: Any) -> None:
        await cluster.client.kill_actor(spec().actor_id, 0)
        assert (await cluster.client.start_actor(spec(), 0)).accepted
        assert cluster.raylet.statistics().actors == 0

    play(test)


def test_life_that_the_gcs_gave_up_is_killed(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        cluster.gcs.accepts_started = False
        await cluster.client.start_actor(spec(), 0)
        await wait_until(lambda: cluster.gcs.started)
        await wait_until(lambda: cluster.raylet.statistics().node.workers == 0)

    play(test)


def test_subscriber_hears_the_present_state_and_every_change(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        driver = await cluster.driver()
        info = gcs_pb2.ActorInfo(spec=spec(), state=gcs_pb2.ACTOR_STATE_ALIVE, pid=42)
        cluster.gcs.actors[info.spec.actor_id] = info
        driver.send(node.SubscribeActor(info.spec.actor_id))
        update = await driver.one(node.ActorUpdate)
        assert (update.actor.state, update.actor.pid) == ("ALIVE", 42)
        await wait_until(lambda: cluster.gcs.queues)
        info.state = gcs_pb2.ACTOR_STATE_DEAD
        cluster.gcs.publish(gcs_pb2.Event(actor=info))
        await wait_until(lambda: len(driver.all(node.ActorUpdate)) == 2)
        assert driver.got[-1].actor.state == "DEAD"
        driver.send(node.UnsubscribeActor(info.spec.actor_id))
        await driver.call("list_nodes", node.Empty())  # ordered behind it
        info.state = gcs_pb2.ACTOR_STATE_ALIVE
        cluster.gcs.publish(gcs_pb2.Event(actor=info))
        cluster.gcs.publish(gcs_pb2.Event(worker=gcs_pb2.WorkerInfo(worker_id=b"x" * 28)))
        await driver.one(node.WorkerDied, worker_id=b"x" * 28)
        assert len(driver.all(node.ActorUpdate)) == 2

    play(test)


def test_worker_of_a_job_that_is_not_known_yet_gets_its_paths(play: Any, wait_until: Any) -> None:
    async def test(cluster: Any) -> None:
        # Its driver is at another node, and the order is quicker than the news of the job.
        metadata = {"skate:sys_path": '["/far/modules"]'}
        cluster.gcs.jobs[b"\0\0\0\7"] = gcs_pb2.JobInfo(metadata=metadata)
        order = spec()
        order.job_id = b"\0\0\0\7"
        assert (await cluster.client.start_actor(order, 0)).accepted
        started = (await wait_until(lambda: cluster.gcs.started))[0]
        paths = await cluster.tell_worker(started.address.endpoint, "answer = config.sys_path")
        assert paths == "('/far/modules',)"
        assert cluster.gcs.job_lists == 1

    play(test)
