"""``Queue``: a first-in first-out queue that tasks and actors share. Source: SURFACE U2.

It is an actor: a handle to it can be passed around, and what is put into it stays there until it is
fetched, also when the process that put it has ended.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from typing import Any

from skate.actor import ActorHandle, kill
from skate.decorators import remote
from skate.exceptions import GetTimeoutError
from skate.objects import cancel, get

__all__ = ["Empty", "Full", "Queue"]


class Empty(queue.Empty):
    """Nothing is in the queue, or nothing came in time."""


class Full(queue.Full):
    """The queue has no room, or none came in time."""


class Queue:
    """A queue for many producers and consumers, in any process of the cluster; picklable."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        """``maxsize``: the most items at a time, without end when it is not positive.

        ``actor_options``: options of the actor that holds the items, such as ``num_cpus``. It
        takes 1000 calls at a time unless ``max_concurrency`` says otherwise.

        Raises:
            TypeError: ``maxsize`` is not a whole number.
        """
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be a whole number, got {maxsize!r}.")
        self.maxsize = maxsize
        self.actor: ActorHandle[_Items] = (
            remote(_Items).options(**(actor_options or {})).remote(maxsize)
        )

    def __len__(self) -> int:
        return self.qsize()

    def size(self) -> int:
        """How many items are in it now."""
        return self.qsize()

    def qsize(self) -> int:
        """How many items are in it now."""
        count: int = get(self.actor.qsize.remote())
        return count

    def empty(self) -> bool:
        """Whether nothing is in it now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether it has no room now."""
        return 0 < self.maxsize <= self.qsize()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item; waits for room, at most ``timeout`` seconds.

        Raises:
            Full: no room came in time, or there is none and ``block`` is False.
            ValueError: a negative timeout.
        """
        wait_s = _seconds(block, timeout)
        if not get(self.actor.put.remote(item, wait_s)):
            raise Full(_no_room(self.maxsize, wait_s))

    async def put_async(
        self,
        item: Any,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - as in Ray
    ) -> None:
        """As :meth:`put`, without holding the event loop."""
        wait_s = _seconds(block, timeout)
        if not await _finished(self.actor.put.remote(item, wait_s)):
            raise Full(_no_room(self.maxsize, wait_s))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item; waits for one, at most ``timeout`` seconds.

        Raises:
            Empty: none came in time, or there is none and ``block`` is False.
            ValueError: a negative timeout.
        """
        wait_s = _seconds(block, timeout)
        return _only(get(self.actor.take.remote(wait_s)), wait_s)

    async def get_async(
        self,
        block: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - as in Ray
    ) -> Any:
        """As :meth:`get`, without holding the event loop. Cancelling it takes no item, unless
        one is on its way.
        """
        wait_s = _seconds(block, timeout)
        return _only(await _finished(self.actor.take.remote(wait_s)), wait_s)

    def put_nowait(self, item: Any) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Sequence[Any]) -> None:
        """Add all items, or none.

        Raises:
            Full: there is no room for all of them.
            TypeError: not a sequence.
        """
        if not isinstance(items, Sequence):
            raise TypeError(f"put_nowait_batch() takes a list of items, got {items!r:.80}.")
        if not get(self.actor.put_batch.remote(list(items))):
            raise Full(f"{len(items)} more items do not fit into a queue of {self.maxsize}.")

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take exactly ``num_items`` items, the oldest first, or none.

        Raises:
            Empty: there are fewer.
            TypeError: not a whole number.
            ValueError: a negative one.
        """
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be a whole number, got {num_items!r}.")
        if num_items < 0:
            raise ValueError(f"num_items must not be negative, got {num_items}.")
        items: list[Any] | None = get(self.actor.take_batch.remote(num_items))
        if items is None:
            raise Empty(f"The queue has fewer than {num_items} items.")
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor that holds the items; what is in it is lost.

        Calls that came before are finished first, for at most ``grace_period_s`` seconds; with
        ``force`` it is killed at once. Later calls raise ``ActorDiedError``.
        """
        if not force:
            try:
                get(self.actor.drain.remote(), timeout=grace_period_s)
            except GetTimeoutError:
                force = True  # Somebody waits in it; what is left of the grace is nothing.
        kill(self.actor, no_restart=True)


class _Items:
    """The actor behind a queue. Outcomes that are expected are answers, not errors."""

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._queue: asyncio.Queue[Any] = asyncio.Queue(max(0, maxsize))
        self._waiting = 0
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()

    async def qsize(self) -> int:
        """How many there are."""
        return self._queue.qsize()

    async def put(self, item: Any, wait_s: float | None) -> bool:
        """Whether there was room within that time (None: without end)."""
        if wait_s == 0:
            return self._put_now(item)
        self._note_waiting(1)
        try:
            async with asyncio.timeout(wait_s):
                await self._queue.put(item)
        except TimeoutError:
            return False
        finally:
            self._note_waiting(-1)
        return True

    async def take(self, wait_s: float | None) -> tuple[Any, ...]:
        """The item alone, or nothing when none came within that time."""
        if wait_s == 0:
            return () if self._queue.empty() else (self._queue.get_nowait(),)
        self._note_waiting(1)
        try:
            async with asyncio.timeout(wait_s):
                return (await self._queue.get(),)
        except TimeoutError:
            return ()
        finally:
            self._note_waiting(-1)

    async def put_batch(self, items: list[Any]) -> bool:
        """Whether there was room for all."""
        if 0 < self._maxsize < self._queue.qsize() + len(items):
            return False
        for item in items:
            self._queue.put_nowait(item)
        return True

    async def take_batch(self, count: int) -> list[Any] | None:
        """So many, or None when there are fewer."""
        if self._queue.qsize() < count:
            return None
        return [self._queue.get_nowait() for _ in range(count)]

    async def drain(self) -> None:
        """Return when no call waits here."""
        await self._nobody_waits.wait()

    def _put_now(self, item: Any) -> bool:
        if self._queue.full():
            return False
        self._queue.put_nowait(item)
        return True

    def _note_waiting(self, change: int) -> None:
        self._waiting += change
        if self._waiting:
            self._nobody_waits.clear()
        else:
            self._nobody_waits.set()


async def _finished(ref: Any) -> Any:
    try:
        return await ref
    except asyncio.CancelledError:
        cancel(ref)  # Or it would go on waiting, and take an item that nobody gets.
        raise


def _seconds(block: bool, timeout: float | None) -> float | None:
    """How long to wait: 0 not at all, None without end."""
    if not block:
        return 0
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout is a number of seconds, got {timeout!r}.")
    if timeout < 0:
        raise ValueError(f"timeout must not be negative, got {timeout}.")
    return timeout


def _only(items: tuple[Any, ...], wait_s: float | None) -> Any:
    if not items:
        raise Empty(f"Nothing came within {wait_s} s." if wait_s else "Nothing is in the queue.")
    return items[0]


def _no_room(maxsize: int, wait_s: float | None) -> str:
    late = f" and no room came within {wait_s} s" if wait_s else ""
    return f"The queue holds {maxsize} items{late}."
