"""The processes of a cluster, from /proc: who descends from whom, what they weigh, ending them.

The runner is a subreaper (`adopt_orphans`): whatever a peer's driver starts, however detached,
stays its descendant, so that everything can be counted, and ended by its own process id. Linux
only; source: proc(5), prctl(2).
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_S = 0.01
KIB = 1024
ENDED = "(ended)"


@dataclass(frozen=True, slots=True)
class Memory:
    """Sums over `processes` processes; PSS counts a page shared by n of them as 1/n in each."""

    processes: int
    pss_bytes: int
    rss_bytes: int


def adopt_orphans() -> None:
    """Make this process the parent of orphaned descendants. Raises OSError."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Have this process told to end (SIGTERM) when its parent has died. Raises OSError."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants(root: int) -> list[int]:
    """Every live process below `root`, parents first. A zombie is not live, its children are."""
    children: dict[int, list[int]] = {}
    zombies: set[int] = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            status = _status(int(entry))
            if status is not None:
                state, parent = status
                children.setdefault(parent, []).append(int(entry))
                if state == "Z":
                    zombies.add(int(entry))
    found: list[int] = []
    unseen = list(children.get(root, ()))
    while unseen:
        pid = unseen.pop(0)
        unseen.extend(children.get(pid, ()))
        if pid not in zombies:
            found.append(pid)
    return found


def cluster_pids() -> list[int]:
    """In a round's process: all processes below the runner but this one, the driver."""
    return [pid for pid in descendants(os.getppid()) if pid != os.getpid()]


def memory_of(pids: Iterable[int]) -> Memory:
    """The memory of processes; one that has just ended counts as nothing."""
    count = pss = rss = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = dict(line.split()[:2] for line in text.splitlines()[1:])
        count += 1
        pss += int(fields["Pss:"]) * KIB
        rss += int(fields["Rss:"]) * KIB
    return Memory(count, pss, rss)


def shared_memory_bytes() -> int:
    """Shared memory in use on the whole machine: memfd, tmpfs and anonymous shared pages."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) * KIB
    raise LookupError("/proc/meminfo has no Shmem line")


def wait_alone(root: int, kept: int, helpers: tuple[str, ...], timeout_s: float) -> list[str]:
    """Wait until `kept` is the only process below `root`; the commands of those that stay.

    A process whose command contains one of `helpers` belongs to `kept` and may stay.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        commands = [command_of(pid) for pid in descendants(root) if pid != kept]
        left = [command for command in commands if not any(helper in command for helper in helpers)]
        if not left or time.monotonic() >= deadline_s:
            return left
        time.sleep(POLL_S)


def end_descendants(before: frozenset[int], grace_s: float = 2.0) -> list[str]:
    """End every process below this one that is not in `before`; what was ended, by command.

    SIGTERM first, SIGKILL after `grace_s`. Also collects the orphans that this process adopted:
    call it only when every child process object of this process has been waited for.
    """
    left = [pid for pid in descendants(os.getpid()) if pid not in before]
    # One that is past its end but for the bookkeeping was not left behind.
    ended = [command for command in map(command_of, left) if command != ENDED]
    deadline_s = time.monotonic() + grace_s
    number = signal.SIGTERM
    while left:
        for pid in left:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # It ended by itself, which is all that is wanted.
        while time.monotonic() < deadline_s and left:
            _collect_orphans()
            left = [pid for pid in descendants(os.getpid()) if pid not in before]
            if left:
                time.sleep(POLL_S)
        number = signal.SIGKILL
        deadline_s = time.monotonic() + grace_s
    _collect_orphans()
    return ended


def command_of(pid: int) -> str:
    """The start of a process's command line, for people to recognise it by."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ENDED
    if not raw:  # its memory is gone, its entry not yet
        return ENDED
    return " ".join(raw.decode(errors="replace").split("\0"))[:120].strip()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _collect_orphans() -> None:
    while True:
        try:
            pid, _status_word = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def _status(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command, in parentheses, may hold anything: what follows the last one is regular.
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)
