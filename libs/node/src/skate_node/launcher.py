"""Starting a node from a driver or the command line, and ending it. Standard library only.

The node is a daemon in its own session (see ``launch_protocol`` for what passes between the two).
Three things tie it to its starter, so that no moment exists in which it outlives one that is gone:
the lifeline pipe, whose writing end the starter alone holds; the starter's process id, which the
daemon watches by pidfd; and :meth:`RunningNode.stop`. A starter killed between the spawn and any
later statement has closed the lifeline by dying.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping

from skate_node.daemon_process import DaemonProcess, ExitStatus
from skate_node.errors import NodeStartError
from skate_node.launch_protocol import READY_BYTES_MAX, ReadyNode, tail_of
from skate_node.options import NodeOptions
from skate_node.processes import kill_session_processes
from skate_node.session import Session, create_session, remove_session

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
_LAST_WORDS_TIMEOUT_S = 2.0
DAEMON_COMMAND = ("-P", "-m", "skate_node.daemon")


class RunningNode:
    """A node that this process started. Everything that the start made hangs off this object."""

    def __init__(self, process: DaemonProcess, session_dir: str, ready: ReadyNode, keep_logs: bool):
        self.session_dir = session_dir
        self.node_id: str = ready.node_id
        self.gcs_endpoint: str = ready.gcs_endpoint
        self.stream_endpoint: str = ready.stream_endpoint
        self.store_endpoint: str = ready.store_endpoint
        self.raylet_endpoint: str = ready.raylet_endpoint
        self.metrics_endpoint: str = ready.metrics_endpoint
        self.token: str = ready.token
        self.ip_address: str = ready.ip_address
        self.pid: int = process.pid
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
            self.kill()

    def kill(self) -> None:
        """As :meth:`stop`, but nothing is asked first: the node ends as if its machine had failed.

        The cluster is not told; it finds out.
        """
        if self._process.starter_pid != os.getpid():
            return
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
    process = DaemonProcess()
    made: list[Session] = []
    failures: list[Exception] = []

    def begin() -> None:
        try:
            made.append(create_session(options.temp_dir))
            process.spawn(made[0], options, command, dict(environment or os.environ))
            made[0].close()
        except Exception as error:  # noqa: BLE001  # Raised again by the thread that waits.
            failures.append(error)

    # An interrupt is raised between any two steps of the main thread, so one that comes between a
    # step and the note of what it made would lose that. Another thread is never interrupted.
    thread = threading.Thread(target=begin, name="skate-launch", daemon=True)
    try:
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        if meanwhile is not None:
            meanwhile()
        ready = _await_ready(process, made[0].path, timeout_s)
        return RunningNode(process, made[0].path, ready, options.keep_logs)
    except BaseException:
        if thread.ident is not None:
            thread.join(_LAST_WORDS_TIMEOUT_S)
        process.kill()
        for session in made:
            kill_session_processes(session.name)
            remove_session(session.path)
            session.close()
        raise


def _await_ready(process: DaemonProcess, session_dir: str, timeout_s: float) -> ReadyNode:
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
