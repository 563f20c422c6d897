"""The placement-group table: two-phase reservation, removal, loss of nodes, restarts, clean-up."""

from __future__ import annotations

import pytest

from skate_gcs.machine import GcsLimits
from skate_gcs.machine.answers import GroupRegistered, Refused
from skate_gcs.machine.commands import Table
from skate_gcs.machine.events import (
    ActorKilled,
    BundlesCommitted,
    BundlesPrepared,
    GetNamedGroup,
    GroupCreated,
    GroupRemoved,
    JobFinished,
    ListGroups,
    NodeUnregistered,
)
from skate_gcs.machine.records import (
    ActorState,
    Address,
    BundleRef,
    BundleSpec,
    DeathCause,
    DeathKind,
    PlacementGroupRecord,
    Strategy,
)
from skate_gcs.machine.records import PlacementGroupState as State

pytestmark = pytest.mark.invariant("I13")


def published(world, group_id):
    return [
        record.state
        for record in world.published
        if isinstance(record, PlacementGroupRecord) and record.spec.group_id == group_id
    ]


def bury(world, node_id):
    world.handle(NodeUnregistered(node_id, DeathCause(DeathKind.NODE_DIED, "gone")))
    world.forgotten.clear()


# ---- the way to CREATED ----


def test_group_on_one_node_needs_one_round(world):
    node = world.add_node(cpus=4)
    group_id = world.create_group(1, 2)
    assert world.group_state(group_id) is State.PENDING
    order = world.answer_prepare()
    assert (order.node_id, order.commits) == (node, True)
    assert order.bundles == {0: {"CPU": 10_000}, 1: {"CPU": 20_000}}
    record = world.group(group_id)
    assert (record.state, record.node_ids) == (State.CREATED, (node, node))
    assert published(world, group_id) == [State.CREATED]
    world.assert_no_unclaimed_orders()


def test_group_on_two_nodes_is_prepared_everywhere_before_anyone_is_told_that_it_holds(world):
    nodes = {world.add_node(cpus=1), world.add_node(cpus=1)}
    group_id = world.create_group(1, 1, strategy="STRICT_SPREAD")
    assert {order.node_id for order in world.prepares} == nodes
    assert not any(order.commits for order in world.prepares)
    world.answer_prepare()
    assert world.commits_asked == []
    world.answer_prepare()
    assert world.group_state(group_id) is State.PREPARED
    world.answer_commit()
    assert world.group_state(group_id) is State.PREPARED
    assert published(world, group_id) == []
    world.answer_commit()
    assert world.group_state(group_id) is State.CREATED
    world.assert_no_unclaimed_orders()


def test_refusal_of_one_node_has_all_give_back_and_tries_again_after_a_growing_pause(world):
    world.add_node(cpus=1)
    world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="SPREAD")
    pauses = []
    for attempt in (1, 2, 3):
        orders = {world.answer_prepare().node_id, world.answer_prepare("busy").node_id}
        assert {order.node_id for order in world.returns} == orders
        assert {order.ref.attempt for order in world.returns} == {attempt}
        world.returns.clear()
        record = world.group(group_id)
        assert record.state is State.PENDING
        assert "busy" in record.pending_reason
        at_s = world.now_s
        while not world.prepares:
            world.advance(0.01)
        pauses.append(world.now_s - at_s)
    assert pauses == pytest.approx([0.1, 0.15, 0.225], abs=0.02)
    assert world.group(group_id).highest_retry_delay_s == pytest.approx(0.225)
    world.finish_groups()
    assert world.group_state(group_id) is State.CREATED


