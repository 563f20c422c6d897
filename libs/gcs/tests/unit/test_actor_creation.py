from __future__ import annotations

import itertools

import pytest

from skate_gcs.machine.answers import ActorAssigned, Refused
from skate_gcs.machine.events import (
    ActorRegistered,
    ActorReleased,
    JobFinished,
    NodeUnregistered,
    StartUnanswered,
    WorkerDied,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import ActorState, Address, DeathCause, DeathKind, WorkerRecord


def test_registered_actor_is_started_and_becomes_alive(world):
    node = world.add_node()
    actor = world.register()
    assert world.state(actor) is ActorState.PENDING_CREATION
    order = world.answer_start()
    assert (order.node_id, order.incarnation) == (node, 0)
    assert order.spec.creation_task == b"task"
    assert world.report_started(order)
    assert world.state(actor) is ActorState.ALIVE
    assert world.actor(actor).life.address.node_id == node
    assert world.states_published(actor) == [ActorState.ALIVE]
    world.assert_no_unclaimed_orders()


def test_creation_costs_two_commits(world):
    world.add_node()
    before = world.commits
    world.run_actor()
    assert world.commits == before + 2  # the registration with its node, and the start


def test_registration_repeated_is_answered_alike_and_starts_nothing(world):
    world.add_node()
    spec = world.spec(name="a")
    world.register(spec)
    world.starts.clear()
    answer = world.handle(ActorRegistered(spec, get_if_exists=False))
    assert isinstance(answer, ActorAssigned)
    assert answer.is_new
    assert answer.record.spec.actor_id == spec.actor_id
    world.assert_no_unclaimed_orders()


@pytest.mark.parametrize(
    ("fields", "get_if_exists", "word"),
    [
        ({"actor_id": b"short"}, False, "actor_id"),
        ({"max_restarts": -2}, False, "max_restarts"),
        ({"name": ""}, True, "name"),
        ({"placement_resources": {"CPU": -1}}, False, "negative"),
    ],
    ids=["id", "restarts", "nameless", "negative"],
)
def test_registration_that_makes_no_sense_is_refused(world, fields, get_if_exists, word):
    answer = world.handle(ActorRegistered(world.spec(**fields), get_if_exists))
    assert isinstance(answer, Refused)
    assert word in answer.message


def test_creators_node_is_preferred(world):
    nodes = [world.add_node() for _ in range(5)]
    for node in nodes:
        world.register(owner_node=node)
    assert [order.node_id for order in world.starts] == nodes


def test_creators_node_that_is_too_small_is_passed_over(world):
    small, large = world.add_node(cpus=1), world.add_node(cpus=8)
    world.register(owner_node=small, placement_resources={"CPU": 20_000})
    assert [order.node_id for order in world.starts] == [large]


def test_refused_start_goes_to_another_node_under_a_new_incarnation(world):
    first, second = world.add_node(), world.add_node()
    world.register(owner_node=first)
    order = world.answer_start(refusal="busy")
    assert order.node_id == first
    assert [(order.node_id, order.incarnation) for order in world.starts] == [(second, 1)]


def test_report_of_a_node_that_refused_is_not_accepted(world):
    first, second = world.add_node(), world.add_node()
    actor = world.register(owner_node=first)
    refused = world.answer_start(refusal="busy")
    assert not world.report_started(refused)
    assert world.starts[0].node_id == second
    assert world.state(actor) is ActorState.PENDING_CREATION


def test_refused_order_that_was_also_taken_does_not_disturb_the_next_one(world):
    world.add_node()
    actor = world.register()
    doubled = world.answer_start(refusal="full")
    assert not world.report_started(doubled)
    world.fail(actor, incarnation=0)  # its worker was killed
    world.advance(0.25)
    assert world.finish_start().incarnation == 1
    assert world.actor(actor).life.restarts_used == 0


def test_start_that_all_refuse_is_tried_again_with_growing_pauses(world):
    world.add_node()
    actor = world.register()
    times = []
    for _ in range(7):
        times.append(world.now_s)
        world.answer_start(refusal="no worker")
        assert world.actor(actor).pending_reason == "no worker"
        while not world.starts:
            world.advance(0.05)
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0], abs=0.06)


def test_full_cluster_is_probed_by_one_actor_of_a_shape(world):
    world.add_node()
    for _ in range(50):
        world.register()
    while world.starts:
        world.answer_start(refusal="full")
    world.advance(0.25)
    assert len(world.starts) == 1


def test_window_opens_as_probes_are_taken(world):
    world.add_node()
    for _ in range(50):
        world.register()
    while world.starts:
        world.answer_start(refusal="full")
    world.advance(0.25)
    asked = []
    while world.starts:
        asked.append(len(world.starts))
        for _ in range(len(world.starts)):
            world.answer_start()
    assert asked[:4] == [1, 2, 4, 8]
    assert sum(asked) == 50


def test_waiting_actors_keep_their_order(world):
    world.add_node()
    actors = [world.register() for _ in range(5)]
    while world.starts:
        world.answer_start(refusal="full")
    world.advance(0.25)
    order = []
    while world.starts:
        order.append(world.answer_start().spec.actor_id)
    assert sorted(order) == sorted(actors)
    assert len(order) == len(actors)


