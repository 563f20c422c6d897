"""The memory itself: one descriptor, its pages, and nothing with a name that could be left behind.

Before it: the server chose a capacity. After it: clients map the descriptor that they receive.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Protocol

from skate_object_store import libc
from skate_object_store.service.headroom import Headroom

_POISON = b"\xdd" * (1 << 20)


class Pages(Protocol):
    """What the committer needs of an arena; tests put a machine without memory in its place."""

    def commit(self, offset: int, size: int) -> None:
        """Give the range its pages. Raises ``OSError`` if there are none."""

    def give_back(self, offset: int, size: int) -> None:
        """Take the range's pages away."""


class Arena:
    """``capacity_bytes`` of shared memory, rounded up to whole pages; without pages at first.

    ``directory`` None: a memfd, which needs no room in ``/dev/shm``, has no name, and goes with its
    last holder. Otherwise an unlinked file there, for machines whose policy forbids memfds, and for
    tests that need a small disk.
    """

    def __init__(self, capacity_bytes: int, directory: str | None = None) -> None:
        self.size_bytes = -(-capacity_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._headroom = Headroom() if directory is None else None
        if directory is None:
            flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
            self.fd = os.memfd_create("skate-object-store", flags)
        else:
            self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(self.fd, self.size_bytes)
            if directory is None:
                # No client can shrink the file under another one's mapping, which would be SIGBUS.
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
        except OSError:
            os.close(self.fd)
            raise

    def commit(self, offset: int, size: int) -> None:
        """Give the range its pages, so that writing there cannot fail.

        Raises:
            OSError: ENOMEM if the machine has too little left, ENOSPC if the directory has.
        """
        size = min(size, self.size_bytes - offset)
        if self._headroom is not None and not self._headroom.has_room_for(size):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(self.fd, offset, size)

    def give_back(self, offset: int, size: int) -> None:
        """Return the range's pages to the machine. Nobody may have a view of it."""
        libc.punch_hole(self.fd, offset, min(size, self.size_bytes - offset))

    def poison(self, offset: int, size: int) -> None:
        """Overwrite a freed range, so that a view which should not exist is seen to change."""
        for start in range(offset, offset + size, len(_POISON)):
            part = memoryview(_POISON)[: min(len(_POISON), offset + size - start)]
            os.pwrite(self.fd, part, start)

    def close(self) -> None:
        """Let go of the memory; it lives on while a client maps it."""
        os.close(self.fd)