def test_answers_of_an_earlier_attempt_change_nothing(world):
    first, second = world.add_node(cpus=1), world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="SPREAD")
    world.prepares.clear()
    world.handle(BundlesPrepared(first, group_id, 1, "busy"))
    world.returns.clear()
    world.advance(0.2)
    assert {order.attempt for order in world.prepares} == {2}
    for node in (first, second):
        world.handle(BundlesPrepared(node, group_id, 1))
        world.handle(BundlesCommitted(node, group_id, 1, is_done=True))
    assert world.group_state(group_id) is State.PENDING
    world.finish_groups()
    for node in (first, second):  # said twice
        world.handle(BundlesPrepared(node, group_id, 2, "busy"))
        world.handle(BundlesCommitted(node, group_id, 2, is_done=False, is_lost=True))
    assert world.group_state(group_id) is State.CREATED


def test_a_node_that_does_not_answer_that_it_knows_is_told_until_it_does(world):
    world.add_node(cpus=1)
    world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="STRICT_SPREAD")
    world.answer_prepare()
    world.answer_prepare()
    world.answer_commit()
    for _ in range(5):
        world.answer_commit(is_done=False)
        assert world.commits_asked == []
        world.advance(3.0)
        assert len(world.commits_asked) == 1
    world.answer_commit()
    assert world.group_state(group_id) is State.CREATED


def test_requests_that_make_no_sense_are_refused(world):
    no_bundles = world.group_spec()
    empty = world.group_spec(bundles=(BundleSpec({}),))
    unknown = world.group_spec(1, strategy="STACK")
    selector = world.group_spec(bundles=(BundleSpec({"CPU": 1}, {"a b": "c"}),))
    for spec in (no_bundles, empty, unknown, selector, world.group_spec(1, group_id=b"x")):
        assert isinstance(world.handle(GroupCreated(spec)), Refused)
    assert world.handle(ListGroups()).records == []


# ---- waiting ----


def test_waiting_groups_have_reasons_and_are_placed_when_the_nodes_change(world):
    node = world.add_node(cpus=2)
    never = world.create_group(3)
    holder = world.run_group(2)
    later = world.create_group(1)
    assert world.group(never).scheduling_state == "INFEASIBLE"
    assert world.group(never).pending_reason == (
        "No nodes can ever hold it: it needs CPU 3 on one node;"
        " the most that any node has is CPU 2."
    )
    assert world.group(later).scheduling_state == "NO_RESOURCES"
    assert "It needs CPU 1 on one node" in world.group(later).pending_reason
    world.remove_group(holder)
    world.returns.clear()
    world.advance(0.1)
    world.report_bundles(node, [], {"CPU": 20_000})
    world.advance(0.1)
    world.finish_groups()
    assert world.group_state(later) is State.CREATED
    world.add_node(cpus=4)
    world.advance(0.1)
    world.finish_groups()
    assert world.group_state(never) is State.CREATED


def test_groups_that_are_alike_are_looked_at_once_for_all(world):
    world.add_node(cpus=1, beats=False)
    waiting = [world.create_group(2) for _ in range(50)]
    assert {world.group(one).pending_reason for one in waiting} == {
        world.group(waiting[0]).pending_reason
    }
    world.add_node(cpus=6, beats=False)
    world.advance(0.1)
    assert [order.group_id for order in world.prepares] == waiting[:3], "first come, first served"


# ---- names, lifetimes, removal ----


def test_names_are_unique_in_a_namespace_until_the_group_is_removed(world):
    world.add_node(cpus=4)
    first = world.create_group(1, name="a", namespace="n")
    again = world.handle(GroupCreated(world.group_spec(1, name="a", namespace="n")))
    assert isinstance(again, GroupRegistered)
    assert (again.is_new, again.record.spec.group_id) == (False, first)
    world.create_group(1, name="a", namespace="m")
    world.remove_group(first)
    assert world.handle(GetNamedGroup("a", "n")).record is None
    second = world.create_group(1, name="a", namespace="n")
    assert world.handle(GetNamedGroup("a", "n")).record.spec.group_id == second


def test_registration_that_comes_twice_is_one_group(world):
    world.add_node(cpus=4)
    spec = world.group_spec(1)
    world.handle(GroupCreated(spec))
    answer = world.handle(GroupCreated(spec))
    assert answer.is_new
    assert len(world.prepares) == 1


