"""Choices among many nodes: right ones, by looking at few."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from skate_raylet.machine.events import LeaseRequested, Strategy
from skate_raylet.machine.neighbours import CANDIDATES_MAX, Neighbours
from skate_raylet.machine.roomy_nodes import Ring
from skate_scheduler import NodeView, ResourceSet

COUNT = 10 * CANDIDATES_MAX
FOUR = ResourceSet.from_amounts({"CPU": 4})
NOTHING = ResourceSet()
CPU = ResourceSet.from_amounts({"CPU": 1})
GPU = ResourceSet.from_amounts({"GPU": 1})
LOCAL = NodeView(b"local", FOUR, NOTHING)


def node(number: int) -> bytes:
    return b"node%06d" % number


@pytest.fixture
def neighbours() -> Neighbours:
    """Many nodes, all full."""
    made = Neighbours(LOCAL.node_id, random.Random(1))
    for number in range(COUNT):
        made.see(NodeView(node(number), FOUR, NOTHING))
    return made


def ask(needs: ResourceSet = CPU, **fields: object) -> LeaseRequested:
    return LeaseRequested(b"holder", 1, b"job", needs, **fields)  # type: ignore[arg-type]


def test_choice_in_a_full_cluster_is_to_wait_here(neighbours: Neighbours) -> None:
    assert neighbours.choose(ask(), LOCAL, 0.0) == LOCAL.node_id
    assert neighbours.choose_other(ask(), LOCAL, 0.0) is None


def test_choice_finds_the_one_node_with_room(neighbours: Neighbours) -> None:
    neighbours.see(NodeView(node(417), FOUR, CPU))
    assert neighbours.choose(ask(), LOCAL, 0.0) == node(417)
    assert neighbours.choose_other(ask(), LOCAL, 0.0) == node(417)


def test_choice_counts_what_was_asked_and_not_answered(neighbours: Neighbours) -> None:
    neighbours.see(NodeView(node(417), FOUR, CPU))
    neighbours.claim(node(417), 1, CPU)
    assert neighbours.choose(ask(), LOCAL, 0.0) == LOCAL.node_id
    neighbours.settle(node(417), 1)
    assert neighbours.choose(ask(), LOCAL, 0.0) == node(417)


def test_choice_leaves_out_shunned_dead_and_refilled_nodes(neighbours: Neighbours) -> None:
    for number in (3, 300, 600):
        neighbours.see(NodeView(node(number), FOUR, FOUR))
    neighbours.shun(node(3), 0.0, 1.0)
    neighbours.forget(node(300))
    neighbours.see(NodeView(node(600), FOUR, NOTHING))
    assert neighbours.choose(ask(), LOCAL, 0.0) == LOCAL.node_id
    assert neighbours.choose(ask(), LOCAL, 2.0) == node(3)


def test_choice_spreads_over_many_nodes_with_room(neighbours: Neighbours) -> None:
    for number in range(COUNT):
        neighbours.see(NodeView(node(number), FOUR, FOUR))
    chosen = Counter(neighbours.choose(ask(), LOCAL, 0.0) for _ in range(500))
    assert len(chosen) > 200


def test_spread_gives_every_node_its_turn(neighbours: Neighbours) -> None:
    for number in range(COUNT):
        neighbours.see(NodeView(node(number), FOUR, FOUR))
    spread = ask(strategy=Strategy(is_spread=True))
    turns = [neighbours.choose(spread, LOCAL, 0.0) for _ in range(COUNT)]
    assert sorted(turns) == [node(number) for number in range(COUNT)]


def test_spread_among_few_with_room_takes_turns(neighbours: Neighbours) -> None:
    for number in (5, 50, 500):
        neighbours.see(NodeView(node(number), FOUR, FOUR))
    spread = ask(strategy=Strategy(is_spread=True))
    turns = [neighbours.choose(spread, LOCAL, 0.0) for _ in range(6)]
    assert turns == [node(5), node(50), node(500)] * 2


def test_home_is_found_when_a_node_of_another_size_comes_and_lost_when_it_goes(
    neighbours: Neighbours,
) -> None:
    assert not neighbours.has_home(ask(GPU))
    assert neighbours.choose(ask(GPU), LOCAL, 0.0) is None
    neighbours.see(NodeView(b"with a GPU", GPU, NOTHING))
    assert neighbours.has_home(ask(GPU))
    assert neighbours.choose(ask(GPU), LOCAL, 0.0) == b"with a GPU"
    neighbours.forget(b"with a GPU")
    assert not neighbours.has_home(ask(GPU))


def test_ring_walks_all_from_any_place_after_joins_and_leaves() -> None:
    ring = Ring()
    ids = [node(number) for number in range(20)]
    for one in ids:
        ring.add(one)
        ring.add(one)
    for one in ids[::3]:
        ring.discard(one)
        ring.discard(one)
    left = set(ids) - set(ids[::3])
    for start in range(len(ring)):
        assert sorted(ring.walk(start)) == sorted(left)
