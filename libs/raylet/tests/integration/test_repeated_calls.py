"""Every call of RayletService is made twice: the second has the first's answer and no effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.methods import METHODS

ACTOR = b"a" * 16
KILLED = common_pb2.DeathCause(kind=common_pb2.DeathCause.KIND_KILLED_BY_USER, message="Killed.")


def spec() -> gcs_pb2.ActorSpec:
    running = common_pb2.ResourceSet(amounts={"CPU": 10_000})
    return gcs_pb2.ActorSpec(
        actor_id=ACTOR, job_id=b"\0\0\0\1", running_resources=running, creation_task=b"task"
    )


REPEATED: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "RayletService.StartActor": lambda client: client.start_actor(spec(), 1),
    "RayletService.KillActor": lambda client: client.kill_actor(ACTOR, 0, KILLED),
    "RayletService.Objects": lambda client: client.objects(
        whole_cluster=False, rows_max=10, timeout_s=5.0
    ),
    "RayletService.Status": lambda client: client.status(),
    "RayletService.Shutdown": lambda client: client.shutdown(1.0, "a test"),
}


@pytest.mark.invariant("I25")
def test_every_unary_method_of_the_raylet_is_in_the_repetition_test() -> None:
    of_raylet = {
        name
        for name, method in METHODS.items()
        if method.service == "RayletService" and method.deadline_s is not None
    }
    assert REPEATED.keys() == of_raylet


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.invariant("I25")
def test_repeated_call_has_no_second_effect(play: Any, wait_until: Any, name: str) -> None:
    async def test(cluster: Any) -> None:
        await cluster.client.start_actor(spec(), 0)
        await wait_until(lambda: cluster.gcs.started)

        async def settled() -> list[Any]:
            statistics = cluster.raylet.statistics()
            return [statistics.actors, len(cluster.gcs.started), len(cluster.gcs.failed)]

        def is_at_rest() -> bool:
            statistics = cluster.raylet.statistics()
            lives = {"RayletService.StartActor": 2, "RayletService.KillActor": 0}.get(name, 1)
            return statistics.actors == lives and statistics.unsent_reports == 0

        first = await REPEATED[name](cluster.client)
        await wait_until(is_at_rest)
        before = await settled()
        assert await REPEATED[name](cluster.client) == first
        await cluster.client.status()  # ordered behind it
        await wait_until(is_at_rest)
        assert await settled() == before

    play(test)
