"""A dynamic task graph: targets are built from others, which are found out while building.

    python examples/task_graph.py

Like ``make``, but what a target needs is known only when its recipe is read, and recipes are read
by tasks. Each target is built once, as soon as what it needs is there; independent ones are built
at the same time.
"""

from __future__ import annotations

import skate

# A recipe is what a target is made of: other targets, or plain numbers.
RECIPES = {
    "report": ["summary", "chart"],
    "summary": ["clean", 10],
    "chart": ["clean", "colours"],
    "clean": ["raw", 1],
    "raw": [100, 200],
    "colours": [3],
}


@skate.remote
def read_recipe(target):
    """What a target needs."""
    return RECIPES[target]


@skate.remote
def build(target, *parts):
    """Make a target of its parts: here their sum, and the order in which it came about."""
    value = sum(part["value"] if isinstance(part, dict) else part for part in parts)
    history = [made for part in parts if isinstance(part, dict) for made in part["history"]]
    return {"value": value, "history": [*dict.fromkeys(history), target]}


class Builder:
    """Knows a reference for each target that was asked for."""

    def __init__(self):
        self.built = {}

    def target(self, name):
        """A reference to the target; it is started on the first call."""
        if name not in self.built:
            needs = skate.get(read_recipe.remote(name))
            # References are handed on as they are: the build starts when they have values.
            parts = [self.target(need) if isinstance(need, str) else need for need in needs]
            self.built[name] = build.remote(name, *parts)
        return self.built[name]


def main(target="report"):
    """The target's value, the order of its history, and how many builds there were."""
    builder = Builder()
    made = skate.get(builder.target(target))
    return made["value"], made["history"], len(builder.built)


if __name__ == "__main__":
    skate.init()
    value, history, builds = main()
    print(f"report = {value}, built as {' -> '.join(history)} in {builds} builds")
