"""What workers need to know of their jobs: the namespace, and where modules are found.

A job's driver may be on another node; then the GCS's events tell.
"""

from __future__ import annotations

import json

import msgspec
from msgspec.structs import replace

from skate_rpc.gen.skate.v1 import gcs_pb2

SYS_PATH_KEY = "skate:sys_path"  # in the job's metadata, as a JSON list
LOGS_KEY = "skate:logs"  # "1": the driver shows what its workers print
FINISHED_KEPT_MAX = 1000


class Job(msgspec.Struct, frozen=True):
    """One job."""

    job_id: bytes
    namespace: str
    sys_path: tuple[str, ...]
    is_finished: bool = False
    wants_logs: bool = False
    driver_node_id: bytes = b""


class JobBook:
    """All live jobs of the cluster, and the last finished ones."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, Job] = {}
        self._finished: dict[bytes, None] = {}

    def get(self, job_id: bytes) -> Job:
        """The job; one that is not known yet has no namespace and no paths."""
        return self._jobs.get(job_id) or Job(job_id, "", ())

    def is_known(self, job_id: bytes) -> bool:
        """Whether the job's row has come."""
        return job_id in self._jobs

    def update(self, job: Job) -> bool:
        """Take news; returns whether the job has just been finished."""
        known = self._jobs.get(job.job_id)
        if known is not None and known.is_finished:
            return False
        self._jobs[job.job_id] = job
        if job.is_finished:
            self._finished[job.job_id] = None
            while len(self._finished) > FINISHED_KEPT_MAX:
                oldest = next(iter(self._finished))
                del self._finished[oldest], self._jobs[oldest]
        return job.is_finished

    def finish(self, job_id: bytes) -> bool:
        """This node's driver is gone; returns whether that is news."""
        job = self.get(job_id)
        return self.update(replace(job, is_finished=True))


def job_of(info: gcs_pb2.JobInfo) -> Job:
    """The part of a job's row that matters here."""
    return Job(
        info.job_id,
        info.namespace,
        _paths(info.metadata.get(SYS_PATH_KEY, "")),
        info.finished,
        info.metadata.get(LOGS_KEY) == "1",
        info.driver.node_id,
    )


def _paths(text: str) -> tuple[str, ...]:
    try:
        paths = json.loads(text or "[]")
    except ValueError:
        return ()  # another program's idea of this key
    return tuple(path for path in paths if isinstance(path, str)) if isinstance(paths, list) else ()
