"""Finding what can not be pickled inside a value, and naming the path to it.

Runs only after a pickling has failed, so that a success costs nothing. The search goes depth first:
wherever a part alone fails to pickle, it looks at the parts of that part, until none of them fails.
"""

from __future__ import annotations

import functools
import io
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from skate_worker.pickler import ValuePickler, is_reference_type

_TRIALS_MAX: Final = 20_000
_DEPTH_MAX: Final = 64
_ATOMS: Final = (type(None), bool, int, float, complex, str, bytes)
_NEW_FUNCTIONS: Final = ("__newobj__", "__newobj_ex__", "_reconstructor")

Child = tuple[str, Any]
"""How a part is reached from its whole (``.client``, ``['pool']``), and the part."""


def explain_failure(
    value: Any, error: BaseException, subject: str = "", *, is_call: bool = False
) -> TypeError:
    """The ``TypeError`` to raise for a value whose pickling failed with ``error``.

    ``is_call``: the value is the ``(args, kwargs)`` of a call of what ``subject`` names.
    """
    if is_call:
        root = f"the arguments of {subject or 'the call'}"
        path = _path_in_call(value)
    else:
        root = subject or describe(value)
        path = find_unpicklable(value)
    place = _defined_at(_unwrap(value))
    steps = " -> ".join([root, *path])
    where = f" (defined at {place})" if place else ""
    return TypeError(
        f"Could not serialize {root}{where}: {steps} can not be pickled"
        f" ({type(error).__name__}: {error})."
        " Create it inside the task or actor, or leave it out of what is sent."
    )


def find_unpicklable(value: Any) -> list[str]:
    """The steps from ``value`` to the part that fails; that part's type comes last."""
    search = _Search()
    return search.descend(value, 0)


def find_failures(value: Any, depth: int) -> Iterator[tuple[list[str], Any, Any]]:
    """Every part that fails although none of its own parts does, ``depth`` steps down at most.

    Of each the steps that lead to it, the part, and what it is a part of (None for ``value``).
    """
    yield from _Search().leaves(value, [], None, depth)


def _path_in_call(call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[str]:
    args, kwargs = call
    for name, argument in [*enumerate(args), *kwargs.items()]:
        if not can_pickle(argument):
            return [f"argument {name}", *find_unpicklable(argument)]
    return find_unpicklable(call)


def describe(value: Any) -> str:
    """A short name of a value for a message: its type, and its own name when it has one."""
    if isinstance(value, type):
        return f"class {value.__qualname__}"
    name = getattr(value, "__qualname__", None)
    if callable(value) and isinstance(name, str):
        return f"function {name.rpartition('<locals>.')[2]}()"
    return f"value of type {_type_name(value)}"


@dataclass
class _Search:
    trials: int = 0
    seen: set[int] = field(default_factory=set)
    failing: set[int] = field(default_factory=set)

    def descend(self, value: Any, depth: int) -> list[str]:
        self.seen.add(id(value))
        if depth < _DEPTH_MAX:
            for step, child in _children(value):
                if self.trials >= _TRIALS_MAX:
                    break
                if isinstance(child, _ATOMS) or id(child) in self.seen:
                    continue
                self.trials += 1
                if not can_pickle(child):
                    return [step, *self.descend(child, depth + 1)]
        return [_type_name(value)]

    def leaves(
        self, value: Any, path: list[str], whole: Any, depth: int
    ) -> Iterator[tuple[list[str], Any, Any]]:
        """The failing parts of ``value``, which fails and is a part of ``whole``."""
        self.seen.add(id(value))
        self.failing.add(id(value))
        is_leaf = True
        for step, child in _children(value) if depth > 0 else ():
            if self.trials >= _TRIALS_MAX:
                break
            if isinstance(child, _ATOMS) or id(child) in self.seen:
                is_leaf = is_leaf and id(child) not in self.failing
                continue
            self.trials += 1
            if not can_pickle(child):
                is_leaf = False
                yield from self.leaves(child, [*path, step], value, depth - 1)
        if is_leaf:
            yield path, value, whole


def can_pickle(value: Any) -> bool:
    """Whether ``value`` pickles by itself."""
    # Buffers stay out of band, so that large arrays are not copied by a trial.
    pickler = ValuePickler(io.BytesIO(), _leave_out_of_band)
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - User code runs in __reduce__; whatever it raises means "no".
        return False
    return True


def _leave_out_of_band(_buffer: object) -> None:
    return None


def _children(value: Any) -> Iterator[Child]:
    value = _unwrap(value)
    if isinstance(value, types.FunctionType):
        yield from _function_children(value)
    elif isinstance(value, types.MethodType):
        yield "bound to self", value.__self__
        yield f"function {value.__func__.__name__}()", value.__func__
    elif isinstance(value, functools.partial):
        yield "partial function", value.func
        for index, item in enumerate(value.args):
            yield f"partial argument {index}", item
        for key, item in value.keywords.items():
            yield f"partial argument {key}", item
    elif isinstance(value, property):
        for name in ("fget", "fset", "fdel"):
            yield f".{name}", getattr(value, name)
    elif isinstance(value, type):
        yield from _class_children(value)
    elif type(value) in (dict, types.MappingProxyType):
        yield from _mapping_children(value)
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif type(value) in (set, frozenset):
        for item in value:
            yield "member", item
    elif not is_reference_type(type(value)):
        yield from _instance_children(value)


def _mapping_children(value: Any) -> Iterator[Child]:
    for key, item in value.items():
        yield f"key {key!r:.80}", key
        yield f"[{key!r:.80}]", item


def _function_children(function: types.FunctionType) -> Iterator[Child]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure variable {name}", cell.cell_contents
        except ValueError:  # The variable was never assigned.
            continue
    for name in _global_names(code):
        if name in function.__globals__:
            yield f"global variable {name}", function.__globals__[name]
    defaults = function.__defaults__ or ()
    parameters = code.co_varnames[: code.co_argcount]
    for name, item in zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True):
        yield f"default of parameter {name}", item
    for name, item in (function.__kwdefaults__ or {}).items():
        yield f"default of parameter {name}", item
    for name, item in function.__dict__.items():
        yield f".{name}", item
    for name, item in function.__annotations__.items():
        yield f"annotation of {name}", item


