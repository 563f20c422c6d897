from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from skate_object_store import (
    FullReason,
    ObjectState,
    OutOfDiskError,
    SpillConfig,
    SpilledObjectLostError,
    SpillReadError,
    StoreClient,
    StoreConfig,
    StoreFullError,
    StoreServer,
)
from skate_object_store.machine import queries, restorer
from skate_object_store.service import spiller
from skate_object_store.service.spill_backends import DirectorySpill

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
    statistics = server.statistics()
    assert statistics.spilled_total >= 2 * CAPACITY // MIB
    assert statistics.restored_total > 0
    assert statistics.lost_objects == 0
    client.delete(ids)
    eventually(lambda: not files(place))
    assert server.statistics().used_bytes == server.statistics().disk_bytes == 0


@pytest.mark.invariant("I4")
def test_views_stay_valid_and_unchanged_while_everything_around_is_spilled(
    server: StoreServer, client: StoreClient
) -> None:
    ids = put_many(client, 4)
    views = client.get(ids)
    client.delete(ids[:2])
    for number in range(100, 100 + 3 * CAPACITY // MIB):
        client.put(b"%d" % number, [content(number, MIB)])
    for number, view in enumerate(views):
        assert view == content(number, MIB)


def test_gets_of_many_threads_share_restores(server: StoreServer, client: StoreClient) -> None:
    ids = put_many(client, 3 * CAPACITY // MIB)
    spilled = [r.object_id for r in server.objects() if r.state is ObjectState.SPILLED][:4]
    restored_before = server.statistics().restored_total
    wrong: list[bytes] = []

    def read() -> None:
        for object_id in spilled:
            (view,) = client.get([object_id])
            if view != content(ids.index(object_id), MIB):
                wrong.append(object_id)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert server.statistics().restored_total - restored_before == len(spilled)


def test_get_of_more_than_fits_is_an_error_and_gives_its_views_back(
    server: StoreServer, client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restorer, "RESTORE_WAIT_S", 0.3)
    ids = put_many(client, 2 * CAPACITY // MIB)
    with pytest.raises(StoreFullError) as caught:
        client.get(ids)
    assert caught.value.holders
    check_all(client, ids)


def test_full_error_names_views_owner_and_the_line(
    server: StoreServer, client: StoreClient
) -> None:
    client.put(b"held", [bytes(12 * MIB)], owner=b"ann", note="job.py:7")
    views = client.get([b"held"])
    with pytest.raises(StoreFullError, match=r"owner 616e6e, .* 1 views.*job\.py:7") as e:
        client.put(b"more", [bytes(8 * MIB)])
    assert not isinstance(e.value, OutOfDiskError)
    del views
    client.put(b"more", [bytes(8 * MIB)], wait_s=10)


def test_object_list_explains_every_byte(server: StoreServer, client: StoreClient) -> None:
    ids = put_many(client, 2 * CAPACITY // MIB)
    client.put(b"noted", [b"x" * 100], owner=b"ann", note="job.py:7")
    view = client.get([b"noted"])
    writing = client.create(b"half", 50)
    records = {record.object_id: record for record in server.objects()}
    assert set(ids) < set(records)
    noted = records[b"noted"]
    assert (noted.owner, noted.note, noted.pins) == (b"ann", "job.py:7", 1)
    assert records[b"half"].state is ObjectState.WRITING
    states = {record.state for record in records.values()}
    assert states >= {ObjectState.SPILLED, ObjectState.PRIMARY, ObjectState.EVICTABLE}
    spilled = [r.size_bytes for r in records.values() if r.state is ObjectState.SPILLED]
    assert server.statistics().spilled_bytes == sum(spilled)
    assert [r.size_bytes for r in server.objects(3)] == [MIB] * 3
    del view, writing


@pytest.mark.invariant("I3")
def test_damaged_file_is_a_loss_and_never_wrong_bytes(
    server: StoreServer, client: StoreClient, place: Path
) -> None:
    ids = put_many(client, 3 * CAPACITY // MIB)
    for path in files(place):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2 + 100] ^= 1
        path.write_bytes(damaged)
    lost = 0
    for number, object_id in enumerate(ids):
        try:
            (view,) = client.get([object_id])
        except SpilledObjectLostError:
            lost += 1
        else:
            assert view == content(number, MIB)
    assert lost >= 10
    assert server.statistics().lost_objects == lost
    client.delete(ids)
    check_all(client, put_many(client, 2))


def test_file_that_is_gone_or_cut_is_a_loss(
    server: StoreServer, client: StoreClient, place: Path
) -> None:
    ids = put_many(client, 3 * CAPACITY // MIB)
    for number, path in enumerate(files(place)):
        if number % 2:
            path.unlink()
        else:
            os.truncate(path, 100)
    spilled = [r.object_id for r in server.objects() if r.state is ObjectState.SPILLED]
    for object_id in spilled:
        with pytest.raises(SpilledObjectLostError):
            client.get([object_id])
    assert client.wait(spilled, 1, 0) == []
    client.put(spilled[0], [b"made anew"])
    assert client.get(spilled[:1]) == [b"made anew"]
    assert len(ids) > len(spilled)


def test_files_and_folders_are_private_and_go_with_the_server(
    server: StoreServer, client: StoreClient, place: Path
) -> None:
    put_many(client, 3 * CAPACITY // MIB)
    (folder,) = place.iterdir()
    assert folder.stat().st_mode & 0o777 == place.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in files(place)} == {0o600}
    server.close()
    assert list(place.iterdir()) == []


def test_leftovers_of_a_killed_server_go_at_the_next_start(place: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from skate_object_store import *
config = StoreConfig(spill=SpillConfig(({str(place)!r},), min_batch_bytes=1))
server = StoreServer({str(tmp_path)!r} + "/s", 4 << 20, config=config)
server.start()
client = StoreClient(server.endpoint)
for number in range(9):
    client.put(b"%d" % number, [bytes(1 << 20)])
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert len(files(place)) > 0
    living = DirectorySpill([str(place)], 1.0)
    assert files(place) == []
    DirectorySpill([str(place)], 1.0).close()
    assert len(list(place.iterdir())) == 1, "one that lives is left alone"
    living.close()


def test_directory_that_cannot_be_used_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = StoreConfig(spill=SpillConfig((str(tmp_path / "file"),)))
    with pytest.raises(OSError, match="file"):
        StoreServer(str(tmp_path / "s"), MIB, config=config)


def test_configuration_that_makes_no_sense_is_refused() -> None:
    for options in (
        {"threshold": 1.5},
        {"disk_full_fraction": -0.1},
        {"min_batch_bytes": 0},
        {"fuse_max": 0},
        {"directories": ("/x",), "url": "memory://x"},
    ):
        with pytest.raises(ValueError, match=r"\d|not both"):
            SpillConfig(**options)  # type: ignore[arg-type]


def test_url_is_a_place_to_spill_to(serve: Serve) -> None:
    spill = SpillConfig(url="memory://bucket/prefix", min_batch_bytes=2 * MIB)
    server = serve(CAPACITY, config=StoreConfig(commit_ahead_min_bytes=0, spill=spill))
    with StoreClient(server.endpoint) as client:
        check_all(client, put_many(client, 3 * CAPACITY // MIB))


class FlakySpill:
    """A folder whose writes and reads fail when told to."""

    def __init__(self, inner: DirectorySpill) -> None:
        self.inner = inner
        self.failing_writes = 0
        self.failing_reads = 0
        self.gate = threading.Event()
        self.gate.set()

    def room_bytes(self) -> int | None:
        return None

    def write(self, size_bytes: int, chunks: Iterable[memoryview]) -> str:
        self.gate.wait(20)
        if self.failing_writes:
            self.failing_writes -= 1

            def torn() -> Iterator[memoryview]:
                yield from list(chunks)[:1]
                raise OSError("the network is down")

            return self.inner.write(size_bytes, torn())
        return self.inner.write(size_bytes, chunks)

    def read(self, key: str, position: int, size_bytes: int) -> Iterator[memoryview]:
        self.gate.wait(20)
        if self.failing_reads:
            self.failing_reads -= 1
            raise RuntimeError("the network is down")
        return self.inner.read(key, position, size_bytes)

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def flaky(place: Path) -> FlakySpill:
    return FlakySpill(DirectorySpill([str(place)], 1.0))


@pytest.fixture
def flaky_server(serve: Serve, flaky: FlakySpill) -> StoreServer:
    spill = SpillConfig(min_batch_bytes=2 * MIB)
    config = StoreConfig(commit_ahead_min_bytes=0, is_poisoning=True, spill=spill)
    return serve(CAPACITY, config=config, spill_backend=flaky)


def test_failed_write_loses_nothing_and_is_named(
    flaky: FlakySpill, flaky_server: StoreServer, place: Path
) -> None:
    with StoreClient(flaky_server.endpoint) as client:
        flaky.failing_writes = 1_000_000
        with pytest.raises(OutOfDiskError, match="the network is down") as caught:
            put_many(client, 3 * CAPACITY // MIB)
        assert caught.value.reason is FullReason.SPILL_FAILED
        assert files(place) == []
        ids = [record.object_id for record in flaky_server.objects()]
        assert len(ids) >= CAPACITY // MIB - 1
        flaky.failing_writes = 0
        client.put(b"more", [content(99, MIB)], wait_s=10)
        check_all(client, [b"object %d" % number for number in range(len(ids))])


def test_failed_read_is_an_error_and_the_next_get_tries_again(
    flaky: FlakySpill, flaky_server: StoreServer
) -> None:
    with StoreClient(flaky_server.endpoint) as client:
        ids = put_many(client, 3 * CAPACITY // MIB)
        (spilled, *_) = [r for r in flaky_server.objects() if r.state is ObjectState.SPILLED]
        flaky.failing_reads = 1
        with pytest.raises(SpillReadError, match="the network is down"):
            client.get([spilled.object_id])
        check_all(client, ids)


def test_slow_disk_stops_neither_gets_nor_puts_that_need_no_disk(
    flaky: FlakySpill, flaky_server: StoreServer
) -> None:
    flaky.gate.clear()
    with StoreClient(flaky_server.endpoint) as client:
        ids = put_many(client, 14)
        assert flaky_server.statistics().spilling_objects > 0
        check_all(client, ids)
        client.delete(ids[:3])
        client.put(b"small", [b"x"])
        waiting = threading.Thread(target=lambda: client.put(b"big", [bytes(8 * MIB)]))
        waiting.start()
        client.put(b"small too", [b"x"], wait_s=0)
        flaky.gate.set()
        waiting.join(20)
        assert client.contains(b"big")


def test_get_waits_for_a_slow_restore_beyond_its_own_time(
    flaky: FlakySpill, flaky_server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "RESTORE_ANSWER_S", 0.02)
    with StoreClient(flaky_server.endpoint) as client:
        ids = put_many(client, 3 * CAPACITY // MIB)
        (spilled, *_) = [r for r in flaky_server.objects() if r.state is ObjectState.SPILLED]
        flaky.gate.clear()
        found: list[memoryview | None] = []
        thread = threading.Thread(
            target=lambda: found.extend(client.get([spilled.object_id, b"missing"]))
        )
        thread.start()
        assert client.get([b"missing"], 0.1) == [None]
        assert not found
        flaky.gate.set()
        thread.join(20)
        assert found[0] == content(ids.index(spilled.object_id), MIB)
        assert found[1] is None


def test_client_that_dies_during_its_restore_leaves_nothing(
    flaky: FlakySpill, flaky_server: StoreServer, eventually: Eventually
) -> None:
    with StoreClient(flaky_server.endpoint) as client:
        ids = put_many(client, 3 * CAPACITY // MIB)
        (spilled, *_) = [r for r in flaky_server.objects() if r.state is ObjectState.SPILLED]
        flaky.gate.clear()
        code = f"""
import sys
from skate_object_store import StoreClient
print("up", flush=True)
StoreClient({flaky_server.endpoint!r}).get([{spilled.object_id!r}])
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            eventually(lambda: flaky_server.statistics().restoring_objects == 1)
            child.kill()
        eventually(lambda: flaky_server.statistics().clients == 1)
        flaky.gate.set()
        eventually(lambda: flaky_server.statistics().restoring_objects == 0)
        flaky_server.check_invariants()
        check_all(client, ids)
        client.delete(ids)
        eventually(lambda: flaky_server.statistics().used_bytes == 0)


def test_server_that_closes_while_the_disk_is_busy_leaves_nothing(
    flaky: FlakySpill, flaky_server: StoreServer, place: Path
) -> None:
    with StoreClient(flaky_server.endpoint) as client:
        flaky.gate.clear()
        put_many(client, 14)
        closing = threading.Thread(target=flaky_server.close)
        closing.start()
        flaky.gate.set()
        closing.join(20)
        assert not closing.is_alive()
    assert list(place.iterdir()) == []


def test_server_closes_although_the_disk_hangs(
    flaky: FlakySpill,
    flaky_server: StoreServer,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    monkeypatch.setattr(spiller, "SPILL_CLOSE_S", 0.1)
    with StoreClient(flaky_server.endpoint) as client:
        flaky.gate.clear()
        put_many(client, 14)
        flaky_server.close()
    flaky.gate.set()
    eventually(lambda: "skate-store-spill" not in {t.name for t in threading.enumerate()})
    flaky.close()


def test_clients_killed_while_they_write_and_read_harm_nobody(
    server: StoreServer, client: StoreClient, place: Path, eventually: Eventually
) -> None:
    ids = put_many(client, 2 * CAPACITY // MIB)
    code = f"""
import itertools
from skate_object_store import StoreClient, StoreFullError
client = StoreClient({server.endpoint!r}, owner=b"victim")
for number in itertools.count():
    try:
        client.put(b"victim %d" % number, [bytes([number % 256]) * {MIB}])
        client.get([b"victim %d" % (number // 2)])
        client.create(b"half %d" % number, 1000)
    except StoreFullError:
        pass
    if number == 5:
        print("up", flush=True)
"""
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            child.kill()
        eventually(lambda: server.statistics().clients == 1)
        server.release_owner(b"victim")
        server.check_invariants()
    check_all(client, ids)
    client.delete(ids)
    eventually(lambda: not files(place) and server.statistics().used_bytes == 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "skate-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.invariant("I19")
def test_full_disk_is_an_error_and_everything_works_again_when_it_is_freed(
    serve: Serve, small_disk: Path, eventually: Eventually
) -> None:
    spill = SpillConfig(directories=(str(small_disk),), min_batch_bytes=2 * MIB)
    server = serve(CAPACITY, config=StoreConfig(commit_ahead_min_bytes=0, spill=spill))
    with StoreClient(server.endpoint) as client:
        for cycle in range(25):
            ids: list[bytes] = []

            def fill(cycle: int, ids: list[bytes]) -> None:
                for number in range(40):
                    client.put(b"%d-%d" % (cycle, number), [content(number, MIB)], note="loop")
                    ids.append(b"%d-%d" % (cycle, number))

            with pytest.raises(OutOfDiskError) as caught:
                fill(cycle, ids)
            assert caught.value.reason is FullReason.DISK_FULL
            assert {holder.note for holder in caught.value.holders} == {"loop"}
            assert len(ids) >= (CAPACITY + 6 * MIB) // MIB - 3
            check_all(client, ids)
            client.delete(ids)
            eventually(lambda: not files(small_disk) and not server.statistics().used_bytes)


def test_disk_freed_by_others_is_used_by_creates_that_wait(serve: Serve, small_disk: Path) -> None:
    spill = SpillConfig(directories=(str(small_disk),), min_batch_bytes=2 * MIB)
    server = serve(CAPACITY, config=StoreConfig(commit_ahead_min_bytes=0, spill=spill))
    balloon = small_disk / "balloon"
    balloon.write_bytes(bytes(7 * MIB))
    with StoreClient(server.endpoint) as client:
        with pytest.raises(OutOfDiskError):
            put_many(client, 20)
        ids = [b"object %d" % number for number in range(len(server.objects()))]
        waiting = threading.Thread(target=lambda: client.put(b"late", [bytes(MIB)], wait_s=10))
        waiting.start()
        balloon.unlink()
        waiting.join(20)
        assert client.contains(b"late")
        check_all(client, ids)


def test_store_needs_no_room_in_dev_shm() -> None:
    """The arena is a memfd, which no mount limits: shown where /dev/shm has one megabyte."""
    code = """
import os, tempfile
from skate_object_store import StoreClient, StoreServer
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 1 << 20
with StoreServer(tempfile.mkdtemp() + "/s", 64 << 20) as server, StoreClient(server.endpoint) as c:
    c.put(b"id", [b"x" * (48 << 20)])
    (view,) = c.get([b"id"])
    assert view == b"x" * (48 << 20)
"""
    mount = "mount -t tmpfs -o size=1m none /dev/shm"
    script = f'{mount} && exec "$0" -c "$1"'
    namespace = ["unshare", "--mount", "sh", "-c"]
    tried = subprocess.run([*namespace, mount], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip("a mount namespace of its own needs root")
    subprocess.run([*namespace, script, sys.executable, code], check=True, timeout=50)
