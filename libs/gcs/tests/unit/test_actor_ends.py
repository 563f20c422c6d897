from __future__ import annotations

import pytest

from skate_gcs.machine.answers import Accepted, ActorAssigned
from skate_gcs.machine.events import (
    ActorKilled,
    ActorRegistered,
    ActorReleased,
    JobFinished,
    KillAnswered,
    NodeUnregistered,
    WorkerDied,
)
from skate_gcs.machine.records import ActorState, Address, DeathCause, DeathKind, WorkerRecord

RESTARTABLE = [
    DeathKind.SIGNALED,
    DeathKind.OUT_OF_MEMORY,
    DeathKind.START_FAILED,
    DeathKind.UNSPECIFIED,
]
FINAL = [DeathKind.INTENDED_EXIT, DeathKind.CREATION_FAILED, DeathKind.KILLED_BY_USER]


def kill(world, actor, no_restart=True, cause=None):
    answer = world.handle(ActorKilled(actor, no_restart, cause))
    assert isinstance(answer, Accepted)
    return answer.value


def restart_after_failure(world, actor):
    """The actor's process dies and its new one starts, however long the pause is."""
    world.fail(actor)
    world.advance(2.0)
    return world.finish_start()


@pytest.mark.parametrize("kind", RESTARTABLE, ids=lambda kind: kind.name)
def test_actor_with_restarts_left_comes_again(world, kind):
    world.add_node()
    actor = world.run_actor(max_restarts=1)
    world.fail(actor, kind)
    assert world.state(actor) is ActorState.RESTARTING
    assert world.finish_start().incarnation == 1
    assert world.states_published(actor) == [
        ActorState.ALIVE,
        ActorState.RESTARTING,
        ActorState.ALIVE,
    ]


@pytest.mark.parametrize("kind", FINAL, ids=lambda kind: kind.name)
def test_final_cause_ends_an_actor_with_restarts_left(world, kind):
    world.add_node()
    actor = world.run_actor(max_restarts=-1)
    world.fail(actor, kind)
    assert world.death(actor) is kind


def test_exit_with_status_zero_is_final_and_with_another_is_not(world):
    world.add_node()
    leaver, crasher = (world.run_actor(max_restarts=5) for _ in range(2))
    world.fail(leaver, DeathKind.EXITED, exit_code=0)
    world.fail(crasher, DeathKind.EXITED, exit_code=1)
    assert world.state(leaver) is ActorState.DEAD
    assert world.state(crasher) is ActorState.RESTARTING


@pytest.mark.parametrize("max_restarts", [0, 1, 3])
@pytest.mark.invariant("I11")
def test_actor_is_recreated_exactly_max_restarts_times(world, max_restarts):
    world.add_node()
    actor = world.run_actor(max_restarts=max_restarts)
    for incarnation in range(1, max_restarts + 1):
        assert restart_after_failure(world, actor).incarnation == incarnation
    world.fail(actor)
    assert world.state(actor) is ActorState.DEAD
    world.advance(5.0)
    assert world.starts == []


def test_actor_without_limit_is_recreated_again_and_again(world):
    node = world.add_node()
    actor = world.run_actor(max_restarts=-1)
    for version in range(1, 30):
        world.report(node, version)
        restart_after_failure(world, actor)
    assert world.actor(actor).life.restarts_used == 29


def test_restart_is_immediate_after_a_long_life_and_paused_after_short_ones(world):
    world.add_node()
    actor = world.run_actor(max_restarts=-1)
    world.advance(1.0)
    world.fail(actor)
    world.finish_start()
    world.fail(actor)
    assert world.starts == []  # it lived less than actor_settled_s
    world.advance(0.3)
    world.finish_start()
    world.advance(1.0)
    world.fail(actor)
    assert len(world.starts) == 1


@pytest.mark.invariant("I10")
def test_stale_failure_report_changes_nothing(world):
    world.add_node()
    actor = world.run_actor(max_restarts=2)
    restart_after_failure(world, actor)
    published = len(world.published)
    world.fail(actor, incarnation=0)
    world.fail(actor, incarnation=7)
    assert world.state(actor) is ActorState.ALIVE
    assert len(world.published) == published


@pytest.mark.invariant("I10")
def test_stale_start_report_is_refused(world):
    world.add_node()
    actor = world.run_actor(max_restarts=1)
    stale = world.actor(actor)
    world.fail(actor)
    order = world.answer_start()
    assert not world.report_started(
        type(order)(order.node_id, order.endpoint, stale.spec, incarnation=0)
    )
    assert world.report_started(order)
    world.fail(actor)
    assert not world.report_started(order)


def test_unknown_actor_may_not_start(world):
    world.add_node()
    world.register()
    order = world.starts[0]
    ghost = type(order)(order.node_id, order.endpoint, world.spec(), 0)
    assert not world.report_started(ghost)


# ---- kill ----


def test_kill_ends_the_actor_and_orders_its_process_killed(world):
    node = world.add_node()
    actor = world.run_actor(max_restarts=-1)
    assert kill(world, actor)
    assert world.death(actor) is DeathKind.KILLED_BY_USER
    (order,) = world.kills
    assert (order.node_id, order.actor_id, order.incarnation) == (node, actor, 0)
    assert order.cause.kind is DeathKind.KILLED_BY_USER


