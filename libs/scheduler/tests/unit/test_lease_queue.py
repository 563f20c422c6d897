from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skate_scheduler import LeaseQueue, LeaseSupply, QueuedLease, ResourceSet

TOTAL = ResourceSet({"CPU": 4, "GPU": 1})


class Node:
    """A node's leases, as simple as can be: who holds what."""

    def __init__(self, total: ResourceSet = TOTAL) -> None:
        self.total = total
        self.held: dict[object, tuple[bytes, ResourceSet]] = {}
        self.permanent = ResourceSet()
        self.blocked: set[bytes] = set()

    def supply(self) -> LeaseSupply:
        used = ResourceSet.total_of([needs for _, needs in self.held.values()] + [self.permanent])
        available = self.total.minus(used).clamped()
        return LeaseSupply(
            available=available,
            fits=lambda needs: needs.fits_in(available),
            can_return=lambda needs: needs.fits_in(self.total.minus(self.permanent)),
            share_of=self.share_of,
            is_blocked=lambda holder: holder in self.blocked,
        )

    def share_of(self, holder: bytes) -> float:
        return ResourceSet.total_of(
            needs for owner, needs in self.held.values() if owner == holder
        ).dominant_share(self.total)

    def grant_all(self, queue: LeaseQueue, now_s: float) -> list[object]:
        granted = []
        while (item := queue.pop_next(self.supply(), now_s)) is not None:
            self.held[item.key] = (item.holder, item.needs)
            granted.append(item.key)
        return granted


def lease(key: object, holder: bytes = b"a", since_s: float = 0.0, **needs: int) -> QueuedLease:
    wanted = ResourceSet(needs or {"CPU": 1})
    return QueuedLease(key, holder, wanted, wanted, since_s)


def test_pop_next_one_class_is_first_come_first_served() -> None:
    queue, node = LeaseQueue(), Node()
    for key in range(6):
        queue.push(lease(key))
    assert node.grant_all(queue, 0.0) == [0, 1, 2, 3]
    del node.held[1]
    assert node.grant_all(queue, 0.1) == [4]
    queue.check_invariants()


def test_pop_next_holders_share_alike_whatever_they_queued_first() -> None:
    queue, node = LeaseQueue(), Node()
    for key in range(10):
        queue.push(lease(("a", key)))
    for key in range(10):
        queue.push(lease(("b", key), b"b"))
    granted = node.grant_all(queue, 0.0)
    assert len(granted) == 4
    assert Counter(holder for holder, _ in node.held.values()) == {b"a": 2, b"b": 2}


def test_pop_next_blocked_head_of_one_shape_does_not_hold_up_another_shape() -> None:
    queue, node = LeaseQueue(), Node()
    node.permanent = ResourceSet({"GPU": 1})
    queue.push(lease("gpu", GPU=1))
    queue.push(lease("cpu"))
    assert node.grant_all(queue, 100.0) == ["cpu"]


def test_pop_next_large_request_is_saved_up_for_and_not_passed_for_ever() -> None:
    queue, node = LeaseQueue(), Node()
    for key in range(4):
        node.held[key] = (b"a", ResourceSet({"CPU": 1}))
    queue.push(lease("whole", b"b", CPU=4))
    now_s, key = 0.0, 4
    while "whole" in queue:
        assert now_s < 2.0
        queue.push(lease(key, b"a", now_s))
        key += 1
        node.held.pop(next(iter(node.held)), None)
        now_s += 0.05
        node.grant_all(queue, now_s)
    assert node.held["whole"] == (b"b", ResourceSet({"CPU": 4}))


def test_pop_next_while_saving_up_lets_pass_what_takes_nothing_that_is_lacking() -> None:
    queue, node = LeaseQueue(), Node()
    node.held["x"] = (b"a", ResourceSet({"CPU": 1}))
    queue.push(lease("whole", b"b", CPU=4))
    queue.push(lease("gpu", b"c", 1.0, GPU=1))
    queue.push(lease("cpu", b"c", 1.0))
    assert node.grant_all(queue, 1.0) == ["gpu"]


def test_pop_next_request_of_a_blocked_holder_passes_the_reservation() -> None:
    queue, node = LeaseQueue(), Node()
    node.held["parent"] = (b"a", ResourceSet({"GPU": 1}))
    queue.push(lease("whole", b"b", CPU=4, GPU=1))
    queue.push(lease("child", b"w", 1.0))
    assert node.grant_all(queue, 1.0) == []
    node.blocked.add(b"w")
    assert node.grant_all(queue, 1.0) == ["child"]


def test_pop_next_request_that_waits_for_an_actor_is_not_saved_up_for() -> None:
    queue, node = LeaseQueue(), Node()
    node.permanent = ResourceSet({"CPU": 1})
    queue.push(lease("whole", b"b", CPU=4))
    queue.push(lease("cpu", b"a", 5.0))
    assert node.grant_all(queue, 5.0) == ["cpu"]


def test_pop_next_saving_up_pauses_so_that_unseen_cycles_end() -> None:
    queue, node = LeaseQueue(), Node()
    node.held["x"] = (b"a", ResourceSet({"CPU": 1}))
    queue.push(lease("whole", b"b", CPU=4))
    queue.push(lease("cpu", b"c", 10.0))
    assert node.grant_all(queue, 10.4) == []
    change_s = queue.next_change_s(10.4)
    assert change_s is not None
    assert change_s == pytest.approx(10.5)
    assert node.grant_all(queue, change_s) == ["cpu"]


def test_discard_holder_drops_its_requests_alone() -> None:
    queue = LeaseQueue()
    queue.push(lease(1))
    queue.push(lease(2, b"b"))
    assert [item.key for item in queue.discard_holder(b"a")] == [1]
    assert [item.key for item in queue] == [2]
    assert queue.discard(99) is None
    queue.check_invariants()


def test_push_same_key_twice_raises() -> None:
    queue = LeaseQueue()
    queue.push(lease(1))
    with pytest.raises(ValueError, match="already waits"):
        queue.push(lease(1))


def test_next_change_of_an_empty_queue_is_none() -> None:
    assert LeaseQueue().next_change_s(0.0) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_queue_random_load_serves_every_request_within_a_bound(seed: int) -> None:
    rng = random.Random(seed)
    queue, node = LeaseQueue(), Node()
    waiting_since: dict[object, float] = {}
    ends: dict[object, float] = {}
    now_s, key, worst_s = 0.0, 0, 0.0
    while now_s < 40.0:
        now_s += 0.1
        for done in [name for name, end_s in ends.items() if end_s <= now_s]:
            del node.held[done], ends[done]
        if rng.random() < 0.6 and len(queue) < 8:
            key += 1
            needs = {"CPU": rng.choice([1, 1, 1, 2, 4])}
            if rng.random() < 0.2:
                needs["GPU"] = 1
            queue.push(lease(key, bytes([rng.randrange(3)]), now_s, **needs))
            waiting_since[key] = now_s
        for granted in node.grant_all(queue, now_s):
            ends[granted] = now_s + rng.uniform(0.1, 1.0)
            worst_s = max(worst_s, now_s - waiting_since.pop(granted))
        queue.check_invariants()
        used = ResourceSet.total_of(needs for _, needs in node.held.values())
        assert used.fits_in(TOTAL)
    # At most 8 wait, each holds at most 1 s, and a reservation pauses 1 s in 11.
    assert max([worst_s, *(now_s - since for since in waiting_since.values())]) < 20.0
