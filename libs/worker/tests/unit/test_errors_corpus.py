"""Exceptions of every shape cross a process boundary and are caught as what they were."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import threading
import urllib.error
from collections.abc import Callable
from email.message import Message
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import pytest

from skate_worker.errors import ActorDiedError, SkateError, TaskError, make_task_error
from skate_worker.serialization import ErrorValue, deserialize, serialize

MARK = "the-original-text"


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"{MARK} {code}")
        self.code = code


class TwoArgumentsError(Exception):
    def __init__(self, left: str, right: str) -> None:
        super().__init__(f"{left} {right}")
        self.left = left


class MessageChangingError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"changed: {text}")


class NoSuperInitError(Exception):
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


class SlotsError(Exception):
    __slots__ = ("__hidden", "code")

    def __init__(self, code: str) -> None:
        super().__init__(MARK)
        self.code = code
        self.__hidden = code

    def hidden(self) -> str:
        return self.__hidden


class ReduceError(Exception):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(a + b)
        self.parts = (a, b)

    def __reduce__(self) -> Any:
        return ReduceError, self.parts


class BrokenReduceError(Exception):
    def __reduce__(self) -> Any:
        raise ValueError("no")


class WrongReduceError(Exception):
    def __reduce__(self) -> Any:
        return str, ("not an exception",)


class GetstateError(Exception):
    def __getstate__(self) -> Any:
        raise ValueError("no")


class SetstateError(Exception):
    def __setstate__(self, state: Any) -> NoReturn:
        raise ValueError("no")


class ReadOnlyArgsError(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        return ("computed",)


class PropertyError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(MARK)
        self._code = code

    @property
    def code(self) -> int:
        return self._code


@dataclasses.dataclass
class DataclassError(Exception):
    text: str


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    text: str


class NewError(Exception):
    def __new__(cls, text: str, extra: int) -> NewError:
        return super().__new__(cls, text)

    def __init__(self, text: str, extra: int) -> None:
        super().__init__(text)
        self.extra = extra


class OsSubError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, MARK, path)
        self.path = path


class Code(Enum):
    BAD = 1


class EnumError(Exception):
    def __init__(self, code: Code) -> None:
        super().__init__(code, MARK)
        self.code = code


class MixinError(ValueError, LookupError):
    pass


class GetattrError(Exception):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"made {name}"


class GetattributeError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.hits = 0


class BadStrError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class BadReprError(Exception):
    def __repr__(self) -> str:
        raise ValueError("no repr")


class SetattrError(Exception):
    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("immutable")


class EqualError(Exception):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class FinalError(Exception):
    def __init_subclass__(cls, **kwargs: Any) -> None:
        raise TypeError("FinalError is final")


class MetaError(type):
    pass


class WithMetaclassError(Exception, metaclass=MetaError):
    pass


class CustomBaseError(BaseException):
    pass


class CustomGroup(ExceptionGroup[Any]):
    def __new__(cls, errors: list[Exception], code: int) -> CustomGroup:
        self = super().__new__(cls, MARK, errors)
        self.code = code
        return self

    code: int

    def derive(self, excs: Any) -> CustomGroup:
        return CustomGroup(excs, self.code)


class Huge(Exception):
    pass


class StaticFactoryError(Exception):
    @classmethod
    def make(cls) -> StaticFactoryError:
        return cls(MARK)


class GenericArgsError(Exception):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args)
        self.__dict__.update(kwargs)


class CallableAttributeError(Exception):
    def __init__(self) -> None:
        super().__init__(MARK)
        self.retry = lambda: 7


def _raise(error: BaseException) -> NoReturn:
    raise error


def _circular() -> Exception:
    error = Exception(MARK)
    error.me = error  # type: ignore[attr-defined]
    return error


def _circular_args() -> Exception:
    error = Exception(MARK)
    error.args = (MARK, error)
    return error


def _circular_cause() -> Exception:
    first, second = ValueError(MARK), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    return first


def _unpicklable_attribute() -> Exception:
    error = ValueError(MARK)
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    error.code = 7  # type: ignore[attr-defined]
    return error


def _from_cause() -> Exception:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError(MARK) from inner
    except ValueError as error:
        return error


def _unpicklable_cause() -> Exception:
    error = ValueError(MARK)
    error.__cause__ = RuntimeError(threading.Lock())
    return error


def _in_context() -> Exception:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError(MARK)  # noqa: B904 - the context is the subject.
    except ValueError as error:
        return error


def _with_notes() -> Exception:
    error = ValueError(MARK)
    error.add_note("a note")
    return error


def _local_class() -> Exception:
    class LocalError(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(MARK)

    return LocalError(1, 2)


def _from(action: Callable[[], Any]) -> BaseException:
    try:
        action()
    except BaseException as error:  # noqa: BLE001 - the error is the result.
        return error
    raise AssertionError("nothing was raised")


SHAPES: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError(MARK),
    "no_args": ValueError,
    "exception_itself": lambda: Exception(MARK),
    "many_args": lambda: RuntimeError(MARK, 1, [2], {"three": 3}),
    "none_arg": lambda: TypeError(None),
    "keyword_only": lambda: KeywordOnlyError(code=3),
    "two_arguments": lambda: TwoArgumentsError(MARK, "right"),
    "message_changing": lambda: MessageChangingError(MARK),
    "no_super_init": lambda: NoSuperInitError(MARK),
    "slots": lambda: SlotsError("seven"),
    "own_reduce": lambda: ReduceError(MARK, "b"),
    "broken_reduce": lambda: BrokenReduceError(MARK),
    "wrong_reduce": lambda: WrongReduceError(MARK),
    "broken_getstate": lambda: GetstateError(MARK),
    "broken_setstate": lambda: SetstateError(MARK),
    "read_only_args": lambda: ReadOnlyArgsError(MARK),
    "property": lambda: PropertyError(4),
    "dataclass": lambda: DataclassError(MARK),
    "frozen_dataclass": lambda: FrozenError(MARK),
    "own_new": lambda: NewError(MARK, 3),
    "os_error": lambda: FileNotFoundError(2, MARK, "/none"),
    "os_subclass": lambda: OsSubError("/none"),
    "real_open": lambda: _from(lambda: Path("/does/not/exist").read_text()),
    "enum": lambda: EnumError(Code.BAD),
    "mixin": lambda: MixinError(MARK),
    "own_getattr": lambda: GetattrError(MARK),
    "attributes_set": lambda: GetattributeError(MARK),
    "bad_str": lambda: BadStrError(MARK),
    "bad_repr": lambda: BadReprError(MARK),
    "own_setattr": lambda: SetattrError(MARK),
    "unhashable": lambda: EqualError(MARK),
    "metaclass": lambda: WithMetaclassError(MARK),
    "base_exception": lambda: CustomBaseError(MARK),
    "keyboard_interrupt": lambda: KeyboardInterrupt(MARK),
    "generator_exit": lambda: GeneratorExit(MARK),
    "system_exit": lambda: SystemExit(3),
    "group": lambda: ExceptionGroup(MARK, [ValueError("a"), KeywordOnlyError(code=1)]),
    "nested_group": lambda: ExceptionGroup(MARK, [ExceptionGroup("in", [ValueError("a")])]),
    "base_group": lambda: BaseExceptionGroup(MARK, [KeyboardInterrupt()]),
    "own_group": lambda: CustomGroup([ValueError("a")], 5),
    "group_with_lock": lambda: ExceptionGroup(MARK, [_unpicklable_attribute()]),
    "huge": lambda: Huge(MARK + "x" * 2_000_000),
    "class_method_made": StaticFactoryError.make,
    "kwargs": lambda: GenericArgsError(MARK, color="red"),
    "callable_attribute": CallableAttributeError,
    "circular": _circular,
    "circular_args": _circular_args,
    "circular_cause": _circular_cause,
    "unpicklable_attribute": _unpicklable_attribute,
    "unpicklable_arg": lambda: ValueError(MARK, threading.Lock()),
    "unpicklable_cause": _unpicklable_cause,
    "from_cause": _from_cause,
    "in_context": _in_context,
    "notes": _with_notes,
    "local_class": _local_class,
    "stop_iteration": lambda: StopIteration(7),
    "stop_async_iteration": lambda: StopAsyncIteration(MARK),
    "cancelled": lambda: asyncio.CancelledError(MARK),
    "timeout": lambda: TimeoutError(MARK),
    "unicode_decode": lambda: _from(b"\xff".decode),
    "unicode_encode": lambda: _from("\udc00".encode),
    "syntax": lambda: _from(lambda: compile("1 +", "file.py", "exec")),
    "import": lambda: _from(lambda: __import__("no_such_module_here")),
    "attribute": lambda: _from(lambda: object().nothing),  # type: ignore[attr-defined]
    "name": lambda: _from(lambda: nothing_of_this_name),  # type: ignore[name-defined] # noqa: F821
    "key": lambda: _from(lambda: {}[MARK]),
    "zero_division": lambda: _from(lambda: 1 / 0),
    "recursion": lambda: RecursionError(MARK),
    "json": lambda: _from(lambda: json.loads("{")),
    "http": lambda: urllib.error.HTTPError("http://x", 404, MARK, Message(), None),
    "url": lambda: urllib.error.URLError(MARK),
    "pickling": lambda: _from(lambda: pickle.dumps(threading.Lock())),
    "skate_error": lambda: SkateError(MARK),
    "actor_died": lambda: ActorDiedError(MARK, actor_id="ab"),
    "assertion": lambda: AssertionError(MARK),
    "warning": lambda: UserWarning(MARK),
    "memory": lambda: MemoryError(MARK),
    "process_lookup": lambda: ProcessLookupError(3, MARK),
}

# Not instances of another class than TaskError already is, or of one that can not be subclassed.
_PLAIN_TASK_ERROR = {"exception_itself", "circular", "circular_args", "skate_error", "base_group"}


def carried(error: BaseException) -> BaseException:
    """The error as the caller's ``get`` raises it, after two crossings."""
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001 - the error is the subject.
        wrapped = make_task_error(raised, function_name="work", pid=12, ip="10.0.0.1")
    for _ in range(2):
        value = deserialize(serialize(wrapped, is_error=True).to_bytes())
        assert isinstance(value, ErrorValue)
        assert isinstance(value.error, TaskError)
        wrapped = value.error
    return value.to_raise()


