"""What a task that yields returns, as the one number that options and messages carry.

A number of returns from zero up means so many plain values. Below zero it means a generator::

    -(4 * count + kind)     kind 1  streaming, at most `count` items unconsumed (0: no bound)
                            kind 2  dynamic: one reference to all items' references
                            kind 3  static: the first `count` items, one reference each

So the messages and the checks of ordinary tasks are the same as if generators did not exist.
"""

from __future__ import annotations

from typing import Final

STREAMING: Final = 1
DYNAMIC: Final = 2
STATIC: Final = 3
ITEMS_MAX: Final = 100_000_000
"""The most items of one generator; SURFACE G10."""

_KINDS: Final = 4


def encode_returns(kind: int, count: int = 0) -> int:
    """The number that stands for a generator's returns."""
    return -(count * _KINDS + kind)


def decode_returns(num_returns: int) -> tuple[int, int]:
    """``(kind, count)`` of a number below zero."""
    count, kind = divmod(-num_returns, _KINDS)
    return kind, count


def references_of(num_returns: int) -> int:
    """How many references (or generators of them) the caller gets."""
    if num_returns >= 0:
        return num_returns
    kind, count = decode_returns(num_returns)
    return count if kind == STATIC else 1
