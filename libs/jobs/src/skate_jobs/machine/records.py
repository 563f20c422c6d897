"""What is stored of a job: facts that are written once, each under a key of its own.

A job's state is not stored but follows from which facts there are, so it needs no update that two
writers could make at once: of two ends that are written, the first is the job's end for ever.

::

    spec  it was submitted                             PENDING
    run   a supervisor took it, before it starts       RUNNING
    stop  somebody asked for its end                   as before
    end   it ended, and how                            SUCCEEDED, FAILED or STOPPED

Source: SURFACE rows J2-J4, J13; RELIABILITY I20.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class JobStatus(StrEnum):
    """Where a job stands. The last three are final."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


class ErrorType(StrEnum):
    """Why a job failed, for programs."""

    SUPERVISOR_UNSCHEDULABLE = "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE"
    SUPERVISOR_START_TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
    SUPERVISOR_DIED = "JOB_SUPERVISOR_ACTOR_DIED"
    ENTRYPOINT_START_ERROR = "JOB_ENTRYPOINT_COMMAND_START_ERROR"
    ENTRYPOINT_ERROR = "JOB_ENTRYPOINT_COMMAND_ERROR"


class JobSpec(msgspec.Struct, frozen=True, array_like=True):
    """What was submitted. Times are Unix seconds, amounts in units of 1e-4."""

    submission_id: str
    entrypoint: str  # a shell command
    submitted_s: float
    writer: str  # a random word: tells the writer's own fact from another's
    metadata: dict[str, str] = {}
    env_vars: dict[str, str] = {}
    resources: dict[str, int] = {}  # held by the entry point while it runs
    idempotency_key: str = ""


class JobRun(msgspec.Struct, frozen=True, array_like=True):
    """A supervisor took the job: it starts the entry point next, and nobody else ever does."""

    writer: str
    started_s: float
    node_id: bytes
    ip_address: str
    pid: int  # of the supervisor
    log_file: str  # its name among the logs of that node


class JobStop(msgspec.Struct, frozen=True, array_like=True):
    """Somebody asked for the job's end."""

    asked_s: float


class JobEnd(msgspec.Struct, frozen=True, array_like=True):
    """How the job ended."""

    status: JobStatus  # a final one
    message: str  # for a person
    ended_s: float
    error_type: str = ""  # an ErrorType of a failure
    exit_code: int | None = None  # of the entry point, when it ran to its end; negative: a signal


class Job(msgspec.Struct, frozen=True):
    """All facts of one job."""

    spec: JobSpec
    run: JobRun | None = None
    stop: JobStop | None = None
    end: JobEnd | None = None

    @property
    def status(self) -> JobStatus:
        """What follows from the facts."""
        if self.end is not None:
            return self.end.status
        return JobStatus.PENDING if self.run is None else JobStatus.RUNNING

    @property
    def message(self) -> str:
        """One sentence for a person."""
        if self.end is not None:
            return self.end.message
        if self.stop is not None:
            return "Job is being stopped."
        if self.run is None:
            return "Job has not started yet. It waits for its supervisor to be placed."
        return "Job is currently running."
