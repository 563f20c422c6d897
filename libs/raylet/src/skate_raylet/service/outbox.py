"""What waits to be sent on a gRPC stream of this node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

UNSENT_MAX = 100_000
BATCH_MAX = 512

_Item = TypeVar("_Item")


class Outbox(Generic[_Item]):
    """What is to be sent, taken in batches. Past ``UNSENT_MAX`` the line is broken off."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._is_filled = asyncio.Event()
        self.is_closed = False

    def put(self, item: _Item) -> None:
        """Queue an item; a closed box drops it."""
        if self.is_closed:
            return
        self._items.append(item)
        if len(self._items) > UNSENT_MAX:
            self.close()  # the peer does not read: as good as a broken line
        self._is_filled.set()

    def __len__(self) -> int:
        return len(self._items)

    def close(self) -> None:
        """Send nothing more; :meth:`batches` ends."""
        self.is_closed = True
        self._is_filled.set()

    async def batches(self) -> AsyncIterator[list[_Item]]:
        """What was put, in order, until the box is closed."""
        while True:
            await self._is_filled.wait()
            if self.is_closed:
                return
            batch, self._items = self._items[:BATCH_MAX], self._items[BATCH_MAX:]
            if not self._items:
                self._is_filled.clear()
            yield batch
