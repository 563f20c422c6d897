"""Starting a node from a driver or the command line, and ending it. Standard library only.

The node is a daemon in its own session (see ``launch_protocol`` for what passes between the two).
Three things tie it to its starter, so that no moment exists in which it outlives one that is gone:
the lifeline pipe, whose writing end the starter alone holds; the starter's process id, which the
daemon watches by pidfd; and :meth:`RunningNode.stop`. A starter killed between the spawn and any
later statement has closed the lifeline by dying.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from skate_node.errors import NodeStartError
from skate_node.launch_protocol import (
    FIRST_FREE_FD,
    LIFELINE_FD,
    LOCK_FD,
    READY_BYTES_MAX,
    READY_FD,
    ReadyNode,
    tail_of,
)
from skate_node.options import NodeOptions
from skate_node.processes import SESSION_VARIABLE, kill_session_processes
from skate_node.session import Session, create_session, remove_session

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 5.0
_LAST_WORDS_TIMEOUT_S = 2.0
DAEMON_COMMAND = ("-P", "-m", "skate_node.daemon")


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended; None when another party reaped it."""

    wait_status: int | None

    def __str__(self) -> str:
        if self.wait_status is None:
            return "ended"
        code = os.waitstatus_to_exitcode(self.wait_status)
        if code >= 0:
            return f"exited with status {code}"
        return f"was killed by {_signal_name(-code)}"


