"""The calls of one actor from one caller: their order, and what becomes of them when the actor
changes state.

::

    WAITING --update ALIVE--> CONNECTED --connection lost--> WAITING --update DEAD--> DEAD

Calls leave in the order of submission; a call whose arguments are not resolved holds back those
behind it (SURFACE A6). When the actor restarts, calls that may be retried go again, before any
later call and in their order (RELIABILITY I9); the others fail. Invariant: every call is in exactly
one of ``waiting`` and ``in_flight`` until it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Generic, TypeVar

WAITING: Final = 0
CONNECTED: Final = 1
DEAD: Final = 2

T = TypeVar("T")


class ActorCalls(Generic[T]):
    """``T`` has ``task_id``, ``attempt``, ``is_resolved`` and ``take_attempt()``."""

    __slots__ = (
        "actor_id",
        "connection",
        "in_flight",
        "incarnation",
        "is_subscribed",
        "keeper_id",
        "serials",
        "unknown",
        "state",
        "view",
        "waiting",
    )

    def __init__(self, actor_id: bytes) -> None:
        self.actor_id: bytes = actor_id
        self.state: int = WAITING
        self.incarnation: int = -1
        self.connection: Any = None
        self.serials: Iterator[int] = iter(())  # of what is sent over the connection
        self.waiting: deque[T] = deque()
        self.in_flight: dict[bytes, T] = {}
        self.view: Any = None  # the last ActorView
        self.is_subscribed: bool = False
        self.keeper_id: bytes = (
            actor_id[:8] + actor_id + b"\0\0\0\1"
        )  # the object that keeps it alive
        self.unknown: list[T] = []  # in flight when the line broke, and not to be retried

    def submit(self, call: Any) -> bool:
        """Queue a call. True: it may be sent now, and is counted as in flight."""
        if self.state == CONNECTED and not self.waiting and call.is_resolved:
            self.in_flight[call.task_id] = call
            return True
        self.waiting.append(call)
        return False

    def unfinished_count(self) -> int:
        """Calls that have not ended."""
        return len(self.waiting) + len(self.in_flight) + len(self.unknown)

    def sendable(self) -> list[T]:
        """Takes the calls that may be sent now, in order."""
        calls: list[T] = []
        if self.state == CONNECTED:
            waiting = self.waiting
            while waiting:
                first: Any = waiting[0]
                if not first.is_resolved:
                    break
                calls.append(waiting.popleft())
                self.in_flight[first.task_id] = first
        return calls

    def done_all(self, outcomes: list[Any]) -> tuple[list[tuple[T, Any]], list[Any]]:
        """Calls ended, in one batch; each outcome has ``task_id`` and ``attempt``.

        Returns the calls with their outcomes, and the outcomes of attempts that were given up
        before, or whose end is told a second time.
        """
        in_flight = self.in_flight
        finished: list[tuple[T, Any]] = []
        given_up: list[Any] = []
        for outcome in outcomes:  # paid by every call
            call: Any = in_flight.get(outcome.task_id)
            if call is None or call.attempt != outcome.attempt:
                given_up.append(outcome)
            else:
                del in_flight[outcome.task_id]
                finished.append((call, outcome))
        return finished, given_up

    def connected(self, connection: Any, incarnation: int, serials: Iterator[int]) -> None:
        """The actor lives and there is a line to it; take :meth:`sendable` next."""
        self.serials = serials
        self.state = CONNECTED
        self.connection = connection
        self.incarnation = incarnation

    def disconnected(self) -> list[T]:
        """The line broke. Returns the calls that were in flight and have no retry: they fail.

        The others wait again, before everything else and in their order.
        """
        if self.state == CONNECTED:
            self.state = WAITING
        self.connection = None
        failed: list[T] = []
        again: list[T] = []
        for call in self.in_flight.values():
            retried: Any = call
            (again if retried.take_attempt() else failed).append(call)
        self.in_flight = {}
        self.waiting.extendleft(reversed(again))
        return failed

    def died(self) -> list[T]:
        """The actor is dead for good: every call fails."""
        self.state = DEAD
        self.connection = None
        calls = [*self.in_flight.values(), *self.waiting]
        self.in_flight = {}
        self.waiting.clear()
        return calls

    def withdraw(self, task_id: bytes) -> T | None:
        """Remove a call that was not sent."""
        for call in self.waiting:
            waiting: Any = call
            if waiting.task_id == task_id:
                self.waiting.remove(call)
                return call
        return None
