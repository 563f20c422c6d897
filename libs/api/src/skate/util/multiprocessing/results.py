"""What a pool's calls return: results that come later, and iterators over them."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError as PoolTimeoutError
from typing import Any, Final

from skate.util.multiprocessing.dispatch import Outcome

Callback = Callable[[Any], object]
Submit = Callable[[Any, Callable[[list[Outcome]], None]], None]
"""Sends a list of calls, and has the function called with their outcomes."""

AHEAD: Final = 2  # chunks for each process that an iterator starts before they are asked for


class AsyncResult:
    """The result of ``apply_async`` or ``map_async``. Thread-safe."""

    def __init__(
        self,
        pool: object,
        pieces: int,
        is_single: bool,
        callback: Callback | None,
        error_callback: Callback | None,
    ) -> None:
        self._pool: object | None = pool  # A pool that nobody holds is terminated.
        self._pieces: list[list[Outcome] | None] = [None] * pieces
        self._missing = pieces
        self._is_single = is_single
        self._callback = callback
        self._error_callback = error_callback
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        if not pieces:
            self._finish()

    def get(self, timeout: float | None = None) -> Any:
        """The value: of ``map`` the list of all, in order.

        Raises:
            multiprocessing.TimeoutError: it did not come within ``timeout`` seconds.
            Exception: the first error of its calls.
        """
        self.wait(timeout)
        if not self.ready():
            raise PoolTimeoutError(f"The result did not come within {timeout} s.")
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is there, at most ``timeout`` seconds."""
        self._done.wait(timeout)

    def ready(self) -> bool:
        """Whether every call has ended."""
        return self._done.is_set()

    def successful(self) -> bool:
        """Whether no call raised.

        Raises:
            ValueError: it is not there yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._error is None

    def take(self, piece: int, outcomes: list[Outcome]) -> None:
        """Note the outcomes of one chunk. On the dispatcher's thread."""
        self._pieces[piece] = outcomes
        self._missing -= 1
        if not self._missing:
            self._finish()

    def _finish(self) -> None:
        outcomes = [outcome for piece in self._pieces for outcome in piece or ()]
        self._pieces = []
        self._pool = None
        errors = (value for is_good, value in outcomes if not is_good)
        self._error = next(errors, None)
        if self._error is None:
            values = [value for _, value in outcomes]
            self._value = values[0] if self._is_single else values
        try:
            # First, so that its work is done when `get` returns.
            if self._error is None and self._callback is not None:
                self._callback(self._value)
            elif self._error is not None and self._error_callback is not None:
                self._error_callback(self._error)
        finally:
            self._done.set()


class IMapUnorderedIterator:
    """Results as they come. Reads the iterable only some chunks ahead of what was taken."""

    def __init__(
        self, pool: object, chunks: Iterator[list[Any]], submit: Submit, processes: int
    ) -> None:
        self._pool = pool
        self._chunks = chunks
        self._submit = submit
        self._changed = threading.Condition()
        self._ready: deque[Outcome] = deque()
        self._running = 0
        self._started = 0
        self._is_over = False
        self._problem: BaseException | None = None
        self._limit = AHEAD * processes
        self._start_more()

    def __iter__(self) -> IMapUnorderedIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result.

        Raises:
            StopIteration: that was the last.
            multiprocessing.TimeoutError: none came within ``timeout`` seconds.
            Exception: what the call raised, or the iterable; the next result comes after it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._start_more()
            with self._changed:
                if self._ready:
                    is_good, value = self._ready.popleft()
                    break
                if not self._running:
                    problem, self._problem = self._problem, None
                    if problem is not None:
                        raise problem
                    raise StopIteration
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise PoolTimeoutError(f"No result came within {timeout} s.")
                self._changed.wait(left)
        if is_good:
            return value
        raise value

    def _start_more(self) -> None:
        while not self._is_over and self._running < self._limit and not self._has_plenty():
            try:
                calls = next(self._chunks)
            except StopIteration:
                self._is_over = True
            except Exception as error:  # noqa: BLE001 - the iterable's: raised behind what runs
                self._problem = error
                self._is_over = True
            else:
                with self._changed:
                    self._running += 1
                place = self._started
                self._started += 1
                self._submit(calls, functools.partial(self._take, place))

    def _has_plenty(self) -> bool:
        return len(self._ready) >= self._limit

    def _take(self, place: int, outcomes: list[Outcome]) -> None:
        with self._changed:
            self._running -= 1
            self._arrange(place, outcomes)
            self._changed.notify_all()

    def _arrange(self, place: int, outcomes: list[Outcome]) -> None:
        self._ready.extend(outcomes)


class IMapIterator(IMapUnorderedIterator):
    """Results in the order of the iterable."""

    def __init__(
        self, pool: object, chunks: Iterator[list[Any]], submit: Submit, processes: int
    ) -> None:
        self._early: dict[int, list[Outcome]] = {}
        self._next_place = 0
        super().__init__(pool, chunks, submit, processes)

    def _has_plenty(self) -> bool:
        return len(self._ready) + len(self._early) >= self._limit

    def _arrange(self, place: int, outcomes: list[Outcome]) -> None:
        self._early[place] = outcomes
        while self._next_place in self._early:
            self._ready.extend(self._early.pop(self._next_place))
            self._next_place += 1
