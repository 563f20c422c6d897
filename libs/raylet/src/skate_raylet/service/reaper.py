"""Learns when and how the node's processes ended, and leaves nothing of them behind.

A watched process has a pidfd in the loop. When it ends, its process group is killed first (while
the dead leader's number can not be given to another), then what is left of its session, and then it
is waited for, which yields its true status. Processes that user code started and whose parents died
become children of the daemon (a subreaper); those of a session whose worker is gone are killed, the
others live until the node stops, and all are waited for.

Only the children concerned are waited for, one by one: another part of the process may have
children too, and their statuses are theirs.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable

from skate_raylet.service.death import ExitStatus

_log = logging.getLogger(__name__)

SWEEP_PAUSES_S = (0.0, 0.05, 0.5, 2.0)  # after a death: orphans appear as their parents end
SWEEP_SLOT_S = 0.05
SWEEP_INTERVAL_S = 1.0
UNKNOWN_ZOMBIE_S = (
    5.0  # somebody's child that nobody waits for, and no fork under way is its reason
)
ENDED_SESSIONS_MAX = 65_536
_PR_SET_CHILD_SUBREAPER = 36


class Reaper:
    """Watches processes on the event loop of the daemon's main thread."""

    def __init__(self, mark: bytes, has_forks_under_way: Callable[[], bool]) -> None:
        """``mark``: the environment entry that this node's processes carry."""
        self._loop = asyncio.get_running_loop()
        self._mark = mark
        self._has_forks_under_way = has_forks_under_way
        self._watched: dict[int, tuple[int, Callable[[ExitStatus], None]]] = {}
        self._ended: dict[int, None] = {}  # sessions whose leader is gone
        self._strays: dict[int, None] = {}  # children that left their worker's session
        self._unknown_since_s: dict[int, float] = {}  # zombies that may be somebody else's
        self._planned: dict[int, asyncio.TimerHandle] = {}  # by slot of time
        self._regular: asyncio.TimerHandle | None = None
        self._is_closed = False
        become_subreaper()
        self._sweep_regularly()

    def watch(self, pid: int, on_exit: Callable[[ExitStatus], None]) -> None:
        """Call back once when this child has ended. Raises ``ProcessLookupError``: it is gone."""
        pidfd = os.pidfd_open(pid)
        self._strays.pop(pid, None)
        self._unknown_since_s.pop(pid, None)
        self._watched[pid] = (pidfd, on_exit)
        self._loop.add_reader(pidfd, self._on_exit, pid)

    def signal(self, pid: int, number: int) -> None:
        """Signal a watched process; one that has ended meanwhile is left alone."""
        entry = self._watched.get(pid)
        if entry is not None:
            try:
                signal.pidfd_send_signal(entry[0], number)
            except ProcessLookupError:
                return  # its end is about to be noticed

    def watched(self) -> list[int]:
        """The pids that are watched."""
        return list(self._watched)

    def close(self) -> None:
        """Stop watching. What has not ended is left as it is."""
        self._is_closed = True
        for timer in [*self._planned.values(), self._regular]:
            if timer is not None:
                timer.cancel()
        self._planned.clear()
        for pidfd, _ in self._watched.values():
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        self._watched.clear()

    def _on_exit(self, pid: int) -> None:
        pidfd, on_exit = self._watched.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        kill_group(pid)
        self._ended[pid] = None
        while len(self._ended) > ENDED_SESSIONS_MAX:
            del self._ended[next(iter(self._ended))]
        try:
            _, status, usage = os.wait4(pid, 0)
            exited = ExitStatus(pid, status, usage.ru_maxrss * 1024)
        except ChildProcessError:
            # Adopted by somebody else, or waited for by a stranger in this process: all that is
            # known is that it has ended.
            _log.warning("event=status_lost pid=%d", pid)
            exited = ExitStatus(pid, signal.SIGKILL)
        on_exit(exited)
        for pause_s in SWEEP_PAUSES_S:
            self._plan_sweep(pause_s)

    def _plan_sweep(self, pause_s: float) -> None:
        """One sweep serves all deaths of about the same time."""
        slot = int((self._loop.time() + pause_s) / SWEEP_SLOT_S)
        if not self._is_closed and slot not in self._planned:
            self._planned[slot] = self._loop.call_later(pause_s, self._planned_sweep, slot)

    def _planned_sweep(self, slot: int) -> None:
        del self._planned[slot]
        self.sweep()

    def _sweep_regularly(self) -> None:
        self._regular = self._loop.call_later(SWEEP_INTERVAL_S, self._sweep_regularly)
        self.sweep()

    def sweep(self) -> None:
        """Kill what dead workers left in their sessions, and wait for orphans that have ended."""
        own_session = os.getsid(0)
        children = [pid for pid in list_children() if pid not in self._watched]
        for pid in children:
            try:
                session = os.getsid(pid)
            except ProcessLookupError:
                continue
            if session == own_session:
                continue  # the daemon's own, not a worker's
            if session in self._watched:
                # A daemon that the user's code started: it lives as long as its worker.
                self._wait_for_zombie(pid)
            elif session == pid:
                # A leader: not left over from an ended session, whose number it may have by chance.
                self._ended.pop(session, None)
                self._look_at_stranger(pid)
            elif session in self._ended:
                kill_group(os_getpgid(pid))
                _kill(pid)
                self._wait_for_zombie(pid)
            else:
                self._look_at_stranger(pid)
        present = dict.fromkeys(children)
        for book in (self._strays, self._unknown_since_s):
            for pid in [pid for pid in book if pid not in present]:
                book.pop(pid, None)

    def _look_at_stranger(self, pid: int) -> None:
        """A child in a session of its own: one that left its worker's, or no worker's at all."""
        if self._has_forks_under_way():
            return  # it may be a worker that has not been reported yet
        if pid in self._strays:
            self._wait_for_zombie(pid)
        elif is_zombie(pid):
            since_s = self._unknown_since_s.setdefault(pid, time.monotonic())
            if time.monotonic() - since_s >= UNKNOWN_ZOMBIE_S:
                self._wait_for_zombie(pid)
        elif self._mark in environment_of(pid):
            self._strays[pid] = None

    def _wait_for_zombie(self, pid: int) -> None:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            self._strays.pop(pid, None)

    def kill_strays(self) -> int:
        """At the node's end: kill every child that bears the mark; returns how many."""
        count = 0
        for pid in list_children():
            if pid not in self._watched and self._mark in environment_of(pid):
                _kill(pid)
                count += 1
        return count


def become_subreaper() -> None:
    """Orphans of this process's descendants become its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def list_children() -> list[int]:
    """This process's children, zombies included."""
    children: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
                children += [int(pid) for pid in file.read().split()]
        except FileNotFoundError:
            continue  # the thread ended
    return children


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and waits to be waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return False


def environment_of(pid: int) -> list[bytes]:
    """The environment that a process started with; empty for a zombie."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def os_getpgid(pid: int) -> int:
    """The process group, or 0 when the process is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def kill_group(group: int) -> None:
    """SIGKILL a process group, but never this process's own."""
    if group > 1 and group != os.getpgrp():
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # empty, or a zombie alone


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
