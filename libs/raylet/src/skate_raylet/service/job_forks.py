"""Forks of workers for jobs that this node has not heard of yet.

A job's row comes from the GCS by the subscription, work for it from another node or as the GCS's
order; the work may be quicker. A worker without its job's paths would find none of its modules, so
its fork waits for the row, which is asked for at once.

What comes before: ``worker_processes``. What comes after: the zygote.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from skate_raylet.service.job_book import JobBook
from skate_raylet.service.zygote import ForkRequest
from skate_rpc.errors import RpcError

_log = logging.getLogger(__name__)


class JobForks:
    """Invariant: a fork that is asked for is passed on, with or without its job's paths."""

    def __init__(
        self,
        jobs: JobBook,
        fork: Callable[[ForkRequest], None],
        ask: Callable[[], Awaitable[None]],
    ) -> None:
        """``ask`` brings the rows of all jobs into ``jobs``; it takes bounded time."""
        self._jobs = jobs
        self._fork = fork
        self._ask = ask
        self._waiting: dict[bytes, list[ForkRequest]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def fork(self, request: ForkRequest) -> None:
        """Fork now, or as soon as the job is known."""
        job_id = request.job_id
        if self._jobs.is_known(job_id):
            self._fork(request)
        elif job_id in self._waiting:
            self._waiting[job_id].append(request)
        else:
            self._waiting[job_id] = [request]
            task = asyncio.create_task(self._learn(job_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def job_known(self, job_id: bytes) -> None:
        """The job's row came, or does not come."""
        for request in self._waiting.pop(job_id, ()):
            request.sys_path = list(self._jobs.get(job_id).sys_path)
            self._fork(request)

    def release_all(self) -> None:
        """Wait for nothing any more."""
        for task in self._tasks:
            task.cancel()
        for job_id in list(self._waiting):
            self.job_known(job_id)

    async def _learn(self, job_id: bytes) -> None:
        try:
            await self._ask()
        except RpcError as error:
            _log.warning("event=job_not_known job_id=%s error=%s", job_id.hex(), error)
        self.job_known(job_id)
