"""The processes below a node's daemon, read from ``/proc``."""

from __future__ import annotations

import os


def children_of(pid: int) -> list[int]:
    """The live children of a process; zombies are left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(entry))
    return found


def tree_of(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for one in found:
        found += children_of(one)
    return found


def gcs_of(daemon_pid: int) -> int | None:
    """The GCS's process of a head; None while it is being started again."""
    for pid in children_of(daemon_pid):
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read() == "skate-gcs\n":  # its standby has another name
                    return pid
        except (FileNotFoundError, ProcessLookupError):
            continue
    return None


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