@pytest.mark.parametrize("shape", SHAPES)
def test_error_of_any_shape_is_caught_as_its_own_class(shape: str) -> None:
    original = SHAPES[shape]()

    error = carried(original)

    assert isinstance(error, TaskError)
    assert type(error.cause) is type(original)
    if shape not in _PLAIN_TASK_ERROR:
        assert isinstance(error, type(original))
        assert type(error).__name__ == f"TaskError({type(original).__name__})"
        with pytest.raises(type(original)):
            raise error


@pytest.mark.parametrize("shape", SHAPES)
def test_error_of_any_shape_keeps_the_remote_text(shape: str) -> None:
    original = SHAPES[shape]()
    try:
        text = str(original)
    except ValueError:
        text = ""

    error = carried(original)

    told = str(error)
    assert told.startswith("skate::work() (pid=12, ip=10.0.0.1)\n")
    assert type(original).__name__ in told
    assert text[:1000] in told or shape == "syntax"
    assert "skate_worker/" not in told


@pytest.mark.parametrize("shape", SHAPES)
def test_error_of_any_shape_survives_pickling_after_get(shape: str) -> None:
    error = carried(SHAPES[shape]())

    again = pickle.loads(pickle.dumps(error)) if shape != "local_class" else error

    assert type(again).__name__ == type(error).__name__
    assert str(again) == str(error)


