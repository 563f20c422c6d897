"""Monte Carlo: estimate pi by throwing darts in parallel, until the estimate is good enough.

    python examples/monte_carlo.py

Each task has a seed of its own, so a run can be repeated. Results are taken as they come; no more
tasks are started once the standard error is small enough.
"""

from __future__ import annotations

import itertools
import math
import random

import skate
from skate.util import map_unordered

DARTS = 20_000  # a task


@skate.remote
def throw(seed):
    """How many of ``DARTS`` darts at the unit square hit the quarter of a disc."""
    draw = random.Random(seed)
    return sum(draw.random() ** 2 + draw.random() ** 2 <= 1 for _ in range(DARTS))


def main(standard_error=0.01):
    """The estimate, its standard error, and how many darts it took."""
    hits = thrown = 0
    # Seeds without end: `map_unordered` starts tasks only a few ahead of what is taken here.
    for hit in map_unordered(throw, itertools.count(), backpressure_size=4, chunk_size=1):
        hits += hit
        thrown += DARTS
        share = hits / thrown
        error = 4 * math.sqrt(share * (1 - share) / thrown)
        if error <= standard_error:
            return 4 * share, error, thrown
    raise AssertionError("the seeds do not end")


if __name__ == "__main__":
    skate.init()
    estimate, uncertainty, darts = main()
    print(f"pi = {estimate:.4f} +- {uncertainty:.4f} after {darts:,} darts")
