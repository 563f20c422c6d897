"""The error of user code, carried from where it was raised to whoever asks for the value.

A :class:`TaskError` holds the text of the traceback and the cause. What ``get`` raises is made
from it by :meth:`TaskError.as_instanceof_cause`: an instance of ``TaskError`` and of the cause's
own class at once, so that ``except ValueError`` works across processes.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any

from skate_core_ids import SkateError
from skate_worker.exception_pickle import (
    built_in_arguments,
    built_in_base,
    exception_state,
    new_exception,
    pickle_exception,
    safe_repr,
    set_slots,
)
from skate_worker.traceback_text import exception_text

_DUAL_CLASSES_MAX = 512


class UnserializableError(SkateError):
    """Stands for an exception that could not be rebuilt in this process; its text is kept."""


class TaskError(SkateError):
    """User code raised, or an argument of the call is itself an error.

    ``cause`` is the innermost exception; ``traceback_str`` (also ``str()``) is the remote
    traceback. ``pid`` and ``ip`` say where it ran; ``actor_id`` (hex) and ``actor_repr`` are
    empty for plain tasks.
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        *,
        proctitle: str = "",
        pid: int = 0,
        ip: str = "",
        actor_repr: str = "",
        actor_id: str = "",
        cause_pickle: bytes = b"",
    ) -> None:
        super().__init__(traceback_str)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.proctitle: str = proctitle or f"skate::{function_name}"
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr
        self.actor_id = actor_id
        self._cause_pickle = cause_pickle

    def __str__(self) -> str:
        return self.traceback_str

    def __reduce__(self) -> tuple[Any, ...]:
        origin: TaskError = self.__dict__.get("_origin", self)
        cause, cause_pickle = origin.cause, origin._cause_pickle
        if not cause_pickle:
            cause, cause_pickle = _sendable(cause)
        fields = {name: getattr(origin, name) for name in _FIELDS}
        notes = origin.__dict__.get("__notes__")
        return _rebuild, (
            isinstance(self, _Dual),
            fields,
            cause_pickle,
            _one_line(cause),
            list(notes) if notes else None,
        )

    def as_instanceof_cause(self) -> TaskError:
        """This error as an instance of the cause's class too; itself where that is not possible.

        It is not possible for a class that can not be subclassed (a warning is logged), and not
        needed for a class that is a base of ``TaskError`` anyway.
        """
        cause = self.cause
        if isinstance(self, _Dual) or issubclass(TaskError, type(cause)):
            return self
        try:
            base = built_in_base(type(cause))
            dual = _dual_class(type(cause))  # type: ignore[arg-type]  # Classes do hash.
            error = new_exception(dual, base, built_in_arguments(cause, base))
        except Exception as failure:  # noqa: BLE001 - User code in __init_subclass__ and metaclasses.
            _warn_final(type(cause), failure)
            return self
        assert isinstance(error, TaskError)
        attributes, slots = exception_state(cause)
        # A field that both have, such as `pid`, is the cause's: the user's code reads its own
        # class.
        error.__dict__.update(self.__dict__)
        error.__dict__.update({k: v for k, v in attributes.items() if k not in _RESERVED})
        error.__dict__["_origin"] = self
        set_slots(error, slots)
        BaseException.args.__set__(error, _args(cause))  # type: ignore[attr-defined]
        object.__setattr__(error, "__cause__", cause.__cause__)
        object.__setattr__(error, "__context__", cause.__context__)
        object.__setattr__(error, "__suppress_context__", cause.__suppress_context__)
        return error


_FIELDS = ("function_name", "traceback_str", "proctitle", "pid", "ip", "actor_repr", "actor_id")
_RESERVED = frozenset({"function_name", "traceback_str", "cause", "_cause_pickle", "_origin"})


