from __future__ import annotations

import pytest

from skate_gcs.machine.answers import (
    Accepted,
    JobAssigned,
    KvCount,
    KvKeys,
    KvValue,
    RefusalKind,
    Refused,
)
from skate_gcs.machine.events import (
    JobAdded,
    JobFinished,
    KvDelete,
    KvGet,
    KvList,
    KvPut,
    ListDeadWorkers,
    ListJobs,
    NodeUnregistered,
    WorkerDied,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import Address, DeathCause, JobRecord, WorkerRecord


def number(job_id):
    return int.from_bytes(job_id, "big")


# ---- jobs ----


def test_jobs_are_numbered_from_one(world):
    assert [number(world.add_job()) for _ in range(3)] == [1, 2, 3]


def test_driver_that_comes_twice_gets_the_same_job(world):
    driver = world.id(28)
    assert world.add_job(worker_id=driver) == world.add_job(worker_id=driver)
    assert len(world.published) == 1


def test_numbers_go_on_after_restart_even_when_the_rows_are_gone(make_world):
    world = make_world(GcsLimits(jobs_finished_max=1))
    for _ in range(3):
        world.handle(JobFinished(world.add_job(), DeathCause()))
    world.restart(keeps_lazy=True)
    assert [number(job.job_id) for job in world.handle(ListJobs()).records] == [3]
    assert number(world.add_job()) == 4


def test_finished_job_has_an_end_and_finishing_twice_is_harmless(world):
    job = world.add_job()
    world.handle(JobFinished(job, DeathCause()))
    (record,) = world.handle(ListJobs()).records
    assert record.is_finished
    assert record.end_time_s >= record.start_time_s > 0
    published = len(world.published)
    world.handle(JobFinished(job, DeathCause()))
    world.handle(JobFinished(b"\0\0\0\x63", DeathCause()))
    assert len(world.published) == published


def test_job_of_a_dead_node_is_finished(world):
    node = world.add_node()
    job, other = world.add_job(node), world.add_job(world.add_node())
    world.handle(NodeUnregistered(node, DeathCause()))
    jobs = {record.job_id: record for record in world.handle(ListJobs()).records}
    assert jobs[job].is_finished
    assert not jobs[other].is_finished


def test_job_may_bring_a_free_number(world):
    given = JobRecord(b"\0\0\0\x05", Address(b"", world.id(28)))
    assert world.handle(JobAdded(given)) == JobAssigned(b"\0\0\0\x05")
    assert number(world.add_job()) == 6


@pytest.mark.parametrize("job_id", [b"\0", b"\0\0\0\1", b"\0\0\0\0", b"\xff" * 4])
def test_job_with_an_unusable_number_is_refused(world, job_id):
    world.add_job()
    answer = world.handle(JobAdded(JobRecord(job_id, Address(b"", world.id(28)))))
    assert isinstance(answer, Refused)


def test_job_without_driver_is_refused(world):
    assert isinstance(world.handle(JobAdded(JobRecord(b"", Address()))), Refused)


# ---- workers ----


def test_dead_worker_is_listed_and_announced_once(world):
    worker = WorkerRecord(world.id(28), pid=7)
    for _ in range(2):
        world.handle(WorkerDied(worker))
    (record,) = world.handle(ListDeadWorkers()).records
    assert record.pid == 7
    assert world.published == [record]


def test_newest_dead_workers_are_kept(make_world):
    world = make_world(GcsLimits(workers_dead_max=2))
    ids = [world.id(28) for _ in range(4)]
    for worker_id in ids:
        world.advance(1.0)
        world.handle(WorkerDied(WorkerRecord(worker_id)))
    assert [record.worker_id for record in world.handle(ListDeadWorkers()).records] == ids[2:]
    world.restart(keeps_lazy=True)
    assert [record.worker_id for record in world.handle(ListDeadWorkers()).records] == ids[2:]


def test_worker_death_costs_no_commit_of_its_own(world):
    world.handle(WorkerDied(WorkerRecord(world.id(28))))
    assert world.commits == 0
    assert len(world.lazy) == 1


def test_nameless_workers_death_is_refused(world):
    answer = world.handle(WorkerDied(WorkerRecord(b"")))
    assert isinstance(answer, Refused)
    assert answer.kind is RefusalKind.INVALID


# ---- key-value store ----


def test_kv_put_get_delete(world):
    assert world.handle(KvPut("n", b"k", b"v", overwrite=False)) == Accepted(True)
    assert world.handle(KvGet("n", b"k")) == KvValue(b"v")
    assert world.handle(KvGet("other", b"k")) == KvValue(None)
    assert world.handle(KvDelete("n", b"k", is_prefix=False)) == KvCount(1)
    assert world.handle(KvDelete("n", b"k", is_prefix=False)) == KvCount(0)
    assert world.handle(KvGet("n", b"k")) == KvValue(None)
    assert world.machine.statistics().kv_bytes == 0


def test_kv_put_without_overwrite_keeps_the_first_value(world):
    world.handle(KvPut("n", b"k", b"1", overwrite=False))
    commits = world.commits
    assert world.handle(KvPut("n", b"k", b"2", overwrite=False)) == Accepted(False)
    assert world.commits == commits
    assert world.handle(KvGet("n", b"k")) == KvValue(b"1")
    assert world.handle(KvPut("n", b"k", b"22", overwrite=True)) == Accepted(True)
    assert world.machine.statistics().kv_bytes == 2


def test_kv_keys_are_sorted_and_filtered_by_prefix(world):
    for key in (b"b", b"a2", b"a1", b"c"):
        world.handle(KvPut("n", key, b"", overwrite=True))
    assert world.handle(KvList("n", b"")) == KvKeys([b"a1", b"a2", b"b", b"c"])
    assert world.handle(KvList("n", b"a")) == KvKeys([b"a1", b"a2"])
    assert world.handle(KvDelete("n", b"a", is_prefix=True)) == KvCount(2)
    assert world.handle(KvList("n", b"")) == KvKeys([b"b", b"c"])
    assert world.handle(KvDelete("n", b"", is_prefix=True)) == KvCount(2)
    assert world.machine.statistics().kv_entries == 0


def test_kv_empty_value_is_a_value(world):
    world.handle(KvPut("n", b"k", b"", overwrite=True))
    assert world.handle(KvGet("n", b"k")) == KvValue(b"")


def test_kv_empty_key_is_refused(world):
    assert isinstance(world.handle(KvPut("n", b"", b"v", overwrite=True)), Refused)


@pytest.mark.parametrize("namespace", ["", "fun", "ns\0é", "n" * 300])
def test_kv_survives_restart_under_its_namespace(world, namespace):
    world.handle(KvPut(namespace, b"\0k\xff", b"v", overwrite=True))
    world.handle(KvPut(namespace + "x", b"\0k\xff", b"w", overwrite=True))
    world.restart()
    assert world.handle(KvGet(namespace, b"\0k\xff")) == KvValue(b"v")
    assert world.handle(KvGet(namespace + "x", b"\0k\xff")) == KvValue(b"w")