def test_infeasible_actor_waits_without_timer_and_says_why(world):
    world.add_node(cpus=2)
    actor = world.register(placement_resources={"CPU": 10_000, "GPU": 10_000})
    reason = world.actor(actor).pending_reason
    assert "GPU 1" in reason
    assert "CPU" not in reason
    world.advance(30.0)
    assert world.starts == []


def test_infeasible_actor_starts_when_a_fitting_node_comes(world):
    actor = world.register(placement_resources={"GPU": 10_000})
    assert "no node is alive" in world.actor(actor).pending_reason
    node = world.add_node(total={"GPU": 20_000})
    assert [order.node_id for order in world.starts] == [node]
    world.finish_start()
    assert world.actor(actor).pending_reason == ""


def test_infeasible_actor_starts_when_a_node_grows(world):
    node = world.add_node(cpus=1)
    world.register(placement_resources={"CPU": 20_000})
    assert world.starts == []
    world.report(node, 1, {"CPU": 40_000}, {"CPU": 40_000})
    assert len(world.starts) == 1


def test_refused_actor_starts_at_once_when_resources_are_freed(world):
    node = world.add_node(cpus=1)
    world.register()
    world.answer_start(refusal="full")
    world.report(node, 1, {}, {"CPU": 10_000})
    assert world.starts == []
    world.report(node, 2, {"CPU": 10_000}, {"CPU": 10_000})
    assert len(world.starts) == 1


def test_unanswered_start_is_repeated_at_the_same_node_and_incarnation(world):
    node, _ = world.add_node(), world.add_node()
    actor = world.register(owner_node=node)
    for _ in range(3):
        order = world.starts.pop()
        assert (order.node_id, order.incarnation) == (node, 0)
        world.handle(StartUnanswered(node, actor, 0, "deadline"))
        assert "deadline" in world.actor(actor).pending_reason
        world.advance(1.0)
    world.finish_start()
    assert world.state(actor) is ActorState.ALIVE


def test_start_reported_before_its_order_is_answered_counts(world):
    world.add_node()
    actor = world.register()
    order = world.starts[0]
    assert world.report_started(order)
    world.answer_start()
    world.handle(StartUnanswered(order.node_id, actor, 0, "late"))
    assert world.state(actor) is ActorState.ALIVE
    world.advance(3.0)
    world.assert_no_unclaimed_orders()


def test_start_repeated_by_the_same_worker_is_accepted_again(world):
    world.add_node()
    world.register()
    order = world.answer_start()
    worker = world.id(28)
    assert world.report_started(order, worker)
    published = len(world.published)
    assert world.report_started(order, worker)
    assert not world.report_started(order, world.id(28))
    assert len(world.published) == published


def test_constructor_that_raised_ends_the_actor_despite_restarts(world):
    world.add_node()
    actor = world.register(max_restarts=-1)
    world.answer_start()
    world.fail(actor, DeathKind.CREATION_FAILED, creation_error=b"pickled")
    assert world.state(actor) is ActorState.DEAD
    assert world.actor(actor).life.creation_error == b"pickled"
    world.assert_no_unclaimed_orders()


def test_dead_actor_drops_its_creation_task(world):
    world.add_node()
    actor = world.run_actor()
    world.fail(actor)
    assert world.actor(actor).spec.creation_task == b""


@pytest.mark.parametrize("overtaken_by", ["worker", "job", "node"])
def test_registration_overtaken_by_its_owners_end_never_runs(world, overtaken_by):
    node, driver = world.add_node(), world.id(28)
    job = world.add_job(node, driver)
    match overtaken_by:
        case "worker":
            owner = Address(node, world.id(28))
            world.handle(WorkerDied(WorkerRecord(owner.worker_id)))
        case "job":
            owner = Address(node, driver)
            world.handle(JobFinished(job, DeathCause()))
        case "node":
            owner = Address(node, world.id(28))
            world.handle(NodeUnregistered(node, DeathCause()))
            world.forgotten.clear()
    world.add_node()
    actor = world.register(owner=owner, job_id=job, name="gone")
    assert world.state(actor) is ActorState.DEAD
    assert world.named("gone") is None
    world.assert_no_unclaimed_orders()
    assert world.state(world.register(owner=owner, job_id=job, is_detached=True)) is not (
        ActorState.DEAD
    )


def test_released_actor_that_waits_is_dropped(world):
    actor = world.register()
    world.handle(ActorReleased(actor))
    assert world.death(actor) is DeathKind.HANDLES_RELEASED
    world.add_node()
    world.assert_no_unclaimed_orders()


def test_dead_actors_are_kept_up_to_a_cap(make_world):
    world = make_world(GcsLimits(actors_dead_max=3))
    world.add_node()
    actors = [world.run_actor() for _ in range(5)]
    for actor in actors:
        world.fail(actor)
    with pytest.raises(AssertionError):
        world.actor(actors[1])
    assert world.state(actors[2]) is ActorState.DEAD
    world.restart(keeps_lazy=True)
    with pytest.raises(AssertionError):
        world.actor(actors[1])
