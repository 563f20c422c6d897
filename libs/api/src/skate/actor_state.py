"""What a handle knows of its actor's class: the methods, their options and what they take.

Made once from the class, stored with the actor by the control plane, and read back by whoever
looks the actor up by name; so it holds plain values, and exception classes by their pickle.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from skate.options import BACKPRESSURE, Options, retry_rule, returns_of, with_earlier
from skate.signature import ANYTHING, CallSignature
from skate_worker.serialization import deserialize, serialize
from skate_worker.specs import CallOptions

METHOD_ATTRIBUTE: Final = "__skate_method__"
"""Where ``@skate.method`` leaves its options on a function."""

_NOT_METHODS: Final = frozenset(
    {"__init__", "__new__", "__del__", "__init_subclass__", "__class_getitem__", "__reduce__"}
)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One method: its options as the runtime takes them, and its signature without ``self``."""

    options: CallOptions
    signature: CallSignature
    is_generator: bool = False
    is_async: bool = False
    """Whether the actor is async: all its calls run on one event loop."""

    def with_options(self, options: Options) -> MethodSpec:
        """The same method with other options for one call."""
        changed: dict[str, Any] = {
            name: options[name]
            for name in ("name", "max_task_retries", "concurrency_group")
            if name in options
        }
        if "num_returns" in options or BACKPRESSURE in options:
            changed["num_returns"] = returns_of(
                self.options.name,
                with_earlier(options, self.options.num_returns),
                is_generator=self.is_generator,
                is_async=self.is_async,
            )
        if "retry_exceptions" in options:
            changed["retry_exceptions"] = retry_rule(options)
        return replace(self, options=replace(self.options, **changed))


@dataclass(frozen=True, slots=True)
class ActorState:
    """A class as its handles see it."""

    class_name: str
    methods: dict[str, MethodSpec]
    concurrency_groups: tuple[str, ...] = ()


def describe_class(cls: type, options: Options) -> ActorState:
    """Collect the methods of a class, inherited ones too, with the defaults of these actor options.

    Raises:
        ValueError: a method names a concurrency group that the class does not have, or asks for
            a stream that it can not be.
    """
    groups = tuple(options.get("concurrency_groups", ()))
    retries: int = options.get("max_task_retries", 0)
    pending_max: int = options.get("max_pending_calls", -1)
    is_async = is_async_class(cls)
    methods = dict(_built_in_methods(cls.__name__))
    for name, function, takes_self in _functions(cls):
        given: Options = getattr(function, METHOD_ATTRIBUTE, {})
        group = given.get("concurrency_group", "")
        check_group(cls.__name__, group, groups)
        yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        full_name = f"{cls.__name__}.{name}"
        methods[name] = MethodSpec(
            CallOptions(
                method=name,
                name=full_name,
                num_returns=returns_of(full_name, given, is_generator=yields, is_async=is_async),
                max_task_retries=given.get("max_task_retries", retries),
                retry_exceptions=retry_rule(given),
                concurrency_group=group,
                pending_calls_max=pending_max,
            ),
            CallSignature.of(function, skip_first=takes_self),
            yields,
            is_async,
        )
    return ActorState(cls.__name__, methods, groups)


def check_group(class_name: str, group: str, groups: tuple[str, ...]) -> None:
    """Raise ``ValueError`` when the class has no such concurrency group."""
    if group and group not in groups:
        known = ", ".join(groups) or "none"
        raise ValueError(
            f"{class_name} has no concurrency group {group!r}; its groups are: {known}."
        )


def is_async_class(cls: type) -> bool:
    """Whether any method is ``async def``: all calls then run on one event loop."""
    return any(
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        for _, function, _ in _functions(cls)
    )


def constructor_signature(cls: type) -> CallSignature:
    """What creating the actor takes."""
    for name in ("__init__", "__new__"):
        function: Any = getattr(cls, name)
        if function is not getattr(object, name):
            return CallSignature.of(function, skip_first=True)
    return CallSignature()


def encode_state(state: ActorState) -> bytes:
    """The bytes that :func:`decode_state` reads."""
    methods = [
        (
            spec.options.method,
            spec.options.num_returns,
            spec.options.max_task_retries,
            spec.options.retry_exceptions,
            spec.options.concurrency_group,
            spec.options.pending_calls_max,
            spec.signature.to_tuple(),
            spec.is_generator,
            spec.is_async,
        )
        for spec in state.methods.values()
    ]
    plain = (state.class_name, methods, state.concurrency_groups)
    return serialize(plain, subject=f"method options of {state.class_name}").to_bytes()


@functools.lru_cache(maxsize=1024)
def decode_state(data: bytes) -> ActorState:
    """The state of an actor. Cached: every handle of a class brings the same bytes."""
    class_name, methods, groups = deserialize(data)
    return ActorState(
        class_name,
        {
            name: MethodSpec(
                CallOptions(name, f"{class_name}.{name}", returns, retries, rule, group, pending),
                CallSignature(*signature),
                is_generator,
                is_async,
            )
            for (
                name,
                returns,
                retries,
                rule,
                group,
                pending,
                signature,
                is_generator,
                is_async,
            ) in methods
        },
        groups,
    )


def _functions(cls: type) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is object:
            continue
        for name, item in vars(base).items():
            if name in seen or name in _NOT_METHODS:
                continue
            seen.add(name)
            inner = item.__func__ if isinstance(item, staticmethod | classmethod) else item
            if inspect.isfunction(inner):
                yield name, inner, not isinstance(item, staticmethod)


def _built_in_methods(class_name: str) -> Iterator[tuple[str, MethodSpec]]:
    # The functions behind these names are in `actor_builtins`.
    for name in ("ready", "call", "terminate"):
        signature = CallSignature() if name != "call" else ANYTHING
        for prefix in ("ray", "skate"):
            method = f"__{prefix}_{name}__"
            yield method, MethodSpec(CallOptions(method, f"{class_name}.{method}"), signature)
