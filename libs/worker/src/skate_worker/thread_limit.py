"""``OMP_NUM_THREADS`` of a worker: as many threads as the work has CPUs, unless somebody chose.

NumPy, PyTorch and others start as many threads as the machine has cores; several workers then get
in each other's way. They read the variable when they are imported. Source: SURFACE row T32.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

VARIABLE: Final = "OMP_NUM_THREADS"
UNITS_PER_CPU: Final = 10_000


class ThreadLimit:
    """Keeps the variable in step with what the worker holds."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """A value that is there already was chosen by the user, and stays."""
        self._environment = environment
        self._ours: str | None = None

    def follow(self, resources: Mapping[str, int]) -> None:
        """``resources``: units of what the next work holds. A part of a CPU counts as one."""
        if self._environment.get(VARIABLE) != self._ours:
            return  # the user's, or a library's
        self._ours = str(max(1, resources.get("CPU", 0) // UNITS_PER_CPU))
        self._environment[VARIABLE] = self._ours
