"""A call that does not fit is told where it is made, as Python itself would tell it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from skate.signature import ANYTHING, CallSignature


def no_parameters() -> None: ...
def two(a: int, b: int) -> None: ...
def default(a: int, b: int = 1) -> None: ...
def many(*items: int) -> None: ...
def one_and_many(a: int, *items: int) -> None: ...
def keywords(**items: int) -> None: ...
def keyword_only(a: int, *, b: int) -> None: ...
def keyword_default(a: int, *, b: int = 1) -> None: ...
def positional_only(a: int, b: int = 1, /, c: int = 2) -> None: ...
def positional_and_keywords(a: int, /, **more: int) -> None: ...
def everything(a: int, b: int = 1, *c: int, d: int, e: int = 2, **f: int) -> None: ...


@functools.wraps(two)
def wrapped(*args: Any, **kwargs: Any) -> None: ...


FUNCTIONS = [
    no_parameters,
    two,
    default,
    many,
    one_and_many,
    keywords,
    keyword_only,
    keyword_default,
    positional_only,
    positional_and_keywords,
    everything,
    wrapped,
]
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, 3), {}),
    ((1, 2, 3, 4), {}),
    ((), {"a": 1}),
    ((), {"b": 1}),
    ((), {"a": 1, "b": 2}),
    ((1,), {"a": 1}),
    ((1,), {"b": 1}),
    ((1, 2), {"b": 1}),
    ((1,), {"d": 1}),
    ((1,), {"c": 1}),
    ((1,), {"z": 1}),
    ((1, 2, 3), {"d": 1, "z": 2}),
]


def fits(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        # Not `Signature.bind`, which differs from a call in some versions of Python.
        inspect.unwrap(function)(*args, **kwargs)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("args", "kwargs"), ARGUMENTS)
def test_check_agrees_with_python(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    signature = CallSignature.of(function)

    accepted = fits(function, args, kwargs)

    if accepted:
        signature.check(function.__name__, args, kwargs)
    else:
        with pytest.raises(TypeError, match=function.__name__):
            signature.check(function.__name__, args, kwargs)
    is_quick = not kwargs and signature.quick_min <= len(args) <= signature.quick_max
    assert not is_quick or accepted
    assert is_quick or kwargs or not accepted


def test_method_signature_leaves_self_out() -> None:
    class Counter:
        def add(self, amount: int) -> None: ...
        def any(*args: int) -> None: ...

    CallSignature.of(Counter.add, skip_first=True).check("add", (1,), {})
    CallSignature.of(Counter.any, skip_first=True).check("any", (1, 2, 3), {})
    with pytest.raises(TypeError, match="missing 1 required argument: 'amount'"):
        CallSignature.of(Counter.add, skip_first=True).check("add", (), {})


def test_callable_without_signature_takes_anything() -> None:
    assert CallSignature.of(type) == ANYTHING
    ANYTHING.check("f", (1, 2), {"a": 3})


def test_signature_survives_the_wire() -> None:
    signature = CallSignature.of(everything)

    assert CallSignature(*signature.to_tuple()) == signature


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "text"),
    [
        (two, (1,), {}, "two() missing 1 required argument: 'b'"),
        (two, (), {}, "two() missing 2 required arguments: 'a', 'b'"),
        (two, (1, 2, 3), {}, "two() takes 2 positional arguments but 3 were given"),
        (
            default,
            (1, 2, 3),
            {},
            "default() takes from 1 to 2 positional arguments but 3 were given",
        ),
        (no_parameters, (1,), {}, "no_parameters() takes 0 positional arguments but 1 was given"),
        (two, (1, 2), {"z": 3}, "two() got an unexpected keyword argument 'z'"),
        (two, (1, 2), {"b": 3}, "two() got multiple values for argument 'b'"),
        (
            positional_only,
            (),
            {"a": 1},
            "positional_only() got a positional-only argument passed as keyword: 'a'",
        ),
    ],
)
def test_message_says_what_is_wrong(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError) as caught:
        CallSignature.of(function).check(function.__name__, args, kwargs)

    assert str(caught.value) == text
