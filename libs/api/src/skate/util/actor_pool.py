"""``ActorPool``: spread calls over a fixed set of actors. Source: SURFACE U1."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from skate.exceptions import GetTimeoutError
from skate.objects import get, wait

Submit = Callable[[Any, Any], Any]
"""``(actor, value)`` -> the reference or references of the call that it makes."""


class ActorPool:
    """Gives each actor one call at a time; what finds none free waits in order of submission.

    Not thread-safe: one thread submits and fetches.

    ::

        pool = ActorPool([Worker.remote(), Worker.remote()])
        list(pool.map(lambda actor, value: actor.double.remote(value), range(4)))  # [0, 2, 4, 6]
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        """``actors``: their handles; each may be in the pool once.

        Raises:
            ValueError: one of them twice.
        """
        self._idle: list[Any] = []
        self._calls: dict[int, tuple[Any, Any]] = {}
        """What runs, by its place in the order of submission: the result's references, the actor.
        """
        self._waiting: deque[tuple[int, Submit, Any]] = deque()
        self._submitted = 0
        self._next_in_order = 0
        for actor in actors:
            self.push(actor)

    def map(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """The results of ``fn(actor, value)`` for each value, in the order of the values.

        All of them are submitted at once. Results of earlier submissions are dropped.
        """
        self._submit_all(fn, values)
        return self._results(self.get_next)

    def map_unordered(self, fn: Submit, values: Iterable[Any]) -> Iterator[Any]:
        """As :meth:`map`, each result as soon as it is there."""
        self._submit_all(fn, values)
        return self._results(self.get_next_unordered)

    def submit(self, fn: Submit, value: Any) -> None:
        """Have an actor run ``fn(actor, value)``: now, or when one becomes free."""
        place = self._submitted
        self._submitted += 1
        if self._idle:
            self._start(self._idle.pop(), place, fn, value)
        else:
            self._waiting.append((place, fn, value))

    def has_next(self) -> bool:
        """Whether a result has not been fetched yet."""
        return bool(self._calls)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission; waits for it.

        ``timeout`` in seconds, None without end. With ``ignore_if_timedout`` a result that does
        not come in time is given up, and its actor takes the next call behind it.

        Raises:
            StopIteration: every result was fetched.
            TimeoutError: it did not come in time.
            ValueError: ``get_next_unordered`` went past it.
        """
        if not self.has_next():
            raise StopIteration("Every result of this pool was fetched.")
        place = self._next_in_order
        if place not in self._calls:
            raise ValueError(
                "get_next() can not follow get_next_unordered(), which has fetched results out of"
                " order; fetch the rest by get_next_unordered() too."
            )
        refs, _ = self._calls[place]
        if not self._is_ready(refs, timeout):
            if ignore_if_timedout:
                self._take(place)
            raise self._late(timeout, is_given_up=ignore_if_timedout)
        return get(self._take(place))

    def get_next_unordered(
        self, timeout: float | None = None, ignore_if_timedout: bool = False
    ) -> Any:
        """Any result that is there, the first that comes. Arguments and errors: :meth:`get_next`.

        With ``ignore_if_timedout`` the oldest result is given up.
        """
        if not self.has_next():
            raise StopIteration("Every result of this pool was fetched.")
        by_ref = {_first(refs): place for place, (refs, _) in self._calls.items()}
        ready, _ = wait(list(by_ref), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                self._take(next(iter(self._calls)))
            raise self._late(timeout, is_given_up=ignore_if_timedout)
        return get(self._take(by_ref[ready[0]]))

    def has_free(self) -> bool:
        """Whether an actor is idle and nothing waits."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None when there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor; it takes a call that waits.

        Raises:
            ValueError: it is in the pool.
        """
        if actor in self._idle or any(actor == busy for _, busy in self._calls.values()):
            raise ValueError(f"{actor!r} belongs to this pool already.")
        self._give_work(actor)

    def _submit_all(self, fn: Submit, values: Iterable[Any]) -> None:
        while self._calls:
            self._take(next(iter(self._calls)))
        for value in values:
            self.submit(fn, value)

    def _results(self, fetch: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield fetch()

    def _start(self, actor: Any, place: int, fn: Submit, value: Any) -> None:
        try:
            refs = fn(actor, value)
        except BaseException:
            self._idle.append(actor)
            raise
        self._calls[place] = (refs, actor)

    def _take(self, place: int) -> Any:
        refs, actor = self._calls.pop(place)
        self._next_in_order = max(self._next_in_order, place + 1)
        self._give_work(actor)
        return refs

    def _give_work(self, actor: Any) -> None:
        if self._waiting:
            self._start(actor, *self._waiting.popleft())
        else:
            self._idle.append(actor)

    def _is_ready(self, refs: Any, timeout: float | None) -> bool:
        if timeout is None:
            return True  # `get` waits, and knows more about errors.
        several = refs if isinstance(refs, list) else [refs]
        return len(wait(several, num_returns=len(several), timeout=timeout)[0]) == len(several)

    def _late(self, timeout: float | None, *, is_given_up: bool) -> GetTimeoutError:
        more = " It is given up." if is_given_up else ""
        return GetTimeoutError(f"No result of the pool came within {timeout} s.{more}")


def _first(refs: Any) -> Any:
    return refs[0] if isinstance(refs, list) else refs
