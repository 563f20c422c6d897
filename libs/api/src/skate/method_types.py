"""What a type checker sees of an actor's methods that ``@skate.method`` decorates. Never made.

Python's types can not say "a handle has the methods of its class, each called by ``.remote``". They
can say what one method is: so a decorated method is, to a checker, something that is called inside
its class as it was written, and has a ``remote`` that gives references. ``skate.actor.typed`` then
shows a handle as an instance of its class.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

if TYPE_CHECKING:
    from skate_worker.object_ref import ObjectRef
    from skate_worker.object_ref_generator import ObjectRefGenerator

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
T = TypeVar("T")


class TypedMethod(Generic[P, R_co]):
    """A method as an instance has it. Arguments of ``remote`` may be references instead."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call it inside the actor."""
        raise NotImplementedError

    @overload
    def remote(
        self: TypedMethod[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRef[T]: ...
    @overload
    def remote(  # type: ignore[overload-overlap]  # the narrower first
        self: TypedMethod[P, AsyncIterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(  # type: ignore[overload-overlap]  # the narrower first
        self: TypedMethod[P, Iterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R_co]: ...
    @overload
    def remote(
        self: TypedMethod[P, Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> ObjectRef[T]: ...
    @overload
    def remote(
        self: TypedMethod[P, AsyncIterator[T]], *args: Any, **kwargs: Any
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(
        self: TypedMethod[P, Iterator[T]], *args: Any, **kwargs: Any
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call it from outside: gives a reference to its result, or a stream of references."""
        raise NotImplementedError

    def options(self, **options: Any) -> TypedMethod[P, R_co]:
        """The same method with other options for the next call."""
        raise NotImplementedError


class MethodDescriptor(Generic[S, P, R_co]):
    """A method as its class has it."""

    @overload
    def __get__(
        self, instance: None, owner: type | None = None, /
    ) -> Callable[Concatenate[S, P], R_co]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> TypedMethod[P, R_co]: ...
    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        """Find it on the class, or on an instance."""
        raise NotImplementedError


class MethodDecorator(Protocol):
    """What ``@skate.method(max_task_retries=3)`` is applied as."""

    def __call__(self, method: Callable[Concatenate[S, P], T], /) -> MethodDescriptor[S, P, T]:
        """Decorate a method."""
