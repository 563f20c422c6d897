"""The supervisor of one job: an actor that runs the entry point and writes down how it ended.

The entry point is a child of the supervisor's process, in a process group of its own and in the
worker's session: when the supervisor is killed, the kernel kills the child, and the node's daemon
everything else in that session. Source: SURFACE rows J9, J11-J13; RELIABILITY I20.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from skate_core_ids import SkateError
from skate_jobs.machine.records import (
    ErrorType,
    Job,
    JobEnd,
    JobRun,
    JobSpec,
    JobStatus,
)
from skate_jobs.store import JobStore
from skate_worker.current import require_core

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

STOP_SIGNAL_VARIABLE: Final = "SKATE_JOB_STOP_SIGNAL"
STOP_WAIT_VARIABLE: Final = "SKATE_JOB_STOP_WAIT_TIME_S"
STOP_WAIT_S: Final = 3.0
TAIL_LINES: Final = 10
TAIL_CHARACTERS: Final = 20_000
RETRY_S: Final = 0.5
ADDRESS_VARIABLE: Final = "SKATE_ADDRESS"
ENVIRONMENT_VARIABLE: Final = "SKATE_RUNTIME_ENV"  # what a driver's tasks inherit
METADATA_VARIABLE: Final = "SKATE_JOB_METADATA"
SUBMISSION_KEY: Final = "job_submission_id"
_PR_SET_PDEATHSIG: Final = 1
_prctl = ctypes.CDLL(None).prctl  # loaded here: a forked child of many threads must not
_OWN_VARIABLES: Final = re.compile(r"SKATE_(NODE_MARK|LOG_TO_DRIVER)$")

T = TypeVar("T")


class JobSupervisor:
    """Runs one entry point, from its constructor on. A threaded actor: it can always be stopped."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        core = require_core()
        self._core = core
        self._store = JobStore(core.raylet.call)
        self._child: subprocess.Popen[bytes] | None = None
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        # The child dies with the thread that started it, so that thread waits for it too.
        threading.Thread(target=self._run, name="entrypoint", daemon=True).start()

    def stop(self) -> None:
        """End the entry point: a signal, and SIGKILL when its time is over. Safe to repeat."""
        with self._lock:
            if self._is_stopping.is_set():
                return
            self._is_stopping.set()
            child = self._child
        if child is None:
            return
        _signal_group(child.pid, _stop_signal())
        ends_s = time.monotonic() + _stop_wait_s()
        while child.poll() is None and time.monotonic() < ends_s:
            time.sleep(0.05)
        _kill_session()

    def _run(self) -> None:
        spec = self._spec
        run = JobRun(
            secrets.token_hex(8),
            time.time(),
            bytes(self._core.node_id),
            self._core.ip,
            os.getpid(),
            f"job-driver-{spec.submission_id}.log",
        )
        if not _until_done(lambda: self._store.put(spec.submission_id, run)):
            return  # another supervisor took the job; whoever watches ends this one
        job: Job | None = _until_done(lambda: self._store.get(spec.submission_id))
        if job is None or job.end is not None:
            return  # given up, or deleted, in the meantime
        end = self._run_entrypoint(os.path.join(self._core.session_dir, "logs", run.log_file))
        _until_done(lambda: self._store.put(spec.submission_id, end))

    def _run_entrypoint(self, log_path: str) -> JobEnd:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            log_fd = os.open(log_path, flags, 0o600)
            try:
                child = self._start(log_fd)
            finally:
                os.close(log_fd)
        except OSError as problem:
            message = f"The entry point could not be started: {problem}"
            return JobEnd(JobStatus.FAILED, message, time.time(), ErrorType.ENTRYPOINT_START_ERROR)
        code = -signal.SIGTERM if child is None else child.wait()
        if self._is_stopping.is_set():
            _kill_session()  # what it started and left behind
            return JobEnd(
                JobStatus.STOPPED, "Job was intentionally stopped.", time.time(), "", code
            )
        if code == 0:
            message = "Job finished successfully."
            return JobEnd(JobStatus.SUCCEEDED, message, time.time(), "", 0)
        message = f"Job entrypoint command failed with {_exit_text(code)}, last available logs:\n"
        message += read_tail(log_path)
        return JobEnd(JobStatus.FAILED, message, time.time(), ErrorType.ENTRYPOINT_ERROR, code)

    def _start(self, log_fd: int) -> subprocess.Popen[bytes] | None:
        """The child; None when the job was stopped just before."""
        environment = entrypoint_environment(self._spec, self._core, os.environ)
        with self._lock:
            if self._is_stopping.is_set():
                return None
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", self._spec.entrypoint],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                env=environment,
                process_group=0,
                preexec_fn=partial(_die_with, os.getpid()),  # noqa: PLW1509 - two system calls
            )
            return self._child


def entrypoint_environment(spec: JobSpec, core: CoreWorker, base: Any) -> dict[str, str]:
    """What the entry point finds in its environment."""
    kept = {name: value for name, value in base.items() if not _OWN_VARIABLES.match(name)}
    metadata = {**spec.metadata, SUBMISSION_KEY: spec.submission_id}
    if spec.env_vars:
        kept[ENVIRONMENT_VARIABLE] = json.dumps(spec.env_vars, sort_keys=True)
    return {
        **kept,
        "PYTHONUNBUFFERED": "1",
        ADDRESS_VARIABLE: core.gcs_endpoint,
        METADATA_VARIABLE: json.dumps(metadata),
    }


def read_tail(path: str) -> str:
    """The last lines of a log, for an error's text."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * TAIL_CHARACTERS))
            text = file.read().decode(errors="replace")
    except OSError as problem:
        return f"(its log can not be read: {problem})"
    return "\n".join(text.splitlines()[-TAIL_LINES:])[-TAIL_CHARACTERS:]


def _until_done(step: Callable[[], T]) -> T:
    """Take a step that needs the GCS; again while that is away, because it must not be lost."""
    while True:
        try:
            return step()
        except SkateError as problem:
            print(f"waiting for the GCS: {problem}", flush=True)  # noqa: T201 - the supervisor's log
            time.sleep(RETRY_S)


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _stop_signal() -> signal.Signals:
    name = os.environ.get(STOP_SIGNAL_VARIABLE, "SIGTERM")
    return signal.SIGINT if name == "SIGINT" else signal.SIGTERM


def _stop_wait_s() -> float:
    try:
        return float(os.environ.get(STOP_WAIT_VARIABLE, STOP_WAIT_S))
    except ValueError:
        return STOP_WAIT_S


def _die_with(parent: int) -> None:
    """In the child: end when the supervisor does, even if it has already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return  # it has just ended


def _kill_session() -> None:
    """Kill every process of this worker's session but this one: the entry point's whole tree."""
    session = os.getsid(0)
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            if os.getsid(int(name)) == session:
                os.kill(int(name), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
