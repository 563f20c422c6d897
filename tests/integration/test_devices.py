"""GPUs of a node that declares four: who gets which, and what is visible to whom."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import skate
from tests.waiting import wait_for

WAIT_S = 30.0


@pytest.fixture(scope="module", params=[None, "GPU-a,GPU-b,GPU-c,GPU-d"], ids=["all", "named"])
def names(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What the node's GPUs are called."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param is None:
            patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            patch.setenv("CUDA_VISIBLE_DEVICES", request.param)
        skate.init(num_cpus=4, num_gpus=4)
        yield ["0", "1", "2", "3"] if request.param is None else request.param.split(",")
        skate.shutdown()


def seen() -> tuple[str, list[str], list[str]]:
    ids = skate.get_runtime_context().get_accelerator_ids()["GPU"]
    return os.environ["CUDA_VISIBLE_DEVICES"], ids, [str(one) for one in skate.get_gpu_ids()]


class Holder:
    def seen(self) -> tuple[str, list[str], list[str]]:
        return seen()


look = skate.remote(seen)


@pytest.mark.surface("Q4", "Q6", "T5")
def test_task_sees_the_gpus_that_it_holds(names: list[str]) -> None:
    visible, ids, gpu_ids = skate.get(look.options(num_gpus=2).remote(), timeout=WAIT_S)
    assert visible.split(",") == ids == gpu_ids
    assert len(set(ids)) == 2
    assert set(ids) <= set(names)
    half = skate.get(look.options(num_gpus=0.5).remote(), timeout=WAIT_S)
    assert half[0] in names


@pytest.mark.surface("Q4")
def test_task_without_gpus_sees_none(names: list[str]) -> None:
    assert names
    assert skate.get(look.remote(), timeout=WAIT_S) == ("", [], [])
    assert skate.get_gpu_ids() == []


@pytest.mark.surface("A37", "Q4")
def test_actors_hold_gpus_of_their_own_for_life_and_shares_are_packed(names: list[str]) -> None:
    # What earlier tests leased is given back: no GPU is split already.
    wait_for(lambda: skate.available_resources().get("GPU") == 4, "all GPUs are free")
    whole = [skate.remote(num_gpus=1, num_cpus=0)(Holder).remote() for _ in range(3)]
    parts = [skate.remote(num_gpus=0.5, num_cpus=0)(Holder).remote() for _ in range(2)]
    found = skate.get([actor.seen.remote() for actor in [*whole, *parts]], timeout=WAIT_S)
    held = [visible for visible, _, _ in found]
    assert sorted({*held}) == sorted(names)
    assert held[3] == held[4]
    again = skate.get([actor.seen.remote() for actor in [*whole, *parts]], timeout=WAIT_S)
    assert again == found
