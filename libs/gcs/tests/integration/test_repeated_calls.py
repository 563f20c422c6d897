"""Every unary call of the GCS's services is made twice, and again when what came after it has
happened. No repetition has an effect.

``Subscribe`` is a stream, which only reads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from skate_gcs import GcsLimits
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.methods import METHODS
from skate_rpc.repeats import Repeat

ALIVE, DEAD = gcs_pb2.ACTOR_STATE_ALIVE, gcs_pb2.ACTOR_STATE_DEAD
GPU = common_pb2.ResourceSet(amounts={"GPU": 10_000})  # which no node has
SIGNALED = common_pb2.DeathCause(kind=common_pb2.DeathCause.KIND_SIGNALED)
PREEMPTION = gcs_pb2.DrainInfo(reason=gcs_pb2.DrainInfo.REASON_PREEMPTION, deadline_s=9e9)
TOTAL = common_pb2.ResourceSet(amounts={"CPU": 40_000})
NODE = gcs_pb2.NodeInfo(node_id=b"n" * 28, total=TOTAL)
JOB = gcs_pb2.JobInfo(driver=common_pb2.Address(worker_id=b"d" * 28))
GROUP, HELD = (
    gcs_pb2.PlacementGroupSpec(
        group_id=name * 18, strategy="PACK", bundles=[gcs_pb2.Bundle(resources=GPU)]
    )
    for name in (b"g", b"h")
)
QUIET = GcsLimits(node_suspect_s=600.0, node_dead_s=1200.0)  # the nodes here send no heartbeats
TABLES = ("nodes", "jobs", "actor_specs", "actors", "workers", "placement_groups", "kv", "counters")

Do = Callable[[Any, Any], Awaitable[Any]]
"""With a client, and what the test has made before."""


def report(node_id: bytes, version: int, cpus: int) -> gcs_pb2.ReportResourcesRequest:
    available = common_pb2.ResourceSet(amounts={"CPU": cpus * 10_000})
    return gcs_pb2.ReportResourcesRequest(
        node_id=node_id,
        version=version,
        available=available,
        total=TOTAL,
        demands=[gcs_pb2.PendingDemand(shape=GPU, count=cpus)],
        has_demands=True,
    )


class Case(NamedTuple):
    """A call, and what may happen between it and its last repetitions."""

    call: Do
    later: tuple[Do, ...] = ()
    has_same_answer: bool = True


CASES = {
    "NodeService.Register": Case(
        lambda c, x: c.nodes.register(NODE),
        (
            lambda c, x: c.nodes.report_resources(report(NODE.node_id, 1, 1)),
            lambda c, x: c.nodes.unregister(NODE.node_id),
        ),
    ),
    "NodeService.Unregister": Case(lambda c, x: c.nodes.unregister(x.node_id)),
    "NodeService.List": Case(lambda c, x: c.nodes.list()),
    "NodeService.ListDemands": Case(lambda c, x: c.nodes.list_demands()),
    "NodeService.Drain": Case(lambda c, x: c.nodes.drain(x.node_id, PREEMPTION)),
    "NodeService.ReportResources": Case(
        lambda c, x: c.nodes.report_resources(report(x.node_id, 1, 3)),
        (lambda c, x: c.nodes.report_resources(report(x.node_id, 2, 2)),),
    ),
    "JobService.Add": Case(
        lambda c, x: c.jobs.add(JOB), (lambda c, x: c.jobs.finish(b"\0\0\0\2"),)
    ),
    "JobService.Finish": Case(lambda c, x: c.jobs.finish(b"\0\0\0\1")),
    "JobService.List": Case(lambda c, x: c.jobs.list()),
    "ActorService.Register": Case(
        lambda c, x: c.actors.register(x.spec), (lambda c, x: c.actors.kill(x.spec.actor_id),)
    ),
    "ActorService.Get": Case(lambda c, x: c.actors.get(x.alive)),
    "ActorService.GetNamed": Case(lambda c, x: c.actors.get_named("alive", "")),
    "ActorService.List": Case(lambda c, x: c.actors.list()),
    "ActorService.Kill": Case(lambda c, x: c.actors.kill(x.alive)),  # for good
    "ActorService.Release": Case(lambda c, x: c.actors.release(x.alive)),
    "ActorService.ReportStarted": Case(
        lambda c, x: c.actors.report_started(x.begun, 0, x.address, 43),
        (lambda c, x: c.actors.report_failed(x.begun, 0, SIGNALED),),
    ),
    "ActorService.ReportFailed": Case(
        lambda c, x: c.actors.report_failed(x.alive, 0, SIGNALED),
        (lambda c, x: c.actors.report_failed(x.alive, 1, SIGNALED),),
    ),
    "PlacementGroupService.Register": Case(
        lambda c, x: c.groups.register([GROUP]), (lambda c, x: c.groups.remove([GROUP.group_id]),)
    ),
    "PlacementGroupService.Remove": Case(lambda c, x: c.groups.remove([HELD.group_id])),
    "PlacementGroupService.Get": Case(lambda c, x: c.groups.get(HELD.group_id)),
    "PlacementGroupService.List": Case(lambda c, x: c.groups.list()),
    "WorkerService.ReportDeath": Case(
        lambda c, x: c.workers.report_death(gcs_pb2.WorkerInfo(worker_id=b"w" * 28))
    ),
    "WorkerService.ListDead": Case(lambda c, x: c.workers.list_dead()),
    # The last who writes a key wins, and a repetition that comes behind others' writes is one more.
    "KvService.Put": Case(lambda c, x: c.kv.put("n", b"new", b"v")),
    "KvService.Get": Case(lambda c, x: c.kv.get("n", b"kept")),
    # It answers how many there were.
    "KvService.Delete": Case(lambda c, x: c.kv.delete("n", b"kept"), has_same_answer=False),
    "KvService.Keys": Case(lambda c, x: c.kv.keys("n")),
}


@pytest.mark.invariant("I25")
def test_every_unary_method_of_the_gcs_is_in_the_repetition_test():
    of_gcs = {
        name
        for name, method in METHODS.items()
        if method.service != "RayletService" and method.deadline_s is not None
    }
    assert CASES.keys() == of_gcs


async def make(gcs):
    """What the calls are about: a node, a job, an actor that lives, one that begins, a group."""
    raylet = await gcs.add_raylet()
    await gcs.add_job()
    alive = gcs.spec(name="alive", max_restarts=3)
    await gcs.client.actors.register(alive)
    info = await gcs.until_actor(alive.actor_id, ALIVE)
    begun = gcs.spec(name="begun", max_restarts=3)
    raylet.reports = False
    await gcs.client.actors.register(begun)

    async def is_asked():
        return any(start.spec.actor_id == begun.actor_id for start in raylet.starts)

    await gcs.until(is_asked)
    raylet.reports = True  # the next lives
    await gcs.client.groups.register([HELD])
    await gcs.client.kv.put("n", b"kept", b"v")
    return SimpleNamespace(
        raylet=raylet,
        node_id=raylet.node_id,
        alive=alive.actor_id,
        begun=begun.actor_id,
        address=info.address,
        spec=gcs.spec(name="new", placement_resources=GPU),
    )


async def settled(gcs, made):
    """All that the GCS holds, and what it has asked of the node, once no actor is on its way."""

    async def is_at_rest():
        rows = await gcs.client.nodes.list()
        (node,) = (row for row in rows if row.node_id == made.node_id)
        takes_actors = node.state == gcs_pb2.NodeInfo.STATE_ALIVE and not node.HasField("drain")
        on_its_way = [
            info
            for info in await gcs.client.actors.list()
            if info.state not in (ALIVE, DEAD)
            and info.spec.placement_resources != GPU
            and (info.spec.actor_id, info.incarnation) != (made.begun, 0)
        ]
        return not (takes_actors and on_its_way)

    await gcs.until(is_at_rest)
    client = gcs.client
    return [
        *(gcs.server._storage.scan(table) for table in TABLES),
        list(await client.nodes.list()),
        await client.nodes.list_demands(),
        list(await client.actors.list()),
        list(await client.groups.list()),
        list(await client.workers.list_dead()),
        [(start.spec.actor_id, start.incarnation) for start in made.raylet.starts],
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.invariant("I25")
def test_repeated_call_has_no_second_effect(harness, run, name):
    case = CASES[name]
    is_read = METHODS[name].repeat is Repeat.READ_ONLY

    async def main():
        async with harness(limits=QUIET) as gcs:
            made = await make(gcs)
            at_first = await settled(gcs, made)
            answer = await case.call(gcs.client, made)
            after = await settled(gcs, made)
            assert (after == at_first) is is_read
            again = await case.call(gcs.client, made)
            assert again == answer or not case.has_same_answer
            assert await settled(gcs, made) == after
            for happens in case.later:
                await happens(gcs.client, made)
                after = await settled(gcs, made)
                with contextlib.suppress(RpcError):  # too late: it may be refused
                    await case.call(gcs.client, made)
                assert await settled(gcs, made) == after

    run(main())
