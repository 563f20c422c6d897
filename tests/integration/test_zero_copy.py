"""Large values share memory where their type allows it, and nobody can change what others see."""

from __future__ import annotations

import gc
import sys
from typing import Any

import numpy as np
import pytest

import skate
from skate.exceptions import DeserializationError, TaskError
from skate.util import deregister_serializer, register_serializer
from skate_worker.current import require_core

pytestmark = pytest.mark.usefixtures("shared_cluster")
WAIT_S = 40.0
LARGE = 200_000


class Labelled(np.ndarray):
    pass


def lies_in_the_store(address: int) -> bool:
    store = require_core().ownership.store
    assert store is not None
    mapping = store._attachment.mapping
    return 0 <= address - mapping.read_address < mapping.size_bytes


ARRAYS = {
    "plain": np.arange(LARGE, dtype=np.float64),
    "matrix": np.arange(LARGE).reshape(100, -1),
    "fortran": np.asfortranarray(np.arange(LARGE).reshape(100, -1)),
    "structured": np.zeros(LARGE, dtype=[("a", "i4"), ("b", "f8")]),
    "dates": np.arange(LARGE).astype("datetime64[s]"),
    "text": np.full(LARGE, "abc"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_array_is_a_read_only_view_of_the_store(name: str) -> None:
    array = ARRAYS[name]
    got = skate.get(skate.put(array))

    assert type(got) is type(array)
    assert got.dtype == array.dtype
    assert got.flags.f_contiguous == array.flags.f_contiguous
    assert np.array_equal(got, array)
    assert lies_in_the_store(got.ctypes.data)
    assert got.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        got.flat[0] = got.flat[1]
    own = skate.get(skate.put(array), copy=True)
    own.flat[0] = own.flat[1]


@pytest.mark.parametrize(
    "array",
    [
        np.float32(3),
        np.array(7),
        np.empty((0, 3)),
        np.arange(20)[::3],
        np.array([1, "a", None], dtype=object),
        np.ma.masked_array([1, 2], mask=[True, False]),
        np.arange(LARGE)[::2],
        np.arange(LARGE).view(Labelled),
        np.arange(9).astype("timedelta64[ms]")[::2],
        np.array("2020-01-01", dtype="datetime64[D]"),
    ],
    ids=[
        *("scalar", "0d", "empty", "strided", "objects", "masked", "large_strided", "subclass"),
        *("strided_times", "0d_date"),
    ],
)
def test_array_of_an_unusual_kind_round_trips(array: Any) -> None:
    got = skate.get(skate.put([array, np.zeros(LARGE)]))[0]
    assert type(got) is type(array)
    assert np.array_equal(got, array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape


def test_array_outlives_its_reference_and_same_value_is_mapped_once() -> None:
    ref = skate.put(np.arange(LARGE))
    first, second = skate.get([ref, ref])
    assert first.ctypes.data == second.ctypes.data
    del ref, second
    gc.collect()
    others = [skate.put(np.zeros(LARGE)) for _ in range(20)]
    assert np.array_equal(first, np.arange(LARGE))
    assert len(others) == 20


def test_items_of_a_list_that_repeats_one_keep_their_identity() -> None:
    array = np.zeros(LARGE)
    got = skate.get(skate.put([array] * 99))
    assert len(got) == 99
    assert all(item is got[0] for item in got)


def test_argument_and_return_of_a_task_are_views() -> None:
    @skate.remote
    def look(array: Any) -> Any:
        return array.flags.writeable, array.ctypes.data % 64, array * 2

    writeable, misaligned, doubled = skate.get(look.remote(np.arange(LARGE)), timeout=WAIT_S)
    assert (writeable, misaligned) == (False, 0)
    assert np.array_equal(doubled, np.arange(LARGE) * 2)
    assert not doubled.flags.writeable


def test_bytearrays_are_private_copies() -> None:
    ref = skate.put(bytearray(LARGE))
    got = skate.get(ref)
    got[0] = 1
    assert skate.get(ref)[0] == 0


# ---- Arrow ----


def test_arrow_data_is_a_view_of_the_store() -> None:
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"n": list(range(LARGE)), "s": [f"row {n}" for n in range(LARGE)]})

    got = skate.get(skate.put(table))

    assert got.equals(table)
    for column in ("n", "s"):
        buffers = got.column(column).chunk(0).buffers()
        addresses = [buffer.address for buffer in buffers if buffer is not None]
        assert all(map(lies_in_the_store, addresses))
        assert all(address % 64 == 0 for address in addresses)
        assert not any(buffer.is_mutable for buffer in buffers if buffer is not None)
    array = skate.get(skate.put(arrow.array(range(LARGE))))
    assert lies_in_the_store(array.buffers()[1].address)


# ---- torch ----


def test_tensor_shares_pages_until_it_is_written_to() -> None:
    torch = pytest.importorskip("torch")
    ref = skate.put({"weights": torch.arange(LARGE * 2, dtype=torch.float32)})

    first, second = skate.get(ref)["weights"], skate.get(ref)["weights"]
    first[0] = -1
    first[-1] = -2

    assert second[0] == 0
    assert skate.get(ref)["weights"][-1] == LARGE * 2 - 1
    assert torch.equal(first[1:-1], second[1:-1])
    del ref
    gc.collect()
    others = [skate.put(np.zeros(LARGE * 2)) for _ in range(10)]
    assert second.sum() == torch.arange(LARGE * 2, dtype=torch.float32).sum()
    assert len(others) == 10


def test_tensor_argument_may_be_changed_by_the_task() -> None:
    torch = pytest.importorskip("torch")

    @skate.remote
    def add_one(tensor: Any) -> Any:
        tensor += 1
        return tensor

    tensor = torch.zeros(LARGE, dtype=torch.bfloat16).requires_grad_(False)
    ref = skate.put(tensor)
    results = skate.get([add_one.remote(ref), add_one.remote(ref)], timeout=WAIT_S)
    assert all(torch.equal(result, torch.ones_like(tensor)) for result in results)
    assert torch.equal(skate.get(ref), tensor)


# ---- serializers of the user ----


class Handle:
    """Something that can not be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        raise TypeError("a handle can not be pickled")


@pytest.fixture
def handles() -> Any:
    register_serializer(Handle, serializer=lambda h: h.name, deserializer=lambda n: Handle(f"{n}!"))
    yield
    deregister_serializer(Handle)


@pytest.mark.usefixtures("handles")
def test_serializer_travels_with_the_value_also_when_it_is_nested() -> None:
    @skate.remote
    def names(values: list[Any], *, one: Any) -> list[str]:
        # Nothing is registered here: the deserializer came along, the serializer did not.
        return [value.name for value in [*values, one]]

    given = names.remote([Handle("a"), Handle("b")], one=Handle("c"))
    assert skate.get(given, timeout=WAIT_S) == ["a!", "b!", "c!"]
    assert skate.get(skate.put({"k": Handle("d")}))["k"].name == "d!"


@pytest.mark.usefixtures("handles")
def test_serializer_is_of_this_process_only() -> None:
    @skate.remote
    def give_back(value: Any) -> Any:
        return value

    with pytest.raises(TaskError, match="a handle can not be pickled"):
        skate.get(give_back.remote(Handle("a")), timeout=WAIT_S)


def test_value_without_its_serializer_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match="a handle can not be pickled"):
        skate.put([1, {"key": Handle("x")}])


def test_serializer_that_raises_gives_a_type_error_with_its_cause() -> None:
    def refuse(value: Handle) -> str:
        raise ValueError("not today")

    register_serializer(Handle, serializer=refuse, deserializer=Handle)
    try:
        with pytest.raises(TypeError, match="not today") as caught:
            skate.put([Handle("x")])
    finally:
        deregister_serializer(Handle)
    assert isinstance(caught.value.__cause__, ValueError)


def test_deserializer_that_raises_gives_an_error_with_its_traceback() -> None:
    def refuse(name: str) -> Handle:
        raise ValueError(f"no {name} here")

    @skate.remote
    def take(value: Any) -> None:
        return None

    register_serializer(Handle, serializer=lambda h: h.name, deserializer=refuse)
    try:
        ref = skate.put(Handle("x"))
        remote = take.remote(Handle("y"))
    finally:
        deregister_serializer(Handle)
    with pytest.raises(DeserializationError, match="no x here") as caught:
        skate.get(ref)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(DeserializationError, match="no y here") as remote_caught:
        skate.get(remote, timeout=WAIT_S)
    assert "in refuse" in str(remote_caught.value)


def test_module_that_a_reader_lacks_gives_an_error_that_names_it() -> None:
    module = type(sys)("only_here")
    exec("class Thing: pass", module.__dict__)
    module.Thing.__module__ = "only_here"
    sys.modules["only_here"] = module
    ref = skate.put(module.Thing())
    del sys.modules["only_here"]
    with pytest.raises(DeserializationError, match="only_here"):
        skate.get(ref)
