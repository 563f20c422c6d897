"""Facts about a node as key-value pairs, and selectors that ask for them.

A selector is a conjunction of *expressions*, one for each key::

    {"zone": "a"}          the label is there and is "a"
    {"zone": "!a"}         it is not "a"; a node without the label matches
    {"zone": "in(a,b)"}    it is there and is one of these
    {"zone": "!in(a,b)"}   it is none of these; a node without the label matches

Comes after the call site, which has the selector's text checked, and before a policy, which asks
:meth:`LabelSelector.matches` of each node's view.

Source: SURFACE rows L5, L6, L8; the syntax of keys and values is that of Kubernetes labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from skate_scheduler.errors import LabelError

RESERVED_PREFIX: Final = "ray.io/"  # labels that a node gives itself; the name that programs know
NODE_ID_LABEL: Final = RESERVED_PREFIX + "node-id"
KEY_LENGTH_MAX: Final = 253 + 1 + 63
VALUES_MAX: Final = 1000  # in one expression
EXPRESSIONS_MAX: Final = 1000  # in one selector

_NAME: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
_DNS_LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_PREFIX: Final = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")
_PREFIX_LENGTH_MAX: Final = 253
_LIST: Final = re.compile(r"in\((.*)\)")


Condition = tuple[str, int, tuple[str, ...]]
"""An expression in a message: key, number of the operator, values."""


class LabelOperator(IntEnum):
    """What an expression says of a label. The numbers are those of gcs.proto."""

    IN = 1  # it is there, with one of the values
    NOT_IN = 2  # it is not there, or has another value
    EXISTS = 3
    DOES_NOT_EXIST = 4


@dataclass(frozen=True, slots=True)
class LabelExpression:
    """One condition on one label. ``values`` is sorted; empty unless IN or NOT_IN."""

    key: str
    operator: LabelOperator
    values: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, key: object, operator: LabelOperator, values: Iterable[object] = ()
    ) -> LabelExpression:
        """A checked expression. Raises :class:`LabelError`."""
        name = check_key(key)
        checked = {check_value(name, value) for value in values}
        if operator in (LabelOperator.IN, LabelOperator.NOT_IN):
            if not 1 <= len(checked) <= VALUES_MAX:
                raise LabelError(name, f"a list has 1 to {VALUES_MAX} values, got {len(checked)}.")
        elif checked:
            raise LabelError(name, "whether a label exists is asked without values.")
        return cls(name, operator, tuple(sorted(checked)))

    def to_tuple(self) -> Condition:
        """The form that messages carry."""
        return (self.key, int(self.operator), self.values)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels fulfils the condition."""
        match self.operator:
            case LabelOperator.IN:
                return labels.get(self.key) in self.values
            case LabelOperator.NOT_IN:
                return labels.get(self.key) not in self.values
            case LabelOperator.EXISTS:
                return self.key in labels
            case LabelOperator.DOES_NOT_EXIST:
                return self.key not in labels

    def __str__(self) -> str:
        """For people: ``zone is a or b``."""
        values = " or ".join(self.values)
        match self.operator:
            case LabelOperator.IN:
                return f"{self.key} is {values}"
            case LabelOperator.NOT_IN:
                return f"{self.key} is not {values}"
            case LabelOperator.EXISTS:
                return f"{self.key} is there"
            case LabelOperator.DOES_NOT_EXIST:
                return f"{self.key} is not there"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Conditions that must all hold; none of them: every node matches. Sorted by key, hashable."""

    expressions: tuple[LabelExpression, ...] = ()

    @classmethod
    def parse(cls, selector: Mapping[str, str]) -> LabelSelector:
        """From the form that people write (see the module).

        Raises:
            LabelError: a key or a value that no label could have, or an unknown form.
        """
        if not isinstance(selector, Mapping):
            raise LabelError("", f"a selector is a dict of strings, not {type(selector).__name__}.")
        return cls.of(_parse_one(key, text) for key, text in selector.items())

    @classmethod
    def of(cls, expressions: Iterable[LabelExpression]) -> LabelSelector:
        """From expressions, in any order. Raises :class:`LabelError` when there are too many."""
        ordered = tuple(
            sorted(set(expressions), key=lambda one: (one.key, one.operator, one.values))
        )
        if len(ordered) > EXPRESSIONS_MAX:
            raise LabelError("", f"a selector has at most {EXPRESSIONS_MAX} conditions.")
        return cls(ordered)

    @classmethod
    def from_tuples(cls, conditions: Iterable[Condition]) -> LabelSelector:
        """From the form that messages carry. Raises :class:`LabelError`."""
        expressions = []
        for key, operator, values in conditions:
            if operator not in LabelOperator.__members__.values():
                raise LabelError(key, f"{operator} is no operator of conditions on labels.")
            expressions.append(LabelExpression.of(key, LabelOperator(operator), values))
        return cls.of(expressions)

    def to_tuples(self) -> tuple[Condition, ...]:
        """The form that messages carry."""
        return tuple(expression.to_tuple() for expression in self.expressions)

    def __bool__(self) -> bool:
        return bool(self.expressions)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels fulfils every condition. O(conditions)."""
        return all(expression.matches(labels) for expression in self.expressions)

    def __str__(self) -> str:
        """For people: ``zone is a and disk is not hdd``, or ``anything``."""
        return " and ".join(map(str, self.expressions)) or "anything"


