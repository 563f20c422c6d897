"""Streams under lost workers, late messages of dead attempts, and a consumer that drops the
generator, each at any moment.

The world has one producer at a time, which yields as ``production`` does; a line of messages to the
owner that keeps its order within an attempt and may outlive the attempt; and a line back.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from skate_worker.machine.generator_stream import GeneratorStream, Waiters
from skate_worker.machine.references import FAILED, INLINE, Entry, ReferenceTable

TASK_ID = b"t" * 24
STEPS_MAX = 5_000
ERROR = b"error"


class Producer:
    """One attempt. ``line``: its messages that the owner has not seen: an index, or the end."""

    def __init__(self, attempt: int, size: int, fails: bool, limit: int) -> None:
        self.attempt = attempt
        self.size = size
        self.fails = fails
        self.limit = limit
        self.produced = 0
        self.consumed = 0
        self.has_ended = False
        self.is_stopped = False
        self.line: deque[int | str] = deque()
        self.credits: deque[int] = deque()

    def can_step(self) -> bool:
        is_full = self.limit and self.produced - self.consumed >= self.limit
        return not self.has_ended and (self.is_stopped or not is_full)

    def step(self) -> None:
        if self.is_stopped or self.produced == self.size:
            self.line.append("failed" if self.fails and not self.is_stopped else "ended")
            self.has_ended = True
        else:
            self.line.append(self.produced)
            self.produced += 1


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        rng = self.rng
        self.size = rng.choice((0, 1, 2, 5, 12))
        self.limit = rng.choice((0, 0, 1, 2, 4))
        self.fails = rng.random() < 0.3
        self.retries = rng.choice((0, 1, 2, 5))
        self.deaths = rng.choice((0, 1, 2, 5))  # bounded, or deaths would end what hangs
        self.table = ReferenceTable()
        self.stream = GeneratorStream(self.table, TASK_ID, self.limit)
        self.producer = self._attempt(0)
        self.late: list[Producer] = []  # dead, with messages that still arrive
        self.taken: list[Entry] = []
        self.held: list[Entry] = []
        self.values: dict[bytes, int] = {}  # what each filled entry was filled with
        self.woken = 0
        self.released: list[Entry] = []
        self.is_over = False
        self.died_for_good = False

    def _attempt(self, number: int) -> Producer:
        return Producer(number, self.size, self.fails, self.limit)

    def wake(self, waiters: Waiters) -> None:
        for entry, callbacks in waiters:
            for callback in callbacks:
                callback(entry)

    def deliver(self, producer: Producer) -> None:
        message = producer.line.popleft()
        stream = self.stream
        if isinstance(message, int):
            entry = stream.accept(message, producer.attempt)
            if entry is not None:
                assert entry.object_id not in self.values, "an item was given twice"
                self.values[entry.object_id] = message
                self.wake([(entry, entry.settle(INLINE, b"value") or [])])
            elif stream.is_dropped:
                producer.is_stopped = True
            self.tell(producer)
        elif producer is self.producer:
            self.is_over = True
            if message == "failed":
                self.wake(stream.fail(ERROR, self.released))
            else:
                stream.announced = producer.produced
                self.wake(stream.finish(self.released))

    def tell(self, producer: Producer) -> None:
        consumed = self.stream.credit()
        if consumed is not None:
            producer.credits.append(consumed)

    def kill(self) -> None:
        self.deaths -= 1
        self.late.append(self.producer)
        if self.rng.random() < 0.5:
            while self.producer.line and self.rng.random() < 0.5:
                self.producer.line.pop()  # the tail of the line was lost with the process
        if self.retries:
            self.retries -= 1
            self.producer = self._attempt(self.producer.attempt + 1)
        else:
            self.is_over = self.died_for_good = True
            self.wake(self.stream.fail(ERROR, self.released))

    def take(self) -> None:
        entry = self.stream.take()
        if entry is not None:
            self.taken.append(entry)
            self.held.append(entry)
            self.tell(self.producer)

    def watch(self) -> None:
        head = self.stream.head
        if head.state == 0:
            head.waiters = [self._on_woken]

    def _on_woken(self, entry: Entry) -> None:
        self.woken += 1

    def check(self) -> None:
        self.stream.check_invariants()
        self.table.check_invariants()
        if self.limit and not self.stream.is_dropped:
            assert self.producer.produced - self.stream.consumed <= self.limit

    def step(self, kills: float, drops: float) -> None:
        rng = self.rng
        producer = self.producer
        actions = []
        if not self.is_over:
            if producer.can_step():
                actions.append(producer.step)
            if producer.line:
                actions.append(lambda: self.deliver(producer))
            if producer.credits:
                actions.append(
                    lambda: setattr(
                        producer,
                        "consumed",
                        max(producer.consumed, producer.credits.popleft()),
                    )
                )
            if self.deaths and rng.random() < kills:
                actions.append(self.kill)
        late = [dead for dead in self.late if dead.line and isinstance(dead.line[0], int)]
        if late:
            actions.append(lambda: self.deliver(late[0]))
        if not self.stream.is_dropped:
            if self.stream.is_ready:
                actions.append(self.take)
            else:
                actions.append(self.watch)
            if rng.random() < drops:
                actions.append(lambda: self.stream.drop(self.released))
        if self.held and rng.random() < 0.3:
            entry = self.held.pop(rng.randrange(len(self.held)))
            actions.append(lambda: self.table.drop_local(entry, self.released))
            actions[-1]()
            return
        if actions:
            rng.choice(actions)()

    def is_done(self) -> bool:
        return self.is_over and (self.stream.is_dropped or self.stream.is_finished)


def run(seed: int, kills: float, drops: float) -> World:
    world = World(seed)
    for _ in range(STEPS_MAX):
        if world.is_done():
            break
        world.step(kills, drops)
        world.check()
    assert world.is_done(), f"seed {seed}: the stream came to no end"
    return world


def check_end(world: World) -> None:
    got = world.taken
    values = [world.values[entry.object_id] for entry in got if entry.state == INLINE]
    assert values == list(range(len(values))), "each item once, in order"
    errors = [entry for entry in got if entry.state == FAILED]
    assert errors == got[len(values) :], "an error is last"
    if not world.stream.is_dropped:
        has_error = world.fails or world.died_for_good
        assert len(errors) == (1 if has_error else 0)
        if not world.died_for_good:
            assert len(values) == world.size
    for entry in world.held:
        world.table.drop_local(entry, world.released)
    world.stream.drop(world.released)
    assert world.table.entries == {}, "something is still held"
    assert len(set(map(id, world.released))) == len(world.released), "released twice"


@pytest.mark.parametrize("seed", range(400))
@pytest.mark.invariant("I31")
def test_each_item_comes_once_and_in_order_however_often_workers_die(seed: int) -> None:
    check_end(run(seed, kills=0.15, drops=0.0))


@pytest.mark.parametrize("seed", range(400))
@pytest.mark.invariant("I31")
def test_stream_that_is_dropped_at_any_moment_leaves_nothing(seed: int) -> None:
    check_end(run(seed, kills=0.05, drops=0.05))
