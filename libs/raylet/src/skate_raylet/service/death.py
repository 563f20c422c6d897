"""Why a process ended, from what the kernel told its parent: the true cause, in one sentence.

What comes before: ``reaper`` (the wait status). What comes after: the message to the process's
owner, and the report to the GCS.

Source: USERS P14, SURFACE S7.
"""

from __future__ import annotations

import os
import signal

import msgspec

from skate_rpc.node_protocol import Death

LOG_TAIL_BYTES = 64 << 10
_CGROUP_OOM_FILES = ("memory.events", "memory.oom_control")


class ExitStatus(msgspec.Struct, frozen=True):
    """What ``wait4`` said."""

    pid: int
    status: int
    peak_rss_bytes: int = 0

    @property
    def signal(self) -> int:
        """The signal that ended it; 0 when none did."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def exit_code(self) -> int:
        """The code it exited with; 0 when a signal ended it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else 0

    @property
    def is_clean(self) -> bool:
        """Whether it ended by itself with code 0."""
        return self.signal == 0 and self.exit_code == 0

    def __str__(self) -> str:
        if not self.signal:
            return f"exited with status {self.exit_code}"
        return f"was killed by {_signal_name(self.signal)}"


class Intent(msgspec.Struct, frozen=True):
    """Why the node, or the process itself, meant the process to end."""

    kind: str
    message: str


def describe_exit(
    exited: ExitStatus,
    *,
    intent: Intent | None,
    oom_kills: int,
    log_tail: str,
    what: str,
    log_path: str = "",
) -> Death:
    """The cause of a process's end.

    ``intent``: who wanted it; it names the kind. ``oom_kills``: how often the kernel killed for
    want of memory since such a death was last explained. ``what`` names the process ("worker").
    ``log_path``: where it printed to, on this node; told where nobody wanted the end.
    """
    facts = _facts(exited)
    if intent is not None:
        kind = intent.kind
        message = f"The {what} (pid {exited.pid}) was ended: {intent.message} It {facts}."
        if kind == "intended_exit":
            message = f"The {what} (pid {exited.pid}) ended on purpose: {intent.message}"
    elif exited.signal == signal.SIGKILL and oom_kills:
        kind = "out_of_memory"
        message = (
            f"The {what} (pid {exited.pid}) was killed by the kernel because memory ran out"
            f" (SIGKILL, and the kernel counted {oom_kills} such kill(s) at that time;"
            f" peak memory {_mib(exited.peak_rss_bytes)})."
        )
    elif exited.signal == signal.SIGKILL:
        kind = "signaled"
        message = (
            f"The {what} (pid {exited.pid}) {facts}. Nothing in Skate killed it: somebody did, or"
            " the kernel because memory ran out, although its counters do not show it"
            f" (peak memory {_mib(exited.peak_rss_bytes)})."
        )
    else:
        kind = "signaled" if exited.signal else "exited"
        message = f"The {what} (pid {exited.pid}) {facts}."
    if intent is None and log_path:
        message += f" What it printed is in {log_path} on its node."
    return Death(kind, message, exited.pid, exited.exit_code, exited.signal, log_tail)


def _facts(exited: ExitStatus) -> str:
    if exited.signal:
        name = _signal_name(exited.signal)
        description = signal.strsignal(exited.signal)
        return f"was ended by {name}" + (f" ({description})" if description else "")
    return f"exited with code {exited.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"


def read_log_tail(paths: list[str], limit_bytes: int = LOG_TAIL_BYTES) -> str:
    """The end of the first of these files that has any content; "" when none has."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - limit_bytes))
                tail = file.read(limit_bytes)
        except OSError:
            continue  # never made, or removed with the session
        if tail.strip():
            return tail.decode("utf-8", "replace")
    return ""


class OomCounter:
    """Counts the kernel's out-of-memory kills, so that one kill explains at most one death.

    The counter of this process's own memory cgroup is preferred; the kernel's whole-machine counter
    also sees kills in cgroups that user code made.
    """

    def __init__(self) -> None:
        self._cgroup_files = _own_cgroup_files()
        self._seen = self._read()

    def take(self) -> int:
        """Kills since the last call; they count as explained by the caller."""
        now = self._read()
        grown = max(0, now - self._seen)
        self._seen = now
        return grown

    def forget(self) -> None:
        """Kills until now concern no process of ours. Called while no death is unexplained."""
        self._seen = self._read()

    def _read(self) -> int:
        # The larger of two growing counters that see the same kills still grows with each.
        return max(
            [_counter("/proc/vmstat", "oom_kill")]
            + [_counter(path, "oom_kill") for path in self._cgroup_files]
        )


def _own_cgroup_files() -> list[str]:
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            lines = file.read().split("\n")
    except OSError:
        return []
    files: list[str] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        root = "/sys/fs/cgroup" if not controllers else f"/sys/fs/cgroup/{controllers}"
        if controllers not in {"", "memory"}:
            continue
        for folder in (f"{root}{path}", root):
            candidates = [os.path.join(folder, name) for name in _CGROUP_OOM_FILES]
            found = [candidate for candidate in candidates if os.path.exists(candidate)]
            if found:
                files += found
                break
    return files


def _counter(path: str, name: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                key, _, value = line.partition(" ")
                if key == name:
                    return int(value)
    except (OSError, ValueError):
        return 0  # this kernel has no such counter
    return 0
