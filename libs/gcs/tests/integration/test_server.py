from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from skate_gcs import GcsConfig, GcsConfigError, GcsLimits, GcsServer, StorageBusyError
from skate_rpc.errors import RpcAuthenticationError, RpcError, RpcUnavailableError
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

ALIVE = gcs_pb2.ACTOR_STATE_ALIVE
DEAD = gcs_pb2.ACTOR_STATE_DEAD
RESTARTING = gcs_pb2.ACTOR_STATE_RESTARTING


def test_actor_is_created_on_a_node_and_killed(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            spec = gcs.spec(name="n", namespace="s", handle_state=b"h")
            reply = await gcs.client.actors.register(spec)
            assert reply.created
            assert reply.info.spec.creation_task == b""
            info = await gcs.until_actor(spec.actor_id, ALIVE)
            assert info.spec.creation_task == b""
            assert (info.address.node_id, info.pid) == (raylet.node_id, 42)
            assert raylet.starts[0].spec.creation_task == b"secret task"
            named = await gcs.client.actors.get_named("n", "s")
            assert named.spec.handle_state == b"h"
            assert await gcs.client.actors.kill(spec.actor_id)
            await gcs.until_actor(spec.actor_id, DEAD)
            await gcs.until(lambda: _is_true(raylet.kills))
            kill = raylet.kills[0]
            assert kill.actor_id == spec.actor_id
            assert kill.cause.kind == common_pb2.DeathCause.KIND_KILLED_BY_USER
            assert await gcs.client.actors.get_named("n", "s") is None

    run(main())


async def _is_true(value):
    return bool(value)


def test_failed_actor_restarts_on_its_node(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            spec = gcs.spec(max_restarts=1)
            await gcs.client.actors.register(spec)
            await gcs.until_actor(spec.actor_id, ALIVE)
            cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KIND_SIGNALED, signal=9)
            await gcs.client.actors.report_failed(spec.actor_id, 0, cause)
            info = await gcs.until_actor(spec.actor_id, ALIVE)
            assert info.incarnation == 1
            await gcs.client.actors.report_failed(spec.actor_id, 1, cause, b"pickled")
            info = await gcs.until_actor(spec.actor_id, DEAD)
            assert (info.death_cause.signal, info.creation_error) == (9, b"pickled")
            assert len(raylet.starts) == 2

    run(main())


def test_unreachable_node_is_asked_again(harness, run):
    async def main():
        async with harness(node_call_timeout_s=0.2) as gcs:
            raylet = await gcs.add_raylet()
            await raylet.server.stop(0)
            spec = gcs.spec()
            await gcs.client.actors.register(spec)

            async def has_reason():
                return (await gcs.client.actors.get(spec.actor_id)).pending_reason

            assert "did not answer" in await gcs.until(has_reason)
            await gcs.client.actors.kill(spec.actor_id)
            await gcs.until_actor(spec.actor_id, DEAD)
            assert gcs.server.statistics().tables.kill_orders == 1
            await gcs.client.nodes.unregister(raylet.node_id)
            assert gcs.server.statistics().tables.kill_orders == 0

    run(main())


def test_refused_actor_waits_with_a_reason_and_then_starts(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            raylet.refusal = "no worker is free"
            spec = gcs.spec()
            await gcs.client.actors.register(spec)

            async def has_reason():
                return (await gcs.client.actors.get(spec.actor_id)).pending_reason

            assert await gcs.until(has_reason) == "no worker is free"
            raylet.refusal = ""
            info = await gcs.until_actor(spec.actor_id, ALIVE)
            assert info.pending_reason == ""

    run(main())


def test_node_whose_process_is_gone_dies_when_its_subscription_breaks(harness, run):
    async def main():
        # By silence alone it would live for a minute, which is longer than this test may last.
        async with harness(limits=GcsLimits(node_probe_s=60.0, node_dead_s=120.0)) as gcs:
            raylet = await gcs.add_raylet()
            other = await gcs.add_raylet()
            events = gcs.client.events.subscribe(["node"], raylet.node_id)
            while not (await anext(events)).snapshot_end:
                pass
            await raylet.server.stop(0)
            await events.aclose()

            async def is_dead():
                states = {n.node_id: n.state for n in await gcs.client.nodes.list()}
                return states[raylet.node_id] == gcs_pb2.NodeInfo.STATE_DEAD and states

            states = await gcs.until(is_dead)
            assert states[other.node_id] == gcs_pb2.NodeInfo.STATE_ALIVE

    run(main())


@pytest.mark.invariant("I22")
def test_silent_node_dies_and_is_fenced(harness, run):
    async def main():
        limits = GcsLimits(node_suspect_s=0.1, node_dead_s=0.3)
        async with harness(limits=limits) as gcs:
            raylet = await gcs.add_raylet()
            spec = gcs.spec(max_restarts=0)
            await gcs.client.actors.register(spec)
            info = await gcs.until_actor(spec.actor_id, DEAD)
            assert info.death_cause.kind == common_pb2.DeathCause.KIND_NODE_DIED
            report = gcs_pb2.ReportResourcesRequest(node_id=raylet.node_id, version=1)
            assert not (await gcs.client.nodes.report_resources(report)).known
            (node,) = await gcs.client.nodes.list()
            assert node.state == gcs_pb2.NodeInfo.STATE_DEAD
            with pytest.raises(RpcError) as refusal:
                await gcs.client.nodes.register(node)
            assert refusal.value.code == "FAILED_PRECONDITION"

    run(main())


@pytest.mark.invariant("I10")
def test_named_actor_storm_creates_one_actor(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            clients = [gcs.connect() for _ in range(8)]

            async def create(number):
                spec = gcs.spec(name="one")
                client = clients[number % len(clients)]
                return await client.actors.register(spec, get_if_exists=True)

            replies = await asyncio.gather(*map(create, range(64)))
            assert len({reply.info.spec.actor_id for reply in replies}) == 1
            assert sum(reply.created for reply in replies) == 1
            await gcs.until_actor(replies[0].info.spec.actor_id, ALIVE)
            assert len(raylet.starts) == 1

    run(main())


def test_kv_round_trip(harness, run):
    async def main():
        async with harness() as gcs:
            kv = gcs.client.kv
            assert await kv.put("fun", b"k", b"v" * 5_000_000, overwrite=False)
            assert not await kv.put("fun", b"k", b"w", overwrite=False)
            assert await kv.get("fun", b"k") == b"v" * 5_000_000
            assert await kv.get("fun", b"absent") is None
            assert list(await kv.keys("fun")) == [b"k"]
            assert await kv.delete("fun", b"", is_prefix=True) == 1
            with pytest.raises(RpcError) as refusal:
                await kv.put("fun", b"", b"v")
            assert refusal.value.code == "INVALID_ARGUMENT"

    run(main())


def test_wrong_token_is_refused(harness, run):
    async def main():
        async with harness() as gcs:
            with pytest.raises(RpcAuthenticationError):
                await gcs.connect(token="00" * 32).nodes.list()
            assert gcs.server.statistics().rpc_refused == 1

    run(main())


# ---- subscriptions ----


async def _next(events):
    async with asyncio.timeout(10):
        return await anext(events)


def test_subscriber_gets_the_present_state_and_then_every_change(harness, run):
    async def main():
        async with harness() as gcs:
            await gcs.add_raylet()
            before = gcs.spec()
            await gcs.client.actors.register(before)
            await gcs.until_actor(before.actor_id, ALIVE)
            async with contextlib.aclosing(gcs.client.events.subscribe(["actor"])) as events:
                snapshot = await _next(events)
                assert snapshot.actor.spec.actor_id == before.actor_id
                end = await _next(events)
                assert end.snapshot_end
                after = gcs.spec(name="x")
                await gcs.client.actors.register(after)
                await gcs.client.kv.put("n", b"k", b"v")
                await gcs.until_actor(after.actor_id, ALIVE)
                await gcs.client.actors.kill(after.actor_id)
                changes = [await _next(events) for _ in range(2)]
                assert [event.actor.state for event in changes] == [ALIVE, DEAD]
                assert all(event.actor.spec.creation_task == b"" for event in changes)
                numbers = [event.sequence for event in (end, *changes)]
                assert numbers == list(range(numbers[0], numbers[0] + 3))

            async def is_gone():
                return gcs.server.statistics().subscribers == 0

            await gcs.until(is_gone)

    run(main())


def test_subscriber_sees_only_its_channels(harness, run):
    async def main():
        async with (
            harness() as gcs,
            contextlib.aclosing(gcs.client.events.subscribe(["job"])) as events,
        ):
            assert (await _next(events)).snapshot_end
            await gcs.add_raylet()
            job = await gcs.add_job()
            assert (await _next(events)).job.job_id == job

    run(main())


@pytest.mark.parametrize("channels", [[], ["actor", "nonsense"]], ids=["none", "unknown"])
def test_subscription_to_nothing_is_refused(harness, run, channels):
    async def main():
        async with harness() as gcs:
            with pytest.raises(RpcError) as refusal:
                await _next(gcs.client.events.subscribe(channels))
            assert refusal.value.code == "INVALID_ARGUMENT"

    run(main())


async def read_to_the_end(events):
    while True:
        await _next(events)


def test_slow_subscriber_is_cut_off(harness, run):
    async def main():
        async with harness(subscriber_events_max=5) as gcs:
            blob = b"x" * 200_000
            async with contextlib.aclosing(gcs.client.events.subscribe(["actor"])) as events:
                assert (await _next(events)).snapshot_end
                # More than the transport buffers, so that the rest waits in the hub.
                for _ in range(200):
                    spec = gcs.spec(handle_state=blob)
                    await gcs.client.actors.register(spec)
                with pytest.raises(RpcError) as cut:
                    await read_to_the_end(events)
                assert cut.value.code == "RESOURCE_EXHAUSTED"

    run(main())


def test_stopping_server_ends_subscriptions_at_once(harness, run):
    async def main():
        async with harness() as gcs:
            events = gcs.client.events.subscribe(["node"])
            assert (await _next(events)).snapshot_end
            await gcs.server.stop(grace_s=10.0)
            with pytest.raises(RpcUnavailableError):
                await _next(events)
            assert await gcs.server.wait_stopped() == "stopped"

    run(main())


# ---- life of the server ----


def test_cluster_id_stays_with_the_storage(folder, harness, run):
    async def main():
        storage = f"sqlite:{folder}/gcs.sqlite"
        async with harness(storage=storage) as gcs:
            first = gcs.server.cluster_id
            node = gcs_pb2.NodeInfo(node_id=os.urandom(28))
            assert (await gcs.client.nodes.register(node)).cluster_id == first
            await gcs.restart()
            assert gcs.server.cluster_id == first
        wrong = GcsServer(GcsConfig(f"unix:{folder}/x", "5c" * 32, storage, cluster_id="other"))
        with pytest.raises(GcsConfigError, match=first):
            await wrong.start()

    run(main())


@pytest.mark.invariant("I17")
def test_clients_and_actors_survive_a_restart_of_the_gcs(folder, harness, run):
    async def main():
        async with harness(storage=f"sqlite:{folder}/gcs.sqlite") as gcs:
            raylet = await gcs.add_raylet()
            job = await gcs.add_job()
            spec = gcs.spec(name="n", max_restarts=1, job_id=job)
            await gcs.client.actors.register(spec)
            before = await gcs.until_actor(spec.actor_id, ALIVE)
            await gcs.restart()
            after = await gcs.client.actors.get_named("n", "")
            assert after == before
            report = gcs_pb2.ReportResourcesRequest(node_id=raylet.node_id, version=1)
            assert (await gcs.client.nodes.report_resources(report)).known
            cause = common_pb2.DeathCause(kind=common_pb2.DeathCause.KIND_SIGNALED)
            await gcs.client.actors.report_failed(spec.actor_id, 0, cause)
            info = await gcs.until_actor(spec.actor_id, ALIVE)
            assert info.incarnation == 1
            # The creation task came through the storage.
            assert raylet.starts[-1].spec.creation_task == b"secret task"
            assert int.from_bytes(await gcs.add_job(), "big") == 2

    run(main())


def test_second_gcs_on_one_storage_is_refused(folder, harness, run):
    async def main():
        storage = f"sqlite:{folder}/gcs.sqlite"
        async with harness(storage=storage):
            second = GcsServer(GcsConfig(f"unix:{folder}/second.sock", "5c" * 32, storage))
            with pytest.raises(StorageBusyError):
                await second.start()
            await second.stop()

    run(main())


def test_statistics_count_what_happened(harness, run):
    async def main():
        async with harness() as gcs:
            await gcs.add_raylet()
            await gcs.add_job()
            await gcs.client.kv.put("n", b"k", b"vv")
            statistics = gcs.server.statistics()
            tables = statistics.tables
            assert (tables.nodes_alive, tables.jobs_running) == (1, 1)
            assert (tables.kv_entries, tables.kv_bytes) == (1, 2)
            assert statistics.storage.commits == 5  # who and where the GCS is, and three changes
            assert statistics.events_handled == statistics.rpc_calls == 3

    run(main())
