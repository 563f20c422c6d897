"""Options of tasks, actors and calls: every value checked where it is given, one sentence an error.

Checks run at decoration and at ``.options(...)``, never on the way of a call. An option that this
version can not honour is refused, unless its value asks for nothing.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from skate.runtime_env import check_runtime_env
from skate_scheduler import CPU, GPU, MEMORY, request_units
from skate_worker.generator_returns import (
    DYNAMIC,
    STATIC,
    STREAMING,
    decode_returns,
    encode_returns,
    references_of,
)

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker
    from skate_worker.specs import Strategy

Options = dict[str, Any]
Check = Callable[[str, Any], None]
Amounts = tuple[tuple[str, int], ...]

DEFAULT_TASK_RETRIES: Final = 3
DEFAULT_ASYNC_CONCURRENCY: Final = 1000
ACCELERATOR_SHARE: Final = 0.001
COUNT_MAX: Final = 2**31 - 1


class DecoratorError(TypeError, ValueError, AssertionError):
    """A decorator was written in a way that has no meaning; Ray raises AssertionError here."""


# ---- checks of single values ----


def _count(least: int, special: str = "") -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number, got {value!r}.")
        if not least <= value:
            raise ValueError(f"{name} must be at least {least}{special}, got {value}.")

    return check


def _pending_calls(name: str, value: Any) -> None:
    if value == 0:
        raise ValueError(f"{name} must be positive, or -1 for no limit, got 0.")
    _count(-1, " (-1: no limit)")(name, value)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}.")
    if not value:
        raise ValueError(f"{name} must not be empty; leave it out instead.")


def _quantity(resource: str) -> Check:
    def check(name: str, value: Any) -> None:
        try:
            request_units(resource, value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}: {str(error).removeprefix(f'{resource}: ')}") from None

    return check


def _resources(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of names and numbers, got {type(value).__name__}.")
    for key, amount in value.items():
        own_option = {CPU: "num_cpus", GPU: "num_gpus", MEMORY: "memory"}.get(key)
        if own_option is not None:
            raise ValueError(f"Give {key!r} by the option {own_option}, not inside {name}.")
        if key == "object_store_memory":
            raise ValueError(f"{key!r} can not be requested inside {name}.")
        request_units(key, amount)


def _retry_exceptions(name: str, value: Any) -> None:
    if isinstance(value, bool):
        return
    if not isinstance(value, list | tuple):
        raise TypeError(
            f"{name} must be True, False or a list of exception classes, got {value!r}."
        )
    for item in value:
        if not isinstance(item, type) or not issubclass(item, BaseException):
            raise ValueError(f"{name} lists exception classes only, got {item!r}.")


def _num_returns(name: str, value: Any) -> None:
    if isinstance(value, str):
        if value not in ("dynamic", "streaming"):
            raise TypeError(
                f"{name} must be a whole number, 'streaming' or 'dynamic', got {value!r}."
            )
        return
    _count(0)(name, value)


def _backpressure(name: str, value: Any) -> None:
    if value == 0:
        raise ValueError(f"{name} must be at least 1, or -1 for no bound, got 0.")
    _count(-1, " (-1: no bound)")(name, value)


def _lifetime(name: str, value: Any) -> None:
    if value not in ("detached", "non_detached"):
        raise ValueError(f"{name} must be None, 'detached' or 'non_detached', got {value!r}.")


def _concurrency_groups(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{name} must be a dict of group names and sizes, got {type(value).__name__}."
        )
    for group, size in value.items():
        _text(f"a group of {name}", group)
        _count(1)(f"{name}[{group!r}]", size)


def _runtime_env(_name: str, value: Any) -> None:
    check_runtime_env(value)


def _only(*allowed: Any) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in allowed:
            usual = f" (only {allowed[0]!r} is)" if allowed else ""
            raise ValueError(f"{name}={value!r} is not supported yet{usual}; leave it out.")

    return check


def _strategy(name: str, value: Any) -> None:
    if value == "DEFAULT":
        return
    # Late: decorating a function must not load what few programs use.
    from skate.util.scheduling_strategies import check_strategy  # noqa: PLC0415

    check_strategy(name, value)


def _label_selector(name: str, value: Any) -> None:
    # Late, as in `_strategy`.
    from skate.util.scheduling_strategies import parse_selector  # noqa: PLC0415

    parse_selector(name, value)


def _fallback_strategy(name: str, value: Any) -> None:
    from skate.util.scheduling_strategies import parse_fallbacks  # noqa: PLC0415 - as above

    parse_fallbacks(name, value)


def _placement_group(name: str, value: Any) -> None:
    """Deprecated: a group, None for none, or "default" for the one of the running task."""
    from skate.util.placement_group import PlacementGroup  # noqa: PLC0415 - see `_strategy`

    if value is not None and value != "default" and not isinstance(value, PlacementGroup):
        raise TypeError(f"{name} must be a PlacementGroup or None, got {type(value).__name__}.")
    if value != "default":
        warnings.warn(
            f"The option {name} is deprecated: give"
            " scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=...).",
            DeprecationWarning,
            stacklevel=5,
        )


def _bundle_index(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r}.")


def _not_for_tasks(name: str, _value: Any) -> None:
    raise ValueError(f"{name} can not be requested for a task; use memory for its heap.")


_SHARED: Final[dict[str, Check]] = {
    "accelerator_type": _text,
    "enable_task_events": _only(True),
    "fallback_strategy": _fallback_strategy,
    "label_selector": _label_selector,
    "memory": _quantity(MEMORY),
    "name": _text,
    "num_cpus": _quantity(CPU),
    "num_gpus": _quantity(GPU),
    "object_store_memory": _not_for_tasks,
    "placement_group": _placement_group,
    "placement_group_bundle_index": _bundle_index,
    "placement_group_capture_child_tasks": _flag,
    "resources": _resources,
    "runtime_env": _runtime_env,
    "scheduling_strategy": _strategy,
    "_labels": _only({}),
    "_metadata": _only({}),
}
BACKPRESSURE: Final = "_generator_backpressure_num_objects"
TASK_OPTIONS: Final[dict[str, Check]] = _SHARED | {
    BACKPRESSURE: _backpressure,
    "max_calls": _count(0),
    "max_retries": _count(-1, " (-1: without end)"),
    "num_returns": _num_returns,
    "retry_exceptions": _retry_exceptions,
}
ACTOR_OPTIONS: Final[dict[str, Check]] = _SHARED | {
    "allow_out_of_order_execution": _only(),
    "concurrency_groups": _concurrency_groups,
    "get_if_exists": _flag,
    "lifetime": _lifetime,
    "max_concurrency": _count(1),
    "max_pending_calls": _pending_calls,
    "max_restarts": _count(-1, " (-1: without end)"),
    "max_task_retries": _count(-1, " (-1: without end)"),
    "namespace": _text,
    "object_store_memory": _only(0),
}
METHOD_OPTIONS: Final[dict[str, Check]] = {
    "concurrency_group": _text,
    "enable_task_events": _only(True),
    "max_task_retries": _count(-1, " (-1: without end)"),
    "num_returns": _num_returns,
    "retry_exceptions": _retry_exceptions,
    "tensor_transport": _only(),
    BACKPRESSURE: _backpressure,
}
CALL_OPTIONS: Final[dict[str, Check]] = METHOD_OPTIONS | {"name": _text}

# An empty string is an error here, although None means that the option was left out.
_NONE_IS_UNSET: Final = frozenset({*TASK_OPTIONS, *ACTOR_OPTIONS, *CALL_OPTIONS}) - {
    "placement_group"  # None: outside of any group
}


# ---- checks of whole sets ----


def check_task_options(options: Options, *, is_decoration: bool) -> Options:
    """The given options without those that are None. Raises ``TypeError`` or ``ValueError``."""
    if not is_decoration and options.get("max_calls") is not None:
        raise ValueError(
            "max_calls can only be given where the function is decorated, not in .options()."
        )
    return _checked("a task", TASK_OPTIONS, options)


def check_actor_options(options: Options, *, is_decoration: bool) -> Options:
    """As :func:`check_task_options`, for a class. Combinations are checked at creation."""
    if not is_decoration and options.get("concurrency_groups") is not None:
        raise ValueError(
            "concurrency_groups can only be given where the class is decorated, not in .options()."
        )
    return _checked("an actor", ACTOR_OPTIONS, options)


def check_method_options(options: Options) -> Options:
    """The options of ``@skate.method``. Raises :class:`DecoratorError` for an unknown one."""
    for name in options:
        if name not in METHOD_OPTIONS:
            raise DecoratorError(unknown_option("skate.method", name, METHOD_OPTIONS))
    return _checked("a method", METHOD_OPTIONS, options)


def check_call_options(options: Options) -> Options:
    """The options of one call of a method. Raises ``TypeError`` or ``ValueError``."""
    return _checked("a call of a method", CALL_OPTIONS, options)


def check_actor_combination(options: Options) -> None:
    """What must hold between the options of one actor. Raises ``ValueError``."""
    if options.get("get_if_exists") and not options.get("name"):
        raise ValueError("get_if_exists needs a name to look for: give name= as well.")


def unknown_option(subject: str, name: str, known: Iterable[str]) -> str:
    """The sentence for an option that does not exist, with the nearest that does."""
    public = sorted(option for option in known if not option.startswith("_"))
    near = difflib.get_close_matches(name, public, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{subject} has no option {name!r}.{hint} The options are: {', '.join(public)}."


def _checked(subject: str, checks: Mapping[str, Check], options: Options) -> Options:
    given: Options = {}
    for name, value in options.items():
        check = checks.get(name)
        if check is None:
            raise ValueError(unknown_option(subject, name, checks))
        if value is None and name in _NONE_IS_UNSET:
            continue
        check(name, value)
        given[name] = value
    return given


# ---- what the runtime needs ----


def strategy_of(options: Options) -> Strategy | None:
    """``scheduling_strategy``, ``label_selector`` and ``fallback_strategy`` as the runtime takes
    them; None for the default policy. Raises ``ValueError`` for a combination without a meaning.
    """
    value = options.get("scheduling_strategy", "DEFAULT")
    selector, fallbacks = options.get("label_selector"), options.get("fallback_strategy")
    if value == "DEFAULT" and not selector:
        return None
    from skate.util.scheduling_strategies import to_runtime  # noqa: PLC0415 - see `_strategy`

    return to_runtime(value, selector or {}, fallbacks or [])


def placement_of(
    options: Options, core: CoreWorker, needs: Amounts, subject: str
) -> Strategy | None:
    """As :func:`strategy_of`, and inside which placement group.

    ``needs``: what must fit a bundle then; ``subject``: its name. What says nothing about where to
    run goes into the group of the running task, if that captures (SURFACE P8).

    Raises:
        ValueError: a combination without a meaning, or a bundle that could never hold it.
    """
    value, group = options.get("scheduling_strategy"), options.get("placement_group", "default")
    if value is not None and group != "default":
        raise ValueError(
            "scheduling_strategy and placement_group both say where to run; give one of them."
        )
    is_captured = (
        bool(core.captured_group)
        and group == "default"
        and value is None
        and not options.get("label_selector")
    )
    if is_captured or group not in (None, "default") or not isinstance(value, str | None):
        # Late: few programs use placement groups.
        from skate.util.scheduling_strategies import group_strategy, inside_group  # noqa: PLC0415

        inside = group_strategy(options, is_captured=is_captured)
        if inside is not None:
            return inside_group(inside, core, needs, subject)
    _check_no_index(options)
    return strategy_of(options)


def _check_no_index(options: Options) -> None:
    index = options.get("placement_group_bundle_index", -1)
    if index != -1:
        raise ValueError(
            f"placement_group_bundle_index={index} was given without a placement group."
        )


def resources_of(options: Options, default_cpus: float) -> Amounts:
    """The request in the scheduler's units, sorted by name, without zeros."""
    amounts: dict[str, float] = {
        CPU: options.get("num_cpus", default_cpus),
        GPU: options.get("num_gpus", 0),
        MEMORY: options.get("memory", 0),
        **options.get("resources", {}),
    }
    accelerator = options.get("accelerator_type")
    if accelerator:
        amounts[f"accelerator_type:{accelerator}"] = ACCELERATOR_SHARE
    units = {name: request_units(name, amount) for name, amount in amounts.items()}
    return tuple(sorted((name, amount) for name, amount in units.items() if amount))


