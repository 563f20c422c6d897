"""The daemon's end of the zygote: start it, ask it for forks, start it again when it dies.

The messages are those of ``skate_worker.zygote``, which stands beside this library and can not be
imported by it; an integration test talks to the real one. Requests are written without waiting for
answers, so a burst of forks costs no round trips.

What comes before: ``worker_processes``. What comes after: a worker that registers on the stream.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from skate_raylet.errors import ZygoteStartError
from skate_raylet.service.death import ExitStatus, read_log_tail
from skate_raylet.service.reaper import Reaper
from skate_raylet.zygote_process import ZygoteProcess, spawn_zygote

_log = logging.getLogger(__name__)

PACKET_BYTES_MAX = 1 << 20
RESTART_PAUSE_S = 0.05  # doubles with each zygote that dies before it is ready
RESTART_PAUSE_MAX_S = 1.0
BROKEN_AFTER = 3  # zygotes in a row that never became ready: the installation is at fault
ANSWER_TIMEOUT_S = 20.0  # a fork under memory pressure is slow; a stopped zygote answers never
CHECK_INTERVAL_S = 1.0


class ZygoteBoot(msgspec.Struct, array_like=True):
    """The first message: what all workers of the node have in common."""

    daemon_pid: int
    node_id: bytes
    token: str
    raylet_endpoint: str
    session_dir: str
    preload: list[str]
    umask: int  # -1: as inherited
    ip_address: str


class ForkRequest(msgspec.Struct, array_like=True):
    """One worker to fork. File names are relative to ``logs/`` of the session."""

    startup_id: int
    job_id: bytes
    env_vars: dict[str, str]
    stdout_name: str
    stderr_name: str
    sys_path: list[str]


class ForkReply(msgspec.Struct, array_like=True):
    """The worker's pid, or why there is none; ``startup_id`` 0: the zygote is ready."""

    startup_id: int
    pid: int = 0
    error: int = 0


@dataclass(frozen=True, slots=True)
class ZygoteEvents:
    """What the owner of a zygote hears, each about one request."""

    on_forked: Callable[[int, int], None]  # startup_id, pid
    on_failed: Callable[[int, str, bool], None]  # startup_id, message, is_transient