class _Dual:
    """Marks the classes that :func:`_dual_class` makes."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        # Reached for what neither class nor instance has: slots, properties' state, own attributes.
        cause = self.__dict__.get("cause")
        if cause is None:
            raise AttributeError(name)
        return getattr(cause, name)


def make_task_error(
    error: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    proctitle: str = "",
    actor_id: str = "",
    actor_repr: str = "",
) -> TaskError:
    """Wrap what user code raised, while its traceback is at hand.

    A :class:`TaskError` (from a nested ``get``) is flattened: the new error has its cause and
    tells both tracebacks. The cause is pickled here; one whose class can not be sent is replaced
    by a ``SkateError`` with its text.
    """
    text = exception_text(error, own_text=TaskError)
    return _make(
        error, text, function_name, pid, ip, proctitle, actor_id=actor_id, actor_repr=actor_repr
    )


def make_dependency_error(
    error: BaseException,
    *,
    function_name: str,
    pid: int,
    ip: str,
    proctitle: str = "",
    actor_id: str = "",
    actor_repr: str = "",
) -> TaskError:
    """The error of a call that did not run because one of its arguments is ``error``."""
    text = (
        "At least one of the input arguments for this task could not be computed:\n"
        f"{type(error).__name__}: {error}"
    )
    return _make(
        error, text, function_name, pid, ip, proctitle, actor_id=actor_id, actor_repr=actor_repr
    )


def public_error(error: BaseException) -> BaseException:
    """What ``get`` raises for a stored error."""
    return error.as_instanceof_cause() if isinstance(error, TaskError) else error


def _make(
    error: BaseException,
    text: str,
    function_name: str,
    pid: int,
    ip: str,
    proctitle: str,
    *,
    actor_id: str,
    actor_repr: str,
) -> TaskError:
    cause, cause_pickle = error, b""
    while isinstance(cause, TaskError):
        cause_pickle = cause._cause_pickle
        cause = cause.cause
    if not cause_pickle:
        cause, cause_pickle = _sendable(cause)
    where = f"pid={pid}, ip={ip}"
    if actor_id:
        where += f", actor_id={actor_id}"
    if actor_repr:
        where += f", repr={actor_repr}"
    return TaskError(
        function_name,
        f"skate::{function_name}() ({where})\n{text}",
        cause,
        proctitle=proctitle,
        pid=pid,
        ip=ip,
        actor_repr=actor_repr,
        actor_id=actor_id,
        cause_pickle=cause_pickle,
    )


def _sendable(cause: BaseException) -> tuple[BaseException, bytes]:
    try:
        return cause, pickle_exception(cause)
    except Exception as failure:  # noqa: BLE001 - User code in metaclasses and the like.
        stand_in = SkateError(
            f"The original exception {safe_repr(cause)} isn't serializable"
            f" ({type(failure).__name__}: {failure}); its traceback is in this error's text."
        )
        return stand_in, pickle_exception(stand_in)


def _rebuild(
    is_dual: bool,
    fields: dict[str, Any],
    cause_pickle: bytes,
    cause_text: str,
    notes: list[str] | None,
) -> TaskError:
    cause: BaseException
    try:
        cause = pickle.loads(cause_pickle)
    except Exception as failure:  # noqa: BLE001 - A class or module that this process does not have.
        cause = UnserializableError(
            f"{cause_text} (it could not be rebuilt in this process:"
            f" {type(failure).__name__}: {failure})"
        )
    error = TaskError(cause=cause, cause_pickle=cause_pickle, **fields)
    for note in notes or ():
        error.add_note(note)
    return error.as_instanceof_cause() if is_dual else error


@functools.lru_cache(maxsize=_DUAL_CLASSES_MAX)
def _dual_class(cause_class: type[BaseException]) -> type[BaseException]:
    name = f"TaskError({cause_class.__name__})"
    return type(
        name,
        (_Dual, TaskError, cause_class),
        {"__module__": TaskError.__module__, "__doc__": cause_class.__doc__},
    )


def _args(error: BaseException) -> tuple[Any, ...]:
    # Past a class's own read-only or computed `args`.
    return BaseException.args.__get__(error)  # type: ignore[attr-defined, no-any-return]


def _one_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - User code in __str__.
        text = "its text could not be made"
    return f"{type(error).__name__}: {text}"


def _warn_final(cause_class: type, failure: Exception) -> None:
    import logging  # noqa: PLC0415 - only on this rare path, and start-up must stay cheap.

    logging.getLogger("skate").warning(
        "event=task_error_not_dual class=%s reason=%r: `except %s` will not catch this error;"
        " catch TaskError and look at its cause",
        cause_class.__qualname__,
        str(failure),
        cause_class.__name__,
    )