def asks_for_resources(options: Options) -> bool:
    """Whether any resource was named; an actor then holds what it asked for while it lives."""
    return any(
        options.get(name) is not None
        for name in ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type")
    )


def retry_rule(options: Options) -> bool | tuple[type[BaseException], ...]:
    """``retry_exceptions`` as the runtime takes it."""
    rule = options.get("retry_exceptions", False)
    return rule if isinstance(rule, bool) else tuple(rule)


def returns_of(
    subject: str,
    options: Options,
    *,
    is_generator: bool,
    is_async: bool = False,
) -> int:
    """``num_returns`` and the bound of a generator as the one number that the runtime takes.

    ``subject`` names the function in an error. ``is_async``: it is a method of an async actor.

    Raises:
        ValueError: a stream of something that does not yield, or a bound that can not be kept.
    """
    given: str | int = options.get("num_returns", "streaming" if is_generator else 1)
    bound: int = max(0, options.get(BACKPRESSURE, 0))
    if given == "streaming":
        if not is_generator:
            raise ValueError(
                f"{subject} does not yield, so num_returns='streaming' has nothing to stream;"
                " make it a generator function."
            )
        if bound and is_async:
            raise ValueError(
                f"{subject} is a method of an async actor, where {BACKPRESSURE} can not be kept;"
                " leave it out, or await inside the generator."
            )
        return encode_returns(STREAMING, bound)
    if bound:
        raise ValueError(
            f"{BACKPRESSURE} is for streaming generators, and {subject} has num_returns={given!r}."
        )
    if given == "dynamic":
        return encode_returns(DYNAMIC)
    count = int(given)
    return encode_returns(STATIC, count) if is_generator and count > 0 else count


def with_earlier(options: Options, earlier: int) -> Options:
    """Options for a call, with what an earlier ``returns_of`` said where they say nothing."""
    if earlier >= 0:
        return {"num_returns": earlier, **options}
    kind, count = decode_returns(earlier)
    if kind != STREAMING:
        return {"num_returns": "dynamic" if kind == DYNAMIC else count, **options}
    if options.get("num_returns", "streaming") != "streaming":
        return options
    return {BACKPRESSURE: count or -1, **options}


def is_single(num_returns: int) -> bool:
    """Whether ``.remote()`` gives one reference or generator, and not a list or None."""
    return references_of(num_returns) == 1
