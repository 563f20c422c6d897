"""What can be wrong with a request about jobs."""

from __future__ import annotations

from skate_core_ids import SkateError


class JobError(SkateError):
    """Base of the errors of this library."""


class InvalidJobError(JobError, ValueError):
    """A submission that can not be a job."""


class JobNotFoundError(JobError):
    """No job of this submission id."""

    def __init__(self, submission_id: str) -> None:
        super().__init__(submission_id)
        self.submission_id = submission_id

    def __str__(self) -> str:
        return f"There is no job {self.submission_id!r}; list the jobs to see their ids."


class JobExistsError(JobError):
    """The submission id is taken."""

    def __init__(self, submission_id: str) -> None:
        super().__init__(submission_id)
        self.submission_id = submission_id

    def __str__(self) -> str:
        return (
            f"There is a job {self.submission_id!r} already; submit with another id, or delete that"
            " one when it has ended."
        )


class JobRunsError(JobError):
    """The job has not ended."""

    def __init__(self, submission_id: str) -> None:
        super().__init__(submission_id)
        self.submission_id = submission_id

    def __str__(self) -> str:
        return f"The job {self.submission_id!r} has not ended; stop it before it is deleted."