def test_removal_gives_back_everywhere_and_may_come_twice_or_for_nothing(world):
    nodes = {world.add_node(cpus=1), world.add_node(cpus=1)}
    group_id = world.run_group(1, 1, strategy="SPREAD")
    world.remove_group(group_id)
    assert {order.node_id for order in world.returns} == nodes
    world.returns.clear()
    assert world.group_state(group_id) is State.REMOVED
    assert published(world, group_id) == [State.CREATED, State.REMOVED]
    world.remove_group(group_id)
    world.handle(GroupRemoved(world.id(18), ""))
    world.assert_no_unclaimed_orders()


@pytest.mark.parametrize("answered", [0, 1, 2, 3])
def test_removal_at_every_step_of_the_way_leaves_nothing(world, answered):
    """ray#64696: removed while it is prepared."""
    nodes = [world.add_node(cpus=1), world.add_node(cpus=1)]
    group_id = world.create_group(1, 1, strategy="SPREAD")
    for _ in range(answered):
        if world.prepares:
            world.answer_prepare()
        else:
            world.answer_commit()
    late = world.prepares + world.commits_asked
    world.prepares.clear()
    world.commits_asked.clear()
    world.remove_group(group_id)
    assert {order.node_id for order in world.returns} == set(nodes)
    world.returns.clear()
    for order in late:  # the answers to what was under way
        attempt = getattr(order, "attempt", 1)
        world.handle(BundlesPrepared(order.node_id, group_id, attempt))
        world.handle(BundlesCommitted(order.node_id, group_id, attempt, is_done=True))
    assert world.group_state(group_id) is State.REMOVED
    held = BundleRef(group_id, 1, (0,))
    assert world.report_bundles(nodes[0], [held]) == (held,), "told until it is gone"
    assert world.report_bundles(nodes[0], []) == ()
    world.assert_no_unclaimed_orders()


def test_groups_end_with_their_job_unless_detached(world):
    job_id = world.add_job()
    world.add_node(cpus=4)
    mine = world.run_group(1, job_id=job_id)
    detached = world.run_group(1, job_id=job_id, is_detached=True)
    world.handle(JobFinished(job_id, DeathCause()))
    assert world.group_state(mine) is State.REMOVED
    assert "job has finished" in world.group(mine).removal_reason
    assert world.group_state(detached) is State.CREATED
    late = world.create_group(1, job_id=job_id)
    assert world.group_state(late) is State.REMOVED


def test_group_of_a_detached_actor_lives_as_long_as_the_actor(world):
    job_id = world.add_job()
    world.add_node(cpus=4)
    actor = world.run_actor(job_id=job_id, is_detached=True)
    worker = world.actor(actor).life.address
    group_id = world.run_group(1, job_id=job_id, owner=worker)
    world.handle(JobFinished(job_id, DeathCause()))
    assert world.group_state(group_id) is State.CREATED
    world.handle(ActorKilled(actor, True, None))
    assert world.group_state(group_id) is State.REMOVED


# ---- nodes that die ----


def test_node_that_dies_before_all_prepared_has_the_others_give_back(world):
    """ray#64693: killed between prepare and commit."""
    first, second = world.add_node(cpus=1), world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="STRICT_SPREAD")
    dead = world.answer_prepare().node_id
    other = second if dead == first else first
    world.prepares.clear()
    bury(world, dead)
    assert [order.node_id for order in world.returns] == [other]
    world.returns.clear()
    assert world.group(group_id).node_ids == (b"", b"")
    world.add_node(cpus=1)
    world.advance(0.3)
    world.finish_groups()
    assert world.group_state(group_id) is State.CREATED
    assert dead not in world.group(group_id).node_ids


