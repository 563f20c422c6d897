"""Whether what clients saw of one key could have happened one operation after the other.

A history is linearizable if each operation can be given a moment between its call and its answer,
so that all answers are those of one register that is changed at these moments. An operation whose
fate was not told may have happened at any time after its call, or not at all. Keys are independent
of each other, so each has a history of its own.

Source: Wing and Gong, Testing and Verifying Concurrent Objects (1993); what was tried is remembered
as in Lowe, Testing for Linearizability (2017). The worst case is exponential in the operations that
overlap: keep histories small, with few whose fate is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = math.inf
"""The end of an operation whose fate was not told."""


@dataclass(frozen=True)
class Operation:
    """One call of one client. Times by one clock."""

    kind: str
    """``put``: store; ``add``: store if there is none; ``delete``; ``get``."""
    argument: bytes | None
    answer: object
    """Of ``put`` and ``add`` whether it was stored, of ``delete`` how many, of ``get`` what."""
    began_s: float
    ended_s: float


def is_linearizable(history: Sequence[Operation], value: bytes | None = None) -> bool:
    """Whether there is such an order, from a key that holds ``value`` (None: nothing)."""
    operations = sorted(history, key=lambda one: one.began_s)
    told = sum(1 << at for at, one in enumerate(operations) if one.ended_s is not UNKNOWN)
    seen: set[tuple[int, bytes | None]] = set()
    trials: list[tuple[int, bytes | None]] = [(0, value)]
    while trials:
        done, value = trials.pop()
        if done & told == told:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        left = [(at, one) for at, one in enumerate(operations) if not done >> at & 1]
        first_end_s = min(one.ended_s for _, one in left)
        for at, one in left:
            if one.began_s > first_end_s:
                break  # another one had ended before it began
            answer, after = _apply(one, value)
            if one.ended_s is UNKNOWN or answer == one.answer:
                trials.append((done | 1 << at, after))
    return False


def _apply(operation: Operation, value: bytes | None) -> tuple[object, bytes | None]:
    """What a register that holds ``value`` answers, and holds then."""
    match operation.kind:
        case "put":
            return True, operation.argument
        case "add":
            return (True, operation.argument) if value is None else (False, value)
        case "delete":
            return int(value is not None), None
        case "get":
            return value, value
        case _:
            raise ValueError(f"{operation.kind!r} is no kind of operation")
