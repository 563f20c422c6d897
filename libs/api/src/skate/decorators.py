"""``@skate.remote`` and ``@skate.method``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from skate.actor_class import ActorClass
from skate.actor_state import METHOD_ATTRIBUTE
from skate.method_types import MethodDecorator, MethodDescriptor
from skate.options import (
    ACTOR_OPTIONS,
    TASK_OPTIONS,
    DecoratorError,
    Options,
    check_actor_options,
    check_method_options,
    check_task_options,
    unknown_option,
)
from skate.remote_function import RemoteFunction

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class RemoteDecorator(Protocol):
    """What ``@skate.remote(num_cpus=2)`` is applied as."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # A class is callable too, and comes first.
        self, target: type[T], /
    ) -> ActorClass[T]: ...
    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def remote(  # type: ignore[overload-overlap]  # A class is callable too, and comes first.
    target: type[T], /
) -> ActorClass[T]: ...
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> RemoteDecorator: ...
def remote(*target: Any, **options: Any) -> Any:
    """Make a function a task, or a class an actor.

    Use it bare (``@skate.remote``), with keyword options (``@skate.remote(num_cpus=2)``), or as a
    function (``skate.remote(f)``).

    Raises:
        TypeError, ValueError: wrong options, or something that is neither function nor class.
    """
    if len(target) == 1 and not options:
        return _make(target[0], {})
    if target or not options:
        raise DecoratorError(
            "The decorator is written @skate.remote without parentheses, or with keyword options"
            " only, such as @skate.remote(num_cpus=2)."
        )
    for name in options:
        if name not in TASK_OPTIONS and name not in ACTOR_OPTIONS:
            raise ValueError(unknown_option("skate.remote", name, {*TASK_OPTIONS, *ACTOR_OPTIONS}))
    if options.keys() <= TASK_OPTIONS.keys() and not options.keys() <= ACTOR_OPTIONS.keys():
        check_task_options(options, is_decoration=True)
    return lambda decorated: _make(decorated, options)


def _make(target: Any, options: Options) -> Any:
    if inspect.isclass(target):
        return ActorClass(target, check_actor_options(options, is_decoration=True))
    if inspect.isfunction(target) or _is_compiled_function(target):
        return RemoteFunction(target, check_task_options(options, is_decoration=True))
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is decorated already; use its .options() to change options.")
    raise TypeError(
        f"@skate.remote is applied to a function or a class, not to {type(target).__name__}."
    )


def _is_compiled_function(target: Any) -> bool:
    # Cython's functions are no functions for `inspect`, but have code and a name like one.
    return callable(target) and hasattr(target, "__code__") and hasattr(target, "__qualname__")


@overload
def method(function: Callable[Concatenate[S, P], R], /) -> MethodDescriptor[S, P, R]: ...
@overload
def method(*, num_returns: int | str, **options: Any) -> Callable[[F], F]: ...
@overload
def method(**options: Any) -> MethodDecorator: ...
def method(*function: Any, **options: Any) -> Any:
    """Give an actor's method its own options, for example ``@skate.method(num_returns=2)``.

    Bare, it changes nothing but what type checkers know: see :func:`skate.actor.typed`.

    Raises:
        DecoratorError: an unknown option, or positional arguments.
        TypeError, ValueError: an option with a wrong value.
    """
    if len(function) == 1 and not options and callable(function[0]):
        return function[0]
    if function or not options:
        raise DecoratorError(
            "The decorator is written @skate.method, or with keyword options only, such as"
            " @skate.method(num_returns=2)."
        )
    checked = check_method_options(options)

    def decorate(decorated: F) -> F:
        inner = (
            decorated.__func__ if isinstance(decorated, staticmethod | classmethod) else decorated
        )
        setattr(inner, METHOD_ATTRIBUTE, checked)
        return decorated

    return decorate
