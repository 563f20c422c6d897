"""What the machine is: the facts without which a figure means nothing."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

BYTES_PER_GB = 1e9
KIB = 1024


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Taken once, before the first round. `cores_usable` is what this process may run on."""

    cpu_model: str
    cores: int
    cores_usable: int
    memory_gb: float
    kernel: str
    system: str
    python: str
    load_before: tuple[float, float, float]

    def line(self) -> str:
        """What a report says of the machine."""
        return (
            f"{self.cpu_model}, {self.cores} cores ({self.cores_usable} usable), "
            f"{self.memory_gb:g} GB; {self.system}, Linux {self.kernel}; "
            f"load before {self.load_before[0]:.2f}"
        )


def machine_facts() -> MachineFacts:
    """The facts of this machine."""
    return MachineFacts(
        cpu_model=_cpu_model(),
        cores=os.cpu_count() or 1,
        cores_usable=len(os.sched_getaffinity(0)),
        memory_gb=round(_memory_bytes() / BYTES_PER_GB, 1),
        kernel=platform.release(),
        system=_system(),
        python=sys.version.split()[0],
        load_before=os.getloadavg(),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model", "Processor")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_bytes() -> int:
    first = Path("/proc/meminfo").read_text().splitlines()[0]
    return int(first.split()[1]) * KIB


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