def test_node_that_dies_after_all_prepared_has_its_bundles_placed_again(world):
    first, second = world.add_node(cpus=1), world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="STRICT_SPREAD")
    world.answer_prepare()
    world.answer_prepare()
    world.commits_asked.sort(key=lambda order: order.node_id == first)
    world.answer_commit()  # the second's
    bury(world, first)
    assert world.group_state(group_id) is State.RESCHEDULING
    world.commits_asked.clear()
    third = world.add_node(cpus=1)
    world.advance(0.1)
    world.finish_groups()
    assert world.group_state(group_id) is State.CREATED
    assert set(world.group(group_id).node_ids) == {second, third}
    assert world.returns == []


def test_lost_bundles_are_placed_before_groups_that_wait(world):
    first, second = (world.add_node(cpus=2, beats=False) for _ in range(2))
    group_id = world.run_group(2, 2, strategy="SPREAD")
    waiting = world.create_group(2)
    kept = world.group(group_id).node_ids.index(second)
    bury(world, first)
    assert published(world, group_id) == [State.CREATED, State.RESCHEDULING]
    assert world.group(group_id).node_ids[kept] == second
    world.add_node(cpus=2, beats=False)
    world.advance(0.1)
    (order,) = world.prepares
    assert (order.group_id, list(order.bundles)) == (group_id, [1 - kept])
    world.finish_groups()
    assert world.group_state(group_id) is State.CREATED
    assert world.group_state(waiting) is State.PENDING


def test_two_nodes_that_die_at_once_and_one_more_while_it_is_mended(world):
    nodes = [world.add_node(cpus=1) for _ in range(3)]
    group_id = world.run_group(1, 1, 1, strategy="STRICT_SPREAD")
    bury(world, nodes[0])
    bury(world, nodes[1])
    fresh = [world.add_node(cpus=1), world.add_node(cpus=1)]
    world.advance(0.1)
    world.answer_prepare()
    bury(world, nodes[2])
    assert {order.node_id for order in world.returns} == set(fresh)
    world.returns.clear()
    world.prepares.clear()
    assert world.group(group_id).node_ids == (b"", b"", b"")
    fresh.append(world.add_node(cpus=1))
    world.advance(0.5)
    world.finish_groups()
    assert set(world.group(group_id).node_ids) == set(fresh)


# ---- level-triggered clean-up ----


def test_what_a_node_holds_and_no_row_knows_is_to_be_given_back(world):
    node, other = world.add_node(cpus=4), world.add_node(cpus=4)
    group_id = world.run_group(1, 1)
    (held_by,) = set(world.group(group_id).node_ids)
    good = BundleRef(group_id, 1, (0, 1))
    assert world.report_bundles(held_by, [good]) == ()
    stranger = BundleRef(world.id(18), 1, (0,))
    old = BundleRef(group_id, 0, (1,))
    assert world.report_bundles(held_by, [good, stranger, old]) == (stranger, old)
    elsewhere = other if held_by == node else node
    assert world.report_bundles(elsewhere, [good]) == (good,)
    partly = BundleRef(group_id, 1, (0, 1, 2))
    assert world.report_bundles(held_by, [partly]) == (BundleRef(group_id, 1, (2,)),)


# ---- restarts of the GCS ----


@pytest.mark.invariant("I14")
@pytest.mark.parametrize("answered", range(5))
def test_interrupted_attempt_is_finished_after_a_restart(world, answered):
    world.add_node(cpus=1)
    world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="SPREAD")
    for _ in range(answered):
        if world.prepares:
            world.answer_prepare()
        elif world.commits_asked:
            world.answer_commit()
    before = world.group(group_id)
    world.prepares.clear()
    world.commits_asked.clear()
    world.restart()
    assert world.group(group_id).attempt == before.attempt, "the same number: idempotent there"
    world.finish_groups()
    after = world.group(group_id)
    assert after.state is State.CREATED
    assert after.node_ids == before.node_ids
    assert world.returns == []


