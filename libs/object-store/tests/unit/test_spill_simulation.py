"""Seeded histories of a store that spills, against an oracle of contents and states.

The world stands in for clients, arena and disk: it writes a fresh number for each object into the
"memory" at its offset, carries out what the table asks of the disk at random later times, with
failures, and checks every byte that a client gets. Run one seed: ``pytest -k seed-17``.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from skate_object_store.constants import RESTORE_MAX_S
from skate_object_store.machine.facts import Copy, ObjectState
from skate_object_store.machine.records import (
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    DeleteFile,
    Effect,
    Freed,
    GetLost,
    GetUnrestored,
    Got,
    GotPart,
    Place,
    ReadBack,
    Ready,
    SpillFailure,
    WriteBatch,
)
from skate_object_store.machine.table import ObjectTable
from skate_object_store.spill_config import SpillConfig

CAPACITY = 64 * 64
NAMES = [b"%d" % number for number in range(16)]
OWNERS = [b"", b"ann", b"bob"]
SEEDS = range(300)
STEPS = 160
CONFIG = SpillConfig(directories=("d",), min_batch_bytes=700, fuse_max=4)


@dataclass
class Life:
    """What the oracle knows of the object that bears a name."""

    value: int
    owner: bytes
    is_evictable: bool
    born: int
    is_lost: bool = False


@dataclass
class Ask:
    """A get that was not answered."""

    names: list[bytes]
    since: int  # an object's number: what died before it is not to be seen
    since_s: float
    timeout_s: float


@dataclass
class World:
    rng: random.Random
    table: ObjectTable = field(default_factory=lambda: ObjectTable(CAPACITY, CONFIG))
    now_s: float = 0.0
    number: int = 0
    memory: dict[int, int] = field(default_factory=dict)  # offset -> value
    disk: dict[str, dict[int, int]] = field(default_factory=dict)  # key -> position -> value
    values: dict[int, int] = field(default_factory=dict)  # serial -> value, of sealed copies
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # serial -> (offset, size)
    lives: dict[bytes, Life] = field(default_factory=dict)
    deaths: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # value -> name, when
    writing: dict[int, tuple[Created, int]] = field(default_factory=dict)
    dead_writes: set[int] = field(default_factory=set)  # deleted while written
    pins: dict[tuple[int, int], int] = field(default_factory=dict)
    asks: dict[tuple[int, int], Ask] = field(default_factory=dict)
    creates: dict[tuple[int, int], float] = field(default_factory=dict)  # -> when it must be over
    batch: WriteBatch | None = None
    reads: list[ReadBack] = field(default_factory=list)
    ranges: list[Created] = field(default_factory=list)  # of restores, whose pages are not ready
    is_disk_full: bool = False
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for client in (1, 2, 3):
            self.table.connect(client)

    # What the table wants done.

    def absorb(self, effects: list[Effect]) -> None:
        for effect in effects:
            self.seen[type(effect).__name__] += 1
            match effect:
                case Created(wish, serial, offset) if wish.client == 0:
                    self.claim(serial, offset, wish.size_bytes)
                    self.ranges.append(effect)
                case Created(wish, serial, offset):
                    del self.creates[wish.client, wish.request]
                    self.claim(serial, offset, wish.size_bytes)
                    self.number += 1
                    self.writing[serial] = (effect, self.number)
                case CreateExists(client, request) | CreateRefused(client, request):
                    del self.creates[client, request]
                case Got(client, request, copies):
                    self.check_got(client, request, copies, ())
                case GotPart(client, request, copies, restoring):
                    assert restoring
                    self.check_got(client, request, copies, restoring)
                case GetLost(client, request, object_id):
                    ask = self.asks.pop((client, request))
                    assert object_id in ask.names
                    assert self.may_fail_reading or self.lives[object_id].is_lost
                case GetUnrestored(client, request, object_id):
                    assert object_id in self.asks.pop((client, request)).names
                case Freed(offset):
                    self.memory.pop(offset, None)
                    self.forget_range(offset)
                case WriteBatch():
                    assert self.batch is None, "one file at a time"
                    assert len(effect.items) <= CONFIG.fuse_max
                    self.batch = effect
                case ReadBack():
                    self.reads.append(effect)
                case DeleteFile(key):
                    del self.disk[key]
                case Ready():
                    pass

    may_fail_reading = False

    def claim(self, serial: int, offset: int, size: int) -> None:
        for start, length in self.sizes.values():
            assert offset >= start + max(length, 1) or offset + max(size, 1) <= start, "shared"
        self.sizes[serial] = (offset, size)

    def forget_range(self, offset: int) -> None:
        for serial, (start, _) in list(self.sizes.items()):
            if start == offset:
                assert not any(pinned == serial for _, pinned in self.pins), "freed under a view"
                items = () if self.batch is None else self.batch.items
                assert all(item.serial != serial for item in items), "freed while written out"
                assert all(read.serial != serial for read in self.reads), "freed while read into"
                del self.sizes[serial]
                self.values.pop(serial, None)

    def check_got(
        self,
        client: int,
        request: int,
        copies: tuple[Copy | None, ...],
        restoring: tuple[int, ...],
    ) -> None:
        ask = self.asks.pop((client, request))
        for position, (name, copy) in enumerate(zip(ask.names, copies, strict=True)):
            if copy is None:
                life = self.lives.get(name)
                was_there = life is not None and self.is_kept(life) and life.born <= ask.since
                assert not was_there or position in restoring, "it is there, but was not found"
                continue
            assert position not in restoring
            serial, offset = copy.serial, copy.offset
            assert self.memory[offset] == self.values[serial], "bytes that were never sealed"
            self.check_value(name, self.memory[offset], ask)
            self.pins[client, serial] = self.pins.get((client, serial), 0) + 1

    def check_value(self, name: bytes, value: int, ask: Ask) -> None:
        """It was the object of that name at some time since the get was made."""
        if name in self.lives and self.lives[name].value == value:
            return
        assert value in self.deaths, "bytes that were never an object"
        of_name, died = self.deaths[value]
        assert of_name == name, "another object's bytes"
        assert died >= ask.since, "an object that was deleted before"

    def end(self, name: bytes) -> None:
        life = self.lives.pop(name, None)
        if life is not None:
            self.number += 1
            self.deaths[life.value] = (name, self.number)

    # What clients, time and the disk do.

    def create(self) -> None:
        client = self.rng.randint(1, 3)
        fresh = [name for name in NAMES if name not in self.lives]
        name = self.rng.choice(fresh if fresh and self.rng.random() < 0.8 else NAMES)
        wait_s = self.rng.choice([0.0, 3.0, 10.0])
        self.number += 1
        wish = CreateRequest(
            client,
            self.number,
            name,
            self.rng.choice([0, 60, 300, 500, 700, 900, 1200, 2000]),
            self.rng.choice(OWNERS),
            self.rng.random() < 0.15,
            self.now_s + wait_s,
            wait_s == 10.0,
        )
        self.creates[client, self.number] = self.now_s + wait_s
        life = self.lives.get(name)
        effects = self.table.create(wish, self.now_s)
        if life is not None and not life.is_lost and not life.is_evictable:
            assert [type(effect) for effect in effects] in ([CreateExists], [])
        self.absorb(effects)

    def finish(self) -> None:
        if not self.writing:
            return
        serial = self.rng.choice(list(self.writing))
        created, value = self.writing.pop(serial)
        wish = created.wish
        if self.rng.random() < 0.1:
            self.dead_writes.discard(serial)
            self.absorb(self.table.abort(wish.client, serial, self.now_s))
            return
        self.memory[created.offset] = self.values[serial] = value
        if serial in self.dead_writes:
            self.dead_writes.discard(serial)
        else:
            self.end(wish.object_id)
            self.lives[wish.object_id] = Life(value, wish.owner, wish.is_evictable, self.number)
        keeps_pin = self.rng.random() < 0.1
        if keeps_pin:
            self.pins[wish.client, serial] = 1
        self.absorb(self.table.seal(wish.client, serial, self.now_s, keeps_pin=keeps_pin))

    def get(self) -> None:
        client = self.rng.randint(1, 3)
        names = self.rng.sample(list(self.lives) or NAMES, min(len(self.lives) or 1, 2))
        names = self.rng.choice([names, names[:1], [*names, b"never"]])
        timeout_s = self.rng.choice([0.0, 0.0, 4.0])
        self.number += 1
        self.asks[client, self.number] = Ask(names, self.number, self.now_s, timeout_s)
        self.absorb(self.table.get(client, self.number, names, self.now_s, self.now_s + timeout_s))

    def wait(self) -> None:
        """A primary object that was sealed and not deleted is there, wherever it is."""
        names = [name for name, life in self.lives.items() if self.is_kept(life)]
        if names:
            self.number += 1
            (answer,) = self.table.wait(1, self.number, names, len(names), self.now_s, self.now_s)
            assert answer == Ready(1, self.number, tuple(range(len(names))))

    @staticmethod
    def is_kept(life: Life) -> bool:
        return not life.is_evictable and not life.is_lost

    def release(self) -> None:
        if self.pins:
            client, serial = self.rng.choice(list(self.pins))
            count = self.pins.pop((client, serial))
            self.absorb(self.table.release(client, [(serial, count)], self.now_s))

    def delete(self) -> None:
        self.forget([self.rng.choice(NAMES)])

    def forget(self, names: list[bytes]) -> None:
        for name in names:
            self.end(name)
            self.dead_writes |= {
                serial
                for serial, (created, _) in self.writing.items()
                if created.wish.object_id == name
            }
        self.absorb(self.table.delete(names, self.now_s))

    def owner_dies(self) -> None:
        owner = self.rng.choice(OWNERS[1:])
        for name in [name for name, life in self.lives.items() if life.owner == owner]:
            self.end(name)
        self.dead_writes |= {
            serial for serial, (made, _) in self.writing.items() if made.wish.owner == owner
        }
        self.absorb(self.table.release_owner(owner, self.now_s))

    def client_dies(self) -> None:
        client = self.rng.randint(1, 3)
        self.disconnect(client)
        self.table.connect(client)

    def disconnect(self, client: int) -> None:
        for serial, (created, _) in list(self.writing.items()):
            if created.wish.client == client:
                del self.writing[serial]
                self.dead_writes.discard(serial)
        self.pins = {key: count for key, count in self.pins.items() if key[0] != client}
        self.asks = {key: ask for key, ask in self.asks.items() if key[0] != client}
        self.creates = {key: at_s for key, at_s in self.creates.items() if key[0] != client}
        self.absorb(self.table.client_gone(client, self.now_s))

    def evict(self) -> None:
        self.absorb(self.table.evict(self.rng.choice([1, CAPACITY])))

    def disk_writes(self) -> None:
        if self.batch is None:
            return
        batch, self.batch = self.batch, None
        places: dict[int, Place] = {}
        room_bytes = self.rng.choice([None, 0, 100_000])
        failure: SpillFailure | None = None
        key = f"file {batch.number}"
        if self.is_disk_full or self.rng.random() < 0.15:
            failure = SpillFailure("no room", is_disk_full=self.is_disk_full)
        keep = len(batch.items) if failure is None else self.rng.randint(0, len(batch.items) - 1)
        position = 0
        for item in batch.items[:keep]:
            self.disk.setdefault(key, {})[position] = self.memory[item.offset]
            places[item.serial] = Place(key, position, item.size_bytes, 0)
            position += max(1, item.size_bytes)
        self.absorb(
            self.table.spill_ended(batch.number, key, places, failure, room_bytes, self.now_s)
        )

    def pages_come(self) -> None:
        if self.ranges:
            created = self.ranges.pop(self.rng.randrange(len(self.ranges)))
            if self.rng.random() < 0.1:
                self.absorb(self.table.machine_short(created, self.now_s))
            else:
                self.absorb(self.table.read_back(created, self.now_s))

    def disk_reads(self) -> None:
        if not self.reads:
            return
        read = self.reads.pop(self.rng.randrange(len(self.reads)))
        luck = self.rng.random()
        value = self.disk.get(read.place.file_key, {}).get(read.place.position)
        name = next((n for n, life in self.lives.items() if life.value == value), None)
        if value is None or luck < 0.15:
            is_lost = luck < 0.08
            if is_lost and name is not None:
                self.lives[name].is_lost = True
            self.may_fail_reading = True
            self.absorb(self.table.restore_failed(read.serial, "torn", self.now_s, is_lost=is_lost))
            self.may_fail_reading = False
        else:
            self.memory[read.offset] = self.values[read.serial] = value
            self.absorb(self.table.restored(read.serial, self.now_s))

    def time_passes(self) -> None:
        self.now_s += self.rng.choice([0.1, 1.0, 5.0])
        self.absorb(self.table.expire(self.now_s))
        wakeup = self.table.next_wakeup()
        assert wakeup is None or wakeup.at_s > self.now_s, "it would spin"

    def disk_changes(self) -> None:
        self.is_disk_full = not self.is_disk_full

    # What always holds.

    def check(self) -> None:
        self.table.check_invariants()
        for at_s in self.creates.values():
            assert at_s >= self.now_s, "a create outlived its deadline"
        for ask in self.asks.values():
            assert ask.since_s + ask.timeout_s + RESTORE_MAX_S > self.now_s
        states = {
            record.object_id: record
            for record in self.table.objects(self.now_s, 10_000)
            if record.state not in {ObjectState.DELETED, ObjectState.WRITING}
        }
        for name, life in self.lives.items():
            if life.is_lost:
                # It may be under way to be made anew.
                assert name not in states or states[name].state is ObjectState.LOST
            elif not life.is_evictable:
                assert states[name].state is not ObjectState.LOST, "a primary object is there"
        assert states.keys() <= self.lives.keys()

    def drain(self) -> None:
        """Everybody goes, the disk finishes, and nothing is left."""
        self.is_disk_full = False
        for client in (1, 2, 3):
            self.disconnect(client)
        self.forget(list(NAMES))
        for _ in range(50):
            self.disk_writes()
            self.pages_come()
            self.disk_reads()
        statistics = self.table.statistics()
        assert statistics.used_bytes == statistics.disk_files == statistics.disk_objects == 0
        assert statistics.restoring_objects == statistics.spilling_objects == 0
        assert self.disk == {}


ACTIONS = {
    World.create: 10,
    World.finish: 12,
    World.get: 8,
    World.wait: 2,
    World.release: 12,
    World.delete: 1,
    World.owner_dies: 0.15,
    World.client_dies: 0.3,
    World.evict: 2.5,
    World.disk_writes: 7,
    World.pages_come: 8,
    World.disk_reads: 8,
    World.time_passes: 3,
    World.disk_changes: 0.3,
}


def run(seed: int) -> World:
    world = World(random.Random(seed))
    actions = world.rng.choices(list(ACTIONS), list(ACTIONS.values()), k=STEPS)
    for action in actions:
        action(world)
        world.check()
    world.drain()
    return world


@pytest.mark.parametrize("seeds", [SEEDS[start : start + 50] for start in SEEDS[::50]])
def test_histories_agree_with_the_oracle(seeds: range) -> None:
    for seed in seeds:
        try:
            run(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_histories_meet_every_kind_of_event() -> None:
    seen: Counter[str] = Counter()
    for seed in range(40):
        world = run(seed)
        seen += world.seen
    assert set(seen) >= {
        "Created", "CreateExists", "CreateRefused", "Got", "GotPart", "GetLost", "GetUnrestored",
        "Freed", "WriteBatch", "ReadBack", "DeleteFile",
    }, seen  # fmt: skip