class Zygote:
    """One zygote, kept alive until :meth:`close`. On the event loop's thread alone."""

    def __init__(
        self,
        command: tuple[str, ...],
        boot: ZygoteBoot,
        environment: Mapping[str, str],
        reaper: Reaper,
        events: ZygoteEvents,
        early: ZygoteProcess | None = None,
    ) -> None:
        """``early``: one that runs already, with the same command; it becomes the first."""
        self._loop = asyncio.get_running_loop()
        self._command = command
        self._boot = boot
        self._environment = dict(environment)
        self._reaper = reaper
        self._events = events
        self._early = early
        self._first_end: asyncio.Future[ExitStatus | None] = self._loop.create_future()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ForkReply).decode
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._under_way: dict[int, float] = {}  # startup_id -> when asked; oldest first
        self._waiting: dict[int, bytes] = {}  # asked for while no zygote runs
        self._is_ready = False
        self._deaths_unready = 0
        self._is_closed = False
        self._gone = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """The zygote's process id, None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether it has imported everything."""
        return self._is_ready

    def has_forks_under_way(self) -> bool:
        """Whether a child may exist that has not been reported yet."""
        return bool(self._under_way)

    def start(self) -> None:
        """Start the process. Raises ``OSError`` when the program can not be run at all."""
        early, self._early = self._early, None
        self._take(self._spawn() if early is None else early)
        self._check()

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the first zygote has imported everything.

        Raises ``ZygoteStartError`` when it ends instead, or is not ready in time. It is started
        again all the same, until :meth:`close`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                exited = await asyncio.shield(self._first_end)
        except TimeoutError:
            raise ZygoteStartError(f"it was not ready within {timeout_s:g} s") from None
        if exited is not None:
            reason = "the process that workers are forked from ended before it was ready"
            raise ZygoteStartError(reason, str(exited))

    def fork(self, request: ForkRequest) -> None:
        """Ask for a worker; answered by one of the events."""
        packet = self._encode(request)
        if len(packet) > PACKET_BYTES_MAX:
            message = f"The environment variables take {len(packet)} bytes; 1 MiB is the most."
            self._loop.call_soon(self._events.on_failed, request.startup_id, message, False)
        elif self._control is None:
            self._waiting[request.startup_id] = packet
        else:
            self._under_way[request.startup_id] = self._loop.time()
            self._send(packet)

    async def close(self, timeout_s: float) -> None:
        """End the zygote; it first kills what is left of the node's processes."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._control is not None:
            self._loop.remove_writer(self._control.fileno())
            self._control.shutdown(socket.SHUT_WR)
        if self._process is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._gone.wait()
            except TimeoutError:
                self._reaper.signal(self._process.pid, signal.SIGKILL)
                await self._gone.wait()
        self._drop_control()

    def _spawn(self) -> ZygoteProcess:
        boot = self._boot
        return spawn_zygote(self._command, boot.session_dir, boot.node_id, self._environment)

    def _take(self, zygote: ZygoteProcess) -> None:
        process, control = zygote.process, zygote.control
        control.setblocking(False)
        self._process, self._control, self._is_ready = process, control, False
        self._gone.clear()
        self._reaper.watch(process.pid, self._on_exit)
        self._loop.add_reader(control.fileno(), self._on_readable)
        self._send(self._encode(self._boot))
        waiting, self._waiting = self._waiting, {}
        for startup_id, packet in waiting.items():
            self._under_way[startup_id] = self._loop.time()
            self._send(packet)

    def _send(self, packet: bytes) -> None:
        self._unsent.append(packet)
        if len(self._unsent) == 1:
            self._on_writable()

    def _on_writable(self) -> None:
        control = self._control
        while self._unsent and control is not None:
            try:
                control.send(self._unsent[0])
            except BlockingIOError:
                self._loop.add_writer(control.fileno(), self._on_writable)
                return
            except OSError:
                return  # it died; its exit is about to be noticed
            self._unsent.popleft()
        if control is not None:
            self._loop.remove_writer(control.fileno())

    def _on_readable(self) -> None:
        control = self._control
        while control is not None and control is self._control:
            try:
                packet = control.recv(PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.remove_reader(control.fileno())
                return
            reply = self._decode(packet)
            if reply.startup_id == 0:
                self._is_ready, self._deaths_unready = True, 0
                self._note_first(None)
            elif self._under_way.pop(reply.startup_id, None) is not None:
                if reply.pid:
                    self._events.on_forked(reply.startup_id, reply.pid)
                else:
                    message = f"No process could be forked: {os.strerror(reply.error)}."
                    self._events.on_failed(reply.startup_id, message, True)

    def _on_exit(self, exited: ExitStatus) -> None:
        assert self._process is not None
        # Popen must not wait for it again: the reaper has.
        self._process.returncode = os.waitstatus_to_exitcode(exited.status)
        self._process = None
        self._on_readable()  # answers that it gave before it died
        self._drop_control()
        self._gone.set()
        self._note_first(exited)
        if self._is_closed:
            return
        if not self._is_ready:
            self._deaths_unready += 1
        self._is_ready = False
        _log.warning(
            "event=zygote_died pid=%d signal=%d exit_code=%d forks_under_way=%d",
            exited.pid,
            exited.signal,
            exited.exit_code,
            len(self._under_way),
        )
        is_broken = self._deaths_unready >= BROKEN_AFTER
        message = "The process that workers are forked from died."
        if is_broken:
            log = os.path.join(self._boot.session_dir, "logs", "zygote.err")
            message = (
                "The process that workers are forked from does not start; the end of its log:\n"
                + read_log_tail([log])
            )
        lost = [*self._under_way, *(self._waiting if is_broken else ())]
        self._under_way.clear()
        if is_broken:
            self._waiting.clear()
        for startup_id in lost:
            self._events.on_failed(startup_id, message, not is_broken)
        pause_s = min(RESTART_PAUSE_MAX_S, RESTART_PAUSE_S * 2**self._deaths_unready)
        self._loop.call_later(pause_s, self._restart)

    def _restart(self) -> None:
        if self._is_closed:
            return
        self.restarts += 1
        try:
            self._take(self._spawn())
        except OSError as problem:
            # No room for a process: the starts that wait are answered, and it is tried again.
            _log.error("event=zygote_restart_failed error=%s", problem)
            waiting, self._waiting = self._waiting, {}
            for startup_id in waiting:
                self._events.on_failed(startup_id, f"No zygote could be started: {problem}.", True)
            self._loop.call_later(RESTART_PAUSE_MAX_S, self._restart)

    def _note_first(self, exited: ExitStatus | None) -> None:
        """How the first one's start ended: by being ready (None) or by its death."""
        if not self._first_end.done():
            self._first_end.set_result(exited)

    def _check(self) -> None:
        """A zygote that does not answer is as good as dead."""
        oldest_s = next(iter(self._under_way.values()), None)
        is_late = oldest_s is not None and self._loop.time() - oldest_s > ANSWER_TIMEOUT_S
        if is_late and self._process is not None:
            _log.error("event=zygote_stuck pid=%d", self._process.pid)
            self._reaper.signal(self._process.pid, signal.SIGKILL)
        self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def _drop_control(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control.fileno())
            self._loop.remove_writer(self._control.fileno())
            self._control.close()
            self._control = None
        self._unsent.clear()
