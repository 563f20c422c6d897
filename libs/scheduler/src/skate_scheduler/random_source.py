"""Where a policy's randomness comes from: its caller, so that a seed repeats every decision."""

from __future__ import annotations

from typing import Protocol


class RandomSource(Protocol):
    """What policies need of a random generator; ``random.Random`` satisfies it."""

    def randrange(self, stop: int, /) -> int:
        """A number, ``0 <= number < stop``."""
        ...
