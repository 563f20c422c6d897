"""The launcher's side of the daemon: the spawn, the pipes, the wait and the kill.

What comes before: ``launcher``. What comes after: ``daemon``, on the other side (see
``launch_protocol``). Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import threading
import weakref
from dataclasses import dataclass
from typing import Any

from skate_node.errors import NodeStartError
from skate_node.launch_protocol import FIRST_FREE_FD, LIFELINE_FD, LOCK_FD, READY_FD
from skate_node.options import NodeOptions
from skate_node.processes import SESSION_VARIABLE
from skate_node.session import Session

_KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended; None when another party reaped it."""

    wait_status: int | None

    @classmethod
    def of_returncode(cls, code: int) -> ExitStatus:
        """From what ``subprocess`` says: the negative number of a signal, or a status."""
        return cls(-code if code < 0 else code << 8)

    def __str__(self) -> str:
        if self.wait_status is None:
            return "ended"
        code = os.waitstatus_to_exitcode(self.wait_status)
        if code >= 0:
            return f"exited with status {code}"
        return f"was killed by {_signal_name(-code)}"


class DaemonProcess:
    """The spawned process, and this side's ends of its pipes."""

    def __init__(self) -> None:
        self.pid: int = -1
        self.starter_pid: int = os.getpid()
        self._pidfd = -1
        self._ready_fd = -1
        self._lifeline_fd = -1
        self._status: ExitStatus | None = None
        self._lock = threading.Lock()

    def spawn(
        self,
        session: Session,
        options: NodeOptions,
        command: tuple[str, ...],
        environment: dict[str, str],
    ) -> None:
        """Start the process and hand it its options. Call it where no interrupt is raised.

        Raises ``NodeStartError`` when the interpreter can not be run.
        """
        if not sys.executable:
            raise NodeStartError("python import", "this interpreter has no sys.executable to run")
        config = {
            "options": options.to_json(),
            "session_dir": session.path,
            "starter_pid": self.starter_pid if options.lifeline else 0,  # 0: no lifeline either
        }
        argv = [sys.executable, *command, session.name]
        theirs: list[int] = []
        _closed_in_forks.add(self)
        try:
            actions = self._open_pipes(session, config, theirs)
            # The daemon leaves this terminal's session first of all and then unblocks these.
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                {**environment, SESSION_VARIABLE: session.name},
                file_actions=actions,
                setsigmask=[signal.SIGINT, signal.SIGHUP, signal.SIGQUIT],
            )
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            reason = f"{sys.executable} could not be run: {error.strerror}"
            raise NodeStartError("python import", reason) from None
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def _open_pipes(
        self, session: Session, config: dict[str, Any], theirs: list[int]
    ) -> list[tuple[int, int, int]]:
        """What the child finds at its fixed numbers; ``theirs`` is closed here after the spawn."""
        config_in, config_out = _pipe()
        theirs += [config_in, config_out]
        self._ready_fd, ready_out = _pipe()
        theirs.append(ready_out)
        lock_fd = _above_fixed(os.dup(session.lock_fd))
        theirs.append(lock_fd)
        log_path = os.path.join(session.path, "logs", "daemon.err")
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log_fd = _above_fixed(os.open(log_path, log_flags, 0o600))
        theirs.append(log_fd)
        os.fchmod(log_fd, 0o600)
        _write_config(config_out, config)
        sources = {0: config_in, 1: log_fd, 2: log_fd, READY_FD: ready_out, LOCK_FD: lock_fd}
        if config["starter_pid"]:
            sources[LIFELINE_FD], self._lifeline_fd = _pipe()
            theirs.append(sources[LIFELINE_FD])
        return [(os.POSIX_SPAWN_DUP2, mine, its) for its, mine in sources.items()]

    def read_ready(self, timeout_s: float) -> bytes | None:
        """Bytes from the ready pipe; empty at its end; None when time is up."""
        poller = select.poll()
        poller.register(self._ready_fd, select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        ready = dict(poller.poll(max(0.0, timeout_s) * 1000))
        if self._ready_fd in ready:
            return os.read(self._ready_fd, 65536)
        return b"" if ready else None  # Dead, though a fork of this program keeps the pipe open.

    def wait(self, timeout_s: float | None) -> ExitStatus | None:
        """Wait for the end of the process and reap it. None: it still lives."""
        if self._status is None and self.pid > 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            if poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
                self._reap()
        return self._status

    def terminate(self) -> None:
        """Ask the process to end: SIGTERM, and the lifeline's end."""
        self._send(signal.SIGTERM)
        self.close_lifeline()

    def kill(self) -> None:
        """End the process and its group now, reap it and close what belongs to it. Idempotent."""
        self.close_lifeline()
        if self.pid > 0 and self._status is None:
            self._send(signal.SIGKILL)
            self.wait(_KILL_TIMEOUT_S)
        self.close_ready()
        with self._lock:
            if self._pidfd >= 0 and self._status is not None:
                os.close(self._pidfd)
                self._pidfd = -1

    def close_ready(self) -> None:
        """Close the ready pipe."""
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1

    def close_lifeline(self) -> None:
        """Close this process's end of the lifeline."""
        with self._lock:
            if self._lifeline_fd >= 0:
                os.close(self._lifeline_fd)
                self._lifeline_fd = -1

    def _send(self, number: signal.Signals) -> None:
        if self.pid <= 0 or self._status is not None or self._pidfd < 0:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return  # It has ended and was reaped elsewhere.

    def _reap(self) -> None:
        with self._lock:
            if self._status is not None:
                return
            try:
                _, wait_status = os.waitpid(self.pid, 0)
            except ChildProcessError:
                self._status = ExitStatus(
                    None
                )  # SIGCHLD is ignored, or the program reaps any child.
            else:
                self._status = ExitStatus(wait_status)


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    return _above_fixed(reader), _above_fixed(writer)


def _above_fixed(descriptor: int) -> int:
    """The same open file, close-on-exec, under a number that is none of the child's fixed ones."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST_FREE_FD)
    os.close(descriptor)
    return moved


def _write_config(descriptor: int, config: dict[str, Any]) -> None:
    data = json.dumps(config).encode()
    # Written before the reader exists: it has to fit the pipe. A larger one gets a larger pipe.
    if len(data) > 60_000:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, len(data) + 4096)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# A fork of the driver (multiprocessing, a web server's worker) must not keep the lifeline open.
_closed_in_forks: weakref.WeakSet[DaemonProcess] = weakref.WeakSet()


def _close_lifelines_in_fork() -> None:
    for process in list(_closed_in_forks):
        process._lock = threading.Lock()  # noqa: SLF001  # The fork may have copied it locked.
        process.close_lifeline()


os.register_at_fork(after_in_child=_close_lifelines_in_fork)