def test_corpus_has_sixty_shapes() -> None:
    assert len(SHAPES) >= 60


def test_error_attributes_arrive() -> None:
    def code(shape: str, name: str) -> Any:
        return getattr(carried(SHAPES[shape]()), name)

    assert code("keyword_only", "code") == 3
    assert code("slots", "code") == "seven"
    assert carried(SHAPES["slots"]()).hidden() == "seven"  # type: ignore[attr-defined]
    assert code("property", "code") == 4
    assert code("own_new", "extra") == 3
    assert code("os_error", "errno") == 2
    assert code("os_error", "filename") == "/none"
    assert code("os_subclass", "path") == "/none"
    assert code("os_subclass", "errno") == 2
    assert code("enum", "code") is Code.BAD
    assert code("kwargs", "color") == "red"
    assert code("callable_attribute", "retry")() == 7
    assert code("unpicklable_attribute", "code") == 7
    assert "not sent" in repr(code("unpicklable_attribute", "lock"))
    assert code("unicode_decode", "start") == 0
    assert code("import", "name") == "no_such_module_here"
    assert code("json", "pos") == 1
    assert code("http", "code") == 404
    assert code("stop_iteration", "value") == 7
    assert code("system_exit", "code") == 3
    assert code("dataclass", "text") == MARK
    assert code("own_group", "code") == 5


def test_error_args_arrive_unchanged() -> None:
    assert carried(SHAPES["message_changing"]()).args == (f"changed: {MARK}",)
    assert carried(SHAPES["many_args"]()).args == (MARK, 1, [2], {"three": 3})
    assert carried(SHAPES["read_only_args"]()).args == ("computed",)
    assert carried(SHAPES["os_error"]()).args == (2, MARK)


def test_error_group_is_split_by_except_star() -> None:
    caught: list[BaseException] = []
    try:
        raise carried(SHAPES["group"]())
    except* ValueError as group:
        caught += group.exceptions
    except* KeywordOnlyError as group:
        caught += group.exceptions

    assert [type(error) for error in caught] == [ValueError, KeywordOnlyError]


def test_error_chain_and_notes_arrive() -> None:
    chained = carried(SHAPES["from_cause"]())
    assert isinstance(chained.__cause__, KeyError)
    assert isinstance(carried(SHAPES["in_context"]()).__context__, KeyError)
    assert getattr(carried(SHAPES["notes"]()), "__notes__") == ["a note"]  # noqa: B009


def test_error_of_final_class_stays_a_task_error(caplog: pytest.LogCaptureFixture) -> None:
    error = carried(FinalError(MARK))

    assert type(error) is TaskError
    assert type(error.cause) is FinalError
    assert "FinalError" in caplog.text


def test_error_of_local_class_is_rebuilt_by_value() -> None:
    error = carried(SHAPES["local_class"]())

    assert MARK in error.args
