"""The process that workers are forked from: it has imported everything, and does nothing but fork.

Run by the node's daemon as ``python -m skate_worker.zygote FD``; ``FD`` is one end of a
``SOCK_SEQPACKET`` socket pair. Each packet is one msgpack message::

    daemon -> zygote   ZygoteBoot      once, first
    zygote -> daemon   ForkReply       once, with startup_id 0: it has imported all and listens
    daemon -> zygote   ForkRequest     as many as it likes, without waiting
    zygote -> daemon   ForkReply       one for each, in order

It must stay single-threaded and free of gRPC: a fork copies the calling thread alone, and a lock
held by another would stay locked for ever in the child. What it has imported is moved out of the
garbage collector's sight (``gc.freeze``), so that collections in workers do not touch, and so copy,
its pages.

A worker is the daemon's child, so that the daemon learns its true exit status. Where the platform
is known, it is made so at once, by ``clone`` with ``CLONE_PARENT`` (it runs after 1.1 ms).
Elsewhere it is forked twice and the process between ends, which hands it to the daemon, a subreaper
(3.3 ms). What the worker must not share is undone in it: descriptors, signal handlers, the random
state, the session.

When the daemon is gone (end of file) it kills what still carries the node's mark in its
environment: processes that user code left behind and that no parent is left to kill. Then it ends.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # has no stub
import ctypes
import errno
import gc
import hmac
import importlib
import os
import platform
import random
import re
import signal
import socket
import struct
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from skate_rpc import node_protocol
from skate_rpc.process_endpoints import LOOPBACK
from skate_rpc.stream import make_decoder
from skate_worker import task_protocol
from skate_worker.named_output import name_output
from skate_worker.worker_main import WorkerConfig, run_worker

PACKET_BYTES_MAX: Final = 1 << 20
MARK_VARIABLE: Final = "SKATE_NODE_MARK"
EXIT_NOT_STARTED: Final = 70  # the child could not become a worker; its log says why
ADOPTION_TIMEOUT_S: Final = 5.0
SWEEP_ROUNDS_MAX: Final = 50  # each kills what the last one missed because it was being forked

_CLONE_PARENT = 0x0000_8000
_CLONE_CHILD_CLEARTID = 0x0020_0000
_CLONE_CHILD_SETTID = 0x0100_0000
# The system call's number and the order of its arguments, where this has been tried.
_CLONE_ARGUMENTS = {"x86_64": (56, ("flags", "stack", "parent_tid", "child_tid", "tls"))}
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PID = struct.Struct("<q")  # a pid, or a negative errno


class ZygoteBoot(msgspec.Struct, array_like=True):
    """What all workers of the node have in common. The daemon has the same struct."""

    daemon_pid: int
    node_id: bytes
    token: str
    raylet_endpoint: str
    session_dir: str
    preload: list[str] = []
    umask: int = -1  # of user code; -1: as inherited
    ip_address: str = LOOPBACK  # where workers listen on TCP, unless it is loopback


class ForkRequest(msgspec.Struct, array_like=True):
    """One worker to fork. File names are relative to ``logs/`` of the session."""

    startup_id: int
    job_id: bytes
    env_vars: dict[str, str]
    stdout_name: str
    stderr_name: str
    sys_path: list[str] = []


class ForkReply(msgspec.Struct, array_like=True):
    """The worker's pid, or why there is none (``error`` is an errno)."""

    startup_id: int
    pid: int = 0
    error: int = 0


