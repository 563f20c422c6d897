from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_object_store.machine.allocator import Allocator, round_to_class

SIZES = st.one_of(st.integers(0, 300), st.integers(0, 20_000), st.integers(0, 200_000))


@given(st.integers(0, 1 << 40))
def test_class_boundary_wastes_less_than_a_hundredth_or_one_unit(size: int) -> None:
    rounded = round_to_class(size)
    assert rounded >= max(1, size)
    assert rounded - size < max(64, size / 100) + 64
    assert rounded % 64 == 0
    assert round_to_class(rounded) == rounded


@given(st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 1 << 30)), max_size=80))
def test_ranges_never_overlap_and_a_fit_is_always_found(
    steps: list[tuple[bool, int, int]],
) -> None:
    allocator = Allocator(300_000)
    used: dict[int, int] = {}
    for is_free, size, choice in steps:
        if is_free and used:
            offset = list(used)[choice % len(used)]
            assert allocator.free(offset) >= used.pop(offset)
        else:
            longest = allocator.largest_free_bytes()
            offset_or_none = allocator.allocate(size)
            if offset_or_none is None:
                assert longest < round_to_class(size), "a free range of that length was overlooked"
                continue
            assert offset_or_none % 64 == 0
            for start, length in used.items():
                assert offset_or_none >= start + length or offset_or_none + size <= start
            assert offset_or_none + size <= allocator.capacity_bytes
            used[offset_or_none] = size
        allocator.check_invariants()
    for offset in used:
        allocator.free(offset)
    allocator.check_invariants()
    assert (allocator.used_bytes, allocator.top) == (0, 0)


@given(st.lists(SIZES, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_freed_ranges_coalesce_in_any_order(sizes: list[int], random: object) -> None:
    allocator = Allocator(10_000_000)
    offsets = [allocator.allocate(size) for size in sizes]
    random.shuffle(offsets)  # type: ignore[attr-defined]
    for offset in offsets:
        assert offset is not None
        allocator.free(offset)
        allocator.check_invariants()
    assert allocator.free_ranges() == [(0, allocator.capacity_bytes)]


def test_whole_capacity_fits_one_object() -> None:
    for capacity in (64, 1_000_000, (1 << 30) - 64):
        allocator = Allocator(capacity)
        offset = allocator.allocate(allocator.capacity_bytes)
        assert offset == 0
        assert allocator.allocate(1) is None
        allocator.free(offset)
        assert allocator.allocate(allocator.capacity_bytes) == 0


def test_freed_range_is_used_again_before_new_memory() -> None:
    allocator = Allocator(1 << 20)
    first = allocator.allocate(10_000)
    allocator.allocate(10_000)
    top = allocator.top
    assert first is not None
    allocator.free(first)
    assert allocator.allocate(9_000) == first
    assert allocator.top == top


def test_range_freed_last_is_used_first() -> None:
    allocator = Allocator(1 << 20)
    offsets = [allocator.allocate(1000) for _ in range(6)]
    for index in (0, 2, 4):
        offset = offsets[index]
        assert offset is not None
        allocator.free(offset)
    assert allocator.allocate(1000) == offsets[4]


def test_odd_tail_of_the_capacity_is_not_used() -> None:
    allocator = Allocator(1000)
    assert allocator.capacity_bytes == 960


def test_impossible_requests_are_refused() -> None:
    allocator = Allocator(1 << 20)
    assert allocator.allocate((1 << 20) + 1) is None
    assert allocator.allocate(1 << 60) is None
    with pytest.raises(KeyError):
        allocator.free(0)
    with pytest.raises(ValueError, match="64 bytes"):
        Allocator(10)
