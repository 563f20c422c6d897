"""Takes submissions and sees every job to its end.

What is decided is in ``machine.watch``; here are the process's reads and writes. Any number of
managers may run on a cluster, one after the other or at once: what they write is written once.
"""

from __future__ import annotations

import logging
import re
import secrets
import string
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from skate_core_ids import SkateError
from skate_jobs.errors import InvalidJobError, JobExistsError, JobNotFoundError, JobRunsError
from skate_jobs.machine.records import Job, JobSpec, JobStop
from skate_jobs.machine.watch import (
    START_TIMEOUT_S,
    AskToStop,
    CreateSupervisor,
    EndSupervisor,
    Step,
    Supervisor,
    SupervisorState,
    WriteEnd,
    next_steps,
)
from skate_jobs.store import JobStore
from skate_jobs.supervisor import JobSupervisor
from skate_rpc import node_protocol as node
from skate_worker.specs import ActorOptions, CallOptions, Strategy

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

_log = logging.getLogger(__name__)

ACTOR_NAMESPACE: Final = "skate:job-supervisors"
ACTOR_PREFIX: Final = "_skate_job_"
LOOK_S: Final = 0.5  # between two looks at a job that has not ended
ENTRYPOINT_CHARACTERS_MAX: Final = 100_000
METADATA_BYTES_MAX: Final = 1_000_000
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_STATES: Final = {"ALIVE": SupervisorState.ALIVE, "DEAD": SupervisorState.DEAD}
_SUPERVISOR_THREADS: Final = 2


