"""The few calls of the C library that Python lacks, or makes while it holds the interpreter lock.

Each wrapper raises ``OSError`` with the call's ``errno``. Addresses are plain integers.
"""

from __future__ import annotations

import ctypes
import mmap
import os

_C = ctypes.CDLL(None, use_errno=True)

_MADV_POPULATE_WRITE = 23
_MAP_NORESERVE = 0x4000
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_MAP_FAILED = ctypes.c_void_p(-1).value

_mmap = _C.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_munmap = _C.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise = _C.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_fallocate = _C.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def map_shared(fd: int, size: int, *, is_writable: bool) -> int:
    """Map ``size`` bytes of ``fd`` and return the address. Costs address space, no memory."""
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if is_writable else 0)
    address: int | None = _mmap(None, size, protection, mmap.MAP_SHARED, fd, 0)
    if address is None or address == _MAP_FAILED:
        raise _last_error("mmap")
    return address


def map_private(fd: int, offset: int, size: int) -> int:
    """Map a range of ``fd`` so that writes stay in this process; ``offset`` is page-aligned.

    Shares the file's pages until they are written to, and reserves no memory for that.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    address: int | None = _mmap(None, size, protection, flags, fd, offset)
    if address is None or address == _MAP_FAILED:
        raise _last_error("mmap")
    return address


def unmap(address: int, size: int) -> None:
    """Undo a mapping. Touching the range afterwards ends the process."""
    if _munmap(address, size) != 0:
        raise _last_error("munmap")


def populate_for_writing(address: int, size: int) -> bool:
    """Set up the page tables of a range at once rather than fault by fault (Linux 5.14).

    Returns False where the kernel does not know how; then the faults do it. Page-aligned.
    """
    return bool(_madvise(address, size, _MADV_POPULATE_WRITE) == 0)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give the pages of a range back to the machine; the range reads as zeros."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _fallocate(fd, mode, offset, size) != 0:
        raise _last_error("fallocate")


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