class Zygote:
    """The loop: take a request, fork, answer."""

    def __init__(
        self, control: socket.socket, run: Callable[[WorkerConfig], int] = run_worker
    ) -> None:
        self._control = control
        self._run = run
        self._decode_request = msgspec.msgpack.Decoder(ForkRequest).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl
        self._clone: Callable[[], int] | None = None

    def serve(self) -> None:
        """Serve until the daemon is gone."""
        boot = msgspec.msgpack.decode(self._control.recv(PACKET_BYTES_MAX), type=ZygoteBoot)
        _preload(boot.preload)
        _warm_up()
        name_output()
        if os.getppid() == boot.daemon_pid:
            self._clone = find_sibling_fork()
        self._set_name(b"skate-zygote")
        gc.collect()
        gc.freeze()
        self._control.send(self._encode(ForkReply(0, os.getpid())))
        while packet := self._control.recv(PACKET_BYTES_MAX):
            request = self._decode_request(packet)
            try:
                pid = self._fork_worker(boot, request)
                reply = ForkReply(request.startup_id, pid)
            except OSError as problem:
                reply = ForkReply(request.startup_id, error=problem.errno or errno.EAGAIN)
            self._control.send(self._encode(reply))

    def _fork_worker(self, boot: ZygoteBoot, request: ForkRequest) -> int:
        """The pid of a new worker, the daemon's child. Raises ``OSError`` when out of room."""
        if self._clone is None:
            return self._fork_twice(boot, request)
        pid = self._clone()
        if pid == 0:
            self._live(boot, request)
        return pid

    def _fork_twice(self, boot: ZygoteBoot, request: ForkRequest) -> int:
        read_fd, write_fd = os.pipe()
        try:
            between = os.fork()
            if between == 0:
                self._fork_again(boot, request, write_fd)
            os.close(write_fd)
            write_fd = -1
            answer = os.read(read_fd, _PID.size)
            os.waitpid(between, 0)
        finally:
            os.close(read_fd)
            if write_fd >= 0:
                os.close(write_fd)
        # Nothing written: the process between was killed before it could fork.
        (pid,) = _PID.unpack(answer) if len(answer) == _PID.size else (-errno.EAGAIN,)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

    def _fork_again(self, boot: ZygoteBoot, request: ForkRequest, write_fd: int) -> NoReturn:
        """In the process between."""
        try:
            pid = os.fork()
        except OSError as problem:
            pid = -(problem.errno or errno.EAGAIN)
        if pid == 0:
            self._live(boot, request)
        os.write(write_fd, _PID.pack(pid))
        os._exit(0)

    def _live(self, boot: ZygoteBoot, request: ForkRequest) -> NoReturn:
        """In the worker: its whole life."""
        code = EXIT_NOT_STARTED
        try:
            code = self._become_worker(boot, request)
        except BaseException:  # noqa: BLE001  the process's end: nobody is left to catch it
            traceback.print_exc()
        _exit(code)

    def _become_worker(self, boot: ZygoteBoot, request: ForkRequest) -> int:
        """In the worker. Returns its exit code."""
        # The object must not close a descriptor that will soon be somebody else's.
        self._control.detach()
        os.setsid()
        logs = os.path.join(boot.session_dir, "logs")
        for target, name in ((1, request.stdout_name), (2, request.stderr_name)):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            log_fd = os.open(os.path.join(logs, name), flags, 0o600)
            os.dup2(log_fd, target)
        os.closerange(3, 1 << 30)
        if boot.umask >= 0:
            os.umask(boot.umask)
        _restore_signals()
        self._set_name(b"skate-worker")
        self._die_with(boot.daemon_pid)
        _volunteer_for_the_oom_killer()
        if request.env_vars:
            os.environ.update({name: _expanded(text) for name, text in request.env_vars.items()})
        _become_fresh_interpreter()
        return self._run(
            WorkerConfig(
                raylet_endpoint=boot.raylet_endpoint,
                token=boot.token,
                session_dir=boot.session_dir,
                node_id=boot.node_id,
                job_id=request.job_id,
                startup_id=request.startup_id,
                sys_path=tuple(request.sys_path),
                ip_address=boot.ip_address,
            )
        )

    def _die_with(self, daemon_pid: int) -> None:
        """Have the kernel kill this process when the daemon dies."""
        # The signal comes when the *present* parent dies, so it is asked for only once the process
        # between has ended and the daemon is the parent.
        deadline_s = time.monotonic() + ADOPTION_TIMEOUT_S
        while os.getppid() != daemon_pid:
            if time.monotonic() > deadline_s or os.getppid() == 1:
                raise RuntimeError(f"The daemon (process {daemon_pid}) did not adopt this worker.")
            os.sched_yield()
        self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != daemon_pid:  # it died in between, and its signal was missed
            os._exit(EXIT_NOT_STARTED)

    def _set_name(self, name: bytes) -> None:
        self._prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def find_sibling_fork() -> Callable[[], int] | None:
    """A function that forks a sibling: ``os.fork``, but the child's parent is this one's parent.

    It does what ``os.fork`` and the C library's ``fork`` do in a process with one thread, which
    this must be: Python's own hooks, and telling the kernel where the thread keeps its id, without
    which signals to the child's main thread would go astray. Handlers that C libraries registered
    with ``pthread_atfork`` do not run: they guard against other threads. None where this is not
    known to work.
    """
    layout = _CLONE_ARGUMENTS.get(platform.machine())
    if layout is None or sys.maxsize < 2**32 or len(os.listdir("/proc/self/task")) != 1:
        return None
    library = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, as os.fork does
    try:
        # Where a thread's structure holds its id: size in bits, count, offset. For debuggers.
        field = (ctypes.c_uint32 * 3).in_dll(library, "_thread_db_pthread_tid")
        library.pthread_self.restype = ctypes.c_void_p
        tid_address = library.pthread_self() + field[2]
    except (ValueError, AttributeError):
        return None
    if field[0] != 32 or ctypes.c_int32.from_address(tid_address).value != os.getpid():
        return None
    number, arguments = layout
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    given = {"flags": flags, "child_tid": tid_address}
    words = [ctypes.c_long(number), *(ctypes.c_long(given.get(name, 0)) for name in arguments)]
    syscall = library.syscall
    syscall.restype = ctypes.c_long
    python = ctypes.pythonapi
    for hook in (python.PyOS_BeforeFork, python.PyOS_AfterFork_Child, python.PyOS_AfterFork_Parent):
        hook.restype = None

    def fork() -> int:
        python.PyOS_BeforeFork()
        pid: int = syscall(*words)
        if pid == 0:
            python.PyOS_AfterFork_Child()
            return 0
        code = ctypes.get_errno()
        python.PyOS_AfterFork_Parent()
        if pid < 0:
            raise OSError(code, os.strerror(code))
        return pid

    return fork


