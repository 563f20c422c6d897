"""The one loop around the node's machine: events in, commands out, wake-ups kept.

Commands of one event are carried out before the next event is taken, although carrying one out may
itself bring news: that waits in a queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from skate_raylet.machine.events import TimePassed
from skate_raylet.machine.node_machine import Command, Event, NodeMachine

_log = logging.getLogger(__name__)

WAKEUP_MIN_S = 0.001  # a machine that always wants to be woken at once must not stop the loop


class NodeRunner:
    """Runs on the event loop's thread alone; ``perform`` must not block."""

    def __init__(self, machine: NodeMachine, perform: Callable[[Command], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._machine = machine
        self._perform = perform
        self._events: deque[Event] = deque()
        self._is_running = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0
        self._is_closed = False

    def tell(self, event: Event) -> None:
        """Take an event; its commands are done when this returns, unless called by a command."""
        self._events.append(event)
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._events:
                now_s = self._loop.time()
                for command in self._machine.handle(self._events.popleft(), now_s):
                    self._perform(command)
        finally:
            self._is_running = False
        self._plan_wakeup()

    def drain(self) -> None:
        """Give out nothing new."""
        for command in self._machine.drain(self._loop.time()):
            self._perform(command)
        self._plan_wakeup()

    def close(self) -> None:
        """Start no more workers and refuse who waits for one. Events are still taken."""
        for command in self._machine.close(self._loop.time()):
            self._perform(command)

    def stop(self) -> None:
        """No more wake-ups."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan_wakeup(self) -> None:
        now_s = self._loop.time()
        wakeup = self._machine.next_wakeup(now_s)
        if wakeup is None or self._is_closed:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        at_s, why = wakeup
        if self._timer is not None:
            if self._timer_at_s == at_s:
                return
            self._timer.cancel()
        self._timer_at_s = at_s
        due_s = max(at_s, now_s + WAKEUP_MIN_S)
        self._timer = self._loop.call_at(due_s, self._wake, why)

    def _wake(self, why: str) -> None:
        self._timer = None
        _log.debug("event=woken why=%r", why)
        self.tell(TimePassed())
