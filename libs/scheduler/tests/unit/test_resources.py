from __future__ import annotations

import pickle
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_scheduler import (
    ResourceSet,
    ResourceTypeError,
    ResourceValueError,
    format_units,
    from_units,
    request_units,
    to_units,
)

units = st.integers(min_value=0, max_value=10**12)
sets = st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "x", "y"]), units).map(ResourceSet)


def test_to_units_whole_and_fraction_gives_exact_integer() -> None:
    assert to_units(1) == 10_000
    assert to_units(1.5) == 15_000
    assert to_units(0.0001) == 1
    assert to_units(0.1 + 0.2) == 3_000


@given(units)
def test_to_units_of_from_units_is_identity(amount: int) -> None:
    assert to_units(from_units(amount)) == amount


@given(units)
def test_format_units_is_exact_decimal(amount: int) -> None:
    assert Decimal(format_units(amount)) * 10_000 == amount
    assert Decimal(format_units(-amount)) * 10_000 == -amount


@pytest.mark.parametrize(
    "amount", [-1, -0.0001, 1e-7, 0.00011, float("nan"), float("inf"), 1e40, 10**400]
)
def test_to_units_impossible_amount_raises_value_error(amount: float) -> None:
    with pytest.raises(ResourceValueError):
        to_units(amount, "CPU")


@pytest.mark.parametrize("amount", ["1", None, True, [1]])
def test_to_units_wrong_type_raises_type_error(amount: object) -> None:
    with pytest.raises(ResourceTypeError):
        to_units(amount, "CPU")  # type: ignore[arg-type]


def test_errors_are_one_sentence_that_names_the_resource_and_survive_pickling() -> None:
    with pytest.raises(ValueError, match=r"^GPU: .*whole devices.*1\.5\.$") as caught:
        request_units("GPU", 1.5)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert isinstance(again, ResourceValueError)


@pytest.mark.parametrize("name", ["GPU", "TPU", "neuron_cores"])
def test_request_units_device_above_one_must_be_whole(name: str) -> None:
    assert request_units(name, 0.25) == 2_500
    assert request_units(name, 2) == 20_000
    with pytest.raises(ResourceValueError):
        request_units(name, 1.5)


def test_request_units_memory_is_rounded_down_to_bytes() -> None:
    assert request_units("memory", 100.98765) == 100 * 10_000
    assert request_units("memory", 2**42) == 2**42 * 10_000


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_request_units_bad_name_raises_value_error(name: str) -> None:
    with pytest.raises(ResourceValueError):
        request_units(name, 1)


def test_request_units_name_of_wrong_type_raises_type_error() -> None:
    with pytest.raises(ResourceTypeError):
        request_units(3, 1)  # type: ignore[arg-type]


def test_resource_set_zero_amounts_are_absent() -> None:
    assert ResourceSet({"CPU": 0, "GPU": 1}) == ResourceSet({"GPU": 1})
    assert ResourceSet({"CPU": 0})["CPU"] == 0
    assert str(ResourceSet()) == "nothing"
    assert str(ResourceSet({"CPU": 15_000, "GPU": 10_000})) == "CPU 1.5, GPU 1"


@given(sets, sets)
def test_resource_set_minus_undoes_plus(left: ResourceSet, right: ResourceSet) -> None:
    assert left.plus(right).minus(right) == left
    assert left.plus(right) == right.plus(left)
    assert hash(left.plus(right)) == hash(right.plus(left))


@given(sets, sets)
def test_resource_set_fits_exactly_when_shortfall_is_empty(
    left: ResourceSet, right: ResourceSet
) -> None:
    assert left.fits_in(right) == (len(left.shortfall(right)) == 0)
    assert left.fits_in(left.plus(right))
    assert left.fits_in(right.plus(left.shortfall(right)))


@given(sets, sets)
def test_resource_set_clamped_difference_is_never_negative(
    left: ResourceSet, right: ResourceSet
) -> None:
    assert all(amount > 0 for amount in left.minus(right).clamped().values())


@given(st.lists(sets))
def test_resource_set_total_is_order_free_and_pickles(parts: list[ResourceSet]) -> None:
    total = ResourceSet.total_of(parts)
    assert total == ResourceSet.total_of(reversed(parts))
    assert pickle.loads(pickle.dumps(total)) == total


def test_resource_set_ten_tenths_are_one() -> None:
    tenth = ResourceSet.from_amounts({"CPU": 0.1})
    assert ResourceSet.total_of([tenth] * 10) == ResourceSet.from_amounts({"CPU": 1})


def test_dominant_share_takes_the_fullest_resource() -> None:
    total = ResourceSet({"CPU": 40_000, "GPU": 10_000})
    assert ResourceSet({"CPU": 10_000, "GPU": 5_000}).dominant_share(total) == 0.5
    assert ResourceSet({"x": 1}).dominant_share(total) == 1.0
    assert ResourceSet().dominant_share(total) == 0.0
