from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from skate_object_store import (
    FullReason,
    ObjectNotFoundError,
    StoreClient,
    StoreClosedError,
    StoreFullError,
    StoreServer,
    StoreTimeoutError,
)

MIB = 1 << 20
Connect = Callable[..., StoreClient]
Eventually = Callable[[Callable[[], bool]], None]


@contextmanager
def stalled(server: StoreServer) -> Iterator[None]:
    """The server's thread does nothing while the block runs."""
    release = threading.Event()
    reached = threading.Event()

    def stall() -> None:
        reached.set()
        release.wait(30)

    server._post(stall)
    assert reached.wait(10)
    try:
        yield
    finally:
        release.set()


def test_large_put_is_copied_whole_by_all_threads(client: StoreClient) -> None:
    source = np.random.default_rng(1).integers(0, 255, 20 * MIB + 12345, dtype=np.uint8)
    assert client.put(b"id", [source[:7], source[7:]]) == source.nbytes
    (view,) = client.get([b"id"])
    assert view is not None
    assert np.array_equal(np.frombuffer(view, dtype=np.uint8), source)


def test_put_takes_read_only_writable_and_shaped_buffers(client: StoreClient) -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    read_only = array.copy()
    read_only.flags.writeable = False
    parts = [b"bytes", bytearray(b"array"), memoryview(b"view"), array, read_only, np.zeros((0, 3))]
    client.put(b"id", parts, 14 + 48)
    (view,) = client.get([b"id"])
    assert view is not None
    assert bytes(view) == b"bytesarrayview" + array.tobytes() * 2


@pytest.mark.parametrize("size", [4, 4_000_000])
def test_part_that_is_not_contiguous_raises_and_frees_the_id(
    client: StoreClient, size: int
) -> None:
    with pytest.raises(BufferError):
        client.put(b"id", [b"fine", np.zeros(size, dtype=np.uint8)[::2]])
    client.put(b"id", [b"again"])


def test_total_that_is_wrong_raises_before_anything_is_written(client: StoreClient) -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        client.put(b"id", [b"four"], 5)
    assert not client.contains(b"id")


@pytest.mark.parametrize("size", [10, MIB, 9 * MIB])
def test_write_fills_a_created_view(client: StoreClient, size: int) -> None:
    view = client.create(b"id", size + 2)
    view[:1] = view[-1:] = b"."
    client.write(view, 1, np.full(size, 7, dtype=np.uint8))
    client.seal(b"id")
    (read,) = client.get([b"id"])
    assert read is not None
    assert bytes(read) == b"." + b"\7" * size + b"."


def test_write_outside_a_view_raises(client: StoreClient) -> None:
    view = client.create(b"id", 10)
    for offset, data in ((-1, b"x"), (10, b"x"), (0, b"x" * 11)):
        with pytest.raises(ValueError, match="do not fit"):
            client.write(view, offset, data)
    with pytest.raises(ValueError, match="not made by"):
        client.write(memoryview(bytearray(10)), 0, b"x")
    client.write(view[4:6], 0, b"ok")
    assert bytes(view[4:6]) == b"ok"


def test_bad_arguments_raise_at_once(client: StoreClient) -> None:
    for bad in (b"", b"x" * 256):
        with pytest.raises(ValueError, match="object id"):
            client.create(bad, 1)
        with pytest.raises(ValueError, match="object id"):
            client.get([bad])
        with pytest.raises(ValueError, match="object id"):
            client.delete([bad])
    with pytest.raises(ValueError, match="-1 bytes"):
        client.create(b"id", -1)
    with pytest.raises(ValueError, match="owner"):
        client.create(b"id", 1, owner=b"x" * 256)
    with pytest.raises(ValueError, match="wait"):
        client.create(b"id", 1, wait_s=-1)
    with pytest.raises(ValueError, match="too many"):
        client.wait([b"x" * 255] * 5000, 1, 0)


def test_longest_id_and_owner_work(server: StoreServer, connect: Connect) -> None:
    owner = b"o" * 255
    client = connect(owner=owner)
    client.put(b"i" * 255, [b"value"])
    assert client.contains(b"i" * 255)
    assert server.release_owner(owner) > 0
    assert not client.contains(b"i" * 255)


