"""The error tree: fields, messages, pickling, aliases, and the wrapping of user errors."""

from __future__ import annotations

import pickle
import sys
import threading
import types
from types import SimpleNamespace
from typing import Any

import pytest

from skate_worker import errors
from skate_worker.errors import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    RecordError,
    SkateError,
    TaskError,
    UnserializableError,
    WorkerCrashedError,
    make_dependency_error,
    make_task_error,
)
from skate_worker.serialization import deserialize, serialize


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - the error is the subject.
        return caught


def wrapped(error: BaseException, name: str = "work", **more: Any) -> TaskError:
    return make_task_error(raised(error), function_name=name, pid=1, ip="10.0.0.1", **more)


def _record_classes(cls: type = RecordError) -> list[type]:
    found = [cls] if not cls.__name__.startswith(("Record", "_")) else []
    for sub in cls.__subclasses__():
        found += _record_classes(sub)
    return found


@pytest.mark.parametrize("cls", _record_classes(), ids=lambda cls: cls.__name__)
def test_record_error_without_arguments_has_text_and_pickles(cls: type[RecordError]) -> None:
    error = cls()
    error.add_note("note")

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is cls
    assert str(again) == str(error) != ""
    assert again.__notes__ == ["note"]
    assert {n: getattr(again, n) for n in cls.FIELDS} == {n: getattr(error, n) for n in cls.FIELDS}


def test_every_exported_error_ends_in_error_or_is_an_alias() -> None:
    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type):
            assert value.__name__.endswith("Error")
            assert issubclass(value, SkateError)


def test_tree_has_the_documented_bases() -> None:
    assert issubclass(GetTimeoutError, TimeoutError)
    assert issubclass(ActorAlreadyExistsError, ValueError)
    assert issubclass(errors.ActorHandleNotFoundError, ValueError)
    assert issubclass(ActorDiedError, ActorError)
    assert issubclass(ActorUnavailableError, ActorError)
    assert issubclass(OwnerDiedError, errors.ObjectLostError)
    assert issubclass(errors.ReferenceCountingAssertionError, AssertionError)
    assert errors.RayError is SkateError
    assert errors.RayTaskError is TaskError
    assert errors.RayActorError is ActorError


def test_worker_crashed_error_from_death_tells_signal_and_output() -> None:
    death = SimpleNamespace(
        kind="signaled", message="", pid=5, exit_code=0, signal=9, log_tail="last words"
    )

    error = pickle.loads(pickle.dumps(WorkerCrashedError.of(death, "train")))

    assert (error.signal, error.pid, error.task_name) == (9, 5, "train")
    assert "train" in str(error)
    assert "SIGKILL" in str(error)
    assert "last words" in str(error)


def test_actor_died_error_from_row_tells_all_that_is_known() -> None:
    actor = SimpleNamespace(
        actor_id=b"\x01" * 16, class_name="Bank", name="b", namespace="ns", pid=7, node_id=b"\x02"
    )
    death = SimpleNamespace(
        kind="killed_by_user", message="killed", pid=7, exit_code=0, signal=9, log_tail=""
    )

    error = ActorDiedError.of(actor, death)

    assert error.actor_id == "01" * 16
    for part in ("killed", "Bank", "01" * 16, "pid: 7", "name: b", "namespace: ns"):
        assert part in str(error)
    assert not error.never_ran


def test_actor_died_error_of_actor_without_process_says_never_ran() -> None:
    actor = SimpleNamespace(
        actor_id=b"\x01" * 16, class_name="Bank", name="", namespace="", pid=0, node_id=b""
    )
    death = SimpleNamespace(
        kind="killed_by_user", message="killed", pid=0, exit_code=0, signal=0, log_tail=""
    )

    assert "never ran" in str(ActorDiedError.of(actor, death))


def test_reconstruction_error_names_reason_in_brackets() -> None:
    error = ObjectReconstructionFailedError("ab", reason="MAX_ATTEMPTS_EXCEEDED")

    assert "[MAX_ATTEMPTS_EXCEEDED]" in str(pickle.loads(pickle.dumps(error)))


