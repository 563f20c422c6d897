"""Values become bytes and come back; large buffers are not copied; references are collected."""

from __future__ import annotations

import dataclasses
import gc
import math
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_worker import errors
from skate_worker.serialization import (
    ErrorValue,
    Serialized,
    deregister_serializer,
    deserialize,
    is_error,
    register_reference_type,
    register_serializer,
    serialize,
)


class Ref:
    """A reference as the runtime has them: equal by name, collected when pickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


register_reference_type(Ref, lambda ref: (Ref, (ref.name,)))


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Config:
    name: str
    parts: list[Any]


class Locked:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value = 3


def round_trip(value: Any) -> Any:
    return deserialize(serialize(value).to_bytes())


def written(serialized: Serialized) -> bytearray:
    """The parts one after the other, as the object store writes them."""
    memory = bytearray()
    for part in serialized.parts:
        memory += part
    return memory


def aligned(data: bytes | bytearray) -> memoryview:
    """The bytes in memory that starts at a multiple of 64, like the store's."""
    room = np.zeros(len(data) + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + len(data)] = np.frombuffer(data, dtype=np.uint8)
    return memoryview(room)[start : start + len(data)].toreadonly()


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_value_of_plain_types_round_trips(value: Any) -> None:
    serialized = serialize(value)

    data = serialized.to_bytes()

    assert deserialize(data) == value
    assert type(deserialize(data)) is type(value)
    assert serialized.total_bytes == len(data)
    assert not is_error(data)


@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2),
        Config("a", [1, {"b": 2}]),
        OrderedDict(a=1),
        deque([1, 2]),
        {1, 2},
        frozenset({1}),
        range(5),
        3 + 4j,
        True,
        slice(1, 2),
        np.float32(2.5),
        np.datetime64("2026-01-01"),
        bytearray(b"abc"),
        Ellipsis,
        int,
        math.sqrt,
        np.add,
    ],
    ids=repr,
)
def test_value_of_richer_type_round_trips(value: Any) -> None:
    again = round_trip(value)

    assert again == value
    assert type(again) is type(value)


def test_function_and_closure_round_trip() -> None:
    offset = 10

    assert round_trip(lambda x: x + offset)(5) == 15


def test_recursive_container_round_trips() -> None:
    value: list[Any] = [1]
    value.append(value)

    again = round_trip(value)

    assert again[1] is again


def test_shared_item_keeps_its_identity() -> None:
    item = [1]

    again = round_trip([item] * 99)

    assert all(part is again[0] for part in again)


def test_plain_value_is_a_pickle_without_a_prefix() -> None:
    assert serialize((1, "a")).to_bytes()[0] == 0x80


def test_long_bytes_are_not_copied_into_a_pickle() -> None:
    value = bytes(range(256)) * 1000

    serialized = serialize(value)

    assert any(part is value for part in serialized.parts)
    assert deserialize(serialized.to_bytes()) == value
    assert serialized.total_bytes == len(written(serialized))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 1000, 100_000])
@pytest.mark.parametrize("count", [1, 3])
def test_arrays_lie_at_multiples_of_64_and_are_read_only_views(length: int, count: int) -> None:
    value = [np.arange(length, dtype=np.int64) + index for index in range(count)]

    serialized = serialize(value)
    memory = aligned(written(serialized))
    again = deserialize(memory)

    assert serialized.total_bytes == len(memory)
    base = np.frombuffer(memory, dtype=np.uint8)
    for old, new in zip(value, again, strict=True):
        assert np.array_equal(old, new)
        assert not new.flags.writeable
        if length:
            assert new.ctypes.data % 64 == 0
            assert np.shares_memory(new, base)


def test_array_parts_alias_the_array() -> None:
    value = np.zeros(10_000)

    serialized = serialize(value)

    assert any(
        np.shares_memory(np.frombuffer(part, np.uint8), value)
        for part in serialized.parts
        if len(part) == value.nbytes
    )


