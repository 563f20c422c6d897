"""A tree of actors: each makes its children, and asks them before it answers.

    python examples/actor_tree.py

The leaves hold numbers; every node above knows a summary of what is below it. Only the root is
known here, and when its handle goes, the whole tree ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import skate


@dataclass(frozen=True)
class Summary:
    """Of all numbers below a node."""

    count: int
    total: float
    largest: float

    def __add__(self, other):
        return Summary(
            self.count + other.count,
            self.total + other.total,
            max(self.largest, other.largest),
        )


@skate.remote
class Node:
    """Holds numbers itself when they are few, and gives them to children when they are many."""

    def __init__(self, numbers, fan_out, leaf_size):
        self.numbers = numbers
        self.children = []
        if len(numbers) > leaf_size:
            parts = (numbers[start::fan_out] for start in range(fan_out))
            self.children = [Node.remote(part, fan_out, leaf_size) for part in parts]
            self.numbers = []

    def summarize(self):
        """Of what is at this node and below; the children work at the same time."""
        if self.children:
            first, *rest = skate.get([child.summarize.remote() for child in self.children])
            return sum(rest, first)
        return Summary(len(self.numbers), sum(self.numbers), max(self.numbers))

    def size(self):
        """How many actors the tree has from here on."""
        return 1 + sum(skate.get([child.size.remote() for child in self.children]))


def main(numbers=range(1000), fan_out=3, leaf_size=200):
    """The summary of the numbers, and how many actors held them."""
    root = Node.remote(list(numbers), fan_out, leaf_size)
    return skate.get(root.summarize.remote()), skate.get(root.size.remote())


if __name__ == "__main__":
    skate.init()
    summary, actors = main()
    print(f"{summary} from {actors} actors")
