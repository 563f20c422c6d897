"""Views of the arena whose end is noticed: what makes zero-copy safe.

A view is a ``memoryview`` over a ``ctypes`` array at an address of the mapping. Slices and numpy
arrays made from the view keep the array alive; when the last of them goes, the array's weak
reference calls back, and the pin in the store can be dropped. On Python 3.11 nothing else gives a
read-only buffer over foreign memory with a notice of its end.

The callbacks are methods of C types: an interrupt in the middle of a Python function called back
would be swallowed there, and the end of the view with it.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

_Array: TypeAlias = "ctypes.Array[ctypes.c_ubyte]"


class Span:
    """One pinned copy and the views of it in this process."""

    __slots__ = (
        "address",
        "is_aborted",
        "is_held",
        "lacks_pages",
        "object_id",
        "pins",
        "ready_bytes",
        "reference",
        "serial",
        "size_bytes",
        "waker",
        "writing",
    )

    def __init__(self, object_id: bytes, serial: int, address: int, size_bytes: int) -> None:
        self.object_id = object_id
        self.serial = serial
        self.address = address
        self.size_bytes = size_bytes
        self.pins = 0
        """Pins that the store counts for this process."""
        self.is_held = False
        """Whether something is to be said to the store when the last view ends."""
        self.is_aborted = False
        """Whether that is an abort rather than a release."""
        self.writing: memoryview | None = None
        """The view handed out for writing, until the object is sealed or aborted."""
        self.lacks_pages = False
        """Whether its pages are to be asked for before they are written."""
        self.ready_bytes = 0
        """From the start, those that were asked for."""
        self.reference: SpanReference | None = None
        self.waker: weakref.ref[_Array] | None = None

    @property
    def is_viewed(self) -> bool:
        """Whether a view is alive."""
        return self.reference is not None and self.reference() is not None


class SpanReference(weakref.ref[_Array]):
    """A weak reference that knows its span."""

    __slots__ = ("span",)
    span: Span


class SpanViewer:
    """Makes views. When the last of a span goes, its reference is appended to ``ended``.

    ``wake`` is called afterwards, with something that does not matter.
    """

    def __init__(self, wake: Callable[[object], None]) -> None:
        self.ended: deque[SpanReference] = deque()
        self._wake = wake
        self._array_types: dict[int, type[_Array]] = {}

    def view(self, span: Span) -> memoryview:
        """A writable view of the whole span; one array serves all views that live at a time."""
        array = None if span.reference is None else span.reference()
        if array is None:
            array = self._array_type(span.size_bytes).from_address(span.address)
            # Callbacks run from the newest reference to the oldest: appended first, woken then.
            span.waker = weakref.ref(array, self._wake)
            reference = SpanReference(array, self.ended.append)
            reference.span = span
            span.reference = reference
        return memoryview(array).cast("B")[: span.size_bytes]

    def _array_type(self, size_bytes: int) -> type[_Array]:
        # A type per length would pile up in the cache of ctypes, so lengths are rounded up to one
        # of eight per power of two. What lies beyond the object is cut off before a view leaves
        # this class.
        shift = max(0, size_bytes.bit_length() - 4)
        length = max(1, (size_bytes + (1 << shift) - 1) >> shift << shift)
        array_type = self._array_types.get(length)
        if array_type is None:
            array_type = self._array_types[length] = ctypes.c_ubyte * length
        return array_type
