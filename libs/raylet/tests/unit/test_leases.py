from __future__ import annotations

from typing import Any

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_scheduler import ResourceSet, WaitKind

JOB = b"\0\0\0\1"


def only(said: list[Any], kind: type[Any]) -> list[Any]:
    return [command for command in said if isinstance(command, kind)]


def test_request_with_room_starts_a_worker_and_is_granted_when_it_registers(desk: Any) -> None:
    said = desk.request(1)
    assert [type(command) for command in said] == [do.StartWorker]
    (grant,) = desk.start(said)
    assert (grant.holder_id, grant.request_id, grant.worker_id) == (b"driver", 1, b"w1")
    assert desk.free() == 1


def test_request_repeated_changes_nothing(desk: Any) -> None:
    desk.request(1)
    assert desk.request(1) == []
    desk.start([do.StartWorker(1, JOB, ())])
    assert desk.request(1) == []


def test_requests_beyond_the_resources_start_no_more_processes(desk: Any) -> None:
    said = [command for number in range(50) for command in desk.request(number)]
    assert len(only(said, do.StartWorker)) == 2


def test_returned_worker_serves_the_next_request_without_a_start(desk: Any) -> None:
    grant = desk.grant(1)
    desk.return_lease(grant)
    said = desk.request(2)
    assert [type(command) for command in said] == [do.GrantLease]
    assert said[0].worker_id == grant.worker_id


def test_returned_twice_frees_once(desk: Any) -> None:
    grant = desk.grant(1)
    desk.grant(2)
    desk.return_lease(grant)
    desk.return_lease(grant)
    assert desk.free() == 1


def test_return_by_a_process_that_does_not_hold_the_lease_is_ignored(desk: Any) -> None:
    grant = desk.grant(1)
    desk.tell(on.LeaseReturned(b"somebody else", grant.lease_id))
    assert desk.free() == 1


def test_discarded_worker_holds_its_resources_until_its_process_is_gone(desk: Any) -> None:
    grant = desk.grant(1)
    said = desk.return_lease(grant, discard=True)
    assert only(said, do.EndWorker)
    assert desk.free() == 1
    said = desk.tell(on.WorkerGone(grant.startup_id, grant.worker_id))
    assert desk.free() == 2
    assert not only(said, do.LoseLease)


def test_dead_worker_is_reported_to_its_holder_and_frees_its_resources(desk: Any) -> None:
    grant = desk.grant(1)
    said = desk.tell(on.WorkerGone(grant.startup_id, grant.worker_id))
    assert said == [do.LoseLease(b"driver", grant.lease_id, grant.worker_id)]
    assert desk.free() == 2


