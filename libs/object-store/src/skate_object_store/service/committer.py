"""The thread that gives arena ranges their pages, so that the server's loop need not wait.

Before it: :class:`~skate_object_store.service.pages.PageKeeper` claimed ranges. After it: the
outcome goes back to the server's loop. Jobs are done strictly in order, so that a hole punched
before a commit of the same chunk stays before it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from skate_object_store.constants import COMMIT_STEP_BYTES
from skate_object_store.machine.commit_map import Range
from skate_object_store.service.arena import Pages

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """First give back ``holes``, then commit ``ranges``."""

    token: int
    """Names the job in its outcome."""
    ranges: list[Range]
    holes: list[Range] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job; together the two lists are its ranges, perhaps cut into pieces."""

    token: int
    committed: list[Range]
    failed: list[Range]
    error: OSError | None


class Committer:
    """Starts with the first job; ``on_outcome`` is called on its thread."""

    def __init__(self, pages: Pages, on_outcome: Callable[[Outcome], None]) -> None:
        self._pages = pages
        self._on_outcome = on_outcome
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    def submit(self, job: Job) -> None:
        """Queue a job. Only the server's loop calls this."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, name="skate-store-committer", daemon=True
            )
            self._thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Stop after the step under way, tens of milliseconds at most."""
        self._is_stopping = True
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._is_stopping:
            self._on_outcome(self._do(job))

    def _do(self, job: Job) -> Outcome:
        for hole in job.holes:
            try:
                self._pages.give_back(*hole)
            except OSError as caught:
                # The pages stay, which costs memory and nothing else.
                logger.warning("event=store_give_back_failed range=%s error=%s", hole, caught)
        committed: list[Range] = []
        failed: list[Range] = []
        error: OSError | None = None
        for step in _steps(job.ranges):
            if self._is_stopping or error is not None:
                failed.append(step)
                continue
            try:
                self._pages.commit(*step)
            except OSError as caught:
                error = caught
                failed.append(step)
            else:
                committed.append(step)
        return Outcome(job.token, committed, failed, error)


def _steps(ranges: list[Range]) -> Iterator[Range]:
    for offset, size in ranges:
        for start in range(offset, offset + size, COMMIT_STEP_BYTES):
            yield start, min(COMMIT_STEP_BYTES, offset + size - start)