def test_kill_repeated_changes_nothing(world):
    world.add_node()
    actor = world.run_actor()
    kill(world, actor)
    published, orders = len(world.published), len(world.kills)
    assert kill(world, actor)
    assert (len(world.published), len(world.kills)) == (published, orders)


def test_kill_of_an_unknown_actor_is_told(world):
    assert not kill(world, world.id(16))


def test_kill_of_an_actor_that_never_ran_says_so(world):
    actor = world.register()
    kill(world, actor)
    assert "before it ever ran" in world.actor(actor).life.death_cause.message
    world.add_node()
    assert world.starts == []


def test_kill_of_an_actor_that_is_starting_reaches_its_node(world):
    node = world.add_node()
    actor = world.register()
    order = world.answer_start()
    kill(world, actor)
    assert [order.node_id for order in world.kills] == [node]
    assert not world.report_started(order)


def test_kill_with_restart_counts_and_starts_a_new_incarnation(world):
    world.add_node()
    actor = world.run_actor(max_restarts=1)
    kill(world, actor, no_restart=False)
    assert world.state(actor) is ActorState.RESTARTING
    assert [order.incarnation for order in world.kills] == [0]
    assert world.finish_start().incarnation == 1
    world.fail(actor, incarnation=0)  # its node reports the killed process
    assert world.state(actor) is ActorState.ALIVE
    kill(world, actor, no_restart=False)
    assert world.state(actor) is ActorState.DEAD


def test_kill_with_restart_while_restarting_changes_nothing(world):
    actor = world.register(max_restarts=5)
    assert kill(world, actor, no_restart=False)
    assert world.state(actor) is ActorState.PENDING_CREATION
    assert world.actor(actor).life.restarts_used == 0


def test_kill_carries_the_callers_cause(world):
    world.add_node()
    actor = world.run_actor()
    kill(world, actor, cause=DeathCause(DeathKind.UNSPECIFIED, "from the shell"))
    cause = world.actor(actor).life.death_cause
    assert (cause.kind, cause.message) == (DeathKind.KILLED_BY_USER, "from the shell")


def test_unfulfilled_kill_order_is_repeated_until_done(world):
    node = world.add_node()
    actor = world.run_actor()
    kill(world, actor)
    for _ in range(3):
        world.kills.clear()
        world.handle(KillAnswered(node, actor, 0, is_done=False))
        world.advance(2.0)
        assert len(world.kills) == 1
    world.handle(KillAnswered(node, actor, 0, is_done=True))
    world.kills.clear()
    world.advance(3.0)
    world.assert_no_unclaimed_orders()
    assert world.machine.statistics().kill_orders == 0


# ---- release ----


def test_released_actor_stays_alive_until_its_process_ended(world):
    world.add_node()
    actor = world.run_actor(max_restarts=-1, name="n")
    world.handle(ActorReleased(actor))
    assert world.state(actor) is ActorState.ALIVE
    assert [order.cause.kind for order in world.kills] == [DeathKind.HANDLES_RELEASED]
    assert world.named("n") is None
    world.handle(ActorReleased(actor))
    assert len(world.kills) == 1
    world.fail(actor, DeathKind.SIGNALED)
    assert world.death(actor) is DeathKind.HANDLES_RELEASED


def test_released_detached_actor_lives_on(world):
    world.add_node()
    actor = world.run_actor(is_detached=True)
    world.handle(ActorReleased(actor))
    assert world.state(actor) is ActorState.ALIVE
    world.assert_no_unclaimed_orders()


# ---- names ----


def test_name_is_unique_in_its_namespace(world):
    world.add_node()
    first = world.register(name="a", namespace="x")
    for get_if_exists in (False, True):
        spec = world.spec(name="a", namespace="x")
        answer = world.handle(ActorRegistered(spec, get_if_exists))
        assert isinstance(answer, ActorAssigned)
        assert not answer.is_new
        assert answer.record.spec.actor_id == first
    assert world.register(name="a", namespace="y") != first
    assert world.named("a", "x").spec.actor_id == first
    assert world.named("a") is None


def test_creators_that_race_for_a_name_all_get_one_actor(world):
    world.add_node()
    got = {world.register(name="one", get_if_exists=True) for _ in range(64)}
    assert len(got) == 1
    assert len(world.starts) == 1


@pytest.mark.parametrize("ending", ["kill", "failure", "release"])
def test_name_is_free_as_soon_as_its_actor_ends(world, ending):
    world.add_node()
    first = world.run_actor(name="a")
    match ending:
        case "kill":
            kill(world, first)
        case "failure":
            world.fail(first)
        case "release":
            world.handle(ActorReleased(first))
    assert world.named("a") is None
    second = world.register(name="a")
    assert second != first
    world.fail(first, incarnation=0)
    assert world.named("a").spec.actor_id == second


def test_restarting_actor_keeps_its_name(world):
    world.add_node()
    actor = world.run_actor(name="a", max_restarts=1)
    world.fail(actor)
    assert world.named("a").spec.actor_id == actor


