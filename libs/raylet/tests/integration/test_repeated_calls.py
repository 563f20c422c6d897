"""Every call of RayletService is made three times: again at once, and again when what came after it
has happened. No repetition has an effect.

``Borrow`` and ``ForwardLogs`` are streams; what is said on them is repeated in
``sim/test_lending_seeds`` and, over lines that break, in ``integration/test_logs``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from unittest import mock

import pytest

from skate_raylet import Raylet
from skate_raylet.machine.lease_table import Granted
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2, raylet_pb2
from skate_rpc.methods import METHODS
from skate_rpc.repeats import Repeat

ACTOR = b"a" * 16
HELD, WANTED = b"h" * 18, b"w" * 18  # placement groups
KILLED = common_pb2.DeathCause(kind=common_pb2.DeathCause.KIND_KILLED_BY_USER, message="Killed.")
PREEMPTED = gcs_pb2.DrainInfo(reason=gcs_pb2.DrainInfo.REASON_PREEMPTION, deadline_s=9e9)


def spec() -> gcs_pb2.ActorSpec:
    running = common_pb2.ResourceSet(amounts={"CPU": 5_000})
    return gcs_pb2.ActorSpec(
        actor_id=ACTOR, job_id=b"\0\0\0\1", running_resources=running, creation_task=b"task"
    )


def prepare(cluster: Any, group_id: bytes, attempt: int) -> Awaitable[Any]:
    bundle = common_pb2.ResourceSet(amounts={"CPU": 1_000})
    order = raylet_pb2.PrepareBundles(group_id=group_id, attempt=attempt, bundles={0: bundle})
    return cluster.client.prepare_bundles([order])  # type: ignore[no-any-return]


def reference(group_id: bytes) -> list[gcs_pb2.BundleRef]:
    return [gcs_pb2.BundleRef(group_id=group_id, attempt=1, indices=[0])]


def move(cluster: Any, life: int) -> Awaitable[Any]:
    endpoint = f"{cluster.gcs.endpoint}{life}"
    return cluster.client.move_gcs(endpoint, "c", life)  # type: ignore[no-any-return]


class Case(NamedTuple):
    """A call, and what may happen between it and its last repetition."""

    call: Callable[[Any], Awaitable[Any]]
    later: Callable[[Any], Awaitable[Any]] | None = None


CASES: dict[str, Case] = {
    "RayletService.StartActor": Case(
        lambda c: c.client.start_actor(spec(), 1),
        lambda c: c.client.kill_actor(ACTOR, 1, KILLED),
    ),
    "RayletService.KillActor": Case(
        lambda c: c.client.kill_actor(ACTOR, 0, KILLED),
        lambda c: c.client.start_actor(spec(), 1),
    ),
    "RayletService.PrepareBundles": Case(
        lambda c: prepare(c, WANTED, 1), lambda c: c.client.return_bundles(reference(WANTED))
    ),
    "RayletService.CommitBundles": Case(
        lambda c: c.client.commit_bundles(reference(HELD)),
        lambda c: c.client.return_bundles(reference(HELD)),
    ),
    "RayletService.ReturnBundles": Case(
        lambda c: c.client.return_bundles(reference(HELD)), lambda c: prepare(c, HELD, 2)
    ),
    "RayletService.Status": Case(lambda c: c.client.status()),
    "RayletService.Objects": Case(lambda c: c.client.objects(whole_cluster=False, timeout_s=0.1)),
    "RayletService.Waits": Case(lambda c: c.client.waits("", timeout_s=0.1)),
    "RayletService.Why": Case(lambda c: c.client.why(ACTOR.hex(), timeout_s=0.1)),
    "RayletService.ListLogs": Case(lambda c: c.client.list_logs()),
    "RayletService.ReadLog": Case(lambda c: c.client.read_log("a.log", 0, 100)),
    "RayletService.Drain": Case(lambda c: c.client.drain(PREEMPTED)),  # a later one replaces it
    "RayletService.MoveGcs": Case(lambda c: move(c, 2), lambda c: move(c, 3)),
    "RayletService.Shutdown": Case(lambda c: c.client.shutdown(1.0, "a test")),
}


@pytest.mark.invariant("I25")
def test_every_unary_method_of_the_raylet_is_in_the_repetition_test() -> None:
    of_raylet = {
        name
        for name, method in METHODS.items()
        if method.service == "RayletService" and method.deadline_s is not None
    }
    assert CASES.keys() == of_raylet


def is_at_rest(cluster: Any) -> bool:
    """Whether what was ordered has been done and reported."""
    raylet = cluster.raylet
    started = {(report.actor_id, report.incarnation) for report in cluster.gcs.started}
    return (
        all(isinstance(lease.state, Granted) for lease in raylet._machine.leases())
        and not any(bundle.is_returning for bundle in raylet._machine.bundles())
        and raylet._actors._actors.keys() <= started
        and raylet._link.unsent_reports() == 0
        and raylet._link._life >= cluster.gcs.life  # the first heartbeat was answered
    )


def picture(cluster: Any) -> list[Any]:
    """What the raylet holds, has told the GCS, and is about to do."""
    raylet, gcs = cluster.raylet, cluster.gcs
    return [
        [(lease.lease_id, lease.worker_id) for lease in raylet._machine.leases()],
        [(bundle.key, bundle.attempt, bundle.is_open) for bundle in raylet._machine.bundles()],
        repr(raylet._machine.available),
        list(raylet._actors._actors),
        [(report.actor_id, report.incarnation) for report in gcs.started],
        [(report.actor_id, report.incarnation) for report in gcs.failed],
        [raylet._draining.order, raylet._draining._task],
        [raylet._channel.target, raylet._link._life, raylet._link._following],
        raylet._stopping,
    ]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.invariant("I25")
def test_repeated_call_has_no_second_effect(play: Any, wait_until: Any, name: str) -> None:
    call, later = CASES[name]
    is_read = METHODS[name].repeat is Repeat.READ_ONLY

    async def test(cluster: Any) -> None:
        async def settled() -> list[Any]:
            await wait_until(lambda: is_at_rest(cluster))
            return picture(cluster)

        for life in (2, 3):  # after the one that runs
            await cluster.gcs.serve_also(f"{cluster.gcs.endpoint}{life}")
        (cluster.folder / "logs" / "a.log").write_text("a line\n")
        await cluster.client.start_actor(spec(), 0)
        await wait_until(lambda: cluster.gcs.started)
        await prepare(cluster, HELD, 1)
        at_first = await settled()
        answer = await call(cluster)
        after = await settled()
        assert (after == at_first) is is_read
        assert await call(cluster) == answer
        assert await settled() == after
        if later is not None:
            await later(cluster)
            after = await settled()
            await call(cluster)  # too late: the answer may say so
            assert await settled() == after

    may_end = asyncio.Event()
    stop = Raylet._stop

    async def stop_later(raylet: Raylet, reason: str, grace_s: float) -> None:
        await may_end.wait()  # else there is soon nobody to repeat a Shutdown to
        await stop(raylet, reason, grace_s)

    async def test_and_end(cluster: Any) -> None:
        try:
            await test(cluster)
        finally:
            may_end.set()

    with mock.patch.object(Raylet, "_stop", stop_later):
        play(test_and_end)
