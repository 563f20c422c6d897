from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from skate_object_store import (
    SpillConfig,
    StoreClient,
    StoreConfig,
    StoreServer,
)

MIB = 1 << 20
CAPACITY = 16 * MIB

Serve = Callable[..., StoreServer]
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "spill"


@pytest.fixture
def server(serve: Serve, place: Path) -> StoreServer:
    spill = SpillConfig(directories=(str(place),), min_batch_bytes=2 * MIB)
    config = StoreConfig(commit_ahead_min_bytes=0, is_poisoning=True, spill=spill)
    return serve(CAPACITY, config=config)


def content(number: int, size: int) -> bytes:
    return hashlib.shake_256(b"%d" % number).digest(size // 16) * 16


def files(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def put_many(client: StoreClient, count: int, size: int = MIB) -> list[bytes]:
    ids = [b"object %d" % number for number in range(count)]
    for number, object_id in enumerate(ids):
        client.put(object_id, [content(number, size)])
    return ids


def check_all(client: StoreClient, ids: list[bytes], size: int = MIB) -> None:
    for number, object_id in enumerate(ids):
        (view,) = client.get([object_id])
        assert view == content(number, size), object_id


def test_three_times_the_capacity_is_kept_and_comes_back_whole(
    server: StoreServer, client: StoreClient, place: Path, eventually: Eventually
) -> None:
    ids = put_many(client, 3 * CAPACITY // MIB)
    assert client.wait(ids, len(ids), 0) == ids
    check_all(client, ids)
    check_all(client, ids[::-1] and ids)
    statistics = server.statistics()
    assert statistics.spilled_total >= 2 * CAPACITY // MIB
    assert statistics.restored_total > 0
    assert statistics.lost_objects == 0
    client.delete(ids)
    eventually(lambda: not files(place))
    assert server.statistics().used_bytes == server.statistics().disk_bytes == 0
