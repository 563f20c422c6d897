"""Pickling exceptions so that they come back as what they were, whatever their constructors demand.

An ordinary exception pickles as ``cls(*args)``, which fails or silently changes the message as
soon as ``__init__`` takes anything but what it passed on. Here an exception is its class, its
built-in part, and its state: it is rebuilt without running ``__init__``. What it holds that can
not be pickled is replaced by a :class:`Unpicklable` that keeps the text, so ``except
OriginalType`` still works.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable
from typing import Any, Final

from skate_worker.pickler import ValuePickler, pickle_in_band

_HEAP_TYPE_FLAG: Final = 1 << 9
_TEXT_MAX: Final = 2000
_PICKLE_HOOKS: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")

State = tuple[tuple[Any, ...] | None, dict[str, Any], dict[str, Any], Any, Any, bool]


class Unpicklable:
    """Stands for something that an exception held and that could not be sent."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<not sent, can not be pickled: {self.text}>"


def pickle_exception(error: BaseException) -> bytes:
    """Pickle an exception with its cause, context, notes and state.

    Raises:
        Exception: whatever pickling raised, when not even the exception's class can be sent.
    """
    try:
        return _dump(error, is_lenient=False)
    except Exception:  # noqa: BLE001 - User code runs in __reduce__; the lenient attempt replaces what failed.
        return _dump(error, is_lenient=True)


def built_in_base(cls: type[BaseException]) -> type[BaseException]:
    """The first class in the method resolution order that is written in C: it owns the layout."""
    for base in cls.__mro__:
        if issubclass(base, BaseException) and not base.__flags__ & _HEAP_TYPE_FLAG:
            return base
    return BaseException


def new_exception(
    cls: type[BaseException], base: type[BaseException], args: tuple[Any, ...]
) -> BaseException:
    """An instance of ``cls`` made by the built-in constructors alone.

    The interpreter insists on the ``__new__`` of the class that gives the layout, which is
    another than ``base`` when ``base`` adds nothing to ``Exception``.
    """
    maker: Any = cls
    while maker.__flags__ & _HEAP_TYPE_FLAG:
        maker = maker.__base__
    error: BaseException = maker.__new__(cls, *args)
    base.__init__(error, *args)
    return error


def built_in_arguments(error: BaseException, base: type[BaseException]) -> tuple[Any, ...]:
    """What the constructor of ``base`` needs to make an equal built-in part."""
    if base.__basicsize__ == BaseException.__basicsize__:
        return ()  # Nothing but args; set afterwards, so that they may refer to the error itself.
    if isinstance(error, BaseExceptionGroup):
        # A subclass with its own __new__ leaves in `args` what that took.
        return error.message, list(error.exceptions)
    reduced: Any = base.__reduce__(error)
    return tuple(reduced[1])


def exception_state(error: BaseException) -> tuple[dict[str, Any], dict[str, Any]]:
    """The instance dictionary, and the values of slots."""
    slots: dict[str, Any] = {}
    for cls in type(error).__mro__:
        if not cls.__flags__ & _HEAP_TYPE_FLAG:
            continue
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else tuple(names):
            if name in ("__dict__", "__weakref__"):
                continue
            mangled = (
                f"_{cls.__name__.lstrip('_')}{name}"
                if name.startswith("__") and not name.endswith("__")
                else name
            )
            try:
                slots[mangled] = cls.__dict__[mangled].__get__(error, type(error))
            except (AttributeError, KeyError):  # Never assigned.
                continue
    if isinstance(error, ImportError):
        slots |= {"name": error.name, "path": error.path}
    elif isinstance(error, AttributeError | NameError):
        slots["name"] = error.name
    return dict(getattr(error, "__dict__", {})), slots


def set_exception_state(error: BaseException, state: State) -> None:
    """Fill a bare exception. Attributes that the class refuses to set are left out."""
    args, attributes, slots, cause, context, suppress = state
    if args is not None:
        BaseException.args.__set__(error, args)  # type: ignore[attr-defined]
    # Written past the class's own __setattr__, which may forbid it.
    error.__dict__.update(attributes)
    set_slots(error, slots)
    object.__setattr__(error, "__cause__", cause)
    object.__setattr__(error, "__context__", context)
    object.__setattr__(error, "__suppress_context__", suppress)


def set_slots(error: BaseException, slots: dict[str, Any]) -> None:
    """Set what is not in the instance dictionary, past the class's own ``__setattr__``."""
    for name, value in slots.items():
        try:
            object.__setattr__(error, name, value)
        except AttributeError:  # A class that changed between the two processes.
            continue


def has_own_pickling(cls: type[BaseException]) -> bool:
    """Whether the author of ``cls`` said how it pickles."""
    if cls in copyreg.dispatch_table:
        return True
    for base in cls.__mro__:
        if not base.__flags__ & _HEAP_TYPE_FLAG:
            continue
        if any(hook in base.__dict__ for hook in _PICKLE_HOOKS):
            return True
    return False


class _ExceptionPickler(ValuePickler):
    """Reduces exceptions by their parts; a lenient one replaces the parts that fail."""

    def __init__(self, file: io.BytesIO, is_lenient: bool) -> None:
        super().__init__(file)
        self._is_lenient = is_lenient

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, BaseException):
            return super().reducer_override(value)
        cls = type(value)
        state: State
        keep: Callable[[Any], Any] = self._replaced if self._is_lenient else _unchanged
        if has_own_pickling(cls):
            own = _own_pickle(value)
            if own is not None:
                notes = getattr(value, "__notes__", None)
                state = (
                    None,
                    {} if notes is None else {"__notes__": keep(notes)},
                    {},
                    value.__cause__,
                    value.__context__,
                    value.__suppress_context__,
                )
                return pickle.loads, (own,), state, None, None, set_exception_state
        base = built_in_base(cls)
        made_from = built_in_arguments(value, base)
        args = BaseException.args.__get__(value)  # type: ignore[attr-defined]
        attributes, slots = exception_state(value)
        state = (
            tuple(keep(item) for item in args),
            {name: keep(item) for name, item in attributes.items()},
            {name: keep(item) for name, item in slots.items()},
            value.__cause__,
            value.__context__,
            value.__suppress_context__,
        )
        made_from = tuple(keep(item) for item in made_from)
        return new_exception, (cls, base, made_from), state, None, None, set_exception_state

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return value  # Reduced by its own parts.
        if isinstance(value, list | tuple) and any(isinstance(v, BaseException) for v in value):
            return type(value)(map(self._replaced, value))
        try:
            _dump(value, is_lenient=False)
        except Exception:  # noqa: BLE001 - User code in __reduce__: whatever it raises, the value can not be sent.
            return Unpicklable(safe_repr(value))
        return value


def safe_repr(value: Any) -> str:
    """``repr``, shortened, and never an error."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - User code in __repr__.
        text = f"{type(value).__name__} object whose repr failed"
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."


def _unchanged(value: Any) -> Any:
    return value


def _own_pickle(error: BaseException) -> bytes | None:
    """The author's own pickle of an exception; None when it does not give back the same class."""
    try:
        data = pickle_in_band(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:  # noqa: BLE001 - User code in the hooks: whatever it raises means "no".
        return None


def _dump(value: Any, *, is_lenient: bool) -> bytes:
    file = io.BytesIO()
    _ExceptionPickler(file, is_lenient).dump(value)
    return file.getvalue()
