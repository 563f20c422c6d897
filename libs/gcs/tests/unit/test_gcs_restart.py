from __future__ import annotations

import pytest

from skate_gcs.machine.answers import KvValue
from skate_gcs.machine.events import (
    ActorKilled,
    ActorReleased,
    Channel,
    JobFinished,
    KillAnswered,
    KvGet,
    KvPut,
    ListActors,
    ListJobs,
    ListNodes,
    NodeUnregistered,
    TakeSnapshot,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import ActorState, Address, DeathCause, DeathKind


@pytest.mark.invariant("I17")
def test_everything_acknowledged_is_there_after_restart(world):
    node = world.add_node(labels={"a": "b"})
    job = world.add_job(node)
    running = world.run_actor(job_id=job, name="n", namespace="s", handle_state=b"h")
    dead = world.run_actor(job_id=job)
    world.fail(dead, DeathKind.OUT_OF_MEMORY, message="too big")
    world.handle(KvPut("fun", b"k", b"v", overwrite=True))
    queries = (ListNodes(), ListJobs(), ListActors())
    before = [world.handle(query) for query in queries]
    world.restart()
    assert [world.handle(query) for query in queries] == before
    assert world.handle(KvGet("fun", b"k")) == KvValue(b"v")
    assert world.named("n", "s").spec.actor_id == running
    world.assert_no_unclaimed_orders()


def test_actor_whose_start_was_unanswered_is_started_at_the_same_node(world):
    world.add_node()
    node = world.add_node()
    actor = world.register(owner_node=node)
    world.starts.clear()
    world.restart()
    order = world.finish_start()
    assert (order.node_id, order.incarnation) == (node, 0)
    assert order.spec.creation_task == b"task"
    assert world.state(actor) is ActorState.ALIVE


def test_actor_that_started_while_the_gcs_was_away_is_taken_up(world):
    world.add_node()
    actor = world.register()
    order = world.answer_start()
    world.restart()
    assert world.report_started(order)
    assert world.state(actor) is ActorState.ALIVE


def test_actor_that_waited_for_a_node_still_waits(world):
    actor = world.register(placement_resources={"GPU": 1})
    world.restart()
    assert world.actor(actor).pending_reason
    world.add_node(total={"GPU": 1})
    world.finish_start()
    assert world.state(actor) is ActorState.ALIVE


def test_actor_whose_node_had_refused_and_died_is_placed_elsewhere(world):
    first = world.add_node(beats=False)
    actor = world.register(owner_node=first, is_detached=True)
    world.answer_start(refusal="leaving")
    assert world.actor(actor).life.node_id == b""
    world.now_s += 10.0
    world.beats.clear()
    world.handle(NodeUnregistered(first, DeathCause()))
    world.restart()
    second = world.add_node()
    assert world.finish_start().node_id == second


def test_restarting_actor_goes_on_restarting_with_its_count(world):
    world.add_node()
    actor = world.run_actor(max_restarts=1)
    world.fail(actor)
    world.starts.clear()
    world.restart()
    assert world.state(actor) is ActorState.RESTARTING
    assert world.finish_start().incarnation == 1
    world.fail(actor)
    assert world.state(actor) is ActorState.DEAD


def test_unfulfilled_kill_order_is_repeated_after_restart(world):
    node = world.add_node()
    actor = world.run_actor()
    world.handle(ActorKilled(actor, True, None))
    world.kills.clear()
    world.restart()
    (order,) = world.kills
    assert (order.node_id, order.actor_id, order.cause.kind) == (
        node,
        actor,
        DeathKind.KILLED_BY_USER,
    )
    world.handle(KillAnswered(node, actor, 0, is_done=True))
    world.kills.clear()
    world.restart(keeps_lazy=True)
    assert world.kills == []


def test_released_actor_ends_released_after_restart(world):
    world.add_node()
    actor = world.run_actor(name="n", max_restarts=-1)
    world.handle(ActorReleased(actor))
    world.restart()
    assert world.named("n") is None
    world.fail(actor)
    assert world.death(actor) is DeathKind.HANDLES_RELEASED


def test_detached_actors_child_still_outlives_its_job_after_restart(world):
    node = world.add_node()
    job = world.add_job()
    parent = world.run_actor(job_id=job, is_detached=True)
    worker = world.actor(parent).life.address.worker_id
    child = world.run_actor(job_id=job, owner=Address(node, worker))
    world.restart()
    world.handle(JobFinished(job, DeathCause()))
    assert world.state(child) is ActorState.ALIVE


def test_rows_beyond_the_caps_are_dropped_after_restart(make_world):
    limits = GcsLimits(nodes_dead_max=1, jobs_finished_max=1, actors_dead_max=1)
    world = make_world(limits)
    for _ in range(3):
        node = world.add_node()
        world.fail(world.run_actor(job_id=b"\0\0\0\x63"))
        world.handle(JobFinished(world.add_job(), DeathCause()))
        world.handle(NodeUnregistered(node, DeathCause()))
    world.restart()  # the last deletions had not been stored
    statistics = world.machine.statistics()
    assert (statistics.nodes_dead, statistics.jobs_finished) == (1, 1)
    assert statistics.actors[ActorState.DEAD] == 1
    world.restart(keeps_lazy=True)
    assert [len(world.storage.scan(table)) for table in ("nodes", "jobs", "actors")] == [1, 1, 1]


def test_node_gets_its_full_time_after_restart(world):
    node = world.add_node(beats=False)
    world.advance(9.0)
    world.restart()
    world.advance(9.0)
    assert world.report(node, 1)


def test_node_that_stays_away_after_restart_dies(world):
    world.add_node(beats=False)
    world.restart()
    world.advance(10.1)
    assert world.machine.statistics().nodes_dead == 1


def test_report_versions_may_start_anywhere_after_restart(world):
    node = world.add_node()
    world.report(node, 1000, {"CPU": 1})
    world.restart()
    world.report(node, 1001, {"CPU": 2})
    assert world.handle(ListNodes()).records[0].available == {"CPU": 2}


def test_snapshot_has_the_rows_of_its_channels(world):
    world.add_node()
    world.add_job()
    world.run_actor()
    for channels, count in (
        ((Channel.NODE,), 1),
        ((Channel.ACTOR, Channel.JOB), 2),
        (tuple(Channel), 3),
        ((Channel.NODE, Channel.NODE), 1),
    ):
        assert len(world.handle(TakeSnapshot(channels)).records) == count
