"""How much memory the machine, or the container, still has: asked before pages are committed.

A memfd is not limited by a file system's size, so the kernel answers a shortage not with ``ENOSPC``
but with the out-of-memory killer. Looking first turns most shortages into an error of the one who
asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

RESERVE_BYTES = 64 << 20
"""Left to the rest of the machine: interpreters, page tables, the network."""


class Headroom:
    """Reads ``MemAvailable`` and the memory limits of the control groups around this process."""

    def __init__(self, *, proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> None:
        self._meminfo = os.path.join(proc, "meminfo")
        self._groups = list(_limited_groups(os.path.join(proc, "self/cgroup"), cgroups))

    def available_bytes(self) -> int | None:
        """Bytes to be had without pushing anyone out; None if nothing tells. About 50 us."""
        known = [_machine_available(self._meminfo), *(group() for group in self._groups)]
        return min((bytes_ for bytes_ in known if bytes_ is not None), default=None)

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether this much can be taken and the reserve still left."""
        available = self.available_bytes()
        return available is None or available >= size_bytes + RESERVE_BYTES


def _machine_available(meminfo: str) -> int | None:
    for name, value in _fields(meminfo):
        if name == "MemAvailable:":
            return value * 1024
    return None


def _limited_groups(own: str, root: str) -> Iterable[Callable[[], int | None]]:
    """A reader for each control group, from this process's up to the root, that has limit files."""
    try:
        with open(own) as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base = os.path.join(root, "memory")
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Inside a container the path may name a place outside it; the root of the mount is then
        # ours.
        steps = [step for step in path.split("/") if step]
        for depth in range(len(steps), -1, -1):
            group = os.path.join(base, *steps[:depth])
            if os.path.exists(os.path.join(group, limit)):
                yield _group_reader(group, limit, usage)


def _group_reader(group: str, limit: str, usage: str) -> Callable[[], int | None]:
    def available() -> int | None:
        limit_bytes = _number(os.path.join(group, limit))
        usage_bytes = _number(os.path.join(group, usage))
        if limit_bytes is None or usage_bytes is None:
            return None
        # Cached file pages count as used but go first. Shared memory is not among them.
        stat = dict(_fields(os.path.join(group, "memory.stat")))
        return limit_bytes - usage_bytes + stat.get("inactive_file", 0) + stat.get("active_file", 0)

    return available


def _number(path: str) -> int | None:
    """The number in a file; None for ``max``, for a file that is gone, and for v1's "no limit"."""
    try:
        with open(path) as file:
            text = file.read().strip()
    except OSError:
        return None
    value = int(text) if text.isdigit() else None
    return None if value is None or value >= 1 << 60 else value


def _fields(path: str) -> Iterable[tuple[str, int]]:
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[1].isdigit():
            yield words[0], int(words[1])
