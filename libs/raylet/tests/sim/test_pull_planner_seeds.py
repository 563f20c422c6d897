"""A seeded world around the pull planner: nodes that die, stall and cut, a store that is full,
processes that cancel and end. A failure prints its seed; ``pytest "...[seed-17]"`` replays it.

What the world knows independently: which bytes of which copy were written, what is under way, and
which pulls were answered. Every pull ends, exactly once, and in bounded time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Any, assert_never

import pytest

from skate_raylet.machine import pull_events as on
from skate_raylet.machine.pull_config import PullConfig
from skate_raylet.machine.pull_planner import PullPlanner

SEEDS = range(150)
STEPS = 200
NODES = [b"n%d" % number for number in range(6)]
HERE = NODES[0]
PROCESSES = [b"p%d" % number for number in range(4)]
OWNERS = [b"o1", b"o2"]
SETTLED_S = 900.0  # far more than all retries, stalls and waits for room of one run in a row
CONFIG = PullConfig(
    bytes_max=200,
    transfers_max=4,
    ranges_per_source_max=2,
    split_bytes=100,
    piece_bytes=30,
    stall_s=10.0,
    retry_pause_s=0.2,
    room_wait_s=5.0,
    unknown_node_s=3.0,
)


class Copy:
    """Room in the world's store."""

    def __init__(self, size_bytes: int) -> None:
        self.written = bytearray(size_bytes)
        self.writers: dict[int, on.FetchRange] = {}


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.planner = PullPlanner(CONFIG, HERE)
        self.now_s = 0.0
        self.pending: list[tuple[float, int, Any]] = []  # what the shell will tell
        self.order = itertools.count()
        self.dead: dict[bytes, None] = {}
        self.sizes = {b"x%d" % n: self.random.choice([0, 1, 20, 90, 150, 400]) for n in range(12)}
        self.holders = {x: self.random.sample(NODES, self.random.randrange(4)) for x in self.sizes}
        self.sealed: dict[bytes, None] = {}
        self.copies: dict[bytes, Copy] = {}
        self.making: dict[bytes, None] = {}
        self.open: dict[tuple[bytes, int], float] = {}  # pulls that were not answered
        self.numbers = itertools.count(1)
        self.stopped: dict[int, None] = {}
        self.stalled: dict[int, tuple[bytes, int]] = {}
        self.gone: dict[bytes, None] = {}
        self.faults = self.random.choice([0.0, 0.2, 0.5])
        self.fullness = self.random.choice([0.0, 0.0, 0.3, 1.0])

    # ---- the shell's side ----

    def tell(self, event: Any) -> None:
        for command in self.planner.handle(event, self.now_s):
            self.obey(command)
        self.planner.check_invariants()
        under_way = [self.sizes[object_id] for object_id in {**self.making, **self.copies}]
        assert len(under_way) <= CONFIG.transfers_max
        assert len(under_way) <= 1 or sum(under_way) <= CONFIG.bytes_max

    def later(self, event: Any, most_s: float = 2.0) -> None:
        at_s = self.now_s + self.random.uniform(0.001, most_s)
        heapq.heappush(self.pending, (at_s, next(self.order), event))

    def obey(self, command: on.PullCommand) -> None:
        match command:
            case on.MakeRoom(object_id):
                assert object_id not in self.making, "two transfers of one object"
                assert object_id not in self.copies, "two transfers of one object"
                self.making[object_id] = None
                self.later(self.answer_room(object_id))
            case on.FetchRange():
                self.fetch(command)
            case on.StopRange(object_id, range_id):
                assert range_id in self.copies[object_id].writers, "stopped what is not under way"
                self.stopped[range_id] = None
                if range_id in self.stalled:
                    self.later(on.RangeFailed(*self.stalled.pop(range_id)[:1], range_id, 0, "stop"))
            case on.SealCopy(object_id):
                copy = self.copies[object_id]
                assert not copy.writers, "sealed while somebody writes"
                assert all(copy.written), "sealed with a hole"
                self.later(on.CopySealed(object_id))
            case on.DropCopy(object_id):
                assert not self.copies[object_id].writers, "dropped while somebody writes"
                self.later(on.CopyDropped(object_id))
            case on.EndPull(process_id, pull_id, kind):
                assert kind in {"", "lost", "full", "cancelled"}
                assert process_id not in self.gone, "told a process that is gone"
                assert (process_id, pull_id) in self.open, "answered twice"
                del self.open[process_id, pull_id]
            case _:
                assert_never(command)

    def answer_room(self, object_id: bytes) -> Any:
        if object_id in self.sealed:
            return on.RoomRefused(object_id, on.RoomRefusal.SEALED)
        if self.random.random() < self.fullness:
            reason = self.random.choice(
                [on.RoomRefusal.FULL, on.RoomRefusal.FULL, on.RoomRefusal.BEING_WRITTEN]
            )
            return on.RoomRefused(object_id, reason, "full")
        return on.RoomMade(object_id)

    def fetch(self, command: on.FetchRange) -> None:
        object_id, range_id, node_id = command.object_id, command.range_id, command.node_id
        copy = self.copies[object_id]
        assert node_id != HERE
        assert command.size_bytes == len(copy.written)
        assert not any(copy.written[command.offset : command.offset + command.length]), "twice"
        for other in copy.writers.values():
            disjoint = (
                command.offset >= other.offset + other.length
                or other.offset >= command.offset + command.length
            )
            assert disjoint, "two sources write one range"
            assert other.node_id != node_id, "one source sends two parts of one object"
        copy.writers[range_id] = command
        busy = sum(
            one.node_id == node_id
            for other in self.copies.values()
            for one in other.writers.values()
        )
        assert busy <= CONFIG.ranges_per_source_max
        if node_id not in self.holders[object_id]:
            self.later(on.RangeFailed(object_id, range_id, 0, "absent", is_absent=True))
        elif node_id in self.dead or self.random.random() < self.faults:
            self.fail(command)
        else:
            self.later(on.RangeFetched(object_id, range_id), 4.0)

    def fail(self, command: on.FetchRange) -> None:
        object_id, range_id = command.object_id, command.range_id
        if self.random.random() < 0.3:
            self.stalled[range_id] = (object_id, range_id)
            return
        received = self.random.randint(0, command.length)
        self.later(on.RangeFailed(object_id, range_id, received, "cut"))

    def happen(self, event: Any) -> None:
        """Something that the shell was waiting for."""
        match event:
            case on.RoomMade(object_id):
                del self.making[object_id]
                self.copies[object_id] = Copy(self.sizes[object_id])
            case on.RoomRefused(object_id):
                del self.making[object_id]
            case on.RangeFetched(object_id, range_id):
                self.write(object_id, range_id, None)
            case on.RangeFailed(object_id, range_id, received):
                self.write(object_id, range_id, received)
            case on.CopySealed(object_id):
                del self.copies[object_id]
                self.sealed[object_id] = None
            case on.CopyDropped(object_id):
                del self.copies[object_id]
        self.tell(event)

    def write(self, object_id: bytes, range_id: int, received: int | None) -> None:
        copy = self.copies[object_id]
        command = copy.writers.pop(range_id)
        length = command.length if received is None else received
        copy.written[command.offset : command.offset + length] = b"\1" * length

    # ---- what processes and nodes do ----

    def step(self) -> None:
        choice = self.random.random()
        if choice < 0.5:
            self.ask()
        elif choice < 0.6 and self.open:
            self.tell(on.PullCancelled(*self.random.choice(list(self.open))))
        elif choice < 0.63:
            self.end_process(self.random.choice(PROCESSES))
        elif choice < 0.65:
            self.tell(on.OwnerGone(self.random.choice(OWNERS), "killed"))
        elif choice < 0.72:
            self.tell(on.NodeSeen(self.random.choice(NODES)))
        elif choice < 0.74 and len(self.dead) < 3:
            node_id = self.random.choice(NODES[1:])
            self.dead[node_id] = None
            self.tell(on.NodeGone(node_id, "killed"))
        elif choice < 0.76 and self.copies:
            object_id = self.random.choice(list(self.copies))  # in whatever stage it is
            self.tell(on.RoomWithdrawn(object_id, "the machine is short of memory"))
        elif choice < 0.78 and self.sealed:
            del self.sealed[self.random.choice(list(self.sealed))]  # evicted
        self.advance(self.random.choice([0.0, 0.01, 0.5, 3.0]))

    def ask(self) -> None:
        living = [process for process in PROCESSES if process not in self.gone]
        if not living:
            return
        process_id = self.random.choice(living)
        object_id = self.random.choice(list(self.sizes))
        pull_id = next(self.numbers)
        self.open[process_id, pull_id] = self.now_s
        sources = tuple(self.random.sample(NODES, self.random.randrange(4)))
        if self.random.random() < 0.7:
            sources = tuple(self.holders[object_id]) + sources
        request = on.PullRequested(
            process_id,
            pull_id,
            object_id,
            self.sizes[object_id],
            self.random.choice(OWNERS),
            sources,
            self.random.randrange(3),
            tuple(self.random.sample(NODES, self.random.choice([0, 0, 0, 1, 2]))),
        )
        self.tell(request)
        if self.random.random() < 0.1 and (process_id, pull_id) in self.open:
            self.tell(request)

    def end_process(self, process_id: bytes) -> None:
        self.gone[process_id] = None
        self.open = {pull: at_s for pull, at_s in self.open.items() if pull[0] != process_id}
        self.tell(on.ProcessGone(process_id))

    def advance(self, duration_s: float) -> None:
        """Let time pass: what is due happens, and the planner is woken when it asked for it."""
        end_s = self.now_s + duration_s
        while True:
            wakeup = self.planner.next_wakeup()
            next_event_s = self.pending[0][0] if self.pending else end_s + 1.0
            wake_s = wakeup[0] if wakeup is not None else end_s + 1.0
            if min(next_event_s, wake_s) > end_s:
                break
            if next_event_s <= wake_s:
                at_s, _, event = heapq.heappop(self.pending)
                self.now_s = max(self.now_s, at_s)
                self.happen(event)
            else:
                # Late, as a busy loop is; never too early.
                self.now_s = max(self.now_s, wake_s) + self.random.choice([0.0, 0.0, 0.3])
                self.tell(on.TimePassed())
        self.now_s = max(self.now_s, end_s)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
@pytest.mark.invariant("I1")
def test_pull_planner_random_world_ends_every_pull_within_its_bounds(seed: int) -> None:
    world = World(seed)
    for node_id in NODES:
        if world.random.random() < 0.8:
            world.tell(on.NodeSeen(node_id))
    for _ in range(STEPS):
        world.step()
    world.advance(SETTLED_S)
    assert world.open == {}, "a pull never ended"
    assert world.copies == {}
    assert world.making == {}
    counts = world.planner.statistics()
    assert (counts.queued, counts.under_way, counts.bytes_under_way) == (0, 0, 0)
    assert world.planner.next_wakeup() is None


def test_same_seed_gives_the_same_history() -> None:
    def run() -> list[Any]:
        world = World(7)
        history: list[Any] = []
        obey = world.obey
        world.obey = lambda command: (history.append(command), obey(command))[1]  # type: ignore[method-assign, func-returns-value]
        for _ in range(STEPS):
            world.step()
        return history

    assert run() == run()
