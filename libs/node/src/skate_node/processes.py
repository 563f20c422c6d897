"""Finding and ending the processes of one session. Standard library only; Linux ``/proc``.

Each process of a node inherits ``SKATE_SESSION=<session name>`` in its environment, and so do the
children that user code starts, whatever process group, session or parent they move to. Killing by
that mark is the last of the nets: workers normally end by their daemon's hand or by
``PR_SET_PDEATHSIG``.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

SESSION_VARIABLE = "SKATE_SESSION"
_KILL_ROUNDS_MAX = 200
_ROUND_PAUSE_S = 0.005


def session_processes(session_name: str) -> Iterator[int]:
    """Process ids of this user's live processes that bear the session's mark, but not this one.

    Costs a read of ``/proc/<pid>/environ`` for each process of this user.
    """
    mark = f"{SESSION_VARIABLE}={session_name}".encode()
    own_pid = os.getpid()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != own_pid and _bears(entry, mark):
            yield int(entry)


def kill_session_processes(session_name: str, timeout_s: float = 1.0) -> int:
    """SIGKILL every process of the session but this one, until none is left or time is up.

    Rounds are repeated because a process may fork while it is looked for. Returns how many were
    killed.
    """
    mark = f"{SESSION_VARIABLE}={session_name}".encode()
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    for _ in range(_KILL_ROUNDS_MAX):
        found = list(session_processes(session_name))
        for pid in found:
            if _kill_marked(pid, mark):
                killed.add(pid)
        if not found or time.monotonic() >= deadline:
            break
        time.sleep(_ROUND_PAUSE_S)
    return len(killed)


def _bears(pid: str, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False  # Ended meanwhile, a zombie, or someone else's.


def _kill_marked(pid: int, mark: bytes) -> bool:
    """Kill through a pidfd opened before the mark is read again: a reused id can not be hit."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _bears(str(pid), mark):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
