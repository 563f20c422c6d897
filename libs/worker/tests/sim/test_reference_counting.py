"""Random programs of references in one process, compared with counting from first principles."""

from __future__ import annotations

import random

import pytest

from skate_worker.machine.references import Entry, Owner, ReferenceTable


class Oracle:
    """Holds every reason by itself, and derives who must be alive."""

    def __init__(self) -> None:
        self.table = ReferenceTable()
        self.known: dict[bytes, Entry] = {}
        self.local: dict[bytes, int] = {}
        self.pins: dict[bytes, int] = {}
        self.borrowers: dict[bytes, dict[bytes, int]] = {}
        self.contained: dict[bytes, list[bytes]] = {}
        self.released: set[bytes] = set()

    def alive(self) -> set[bytes]:
        alive: set[bytes] = set()
        frontier = [
            key for key in self.known if self.local[key] or self.pins[key] or self.borrowers[key]
        ]
        while frontier:
            key = frontier.pop()
            if key not in alive:
                alive.add(key)
                frontier += self.contained.get(key, [])
        return alive

    def note(self, released: list[Entry]) -> None:
        for entry in released:
            assert entry.object_id not in self.released, "released twice"
            self.released.add(entry.object_id)

    def check(self) -> None:
        self.table.check_invariants()
        assert set(self.table.entries) == self.alive()
        assert self.released == set(self.known) - self.alive()


def step(oracle: Oracle, rng: random.Random, number: int) -> None:
    table = oracle.table
    live = sorted(oracle.alive())
    released: list[Entry] = []
    action = rng.random()
    if action < 0.3 or not live:
        key = number.to_bytes(28, "big")
        if rng.random() < 0.7:
            entry = table.own(key)
        else:
            entry = table.borrow(key, Owner(b"other", "unix:/o"))
            entry.local += 1
        oracle.known[key] = entry
        oracle.local[key], oracle.pins[key], oracle.borrowers[key] = 1, 0, {}
        inner = rng.sample(live, min(len(live), rng.randrange(3)))
        entry.contained = [oracle.known[k] for k in inner]
        for held in entry.contained:
            held.pins += 1
        oracle.contained[key] = inner
        return
    key = rng.choice(live)
    entry = oracle.known[key]
    worker = rng.choice((b"w1", b"w2", b"w3"))
    if action < 0.5 and oracle.local[key]:
        oracle.local[key] -= 1
        table.drop_local(entry, released)
    elif action < 0.6:
        oracle.pins[key] += 1
        entry.pins += 1
    elif action < 0.75 and oracle.pins[key]:
        oracle.pins[key] -= 1
        table.unpin(entry, released)
    elif action < 0.85:
        if table.add_borrower(key, worker):
            held_by = oracle.borrowers[key]
            held_by[worker] = held_by.get(worker, 0) + 1
    elif action < 0.95:
        table.remove_borrower(key, worker, released)
        held_by = oracle.borrowers[key]
        if worker in held_by:
            held_by[worker] -= 1
            if not held_by[worker]:
                del held_by[worker]
    else:
        table.lose_borrower(worker, released)
        for held_by in oracle.borrowers.values():
            held_by.pop(worker, None)
    oracle.note(released)


@pytest.mark.parametrize("seed", range(300))
@pytest.mark.invariant("I6")
def test_references_of_a_random_program_are_released_exactly_when_unreachable(seed: int) -> None:
    rng = random.Random(seed)
    oracle = Oracle()
    for number in range(150):
        step(oracle, rng, number)
        oracle.check()
