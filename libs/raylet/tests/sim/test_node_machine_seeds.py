"""A seeded world around the node's machine: drivers, workers, deaths, late and repeated messages.

A failure prints its seed; ``pytest
"...::test_node_machine_random_world_keeps_its_invariants[seed-17]"`` replays it. What the world
knows independently (who was granted what) is compared with the machine's books.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import CPU, ResourceSet

SEEDS = range(40)
STEPS = 250
TOTAL = ResourceSet.from_amounts({"CPU": 4, "GPU": 2, "memory": 10})
SHAPES: list[dict[str, float]] = [
    {"CPU": 1},
    {"CPU": 1},
    {"CPU": 0.5},
    {"CPU": 4},
    {"CPU": 1, "GPU": 0.5},
    {"GPU": 2},
    {},
]
IMPOSSIBLE: dict[str, float] = {"CPU": 99}
ENVS: list[on.EnvVars] = [(), (("A", "1"),)]
WORKERS_MAX = 30
STARTS_MAX = 4


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.machine = NodeMachine(
            LeaseConfig(TOTAL, b"node", infeasible_grace_s=10.0),
            PoolConfig(soft_limit=4, starts_max=STARTS_MAX, workers_max=WORKERS_MAX),
        )
        self.now_s = 0.0
        self.drivers: dict[bytes, bytes] = {}  # holder -> job
        self.jobs = 0
        self.processes: dict[int, tuple[bytes, bytes]] = {}  # startup -> (worker id or b"", job)
        self.worker_of: dict[bytes, int] = {}
        self.ending: dict[int, None] = {}
        self.asked: dict[tuple[bytes, int], bytes] = {}  # open requests -> job
        self.granted: dict[
            bytes, do.GrantLease
        ] = {}  # live task leases, as their holders know them
        self.shape_of: dict[tuple[bytes, int], ResourceSet] = {}
        self.actors: dict[tuple[bytes, int], str] = {}  # -> "waiting" | "placed"
        self.blocked: dict[bytes, None] = {}
        self.asked_back: dict[bytes, None] = {}
        self.told_of_others: dict[bytes, None] = {}
        self.count = 0
        self.log: list[str] = []

    # ---- the shell's side ----

    def tell(self, event: Any) -> None:
        self.log.append(f"{self.now_s:.2f} {event}")
        for command in self.machine.handle(event, self.now_s):
            self.log.append(f"        {command}")
            self.obey(command)
        self.check()

    def obey(self, command: do.NodeCommand) -> None:
        match command:
            case do.StartWorker(startup_id, job_id):
                assert startup_id not in self.processes
                self.processes[startup_id] = (b"", job_id)
                assert len(self.processes) <= WORKERS_MAX
            case do.EndWorker(startup_id):
                assert startup_id in self.processes
                self.ending[startup_id] = None
            case do.GrantLease(holder_id, request_id, lease_id, startup_id, worker_id):
                assert self.asked.pop((holder_id, request_id)), "granted what was not asked"
                assert self.processes[startup_id][0] == worker_id
                assert startup_id not in self.ending, "granted a worker that was told to end"
                assert worker_id not in [grant.worker_id for grant in self.granted.values()]
                self.granted[lease_id] = command
            case do.RefuseLease(holder_id, request_id):
                assert self.asked.pop((holder_id, request_id))
            case do.LoseLease(holder_id, lease_id, worker_id):
                grant = self.granted.pop(lease_id)
                assert (grant.holder_id, grant.worker_id) == (holder_id, worker_id)
                assert worker_id not in self.worker_of, "lost a lease whose worker lives"
            case do.AskLeaseBack(_, lease_id):
                assert lease_id not in self.asked_back, "asked back twice"
                assert lease_id in self.granted
                self.asked_back[lease_id] = None
            case do.TellOthersWait(holder_id, lease_id):
                assert lease_id not in self.told_of_others, "told twice"
                assert self.granted[lease_id].holder_id == holder_id
                self.told_of_others[lease_id] = None
            case do.PlaceActor(actor_id, incarnation, _, startup_id):
                assert self.actors[actor_id, incarnation] == "waiting"
                assert startup_id not in self.ending
                self.actors[actor_id, incarnation] = "placed"
            case do.RefuseActor(actor_id, incarnation):
                assert self.actors.pop((actor_id, incarnation)) == "waiting"
            case do.LoseActor(actor_id, incarnation):
                assert self.actors.pop((actor_id, incarnation)) == "placed"

    def check(self) -> None:
        self.machine.check_invariants()
        waiting = {item.request for item in self.machine.waiting(self.now_s)}
        for holder_id, request_id in self.asked:
            assert any(
                getattr(request, "holder_id", None) == holder_id
                and getattr(request, "request_id", None) == request_id
                for request in waiting
            ), "a request is neither waiting nor answered"
        # The world's own sum of what is out, without the machine's lending.
        out = ResourceSet.total_of(
            self.shape_of[grant.holder_id, grant.request_id].without(CPU)
            for grant in self.granted.values()
        )
        assert out.fits_in(TOTAL)
        for name in TOTAL:
            assert 0 <= self.machine.available[name] <= TOTAL[name]

    # ---- what may happen ----

    def holders(self) -> dict[bytes, bytes]:
        busy = {
            grant.worker_id: self.processes[grant.startup_id][1]
            for grant in self.granted.values()
            if grant.startup_id in self.processes
        }
        return {**self.drivers, **busy}

    def new_driver(self) -> None:
        if len(self.drivers) < 3:
            self.jobs += 1
            self.drivers[b"driver%d" % self.jobs] = self.jobs.to_bytes(4, "big")

    def request(self) -> None:
        holders = self.holders()
        if not holders or len(self.asked) > 40:
            return
        holder = self.random.choice(list(holders))
        self.count += 1
        amounts = IMPOSSIBLE if self.random.random() < 0.02 else self.random.choice(SHAPES)
        shape = ResourceSet.from_amounts(amounts)
        self.asked[holder, self.count] = holders[holder]
        self.shape_of[holder, self.count] = shape
        event = on.LeaseRequested(
            holder, self.count, holders[holder], shape, self.random.choice(ENVS)
        )
        self.tell(event)
        if self.random.random() < 0.05:
            self.tell(event)

    def cancel(self) -> None:
        if self.asked:
            key = self.random.choice(list(self.asked))
            del self.asked[key]
            self.tell(on.LeaseRequestCancelled(*key))

    def give_back(self) -> None:
        if self.granted:
            lease_id = self.random.choice([*self.asked_back, *self.granted])
            self.asked_back.pop(lease_id, None)
            grant = self.granted.pop(lease_id, None)
            if grant is None:
                return
            event = on.LeaseReturned(grant.holder_id, lease_id, self.random.random() < 0.1)
            self.tell(event)
            if self.random.random() < 0.1:
                self.tell(event)

    def register(self) -> None:
        starting = [number for number, (worker_id, _) in self.processes.items() if not worker_id]
        if not starting:
            return
        number = self.random.choice(starting)
        job = self.processes[number][1]
        if self.random.random() < 0.1:
            del self.processes[number]
            self.ending.pop(number, None)
            self.tell(on.WorkerStartFailed(number, "failed", self.random.random() < 0.5))
        else:
            worker_id = b"worker%d" % number
            self.processes[number] = (worker_id, job)
            self.worker_of[worker_id] = number
            self.tell(on.WorkerRegistered(number, worker_id))

    def die(self, number: int | None = None) -> None:
        alive = [one for one, (worker_id, _) in self.processes.items() if worker_id]
        if number is None:
            if not alive:
                return
            number = self.random.choice(alive)
        worker_id, _ = self.processes.pop(number)
        was_ending = self.ending.pop(number, "alive")
        if not worker_id:
            assert was_ending is None
            self.tell(on.WorkerStartFailed(number, "ended while it started", False))
            return
        del self.worker_of[worker_id]
        self.blocked.pop(worker_id, None)
        self.forget_holder(worker_id)
        self.tell(on.WorkerGone(number, worker_id))

    def forget_holder(self, holder: bytes) -> None:
        for key in [key for key in self.asked if key[0] == holder]:
            del self.asked[key]
        for lease_id in [one for one, grant in self.granted.items() if grant.holder_id == holder]:
            self.granted.pop(lease_id)
            self.asked_back.pop(lease_id, None)

    def end_some(self) -> None:
        for number in list(self.ending):
            if self.random.random() < 0.7:
                self.die(number)

    def block(self) -> None:
        grants = [grant.worker_id for grant in self.granted.values()]
        if grants:
            worker_id = self.random.choice(grants)
            if worker_id in self.blocked:
                del self.blocked[worker_id]
                self.tell(on.WorkerUnblocked(worker_id))
            elif worker_id in self.worker_of:
                self.blocked[worker_id] = None
                self.tell(on.WorkerBlocked(worker_id))

    def actor(self) -> None:
        if not self.drivers or len(self.actors) > 8:
            return
        self.count += 1
        job = self.random.choice(list(self.drivers.values()))
        running = ResourceSet.from_amounts(self.random.choice([{}, {"CPU": 1}, {"GPU": 1}]))
        key = (b"actor%d" % self.count, self.random.randrange(3))
        self.actors[key] = "waiting"
        event = on.ActorRequested(
            *key,
            job,
            running or ResourceSet.from_amounts({"CPU": 1}),
            running,
        )
        self.tell(event)
        if self.random.random() < 0.2:
            self.tell(event)

    def kill_actor(self) -> None:
        if self.actors:
            key = self.random.choice(list(self.actors))
            if self.actors[key] == "waiting":
                del self.actors[key]
            self.tell(on.ActorEnded(*key, "killed_by_user", "killed"))

    def lose_driver(self) -> None:
        if self.drivers:
            holder = self.random.choice(list(self.drivers))
            job = self.drivers.pop(holder)
            self.forget_holder(holder)
            self.tell(on.HolderGone(holder))
            self.tell(on.JobFinished(job))

    def pass_time(self) -> None:
        wakeup = self.machine.next_wakeup(self.now_s)
        step_s = self.random.choice([0.01, 0.1, 1.0])
        if wakeup is not None:
            assert wakeup[0] >= self.now_s or wakeup[0] == pytest.approx(self.now_s)
            step_s = min(step_s, max(0.0, wakeup[0] - self.now_s))
        self.now_s += step_s
        self.tell(on.TimePassed())

    def run(self) -> None:
        deeds: list[tuple[Callable[[], None], int]] = [
            (self.new_driver, 2),
            (self.request, 12),
            (self.cancel, 2),
            (self.give_back, 8),
            (self.register, 12),
            (self.die, 1),
            (self.end_some, 4),
            (self.block, 4),
            (self.actor, 2),
            (self.kill_actor, 1),
            (self.lose_driver, 1),
            (self.pass_time, 8),
        ]
        choices = [deed for deed, weight in deeds for _ in range(weight)]
        for _ in range(STEPS):
            self.random.choice(choices)()

    def drain(self) -> None:
        """Everybody goes home: everything must come back."""
        while self.drivers:
            self.lose_driver()
        for _ in range(200):
            for key in list(self.actors):
                if self.actors[key] == "waiting":
                    del self.actors[key]
                self.tell(on.ActorEnded(*key, "killed_by_user", "killed"))
            for grant in list(self.granted.values()):
                del self.granted[grant.lease_id]
                self.tell(on.LeaseReturned(grant.holder_id, grant.lease_id))
            self.register()
            for number in list(self.ending):
                self.die(number)
            self.now_s += 1.0
            self.tell(on.TimePassed())
        assert self.machine.leases() == []
        assert self.machine.available == TOTAL
        assert self.machine.waiting(self.now_s) == []
        assert self.processes == {}, "workers of finished jobs are left"
        assert self.machine.next_wakeup(self.now_s) is None


def play(seed: int) -> World:
    world = World(seed)
    try:
        world.run()
        world.drain()
    except AssertionError:
        print("\n".join(world.log[-40:]))
        raise
    return world


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
@pytest.mark.invariant("I14")
def test_node_machine_random_world_keeps_its_invariants(seed: int) -> None:
    play(seed)


def test_node_machine_same_seed_gives_the_same_history() -> None:
    assert play(3).log == play(3).log