def test_task_error_first_line_names_actor() -> None:
    error = wrapped(ValueError("x"), "A.m", actor_id="ab", actor_repr="A()")

    assert str(error).splitlines()[0] == (
        "skate::A.m() (pid=1, ip=10.0.0.1, actor_id=ab, repr=A())"
    )


def test_nested_task_error_is_flattened_and_tells_both_traces() -> None:
    inner = wrapped(ValueError("boom"), "inner").as_instanceof_cause()

    outer = wrapped(inner, "outer")

    assert type(outer.cause) is ValueError
    assert outer.cause.args == ("boom",)
    lines = str(outer)
    assert lines.index("skate::outer()") < lines.index("skate::inner()") < lines.index("boom")
    assert lines.count("ValueError: boom") == 1


def test_dual_error_is_not_wrapped_again() -> None:
    dual = wrapped(ValueError("x")).as_instanceof_cause()

    assert dual.as_instanceof_cause() is dual


def test_dual_class_is_made_once() -> None:
    first = wrapped(ValueError("x")).as_instanceof_cause()
    second = wrapped(ValueError("y")).as_instanceof_cause()

    assert type(first) is type(second)


def test_dual_error_unknown_attribute_raises_attribute_error() -> None:
    dual = wrapped(ValueError("x")).as_instanceof_cause()

    with pytest.raises(AttributeError, match="nothing"):
        dual.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_task_error_of_superclass_cause_is_returned_itself() -> None:
    for cause in (Exception("x"), SkateError("x")):
        error = wrapped(cause)
        assert error.as_instanceof_cause() is error


def test_dependency_error_says_so_and_raises_the_cause() -> None:
    inner = wrapped(KeyError("k"), "inner")

    error = make_dependency_error(inner, function_name="outer", pid=2, ip="10.0.0.2")

    assert "At least one of the input arguments" in str(error)
    assert "skate::inner()" in str(error)
    with pytest.raises(KeyError):
        raise error.as_instanceof_cause()


def test_dependency_on_dead_actor_is_caught_as_such() -> None:
    error = make_dependency_error(
        ActorDiedError("gone", actor_id="ab"), function_name="outer", pid=2, ip="10.0.0.2"
    )

    with pytest.raises(ActorDiedError) as caught:
        raise error.as_instanceof_cause()
    assert caught.value.actor_id == "ab"


def test_error_whose_class_is_missing_here_keeps_its_text() -> None:
    module = types.ModuleType("module_of_the_worker")
    exec("class LostError(Exception): pass", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        data = serialize(wrapped(module.LostError("its text")), is_error=True).to_bytes()
    finally:
        del sys.modules[module.__name__]

    error = deserialize(data).to_raise()

    assert isinstance(error, TaskError)
    assert isinstance(error.cause, UnserializableError)
    assert "its text" in str(error)
    assert "module_of_the_worker" in str(error.cause)
    # It still has its pickle: a process that has the module gets the class.
    sys.modules[module.__name__] = module
    try:
        assert type(pickle.loads(pickle.dumps(error)).cause) is module.LostError
    finally:
        del sys.modules[module.__name__]


def test_error_whose_class_can_not_be_sent_becomes_a_skate_error() -> None:
    class LockedError(Exception):
        lock = threading.Lock()

    error = wrapped(LockedError("its text"))

    assert type(error.cause) is SkateError
    assert "isn't serializable" in str(error.cause)
    assert "its text" in str(error)


def test_full_traceback_variable_shows_runtime_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        deserialize(b"\x80\x05garbage")

    def text() -> str:
        try:
            fail()
        except SkateError as error:
            return str(make_task_error(error, function_name="f", pid=1, ip="i"))
        raise AssertionError

    assert "wire.py" not in text()
    assert "in fail" in text()
    monkeypatch.setenv("SKATE_FULL_TB", "1")
    assert "wire.py" in text()