class RunningNode:
    """A node that this process started. Everything that the start made hangs off this object."""

    def __init__(
        self, process: _DaemonProcess, session_dir: str, ready: ReadyNode, keep_logs: bool
    ):
        self.session_dir = session_dir
        self.node_id = ready.node_id
        self.gcs_endpoint = ready.gcs_endpoint
        self.stream_endpoint = ready.stream_endpoint
        self.store_endpoint = ready.store_endpoint
        self.raylet_endpoint = ready.raylet_endpoint
        self.metrics_endpoint = ready.metrics_endpoint
        self.token = ready.token
        self.pid = process.pid
        self._process = process
        self._keep_logs = keep_logs

    def __repr__(self) -> str:
        return f"RunningNode(pid={self.pid}, session_dir={self.session_dir!r})"

    def is_running(self) -> bool:
        """Whether the daemon lives."""
        return self._process.wait(0.0) is None

    def wait(self, timeout_s: float | None = None) -> ExitStatus | None:
        """Wait for the daemon's end. None: it still lives."""
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the node and all its processes, and delete its session folder (its logs may stay).

        Asks first; after ``timeout_s``, or when interrupted, kills. Idempotent. In a fork of the
        starter it does nothing: the node is not the fork's.
        """
        if self._process.starter_pid != os.getpid():
            return
        try:
            self._process.terminate()
            self._process.wait(timeout_s)
        finally:
            self._process.kill()
            kill_session_processes(os.path.basename(self.session_dir))
            remove_session(self.session_dir, keep_logs=self._keep_logs)


def start_node(
    options: NodeOptions,
    *,
    timeout_s: float = START_TIMEOUT_S,
    command: tuple[str, ...] = DAEMON_COMMAND,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> RunningNode:
    """Start a node and wait until it serves.

    ``command`` is what follows the interpreter. ``meanwhile`` is called once the daemon is on its
    way, for work of the starter that can be done in that time, such as imports. Raises
    ``NodeStartError`` naming the component that failed, ``SessionRootError`` when there is no safe
    place for the session. Whatever is raised, an interrupt included, nothing of the node is left.
    """
    process = _DaemonProcess()
    session = create_session(options.temp_dir)
    try:
        process.spawn(session, options, command, dict(environment or os.environ))
        session.close()
        if meanwhile is not None:
            meanwhile()
        ready = _await_ready(process, session.path, timeout_s)
        return RunningNode(process, session.path, ready, options.keep_logs)
    except BaseException:
        process.kill()
        kill_session_processes(session.name)
        remove_session(session.path)
        session.close()
        raise


class _DaemonProcess:
    """The spawned process and the pipes to it."""

    def __init__(self) -> None:
        self.pid = -1
        self.starter_pid = os.getpid()
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
        """Start the process and hand it its options."""
        if not sys.executable:
            raise NodeStartError("python import", "this interpreter has no sys.executable to run")
        config = {
            "options": options.to_json(),
            "session_dir": session.path,
            "starter_pid": self.starter_pid if options.lifeline else 0,  # 0: no lifeline either
        }
        environment[SESSION_VARIABLE] = session.name
        argv = [sys.executable, *command, session.name]
        if options.lifeline:
            _closed_in_forks.add(self)
        # An interrupt is raised in the main thread between any two steps, so one that comes between
        # the spawn and the note of its process id would lose the child. Another thread is never
        # interrupted.
        failures: list[OSError] = []
        thread = threading.Thread(
            target=self._spawn, args=(session, argv, environment, config, failures), daemon=True
        )
        thread.start()
        try:
            thread.join()
        except BaseException:
            thread.join(_LAST_WORDS_TIMEOUT_S)
            raise
        if failures:
            reason = f"{sys.executable} could not be run: {failures[0].strerror}"
            raise NodeStartError("python import", reason) from None

    def _spawn(
        self,
        session: Session,
        argv: list[str],
        environment: dict[str, str],
        config: dict[str, Any],
        failures: list[OSError],
    ) -> None:
        theirs: list[int] = []
        try:
            config_in, config_out = _pipe()
            theirs += [config_in, config_out]
            self._ready_fd, ready_out = _pipe()
            lock_fd = _above_fixed(os.dup(session.lock_fd))
            theirs += [ready_out, lock_fd]
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
            actions = [(os.POSIX_SPAWN_DUP2, mine, its) for its, mine in sources.items()]
            # The daemon leaves this terminal's session first of all and then unblocks these.
            self.pid = os.posix_spawn(
                argv[0],
                argv,
                environment,
                file_actions=actions,
                setsigmask=[signal.SIGINT, signal.SIGHUP, signal.SIGQUIT],
            )
            self._pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            failures.append(error)
        finally:
            for descriptor in theirs:
                os.close(descriptor)

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


def _await_ready(process: _DaemonProcess, session_dir: str, timeout_s: float) -> ReadyNode:
    deadline = time.monotonic() + timeout_s
    component = "python import"
    pending = b""
    while True:
        data = process.read_ready(deadline - time.monotonic())
        if data is None:
            raise NodeStartError(
                component,
                f"it was not up within {timeout_s:g} s",
                log_tail=_log_tail(session_dir),
            )
        if not data:
            status = process.wait(_LAST_WORDS_TIMEOUT_S)
            raise NodeStartError(
                component,
                "the daemon ended while it started this",
                exit_status="still runs" if status is None else str(status),
                log_tail=_log_tail(session_dir),
            )
        pending += data
        if len(pending) > READY_BYTES_MAX:
            raise NodeStartError(component, "the daemon's ready pipe carries something else")
        *lines, pending = pending.split(b"\n")
        for line in lines:
            event = json.loads(line)
            match event.pop("event"):
                case "starting":
                    component = event["component"]
                case "ready":
                    process.close_ready()
                    return ReadyNode(**event)
                case _:
                    status = process.wait(_LAST_WORDS_TIMEOUT_S)
                    event["exit_status"] = event["exit_status"] or str(status or "")
                    event["log_tail"] = event["log_tail"] or _log_tail(session_dir)
                    raise NodeStartError(**event)


def _log_tail(session_dir: str) -> str:
    """What the daemon printed, else what it logged."""
    logs = os.path.join(session_dir, "logs")
    return tail_of(os.path.join(logs, "daemon.err")) or tail_of(os.path.join(logs, "daemon.log"))


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
_closed_in_forks: weakref.WeakSet[_DaemonProcess] = weakref.WeakSet()


def _close_lifelines_in_fork() -> None:
    for process in list(_closed_in_forks):
        process._lock = threading.Lock()  # noqa: SLF001  # The fork may have copied it locked.
        process.close_lifeline()


os.register_at_fork(after_in_child=_close_lifelines_in_fork)
