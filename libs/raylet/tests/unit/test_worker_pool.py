from __future__ import annotations

import math
from typing import Any

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_scheduler import WaitKind

JOB = b"\0\0\0\1"


def only(said: list[Any], kind: type[Any]) -> list[Any]:
    return [command for command in said if isinstance(command, kind)]


def test_worker_is_not_shared_between_jobs_or_environments(make_desk: Any) -> None:
    desk = make_desk(CPU=8)
    desk.return_lease(desk.grant(1))
    assert only(desk.request(2, job=b"\0\0\0\2"), do.StartWorker)
    assert only(desk.request(3, env=(("A", "1"),)), do.StartWorker)
    assert only(desk.request(4), do.GrantLease)


def test_starts_at_once_are_bounded(make_desk: Any) -> None:
    desk = make_desk(CPU=50, starts_max=4)
    said = [command for number in range(20) for command in desk.request(number)]
    starts = only(said, do.StartWorker)
    assert len(starts) == 4
    said = desk.tell(on.WorkerRegistered(starts[0].startup_id, b"w1"))
    assert [type(command) for command in said] == [do.StartWorker, do.GrantLease]


def test_idle_workers_past_the_soft_limit_are_retired_after_a_second(make_desk: Any) -> None:
    desk = make_desk(CPU=4, soft_limit=2)
    grants = [desk.grant(number) for number in range(4)]
    for grant in grants:
        desk.return_lease(grant)
    assert desk.tell(on.TimePassed(), after_s=0.9) == []
    said = desk.tell(on.TimePassed(), after_s=0.1)
    assert [end.startup_id for end in said] == [grants[0].startup_id, grants[1].startup_id]
    assert all(math.isinf(end.grace_s) for end in said)
    assert desk.tell(on.TimePassed(), after_s=100.0) == []


def test_idle_worker_that_owns_leases_is_kept(make_desk: Any) -> None:
    desk = make_desk(CPU=4, soft_limit=0)
    parent = desk.grant(1)
    child = desk.grant(1, parent.worker_id)
    desk.return_lease(parent)
    assert desk.tell(on.TimePassed(), after_s=2.0) == []
    said = desk.return_lease(child)
    assert [end.startup_id for end in said] == [parent.startup_id]
    assert [end.startup_id for end in desk.tell(on.TimePassed(), after_s=1.0)] == [child.startup_id]


def test_actors_do_not_count_against_the_soft_limit(make_desk: Any) -> None:
    desk = make_desk(CPU=4, soft_limit=1)
    for number in range(5):
        desk.place(b"a%d" % number)
    desk.return_lease(desk.grant(1))
    assert desk.tell(on.TimePassed(), after_s=5.0) == []


def test_start_that_fails_refuses_the_first_in_line_with_its_message(desk: Any) -> None:
    (start,) = desk.request(1)
    said = desk.tell(on.WorkerStartFailed(start.startup_id, "ImportError: no", is_transient=False))
    (refusal,) = said
    assert (refusal.request_id, refusal.kind) == (1, "worker_start_failed")
    assert "ImportError" in refusal.message
    assert desk.free() == 2


def test_start_that_fails_transiently_is_tried_again_with_a_growing_pause(desk: Any) -> None:
    said = desk.request(1)
    pauses = []
    while starts := only(said, do.StartWorker):
        said = desk.tell(on.WorkerStartFailed(starts[0].startup_id, "zygote gone", True))
        wakeup = desk.machine.next_wakeup(desk.now_s)
        if wakeup is not None:
            pauses.append(wakeup[0] - desk.now_s)
            said = desk.tell(on.TimePassed(), after_s=pauses[-1])
    assert [round(pause_s, 3) for pause_s in pauses] == [0.1, 0.2, 0.4, 0.8]
    assert isinstance(said[0], do.RefuseLease)


def test_start_that_does_not_register_in_a_minute_is_given_up(desk: Any) -> None:
    (start,) = desk.request(1)
    said = desk.tell(on.TimePassed(), after_s=60.0)
    assert [type(command) for command in said] == [do.EndWorker, do.RefuseLease]
    assert said[0].startup_id == start.startup_id
    assert desk.tell(on.WorkerRegistered(start.startup_id, b"late")) == []
    assert desk.tell(on.WorkerGone(start.startup_id, b"late")) == []


def test_abandoned_start_leaves_an_idle_worker_that_serves_the_next(desk: Any) -> None:
    said = desk.request(1)
    desk.tell(on.LeaseRequestCancelled(b"driver", 1))
    assert desk.start(said) == []
    assert [type(command) for command in desk.request(2)] == [do.GrantLease]


def test_workers_max_is_never_exceeded_and_the_reason_says_so(make_desk: Any) -> None:
    desk = make_desk(CPU=10, workers_max=2)
    grants = [desk.grant(number) for number in range(2)]
    assert desk.request(9) == []
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.kind is WaitKind.WORKER_LIMIT
    said = desk.tell(on.WorkerGone(grants[0].startup_id, grants[0].worker_id))
    assert len(only(said, do.StartWorker)) == 1


def test_workers_max_idle_worker_of_another_kind_gives_way(make_desk: Any) -> None:
    desk = make_desk(CPU=10, workers_max=1)
    grant = desk.grant(1)
    desk.return_lease(grant)
    (end,) = desk.request(2, env=(("A", "1"),))
    assert end.startup_id == grant.startup_id
    said = desk.tell(on.WorkerGone(grant.startup_id, grant.worker_id))
    assert len(only(said, do.StartWorker)) == 1


def test_retiring_worker_is_not_handed_out_again(desk: Any) -> None:
    grant = desk.grant(1)
    desk.tell(on.WorkerRetiring(grant.startup_id))
    desk.return_lease(grant)
    said = desk.request(2)
    assert only(said, do.StartWorker)


def test_unfit_worker_is_ended_and_its_lease_is_lost_with_it(desk: Any) -> None:
    grant = desk.grant(1)
    (end,) = desk.tell(on.WorkerUnfit(grant.startup_id, "killed_by_user", "cancel(force=True)"))
    assert (end.kind, end.grace_s) == ("killed_by_user", 0.0)
    said = desk.tell(on.WorkerGone(grant.startup_id, grant.worker_id))
    assert only(said, do.LoseLease)


def test_finished_job_ends_its_idle_workers_at_once(desk: Any) -> None:
    grant = desk.grant(1)
    desk.return_lease(grant)
    (end,) = desk.tell(on.JobFinished(JOB))
    assert (end.startup_id, end.kind) == (grant.startup_id, "job_finished")


def test_finished_job_puts_a_deadline_on_a_worker_that_was_asked_to_leave(make_desk: Any) -> None:
    desk = make_desk(soft_limit=0)
    grant = desk.grant(1)
    desk.return_lease(grant)
    (end,) = desk.tell(on.TimePassed(), after_s=1.0)
    assert math.isinf(end.grace_s)
    (end,) = desk.tell(on.JobFinished(JOB))
    assert end.grace_s < 10


def test_closed_machine_refuses_and_starts_nothing(desk: Any) -> None:
    desk.request(1)
    said = desk.machine.close(desk.now_s)
    assert [type(command) for command in said] == [do.RefuseLease]
    assert not only(desk.request(2), do.StartWorker)


def test_worker_is_never_leased_to_itself(make_desk: Any) -> None:
    desk = make_desk(CPU=1)
    parent = desk.grant(1)
    desk.request(1, parent.worker_id)
    said = desk.return_lease(parent)
    assert only(said, do.StartWorker)
    (grant,) = desk.start(said)
    assert grant.worker_id != parent.worker_id
