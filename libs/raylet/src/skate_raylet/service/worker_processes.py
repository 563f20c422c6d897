"""The worker processes of a node: carries out ``StartWorker`` and ``EndWorker``, and sees each to
its end.

What comes before: the node's machine. What comes after: the zygote, which forks, and the reaper,
which says how a process ended. A start is always answered: by a registration, or by a failure with
the end of the process's log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from skate_raylet.machine.commands import EndWorker, StartWorker
from skate_raylet.machine.events import NodeEvent, WorkerStartFailed
from skate_raylet.service.death import (
    ExitStatus,
    Intent,
    OomCounter,
    describe_exit,
    read_log_tail,
)
from skate_raylet.service.local_process import LocalProcess
from skate_raylet.service.reaper import Reaper
from skate_raylet.service.zygote import ForkRequest
from skate_rpc.node_protocol import Death, ExitNow

_log = logging.getLogger(__name__)

SILENT_GRACE_S = 5.0  # a worker whose connection closed gets this long to end by itself
QUIET_KINDS = frozenset({"intended_exit", "job_finished"})  # nobody asks for their logs


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One process from the request to fork it to its end."""

    startup_id: int
    job_id: bytes
    log_paths: tuple[str, str]  # stderr, stdout
    pid: int = 0  # 0 until forked
    local: LocalProcess | None = None  # once registered
    intent: Intent | None = None
    is_hung_up: bool = False
    is_to_die: bool = False  # at once, when it is forked
    deadline_s: float = math.inf
    timer: asyncio.TimerHandle | None = None
    on_forked: Callable[[], None] | None = None  # a registration that came before the fork's answer


@dataclass(frozen=True, slots=True)
class WorkerEvents:
    """What the raylet hears about its workers."""

    tell: Callable[[NodeEvent], None]
    on_death: Callable[[WorkerProcess, Death], None]  # of a registered one
    on_start: Callable[[WorkerProcess], None]  # it has a pid, and writes into its logs
    on_end: Callable[[WorkerProcess], None]  # of each that started