def test_blocked_worker_lends_its_cpu_so_that_its_child_runs(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    parent = desk.grant(1)
    child = desk.request(1, parent.worker_id)
    assert child == [do.TellOthersWait(b"driver", parent.lease_id)]
    said = desk.tell(on.WorkerBlocked(parent.worker_id))
    (grant,) = only(desk.start(said), do.GrantLease)
    assert grant.holder_id == parent.worker_id


def test_blocked_recursion_on_one_cpu_goes_as_deep_as_it_likes(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    holder = b"driver"
    for depth in range(40):
        grant = desk.grant(depth, holder)
        desk.tell(on.WorkerBlocked(grant.worker_id))
        holder = grant.worker_id


def test_blocked_worker_lends_cpu_only(make_desk: Any) -> None:
    desk = make_desk(CPU=2, GPU=1, memory=100)
    grant = desk.grant(1, CPU=2, GPU=1, memory=100)
    desk.tell(on.WorkerBlocked(grant.worker_id))
    assert (desk.free("CPU"), desk.free("GPU"), desk.free("memory")) == (2, 0, 0)


def test_unblocked_worker_oversubscribes_briefly_and_available_stays_at_zero(
    make_desk: Any,
) -> None:
    desk = make_desk(CPU=1)
    parent = desk.grant(1)
    desk.tell(on.WorkerBlocked(parent.worker_id))
    child = desk.grant(1, parent.worker_id)
    desk.tell(on.WorkerUnblocked(parent.worker_id))
    assert desk.free() == 0
    desk.return_lease(child)
    assert desk.free() == 0
    desk.return_lease(parent)
    assert desk.free() == 1


def test_worker_returned_while_blocked_is_not_blocked_in_its_next_lease(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    grant = desk.grant(1)
    desk.tell(on.WorkerBlocked(grant.worker_id))
    desk.return_lease(grant)
    desk.grant(2)
    assert desk.free() == 0


def test_cancelled_request_gives_way_to_the_next(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    said = desk.request(1)
    desk.request(2)
    desk.tell(on.LeaseRequestCancelled(b"driver", 1))
    (grant,) = only(desk.start(said), do.GrantLease)
    assert grant.request_id == 2


def test_gone_holder_loses_requests_and_its_workers_end(desk: Any) -> None:
    grant = desk.grant(1)
    desk.request(2)
    desk.request(3)
    said = desk.tell(on.HolderGone(b"driver"))
    assert [(end.startup_id, end.kind) for end in only(said, do.EndWorker)] == [
        (grant.startup_id, "owner_died")
    ]
    said = desk.tell(on.WorkerGone(grant.startup_id, grant.worker_id))
    assert not only(said, do.LoseLease)
    assert desk.free() == 2
    assert desk.machine.waiting(desk.now_s) == []


def test_gone_worker_takes_what_it_leased_with_it(desk: Any) -> None:
    parent = desk.grant(1)
    child = desk.grant(1, parent.worker_id)
    said = desk.tell(on.WorkerGone(parent.startup_id, parent.worker_id))
    assert [end.startup_id for end in only(said, do.EndWorker)] == [child.startup_id]


def test_lease_is_asked_back_for_another_holder_after_its_first_tenth_of_a_second(
    desk: Any,
) -> None:
    first = desk.grant(1, b"a")
    desk.grant(2, b"a")
    assert not only(desk.request(1, b"b"), do.AskLeaseBack)
    wakeup = desk.machine.next_wakeup(desk.now_s)
    assert wakeup is not None
    said = desk.tell(on.TimePassed(), after_s=0.11)
    assert said == [do.AskLeaseBack(b"a", first.lease_id)]
    assert desk.tell(on.TimePassed(), after_s=0.11) == []
    (grant,) = desk.return_lease(first) + desk.start(desk.said[-1:])
    assert isinstance(grant, do.StartWorker | do.GrantLease)


def test_holders_are_told_once_that_others_wait(desk: Any) -> None:
    first = desk.grant(1, b"a")
    second = desk.grant(2, b"a")
    told = only(desk.request(1, b"b"), do.TellOthersWait)
    assert told == [
        do.TellOthersWait(b"a", first.lease_id),
        do.TellOthersWait(b"a", second.lease_id),
    ]
    assert not only(desk.request(2, b"b"), do.TellOthersWait)


def test_lease_granted_while_others_wait_is_told_so_at_once(desk: Any) -> None:
    first = desk.grant(1, b"a")
    desk.grant(2, b"a")
    desk.request(1, b"b")
    desk.request(1, b"c")
    said = desk.return_lease(first)
    assert [command.holder_id for command in only(said, do.TellOthersWait)] == [b"b"]


def test_holder_is_not_told_of_its_own_requests(desk: Any) -> None:
    desk.grant(1)
    desk.grant(2)
    assert desk.request(3) == []


def test_lease_of_a_worker_is_not_asked_back_for_its_own_child(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    parent = desk.grant(1)
    desk.tell(on.TimePassed(), after_s=0.2)
    assert not only(desk.request(1, parent.worker_id), do.AskLeaseBack)
    assert desk.tell(on.TimePassed(), after_s=0.2) == []


def test_lease_is_not_asked_back_for_a_request_that_has_just_come(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    desk.grant(1, b"a")
    desk.tell(on.TimePassed(), after_s=0.2)
    assert not only(desk.request(1, b"b"), do.AskLeaseBack)
    wakeup = desk.machine.next_wakeup(desk.now_s)
    assert wakeup is not None
    assert wakeup[0] - desk.now_s < 0.03
    (ask,) = desk.tell(on.TimePassed(), after_s=wakeup[0] - desk.now_s + 1e-9)
    assert isinstance(ask, do.AskLeaseBack)


def test_lease_is_not_asked_back_for_its_holders_own_like_requests(desk: Any) -> None:
    desk.grant(1)
    desk.grant(2)
    desk.request(3)
    assert desk.tell(on.TimePassed(), after_s=1.0) == []


def test_lease_is_asked_back_for_its_holders_other_shape(desk: Any) -> None:
    desk.grant(1)
    desk.grant(2)
    desk.request(3, CPU=2)
    said = desk.tell(on.TimePassed(), after_s=0.2)
    assert len(only(said, do.AskLeaseBack)) == 2


def test_lease_is_not_asked_back_from_a_holder_with_no_larger_share(desk: Any) -> None:
    desk.grant(1, b"a")
    desk.grant(1, b"b")
    desk.request(2, b"b")
    assert desk.tell(on.TimePassed(), after_s=1.0) == []


def test_actor_default_is_placed_on_a_busy_node_and_holds_nothing(desk: Any) -> None:
    desk.grant(1)
    desk.grant(2)
    desk.place(b"a1")
    desk.place(b"a2")
    assert desk.free() == 0
    assert desk.machine.statistics().actor_leases == 2


def test_actor_default_on_a_node_without_cpu_is_refused(make_desk: Any) -> None:
    desk = make_desk(GPU=1)
    (refusal,) = desk.actor(b"a")
    assert (refusal.kind, refusal.actor_id) == ("unschedulable", b"a")


def test_actor_with_resources_holds_them_until_its_worker_is_gone(desk: Any) -> None:
    place = desk.place(b"a", CPU=1.5)
    assert desk.free() == 0.5
    said = desk.tell(on.ActorEnded(b"a", 0, "killed_by_user", "skate.kill()."))
    assert [(end.kind, end.grace_s) for end in said] == [("killed_by_user", 0.0)]
    assert desk.free() == 0.5
    said = desk.tell(on.WorkerGone(place.startup_id, place.worker_id))
    assert said == [do.LoseActor(b"a", 0, place.worker_id)]
    assert desk.free() == 2


def test_actor_ended_while_it_waits_is_forgotten(desk: Any) -> None:
    desk.actor(b"a", CPU=2)
    desk.actor(b"b", CPU=2)
    desk.tell(on.ActorEnded(b"b", 0, "killed_by_user", ""))
    assert not desk.machine.has_actor(b"b", 0)
    desk.tell(on.ActorEnded(b"a", 0, "killed_by_user", ""))
    assert desk.free() == 2


def test_actor_is_never_asked_back(desk: Any) -> None:
    desk.place(b"a", CPU=2)
    desk.request(1)
    assert desk.tell(on.TimePassed(), after_s=5.0) == []


def test_devices_whole_are_distinct_and_shares_are_packed(make_desk: Any) -> None:
    desk = make_desk(CPU=8, GPU=3)
    half = desk.grant(1, GPU=0.5)
    whole = desk.grant(2, GPU=1)
    quarter = desk.grant(3, GPU=0.25)
    assert half.device_ids == {"GPU": ((0, 5_000),)}
    assert whole.device_ids == {"GPU": ((1, 10_000),)}
    assert quarter.device_ids == {"GPU": ((0, 2_500),)}
    two = desk.request(4, GPU=2)
    assert two == []
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.kind is WaitKind.RESOURCES
    said = desk.return_lease(whole)
    (grant,) = only(said, do.GrantLease)
    assert grant.device_ids == {"GPU": ((1, 10_000), (2, 10_000))}


def test_devices_with_enough_in_sum_but_none_whole_wait_with_a_reason(make_desk: Any) -> None:
    desk = make_desk(CPU=8, GPU=2)
    first = desk.grant(1, GPU=0.6)
    desk.grant(2, GPU=0.6)
    assert desk.request(3, GPU=0.8) == []
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.missing[0].name == "GPU"
    said = desk.return_lease(first)
    assert len(only(said, do.GrantLease)) == 1


def test_impossible_request_is_refused_after_the_grace_and_names_what_is_missing(desk: Any) -> None:
    assert desk.request(1, GPU=1) == []
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.kind is WaitKind.NOWHERE
    assert waiting.reason.most == desk.machine.total
    due_s, why = desk.machine.next_wakeup(0.0)
    assert due_s == 10.0
    assert "refused" in why
    (refusal,) = desk.tell(on.TimePassed(), after_s=10.0)
    assert refusal.kind == "unschedulable"
    assert "GPU 1 and the node has GPU 0" in refusal.message


def test_impossible_request_without_a_grace_waits_and_is_demand(make_desk: Any) -> None:
    desk = make_desk(infeasible_grace_s=None)
    desk.request(1, GPU=1)
    desk.tell(on.TimePassed(), after_s=1e6)
    (demand,) = desk.machine.demands()
    assert (demand.shape, demand.requests, demand.is_infeasible) == (
        ResourceSet.from_amounts({"GPU": 1}),
        1,
        True,
    )


def test_holder_of_impossible_requests_is_told_once_for_each_kind(make_desk: Any) -> None:
    desk = make_desk(infeasible_grace_s=None)
    desk.request(1, GPU=1)
    desk.request(2, GPU=1)
    assert desk.tell(on.TimePassed(), after_s=9.9) == []
    (warning,) = desk.tell(on.TimePassed(), after_s=0.1)
    assert isinstance(warning, do.WarnHolder)
    assert warning.request_id == 1
    assert "GPU 1 and the node has GPU 0" in warning.message
    assert desk.machine.next_wakeup(desk.now_s) is None

    desk.request(3, disk=1)
    desk.request(4, GPU=1)
    (warning,) = desk.tell(on.TimePassed(), after_s=10.0)
    assert warning.request_id == 3
    assert desk.machine.next_wakeup(desk.now_s) is None


def test_invalid_amounts_are_refused_at_once(desk: Any) -> None:
    for number, amounts in enumerate([{"CPU": -1}, {"GPU": 15_000}]):
        (refusal,) = desk.tell(on.LeaseRequested(b"d", number, JOB, ResourceSet(amounts)))
        assert refusal.kind == "invalid"


def test_waiting_every_request_has_a_reason_that_names_the_holders(desk: Any) -> None:
    desk.place(b"actor", CPU=2)
    for number in range(20):
        desk.request(number)
    waiting = desk.machine.waiting(desk.now_s)
    assert len(waiting) == 20
    for item in waiting:
        assert item.reason.kind is WaitKind.RESOURCES
        assert item.reason.blocked_by == (f"actor {b'actor'.hex()}",)
        assert "CPU 1 (free 0 of 2)" in item.reason.sentence()


def test_waiting_request_with_its_worker_starting_says_so(desk: Any) -> None:
    desk.request(1)
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.kind is WaitKind.WORKER


def test_finished_job_names_the_cause_and_leaves_actors_to_the_gcs(make_desk: Any) -> None:
    desk = make_desk(CPU=8)
    actor = desk.place(b"detached")
    child = desk.grant(1, actor.worker_id)
    task = desk.grant(1, b"driver")
    other = desk.grant(1, b"other", job=b"\0\0\0\2")
    said = desk.tell(on.JobFinished(JOB)) + desk.tell(on.HolderGone(b"driver"))
    ended = {end.startup_id: end.kind for end in only(said, do.EndWorker)}
    assert ended == {task.startup_id: "job_finished"}
    assert child.startup_id not in ended
    assert other.startup_id not in ended
