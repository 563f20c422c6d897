"""The arguments of a call: values as bytes, and references that stand at the top level apart.

A reference that is itself an argument is resolved to its value before the call runs; its place in
the bytes holds None until then. A reference inside a container stays a reference.

Arguments of more than ``INLINE_TOTAL_LIMIT_BYTES`` in all become one object, at the position
``ALL_ARGUMENTS``: ten thousand lists are then one visit to the store and not ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pickle import dumps
from typing import Any, Final

from skate_worker.pickler import PROTOCOL, check_session
from skate_worker.serialization.wire import (
    Serialized,
    deserialize,
    is_plain,
    serialize,
)

Position = int | str
"""Where an argument stands: its index, or its keyword."""

EMPTY_ARGUMENTS: Final = dumps(((), {}), PROTOCOL)
INLINE_LIMIT_BYTES: Final = 100 * 1024
INLINE_TOTAL_LIMIT_BYTES: Final = 10 * 1024 * 1024
ALL_ARGUMENTS: Final = -1
assert INLINE_LIMIT_BYTES <= INLINE_TOTAL_LIMIT_BYTES

_NOTHING: Final[tuple[Any, ...]] = ()
_reference_class: type | None = None

Promote = Callable[[Serialized], Any]
Arguments = tuple[bytes, Sequence[Any], Sequence[tuple[Position, Any]]]


def register_argument_reference(cls: type) -> None:
    """Say which class is resolved at the top level: ``ObjectRef``, once at import."""
    global _reference_class  # noqa: PLW0603 - set once, by the class's own module.
    _reference_class = cls


def serialize_args(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    promote: Promote | None = None,
    subject: str = "",
) -> Arguments:
    """Serialise the arguments of one call.

    Gives the bytes, the references nested in values, and the references at the top level with
    their positions. ``promote`` stores a value of more than ``INLINE_LIMIT_BYTES``, or all of them
    together, and returns its reference, which then counts as top level; without it everything stays
    inline. ``subject`` names the call in an error.

    Raises:
        TypeError: an argument can not be pickled; the message names the path to it.
    """
    if not kwargs:
        if not args:
            return EMPTY_ARGUMENTS, _NOTHING, _NOTHING
        plain = all(map(is_plain, args))
    else:
        plain = all(map(is_plain, args)) and all(map(is_plain, kwargs.values()))
    if plain:
        data = dumps((args, kwargs), PROTOCOL)
        if promote is None or len(data) <= INLINE_LIMIT_BYTES:
            return data, _NOTHING, _NOTHING
    return _serialize_args_any(args, kwargs, promote, subject)


def deserialize_args(
    data: bytes | memoryview, resolved: Iterable[tuple[Position, Any]] = _NOTHING
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, with the values of ``resolved`` in their places.

    Raises:
        DeserializationError: see :func:`deserialize`.
    """
    if data == EMPTY_ARGUMENTS:
        return _NOTHING, {}
    values = dict(resolved)
    args, kwargs = deserialize(data) if data else values.pop(ALL_ARGUMENTS)
    if values:
        positional = list(args)
        for position, value in values.items():
            if isinstance(position, int):
                positional[position] = value
            else:
                kwargs[position] = value
        args = tuple(positional)
    return args, kwargs


def _serialize_args_any(
    args: tuple[Any, ...], kwargs: dict[str, Any], promote: Promote | None, subject: str
) -> Arguments:
    top: list[tuple[Position, Any]] = []
    positional = list(args)
    named = dict(kwargs)
    places: tuple[tuple[Any, Iterable[Any]], ...] = (
        (positional, range(len(positional))),
        (named, tuple(named)),
    )
    for container, positions in places:
        for position in positions:
            if type(container[position]) is _reference_class:
                check_session(container[position])
                top.append((position, container[position]))
                container[position] = None
    whole = serialize((tuple(positional), named), subject=subject, is_call=True)
    if promote is None or whole.total_bytes <= INLINE_LIMIT_BYTES:
        return whole.to_bytes(), whole.contained, top

    if whole.total_bytes > INLINE_TOTAL_LIMIT_BYTES:
        return b"", _NOTHING, [*top, (ALL_ARGUMENTS, promote(whole))]
    for container, positions in places:
        for position in positions:
            value = serialize(container[position], subject=subject)
            if value.total_bytes > INLINE_LIMIT_BYTES:
                top.append((position, promote(value)))
                container[position] = None
    whole = serialize((tuple(positional), named), subject=subject)
    return whole.to_bytes(), whole.contained, top
