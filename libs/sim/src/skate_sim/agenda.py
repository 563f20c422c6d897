"""The one clock of a simulated cluster, and what is to happen when.

Everything that takes time is an alarm here: a message that arrives, a timer of a machine, a task
that ends, a fault. Alarms of one moment go off in the order in which they were set, so a run is a
function of its seed alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Alarm:
    """One thing that is to happen. ``at_s`` is when, in simulated seconds."""

    __slots__ = ("args", "at_s", "callback")

    def __init__(self, at_s: float, callback: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.at_s = at_s
        self.callback: Callable[..., Any] | None = callback
        self.args = args

    def cancel(self) -> None:
        """Have it not happen. Idempotent."""
        self.callback = None


class Agenda:
    """Simulated seconds since the start, and the alarms. O(log alarms) each."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Alarm]] = []
        self._count = 0

    def at(self, at_s: float, callback: Callable[..., Any], *args: Any) -> Alarm:
        """Call back at this moment; a moment that has passed means now."""
        alarm = Alarm(max(at_s, self.now_s), callback, args)
        self._count += 1
        heapq.heappush(self._heap, (alarm.at_s, self._count, alarm))
        return alarm

    def after(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> Alarm:
        """Call back when so much time has passed."""
        return self.at(self.now_s + delay_s, callback, *args)

    def run_until(self, end_s: float, is_done: Callable[[], bool] | None = None) -> bool:
        """Let everything happen up to ``end_s``, or until ``is_done``. Returns whether it is done.

        Without ``is_done`` the whole time passes, and the answer is True.
        """
        heap = self._heap
        while heap and heap[0][0] <= end_s:
            if is_done is not None and is_done():
                return True
            at_s, _, alarm = heapq.heappop(heap)
            callback = alarm.callback
            if callback is None:
                continue
            self.now_s = at_s
            callback(*alarm.args)
        if is_done is not None and is_done():
            return True
        self.now_s = max(self.now_s, end_s)
        return is_done is None
