"""Jobs: entry points that run on the cluster, each to exactly one end."""

from __future__ import annotations

from skate_jobs.errors import (
    InvalidJobError,
    JobError,
    JobExistsError,
    JobNotFoundError,
    JobRunsError,
)
from skate_jobs.machine.records import ErrorType, Job, JobEnd, JobRun, JobSpec, JobStatus, JobStop
from skate_jobs.manager import JobManager

__all__ = [
    "ErrorType",
    "InvalidJobError",
    "Job",
    "JobEnd",
    "JobError",
    "JobExistsError",
    "JobManager",
    "JobNotFoundError",
    "JobRun",
    "JobRunsError",
    "JobSpec",
    "JobStatus",
    "JobStop",
]
