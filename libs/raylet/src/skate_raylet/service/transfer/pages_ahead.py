"""Gets the pages of a copy that is being received, a step ahead of the bytes.

What comes before: the transfers, which reserved room with late pages. What comes after: the
fetches, which write nothing before the pages are there. Committing memory takes about as long as
receiving into it, so a large copy comes faster if both go on at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from skate_object_store import StoreError
from skate_raylet.service.transfer.store_access import StoreAccess

STEP_BYTES: Final = 16 << 20
"""Asked for at a time: some milliseconds of committing."""
SIZE_BYTES_MIN: Final = 32 << 20
"""Smaller copies have all of their pages before the first byte comes."""


class NoPagesError(Exception):
    """There are none: the copy can not be received. The planner hears of it otherwise."""


class PagesAhead:
    """One copy's pages. :meth:`run` on a thread, the rest on any other.

    ``on_refusal`` is called on the thread of :meth:`run`, before who waits is told.
    """

    def __init__(
        self, object_id: bytes, size_bytes: int, on_refusal: Callable[[StoreError], None]
    ) -> None:
        self._object_id = object_id
        self._size_bytes = size_bytes
        self._on_refusal = on_refusal
        self._changed = threading.Condition()
        self._ready_bytes = 0 if size_bytes >= SIZE_BYTES_MIN else size_bytes
        self._is_over = False

    @property
    def are_late(self) -> bool:
        """Whether :meth:`run` has something to do."""
        return self._ready_bytes < self._size_bytes

    def run(self, store: StoreAccess) -> None:
        """Commit up to the end, or a refusal, or :meth:`stop`."""
        while (end := self._next_end()) is not None:
            try:
                store.client().commit(self._object_id, end)
            except StoreError as error:
                if self._next_end() is not None:
                    self._on_refusal(error)
                self.stop()
                return
            with self._changed:
                self._ready_bytes = end
                self._changed.notify_all()

    def wait_for(self, end: int, timeout_s: float) -> bool:
        """Whether the first ``end`` bytes may be written, within ``timeout_s``.

        Raises :class:`NoPagesError`.
        """
        if end <= self._ready_bytes:  # It only grows.
            return True
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while end > self._ready_bytes:
                if self._is_over:
                    raise NoPagesError("the store has no memory for the rest of the copy")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def stop(self) -> None:
        """The copy is whole, or will not come."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _next_end(self) -> int | None:
        if self._is_over or self._ready_bytes >= self._size_bytes:
            return None
        return min(self._size_bytes, self._ready_bytes + STEP_BYTES)
