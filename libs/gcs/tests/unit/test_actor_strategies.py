"""Actors bound to a node, softly or not, and actors spread over the nodes."""

from __future__ import annotations

import pytest

from skate_gcs.machine.events import NodeUnregistered
from skate_gcs.machine.records import ActorState, DeathCause, DeathKind, Strategy
from skate_scheduler import LabelRules, LabelSelector

DEAD = DeathCause(DeathKind.NODE_DIED, "killed")


def bound(node_id: bytes, *, soft: bool = False) -> Strategy:
    return Strategy(node_id=node_id, is_soft=soft)


@pytest.mark.parametrize("soft", [False, True])
def test_bound_actor_is_started_on_its_node_although_another_is_nearer(world, soft):
    near, far = world.add_node(), world.add_node()
    world.register(owner_node=near, strategy=bound(far, soft=soft))
    assert [order.node_id for order in world.starts] == [far]


def test_actors_bound_to_different_nodes_do_not_hold_each_other_up(world):
    full, free = world.add_node(), world.add_node()
    first = world.register(strategy=bound(full))
    world.answer_start("full")
    second = world.register(strategy=bound(free))
    assert [order.node_id for order in world.starts] == [free]
    assert world.state(first) is world.state(second) is ActorState.PENDING_CREATION


def test_bound_actor_that_was_refused_asks_the_same_node_again(world):
    world.add_node()
    node = world.add_node()
    world.register(strategy=bound(node, soft=True))
    world.answer_start("full")
    assert world.starts == []
    world.advance(5.0)
    assert [order.node_id for order in world.starts] == [node]


def test_actor_bound_to_a_node_that_never_came_waits_with_a_reason(world):
    world.add_node()
    missing = b"m" * 28
    actor = world.register(strategy=bound(missing))
    assert world.starts == []
    assert missing.hex() in world.actor(actor).pending_reason
    world.add_node(node_id=missing)
    assert [order.node_id for order in world.starts] == [missing]


def test_actor_bound_to_a_node_that_is_too_small_waits_or_goes_elsewhere(world):
    small, large = world.add_node(cpus=1), world.add_node(cpus=8)
    needs = {"CPU": 20_000}
    world.register(strategy=bound(small), placement_resources=needs)
    assert world.starts == []
    world.register(strategy=bound(small, soft=True), placement_resources=needs)
    assert [order.node_id for order in world.starts] == [large]


def test_actor_bound_to_a_dead_node_ends_or_goes_elsewhere(world):
    heir, doomed = world.add_node(), world.add_node()
    world.handle(NodeUnregistered(doomed, DEAD))
    world.beats.pop(doomed, None)
    hard = world.register(strategy=bound(doomed))
    assert world.death(hard) is DeathKind.UNSCHEDULABLE
    world.register(strategy=bound(doomed, soft=True))
    assert [order.node_id for order in world.starts] == [heir]


def test_bound_actor_that_waits_ends_when_its_node_dies(world):
    world.add_node()
    doomed = world.add_node()
    actor = world.register(strategy=bound(doomed))
    world.answer_start("full")
    world.handle(NodeUnregistered(doomed, DEAD))
    assert world.death(actor) is DeathKind.UNSCHEDULABLE


def test_spread_actors_take_turns(world):
    nodes = [world.add_node() for _ in range(3)]
    for _ in range(6):
        world.register(owner_node=nodes[0], strategy=Strategy(is_spread=True))
    assert sorted(order.node_id for order in world.starts) == sorted(nodes * 2)


def test_strategy_survives_a_restart_of_the_gcs(world):
    near, far = world.add_node(), world.add_node()
    world.register(owner_node=near, strategy=bound(far))
    world.answer_start("full")
    world.restart()
    world.advance(1.0)
    assert {order.node_id for order in world.starts} == {far}


def labelled(*selectors: dict[str, str], preferred: dict[str, str] | None = None) -> Strategy:
    parsed = tuple(map(LabelSelector.parse, selectors))
    return Strategy(labels=LabelRules(parsed, LabelSelector.parse(preferred or {})))


def test_labelled_actor_goes_to_the_node_that_matches_although_another_is_nearer(world):
    near, far = world.add_node(labels={"zone": "a"}), world.add_node(labels={"zone": "b"})
    world.register(owner_node=near, strategy=labelled({"zone": "b"}))
    world.register(owner_node=near, strategy=labelled({"zone": "!a"}))
    world.register(owner_node=near, strategy=labelled(preferred={"zone": "b"}))
    assert [order.node_id for order in world.starts] == [far] * 3


def test_labelled_actor_waits_with_a_reason_until_a_matching_node_comes(world):
    world.add_node(labels={"zone": "a"})
    actor = world.register(strategy=labelled({"zone": "in(b,c)"}))
    assert world.starts == []
    assert "zone is b or c" in world.actor(actor).pending_reason
    matching = world.add_node(labels={"zone": "c"})
    assert [order.node_id for order in world.starts] == [matching]


def test_fallback_is_taken_while_the_first_choice_has_no_room(world):
    first, second = world.add_node(cpus=1, labels={"zone": "a"}), world.add_node()
    needs = {"CPU": 10_000}
    wanted = labelled({"zone": "a"}, {})
    for _ in range(2):
        world.register(strategy=wanted, placement_resources=needs)
    assert [order.node_id for order in world.starts] == [first, second]


def test_labels_of_a_strategy_survive_a_restart_of_the_gcs(world):
    near, far = world.add_node(), world.add_node(labels={"zone": "b"})
    world.register(owner_node=near, strategy=labelled({"zone": "b"}))
    world.answer_start("full")
    world.restart()
    world.advance(1.0)
    assert {order.node_id for order in world.starts} == {far}


def test_impatient_actor_fails_or_goes_elsewhere_when_its_node_is_busy(world):
    busy, free = world.add_node(cpus=1), world.add_node(cpus=1)
    needs = {"CPU": 10_000}
    world.register(strategy=bound(busy), placement_resources=needs)
    soft = Strategy(node_id=busy, is_soft=True, is_impatient=True)
    world.register(strategy=soft, placement_resources=needs)
    assert [order.node_id for order in world.starts] == [busy, free]
    hard = world.register(
        strategy=Strategy(node_id=busy, is_impatient=True), placement_resources=needs
    )
    assert world.death(hard) is DeathKind.UNSCHEDULABLE
