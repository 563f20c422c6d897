"""Questions to the processes of this node, answered from their I/O threads over the stream.

A process that does not answer in time (it is stopped, or holds the interpreter lock) is not waited
for any longer, and one that ends meanwhile is no longer asked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from skate_raylet.service.local_process import LocalProcess

LOOK_S = 0.05  # how often a process that is asked is looked at: its end is no answer, but an end

A = TypeVar("A")


class ProcessEndedError(Exception):
    """The process ended before it answered. Internal to the reporters."""


class ProcessQuestions(Generic[A]):
    """Questions of one kind, told apart by number. On the daemon's event loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._answers: dict[tuple[bytes, int], asyncio.Future[A]] = {}  # by worker id and number

    def answered(self, process: LocalProcess, number: int, answer: A) -> None:
        """A process answered, perhaps too late."""
        waiting = self._answers.get((process.worker_id, number))
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def ask(
        self, process: LocalProcess, question: Callable[[int], Any], timeout_s: float
    ) -> A:
        """Send ``question(number)`` and wait.

        Raises ``TimeoutError`` with a sentence, or :class:`ProcessEndedError`.
        """
        number = next(self._numbers)
        key = (process.worker_id, number)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        self._answers[key] = answer
        process.send(question(number))
        ends_at_s = loop.time() + timeout_s
        try:
            while not answer.done() and (left_s := ends_at_s - loop.time()) > 0:
                await asyncio.wait((answer,), timeout=min(left_s, LOOK_S))
                if process.connection.is_closed:
                    raise ProcessEndedError
            if answer.done():
                return answer.result()
        finally:
            del self._answers[key]
        raise TimeoutError(
            f"It did not answer within {timeout_s:g} s: it is stopped, is ending, or runs"
            " code that does not let other threads run."
        )