def test_many_ids_are_split_over_frames(client: StoreClient) -> None:
    ids = [b"%020d" % number for number in range(5000)]
    for object_id in ids[::50]:
        client.put(object_id, [object_id])
    views = client.get(ids)
    assert [index for index, view in enumerate(views) if view is not None] == list(
        range(0, 5000, 50)
    )
    assert client.wait(ids, 3, 0) == ids[::50]
    client.delete(ids)
    assert client.wait(ids, 1, 0) == []


def test_full_store_says_who_holds_it(server: StoreServer, connect: Connect) -> None:
    client = connect(owner=b"\x01\x02")
    client.put(b"big", [bytes(40 * MIB)])
    client.put(b"small", [bytes(10 * MIB)], owner=b"\x03")
    views = client.get([b"big"])
    with pytest.raises(StoreFullError) as caught:
        connect().create(b"new", 30 * MIB)
    error = caught.value
    assert error.reason is FullReason.NO_ROOM
    assert [(h.object_id, h.owner, h.pins) for h in error.holders] == [
        (b"big", b"\x01\x02", 1),
        (b"small", b"\x03", 0),
    ]
    assert all(0 <= holder.age_s < 60 for holder in error.holders)
    assert "626967: 40.0 MiB, owner 0102, primary copy, 1 views" in str(error)
    assert server.holders(1)[0].object_id == b"big"
    del views


def test_object_larger_than_the_store_is_refused(client: StoreClient) -> None:
    with pytest.raises(StoreFullError) as caught:
        client.create(b"huge", 1 << 50, wait_s=5)
    assert caught.value.reason is FullReason.TOO_LARGE


def test_owner_release_counts_the_bytes_it_freed(server: StoreServer, connect: Connect) -> None:
    client = connect(owner=b"a")
    client.put(b"1", [bytes(6400)])
    client.put(b"2", [bytes(6400)])
    client.put(b"3", [bytes(6400)], owner=b"b")
    (view,) = client.get([b"2"])
    assert server.release_owner(b"a") == 6400
    assert server.release_owner(b"a") == 0
    assert client.wait([b"1", b"2", b"3"], 3, 0) == [b"3"]
    assert server.statistics().deleted_bytes == 6400
    assert view is not None
    with pytest.raises(ValueError, match="owner tag"):
        server.release_owner(b"")


def test_delete_in_a_finalizer_is_carried_out(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    class Reference:
        def __init__(self, object_id: bytes) -> None:
            self.object_id = object_id
            self.cycle = self

        def __del__(self) -> None:
            client.delete([self.object_id])

    for number in range(50):
        client.put(b"%d" % number, [b"x"])
        Reference(b"%d" % number)
    gc.collect()
    eventually(lambda: server.statistics().objects == 0)


def test_deletes_before_a_close_are_carried_out(server: StoreServer, connect: Connect) -> None:
    client = connect()
    client.put(b"id", [b"x"])
    client.delete([b"id"])
    client.close()
    other = connect()
    assert not other.contains(b"id")


def test_threads_share_a_client(server: StoreServer, client: StoreClient) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(60):
                object_id = b"%d-%d" % (number, step)
                value = object_id * 2000
                client.put(object_id, [value])
                neighbour = b"%d-%d" % ((number + 1) % 8, step)
                mine, other = client.get([object_id, neighbour], 20)
                assert mine == value
                assert other == neighbour * 2000
                assert client.wait([neighbour, b"never"], 1, 20) == [neighbour]
        except Exception as error:  # noqa: BLE001  The main thread shows it.
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    assert failures == []
    server.check_invariants()


def test_waiting_thread_does_not_hold_up_others(client: StoreClient) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(client.get([b"late"], None)))
    thread.start()
    for number in range(20):
        client.put(b"%d" % number, [b"x"])
    client.put(b"late", [b"now"])
    thread.join(10)
    assert found == [b"now"]


def test_closed_server_ends_blocked_and_later_calls_at_once(
    server: StoreServer, client: StoreClient
) -> None:
    errors: list[BaseException] = []

    def wait_for_ever() -> None:
        try:
            client.get([b"never"], None)
        except StoreClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait_for_ever)
    thread.start()
    while server.statistics().waiting_requests == 0:
        pass
    server.close()
    thread.join(5)
    assert [str(error) for error in errors] == [
        f"the connection to the object store at {server.endpoint} is closed: the store was closed."
    ]
    for call in (
        lambda: client.put(b"id", [b"x"]),
        lambda: client.get([b"id"]),
        lambda: client.contains(b"id"),
    ):
        with pytest.raises(StoreClosedError):
            call()
    with pytest.raises(StoreClosedError):
        server.statistics()
    client.close()
    with pytest.raises(StoreClosedError, match="nobody listens"):
        StoreClient(server.endpoint)


