from __future__ import annotations

import pytest

from skate_gcs.machine.answers import NodeAccepted, RefusalKind, Refused
from skate_gcs.machine.commands import ProbeNode
from skate_gcs.machine.events import (
    ListNodes,
    NodeProbed,
    NodeRegistered,
    NodeUnregistered,
    SubscriberLeft,
    Tick,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import DeathCause, DeathKind, NodeRecord
from skate_scheduler import ResourceSet


def nodes(world):
    return {node.node_id: node for node in world.handle(ListNodes()).records}


def test_registered_node_learns_its_cluster_and_is_listed(world):
    node = NodeRecord(world.id(28), node_name="a", total={"CPU": 10_000}, labels={"zone": "x"})
    assert world.handle(NodeRegistered(node)) == NodeAccepted("cluster")
    listed = nodes(world)[node.node_id]
    assert listed.is_alive
    assert listed.available == {"CPU": 10_000}
    assert listed.start_time_s > 0
    assert world.published == [listed]


def test_registration_repeated_is_not_announced_again(world):
    node = NodeRecord(world.id(28), total={"CPU": 10_000})
    world.handle(NodeRegistered(node))
    world.advance(1.0)
    world.handle(NodeRegistered(node))
    assert len(world.published) == 1
    assert world.commits == 1


@pytest.mark.invariant("I25")
def test_late_repetition_of_a_registration_does_not_make_the_node_look_free(world):
    node = NodeRecord(world.id(28), total={"CPU": 10_000})
    world.handle(NodeRegistered(node))
    world.report(node.node_id, 1, {"CPU": 3_000})
    world.machine._nodes.claim(node.node_id, ResourceSet({"CPU": 2_000}))
    world.handle(NodeRegistered(node))
    (view,) = world.machine._nodes.candidates()
    assert view.available == ResourceSet({"CPU": 1_000})
    assert nodes(world)[node.node_id].available == {"CPU": 3_000}


def test_node_id_of_wrong_length_is_refused(world):
    answer = world.handle(NodeRegistered(NodeRecord(b"short")))
    assert isinstance(answer, Refused)
    assert answer.kind is RefusalKind.INVALID


@pytest.mark.invariant("I22")
def test_silent_node_is_suspect_then_dead_then_fenced(world):
    node = world.add_node(beats=False)
    world.advance(3.9)
    assert len(list(world.machine._nodes.candidates())) == 1
    world.advance(0.2)
    assert list(world.machine._nodes.candidates()) == []
    assert nodes(world)[node].is_alive
    world.advance(5.8)
    assert nodes(world)[node].is_alive
    world.advance(0.2)
    dead = nodes(world)[node]
    assert dead.death_cause.kind is DeathKind.NODE_DIED
    assert "10.0 s" in dead.death_cause.message
    assert world.forgotten == [node]
    assert not world.report(node, 9)
    answer = world.handle(NodeRegistered(NodeRecord(node)))
    assert isinstance(answer, Refused)
    assert answer.kind is RefusalKind.FENCED


def test_suspect_node_that_reports_gets_actors_again(world):
    node = world.add_node(beats=False)
    world.advance(5.0)
    world.register()
    assert world.starts == []
    world.report(node, 1)
    assert len(world.starts) == 1


def test_silent_node_is_looked_at_and_again_while_it_is_silent(world):
    node = world.add_node(beats=False, raylet_endpoint="a:1")
    world.advance(1.9)
    assert world.probes == []
    world.advance(0.2)
    assert world.probes == [ProbeNode(node, "a:1")]
    world.handle(NodeProbed(node, "a:1", is_refused=False))
    world.advance(1.8)
    assert len(world.probes) == 1
    world.advance(0.2)
    assert len(world.probes) == 2
    assert nodes(world)[node].is_alive


def test_reporting_node_is_not_looked_at(world):
    node = world.add_node(beats=False, raylet_endpoint="a:1")
    for version in range(1, 10):
        world.advance(1.5)
        world.report(node, version)
    assert world.probes == []


def test_node_that_refuses_connections_is_dead_at_once(world):
    node = world.add_node(beats=False, raylet_endpoint="a:1")
    world.handle(SubscriberLeft(node))
    assert world.probes == [ProbeNode(node, "a:1")]
    world.handle(NodeProbed(node, "a:1", is_refused=True))
    cause = nodes(world)[node].death_cause
    assert cause.kind is DeathKind.NODE_DIED
    assert "Nothing listens at a:1" in cause.message
    world.handle(NodeProbed(node, "a:1", is_refused=True))
    assert world.forgotten == [node]


def test_node_that_moved_meanwhile_is_not_dead_for_its_old_endpoint(world):
    node = world.add_node(beats=False, raylet_endpoint="a:1")
    world.handle(SubscriberLeft(node))
    world.add_node(node_id=node, raylet_endpoint="a:2")
    world.handle(NodeProbed(node, "a:1", is_refused=True))
    assert nodes(world)[node].is_alive


def test_subscriber_that_is_no_node_is_not_looked_at(world):
    world.handle(SubscriberLeft(world.id(28)))
    assert world.probes == []


def test_reporting_node_lives(world):
    node = world.add_node(beats=False)
    for version in range(1, 30):
        world.advance(3.0)
        assert world.report(node, version, {"CPU": 40_000})
    assert nodes(world)[node].is_alive


def test_unknown_node_is_fenced(world):
    assert not world.report(world.id(28), 1)


def test_older_report_changes_nothing(world):
    node = world.add_node()
    world.report(node, 5, {"CPU": 1})
    assert world.report(node, 4, {"CPU": 2})
    assert nodes(world)[node].available == {"CPU": 1}


def test_unregistered_node_is_dead_with_its_cause_and_repeating_is_harmless(world):
    node = world.add_node()
    cause = DeathCause(DeathKind.INTENDED_EXIT, "scaled down")
    world.handle(NodeUnregistered(node, cause))
    world.handle(NodeUnregistered(node, DeathCause()))
    assert nodes(world)[node].death_cause == cause
    assert world.forgotten == [node]


def test_new_node_at_an_old_endpoint_replaces_the_old_one(world):
    old = world.add_node(raylet_endpoint="10.0.0.1:7000")
    other = world.add_node(raylet_endpoint="10.0.0.2:7000")
    new = world.add_node(raylet_endpoint="10.0.0.1:7000")
    assert [node_id for node_id, node in nodes(world).items() if node.is_alive] == [other, new]
    assert world.forgotten == [old]


def test_node_that_moved_to_another_endpoint_is_not_replaced_at_its_old_one(world):
    node = world.add_node(raylet_endpoint="a:1")
    world.add_node(node_id=node, raylet_endpoint="a:2")
    world.restart()
    world.add_node(raylet_endpoint="a:1")
    assert nodes(world)[node].raylet_endpoint == "a:2"
    assert world.machine.statistics().nodes_alive == 2


def test_nodes_of_one_name_are_allowed(world):
    world.add_node(node_name="same")
    world.add_node(node_name="same")
    assert world.machine.statistics().nodes_alive == 2


@pytest.mark.invariant("I22")
def test_gcs_that_was_stopped_does_not_blame_the_nodes(world):
    node = world.add_node(beats=False)
    assert world.machine.next_wakeup() is not None
    world.now_s += 60.0  # nothing ran here: no event, no tick
    world.handle(Tick())
    assert nodes(world)[node].is_alive
    world.advance(11.0)
    assert not nodes(world)[node].is_alive


def test_dead_nodes_are_kept_up_to_a_cap(make_world):
    world = make_world(GcsLimits(nodes_dead_max=2))
    ids = [world.add_node() for _ in range(4)]
    for node in ids:
        world.handle(NodeUnregistered(node, DeathCause()))
    assert list(nodes(world)) == ids[2:]


def test_free_resources_are_announced_to_others_at_a_bounded_rate(world):
    node = world.add_node()
    world.report(node, 1, {"CPU": 1})
    assert len(world.published) == 1  # a lone node has nobody to tell
    world.add_node()
    world.published.clear()
    for version in range(2, 12):
        world.report(node, version, {"CPU": version})
    assert [record.available for record in world.published] == [{"CPU": 2}]
    world.advance(0.11)
    assert [record.available for record in world.published] == [{"CPU": 2}, {"CPU": 11}]


def test_heartbeats_are_not_stored(world):
    node = world.add_node()
    before = world.commits
    for version in range(1, 20):
        world.report(node, version, {"CPU": version})
    assert world.commits == before


def test_next_wakeup_names_its_timer(world):
    assert world.machine.next_wakeup() is None
    world.add_node()
    wakeup = world.machine.next_wakeup()
    assert wakeup.at_s == pytest.approx(world.now_s + 2.0)
    assert wakeup.why == "a node is silent"


def test_limits_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="node_suspect_s"):
        GcsLimits(node_suspect_s=6.0)
    with pytest.raises(ValueError, match="retry_first_s"):
        GcsLimits(retry_first_s=3.0)
