"""The arena in this process's address space: once for reading, once for writing.

Both are address space only. Objects are read through the read-only one, so that a write through a
view, even one made with ``ctypes``, faults instead of changing what others see.
"""

from __future__ import annotations

import ctypes
import os

from skate_object_store import libc
from skate_object_store.constants import CHUNK_BYTES

_NEW, _SET_UP = b"\0", b"\1"


class ArenaMapping:
    """Takes over ``fd``. :meth:`close` only when no view is left."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.fd = fd
        """For mappings of single objects."""
        try:
            os.set_inheritable(fd, False)
            self.read_address = libc.map_shared(fd, size_bytes, is_writable=False)
            try:
                self.write_address = libc.map_shared(fd, size_bytes, is_writable=True)
            except OSError:
                libc.unmap(self.read_address, size_bytes)
                raise
        except BaseException:
            os.close(fd)
            raise
        whole = (ctypes.c_ubyte * size_bytes).from_address(self.write_address)
        self.writable = memoryview(whole).cast("B")
        """The whole arena. Never handed out: views of it would not be noticed."""
        self._chunks = bytearray(-(-size_bytes // CHUNK_BYTES))  # page tables of the writable side
        self._can_populate = True
        self._is_open = True

    def prepare_write(self, offset: int, size: int) -> None:
        """Set up the page tables of a range about to be written, where that was not done before.

        Whole chunks are set up, which is safe: the store commits pages by the same chunks. Several
        threads may do this at a time; doing a chunk twice costs time only.
        """
        first, last = offset // CHUNK_BYTES, -(-(offset + size) // CHUNK_BYTES)
        position = self._chunks.find(_NEW, first, last)
        while position >= 0 and self._can_populate:
            end = self._chunks.find(_SET_UP, position, last)
            end = last if end < 0 else end
            start_byte = position * CHUNK_BYTES
            end_byte = min(end * CHUNK_BYTES, self.size_bytes)
            address = self.write_address + start_byte
            self._can_populate = libc.populate_for_writing(address, end_byte - start_byte)
            self._chunks[position:end] = _SET_UP * (end - position)
            position = self._chunks.find(_NEW, end, last)

    def forget_prepared(self, offset: int, size: int) -> None:
        """The range has lost its pages since it was set up, or some of them."""
        first, last = offset // CHUNK_BYTES, -(-(offset + size) // CHUNK_BYTES)
        self._chunks[first:last] = _NEW * (last - first)

    def close(self) -> None:
        """Unmap. Touching a view afterwards would end the process."""
        if self._is_open:
            self._is_open = False
            os.close(self.fd)
            self.writable.release()
            libc.unmap(self.read_address, self.size_bytes)
            libc.unmap(self.write_address, self.size_bytes)
