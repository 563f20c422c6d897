"""What this machine, or the part of it that a container leaves us, has to offer.

The amounts that the user gave win; the rest is read from affinity, cgroups (v1 and v2),
``/proc/meminfo`` and the NVIDIA driver. The result is in the scheduler's units
(1e-4, exact).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from skate_node.gpus import Gpus, detect_gpus
from skate_node.options import MINIMUM_OBJECT_STORE_BYTES, NodeOptions

OBJECT_STORE_SHARE = 0.3
MEMORY_SHARE = 0.7
HEAD_RESOURCE = "node:__internal_head__"
ACCELERATOR_PREFIX = "accelerator_type:"  # SURFACE T9
OVERRIDE_VARIABLE = "SKATE_OVERRIDE_RESOURCES"
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63.


class ResourceDetector:
    """Reads a machine's resources below ``filesystem``, for which tests put a folder."""

    def __init__(self, filesystem: str = "/", affinity: int | None = None) -> None:
        self._filesystem = filesystem
        self._affinity = len(os.sched_getaffinity(0)) if affinity is None else affinity

    def cpu_count(self) -> int:
        """CPUs that this process may use: affinity, bounded by the cgroup's quota, at least 1."""
        quota = self._cpu_quota()
        if quota is None:
            return self._affinity
        return max(1, min(self._affinity, int(quota)))

    def gpus(self, environment: Mapping[str, str]) -> Gpus:
        """The NVIDIA GPUs that this process may use. NVML knows this machine alone."""
        if self._filesystem != "/":
            return detect_gpus(environment, self._gpus_in_proc, _no_library)
        return detect_gpus(environment, self._gpus_in_proc)

    def _gpus_in_proc(self) -> int:
        try:
            return len(os.listdir(self._path("proc/driver/nvidia/gpus")))
        except OSError:
            return 0

    def available_bytes(self) -> int:
        """Memory that can be taken without swapping, on the machine and in this cgroup."""
        available = self._meminfo("MemAvailable")
        limit, usage = self._memory_cgroup()
        if limit is not None:
            available = min(available, max(0, limit - usage))
        return available

    def _cpu_quota(self) -> float | None:
        for folder in self._cgroup_folders("cpu"):
            text = self._read(f"{folder}/cpu.max")
            if text:
                quota, _, period = text.partition(" ")
                if quota != "max":
                    return int(quota) / int(period or 100_000)
            quota_us = self._read(f"{folder}/cpu.cfs_quota_us")
            period_us = self._read(f"{folder}/cpu.cfs_period_us")
            if quota_us and period_us and int(quota_us) > 0 and int(period_us) > 0:
                return int(quota_us) / int(period_us)
        return None

    def _memory_cgroup(self) -> tuple[int | None, int]:
        """The tightest limit and the use that cannot be reclaimed at once, in bytes."""
        for folder in self._cgroup_folders("memory"):
            for limit_name, usage_name, inactive in (
                ("memory.max", "memory.current", "inactive_file"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            ):
                limit = self._read(f"{folder}/{limit_name}")
                if not limit.isdigit() or int(limit) >= _NO_LIMIT_BYTES:
                    continue
                usage = self._read(f"{folder}/{usage_name}")
                cache = 0
                for line in self._read(f"{folder}/memory.stat").splitlines():
                    name, _, value = line.partition(" ")
                    if name == inactive and value.isdigit():
                        cache = int(value)
                return int(limit), max(0, int(usage or 0) - cache)
        return None, 0

    def _cgroup_folders(self, controller: str) -> list[str]:
        """This process's cgroup and its parents, nearest first, for v2 and for a v1 controller."""
        folders: list[str] = []
        for line in self._read("proc/self/cgroup").splitlines():
            _, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if names == "":
                mount = "sys/fs/cgroup"
            elif controller in names.split(","):
                mount = f"sys/fs/cgroup/{controller}"
            else:
                continue
            parts = [part for part in path.split("/") if part]
            folders += ["/".join([mount, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
        return folders

    def _meminfo(self, name: str) -> int:
        for line in self._read("proc/meminfo").splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _read(self, path: str) -> str:
        try:
            with open(self._path(path), encoding="utf-8") as file:
                return file.read().strip()
        except OSError:
            return ""

    def _path(self, path: str) -> str:
        return os.path.join(self._filesystem, path)


def _no_library() -> Any:
    raise ModuleNotFoundError("pynvml")


def store_capacity_bytes(options: NodeOptions, available_bytes: int) -> int:
    """Bytes of the object store: as asked, else 30 % of what is available, at least 75 MiB."""
    if options.object_store_memory is not None:
        return options.object_store_memory
    return max(MINIMUM_OBJECT_STORE_BYTES, int(available_bytes * OBJECT_STORE_SHARE))


def node_resources(
    options: NodeOptions,
    *,
    ip_address: str,
    capacity_bytes: int,
    available_bytes: int,
    detector: ResourceDetector,
    environment: Mapping[str, str],
) -> dict[str, float]:
    """The node's total resources by name; ``memory`` and ``object_store_memory`` in bytes.

    ``SKATE_OVERRIDE_RESOURCES`` (a JSON object) wins over everything, as a test bench or an
    operator's wrapper wants it. Raises ``ValueError`` when it is not one. A resource of 0 is left
    out.
    """
    cpus = detector.cpu_count() if options.num_cpus is None else options.num_cpus
    found = detector.gpus(environment) if options.num_gpus is None else Gpus(0)
    gpus = found.count if options.num_gpus is None else options.num_gpus
    memory = int(available_bytes * MEMORY_SHARE) if options.memory is None else options.memory
    totals: dict[str, float] = {
        "CPU": cpus,
        "GPU": gpus,
        "memory": memory,
        "object_store_memory": capacity_bytes,
        **({f"{ACCELERATOR_PREFIX}{found.kind}": 1.0} if found.kind else {}),
        **options.resources,
        **_override(environment),
        f"node:{ip_address}": 1.0,
    }
    if options.is_head:
        totals[HEAD_RESOURCE] = 1.0
    return {name: amount for name, amount in totals.items() if amount}


def _override(environment: Mapping[str, str]) -> dict[str, float]:
    text = environment.get(OVERRIDE_VARIABLE)
    if not text:
        return {}
    try:
        values = json.loads(text)
        return {str(name): float(value) for name, value in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{OVERRIDE_VARIABLE} must be a JSON object of numbers, got {text!r}: {error}."
        ) from None