class JobManager:
    """The jobs of one cluster. Thread-safe. ``core``: a driver's connection to it."""

    def __init__(
        self, core: CoreWorker, head_node_id: bytes, start_timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Entry points that ask for no resources run on the head node (SURFACE J10)."""
        self._core = core
        self._head = head_node_id
        self._start_timeout_s = start_timeout_s
        self._store = JobStore(core.raylet.call)
        self._class_id = b""
        self._ended: dict[str, Job] = {}  # never change again
        self._is_closed = threading.Event()
        self._wanted = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="skate-jobs", daemon=True)

    def start(self) -> None:
        """Begin to watch, jobs of earlier managers included."""
        self._thread.start()

    def close(self) -> None:
        """Watch no more; jobs go on. Idempotent."""
        self._is_closed.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join()

    # ---- what users ask for ----

    def submit(
        self,
        entrypoint: str,
        *,
        submission_id: str = "",
        metadata: Mapping[str, str] | None = None,
        env_vars: Mapping[str, str] | None = None,
        resources: Mapping[str, int] | None = None,
        idempotency_key: str = "",
    ) -> str:
        """Accept a job; returns its submission id at once.

        ``resources`` are amounts in units of 1e-4 that the entry point holds while it runs. The
        same id with the same ``idempotency_key`` is the same job, however often it is submitted.

        Raises:
            InvalidJobError: an entry point or id that can not be one.
            JobExistsError: the id is taken.
        """
        if not entrypoint.strip() or len(entrypoint) > ENTRYPOINT_CHARACTERS_MAX:
            raise InvalidJobError(
                "The entry point must be a command of at most"
                f" {ENTRYPOINT_CHARACTERS_MAX} characters, like 'python train.py'."
            )
        if submission_id and not _ID.fullmatch(submission_id):
            raise InvalidJobError(
                f"The submission id {submission_id!r} must be at most 128 letters, digits, dots,"
                " dashes or underscores, and begin with a letter or digit."
            )
        if sum(len(k) + len(v) for k, v in (metadata or {}).items()) > METADATA_BYTES_MAX:
            raise InvalidJobError(f"The metadata is larger than {METADATA_BYTES_MAX} characters.")
        spec = JobSpec(
            submission_id or _new_id(),
            entrypoint,
            time.time(),
            secrets.token_hex(8),
            dict(metadata or {}),
            dict(env_vars or {}),
            dict(resources or {}),
            idempotency_key,
        )
        if not self._store.put(spec.submission_id, spec):
            known = self._store.get(spec.submission_id)
            if (
                known is None
                or not idempotency_key
                or known.spec.idempotency_key != idempotency_key
            ):
                raise JobExistsError(spec.submission_id)
        self._wanted.set()
        return spec.submission_id

    def get(self, submission_id: str) -> Job:
        """The job. Raises :class:`JobNotFoundError`."""
        ended = self._ended.get(submission_id)
        job = ended or self._store.get(submission_id)
        if job is None:
            raise JobNotFoundError(submission_id)
        return job

    def list(self) -> list[Job]:
        """All jobs, the oldest first."""
        jobs = [self._ended.get(id_) or self._store.get(id_) for id_ in self._store.ids()]
        return sorted(
            (job for job in jobs if job is not None), key=lambda job: job.spec.submitted_s
        )

    def stop(self, submission_id: str) -> bool:
        """Ask for the job's end, which follows soon; False: it has ended already.

        Raises :class:`JobNotFoundError`.
        """
        if self.get(submission_id).end is not None:
            return False
        self._store.put(submission_id, JobStop(time.time()))
        self._wanted.set()
        return True

    def delete(self, submission_id: str) -> None:
        """Forget a job that has ended.

        Raises:
            JobNotFoundError: there is none.
            JobRunsError: it has not ended.
        """
        if not self.get(submission_id).status.is_final:
            raise JobRunsError(submission_id)
        self._store.delete(submission_id)
        self._ended.pop(submission_id, None)

    # ---- the watch ----

    def _watch(self) -> None:
        while not self._is_closed.is_set():
            self._wanted.clear()
            try:
                is_busy = self.look()
            except SkateError as problem:  # the GCS is away; the next look finds what is so then
                _log.warning("event=job_watch_failed error=%s", problem)
                is_busy = True
            self._wanted.wait(LOOK_S if is_busy else None)

    def look(self) -> bool:
        """Take the next step of each job; whether there is one to look at again."""
        # The supervisors first: see `machine.watch`.
        views = {
            view.name.removeprefix(ACTOR_PREFIX): view
            for view in self._core.actors()
            if view.namespace == ACTOR_NAMESPACE and view.name.startswith(ACTOR_PREFIX)
        }
        is_busy = False
        for submission_id in self._store.ids():
            view = views.get(submission_id)
            if submission_id in self._ended and (view is None or view.state == "DEAD"):
                continue
            job = self._store.get(submission_id)
            if job is None:
                continue
            steps = next_steps(job, _supervisor(view), time.time(), self._start_timeout_s)
            for step in steps:
                self._take(job, view, step)
            if job.end is not None:
                self._ended[submission_id] = job
            is_busy |= bool(steps) or job.end is None
        return is_busy

    def _take(self, job: Job, view: node.ActorView | None, step: Step) -> None:
        submission_id = job.spec.submission_id
        match step:
            case CreateSupervisor():
                self._create(job.spec)
            case WriteEnd(end):
                _log.info("event=job_given_up id=%s end=%s", submission_id, end.status)
                self._store.put(submission_id, end)
            case AskToStop():
                if view is not None:
                    options = CallOptions("stop", "JobSupervisor.stop", 0)
                    self._core.submit_actor_task(view.actor_id, (), {}, options)
            case EndSupervisor():
                if view is not None:
                    self._core.kill_actor(view.actor_id)

    def _create(self, spec: JobSpec) -> None:
        if not self._class_id:
            self._class_id = self._core.export(JobSupervisor)
        amounts = tuple(sorted(spec.resources.items()))
        options = ActorOptions(
            "JobSupervisor",
            name=ACTOR_PREFIX + spec.submission_id,
            namespace=ACTOR_NAMESPACE,
            is_detached=True,
            get_if_exists=True,
            max_concurrency=_SUPERVISOR_THREADS,
            placement_resources=amounts,
            running_resources=amounts,
            env_vars=tuple(sorted(spec.env_vars.items())),
            strategy=None if amounts else Strategy(node_id=self._head),
        )
        self._core.create_actor(self._class_id, (spec,), {}, options)


def _supervisor(view: node.ActorView | None) -> Supervisor:
    if view is None:
        return Supervisor(SupervisorState.ABSENT)
    why = view.pending_reason if view.death is None else view.death.message
    return Supervisor(_STATES.get(view.state, SupervisorState.PENDING), why)


def _new_id() -> str:
    letters = string.ascii_letters + string.digits
    return "raysubmit_" + "".join(secrets.choice(letters) for _ in range(16))
