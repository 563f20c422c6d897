"""Objects that are written while their pages are still being committed: who waits for which.

Before it: the object table reserved a range for a client that takes late pages. After it: the page
keeper commits the steps returned, one at a time for an object, and answers come back as its steps
end. Pages come from an object's start to its end, whether or not anybody waits, so that they are
ahead of the writer. A step that fails stops that, until somebody asks again.

Invariant: whoever waits, waits for an object with a step under way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from skate_object_store.constants import CHUNK_BYTES, LATE_REQUESTS_MAX, LATE_STEP_BYTES
from skate_object_store.machine.records import ClientMisuseError, Created


class Step(NamedTuple):
    """Duty: commit this part of the arena, then call :meth:`LatePages.grown` or ``failed``."""

    created: Created
    offset: int
    size_bytes: int


class Answer(NamedTuple):
    """Reply to a request for pages."""

    client: int
    request: int
    has_pages: bool
    """False: the object is not being written any more."""


@dataclass(slots=True)
class _Growth:
    created: Created
    done_bytes: int = 0  # from the object's start, with pages
    step_bytes: int = 0  # of the step under way
    waiting: dict[int, int] = field(default_factory=dict)  # request -> bytes from the start


class LatePages:
    """The objects of one store that lack pages. Each call costs O(requests that wait for one)."""

    def __init__(self) -> None:
        self._growths: dict[int, _Growth] = {}  # by serial; until sealed or freed

    def __len__(self) -> int:
        return len(self._growths)

    def begin(self, created: Created) -> Step:
        """A range was reserved and some of it lacks pages: its first step."""
        growth = self._growths[created.serial] = _Growth(created)
        return self._step(growth)

    def want(self, client: int, request: int, serial: int, size_bytes: int) -> Answer | Step | None:
        """The client wants to write the object's first ``size_bytes``; None: answered later.

        Raises ``ClientMisuseError`` for another client's object, for more than the object has, and
        for too many requests at a time.
        """
        growth = self._growths.get(serial)
        if growth is None:
            return Answer(client, request, has_pages=False)
        wish = growth.created.wish
        if wish.client != client or size_bytes > wish.size_bytes:
            raise ClientMisuseError(f"{size_bytes} bytes of copy {serial} are not its to write")
        if size_bytes <= growth.done_bytes:
            return Answer(client, request, has_pages=True)
        if len(growth.waiting) >= LATE_REQUESTS_MAX:
            raise ClientMisuseError(f"more than {LATE_REQUESTS_MAX} requests for pages at a time")
        growth.waiting[request] = size_bytes
        return None if growth.step_bytes else self._step(growth)

    def grown(self, serial: int) -> Iterator[Answer | Step]:
        """The step under way has its pages: who has waited for them, and the next step."""
        growth = self._growths.get(serial)
        if growth is None:
            return  # Sealed or freed meanwhile.
        growth.done_bytes += growth.step_bytes
        growth.step_bytes = 0
        client = growth.created.wish.client
        for request, size_bytes in list(growth.waiting.items()):
            if size_bytes <= growth.done_bytes:
                del growth.waiting[request]
                yield Answer(client, request, has_pages=True)
        if growth.done_bytes < growth.created.wish.size_bytes:
            yield self._step(growth)

    def failed(self, serial: int) -> list[int]:
        """There are no pages for the step under way: the requests to be refused."""
        growth = self._growths.get(serial)
        if growth is None:
            return []
        growth.step_bytes = 0
        refused = list(growth.waiting)
        growth.waiting.clear()
        return refused

    def step_under_way(self, serial: int) -> Step | None:
        """Its range, to be tried once more; None: nobody needs it any more."""
        growth = self._growths.get(serial)
        if growth is None:
            return None
        created = growth.created
        return Step(created, created.offset + growth.done_bytes, growth.step_bytes)

    def seal(self, client: int, serial: int) -> None:
        """The object is whole.

        Raises ``ClientMisuseError`` if it can not be, for want of pages, or is another client's.
        """
        growth = self._growths.get(serial)
        if growth is None:
            return
        wish = growth.created.wish
        if wish.client != client or growth.done_bytes < wish.size_bytes:
            raise ClientMisuseError(f"copy {serial} was sealed before it had its pages")
        del self._growths[serial]

    def freed(self, offset: int) -> list[Answer]:
        """The range at this offset is free: it is not being written any more."""
        for serial, growth in self._growths.items():
            if growth.created.offset == offset:
                del self._growths[serial]
                client = growth.created.wish.client
                return [Answer(client, request, has_pages=False) for request in growth.waiting]
        return []

    def _step(self, growth: _Growth) -> Step:
        """The next step ends with a chunk, or with the object."""
        created = growth.created
        start = created.offset + growth.done_bytes
        end = (start + LATE_STEP_BYTES) // CHUNK_BYTES * CHUNK_BYTES
        size = min(end, created.offset + created.wish.size_bytes) - start
        growth.step_bytes = size
        return Step(created, start, size)
