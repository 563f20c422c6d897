"""Writable views of sealed objects that only this process sees, without a copy up front.

For users of memory that have no notion of read-only, such as PyTorch. The object's pages are mapped
once more, privately: reading shares them, and the first write to a page copies that page alone.
Each view has a mapping of its own, because a page that was written to must not stand for what the
arena holds there later.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref

from skate_object_store import libc
from skate_object_store.client.copying import borrowed
from skate_object_store.client.mapping import ArenaMapping


def private_view(mapping: ArenaMapping, view: memoryview) -> memoryview | None:
    """A private writable view of the bytes of ``view``; None if they do not lie in the arena.

    ``view`` and with it the object live as long as the result or anything made from it.
    """
    with borrowed(view) as (address, size):
        offset = address - mapping.read_address
    if size == 0 or not 0 <= offset <= mapping.size_bytes - size:
        return None
    start = offset - offset % mmap.PAGESIZE
    length = offset + size - start
    base = libc.map_private(mapping.fd, start, length)
    array = (ctypes.c_ubyte * size).from_address(base + offset - start)
    array.pinned = view  # type: ignore[attr-defined]  # ctypes objects take attributes.
    unmapping = weakref.finalize(array, libc.unmap, base, length)
    unmapping.atexit = False  # others may still use it while the process ends
    return memoryview(array).cast("B")
