"""``async def`` functions as tasks: a plain function around each, which runs its own event loop.

Ray refuses them. What is written to an event loop inside (``await ref``, ``asyncio.gather``,
``asyncio.timeout``) works as in an async actor, and a task that awaits references lends its CPU.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any


class _Runs:
    """A callable in the function's name. Pickled with the function, by value if that is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # subclasses are called

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.function,)


class CoroutineTask(_Runs):
    """Returns what the coroutine returns."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run in a worker."""
        from skate_worker.async_tasks import run_coroutine  # noqa: PLC0415 - for workers alone

        return run_coroutine(self.function(*args, **kwargs))


class GeneratorTask(_Runs):
    """Yields what the asynchronous generator yields."""

    def __call__(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        """Run in a worker."""
        from skate_worker.async_tasks import run_generator  # noqa: PLC0415 - for workers alone

        yield from run_generator(self.function(*args, **kwargs))


def runnable(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a worker calls: the function itself, unless it is asynchronous."""
    if inspect.iscoroutinefunction(function):
        return CoroutineTask(function)
    if inspect.isasyncgenfunction(function):
        return GeneratorTask(function)
    return function


def yields(function: Callable[..., Any]) -> bool:
    """Whether it is a generator function, asynchronous or not."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
