"""Streaming aggregation: sources yield events, and actors count them by key and window.

    python examples/streaming_aggregation.py

A source is a generator task: its events are used while it still runs, and it is held back when it
is too far ahead. Each key belongs to one counter, so that no two processes count the same one. A
window is finished when every source has passed it.
"""

from __future__ import annotations

import math
import random
import zlib
from collections import Counter

import skate

WINDOW_S = 10
BATCH = 20  # events that a source yields at a time
PAGES = ("home", "search", "cart", "help")


def events(seed, count):
    """``(second, page)`` pairs in the order of time."""
    draw = random.Random(seed)
    second = 0.0
    for _ in range(count):
        second += draw.expovariate(4)
        yield second, draw.choice(PAGES)


@skate.remote(num_cpus=0, _generator_backpressure_num_objects=2)
def source(seed, count):
    """Yield the events of one source in batches."""
    batch = []
    for event in events(seed, count):
        batch.append(event)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@skate.remote(num_cpus=0)
class WindowCounter:
    """Counts of its keys in each window that is not finished."""

    def __init__(self):
        self.windows = {}

    def add(self, batch):
        """Count some events."""
        for second, page in batch:
            window = int(second // WINDOW_S)
            self.windows.setdefault(window, Counter())[page] += 1

    def finish(self, before):
        """Give the counts of the windows before this one away."""
        done = sorted(window for window in self.windows if window < before)
        return {window: self.windows.pop(window) for window in done}


def main(sources=3, count=200, counters=2):
    """Counts by ``(window, page)``, in the order in which windows were finished."""
    streams = {source.remote(seed, count): 0.0 for seed in range(sources)}
    group = [WindowCounter.remote() for _ in range(counters)]
    results = {}
    while streams:
        ready, _ = skate.wait(list(streams))
        for stream in ready:
            try:
                batch = skate.get(next(stream))
            except StopIteration:
                del streams[stream]
                continue
            streams[stream] = batch[-1][0]
            for index, counter in enumerate(group):
                counter.add.remote([e for e in batch if owner(e[1], counters) == index])
        # What every source has passed can not change any more.
        before = min(streams.values()) // WINDOW_S if streams else math.inf
        for part in skate.get([counter.finish.remote(before) for counter in group]):
            for window, counts in part.items():
                results.update({(window, page): n for page, n in counts.items()})
    return results


def owner(page, counters):
    """Which counter a key belongs to: the same in every process, which ``hash`` is not."""
    return zlib.crc32(page.encode()) % counters


if __name__ == "__main__":
    skate.init()
    for (window, page), number in sorted(main().items()):
        print(f"{window * WINDOW_S:4} s  {page:8} {number}")
