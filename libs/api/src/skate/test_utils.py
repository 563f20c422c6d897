"""What tests of programs with tasks and actors need again and again. Source: SURFACE U7.

``wait_for_condition`` instead of sleeping; ``SignalActor`` and ``Semaphore`` to hold tasks at a
point until the test lets them go on.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from skate.actor import ActorClass
from skate.decorators import remote

__all__ = ["Semaphore", "SignalActor", "async_wait_for_condition", "wait_for_condition"]


def wait_for_condition(
    condition_predictor: Callable[..., Any],
    timeout: float = 10,
    retry_interval_ms: float = 100,
    raise_exceptions: bool = False,
    **kwargs: Any,
) -> None:
    """Return once ``condition_predictor(**kwargs)`` is true; asks every ``retry_interval_ms``.

    Raises:
        RuntimeError: it was not true within ``timeout`` seconds. Its message has the traceback of
            the last exception of the condition, which otherwise counts as not true.
        Exception: what the condition raised, with ``raise_exceptions``.
    """
    deadline = time.monotonic() + timeout
    trouble = ""
    while True:
        try:
            if condition_predictor(**kwargs):
                return
            trouble = ""
        except Exception:
            if raise_exceptions:
                raise
            trouble = traceback.format_exc()
        if time.monotonic() >= deadline:
            raise RuntimeError(_never(timeout, trouble))
        time.sleep(retry_interval_ms / 1000)


async def async_wait_for_condition(
    condition_predictor: Callable[..., Awaitable[Any] | Any],
    timeout: float = 10,  # noqa: ASYNC109 - as in Ray
    retry_interval_ms: float = 100,
    **kwargs: Any,
) -> None:
    """As :func:`wait_for_condition` for a plain or async condition, on the event loop."""
    deadline = time.monotonic() + timeout
    trouble = ""
    while True:
        try:
            answer = condition_predictor(**kwargs)
            if await answer if inspect.isawaitable(answer) else answer:
                return
            trouble = ""
        except Exception:  # noqa: BLE001 - the boundary to the condition: it may not hold yet
            trouble = traceback.format_exc()
        if time.monotonic() >= deadline:
            raise RuntimeError(_never(timeout, trouble))
        await asyncio.sleep(retry_interval_ms / 1000)


def _never(timeout: float, trouble: str) -> str:
    more = f" Its last exception:\n{trouble}" if trouble else ""
    return f"The condition was not met within {timeout} s.{more}"


class _Signal:
    """A gate: calls of ``wait`` return once ``send`` was called."""

    def __init__(self) -> None:
        self._sent = asyncio.Event()
        self._waiting = 0

    async def send(self, clear: bool = False) -> None:
        """Let all go on; with ``clear`` those that wait now, and close the gate again."""
        self._sent.set()
        if clear:
            self._sent.clear()

    async def wait(self, should_wait: bool = True) -> None:
        """Return when the gate is open, or at once without ``should_wait``."""
        if not should_wait:
            return
        self._waiting += 1
        try:
            await self._sent.wait()
        finally:
            self._waiting -= 1

    async def cur_num_waiters(self) -> int:
        """How many calls of ``wait`` are waiting."""
        return self._waiting


class _Semaphore:
    """``value`` permits to take and give back."""

    def __init__(self, value: int = 1) -> None:
        self._semaphore = asyncio.Semaphore(value)

    async def acquire(self) -> None:
        """Take one; waits until there is one."""
        await self._semaphore.acquire()

    async def release(self) -> None:
        """Give one back."""
        self._semaphore.release()

    async def locked(self) -> bool:
        """Whether none is left."""
        return self._semaphore.locked()


SignalActor: ActorClass[_Signal] = remote(num_cpus=0)(_Signal)
"""An actor that is a gate: ``send``, ``wait``, ``cur_num_waiters``."""

Semaphore: ActorClass[_Semaphore] = remote(num_cpus=0)(_Semaphore)
"""An actor with permits: ``acquire``, ``release``, ``locked``."""
