"""``put``, ``get``, ``wait`` and ``cancel``: what they accept, without a cluster."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import skate
from skate_worker import current
from skate_worker.errors import NotInitializedError, UnknownOwnerError
from skate_worker.object_ref import ObjectRef
from skate_worker.object_ref_generator import ObjectRefGenerator


class Runtime:
    """A runtime whose objects are their own index."""

    is_driver = True
    is_closed = False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def note_dropped(self, entry: Any) -> None:
        pass

    def put(self, value: Any) -> Any:
        self.calls.append(("put", value))
        return "ref"

    def get(self, refs: Any, timeout_s: Any) -> list[Any]:
        self.calls.append(("get", len(refs), timeout_s))
        return [ref.binary()[0] for ref in refs]

    def get_copies(self, refs: Any, timeout_s: Any) -> list[Any]:
        self.calls.append(("get_copies", len(refs), timeout_s))
        return [ref.binary()[0] for ref in refs]

    def wait(self, refs: Any, num_returns: int, timeout_s: Any, fetch_local: bool) -> Any:
        self.calls.append(("wait", num_returns, timeout_s, fetch_local))
        return refs[:num_returns], refs[num_returns:]

    def cancel(self, ref: Any, force: bool, recursive: bool) -> None:
        self.calls.append(("cancel", force, recursive))


class Entry:
    owner = None

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id


@pytest.fixture
def runtime() -> Any:
    made = Runtime()
    current.set_current_core(made)  # type: ignore[arg-type]
    yield made
    current.set_current_core(None)


def ref(number: int, *, of_actor: bool = False) -> ObjectRef[Any]:
    """A reference of the present session, or of one of its own when there is none."""
    middle = b"\x01" * 12 if of_actor else b"\xff" * 12
    object_id = bytes([number]) + bytes(7) + middle + bytes(8)
    core: Any = current.current_core() or Runtime()
    return ObjectRef(core, Entry(object_id))  # type: ignore[arg-type]


def test_get_of_a_reference_and_of_a_list(runtime: Runtime) -> None:
    a, b = ref(1), ref(2)

    assert skate.get(a) == 1
    assert skate.get([b, a, b]) == [2, 1, 2]
    assert skate.get([]) == []


@pytest.mark.parametrize(
    ("timeout", "passed"), [(None, None), (-1, None), (0, 0.0), (2, 2.0), (float("inf"), None)]
)
def test_get_timeout_is_passed_on(runtime: Runtime, timeout: Any, passed: Any) -> None:
    skate.get(ref(1), timeout=timeout)

    assert runtime.calls == [("get", 1, passed)]


def test_get_with_copy_asks_for_copies(runtime: Runtime) -> None:
    assert skate.get(ref(1), copy=True, timeout=2) == 1
    assert skate.get([ref(2), ref(3)], copy=True) == [2, 3]
    assert runtime.calls == [("get_copies", 1, 2.0), ("get_copies", 2, None)]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ((), ValueError),
        ("ref", ValueError),
        (3, ValueError),
        ({1: 2}, ValueError),
        (None, ValueError),
        ([3], TypeError),
        ([None], TypeError),
        (["ref"], TypeError),
    ],
)
def test_get_of_something_else_is_refused(runtime: Runtime, value: Any, error: Any) -> None:
    with pytest.raises(error, match="ObjectRef"):
        skate.get(value)
    assert runtime.calls == []


def test_get_of_a_tuple_or_a_function_says_what_to_do(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="flat list"):
        skate.get((ref(1),))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"\.remote\(\)"):
        skate.get([skate.remote(lambda: 1)])


@pytest.mark.parametrize(
    ("timeout", "error"), [(-2, ValueError), ("1", TypeError), (True, TypeError)]
)
def test_get_with_wrong_timeout_is_refused(runtime: Runtime, timeout: Any, error: Any) -> None:
    with pytest.raises(error, match="timeout"):
        skate.get(ref(1), timeout=timeout)


def test_wait_passes_its_options_on(runtime: Runtime) -> None:
    refs = [ref(1), ref(2), ref(3)]

    ready, rest = skate.wait(refs, num_returns=2, timeout=1, fetch_local=False)

    assert (ready, rest) == (refs[:2], refs[2:])
    assert runtime.calls == [("wait", 2, 1.0, False)]
    assert skate.wait([]) == ([], [])


@pytest.mark.parametrize(
    ("refs", "options", "error"),
    [
        ("single", {}, TypeError),
        ("tuple", {}, TypeError),
        ("integer", {}, TypeError),
        ("mixed", {}, TypeError),
        ("twice", {}, ValueError),
        ("two", {"num_returns": 0}, ValueError),
        ("two", {"num_returns": 3}, ValueError),
        ("two", {"num_returns": 1.0}, TypeError),
        ("two", {"timeout": -1}, ValueError),
        ("two", {"timeout": "1"}, TypeError),
    ],
)
def test_wait_with_wrong_arguments_is_refused(
    runtime: Runtime, refs: str, options: Any, error: Any
) -> None:
    a, b = ref(1), ref(2)
    values: dict[str, Any] = {
        "single": a,
        "tuple": (a, b),
        "integer": 3,
        "mixed": [a, 3],
        "twice": [a, b, a],
        "two": [a, b],
    }

    with pytest.raises(error):
        skate.wait(values[refs], **options)
    assert runtime.calls == []


def test_put_refuses_references_and_unsupported_options(runtime: Runtime) -> None:
    skate.put([ref(1)])
    with pytest.raises(TypeError, match="not a reference"):
        skate.put(ref(1))
    with pytest.raises(TypeError, match="actor handle as _owner, got str"):
        skate.put(1, _owner="actor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="_tensor_transport"):
        skate.put(1, _tensor_transport="nccl")  # type: ignore[arg-type]


def test_cancel_checks_its_arguments(runtime: Runtime) -> None:
    skate.cancel(ref(1), force=True)
    skate.cancel(ref(1, of_actor=True), recursive=False)

    assert runtime.calls == [("cancel", True, True), ("cancel", False, False)]
    with pytest.raises(TypeError, match="ObjectRef"):
        skate.cancel("ref")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="actor"):
        skate.cancel(ref(1, of_actor=True), force=True)


def test_reference_of_an_ended_session_is_refused(runtime: Runtime) -> None:
    old = ref(1)
    current.set_current_core(Runtime())  # type: ignore[arg-type]

    for use in (skate.get, lambda r: skate.get([r]), lambda r: skate.wait([r]), skate.cancel):
        with pytest.raises(UnknownOwnerError, match="owner is unknown"):
            use(old)
    assert issubclass(UnknownOwnerError, ValueError)


@pytest.mark.parametrize("call", [lambda: skate.put(1), lambda: skate.get(ref(1)), skate.nodes])
def test_without_a_session_calls_raise(call: Any) -> None:
    with pytest.raises(NotInitializedError):
        call()


class Stream:
    """What a generator reads of its stream."""

    is_finished = True
    task_id = b"\x05" * 24

    def __init__(self) -> None:
        self.head = Entry(b"\x05" * 28)


def generator() -> ObjectRefGenerator[Any]:
    core: Any = current.current_core()
    stream: Any = Stream()
    return ObjectRefGenerator(core, stream, ref(5))


def test_get_of_a_generator_is_the_generator(runtime: Runtime) -> None:
    made = generator()
    assert skate.get(made) is made
    assert runtime.calls == []


def test_wait_and_cancel_take_generators(runtime: Runtime) -> None:
    made, other = generator(), ref(1)
    assert skate.wait([made, other]) == ([made], [other])
    skate.cancel(made)
    assert [call[0] for call in runtime.calls] == ["wait", "cancel"]
    with pytest.raises(ValueError, match="same one twice"):
        skate.wait([made, made])
    with pytest.raises(TypeError, match="the list has int"):
        skate.wait([made, 3])


def test_generator_refuses_what_only_a_local_one_can_do(runtime: Runtime) -> None:
    made = generator()
    for call in (lambda: made.send(1), lambda: made.throw(ValueError), made.close):
        with pytest.raises(NotImplementedError):
            call()
    for coroutine in (made.asend(1), made.athrow(ValueError), made.aclose()):
        with pytest.raises(NotImplementedError):
            coroutine.send(None)
    with pytest.raises(TypeError, match="pass the references"):
        pickle.dumps(made)