def test_closed_client_ends_its_blocked_calls(client: StoreClient, server: StoreServer) -> None:
    # An operation under way holds the connection open; it ends by its own timeout.
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.extend(client.get([b"never"], 0.2)))
    thread.start()
    while server.statistics().waiting_requests == 0:
        pass
    client.close()
    thread.join(5)
    assert found == [None]
    with pytest.raises(StoreClosedError, match="client was closed"):
        client.get([b"x"])


def test_server_that_does_not_answer_is_a_timeout_and_not_the_end(
    server: StoreServer, connect: Connect, eventually: Eventually
) -> None:
    client = connect(timeout_s=0.3)
    with stalled(server):
        with pytest.raises(StoreTimeoutError):
            client.create(b"late", 100)
        with pytest.raises(StoreTimeoutError):
            client.contains(b"x")
    # The create's reply comes late and is undone: its range and its id are free again.
    eventually(lambda: server.statistics().created_total == 1)
    eventually(lambda: server.statistics().objects == 0)
    client.put(b"late", [b"x"])
    assert client.contains(b"late")


def test_get_that_timed_out_gives_its_pins_back(
    server: StoreServer, connect: Connect, eventually: Eventually
) -> None:
    client = connect(timeout_s=0.3)
    client.put(b"id", [b"x"], evictable=True)
    client.contains(b"id")
    with stalled(server), pytest.raises(StoreTimeoutError):
        client.get([b"id"])
    eventually(lambda: server.statistics().evictable_bytes > 0)


def test_second_server_on_a_socket_is_refused_and_an_abandoned_one_replaced(
    server: StoreServer, client: StoreClient
) -> None:
    path = server.endpoint.removeprefix("unix:")
    rival = StoreServer(path, MIB)
    with pytest.raises(OSError, match="in use"):
        rival.start()
    rival.close()
    client.put(b"id", [b"still served"])
    listener = server._reception._listener
    assert listener is not None
    listener._socket.close()  # As if its process had died.
    heir = StoreServer(path, MIB)
    heir.start()
    with StoreClient(heir.endpoint) as other:
        other.put(b"id", [b"heir"])
    heir.close()


def test_statistics_follow_what_happens(server: StoreServer, client: StoreClient) -> None:
    client.put(b"a", [bytes(6400)])
    client.put(b"b", [bytes(6400)], evictable=True)
    counts = server.statistics()
    assert (counts.used_bytes, counts.objects, counts.connections) == (12800, 2, 1)
    assert (counts.primary_bytes, counts.evictable_bytes, counts.pinned_bytes) == (6400, 6400, 0)
    assert counts.committed_bytes >= 12800
    (view,) = client.get([b"b"])
    assert server.statistics().pinned_bytes == 6400
    assert view is not None


def test_kept_copies_count_as_primary_and_others_are_not_named(
    server: StoreServer, client: StoreClient
) -> None:
    client.put(b"a", [bytes(6400)], evictable=True)
    client.put(b"b", [bytes(6400)])
    assert client.keep([b"a", b"nobody", b"b"]) == [b"a", b"b"]
    counts = server.statistics()
    assert (counts.primary_bytes, counts.evictable_bytes) == (12800, 0)
    assert client.keep([]) == []


def test_create_that_waits_is_bounded(client: StoreClient) -> None:
    client.put(b"all", [bytes(64 * MIB)])
    start_s = time.monotonic()
    with pytest.raises(StoreFullError):
        client.create(b"more", MIB, wait_s=0.1)
    assert time.monotonic() - start_s >= 0.1


def test_seal_without_create_names_the_object(client: StoreClient) -> None:
    with pytest.raises(ObjectNotFoundError, match="6964"):
        client.seal(b"id")


def test_object_deleted_while_it_is_written_can_be_created_anew(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    first = client.create(b"id", 100)
    client.delete([b"id"])
    second = client.create(b"id", 100)
    second[:1] = b"2"
    client.seal(b"id")
    (view,) = client.get([b"id"])
    assert view is not None
    assert view[:1] == b"2"
    with pytest.raises(ValueError, match="released"):
        first[0] = 1
    eventually(lambda: server.statistics().objects == 1)
