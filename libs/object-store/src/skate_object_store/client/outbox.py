"""What a client tells the store when it next talks to it: dropped pins, deletions, aborts.

Everything here that a finalizer may reach only appends to a deque and nudges; a finalizer runs at
any time, in any thread, inside any lock, this library's included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TypeVar

from skate_object_store.constants import IDS_PER_FRAME_MAX, RELEASES_PER_FRAME_MAX
from skate_object_store.protocol import pack_delete, pack_release

_Item = TypeVar("_Item")


class Nudge:
    """Wakes the flusher. ``SimpleQueue.put`` is reentrant by its documentation, and one C call."""

    def __init__(self) -> None:
        self._wakes: SimpleQueue[object] = SimpleQueue()
        self.give_for: Callable[[object], None] = self._wakes.put
        """Ask for a flush, as the callback of a weak reference. Safe in a finalizer."""

    def give(self) -> None:
        """Ask for a flush. Safe in a finalizer."""
        self._wakes.put(None)

    def wait(self) -> None:
        """Until the next nudge."""
        self._wakes.get()

    def take(self) -> None:
        """What has been asked for so far is about to be done. Only the flusher calls this."""
        for _ in range(self._wakes.qsize()):
            self._wakes.get()


class Outbox:
    """One-way messages that wait to be sent. ``take_releases`` collects (serial, count) pairs."""

    def __init__(self, nudge: Nudge, take_releases: Callable[[], list[tuple[int, int]]]) -> None:
        self._nudge = nudge
        self._take_releases = take_releases
        self._deleted: deque[bytes] = deque()
        self._frames: deque[bytes] = deque()

    def delete(self, object_ids: list[bytes]) -> None:
        """Delete objects soon. Safe in a finalizer."""
        self._deleted.extend(object_ids)
        self._nudge.give()

    def add(self, frame: bytes) -> None:
        """Send a one-way frame soon. Safe in a finalizer."""
        self._frames.append(frame)
        self._nudge.give()

    def drain(self) -> bytes:
        """Everything that waits, as frames. The caller holds the link's send lock."""
        releases = self._take_releases()
        parts = list(_taken(self._frames))
        parts += map(pack_release, _runs(releases, RELEASES_PER_FRAME_MAX))
        parts += map(pack_delete, _runs(list(_taken(self._deleted)), IDS_PER_FRAME_MAX))
        return b"".join(parts)


def _runs(items: list[_Item], size: int) -> Iterator[list[_Item]]:
    """Consecutive runs of at most ``size`` items, for one frame each."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _taken(items: deque[_Item]) -> Iterator[_Item]:
    """Take what is there; a finalizer may append meanwhile."""
    while items:
        yield items.popleft()
