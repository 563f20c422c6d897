from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skate_object_store import (
    FullReason,
    StoreClient,
    StoreConfig,
    StoreFullError,
    StoreServer,
)
from skate_object_store.constants import CHUNK_BYTES
from skate_object_store.service.arena import Arena

MIB = 1 << 20
Serve = Callable[..., StoreServer]
Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "skate-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    # Lazily: the arena's file is unlinked but may be mapped until the client's views are gone.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def short_of_disk(serve: Serve, small_disk: Path) -> StoreServer:
    """A store that was promised 64 MiB on a disk of 8."""
    config = StoreConfig(commit_ahead_min_bytes=0, arena_directory=str(small_disk))
    return serve(64 * MIB, config=config)


def test_shortage_is_an_error_and_room_comes_back(short_of_disk: StoreServer) -> None:
    with StoreClient(short_of_disk.endpoint) as client:
        for cycle in range(20):
            ids = [b"%d-%d" % (cycle, number) for number in range(3)]
            for object_id in ids:
                client.put(object_id, [object_id * (2 * MIB // len(object_id))])
            with pytest.raises(StoreFullError) as caught:
                client.put(b"%d+" % cycle, [b"\xff" * (4 * MIB)])
            assert caught.value.reason is FullReason.MACHINE_SHORT
            for object_id, view in zip(ids, client.get(ids), strict=True):
                assert view == object_id * (2 * MIB // len(object_id))
            del view
            client.delete(ids)


def test_evictable_copies_give_way_when_the_machine_is_short(short_of_disk: StoreServer) -> None:
    with StoreClient(short_of_disk.endpoint) as client:
        for number in range(3):
            client.put(b"copy%d" % number, [b"x" * (2 * MIB)], evictable=True)
        client.put(b"primary", [b"y" * (6 * MIB)])
        (view,) = client.get([b"primary"])
        assert view == b"y" * (6 * MIB)
        assert short_of_disk.statistics().evicted_total > 0


def test_late_pages_end_with_an_error_where_memory_ends(short_of_disk: StoreServer) -> None:
    """Never SIGBUS; and once there is room, the object goes on from where it was."""
    with (
        StoreClient(short_of_disk.endpoint) as client,
        StoreClient(short_of_disk.endpoint) as other,
    ):
        other.put(b"other", [bytes(4 * MIB)])
        view = client.create(b"late", 6 * MIB, late_pages=True)
        with pytest.raises(StoreFullError) as caught:
            client.commit(b"late", 6 * MIB)
        assert caught.value.reason is FullReason.MACHINE_SHORT
        other.delete([b"other"])
        other.contains(b"other")
        client.commit(b"late", 6 * MIB)
        view[:] = b"z" * (6 * MIB)
        del view
        client.seal(b"late")
        assert other.get([b"late"]) == [b"z" * (6 * MIB)]


def test_large_put_that_the_machine_has_no_memory_for_is_an_error_midway(
    short_of_disk: StoreServer,
) -> None:
    with StoreClient(short_of_disk.endpoint) as client:
        for _ in range(3):
            with pytest.raises(StoreFullError) as caught:
                client.put(b"large", [b"ab" * (20 * MIB)])
            assert caught.value.reason is FullReason.MACHINE_SHORT
            client.put(b"small", [b"s" * (4 * MIB)])
            (view,) = client.get([b"small"])
            assert view == b"s" * (4 * MIB)
            del view
            client.delete([b"small"])


def test_evictable_copies_give_way_to_late_pages(short_of_disk: StoreServer) -> None:
    with StoreClient(short_of_disk.endpoint) as client:
        for number in range(3):
            client.put(b"copy%d" % number, [b"x" * (2 * MIB)], evictable=True)
        view = client.create(b"late", 6 * MIB, late_pages=True)
        client.commit(b"late", 6 * MIB)
        view[:] = b"y" * (6 * MIB)
        del view
        client.seal(b"late")
        assert client.get([b"late"]) == [b"y" * (6 * MIB)]
        assert short_of_disk.statistics().evicted_total > 0


def test_large_puts_into_a_cold_arena_come_back_whole(serve: Serve) -> None:
    """Copied behind their pages: parts of odd lengths, across steps, and not only of bytes."""
    server = serve(256 * MIB)
    parts = [os.urandom(33), bytes(17 * MIB), os.urandom(20 * MIB + 1), b"", os.urandom(7)]
    numbers = memoryview(os.urandom(8 * MIB)).cast("Q")
    with StoreClient(server.endpoint) as client, StoreClient(server.endpoint) as reader:
        for name in (b"first", b"second"):
            client.put(name, [*parts, numbers])
            assert reader.get([name]) == [b"".join([*parts, numbers])]
        client.delete([b"first"])
        client.contains(b"first")
        client.put(b"first", [numbers, *parts])  # the same range, warm
        assert reader.get([b"first"]) == [b"".join([numbers, *parts])]


def test_arena_cannot_be_shrunk_under_a_mapping() -> None:
    arena = Arena(4 * MIB)
    for size in (0, 8 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.fd, size)
    arena.close()


def test_machine_without_headroom_refuses_before_the_kernel_kills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arena = Arena(1 << 50)
    with pytest.raises(OSError, match="memory") as caught:
        arena.commit(0, 1 << 49)
    assert caught.value.errno == errno.ENOMEM
    arena.close()


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group (version 1) of 256 MiB of memory."""
    group = Path(f"/sys/fs/cgroup/memory/skate-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(256 * MIB))
    except OSError:
        pytest.skip("limiting a process's memory needs root and version 1 control groups")
    yield group
    group.rmdir()


def test_memory_limit_is_an_error_and_not_a_kill(small_group: Path, tmp_path: Path) -> None:
    code = f"""
import os, pathlib
pathlib.Path({str(small_group)!r}, "cgroup.procs").write_text(str(os.getpid()))
from skate_object_store import StoreClient, StoreFullError, StoreServer
value, refused = bytes(20 << 20), 0
with StoreServer({str(tmp_path)!r} + "/s", 1 << 30) as server:
    with StoreClient(server.endpoint) as client:
        for number in range(60):
            try:
                client.put(b"%d" % number, [value])
            except StoreFullError as error:
                assert error.reason.name == "MACHINE_SHORT", error
                refused += 1
                client.delete([b"%d" % other for other in range(number)])
assert refused > 3, refused
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)


@pytest.mark.invariant("I16")
def test_arena_has_no_name_anywhere(server: StoreServer, client: StoreClient) -> None:
    client.put(b"id", [bytes(MIB)])
    assert not [name for name in os.listdir("/dev/shm") if "skate" in name]
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except FileNotFoundError:
            continue  # The listing's own descriptor.
        assert "skate" not in target or "memfd:" in target or "deleted" in target


def test_idle_store_gives_free_memory_back(serve: Serve, eventually: Eventually) -> None:
    config = StoreConfig(commit_ahead_min_bytes=0, commit_ahead_max_bytes=0, trim_idle_s=0.05)
    server = serve(64 * MIB, config=config)
    with StoreClient(server.endpoint) as client:
        client.put(b"stays", [b"s" * (3 * MIB)])
        client.put(b"goes", [b"g" * (30 * MIB)])
        client.delete([b"goes"])
        eventually(lambda: server.statistics().committed_bytes <= 3 * MIB + CHUNK_BYTES)
        client.put(b"again", [b"a" * (30 * MIB)])
        assert client.get([b"stays", b"again"]) == [b"s" * (3 * MIB), b"a" * (30 * MIB)]
        server.check_invariants()


def test_pages_are_ready_ahead_of_the_first_put(serve: Serve, eventually: Eventually) -> None:
    server = serve(64 * MIB, config=StoreConfig(commit_ahead_min_bytes=16 * MIB))
    eventually(lambda: server.statistics().committed_bytes == 16 * MIB)


def test_freed_memory_is_used_again_before_new_memory(
    server: StoreServer, client: StoreClient
) -> None:
    for number in range(50):
        client.put(b"%d" % number, [bytes(5 * MIB)])
        client.delete([b"%d" % number])
    assert server.statistics().committed_bytes <= 20 * MIB


@pytest.mark.invariant("I16")
def test_closed_store_and_clients_leave_no_descriptors(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(5):
        with StoreServer(str(tmp_path / f"{number}.sock"), 16 * MIB) as server:
            client = StoreClient(server.endpoint)
            client.put(b"id", [bytes(9 * MIB)])
            client.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []


def test_capacity_that_is_not_whole_pages_can_be_used_whole(serve: Serve) -> None:
    server = serve(64 * 1000 + 1)
    with StoreClient(server.endpoint) as client:
        client.put(b"id", [b"x" * 64_000])
        assert client.get([b"id"]) == [b"x" * 64_000]
        with pytest.raises(StoreFullError):
            client.put(b"more", [b"x"])
