"""Copies on their way to this node, for others who want them: each byte as soon as it is here.

What comes before: the transfers, which reserve room and receive. What comes after: the object
server, which sends what has come to nodes that pull from this one.

A reader holds slices of the range that is being written. The store does not use a range again while
a slice of it lives, whether the copy was sealed or given up, so a reader never sees the bytes of
another object.
"""

from __future__ import annotations

import threading
import time
from typing import Final

CHUNK_BYTES: Final = 8 << 20
"""A reader is given at most this much at a time."""


class ArrivalEndedError(Exception):
    """The copy will not come, or not from here."""


class Arrival:
    """One copy under way. Received by any number of threads, read by any number."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed  # that of all arrivals: few, and woken a few hundred times a second
        self._view: memoryview | None = None
        self._received: dict[int, int] = {}  # start of a range -> end of what has come of it
        self._readers = 0
        self._is_whole = False
        self._is_over = False

    @property
    def size_bytes(self) -> int | None:
        """None: there is no room for it yet."""
        view = self._view
        return None if view is None else len(view)

    def next_part(self, offset: int, end: int, deadline_s: float) -> memoryview | None:
        """What has come from ``offset`` on, up to ``end``; None: nothing by ``deadline_s``.

        The caller releases it. Raises :class:`ArrivalEndedError`.
        """
        with self._changed:
            while (stop := min(end, offset + CHUNK_BYTES, self._come_from(offset))) <= offset:
                if self._is_over:
                    raise ArrivalEndedError("it was given up")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return None
                self._changed.wait(left_s)
            assert self._view is not None
            return self._view[offset:stop]

    def leave(self) -> None:
        """A reader is done with it."""
        with self._changed:
            self._readers -= 1
            self._let_go()

    # ---- with the lock ----

    def _come_from(self, offset: int) -> int:
        """The end of what is here without a gap from ``offset`` on."""
        if self._is_whole:
            assert self._view is not None
            return len(self._view)
        grown = True
        while grown:
            grown = False
            for start, end in self._received.items():
                if start <= offset < end:
                    offset, grown = end, True
        return offset

    def _let_go(self) -> None:
        if self._is_over and not self._readers and self._view is not None:
            self._view.release()
            self._view = None


class Arrivals:
    """Every copy under way to this node, by id. Thread-safe; only readers wait."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrivals: dict[bytes, Arrival] = {}
        self._is_closed = False

    def begin(self, object_id: bytes) -> None:
        """Room for the copy is being made."""
        with self._changed:
            self._arrivals[object_id] = Arrival(self._changed)
            self._changed.notify_all()

    def has_room(self, object_id: bytes, view: memoryview) -> None:
        """The copy will be written there. ``view`` is released with the last reader."""
        with self._changed:
            self._arrivals[object_id]._view = view  # noqa: SLF001  the two are one

    def received(self, object_id: bytes, start: int, end: int) -> None:
        """These bytes are in their place; of one range in their order. On any thread."""
        with self._changed:
            arrival = self._arrivals.get(object_id)
            if arrival is not None:
                arrival._received[start] = end  # noqa: SLF001
                self._changed.notify_all()

    def end(self, object_id: bytes, *, is_whole: bool) -> None:
        """Every byte of the copy is here, or it will not come."""
        with self._changed:
            arrival = self._arrivals.pop(object_id, None)
            if arrival is not None:
                arrival._is_whole, arrival._is_over = is_whole, True  # noqa: SLF001
                arrival._let_go()  # noqa: SLF001
                self._changed.notify_all()

    def find(self, object_id: bytes, deadline_s: float) -> Arrival | None:
        """A copy under way, once there is one; None: not by ``deadline_s``. ``leave`` it."""
        with self._changed:
            while (arrival := self._arrivals.get(object_id)) is None:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._is_closed:
                    return None
                self._changed.wait(left_s)
            arrival._readers += 1  # noqa: SLF001
            return arrival

    def close(self) -> None:
        """Nothing comes any more."""
        with self._changed:
            self._is_closed = True
            object_ids = list(self._arrivals)
            self._changed.notify_all()
        for object_id in object_ids:
            self.end(object_id, is_whole=False)
