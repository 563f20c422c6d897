"""A pipeline with backpressure: a fast producer waits for the slow stages behind it.

    python examples/pipeline.py

    read  --queue of DEPTH-->  transform x 2  --queue of DEPTH-->  write

Each queue holds a few items at most, so memory stays bounded however long the input is. A stage
that is done says so by an end mark for each reader of the next queue.
"""

from __future__ import annotations

import skate
from skate.util.queue import Queue

DEPTH = 4
TRANSFORMERS = 2
END = None


@skate.remote(num_cpus=0)
def read(count, out):
    """Make the items; returns how many were ahead of the transformers at most."""
    ahead = 0
    for number in range(count):
        out.put(number)  # waits while the queue is full
        ahead = max(ahead, out.qsize())
    for _ in range(TRANSFORMERS):
        out.put(END)
    return ahead


@skate.remote(num_cpus=0)
def transform(source, out):
    """Square each item; returns how many this one did."""
    done = 0
    while (number := source.get()) is not END:
        out.put((number, number * number))
        done += 1
    out.put(END)
    return done


@skate.remote(num_cpus=0)
def write(source):
    """Collect the results in the order of the input."""
    results = {}
    open_stages = TRANSFORMERS
    while open_stages:
        item = source.get()
        if item is END:
            open_stages -= 1
        else:
            results[item[0]] = item[1]
    return [results[number] for number in sorted(results)]


def main(count=40):
    """The results, how many each transformer did, and the most items that waited for them."""
    raw, squared = Queue(maxsize=DEPTH), Queue(maxsize=DEPTH)
    ahead = read.remote(count, raw)
    done = [transform.remote(raw, squared) for _ in range(TRANSFORMERS)]
    results = skate.get(write.remote(squared))
    return results, skate.get(done), skate.get(ahead)


if __name__ == "__main__":
    skate.init()
    written, shares, waiting = main()
    print(f"{len(written)} items, by transformer {shares}; at most {waiting} waited")
