"""Jobs: entry points that run on the cluster, each to exactly one end.

The manager, which needs the runtime, is imported from ``skate_jobs.manager``.
"""

from __future__ import annotations

from skate_jobs.client import JobDetails, JobRequestError, JobSubmissionClient
from skate_jobs.errors import (
    InvalidJobError,
    JobError,
    JobExistsError,
    JobNotFoundError,
    JobRunsError,
)
from skate_jobs.machine.records import ErrorType, Job, JobEnd, JobRun, JobSpec, JobStatus, JobStop

__all__ = [
    "ErrorType",
    "InvalidJobError",
    "Job",
    "JobDetails",
    "JobEnd",
    "JobError",
    "JobExistsError",
    "JobNotFoundError",
    "JobRequestError",
    "JobRun",
    "JobRunsError",
    "JobSpec",
    "JobStatus",
    "JobStop",
    "JobSubmissionClient",
]