# ---- the ends of others ----


def test_owners_death_ends_its_actors_despite_restarts(world):
    world.add_node()
    owner = Address(b"", world.id(28))
    alive = world.run_actor(owner=owner, max_restarts=-1)
    waiting = world.register(owner=owner, placement_resources={"GPU": 1})
    detached = world.run_actor(owner=owner, is_detached=True)
    other = world.run_actor()
    world.handle(WorkerDied(WorkerRecord(owner.worker_id, death_cause=DeathCause(message="boom"))))
    assert world.death(alive) is DeathKind.OWNER_DIED
    assert "boom" in world.actor(alive).life.death_cause.message
    assert world.death(waiting) is DeathKind.OWNER_DIED
    assert world.state(detached) is world.state(other) is ActorState.ALIVE
    assert [order.actor_id for order in world.kills] == [alive]


def test_failed_actor_takes_the_actors_it_created_with_it(world):
    node = world.add_node()
    parent = world.run_actor(max_restarts=1)
    parent_worker = world.actor(parent).life.address.worker_id
    child = world.run_actor(owner=Address(node, parent_worker), max_restarts=-1)
    world.fail(parent)
    assert world.state(parent) is ActorState.RESTARTING
    assert world.death(child) is DeathKind.OWNER_DIED


def test_finished_job_ends_its_actors_and_spares_detached_ones(world):
    node = world.add_node()
    driver = world.id(28)
    job = world.add_job(node, driver)
    plain = world.run_actor(job_id=job, owner=Address(node, driver), max_restarts=-1)
    detached = world.run_actor(job_id=job, owner=Address(node, driver), is_detached=True)
    detached_worker = world.actor(detached).life.address.worker_id
    child = world.run_actor(job_id=job, owner=Address(node, detached_worker))
    grandchild = world.run_actor(
        job_id=job, owner=Address(node, world.actor(child).life.address.worker_id)
    )
    world.handle(JobFinished(job, DeathCause()))
    assert world.death(plain) is DeathKind.JOB_FINISHED
    assert world.state(detached) is ActorState.ALIVE
    assert world.state(child) is ActorState.ALIVE
    assert world.state(grandchild) is ActorState.ALIVE
    late = world.register(job_id=job, owner=Address(node, detached_worker))
    assert world.state(late) is not ActorState.DEAD


def test_detached_actor_restarts_after_its_job(world):
    world.add_node()
    job = world.add_job()
    actor = world.run_actor(job_id=job, is_detached=True, max_restarts=1)
    world.handle(JobFinished(job, DeathCause()))
    world.fail(actor)
    world.finish_start()
    assert world.state(actor) is ActorState.ALIVE


def test_drivers_death_finishes_its_job(world):
    world.add_node()
    driver = world.id(28)
    job = world.add_job(worker_id=driver)
    actor = world.run_actor(job_id=job)
    world.handle(WorkerDied(WorkerRecord(driver, is_driver=True)))
    assert world.death(actor) is DeathKind.JOB_FINISHED


def test_nodes_death_moves_what_can_restart_and_ends_the_rest(world):
    here, there = world.add_node(), world.add_node()
    light = {"owner_node": here, "placement_resources": {}}
    mover = world.run_actor(is_detached=True, max_restarts=1, **light)
    fragile = world.run_actor(is_detached=True, **light)
    owned_here = world.run_actor(max_restarts=-1, **light)
    starting = world.register(is_detached=True, **light)
    world.starts.clear()
    elsewhere = world.run_actor(owner_node=there)
    world.handle(NodeUnregistered(here, DeathCause(DeathKind.NODE_DIED, "cable cut")))
    assert world.state(mover) is ActorState.RESTARTING
    assert world.death(fragile) is DeathKind.NODE_DIED
    assert "cable cut" in world.actor(fragile).life.death_cause.message
    assert world.death(owned_here) is DeathKind.OWNER_DIED
    assert world.state(elsewhere) is ActorState.ALIVE
    # A node that dies before it started an actor costs no restart, but a new number.
    record = world.actor(starting)
    assert record.life.state is ActorState.PENDING_CREATION
    assert (record.life.incarnation, record.life.restarts_used) == (1, 0)
    assert {order.node_id for order in world.starts} == {there}
    assert world.kills == []  # a dead node's processes are dead or fenced


def test_dead_nodes_late_failure_report_changes_nothing(world):
    here, there = world.add_node(), world.add_node()
    actor = world.register(owner_node=here, is_detached=True)
    world.answer_start()
    world.handle(NodeUnregistered(here, DeathCause()))
    assert world.finish_start().node_id == there
    world.fail(actor, incarnation=0)
    assert world.state(actor) is ActorState.ALIVE


@pytest.mark.invariant("I10")
def test_dead_nodes_late_start_report_is_refused(world):
    here = world.add_node()
    actor = world.register(is_detached=True)
    order = world.answer_start()
    world.add_node()
    world.handle(NodeUnregistered(here, DeathCause()))
    assert not world.report_started(order)
    assert world.starts[0].incarnation == 1
    assert world.state(actor) is ActorState.PENDING_CREATION
