"""Free, locations, futures and the explanation of memory where objects lie on several nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import ObjectFreedError, ObjectReconstructionFailedError
from skate.experimental import get_object_locations
from skate.internal import free
from skate.util.state import list_objects
from skate_worker.current import require_core
from tests.waiting import wait_for

WAIT_S = 30.0
LARGE = 100_000


@pytest.fixture
def other(session_root: Path) -> Iterator[Any]:
    """A cluster with a second node and an actor on it; gives (cluster, node, actor)."""

    @skate.remote
    class Maker:
        def make(self) -> Any:
            return np.arange(100_000)

    cluster = Cluster()
    cluster.add_node(num_cpus=1)
    node = cluster.add_node(num_cpus=1, resources={"other": 1})
    cluster.connect()
    yield cluster, node, Maker.options(resources={"other": 1}).remote()
    skate.shutdown()
    cluster.shutdown()


def stored_on(object_id: str) -> set[str]:
    return {
        node.node_id.hex()
        for node in require_core().list_objects(10.0)
        for item in node.stored
        if item.object_id.hex() == object_id and not item.is_deleted
    }


def test_locations_grow_with_copies_and_free_deletes_them_all(other: Any) -> None:
    _, node, maker = other
    here = skate.get_runtime_context().get_node_id()
    ref = maker.make.remote()
    skate.wait([ref], timeout=WAIT_S, fetch_local=False)
    assert get_object_locations([ref])[ref]["node_ids"] == [node.node_id]

    assert skate.get(ref, timeout=WAIT_S).sum() == sum(range(LARGE))
    wait_for(lambda: set(get_object_locations([ref])[ref]["node_ids"]) == {here, node.node_id})
    assert stored_on(ref.hex()) == {here, node.node_id}
    (row,) = (r for r in list_objects() if r.object_id == ref.hex())
    assert set(row.stored_on) == {here, node.node_id}

    free([ref])

    with pytest.raises(ObjectFreedError):
        skate.get(ref)
    wait_for(lambda: stored_on(ref.hex()) == set())


def test_free_with_local_only_drops_the_copy_here_and_it_can_come_again(other: Any) -> None:
    _, node, maker = other
    ref = maker.make.remote()
    skate.get(ref, timeout=WAIT_S)
    free([ref], local_only=True)
    wait_for(lambda: stored_on(ref.hex()) == {node.node_id})
    assert skate.get(ref, timeout=WAIT_S)[-1] == LARGE - 1


def test_futures_and_await_bring_values_from_another_node(other: Any) -> None:
    _, _, maker = other

    async def both() -> Any:
        return await asyncio.gather(maker.make.remote(), maker.make.remote())

    assert [value[-1] for value in asyncio.run(both())] == [LARGE - 1] * 2
    assert maker.make.remote().future().result(WAIT_S)[-1] == LARGE - 1
    own = skate.get(maker.make.remote(), copy=True, timeout=WAIT_S)
    own[0] = 5
    seen: list[Any] = []
    maker.make.remote()._on_completed(seen.append)
    wait_for(lambda: len(seen) == 1)
    assert seen[0][-1] == LARGE - 1


def test_error_of_a_lost_object_names_what_made_it(other: Any) -> None:
    cluster, node, maker = other
    ref = maker.make.remote()
    skate.wait([ref], timeout=WAIT_S, fetch_local=False)
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(ObjectReconstructionFailedError, match=r"created at: Maker\.make\(\)"):
        skate.get(ref, timeout=WAIT_S)


def test_spilled_objects_are_listed_and_the_bytes_add_up(session_root: Path) -> None:
    skate.init(num_cpus=1, object_store_memory=100 << 20)
    try:
        refs = [skate.put(np.zeros(2_000_000)) for _ in range(12)]
        (node,) = require_core().list_objects(10.0)
        spilled = {item.object_id for item in node.stored if item.is_spilled}
        assert spilled
        assert all("test_spilled_objects" in item.note for item in node.stored)
        assert node.used_bytes == (
            node.listed_bytes()
            + node.copies_bytes
            + node.stored_left_out_bytes
            + node.rounding_bytes()
        )
        assert node.rounding_bytes() < 0.13 * node.used_bytes
        rows = {row.object_id: row for row in list_objects()}
        assert {ref.hex() for ref in refs} <= set(rows)
        assert {bytes.fromhex(r.object_id) for r in rows.values() if r.is_spilled} == spilled
    finally:
        skate.shutdown()
