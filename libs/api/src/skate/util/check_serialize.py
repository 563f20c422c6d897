"""``inspect_serializability``: what inside a value can not be pickled. Source: SURFACE U5."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TextIO

from skate_worker.inspect_pickle import can_pickle, describe, find_failures

__all__ = ["FailureTuple", "inspect_serializability"]


@dataclass(frozen=True, eq=False)
class FailureTuple:
    """A part that does not pickle although each of its own parts does, or has none."""

    obj: Any
    name: str
    """How it is reached, such as ``.client`` or ``closure variable lock``."""
    parent: Any

    def __repr__(self) -> str:
        return f"FailTuple({self.name} [obj={self.obj!r}, parent={self.parent!r}])"


def inspect_serializability(
    base_obj: Any,
    name: str | None = None,
    depth: int = 3,
    print_file: TextIO | None = None,
) -> tuple[bool, set[FailureTuple]]:
    """Whether a value pickles, and if not, the parts that are the cause.

    A report goes to ``print_file``, by default standard output.

    Args:
        base_obj: Any value: a function, a class, an instance.
        name: What the report calls it.
        depth: How many steps into the value the search goes.
        print_file: Where the report is written.

    Raises:
        ValueError: ``depth`` is not positive.
    """
    if depth < 1:
        raise ValueError(f"depth must be a positive whole number, got {depth!r}.")
    out = sys.stdout if print_file is None else print_file
    called = name or describe(base_obj)
    if can_pickle(base_obj):
        print(f"{called} can be pickled.", file=out)
        return True, set()
    failures = set()
    print(f"{called} can not be pickled, because of:", file=out)
    for path, part, parent in find_failures(base_obj, depth):
        failures.add(FailureTuple(part, path[-1] if path else called, parent))
        print(f"  {' -> '.join([called, *path])}: {part!r:.200}", file=out)
    return False, failures