def _global_names(code: types.CodeType) -> dict[str, None]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _class_children(cls: type) -> Iterator[Child]:
    for name, item in vars(cls).items():
        if name in ("__dict__", "__weakref__"):
            continue
        inner = _unwrap(item)
        is_function = isinstance(inner, types.FunctionType)
        yield f"method {name}()" if is_function else f"class attribute {name}", inner
    for base in cls.__bases__:
        if base is not object:
            yield f"base class {base.__qualname__}", base


def _instance_children(value: Any) -> Iterator[Child]:
    try:
        reduced = value.__reduce_ex__(5)
    except Exception:  # noqa: BLE001 - user code
        # Without a reduction, only what the instance holds is left to see.
        yield from _state_children(getattr(value, "__dict__", None))
        return
    if not isinstance(reduced, tuple) or len(reduced) < 2:
        return
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    yield from _state_children(state)
    for index, item in enumerate(items or ()):
        yield f"[{index}]", item
    for key, item in pairs or ():
        yield f"[{key!r:.80}]", item
    if getattr(make, "__name__", "") not in _NEW_FUNCTIONS:
        yield f"made by {getattr(make, '__qualname__', make)}", make
    for index, item in enumerate(arguments or ()):
        if isinstance(item, type):
            yield f"class {item.__qualname__}", item
        else:
            yield f"argument {index} of its __reduce__", item


def _state_children(state: Any) -> Iterator[Child]:
    slots: Any = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    for part in (state, slots):
        if isinstance(part, dict):
            for name, item in part.items():
                yield f".{name}", item
        elif part is not None:
            yield "state", part


def _unwrap(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


def _type_name(value: Any) -> str:
    cls = value if isinstance(value, type) else type(value)
    prefix = "" if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}."
    return f"{prefix}{cls.__qualname__}"


def _defined_at(value: Any) -> str:
    code = getattr(value, "__code__", None)
    if isinstance(code, types.CodeType):
        return f"{code.co_filename}:{code.co_firstlineno}"
    if isinstance(value, type):
        for item in vars(value).values():
            code = getattr(_unwrap(item), "__code__", None)
            if isinstance(code, types.CodeType):
                return f"{code.co_filename}:{code.co_firstlineno}"
    return ""
