"""``RemoteFunction``: what ``@skate.remote`` makes of a function.

Everything that does not change from call to call is computed when the function is first used in a
session, so that a call checks its arguments by two comparisons and goes straight to the runtime.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from skate.async_function import runnable, yields
from skate.options import (
    BACKPRESSURE,
    DEFAULT_TASK_RETRIES,
    Options,
    check_task_options,
    is_single,
    placement_of,
    resources_of,
    retry_rule,
    returns_of,
)
from skate.runtime_env import check_runtime_env, merge
from skate.session import base_env_vars, require_session
from skate.signature import CallSignature
from skate_worker.current import current_core
from skate_worker.specs import TaskOptions

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker
    from skate_worker.object_ref import ObjectRef
    from skate_worker.object_ref_generator import ObjectRefGenerator

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class RemoteFunction(Generic[P, R_co]):
    """A function that runs as a task. Call it by :meth:`remote`; it is never called directly."""

    __name__: str
    __wrapped__: Callable[P, R_co]

    def __init__(self, function: Callable[P, R_co], options: Options) -> None:
        _returns_of(function, options)
        self._set(_Exported(function), options)

    def _set(self, exported: _Exported, options: Options) -> None:
        # First, because it copies the function's own attributes.
        functools.update_wrapper(self, exported.function)
        self._exported = exported
        self._options = options
        self._signature: CallSignature | None = None
        # What `remote` reads. The session is known by its worker id object, which no other one
        # shares.
        self._session: object = None
        self._function_id = b""
        self._task_options = TaskOptions("")
        self._is_single = True
        self._quick_min = self._quick_max = 0

    # A task takes values or references to values, which ParamSpec can not say: so first come the
    # function's own parameters, for those who write a call, then anything, for references. What a
    # function gives that yields or is a coroutine is told by the narrower signatures before.
    @overload
    def remote(
        self: RemoteFunction[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRef[T]: ...
    @overload
    def remote(  # type: ignore[overload-overlap]
        self: RemoteFunction[P, AsyncIterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(  # type: ignore[overload-overlap]
        self: RemoteFunction[P, Iterator[T]], *args: P.args, **kwargs: P.kwargs
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R_co]: ...
    @overload
    def remote(
        self: RemoteFunction[P, Coroutine[Any, Any, T]], *args: Any, **kwargs: Any
    ) -> ObjectRef[T]: ...
    @overload
    def remote(
        self: RemoteFunction[P, AsyncIterator[T]], *args: Any, **kwargs: Any
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(
        self: RemoteFunction[P, Iterator[T]], *args: Any, **kwargs: Any
    ) -> ObjectRefGenerator[T]: ...
    @overload
    def remote(self, *args: Any, **kwargs: Any) -> ObjectRef[R_co]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Submit a task; returns a reference to its result at once.

        With ``num_returns=n`` a list of n references, with 0 None. A generator function gives an
        ``ObjectRefGenerator``, whose references are ready as the task yields. An argument that is
        a reference is replaced by its value before the task starts.

        Raises:
            TypeError: the arguments do not fit the function, or can not be pickled.
        """
        core = current_core()
        if core is None or core.binding is not self._session:
            core = self._bind()
        if kwargs or not self._quick_min <= len(args) <= self._quick_max:
            self._check_arguments(args, kwargs)
        refs = core.submit_task(self._function_id, args, kwargs, self._task_options)
        if self._is_single:
            return refs[0]
        return refs or None  # A list by the caller's own wish.

    def options(self, **options: Any) -> RemoteFunction[P, R_co]:
        """The same function with other options; this one stays as it is.

        Raises:
            TypeError, ValueError: an option that does not exist or has a wrong value.
        """
        checked = check_task_options(options, is_decoration=False)
        merged = {**self._options, **checked}
        if checked.get("num_returns", "streaming") != "streaming" and BACKPRESSURE not in checked:
            merged.pop(BACKPRESSURE, None)
        _returns_of(self._exported.function, merged)
        made: RemoteFunction[P, R_co] = RemoteFunction.__new__(RemoteFunction)
        made._set(self._exported, merged)
        return made

    def _remote(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        target = self.options(**options) if options else self
        return target.remote(*args, **(kwargs or {}))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> NoReturn:
        """Refuse: the function only runs as a task, by :meth:`remote`."""
        name = self._exported.name
        raise TypeError(
            f"The remote function {name} can not be called directly: instead of {name}(...),"
            f" write {name}.remote(...)."
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self._exported.name})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (), (self._exported.function, self._options)

    def __setstate__(self, state: tuple[Callable[P, R_co], Options]) -> None:
        # In a recursive function this runs before the function is filled: nothing may look inside
        # it.
        self._set(_Exported(state[0]), state[1])

    def _bind(self) -> CoreWorker:
        core = require_session()
        exported = self._exported
        if self._signature is None:
            functools.update_wrapper(self, exported.function)
            self._signature = CallSignature.of(exported.function)
            self._quick_min = self._signature.quick_min
            self._quick_max = self._signature.quick_max
        self._function_id = exported.id_in(core)
        self._task_options = _task_options(exported, self._options, core)
        self._is_single = is_single(self._task_options.num_returns)
        self._session = core.binding
        return core

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._signature is not None
        self._signature.check(self._exported.name, args, kwargs)


class _Exported:
    """A function and its id in the function table of the latest session that used it."""

    __slots__ = ("_id", "_session", "function")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._session: object = None
        self._id = b""

    @property
    def name(self) -> str:
        """The function's name as its user knows it."""
        return self.function.__qualname__.rpartition("<locals>.")[2]

    def id_in(self, core: CoreWorker) -> bytes:
        """The id in this session; pickles and stores the function on first use there."""
        if self._session is not core.worker_id:
            self._id = core.export(runnable(self.function))
            self._session = core.worker_id
        return self._id


def _blank() -> RemoteFunction[..., Any]:
    return RemoteFunction.__new__(RemoteFunction)


def _returns_of(function: Callable[..., Any], options: Options) -> int:
    return returns_of(function.__qualname__, options, is_generator=yields(function))


def _task_options(exported: _Exported, options: Options, core: CoreWorker) -> TaskOptions:
    max_calls = options.get("max_calls")
    if max_calls is None:
        max_calls = 1 if options.get("num_gpus") else 0
    resources = resources_of(options, default_cpus=1)
    return TaskOptions(
        name=options.get("name", exported.name),
        num_returns=_returns_of(exported.function, options),
        resources=resources,
        max_retries=options.get("max_retries", DEFAULT_TASK_RETRIES),
        retry_exceptions=retry_rule(options),
        env_vars=merge(base_env_vars(), check_runtime_env(options.get("runtime_env"))),
        max_calls=max_calls,
        strategy=placement_of(options, core, resources, f"The task {exported.name}"),
    )
