"""What to do about a job, given its facts and its supervisor: asked again and again until it ends.

Nothing is remembered between two looks but what is stored, so any process may look, and one that
was killed in the middle of a step is followed by one that takes the step again.

The order of reading matters: the supervisor is looked at *before* the facts. One that ended by
itself wrote the end before, so a dead supervisor and no end mean that it was killed.

Source: RELIABILITY I20; SURFACE rows J9, J10, J12, J14.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from skate_jobs.machine.records import ErrorType, Job, JobEnd, JobStatus

START_TIMEOUT_S: Final = 900.0


class SupervisorState(Enum):
    """How a job's supervisor was found."""

    ABSENT = "absent"  # the cluster knows none
    PENDING = "pending"  # it waits for a place, or starts
    ALIVE = "alive"
    DEAD = "dead"


class Supervisor(msgspec.Struct, frozen=True):
    """A job's supervisor as the cluster shows it."""

    state: SupervisorState
    why: str = ""  # it waits, or it died; for a person


class CreateSupervisor(msgspec.Struct, frozen=True):
    """Make the supervisor; harmless if there is one, because its name is unique."""


class AskToStop(msgspec.Struct, frozen=True):
    """Tell the supervisor to end the entry point; repeated until it has."""


class EndSupervisor(msgspec.Struct, frozen=True):
    """Kill the supervisor's process."""


class WriteEnd(msgspec.Struct, frozen=True):
    """Store the end, unless there is one."""

    end: JobEnd


Step = CreateSupervisor | AskToStop | EndSupervisor | WriteEnd


def next_steps(
    job: Job, supervisor: Supervisor, now_s: float, start_timeout_s: float = START_TIMEOUT_S
) -> list[Step]:
    """What is to be done now, in this order. ``now_s``: Unix time."""
    state = supervisor.state
    is_there = state in (SupervisorState.PENDING, SupervisorState.ALIVE)
    if job.end is not None:
        return [EndSupervisor()] if is_there else []
    if job.run is None:
        if job.stop is not None:
            return _give_up(is_there, _stopped("Job was stopped before it started.", now_s))
        if now_s - job.spec.submitted_s > start_timeout_s:
            return _give_up(is_there, _too_late(supervisor, start_timeout_s, now_s))
        if state is SupervisorState.ABSENT:
            return [CreateSupervisor()]
    if state in (SupervisorState.DEAD, SupervisorState.ABSENT):
        if job.stop is not None:
            return [WriteEnd(_stopped("Job was stopped; its supervisor died meanwhile.", now_s))]
        why = supervisor.why or "the cluster knows it no more"
        message = f"Job supervisor died: {why}"
        return [WriteEnd(_failed(ErrorType.SUPERVISOR_DIED, message, now_s))]
    if job.stop is not None and state is SupervisorState.ALIVE:
        return [AskToStop()]
    return []


def _give_up(is_there: bool, end: JobEnd) -> list[Step]:
    """A job that has not started: the end first, so that a supervisor that starts now finds it."""
    return [WriteEnd(end), *([EndSupervisor()] if is_there else [])]


def _too_late(supervisor: Supervisor, start_timeout_s: float, now_s: float) -> JobEnd:
    why = f": {supervisor.why}" if supervisor.why else "."
    message = f"Job supervisor did not start within {start_timeout_s:g} s{why}"
    return _failed(ErrorType.SUPERVISOR_START_TIMEOUT, message, now_s)


def _stopped(message: str, now_s: float) -> JobEnd:
    return JobEnd(JobStatus.STOPPED, message, now_s)


def _failed(error_type: ErrorType, message: str, now_s: float) -> JobEnd:
    return JobEnd(JobStatus.FAILED, message, now_s, error_type)
