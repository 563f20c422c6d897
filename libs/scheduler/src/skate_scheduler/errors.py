"""What is wrong with a request for resources or with a label, in one sentence.

Of resources there are two classes because Python callers expect two: a value of the wrong type is a
``TypeError``, a number that no node could hold is a ``ValueError``.
"""

from __future__ import annotations

from skate_core_ids import SkateError


class ResourceTypeError(SkateError, TypeError):
    """A resource's name or amount has the wrong type."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class ResourceValueError(SkateError, ValueError):
    """A resource's name or amount is of the right type and still impossible."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name}: {self.problem}"


class LabelError(SkateError, ValueError):
    """A label, or a condition on one, that can not be. ``key`` is empty for a whole selector."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(key, problem)
        self.key = key
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" if self.key else self.problem
