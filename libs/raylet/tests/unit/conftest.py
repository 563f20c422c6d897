from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import ResourceSet

JOB = b"\0\0\0\1"


class Desk:
    """Talks to a node's machine and keeps what it said; every step checks the invariants."""

    def __init__(self, machine: NodeMachine) -> None:
        self.machine = machine
        self.now_s = 0.0
        self.said: list[Any] = []

    def tell(self, event: Any, *, after_s: float = 0.0) -> list[Any]:
        self.now_s += after_s
        said: list[Any] = list(self.machine.handle(event, self.now_s))
        self.machine.check_invariants()
        self.said += said
        return said

    def request(
        self,
        request_id: int,
        holder: bytes = b"driver",
        *,
        job: bytes = JOB,
        env: on.EnvVars = (),
        **amounts: float,
    ) -> list[Any]:
        resources = ResourceSet.from_amounts(amounts or {"CPU": 1})
        return self.tell(on.LeaseRequested(holder, request_id, job, resources, env))

    def actor(
        self,
        name: bytes,
        *,
        incarnation: int = 0,
        job: bytes = JOB,
        **running: float,
    ) -> list[Any]:
        needs = ResourceSet.from_amounts(running)
        placement = needs or ResourceSet.from_amounts({"CPU": 1})
        return self.tell(on.ActorRequested(name, incarnation, job, placement, needs))

    def start(self, said: list[Any]) -> list[Any]:
        """Let every worker that was to be started register; returns what followed."""
        followed: list[Any] = []
        for command in said:
            if isinstance(command, do.StartWorker):
                worker_id = b"w%d" % command.startup_id
                followed += self.tell(on.WorkerRegistered(command.startup_id, worker_id))
        return followed

    def grant(self, request_id: int, holder: bytes = b"driver", **amounts: Any) -> do.GrantLease:
        """Request a lease and see it granted."""
        said = self.request(request_id, holder, **amounts)
        said += self.start(said)
        (grant,) = [command for command in said if isinstance(command, do.GrantLease)]
        return grant

    def place(self, name: bytes, **options: Any) -> do.PlaceActor:
        """Request an actor and see it placed."""
        said = self.actor(name, **options)
        said += self.start(said)
        (place,) = [command for command in said if isinstance(command, do.PlaceActor)]
        return place

    def return_lease(self, grant: do.GrantLease, *, discard: bool = False) -> list[Any]:
        return self.tell(on.LeaseReturned(grant.holder_id, grant.lease_id, discard))

    def free(self, name: str = "CPU") -> float:
        return self.machine.available[name] / 10_000


@pytest.fixture
def make_desk() -> Callable[..., Desk]:
    def make(
        *,
        soft_limit: int = 2,
        starts_max: int = 4,
        workers_max: int = 100,
        infeasible_grace_s: float | None = 10.0,
        **total: float,
    ) -> Desk:
        lease_config = LeaseConfig(
            ResourceSet.from_amounts(total or {"CPU": 2}), b"node", infeasible_grace_s
        )
        return Desk(NodeMachine(lease_config, PoolConfig(soft_limit, starts_max, workers_max)))

    return make


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()
