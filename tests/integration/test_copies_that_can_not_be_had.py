"""Copies that can not be had: a damaged file on disk, a store without room; on real nodes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import (
    GetTimeoutError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
)
from skate_worker.current import require_core
from tests.waiting import wait_for

WAIT_S = 30.0
STORE_BYTES = 80 << 20
MIB_8 = 1 << 20  # numbers of 8 bytes

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def cluster(session_root: Path) -> Iterator[Cluster]:
    """A head with a small store, to which this process is connected, and a node like it."""
    small = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=small)
    cluster.add_node(resources={"other": 10}, **small)
    cluster.wait_for_nodes()
    yield cluster
    skate.shutdown()
    cluster.shutdown()


@skate.remote(max_retries=2)
def made(number: int) -> Any:
    return np.full(MIB_8, number)


@skate.remote
class Reader:
    """Reads on its node."""

    def first(self, refs: list[Any]) -> int:
        return int(skate.get(refs[0], timeout=WAIT_S)[0])


def spilled() -> set[str]:
    return {
        item.object_id.hex()
        for node in require_core().list_objects(10.0)
        for item in node.stored
        if item.is_spilled
    }


def fill_the_store_here() -> list[Any]:
    return [skate.put(np.zeros(MIB_8)) for _ in range(14)]


def damage_files(session_root: Path) -> None:
    """Change a byte in each object of each file of spilled objects."""
    files = [
        path for path in session_root.rglob("skate-spill-*/*") if path.stat().st_size > 1 << 20
    ]
    assert files
    for path in files:
        with path.open("r+b") as file:
            for at in range(4096, path.stat().st_size, 1 << 20):
                file.seek(at)
                file.write(b"\xa5" * 64)


@pytest.mark.invariant("I2")
def test_damaged_file_is_a_lost_copy_and_the_task_runs_again(
    cluster: Cluster, session_root: Path
) -> None:
    ref = made.remote(7)
    skate.wait([ref], timeout=WAIT_S)
    kept = fill_the_store_here()
    wait_for(lambda: ref.hex() in spilled())
    damage_files(session_root)
    del kept
    assert skate.get(ref, timeout=WAIT_S)[0] == 7


@pytest.mark.invariant("I2")
def test_damaged_file_of_a_put_is_an_error_that_names_it_here_and_from_elsewhere(
    cluster: Cluster, session_root: Path
) -> None:
    refs = [skate.put(np.full(MIB_8, 5)) for _ in range(2)]
    kept = fill_the_store_here()
    wait_for(lambda: {ref.hex() for ref in refs} <= spilled())
    damage_files(session_root)
    del kept
    with pytest.raises(ObjectReconstructionFailedError, match=r"\[OBJECT_.*PUT\].*checksum"):
        skate.get(refs[0], timeout=WAIT_S)
    reader = Reader.options(resources={"other": 1}).remote()
    with pytest.raises(ObjectReconstructionFailedError, match="was put"):
        skate.get(reader.first.remote([refs[1]]), timeout=WAIT_S)


@pytest.mark.invariant("I2")
def test_damaged_file_does_no_harm_where_another_node_has_a_copy(
    cluster: Cluster, session_root: Path
) -> None:
    ref = skate.put(np.full(MIB_8, 6))
    reader = Reader.options(resources={"other": 1}).remote()
    assert skate.get(reader.first.remote([ref]), timeout=WAIT_S) == 6
    kept = fill_the_store_here()
    wait_for(lambda: ref.hex() in spilled())
    damage_files(session_root)
    del kept
    assert skate.get(ref, timeout=WAIT_S)[0] == 6


def test_pull_that_finds_no_room_is_a_full_store_and_works_once_there_is_some(
    cluster: Cluster,
) -> None:
    far = made.options(resources={"other": 1}).remote(9)
    skate.wait([far], timeout=WAIT_S, fetch_local=False)
    kept = fill_the_store_here()[:9]
    viewed = [skate.get(ref, timeout=WAIT_S) for ref in kept]  # what is looked at can not go
    started_s = time.monotonic()
    with pytest.raises(ObjectStoreFullError, match="Biggest holders") as caught:
        skate.get(far)
    assert time.monotonic() - started_s < 20
    assert any("test_copies_that" in holder.note for holder in caught.value.holders)
    del viewed
    assert skate.get(far, timeout=WAIT_S)[0] == 9


def test_value_that_comes_slowly_is_had_by_looking_again_and_again(cluster: Cluster) -> None:
    far = made.options(resources={"other": 1}).remote(4)
    skate.wait([far], timeout=WAIT_S, fetch_local=False)
    looks = 0

    def is_had() -> bool:
        nonlocal looks
        looks += 1
        try:
            return bool(skate.get(far, timeout=0)[0] == 4)
        except GetTimeoutError:
            return False

    wait_for(is_had)
    assert looks > 1