ANY_NODE: Final = LabelSelector()


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise :class:`LabelError` unless a node may have these labels by its user's wish."""
    for key, value in labels.items():
        name = check_key(key)
        if name.startswith(RESERVED_PREFIX):
            raise LabelError(name, f"labels that begin with {RESERVED_PREFIX} are set by the node.")
        check_value(name, value)


def check_key(key: object) -> str:
    """A label's key: a name of at most 63 characters, with an optional DNS prefix and ``/``.

    Raises :class:`LabelError`.
    """
    if not isinstance(key, str):
        raise LabelError(str(key), f"a label's key is a string, not {type(key).__name__}.")
    prefix, slash, name = key.rpartition("/")
    is_prefix_fine = not slash or (
        len(prefix) <= _PREFIX_LENGTH_MAX and _PREFIX.fullmatch(prefix) is not None
    )
    if not is_prefix_fine or _NAME.fullmatch(name) is None:
        raise LabelError(
            key[:KEY_LENGTH_MAX],
            "a label's key has at most 63 letters, digits, '-', '_' and '.', begins and ends with a"
            " letter or digit, and may follow a DNS name of at most 253 characters and '/'.",
        )
    return key


def check_value(key: str, value: object) -> str:
    """A label's value: like the name in a key, or empty. Raises :class:`LabelError`."""
    if not isinstance(value, str):
        raise LabelError(key, f"a label's value is a string, not {type(value).__name__}.")
    if value and _NAME.fullmatch(value) is None:
        raise LabelError(
            key,
            "a label's value has at most 63 letters, digits, '-', '_' and '.', and begins and ends"
            f" with a letter or digit, got {value[:80]!r}.",
        )
    return value


def _parse_one(key: object, text: object) -> LabelExpression:
    name = check_key(key)
    if not isinstance(text, str):
        raise LabelError(name, f"a condition is a string, not {type(text).__name__}.")
    positive = text.removeprefix("!")
    operator = LabelOperator.IN if positive == text else LabelOperator.NOT_IN
    listed = _LIST.fullmatch(positive)
    if listed is not None:
        values = [value.strip() for value in listed[1].split(",")]
        if "" in values:
            raise LabelError(name, f"a list has a value between its commas, got {text[:80]!r}.")
        return LabelExpression.of(name, operator, values)
    if not positive and text:
        raise LabelError(name, "'!' needs a value after it.")
    try:
        return LabelExpression.of(name, operator, (positive,))
    except LabelError:
        raise LabelError(
            name, f"a condition is 'v', '!v', 'in(a,b)' or '!in(a,b)', got {text[:80]!r}."
        ) from None
