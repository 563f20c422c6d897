"""What the raylet is told of tasks that no worker is asked for: counted once, at one request."""

from __future__ import annotations

import random

import pytest

from skate_worker.machine.lease_pool import REQUESTS_MAX, KeyQueue, LeasePool

pytestmark = pytest.mark.surface("Z2")


class Raylet:
    """A pool whose tasks never get a worker, and what its raylet was told of each request."""

    def __init__(self) -> None:
        self.pool: LeasePool[int] = LeasePool()
        self.told: dict[int, int] = {}

    def submit(self, key: str, count: int) -> KeyQueue[int]:
        queue = self.pool.queue_of(key)
        for number in range(count):
            self.pool.submit(queue, number)
            for _ in range(self.pool.requests_wanted(queue)):
                request_id = self.pool.new_request(queue)
                self.told[request_id] = self.pool.first_backlog(queue, request_id)
        return queue

    def end(self, request_id: int) -> None:
        self.pool.end_request(request_id)
        del self.told[request_id]

    def tick(self) -> list[tuple[int, int]]:
        news = self.pool.backlog_news()
        self.told.update(news)
        self.pool.check_invariants()
        return news

    def counted(self, queue: KeyQueue[int]) -> int:
        """Tasks that wait, as the raylet counts them."""
        return sum(1 + self.told[request_id] for request_id in queue.requests)


def test_burst_is_told_once_however_many_workers_are_asked_for() -> None:
    raylet = Raylet()
    queue = raylet.submit("cpu", 1000)
    assert raylet.counted(queue) == REQUESTS_MAX
    ((_, backlog),) = raylet.tick()
    assert backlog == 1000 - REQUESTS_MAX
    assert raylet.counted(queue) == 1000
    assert raylet.tick() == []


def test_request_that_follows_the_one_that_told_tells_at_once() -> None:
    raylet = Raylet()
    queue = raylet.submit("cpu", 1000)
    ((teller, _),) = raylet.tick()
    raylet.end(teller)
    queue.pending.popleft()
    raylet.submit("cpu", 1)
    assert raylet.counted(queue) == len(queue.pending) == 1000


def test_backlog_that_is_told_before_its_request_is_sent_goes_with_the_request() -> None:
    raylet = Raylet()
    queue = raylet.pool.queue_of("cpu")
    for number in range(5):
        raylet.pool.submit(queue, number)
    request_id = raylet.pool.new_request(queue)
    assert raylet.pool.backlog_news() == [(request_id, 4)]
    assert raylet.pool.first_backlog(queue, request_id) == 4


@pytest.mark.parametrize("seed", range(20))
def test_after_each_tick_every_task_that_waits_is_counted_once(seed: int) -> None:
    rng = random.Random(seed)
    raylet = Raylet()
    queues = [raylet.submit(key, 0) for key in ("one", "two")]
    for _ in range(200):
        queue = rng.choice(queues)
        match rng.randrange(4):
            case 0:
                raylet.submit(str(queue.key), rng.randrange(20))
            case 1 if queue.requests:
                raylet.end(rng.choice(list(queue.requests)))
            case 2:
                for _ in range(rng.randrange(len(queue.pending) + 1)):
                    queue.pending.pop()
            case _:
                raylet.tick()
                for one in queues:
                    if one.requests:
                        assert raylet.counted(one) == max(len(one.requests), len(one.pending))
