"""Not a runtime: how fast this machine copies an array into touched shared memory.

The bound for `put` of an array. Two threads copy half each, as a store may.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import mmap
from typing import Any, ClassVar

from benchmarks.peers.peer import Peer, Reference
from benchmarks.workload import Capability

THREADS = 2
NOT_A_RUNTIME = "a plain memory copy, not a runtime"


class MemcpyPeer(Peer):
    """`put` copies into one shared mapping, made and touched when first needed."""

    name = "memcpy"
    distributions = ("numpy",)
    import_statement = "import numpy"
    lacks: ClassVar[dict[Capability, str]] = {
        capability: NOT_A_RUNTIME
        for capability in Capability
        if capability is not Capability.LARGE_PUT
    }

    def __init__(self) -> None:
        self._numpy: Any = importlib.import_module("numpy")
        self._target: Any = None
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None

    def start(self, cpus: int) -> None:
        """Start the threads."""
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS)

    def stop(self) -> None:
        """Stop the threads and drop the mapping."""
        assert self._threads is not None
        self._threads.shutdown()
        self._target = None

    def put(self, value: Any) -> Reference:
        """Copy a one-dimensional array; numpy releases the GIL while it copies."""
        if self._target is None or self._target.nbytes != value.nbytes:
            mapping = mmap.mmap(-1, value.nbytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
            self._target = self._numpy.frombuffer(mapping, dtype=value.dtype)
            self._target[:] = 1
        assert self._threads is not None
        part = -(-len(value) // THREADS)
        bounds = [slice(start, start + part) for start in range(0, len(value), part)]
        list(self._threads.map(lambda part: self._copy(part, value), bounds))
        return None

    def _copy(self, part: slice, value: Any) -> None:
        self._numpy.copyto(self._target[part], value[part])
