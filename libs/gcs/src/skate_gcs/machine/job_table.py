"""The job table: one row for each driver's run, numbered from 1, in order of arrival, for ever.

The number is stored with its row, so that a job's id is never given twice even when old rows are
gone.

Cost: O(1) per event; O(jobs) to list.

Source: SURFACE row J18.
"""

from __future__ import annotations

from msgspec.structs import replace

from skate_core_ids import JobID
from skate_gcs.machine.answers import JobAssigned, RefusalKind, Refused
from skate_gcs.machine.clock import Now
from skate_gcs.machine.commands import Command, Persist, Publish, Reply, Table
from skate_gcs.machine.events import JobAdded
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import CounterRecord, JobRecord

JOB_COUNTER_KEY = b"jobs"
_NUMBER_MAX = 2**32 - 2  # the highest id but the nil one


class JobTable:
    """Invariant: every row's number is at most ``number_last``; drivers are unique."""

    def __init__(self, limits: GcsLimits) -> None:
        self._limits = limits
        self._jobs: dict[bytes, JobRecord] = {}
        self._job_of_driver: dict[bytes, bytes] = {}  # by the driver's worker_id
        self._finished: dict[bytes, None] = {}  # oldest first
        self._number_last = 0

    def restore(self, rows: list[JobRecord], counter: CounterRecord | None) -> None:
        """Take the stored rows, in any order."""
        self._number_last = counter.value if counter is not None else 0
        for job in sorted(rows, key=lambda row: row.job_id):
            self._index(job)
        for job in sorted(rows, key=lambda row: row.end_time_s):
            if job.is_finished:
                self._finished[job.job_id] = None

    def add(self, event: JobAdded, now: Now, out: list[Command]) -> None:
        """Number a driver's job, or tell its number again."""
        driver_id = event.job.driver.worker_id
        if not driver_id:
            out.append(Reply(Refused(RefusalKind.INVALID, "A job needs its driver's worker_id.")))
            return
        known = self._job_of_driver.get(driver_id)
        if known is not None:
            out.append(Reply(JobAssigned(known)))
            return
        job_id = event.job.job_id
        if job_id:
            if len(job_id) != JobID.SIZE or job_id in self._jobs:
                problem = f"The job id {job_id.hex()} is malformed or another driver's."
                out.append(Reply(Refused(RefusalKind.INVALID, problem)))
                return
            number = int.from_bytes(job_id, "big")
        else:
            number = self._number_last + 1
            job_id = JobID.from_int(number).binary()
        if not 0 < number <= _NUMBER_MAX:
            out.append(Reply(Refused(RefusalKind.INVALID, f"No job can have number {number}.")))
            return
        if number > self._number_last:
            self._number_last = number
            out.append(Persist(Table.COUNTERS, JOB_COUNTER_KEY, CounterRecord(number)))
        job = replace(
            event.job, job_id=job_id, start_time_s=now.unix_s, end_time_s=0.0, is_finished=False
        )
        self._index(job)
        out.append(Persist(Table.JOBS, job_id, job))
        out.append(Publish(job))
        out.append(Reply(JobAssigned(job_id)))

    def finish(self, job_id: bytes, now: Now, out: list[Command]) -> bool:
        """End a job. False: it is unknown or has ended before."""
        job = self._jobs.get(job_id)
        if job is None or job.is_finished:
            return False
        job = replace(job, is_finished=True, end_time_s=now.unix_s)
        self._jobs[job_id] = job
        self._finished[job_id] = None
        out.append(Persist(Table.JOBS, job_id, job))
        out.append(Publish(job))
        self.trim(out)
        return True

    def trim(self, out: list[Command]) -> None:
        """Forget the oldest finished jobs beyond the limit; also wanted after :meth:`restore`."""
        while len(self._finished) > self._limits.jobs_finished_max:
            oldest = next(iter(self._finished))
            del self._finished[oldest]
            del self._job_of_driver[self._jobs.pop(oldest).driver.worker_id]
            out.append(Persist(Table.JOBS, oldest, None, is_lazy=True))

    def job_of_driver(self, worker_id: bytes) -> bytes | None:
        """The job that this driver runs or ran."""
        return self._job_of_driver.get(worker_id)

    def is_finished(self, job_id: bytes) -> bool:
        """Whether the job is known to have ended."""
        return job_id in self._finished

    def is_running(self, job_id: bytes) -> bool:
        """Whether the job is known and has not ended."""
        return job_id in self._jobs and job_id not in self._finished

    def running_on(self, node_id: bytes) -> list[bytes]:
        """Jobs whose driver lives on this node. O(jobs)."""
        return [
            job.job_id
            for job in self._jobs.values()
            if not job.is_finished and job.driver.node_id == node_id
        ]

    def records(self) -> list[JobRecord]:
        """All jobs, in order of arrival."""
        return list(self._jobs.values())

    def count(self) -> tuple[int, int]:
        """Jobs that run, jobs that have ended."""
        return len(self._jobs) - len(self._finished), len(self._finished)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        assert len(self._finished) <= self._limits.jobs_finished_max
        assert len(self._job_of_driver) == len(self._jobs)
        for job_id, job in self._jobs.items():
            assert job.job_id == job_id
            assert self._job_of_driver[job.driver.worker_id] == job_id
            assert int.from_bytes(job_id, "big") <= self._number_last
            assert job.is_finished == (job_id in self._finished)

    def _index(self, job: JobRecord) -> None:
        self._jobs[job.job_id] = job
        self._job_of_driver[job.driver.worker_id] = job.job_id
