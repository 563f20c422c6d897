"""Nodes that are to leave, and a GCS that has moved: what the GCS asks of real servers."""

from __future__ import annotations

import os

import pytest

from skate_gcs import GcsConfig, GcsServer
from skate_rpc.errors import RpcError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.grpc_channel import open_channel

ALIVE = gcs_pb2.ACTOR_STATE_ALIVE
PREEMPTION = gcs_pb2.DrainInfo(
    reason=gcs_pb2.DrainInfo.REASON_PREEMPTION, message="spot", deadline_s=9e9
)
IDLE = gcs_pb2.DrainInfo(reason=gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION)


@pytest.mark.surface("Z9")
def test_node_that_agrees_to_leave_is_listed_so_and_gets_no_actors(folder, harness, run):
    async def main():
        async with harness(storage=f"sqlite:{folder}/gcs.sqlite") as gcs:
            leaving, staying = await gcs.add_raylet(), await gcs.add_raylet()
            reply = await gcs.client.nodes.drain(leaving.node_id, PREEMPTION)
            assert reply.accepted
            assert leaving.drains == [PREEMPTION]
            for _ in range(6):
                spec = gcs.spec()
                await gcs.client.actors.register(spec)
                info = await gcs.until_actor(spec.actor_id, ALIVE)
                assert info.address.node_id == staying.node_id
            await gcs.restart()
            rows = {node.node_id: node for node in await gcs.client.nodes.list()}
            assert rows[leaving.node_id].drain == PREEMPTION
            assert not rows[staying.node_id].HasField("drain")

    run(main())


@pytest.mark.surface("Z9")
def test_node_that_refuses_stays_as_it_was(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            raylet.drain_rejection = "The node is not idle: it works."
            reply = await gcs.client.nodes.drain(raylet.node_id, IDLE)
            assert (reply.accepted, reply.rejection) == (False, raylet.drain_rejection)
            assert not (await gcs.client.nodes.list())[0].HasField("drain")

    run(main())


@pytest.mark.surface("Z9")
def test_drain_of_a_dead_node_is_accepted_and_nonsense_is_refused(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            await gcs.client.nodes.unregister(raylet.node_id)
            assert (await gcs.client.nodes.drain(raylet.node_id, PREEMPTION)).accepted
            for node_id, drain, code in (
                (os.urandom(28), PREEMPTION, "NOT_FOUND"),
                (raylet.node_id, gcs_pb2.DrainInfo(), "INVALID_ARGUMENT"),
                (
                    raylet.node_id,
                    gcs_pb2.DrainInfo(reason=PREEMPTION.reason, deadline_s=-1.0),
                    "INVALID_ARGUMENT",
                ),
            ):
                with pytest.raises(RpcError) as refusal:
                    await gcs.client.nodes.drain(node_id, drain)
                assert refusal.value.code == code

    run(main())


@pytest.mark.surface("Z9")
def test_gcs_that_missed_a_drain_learns_it_from_the_node(harness, run):
    async def main():
        async with harness() as gcs:
            raylet = await gcs.add_raylet()
            report = gcs_pb2.ReportResourcesRequest(
                node_id=raylet.node_id, version=1, drain=PREEMPTION
            )
            await gcs.client.nodes.report_resources(report)
            assert (await gcs.client.nodes.list())[0].drain == PREEMPTION

    run(main())


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.surface("F3")
def test_gcs_that_starts_elsewhere_tells_the_nodes_it_knows(request, folder, harness, run, kind):
    storage = (
        request.getfixturevalue("redis").url if kind == "redis" else f"sqlite:{folder}/gcs.sqlite"
    )

    async def main():
        async with harness(storage=storage, holder="head") as gcs:
            raylet, dead = await gcs.add_raylet(), await gcs.add_raylet()
            await gcs.client.nodes.unregister(dead.node_id)
            token = gcs.config.token
            await gcs.server.stop(0)
            same = GcsServer(GcsConfig(gcs.endpoint, token, storage, holder="head"))
            await same.start()  # at the same place: nothing is to be told
            await same.stop(0)
            elsewhere = f"unix:{folder}/elsewhere.sock"
            moved = GcsServer(GcsConfig(elsewhere, token, storage, holder="head"))
            await moved.start()
            await gcs.until(lambda: _has(raylet.moves))
            (told,) = raylet.moves
            assert (told.endpoint, told.cluster_id) == (elsewhere, gcs.server.cluster_id)
            assert told.gcs_life == moved.life == 3
            assert dead.moves == []
            channel = open_channel(elsewhere, token)
            report = gcs_pb2.ReportResourcesRequest(node_id=raylet.node_id, version=1)
            reply = await GcsClient(channel).nodes.report_resources(report)
            assert (reply.known, reply.gcs_life) == (True, 3)
            await channel.close()
            await moved.stop(0)

    run(main())


async def _has(things):
    return bool(things)
