"""Arguments of calls: top-level references apart, large values promoted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skate_worker.errors import UnknownOwnerError
from skate_worker.object_ref import ObjectRef
from skate_worker.serialization import (
    ALL_ARGUMENTS,
    EMPTY_ARGUMENTS,
    INLINE_LIMIT_BYTES,
    Serialized,
    deserialize,
    deserialize_args,
    serialize_args,
)


class Core:
    """What a reference needs of its runtime."""

    records_sites = False
    is_closed = False

    class as_owner:  # noqa: N801 - an attribute of the runtime.
        worker_id = b"w"
        endpoint = "unix:/w"
        node_id = b"n"

    def note_dropped(self, entry: Any) -> None:
        pass


class Entry:
    owner = None

    def __init__(self, object_id: bytes) -> None:
        self.object_id = object_id


def ref(name: bytes) -> ObjectRef[Any]:
    return ObjectRef(Core(), Entry(name))  # type: ignore[arg-type]


def test_no_arguments_share_one_constant() -> None:
    data, nested, top = serialize_args((), {})

    assert data is EMPTY_ARGUMENTS
    assert not nested
    assert not top
    assert deserialize_args(data) == ((), {})


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((1, "a", None), {}),
        (([1, 2], {"k": 3}), {"z": (1,)}),
        ((), {"z": 1}),
        ((object,), {}),
        (([[1]],), {}),
    ],
)
def test_arguments_round_trip(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    data, nested, top = serialize_args(args, kwargs)

    assert deserialize_args(data) == (args, kwargs)
    assert not nested
    assert not top


def test_top_level_references_are_apart_and_resolved() -> None:
    a, b, c = ref(b"a"), ref(b"b"), ref(b"c")

    _, nested, top = serialize_args((1, a, [b]), {"k": c, "plain": 2})

    assert [(position, r) for position, r in top] == [(1, a), ("k", c)]
    assert list(nested) == [b]


def test_resolved_values_stand_in_their_places() -> None:
    data, _, top = serialize_args((1, ref(b"a"), 3), {"k": ref(b"b")})

    resolved = [(position, f"value of {position}") for position, _ in top]

    assert deserialize_args(data, resolved) == ((1, "value of 1", 3), {"k": "value of k"})


def test_same_reference_twice_has_two_positions() -> None:
    a = ref(b"a")

    assert [position for position, _ in serialize_args((a, a), {})[2]] == [0, 1]


def test_arguments_are_not_changed() -> None:
    kwargs = {"k": ref(b"a")}

    serialize_args((), kwargs)

    assert isinstance(kwargs["k"], ObjectRef)


@pytest.mark.parametrize(
    "large",
    [b"x" * (INLINE_LIMIT_BYTES + 1), np.zeros(INLINE_LIMIT_BYTES), list(range(200_000))],
    ids=["bytes", "array", "list"],
)
def test_large_argument_is_promoted_and_small_ones_stay(large: Any) -> None:
    stored: dict[str, Serialized] = {}

    def promote(value: Serialized) -> str:
        stored[f"ref{len(stored)}"] = value
        return f"ref{len(stored) - 1}"

    data, _, top = serialize_args((1, large), {"k": large, "s": 2}, promote)

    assert list(top) == [(1, "ref0"), ("k", "ref1")]
    assert len(data) < 1000
    assert np.array_equal(deserialize(stored["ref0"].to_bytes()), large)
    assert deserialize_args(data, [(1, "v"), ("k", "w")]) == ((1, "v"), {"k": "w", "s": 2})


def test_many_small_arguments_stay_inline_up_to_the_total_then_become_one_object() -> None:
    promoted: list[Serialized] = []
    chunks = tuple(bytes([n]) * 90_000 for n in range(120))

    def promote(value: Serialized) -> str:
        promoted.append(value)
        return f"ref{len(promoted) - 1}"

    serialize_args(chunks[:100], {}, promote)
    assert not promoted

    data, nested, top = serialize_args(chunks, {"k": 1}, promote)

    assert (data, list(nested), list(top)) == (b"", [], [(ALL_ARGUMENTS, "ref0")])
    assert len(promoted) == 1
    together = deserialize(promoted[0].to_bytes())
    assert deserialize_args(data, [(ALL_ARGUMENTS, together)]) == (chunks, {"k": 1})


def test_references_beside_arguments_that_became_one_object_keep_their_places() -> None:
    chunks = tuple(bytes([n]) * 90_000 for n in range(120))
    a, b = ref(b"a"), ref(b"b")
    stored: list[Serialized] = []

    def promote(value: Serialized) -> str:
        stored.append(value)
        return "whole"

    data, _, top = serialize_args((a, *chunks), {"k": b}, promote)

    assert list(top) == [(0, a), ("k", b), (ALL_ARGUMENTS, "whole")]
    together = deserialize(stored[0].to_bytes())
    args, kwargs = deserialize_args(data, [(0, "v"), ("k", "w"), (ALL_ARGUMENTS, together)])
    assert args[0] == "v"
    assert args[1:] == chunks
    assert kwargs == {"k": "w"}


def test_reference_nested_in_arguments_that_became_one_object_is_held_by_that_object() -> None:
    a = ref(b"a")
    stored: list[Serialized] = []

    _, nested, _ = serialize_args(
        ([a], *(bytes([n]) * 90_000 for n in range(120))), {}, stored.append
    )

    assert list(nested) == []
    assert list(stored[0].contained) == [a]


def test_large_argument_without_promote_stays_inline() -> None:
    large = np.zeros(INLINE_LIMIT_BYTES)

    args, _ = deserialize_args(serialize_args((large,), {})[0])

    assert np.array_equal(args[0], large)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((), {"k": (i for i in [])}, "argument k -> generator"),
        ((1, [2, (i for i in [])]), {}, "argument 1 -> [1] -> generator"),
    ],
)
def test_unpicklable_argument_is_named(args: Any, kwargs: Any, path: str) -> None:
    with pytest.raises(TypeError) as caught:
        serialize_args(args, kwargs, subject="task f()")

    assert f"the arguments of task f() -> {path} can not be pickled" in str(caught.value)


@pytest.mark.parametrize("nest", [lambda r: r, lambda r: [r]])
def test_reference_of_an_ended_session_is_refused(nest: Any) -> None:
    old = ref(b"a")
    old._core.is_closed = True

    with pytest.raises(UnknownOwnerError, match="owner is unknown"):
        serialize_args((nest(old),), {})