def _preload(names: list[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            # It saves time where it is installed; a worker that needs it gets the error itself.
            traceback.print_exc()


def _warm_up() -> None:
    """Do once what every worker would do again: 5 of the 13 ms of CPU that its start took."""
    for module in (node_protocol, task_protocol):
        for value in vars(module).values():
            # A decoder of a union looks at each struct's annotations, and keeps what it finds.
            if isinstance(value, types.UnionType):
                make_decoder(value)
            elif isinstance(value, type) and issubclass(value, msgspec.Struct):
                msgspec.msgpack.Decoder(value)
    hmac.digest(b"key", b"message", "sha256")  # loads the algorithms of OpenSSL
    hmac.new(b"key", b"message", "sha256").digest()


def _restore_signals() -> None:
    """Python's usual handlers, whatever the zygote had."""
    # The C functions: those of `signal` make enum members, which copies 60 pages of each worker.
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    for number in (_signal.SIGTERM, _signal.SIGCHLD, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def _volunteer_for_the_oom_killer() -> None:
    """Rather a worker than the daemon, which every other process of the node needs."""
    try:
        # Not `open`: making a text file copies 200 pages.
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, b"1000")
        finally:
            os.close(fd)
    except OSError as problem:
        # Some containers forbid it; the worker works all the same.
        print(f"oom_score_adj: {problem}", file=sys.stderr)  # noqa: T201  its log


def _become_fresh_interpreter() -> None:
    """Forget that this interpreter once ran another program."""
    random.seed()
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:
        numpy.seed()
    # A file as stdout is buffered in blocks; then a crash would take the last lines with it.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # multiprocessing would have its children import the zygote as their main module.
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["skate-worker"]
    gc.enable()


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            continue  # the disk is full or the file is gone; the exit code still counts
    os._exit(code & 0xFF)


def sweep(mark: str) -> int:
    """Kill every other process with this mark in its environment; returns how many.

    ``/proc/PID/environ`` is what a process started with, so user code can not remove the mark from
    a process that runs. It can start one without it.
    """
    wanted = f"{MARK_VARIABLE}={mark}".encode()
    killed: dict[int, None] = {}
    for _ in range(SWEEP_ROUNDS_MAX):
        found = [pid for pid in _processes() if pid != os.getpid() and wanted in _environment(pid)]
        if not found:
            break
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed[pid] = None
        time.sleep(0.01)
    return len(killed)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _expanded(text: str) -> str:
    """``${NAME}`` stands for what the variable is in this process, or for nothing (SURFACE V2)."""
    return re.sub(r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], ""), text)


def _environment(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []  # it ended, or is another user's


def main(run: Callable[[WorkerConfig], int] = run_worker) -> int:
    """Entry point; returns the exit code. ``run``: what a worker does with its life."""
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    control = socket.socket(fileno=int(sys.argv[-1]))
    control.set_inheritable(False)
    try:
        Zygote(control, run).serve()
    except (BrokenPipeError, ConnectionResetError, msgspec.DecodeError):
        pass  # the daemon ended in the middle of a message
    mark = os.environ.get(MARK_VARIABLE)
    if mark:
        sweep(mark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
