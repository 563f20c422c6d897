"""Serials: a repetition is known as one, also late, and nothing new is ever taken for one."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest

from skate_rpc.serials import COUNT_BITS, Received, Serials


def test_serials_in_order_are_new_once() -> None:
    sent, received = Serials().sent, Received()
    serials = list(itertools.islice(sent, 100))
    assert all(received.is_new(serial) for serial in serials)
    assert not any(received.is_new(serial) for serial in serials)
    received.check_invariants()


def test_message_without_a_serial_is_not_new() -> None:
    assert not Received().is_new(0)


def test_overtaken_message_is_new() -> None:
    received = Received()
    assert [received.is_new(serial) for serial in (1, 4, 3, 4, 2, 3, 5)] == [
        True, True, True, False, True, False, True,
    ]  # fmt: skip
    received.check_invariants()


@pytest.mark.parametrize("seed", range(100))
def test_serials_in_any_order_with_repetitions_are_new_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    sent = list(itertools.islice(Serials(rng.randrange(3)).sent, 200))
    # Each comes up to three times, up to a dozen places from where it was sent.
    arrivals = [(at + rng.random() * 12, s) for at, s in enumerate(sent) for _ in range(3)]
    received = Received()
    seen: set[int] = set()
    for _, serial in sorted(arrivals):
        assert received.is_new(serial) == (serial not in seen)
        seen.add(serial)
        received.check_invariants()
    assert received._ahead == set()  # what came is one number again
    assert received._through == sent[-1]


@pytest.mark.parametrize("seed", range(30))
def test_new_of_batches_is_what_is_new_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    serials = [rng.randrange(1, 4) + at for at in range(100)]
    whole, single = Received(), Received()
    while serials:
        batch = [serials.pop(0) for _ in range(min(len(serials), rng.randrange(1, 6)))]
        work = [("peer", SimpleNamespace(serial=serial)) for serial in batch]
        new = [message.serial for _, message in whole.new_of(work)]
        assert new == [serial for serial in batch if single.is_new(serial)]
        whole.check_invariants()


def test_count_after_an_end_is_new_and_the_one_before_it_is_old() -> None:
    before, after = Serials(0).sent, Serials(1).sent
    received = Received()
    old = list(itertools.islice(before, 10))
    for serial in (old[0], old[1], old[5]):
        assert received.is_new(serial)
    assert received.is_new(next(after))
    assert not any(received.is_new(serial) for serial in old)
    assert received.is_new(next(after))
    received.check_invariants()


def test_count_that_begins_out_of_order_is_new_too() -> None:
    received = Received()
    assert received.is_new(1)
    first, second = itertools.islice(Serials(2).sent, 2)
    assert first == (2 << COUNT_BITS) + 1
    assert received.is_new(second)
    assert received.is_new(first)
    assert not received.is_new(second)
    received.check_invariants()