def test_nothing_that_was_answered_is_forgotten_by_a_restart(world):
    world.add_node(cpus=1)
    waiting = world.create_group(2, name="w", namespace="n")
    created = world.run_group(1)
    gone = world.create_group(1)
    world.remove_group(gone)
    world.restart()
    assert world.group_state(waiting) is State.PENDING
    assert world.group(waiting).pending_reason
    assert world.group_state(created) is State.CREATED
    assert world.group_state(gone) is State.REMOVED
    assert world.handle(GetNamedGroup("w", "n")).record.spec.group_id == waiting
    world.add_node(cpus=2)
    world.advance(0.1)
    world.finish_groups()
    assert world.group_state(waiting) is State.CREATED


def test_attempt_is_stored_before_any_node_hears_of_it(world):
    world.add_node(cpus=1)
    world.create_group(1)
    (order,) = world.prepares
    ((_, row),) = world.storage.scan(Table.PLACEMENT_GROUPS)
    assert order.node_id in row, "the row names the node that is asked"


def test_removed_groups_are_forgotten_beyond_the_limit(make_world):
    world = make_world(GcsLimits(groups_removed_max=2))
    world.add_node(cpus=4)
    groups = [world.run_group(1) for _ in range(4)]
    for group_id in groups:
        world.remove_group(group_id)
    assert [row.spec.group_id for row in world.handle(ListGroups()).records] == groups[2:]
    counts = world.machine.statistics()
    assert counts.placement_groups[State.REMOVED] == 2
    assert counts.group_creations == 4


# ---- actors inside ----


def test_actor_waits_for_its_group_and_starts_where_its_bundle_is(world):
    world.add_node(cpus=1)
    group_id = world.create_group(1, 1, strategy="SPREAD")
    actor = world.register(strategy=Strategy(group_id=group_id, bundle_index=1))
    assert "waits for bundle 1" in world.actor(actor).pending_reason
    world.add_node(cpus=1)
    world.advance(0.1)
    world.finish_groups()
    order = world.finish_start()
    assert order.node_id == world.group(group_id).node_ids[1]
    assert world.state(actor) is ActorState.ALIVE


def test_actor_in_any_bundle_goes_on_to_the_next_node_when_one_is_full(world):
    world.add_node(cpus=1)
    world.add_node(cpus=1)
    group_id = world.run_group(1, 1, strategy="SPREAD")
    actor = world.register(strategy=Strategy(group_id=group_id))
    refused = world.answer_start("no bundle with room").node_id
    order = world.finish_start()
    assert {refused, order.node_id} == set(world.group(group_id).node_ids)
    assert world.state(actor) is ActorState.ALIVE


@pytest.mark.surface("P17")
def test_actors_end_with_their_group_whatever_their_restarts(world):
    world.add_node(cpus=2)
    group_id = world.run_group(1, 1)
    strategy = Strategy(group_id=group_id)
    alive = world.run_actor(strategy=strategy, max_restarts=-1, is_detached=True)
    waiting = world.register(strategy=strategy)
    world.starts.clear()
    world.remove_group(group_id)
    for actor in (alive, waiting, world.register(strategy=strategy)):
        assert world.death(actor) is DeathKind.PLACEMENT_GROUP_REMOVED
    assert {kill.actor_id for kill in world.kills} == {alive, waiting}


def test_actor_of_a_lost_bundle_restarts_where_the_bundle_is_placed_again(world):
    first, second = world.add_node(cpus=1), world.add_node(cpus=1)
    group_id = world.run_group(1, 1, strategy="STRICT_SPREAD")
    index = world.group(group_id).node_ids.index(first)
    strategy = Strategy(group_id=group_id, bundle_index=index)
    actor = world.run_actor(strategy=strategy, max_restarts=1)
    bury(world, first)
    assert world.state(actor) is ActorState.RESTARTING
    assert world.starts == []
    third = world.add_node(cpus=1)
    world.advance(0.1)
    world.finish_groups()
    assert world.finish_start().node_id == third
    assert world.group(group_id).node_ids[1 - index] == second


def test_owner_address_of_a_group_is_kept(world):
    world.add_node(cpus=1)
    owner = Address(b"n" * 28, b"w" * 28, "unix:/w")
    group_id = world.run_group(1, owner=owner)
    assert world.group(group_id).spec.owner == owner
