"""Jobs on a real cluster: submitted, run, stopped, killed; each reaches exactly one end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate_jobs import (
    ErrorType,
    InvalidJobError,
    Job,
    JobExistsError,
    JobNotFoundError,
    JobRunsError,
    JobStatus,
)
from skate_jobs.manager import JobManager
from skate_worker.current import require_core

WAIT_S = 20.0


@pytest.fixture(scope="module")
def manager(shared_cluster: Any) -> Iterator[JobManager]:
    core = require_core()
    head = next(row.node_id for row in core.nodes() if row.is_head)
    made = JobManager(core, head)
    made.start()
    yield made
    made.close()


def python(source: str) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(source)}"


def until(condition: Callable[[], Any], what: str = "") -> Any:
    deadline_s = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"waited in vain {what}"
        time.sleep(0.02)
    return found


def ended(manager: JobManager, submission_id: str) -> Job:
    return until(lambda: (job := manager.get(submission_id)).end and job, f"for {submission_id}")


def log_of(job: Job) -> str:
    assert job.run is not None
    return Path(require_core().session_dir, "logs", job.run.log_file).read_text("utf-8")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"


@pytest.mark.surface("J2", "J9", "J11")
def test_entry_point_is_a_driver_of_the_cluster_and_knows_its_job(manager: JobManager) -> None:
    source = """
