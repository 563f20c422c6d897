"""Waiting for a condition, with an end: what tests do instead of sleeping for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WITHIN_S = 40.0
PAUSE_S = 0.01


def wait_for(
    condition: Callable[[], T], what: str = "the condition", within_s: float = WITHIN_S
) -> T:
    """What ``condition`` gives as soon as that is true of it; fails the test after ``within_s``."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"waited in vain for {within_s:g} s: {what}"
        time.sleep(PAUSE_S)
    return value
