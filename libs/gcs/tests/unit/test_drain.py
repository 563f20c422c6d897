"""Nodes that are suspect or to leave, in the tables: who is told, and what becomes of actors."""

from __future__ import annotations

import pytest

from skate_gcs.machine.events import ListNodes, NodeDrained, NodeUnregistered, ResourcesReported
from skate_gcs.machine.records import (
    ActorState,
    DeathCause,
    DeathKind,
    DrainReason,
    DrainRecord,
    NodeRecord,
)

PREEMPTION = DrainRecord(DrainReason.PREEMPTION, "spot", 2_000_000.0)
IDLE = DrainRecord(DrainReason.IDLE_TERMINATION)
PREEMPTED = DeathCause(DeathKind.NODE_PREEMPTED, "drained")


def rows(world):
    return {node.node_id: node for node in world.handle(ListNodes()).records}


def published_nodes(world):
    return [record for record in world.published if isinstance(record, NodeRecord)]


@pytest.mark.invariant("I22")
def test_suspicion_and_its_end_are_announced_and_not_stored(world):
    node = world.add_node(beats=False)
    commits = world.commits
    world.advance(4.1)
    assert rows(world)[node].is_suspect
    assert [row.is_suspect for row in published_nodes(world)] == [False, True]
    world.report(node, 1)
    assert not rows(world)[node].is_suspect
    assert [row.is_suspect for row in published_nodes(world)] == [False, True, False]
    assert world.commits == commits


def test_suspect_node_is_none_after_a_restart(world):
    node = world.add_node(beats=False)
    world.advance(4.1)
    assert world.handle(NodeDrained(node, IDLE)).value  # stores the row, suspicion and all
    world.restart()
    assert not rows(world)[node].is_suspect
    assert rows(world)[node].drain == IDLE


@pytest.mark.surface("Z9")
def test_draining_node_gets_no_actors_and_keeps_its_order(world):
    leaving, staying = world.add_node(), world.add_node()
    assert world.handle(NodeDrained(leaving, PREEMPTION)).value
    for _ in range(4):
        world.register()
    assert {order.node_id for order in world.starts} == {staying}
    world.restart()
    assert rows(world)[leaving].drain == PREEMPTION
    assert published_nodes(world)[-1].drain == PREEMPTION


def test_actor_that_waits_for_a_draining_cluster_gets_the_next_node(world):
    world.handle(NodeDrained(world.add_node(), PREEMPTION))
    actor = world.register()
    assert world.starts == []
    assert world.actor(actor).pending_reason
    fresh = world.add_node()
    assert [order.node_id for order in world.starts] == [fresh]


def test_drain_of_a_dead_or_unknown_node_is_no_change(world):
    node = world.add_node()
    world.handle(NodeUnregistered(node, DeathCause(DeathKind.EXITED)))
    commits = world.commits
    assert not world.handle(NodeDrained(node, PREEMPTION)).value
    assert not world.handle(NodeDrained(world.id(28), PREEMPTION)).value
    assert world.commits == commits


def test_repeated_drain_is_stored_once_and_a_later_one_replaces_it(world):
    node = world.add_node()
    world.handle(NodeDrained(node, PREEMPTION))
    commits = world.commits
    world.handle(NodeDrained(node, PREEMPTION))
    assert world.commits == commits
    world.handle(NodeDrained(node, IDLE))
    assert rows(world)[node].drain == IDLE


def test_report_with_an_order_that_was_missed_sets_it(world):
    node = world.add_node()
    world.handle(ResourcesReported(node, 1, {}, {}, drain=PREEMPTION))
    assert rows(world)[node].drain == PREEMPTION


@pytest.mark.surface("Z9")
@pytest.mark.parametrize("how", ["unregistered", "silent", "worker first"])
def test_preempted_actor_restarts_elsewhere_and_it_is_not_counted(world, how):
    leaving = world.add_node(beats=how != "silent")
    actor = world.run_actor(max_restarts=1)
    world.add_node()
    world.handle(NodeDrained(leaving, PREEMPTION))
    if how == "silent":
        world.advance(11.0)
    elif how == "unregistered":
        world.handle(NodeUnregistered(leaving, PREEMPTED))
    else:
        world.fail(actor, DeathKind.NODE_PREEMPTED)
    world.finish_start()
    life = world.actor(actor).life
    assert (life.state, life.restarts_used, life.incarnation) == (ActorState.ALIVE, 0, 1)


@pytest.mark.surface("Z9")
def test_preempted_actor_without_restarts_ends_and_one_that_used_them_up_lives_on(world):
    first = world.add_node()
    fragile = world.run_actor(max_restarts=0)
    used_up = world.run_actor(max_restarts=1)
    world.fail(used_up)
    world.finish_start()
    assert world.actor(used_up).life.restarts_used == 1
    world.add_node()
    world.handle(NodeDrained(first, PREEMPTION))
    world.handle(NodeUnregistered(first, PREEMPTED))
    assert world.state(fragile) is ActorState.DEAD
    assert world.death(fragile) is DeathKind.NODE_PREEMPTED
    assert world.state(used_up) is ActorState.RESTARTING


def test_node_that_left_because_it_was_idle_counts_as_any_death(world):
    node = world.add_node()
    actor = world.run_actor(max_restarts=1)
    world.handle(NodeDrained(node, IDLE))
    world.handle(NodeUnregistered(node, DeathCause(DeathKind.INTENDED_EXIT)))
    assert world.actor(actor).life.restarts_used == 1