import json, os, skate
skate.init()
print(skate.get(skate.remote(lambda: os.environ["COLOUR"]).remote()))
print(os.environ["SKATE_JOB_METADATA"])
"""
    submission_id = manager.submit(
        python(source), metadata={"owner": "me"}, env_vars={"COLOUR": "blue"}
    )
    assert submission_id.startswith("raysubmit_")
    job = ended(manager, submission_id)
    assert (job.status, job.end and job.end.exit_code) == (JobStatus.SUCCEEDED, 0), job.message
    first, second = log_of(job).splitlines()
    assert first == "blue"
    assert json.loads(second) == {"owner": "me", "job_submission_id": submission_id}


@pytest.mark.surface("J13")
def test_failed_entry_point_says_how_and_shows_its_last_lines(manager: JobManager) -> None:
    job = ended(manager, manager.submit("seq 1 50; exit 7"))
    assert job.end is not None
    assert (job.status, job.end.exit_code) == (JobStatus.FAILED, 7)
    assert job.end.error_type == ErrorType.ENTRYPOINT_ERROR
    assert "exit code 7" in job.message
    assert job.message.splitlines()[-10:] == [str(number) for number in range(41, 51)]


def test_entry_point_that_was_killed_names_the_signal(manager: JobManager) -> None:
    job = ended(manager, manager.submit("kill -SEGV $$"))
    assert "signal SIGSEGV" in job.message


@pytest.mark.surface("J12")
@pytest.mark.parametrize("is_deaf", [False, True])
def test_stopped_job_ends_with_its_whole_tree(
    manager: JobManager, tmp_path: Path, is_deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    trap = "trap '' TERM; " if is_deaf else ""
    env_vars = {"SKATE_JOB_STOP_WAIT_TIME_S": "0.3"}
    entrypoint = f"{trap}(sleep 300 & echo $! >> {pids}; wait) & echo $$ >> {pids}; sleep 300; wait"
    submission_id = manager.submit(entrypoint, env_vars=env_vars)
    found = until(lambda: pids.exists() and pids.read_text("utf-8").count("\n") == 2 and pids)
    assert manager.get(submission_id).status is JobStatus.RUNNING
    assert manager.stop(submission_id)
    job = ended(manager, submission_id)
    assert job.status is JobStatus.STOPPED
    for pid in map(int, found.read_text("utf-8").split()):
        until(lambda pid=pid: not is_alive(pid), f"for {pid} to end")
    assert not manager.stop(submission_id)


@pytest.mark.surface("J10")
def test_job_that_finds_no_place_waits_and_can_be_stopped(manager: JobManager) -> None:
    submission_id = manager.submit("true", resources={"moon": 10_000})
    until(lambda: any(view.class_name == "JobSupervisor" for view in require_core().actors()))
    assert manager.get(submission_id).status is JobStatus.PENDING
    assert manager.stop(submission_id)
    job = ended(manager, submission_id)
    assert (job.status, job.run) == (JobStatus.STOPPED, None)


@pytest.mark.invariant("I20")
def test_job_whose_supervisor_is_killed_fails_and_its_tree_ends(
    manager: JobManager, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    entrypoint = f"sleep 300 & echo $! >> {pids}; echo $$ >> {pids}; wait"
    submission_id = manager.submit(entrypoint)
    until(lambda: pids.exists() and pids.read_text("utf-8").count("\n") == 2)
    run = manager.get(submission_id).run
    assert run is not None
    os.kill(run.pid, signal.SIGKILL)
    job = ended(manager, submission_id)
    assert job.end is not None
    assert job.end.error_type == ErrorType.SUPERVISOR_DIED
    assert "signal 9" in job.message or "SIGKILL" in job.message
    for pid in map(int, pids.read_text("utf-8").split()):
        until(lambda pid=pid: not is_alive(pid), f"for {pid} to end")


@pytest.mark.invariant("I20")
def test_managers_that_come_and_go_lose_and_repeat_no_job(
    shared_cluster: Any, tmp_path: Path
) -> None:
    core = require_core()
    head = next(row.node_id for row in core.nodes() if row.is_head)
    starts = tmp_path / "starts"
    first, second = JobManager(core, head), JobManager(core, head)  # neither watches yet
    ids = [first.submit(f"echo {number} >> {starts}") for number in range(6)]
    first.look()  # it is gone after this one
    second.start()
    third = JobManager(core, head)
    third.start()
    try:
        assert {ended(second, id_).status for id_ in ids} == {JobStatus.SUCCEEDED}
    finally:
        second.close()
        third.close()
    assert sorted(starts.read_text("utf-8").split()) == [str(number) for number in range(6)]


def test_ids_are_unique_and_a_repeated_submission_is_recognised_by_its_key(
    manager: JobManager,
) -> None:
    assert manager.submit("true", submission_id="mine", idempotency_key="k") == "mine"
    assert manager.submit("true", submission_id="mine", idempotency_key="k") == "mine"
    for key in ("", "other"):
        with pytest.raises(JobExistsError, match="'mine' already"):
            manager.submit("true", submission_id="mine", idempotency_key=key)


def test_job_is_deleted_only_when_it_has_ended(manager: JobManager) -> None:
    submission_id = manager.submit("sleep 300")
    with pytest.raises(JobRunsError, match="has not ended"):
        manager.delete(submission_id)
    manager.stop(submission_id)
    ended(manager, submission_id)
    manager.delete(submission_id)
    with pytest.raises(JobNotFoundError, match="There is no job"):
        manager.get(submission_id)
    assert submission_id not in [job.spec.submission_id for job in manager.list()]


@pytest.mark.parametrize(
    ("entrypoint", "options", "text"),
    [
        ("  ", {}, "entry point must be a command"),
        ("true", {"submission_id": "../x"}, "must be at most 128 letters"),
        ("true", {"submission_id": "a/b"}, "must be at most 128 letters"),
        ("true", {"metadata": {"k": "v" * 1_000_000}}, "metadata is larger"),
    ],
)
def test_bad_submission_is_refused(
    manager: JobManager, entrypoint: str, options: Any, text: str
) -> None:
    with pytest.raises(InvalidJobError, match=text):
        manager.submit(entrypoint, **options)


def test_finished_supervisors_hold_nothing(manager: JobManager) -> None:
    total = skate.cluster_resources()
    ids = [manager.submit("true", resources={"CPU": 10_000}) for _ in range(3)]
    assert {ended(manager, id_).status for id_ in ids} == {JobStatus.SUCCEEDED}
    until(lambda: skate.available_resources() == total, "for the resources")