class WorkerProcesses:
    """Invariant: every process that was asked for is in here until its end or failure is told."""

    def __init__(
        self,
        session_dir: str,
        reaper: Reaper,
        fork: Callable[[ForkRequest], None],
        sys_path_of: Callable[[bytes], list[str]],
        events: WorkerEvents,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._logs = os.path.join(session_dir, "logs")
        self._reaper = reaper
        self._fork = fork
        self._sys_path_of = sys_path_of
        self._events = events
        self._oom = OomCounter()
        self._processes: dict[int, WorkerProcess] = {}
        self._all_gone = asyncio.Event()

    def __len__(self) -> int:
        return len(self._processes)

    def get(self, startup_id: int) -> WorkerProcess | None:
        """The process with this number, if it has not ended."""
        return self._processes.get(startup_id)

    def start(self, command: StartWorker) -> None:
        """Have a worker forked."""
        name = f"worker-{command.job_id.hex()}-{command.startup_id}"
        out, err = f"{name}.out", f"{name}.err"
        paths = (os.path.join(self._logs, err), os.path.join(self._logs, out))
        process = WorkerProcess(command.startup_id, command.job_id, paths)
        self._processes[command.startup_id] = process
        self._all_gone.clear()
        self._fork(
            ForkRequest(
                command.startup_id,
                command.job_id,
                dict(command.env_vars),
                out,
                err,
                self._sys_path_of(command.job_id),
            )
        )

    def end(self, command: EndWorker) -> None:
        """Ask a worker to end, and kill it when its grace is over."""
        process = self._processes.get(command.startup_id)
        if process is None:
            return  # it ended in the meantime; that is on its way to the machine
        if process.intent is None:
            process.intent = Intent(command.kind, command.message)
        if command.grace_s <= 0:
            self._kill(process)
            return
        if process.local is not None:
            process.local.send(ExitNow(command.message, command.grace_s))
        if not math.isinf(command.grace_s):
            self._kill_after(process, command.grace_s)

    def announce_exit(self, process: WorkerProcess, reason: str) -> None:
        """The worker said itself that it ends, and why."""
        if process.intent is None:
            process.intent = Intent("intended_exit", reason)

    def hung_up(self, process: WorkerProcess) -> None:
        """The worker's connection closed: it is ending, or it is of no use any more."""
        process.is_hung_up = True
        self._kill_after(process, SILENT_GRACE_S)

    def forked(self, startup_id: int, pid: int) -> None:
        """The zygote answered."""
        process = self._processes.get(startup_id)
        if process is None:
            return
        process.pid = pid
        try:
            self._reaper.watch(pid, partial(self._exited, startup_id))
        except ProcessLookupError:
            self.fork_failed(startup_id, "The forked process was gone at once.", True)
            return
        self._events.on_start(process)
        if process.is_to_die:
            self._kill(process)
        elif process.on_forked is not None:
            process.on_forked()

    def fork_failed(self, startup_id: int, message: str, is_transient: bool) -> None:
        """The zygote could not, or died."""
        process = self._processes.pop(startup_id, None)
        if process is not None:
            self._forget(process)
            self._events.tell(WorkerStartFailed(startup_id, message, is_transient))

    async def end_all(self, kind: str, reason: str, grace_s: float) -> None:
        """Ask all to end, kill those that have not after ``grace_s``, and wait for every end."""
        for process in list(self._processes.values()):
            self.end(EndWorker(process.startup_id, kind, reason, grace_s))
            if grace_s > 0 and process.local is None:
                self._kill(process)  # nobody uses it yet, and it can not be asked
        while self._processes:
            await self._all_gone.wait()

    def _kill_after(self, process: WorkerProcess, grace_s: float) -> None:
        deadline_s = self._loop.time() + grace_s
        if deadline_s < process.deadline_s:
            process.deadline_s = deadline_s
            if process.timer is not None:
                process.timer.cancel()
            process.timer = self._loop.call_at(deadline_s, self._kill, process)

    def _kill(self, process: WorkerProcess) -> None:
        process.is_to_die = True
        if process.intent is None and process.is_hung_up:
            message = "Its connection to the node closed and it did not end by itself."
            process.intent = Intent("exited", message)
        if process.pid:
            self._reaper.signal(process.pid, signal.SIGKILL)

    def _exited(self, startup_id: int, exited: ExitStatus) -> None:
        process = self._processes.pop(startup_id)
        self._forget(process)
        self._events.on_end(process)
        intent = process.intent
        if intent is not None and intent.kind == "intended_exit" and not exited.is_clean:
            # It meant to end, and something else was quicker: that is the cause, unless it was us.
            intent = intent if process.is_to_die else None
        oom_kills = 0
        if intent is None and exited.signal == signal.SIGKILL:
            oom_kills = self._oom.take()
        else:
            self._oom.forget()
        is_quiet = intent is not None and intent.kind in QUIET_KINDS
        tail = "" if is_quiet else read_log_tail(list(process.log_paths))
        death = describe_exit(
            exited,
            intent=intent,
            oom_kills=oom_kills,
            log_tail=tail,
            what="worker",
            log_path=process.log_paths[0],
        )
        _log.info(
            "event=worker_ended pid=%d kind=%s exit_code=%d signal=%d",
            exited.pid,
            death.kind,
            exited.exit_code,
            exited.signal,
        )
        if process.local is not None:
            self._events.on_death(process, death)
            return
        message = f"{death.message} It had not registered yet."
        if tail:
            message += f" The end of its log:\n{tail}"
        is_transient = intent is None and exited.signal == signal.SIGKILL
        self._events.tell(WorkerStartFailed(startup_id, message, is_transient))

    def _forget(self, process: WorkerProcess) -> None:
        if process.timer is not None:
            process.timer.cancel()
        if not self._processes:
            self._all_gone.set()
