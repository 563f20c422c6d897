from __future__ import annotations

import pytest

from skate_worker.visible_devices import VARIABLES, VisibleDevices

NONE = dict.fromkeys(VARIABLES.values(), "")


def test_work_sees_its_own_devices_and_work_without_any_sees_none() -> None:
    environment: dict[str, str] = {}
    devices = VisibleDevices(environment)
    assert devices.follow({"GPU": [(0, 10_000), (3, 10_000)]})["GPU"] == ["0", "3"]
    assert environment == NONE | {"CUDA_VISIBLE_DEVICES": "0,3"}
    assert devices.follow({})["GPU"] == []
    assert environment == NONE


def test_numbers_are_places_in_the_list_of_the_node() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,5"}
    devices = VisibleDevices(environment)
    assert devices.follow({"GPU": [(1, 2_500)]})["GPU"] == ["GPU-b"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert devices.follow({"GPU": [(2, 10_000)]})["GPU"] == ["5"]
    # More was declared than the list has: the number is all there is to say.
    assert devices.follow({"GPU": [(7, 10_000)]})["GPU"] == ["7"]


@pytest.mark.parametrize("value", ["1", "true"])
def test_variable_can_be_left_alone(value: str) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "4,5", "SKATE_NOSET_CUDA_VISIBLE_DEVICES": value}
    devices = VisibleDevices(environment)
    assert devices.follow({"GPU": [(1, 10_000)]})["GPU"] == ["5"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5"


def test_other_accelerators_have_variables_of_their_own() -> None:
    environment: dict[str, str] = {}
    names = VisibleDevices(environment).follow(
        {"neuron_cores": [(2, 10_000)], "TPU": [(0, 10_000)]}
    )
    assert names == {"GPU": [], "TPU": ["0"], "neuron_cores": ["2"]}
    assert environment["NEURON_RT_VISIBLE_CORES"] == "2"
    assert environment["TPU_VISIBLE_CHIPS"] == "0"
