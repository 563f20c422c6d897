"""Objects between two nodes: two stores, two transfer services, real sockets and bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.raylet.tests.integration.transfer_nodes import MakeNode, served_bytes
from skate_object_store import FullReason, StoreConfig
from skate_object_store.protocol import unpack_fullness
from skate_rpc import node_protocol as node


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 1 << 20, 20_000_003])
@pytest.mark.parametrize("endpoint", ["", "tcp:127.0.0.1:0"])
def test_object_pulled_from_another_node_has_the_same_bytes(
    play_nodes: Any, wait_until: Any, size_bytes: int, endpoint: str
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far", endpoint)
        content = os.urandom(size_bytes)
        object_id = far.put(content)
        assert await near.pull(object_id, size_bytes, far) == node.PullEnded(1)
        assert near.content(object_id) == content
        assert near.transfers.statistics().pulled_bytes_total == size_bytes
        await wait_until(lambda: served_bytes(far) == size_bytes)

    play_nodes(test)


def test_large_object_comes_in_pieces_from_both_holders(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near = make("near", split_bytes=8 << 20, piece_bytes=1 << 20)
        left, right = make("left"), make("right")
        content = os.urandom((20 << 20) + 17)
        object_id = left.put(content)
        right.store.put(object_id, [content])
        assert await near.pull(object_id, len(content), left, right) == node.PullEnded(1)
        found = near.content(object_id)
        assert found is not None
        assert hashlib.sha256(found).digest() == hashlib.sha256(content).digest()
        await wait_until(lambda: served_bytes(left) + served_bytes(right) == len(content))
        assert min(served_bytes(left), served_bytes(right)) > 0

    play_nodes(test)


def test_copy_is_received_while_its_pages_come(play_nodes: Any) -> None:
    """From two holders at once, into memory that is cold, and then into the same, warm."""

    async def test(make: MakeNode) -> None:
        cold = StoreConfig(commit_ahead_min_bytes=0)
        near = make("near", split_bytes=8 << 20, piece_bytes=5 << 20, store_config=cold)
        left, right = make("left"), make("right")
        content = os.urandom((50 << 20) + 17)
        digest = hashlib.sha256(content).digest()
        object_id = left.put(content)
        right.store.put(object_id, [content])
        for pull_id in (1, 2):
            ended = await near.pull(object_id, len(content), left, right)
            assert ended == node.PullEnded(pull_id)
            found = near.content(object_id)
            assert found is not None
            assert hashlib.sha256(found).digest() == digest
            near.store.delete([object_id])
            near.store.contains(object_id)

    play_nodes(test)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "skate-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    # Lazily: the arena's file is unlinked but may be mapped until the client's views are gone.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.invariant("I1")
def test_memory_that_ends_in_mid_transfer_is_a_full_store_and_no_signal(
    play_nodes: Any, small_disk: Path
) -> None:
    """The store was promised more than the machine has; the next, smaller pull works."""

    async def test(make: MakeNode) -> None:
        short = StoreConfig(commit_ahead_min_bytes=0, arena_directory=str(small_disk))
        near, far = make("near", store_config=short, room_wait_s=0.5), make("far")
        large, small = far.put(os.urandom(40 << 20)), far.put(b"x" * (20 << 20))
        ended = await near.pull(large, 40 << 20, far)
        assert (ended.kind, ended.lost_at) == ("full", [])
        assert unpack_fullness(ended.fullness).reason is FullReason.MACHINE_SHORT
        assert near.content(large) is None
        assert await near.pull(small, 20 << 20, far) == node.PullEnded(2)
        assert near.content(small) == b"x" * (20 << 20)
        assert near.server.statistics().unsealed_bytes == 0

    play_nodes(test)


def test_object_that_no_source_has_is_lost_and_names_them(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        ended = await near.pull(b"x" * 28, 10, far)
        assert (ended.kind, ended.lost_at) == ("lost", [far.node_id])
        assert "does not have the object" in ended.message
        assert near.content(b"x" * 28) is None

    play_nodes(test)


def test_pull_waits_for_room_and_copies_nobody_uses_make_it(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near", capacity_bytes=8 << 20), make("far")
        size_bytes = 3 << 20
        for _ in range(6):  # more than fit: each copy may be evicted for the next
            object_id = far.put(os.urandom(size_bytes))
            assert (await near.pull(object_id, size_bytes, far)).kind == ""
        held = [near.put(bytes(size_bytes)) for _ in range(2)]  # primary copies stay
        pull_id = near.ask(object_id := far.put(os.urandom(size_bytes)), size_bytes, far)
        near.store.delete([held[0]])
        assert (await near.ended_as(pull_id)).kind == ""
        assert near.content(object_id) == far.content(object_id)

    play_nodes(test)


def test_pull_into_a_full_store_ends_and_names_the_holders(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near = make("near", capacity_bytes=8 << 20, room_wait_s=0.2)
        far = make("far")
        held = near.put(bytes(7 << 20))
        ended = await near.pull(far.put(bytes(3 << 20)), 3 << 20, far)
        assert ended.kind == "full"
        assert held.hex() in ended.message
        too_large = await near.pull(far.put(bytes(9 << 20)), 9 << 20, far)
        assert "larger than the store" in too_large.message
        assert (await near.pull(far.put(b"small"), 5, far)).kind == ""

    play_nodes(test)


def test_size_that_the_source_does_not_confirm_is_lost(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        object_id = far.put(b"four")
        for claimed in (3, 5):
            ended = await near.pull(object_id, claimed, far)
            assert ended.kind == "lost"
            assert "4 bytes" in ended.message
        assert near.content(object_id) is None
        assert (await near.pull(object_id, 4, far)).kind == ""

    play_nodes(test)


@pytest.mark.parametrize(
    ("object_id", "size_bytes"), [(b"", 1), (b"x" * 256, 1), (b"x", -1), (b"x", 1 << 63)]
)
def test_malformed_pull_is_answered(play_nodes: Any, object_id: bytes, size_bytes: int) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        ended = await near.pull(object_id, size_bytes, far)
        assert ended.kind == "lost"

    play_nodes(test)


def test_many_pulls_at_once_all_arrive_over_few_connections(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        contents = [os.urandom(1000 * number) for number in range(60)]
        ids = [far.put(content) for content in contents]
        pulls = [
            near.ask(object_id, len(content), far, priority=number % 3)
            for number, (object_id, content) in enumerate(zip(ids, contents, strict=True))
        ]
        assert [(await near.ended_as(pull)).kind for pull in pulls] == [""] * 60
        assert [near.content(object_id) for object_id in ids] == contents
        assert far.transfers.statistics().peers <= 4

    play_nodes(test)