def test_array_writing_is_refused() -> None:
    again = round_trip(np.zeros(3))

    with pytest.raises(ValueError, match="read-only"):
        again[0] = 1


def test_array_of_fortran_order_and_of_subclass_round_trip() -> None:
    fortran = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    strided = np.arange(20)[::2]
    masked = np.ma.masked_array([1, 2, 3], mask=[0, 1, 0])
    objects = np.array([{"a": 1}, None], dtype=object)

    assert np.array_equal(round_trip(fortran), fortran)
    assert round_trip(fortran).flags.f_contiguous
    assert np.array_equal(round_trip(strided), strided)
    assert round_trip(masked).mask.tolist() == [False, True, False]
    assert round_trip(objects).tolist() == [{"a": 1}, None]


def test_view_keeps_the_memory_alive() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(written(serialize(np.arange(1000))))
    gone = weakref.ref(memory)
    array = deserialize(memoryview(memory))
    del memory
    gc.collect()

    assert gone() is not None
    assert array[999] == 999
    del array
    gc.collect()
    assert gone() is None


def test_references_inside_a_value_are_collected_in_order() -> None:
    value = {"a": [Ref("x")], "b": Config("c", [Ref("y"), Ref("x")])}

    serialized = serialize(value)

    assert serialized.contained == [Ref("x"), Ref("y"), Ref("x")]
    assert deserialize(serialized.to_bytes()) == value


def test_references_in_a_closure_are_collected() -> None:
    ref = Ref("captured")

    assert serialize(lambda: ref).contained == [ref]


def test_plain_value_contains_no_references() -> None:
    assert list(serialize({"a": 1}).contained) == []


def test_error_value_is_marked_and_raised_by_its_own_class() -> None:
    serialized = serialize(ValueError("x"), is_error=True)
    data = serialized.to_bytes()

    value = deserialize(data)

    assert is_error(data)
    assert isinstance(value, ErrorValue)
    with pytest.raises(ValueError, match="x"):
        raise value.to_raise()


def test_error_value_with_an_array_is_marked() -> None:
    data = serialize(ValueError(np.arange(3)), is_error=True).to_bytes()

    value = deserialize(data)

    assert is_error(data)
    assert isinstance(value, ErrorValue)
    assert isinstance(value.error, ValueError)
    assert value.error.args[0].tolist() == [0, 1, 2]


def test_exception_as_an_ordinary_value_is_not_an_error() -> None:
    assert isinstance(round_trip(ValueError("x")), ValueError)


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x05X", b"\x02\x00", b"\x00not a pickle", b"\x02" + b"\xff" * 40]
)
def test_unreadable_bytes_raise_deserialization_error(data: bytes) -> None:
    with pytest.raises(errors.DeserializationError):
        deserialize(data)


def test_unpicklable_value_raises_type_error_with_path() -> None:
    with pytest.raises(TypeError, match=r"\.lock -> _thread\.lock"):
        serialize(Locked())


def test_registered_serializer_is_used_until_deregistered() -> None:
    def load(number: int) -> Locked:
        made = Locked()
        made.value = number
        return made

    register_serializer(Locked, serializer=lambda v: v.value + 1, deserializer=load)
    try:
        assert round_trip([Locked()])[0].value == 4
    finally:
        deregister_serializer(Locked)
    with pytest.raises(TypeError):
        serialize(Locked())
    deregister_serializer(Locked)


def test_register_serializer_with_wrong_arguments_raises_type_error() -> None:
    with pytest.raises(TypeError, match="class"):
        register_serializer(3, serializer=id, deserializer=id)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        register_serializer(Locked, serializer=3, deserializer=id)  # type: ignore[arg-type]


def test_copyreg_registration_after_the_first_use_is_seen() -> None:
    import copyreg

    class Odd:
        pass

    serialize(Odd())
    copyreg.pickle(Odd, lambda _: "Ellipsis")  # type: ignore[arg-type]
    try:
        with pytest.raises(TypeError, match=r"Ellipsis|Odd"):
            serialize(Odd())
    finally:
        del copyreg.dispatch_table[Odd]
