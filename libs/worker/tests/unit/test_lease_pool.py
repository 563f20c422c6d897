"""The lease pool: who gets a task, how windows grow, what a death and a take-back leave behind."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from skate_worker.machine.lease_pool import (
    LINGER_S,
    REQUESTS_MAX,
    SHORT_LINGER_S,
    Lease,
    LeasePool,
)

KEY = "cpu"


@dataclass
class Task:
    task_id: bytes
    is_solo: bool = False
    attempt: int = 0


def task(number: int, *, is_solo: bool = False) -> Task:
    return Task(number.to_bytes(4, "big"), is_solo)


def lease(name: bytes) -> Lease[Task]:
    return Lease(name, b"worker-" + name, "unix:/x", 1)


def end(
    pool: LeasePool[Task],
    granted: Lease[Task],
    task_id: bytes,
    attempt: int,
    run_s: float,
    now_s: float,
) -> Task | None:
    """One outcome comes; gives the task whose end it is."""
    outcome = SimpleNamespace(task_id=task_id, attempt=attempt, run_us=run_s * 1e6)
    finished, given_up = pool.done_all(granted, [outcome], now_s)
    assert len(finished) + len(given_up) == 1
    return finished[0][0] if finished else None


class World:
    """A pool with a queue, and what its workers hold."""

    def __init__(self) -> None:
        self.pool: LeasePool[Task] = LeasePool()
        self.queue = self.pool.queue_of(KEY)

    def grant(self, name: bytes) -> tuple[Lease[Task], list[Task]]:
        granted = lease(name)
        self.pool.granted(self.queue, granted, 0.0)
        return granted, self.pool.refill(granted)


def test_submit_without_a_lease_waits_and_asks_for_one() -> None:
    world = World()
    assert world.pool.submit(world.queue, task(1)) is None
    assert world.pool.requests_wanted(world.queue) == 1


def test_requests_for_a_burst_are_bounded() -> None:
    world = World()
    for number in range(1000):
        world.pool.submit(world.queue, task(number))
    assert world.pool.requests_wanted(world.queue) == REQUESTS_MAX


def test_first_tasks_travel_alone_until_their_length_is_known() -> None:
    world = World()
    for number in range(100):
        world.pool.submit(world.queue, task(number))
    granted, pushed = world.grant(b"a")
    assert [t.task_id for t in pushed] == [task(0).task_id]
    end(world.pool, granted, task(0).task_id, 0, 10e-6, 1.0)
    assert len(world.pool.refill(granted)) == 99


def test_long_tasks_keep_the_window_at_one() -> None:
    world = World()
    for number in range(3):
        world.pool.submit(world.queue, task(number))
    granted, _ = world.grant(b"a")
    end(world.pool, granted, task(0).task_id, 0, 2.0, 1.0)
    assert [t.task_id for t in world.pool.refill(granted)] == [task(1).task_id]


def test_task_without_retries_shares_a_worker_with_no_other() -> None:
    world = World()
    world.pool.submit(world.queue, task(0))
    granted, _ = world.grant(b"a")
    end(world.pool, granted, task(0).task_id, 0, 1e-6, 1.0)
    world.pool.refill(granted)
    assert world.pool.submit(world.queue, task(1, is_solo=True)) is granted
    assert world.pool.submit(world.queue, task(2)) is None
    assert world.pool.submit(world.queue, task(3, is_solo=True)) is None


def test_idle_worker_takes_half_of_what_waits_elsewhere() -> None:
    world = World()
    busy, _ = world.grant(b"a")
    busy.window = 10
    for number in range(8):
        assert world.pool.submit(world.queue, task(number)) is busy
    idle, pushed = world.grant(b"b")
    assert pushed == []
    assert world.pool.steal_for(idle) == (busy, 4)
    assert world.pool.steal_for(idle) is None
    back = world.pool.given_back(busy, [task(n).task_id for n in (4, 5, 6, 7)], is_blocked=False)
    assert [t.task_id for t in back] == [task(n).task_id for n in (4, 5, 6, 7)]
    assert [t.task_id for t in world.pool.refill(idle)] == [task(4).task_id]


def test_blocked_worker_gets_nothing_until_its_task_ends() -> None:
    world = World()
    blocked, _ = world.grant(b"a")
    blocked.window = 10
    world.pool.submit(world.queue, task(0))
    world.pool.submit(world.queue, task(1))
    world.pool.given_back(blocked, [task(1).task_id], is_blocked=True)
    assert world.pool.refill(blocked) == []
    assert world.pool.requests_wanted(world.queue) == 1
    end(world.pool, blocked, task(0).task_id, 0, 1.0, 1.0)
    assert [t.task_id for t in world.pool.refill(blocked)] == [task(1).task_id]


def test_lost_worker_gives_its_tasks_in_the_order_of_pushing() -> None:
    world = World()
    granted, _ = world.grant(b"a")
    granted.window = 10
    for number in range(3):
        world.pool.submit(world.queue, task(number))
    lost = world.pool.lost(b"a")
    assert lost is not None
    assert [t.task_id for t in lost[1]] == [task(n).task_id for n in range(3)]
    assert world.pool.lost(b"a") is None
    assert end(world.pool, granted, task(0).task_id, 0, 1.0, 1.0) is None


def test_reclaimed_lease_is_returned_when_its_task_ends() -> None:
    world = World()
    granted, _ = world.grant(b"a")
    world.pool.submit(world.queue, task(0))
    world.pool.reclaim(b"a")
    assert world.pool.returnable(0.0) == []
    assert world.pool.submit(world.queue, task(1)) is None
    end(world.pool, granted, task(0).task_id, 0, 1.0, 1.0)
    assert world.pool.returnable(1.0) == [granted]


def test_idle_lease_lingers_then_goes() -> None:
    world = World()
    granted, _ = world.grant(b"a")
    assert world.pool.returnable(LINGER_S / 2) == []
    assert world.pool.returnable(LINGER_S) == [granted]


@pytest.mark.parametrize("seed", range(200))
def test_random_histories_run_every_task_exactly_once(seed: int) -> None:
    """Grants, results, give-backs, deaths and reclaims in any order lose and repeat nothing."""
    rng = random.Random(seed)
    world = World()
    pool, queue = world.pool, world.queue
    held: dict[Lease[Task], list[Task]] = {}
    finished: list[bytes] = []
    submitted = 0
    names = iter(range(10**6))

    def push(target: Lease[Task]) -> None:
        held[target].extend(pool.refill(target))

    for step in range(300):
        now_s = step * 0.01
        action = rng.random()
        if action < 0.4:
            new = task(submitted, is_solo=rng.random() < 0.1)
            submitted += 1
            target = pool.submit(queue, new)
            if target is not None:
                held[target].append(new)
        elif action < 0.5 and len(held) < 4:
            granted, pushed = world.grant(str(next(names)).encode())
            held[granted] = pushed
        elif action < 0.8 and held:
            target = rng.choice(list(held))
            if held[target]:
                done = held[target].pop(0)
                assert (
                    end(pool, target, done.task_id, 0, rng.choice((1e-6, 1e-3, 1.0)), now_s) is done
                )
                finished.append(done.task_id)
            push(target)
        elif action < 0.9 and held:
            target = rng.choice(list(held))
            count = rng.randrange(len(held[target]) + 1)
            back = held[target][len(held[target]) - count :] if held[target] else []
            back = back if len(back) < len(held[target]) else back[1:]
            held[target] = [t for t in held[target] if t not in back]
            pool.given_back(target, [t.task_id for t in back], is_blocked=rng.random() < 0.3)
        elif action < 0.95 and held:
            target = rng.choice(list(held))
            lost = pool.lost(target.lease_id)
            assert lost is not None
            assert lost[1] == held.pop(target)
            pool.requeue(queue, lost[1])
        else:
            for target in pool.returnable(now_s):
                assert held.pop(target) == []
        pool.check_invariants()
    final, pushed = world.grant(b"final")
    held[final] = pushed
    while any(held.values()) or queue.pending:
        for target, tasks in held.items():
            while tasks:
                done = tasks.pop(0)
                end(pool, target, done.task_id, 0, 1e-6, 9e9)
                finished.append(done.task_id)
            push(target)
    assert sorted(finished) == [task(n).task_id for n in range(submitted)]


def test_idle_lease_that_others_wait_for_is_returned_after_a_short_pause() -> None:
    world = World()
    granted, _ = world.grant(b"a")
    world.pool.wanted(granted.lease_id)
    assert world.pool.returnable(SHORT_LINGER_S / 2) == []
    assert world.pool.returnable(SHORT_LINGER_S) == [granted]


def test_busy_lease_that_others_wait_for_stays_until_it_pauses() -> None:
    world = World()
    granted, _ = world.grant(b"a")
    world.pool.submit(world.queue, task(1))
    world.pool.wanted(granted.lease_id)
    assert world.pool.returnable(LINGER_S * 2) == []
    end(world.pool, granted, task(1).task_id, 0, 0.001, 1.0)
    assert world.pool.returnable(1.0 + 2 * SHORT_LINGER_S) == [granted]


def test_end_that_is_told_twice_does_not_end_the_retry() -> None:
    world = World()
    first = task(0)
    world.pool.submit(world.queue, first)
    granted, _ = world.grant(b"a")
    assert end(world.pool, granted, first.task_id, 0, 1.0, 1.0) is first
    first.attempt = 1
    world.pool.requeue(world.queue, [first])
    assert world.pool.refill(granted) == [first]

    assert end(world.pool, granted, first.task_id, 0, 1.0, 1.0) is None

    assert granted.in_flight == {first.task_id: first}
    assert end(world.pool, granted, first.task_id, 1, 1.0, 1.0) is first
    world.pool.check_invariants()
