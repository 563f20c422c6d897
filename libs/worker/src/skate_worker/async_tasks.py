"""Coroutines and asynchronous generators as tasks: each on an event loop of its own.

A task that waits for values lends its CPU (:meth:`ObjectAccess.get`), so that what it waits for can
run. Here the wait is the event loop's: when nothing is ready and the task awaits references, its
selector lends the CPU for as long as it sleeps. Sleeping for anything else keeps it.

A cancellation interrupts the loop; closing it cancels the coroutine, whose clean-up runs.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from skate_worker.current import current_core
from skate_worker.object_access import BLOCKED_AFTER_S

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

T = TypeVar("T")


class LendingSelector(selectors.DefaultSelector):
    """Lends the task's CPU while the loop sleeps and references are awaited."""

    def __init__(self, core: CoreWorker) -> None:
        super().__init__()
        self._core = core

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the selectors of the standard library; ``timeout`` in seconds, None for ever."""
        if not self._core.awaited or (timeout is not None and timeout <= BLOCKED_AFTER_S):
            return super().select(timeout)
        if events := super().select(BLOCKED_AFTER_S):
            return events
        with self._core.sleeping_loop():
            return super().select(None if timeout is None else timeout - BLOCKED_AFTER_S)


def run_coroutine(coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns or raises."""
    with _runner() as runner:
        return runner.run(coroutine)


def run_generator(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """What the generator yields. Its other coroutines run while the next item is made."""
    with _runner() as runner:
        try:
            while True:
                try:
                    item = runner.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            runner.run(items.aclose())


async def _next(items: AsyncGenerator[T, None]) -> T:
    return await anext(items)


def _runner() -> asyncio.Runner:
    core = current_core()
    if core is None:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(LendingSelector(core)))
