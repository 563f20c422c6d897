"""Serial numbers of messages between two processes: what makes a repetition recognisable.

A message that must not act twice, and that nothing in it tells from its repetition, carries a
serial: the sender counts what it sends to one process, over all connections between the two. The
receiver remembers what has come. Serials are dense, so nearly always one number is enough for that:
all up to it have come. With two connections, or a repetition that is late, messages overtake each
other; then those ahead of a gap are remembered one by one until it is filled.

A process whose last connection broke is taken for dead, and its serials are forgotten on both
sides; not at the same moment, if it lives after all. So each count begins with the sender's number
of such ends: a later count makes the receiver begin anew, and what is left of an earlier one is
old.

Invariants::

    every serial <= through of this count has come;  through + 1 has not
    all of ahead > through + 1, of this count, and have come

Before this module: a decoded message. After it: the message's handler, or nobody. O(1), amortised.
"""

from __future__ import annotations

import itertools
from typing import Any, Final, TypeVar

COUNT_BITS: Final = 32
"""So many messages may one count have."""


T = TypeVar("T")


class Serials:
    """Both directions between this process and one other. ``sent`` may be taken on any thread."""

    __slots__ = ("lines", "received", "sent")

    def __init__(self, ends: int = 0) -> None:
        """``ends``: how many processes this one has taken for dead so far."""
        self.sent: itertools.count[int] = itertools.count((ends << COUNT_BITS) + 1)
        self.received: Received = Received()
        self.lines: int = 0  # open connections that share this


class Received:
    """Which serials of one sender have come. The caller serialises the calls."""

    __slots__ = ("_ahead", "_through")

    def __init__(self) -> None:
        self._through = 0
        self._ahead: set[int] = set()

    def is_new(self, serial: int) -> bool:
        """Note a serial. False: it came before, or belongs to a count that is over."""
        if serial == self._through + 1:
            self._through = serial
            if self._ahead:
                self._close_gap()
            return True
        if serial >> COUNT_BITS > self._through >> COUNT_BITS:
            self._through = serial >> COUNT_BITS << COUNT_BITS
            self._ahead.clear()
            return self.is_new(serial)
        if serial <= self._through or serial in self._ahead:
            return False
        self._ahead.add(serial)
        return True

    def new_of(self, work: list[tuple[T, Any]]) -> list[tuple[T, Any]]:
        """Those of a batch whose messages (the second of each pair) are new; notes them all."""
        if not self._ahead:
            # Nearly always they come in order and once: this loop is paid by every task.
            following = self._through + 1
            for _, message in work:
                if message.serial != following:
                    break
                following += 1
            else:
                self._through = following - 1
                return work
        return [item for item in work if self.is_new(item[1].serial)]

    def _close_gap(self) -> None:
        ahead = self._ahead
        while self._through + 1 in ahead:
            self._through += 1
            ahead.remove(self._through)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an invariant of the module's docstring is broken."""
        assert self._through + 1 not in self._ahead
        assert all(serial > self._through for serial in self._ahead)
        assert all(s >> COUNT_BITS == self._through >> COUNT_BITS for s in self._ahead)
