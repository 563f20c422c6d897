"""Copies into the arena: one memmove for small ones, several threads for large ones.

``ctypes.memmove`` releases the interpreter lock, so helper threads copy truly in parallel. Each
copies one contiguous stretch, not interleaved blocks: on the reference machine two threads move 24
GB/s that way and 18 with blocks of 1 to 64 MiB (``benches/bandwidth.py``).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PARALLEL_BYTES = 8 << 20
"""From here a copy is shared between threads; below, waking them costs more than they save."""

UNLOCKED_BYTES = 1 << 20
"""From here a copy lets other threads run meanwhile; below, handing the lock over costs more."""

PREPARED_BYTES = 1 << 20
"""From here the page tables are set up before the copy rather than by faults within it."""

_THREADS_MAX = 4
_STRETCH_BYTES = 4096  # stretches start on page boundaries of the target
Prepare = Callable[[int, int], None]
"""Called with (start, length) of a stretch, relative to the copy's target, before it is copied."""


class _PyBuffer(ctypes.Structure):
    """``Py_buffer`` of the C API, whose layout is part of the stable ABI since 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_PYBUF_SIMPLE = 0
_PYBUF_WRITABLE = 1

_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


@contextmanager
def borrowed(buffer: ReadableBuffer, *, is_writable: bool = False) -> Iterator[tuple[int, int]]:
    """(address, length) of a contiguous buffer, held while the block runs.

    Raises ``BufferError`` for one that is not contiguous, or read-only where it must not be, and
    ``TypeError`` for what is no buffer.
    """
    view = _PyBuffer()
    _get_buffer(buffer, ctypes.byref(view), _PYBUF_WRITABLE if is_writable else _PYBUF_SIMPLE)
    try:
        yield view.buf or 0, view.len
    finally:
        _release_buffer(ctypes.byref(view))


class _Job(NamedTuple):
    target: int
    source: int
    start: int
    length: int
    prepare: Prepare
    done: SimpleQueue[BaseException | None]


class Copier:
    """Copies bytes; keeps helper threads from the first large copy until :meth:`close`."""

    def __init__(self) -> None:
        self._helpers_wanted = min(_THREADS_MAX, len(os.sched_getaffinity(0))) - 1
        self._helpers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    def copy(self, target: int, source: int, size: int, prepare: Prepare) -> None:
        """Copy ``size`` bytes between addresses that do not overlap.

        Returns, or raises, only when no thread works on the memory any more.
        """
        threads = 1 + self._ready_helpers() if size >= PARALLEL_BYTES else 1
        stretch = -(-size // threads // _STRETCH_BYTES) * _STRETCH_BYTES
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        jobs = [
            _Job(target, source, start, min(stretch, size - start), prepare, done)
            for start in range(0, size, stretch)
        ]
        # An interrupt may fall between any two bytecodes, but not inside one C call, so that a job
        # is placed and counted, or its outcome taken and kept, in one.
        placed: list[None] = []
        outcomes: list[BaseException | None] = []
        interrupts: list[BaseException] = []
        try:
            placed.extend(map(self._jobs.put, jobs[1:]))
            _do(jobs[0])
        finally:
            while len(outcomes) < len(placed):
                try:
                    outcomes.extend(map(done.get, (True,)))
                except BaseException as interrupt:  # noqa: BLE001  Raised once the memory is free.
                    interrupts.append(interrupt)
        for failure in (*interrupts, *outcomes):
            if failure is not None:
                raise failure

    def close(self) -> None:
        """End the helper threads once idle. Copies still work, on their caller's thread."""
        with self._lock:
            for _ in self._helpers:
                self._jobs.put(None)
            self._helpers.clear()
            self._helpers_wanted = 0

    def _ready_helpers(self) -> int:
        with self._lock:
            while len(self._helpers) < self._helpers_wanted:
                name = f"skate-store-copy-{len(self._helpers)}"
                helper = threading.Thread(target=self._help, name=name, daemon=True)
                try:
                    helper.start()
                except RuntimeError:
                    # The process may have no more threads: do with those there are.
                    self._helpers_wanted = len(self._helpers)
                else:
                    self._helpers.append(helper)
            return len(self._helpers)

    def _help(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                _do(job)
            except Exception as error:  # noqa: BLE001  Boundary: the copy's caller raises it.
                job.done.put(error)
            else:
                job.done.put(None)


def _do(job: _Job) -> None:
    if job.length >= PREPARED_BYTES:
        job.prepare(job.start, job.length)
    ctypes.memmove(job.target + job.start, job.source + job.start, job.length)
