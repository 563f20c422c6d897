"""A node that is to leave: whether it agrees, and when it goes.

::

    Drain --> idle termination, and busy: refused
      |
      +--> draining: no new work; what runs goes on
             |--- idle ---------> leaves: its machine is not needed
             +--- deadline -----> leaves: what still runs there is ended

Idle means: no worker is leased, no driver is connected, and the object store holds nothing that is
nowhere else. A preemption is accepted in any case, and what it ends counts as no failure of its
own. A later order replaces an earlier one.

Source: SURFACE Z9, Z4.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from skate_rpc.gen.skate.v1 import gcs_pb2

_log = logging.getLogger(__name__)

IDLE: Final = gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION
PREEMPTION: Final = gcs_pb2.DrainInfo.REASON_PREEMPTION
POLL_S: Final = 0.2
CALM_POLLS: Final = 2
"""Looks in a row at which the node must be idle: a lease that ends is often followed by another."""
_NAMES: Final = {IDLE: "it was idle", PREEMPTION: "its machine will go"}


class Draining:
    """At most one order at a time. On the daemon's loop."""

    def __init__(
        self,
        why_busy: Callable[[], str],
        begin: Callable[[], None],
        leave: Callable[[str], None],
    ) -> None:
        """Take what to ask and what to do.

        Args:
            why_busy: Why the node is not idle; empty when it is.
            begin: Give out no new work from now on.
            leave: End the node, for this reason.
        """
        self._why_busy = why_busy
        self._begin = begin
        self._leave = leave
        self._deadline_s: float | None = None
        self._task: asyncio.Task[None] | None = None
        self.order: gcs_pb2.DrainInfo | None = None
        """What was agreed to; None while the node stays."""

    @property
    def is_preempted(self) -> bool:
        """Whether what ends with the node is no failure of its own."""
        return self.order is not None and self.order.reason == PREEMPTION

    def ask(self, order: gcs_pb2.DrainInfo) -> str:
        """Begin to drain; returns why not, or nothing."""
        busy = self._why_busy()
        if order.reason == IDLE and busy:
            return f"The node is not idle: {busy}."
        self.take(order)
        return ""

    def take(self, order: gcs_pb2.DrainInfo) -> None:
        """Drain, whether idle or not: it was agreed to before."""
        if order == self.order:
            return
        self.order = order
        # The wall clock is looked at once, so that a jump of it later moves nothing.
        left_s = order.deadline_s - time.time()
        loop = asyncio.get_running_loop()
        self._deadline_s = loop.time() + left_s if order.deadline_s else None
        _log.info("event=draining reason=%d message=%r", order.reason, order.message)
        if self._task is None:
            self._begin()
            self._task = asyncio.create_task(self._wait())

    def close(self) -> None:
        """Stop waiting."""
        if self._task is not None:
            self._task.cancel()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        calm = 0
        while True:
            busy = self._why_busy()
            calm = 0 if busy else calm + 1
            if calm >= CALM_POLLS:
                self._leave(self._sentence(""))
                return
            if self._deadline_s is not None and loop.time() >= self._deadline_s:
                self._leave(self._sentence(f"; at its deadline, {busy or 'nothing ran there'}"))
                return
            await asyncio.sleep(POLL_S)

    def _sentence(self, how: str) -> str:
        assert self.order is not None
        why = self.order.message or _NAMES.get(self.order.reason, "no reason was given")
        return f"The node was drained ({why}){how}."
