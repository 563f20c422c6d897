from __future__ import annotations

import ctypes
import gc
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from _pytest.monkeypatch import MonkeyPatch

from skate_object_store import StoreClient, StoreClosedError, StoreServer
from skate_object_store.client import attachment

MIB = 1 << 20
Connect = Callable[..., StoreClient]
Eventually = Callable[[Callable[[], bool]], None]


def assert_true(value: bool) -> None:
    assert value


def get(client: StoreClient, object_id: bytes) -> memoryview:
    (view,) = client.get([object_id], 10)
    assert view is not None
    return view


def test_array_over_a_view_keeps_the_object_after_delete_and_close(
    server: StoreServer, client: StoreClient, connect: Connect, eventually: Eventually
) -> None:
    values = np.arange(100_000)
    client.put(b"id", [values])
    array = np.frombuffer(get(client, b"id"), dtype=values.dtype)[10:-10].reshape(-1, 2)
    client.delete([b"id"])
    client.close()
    gc.collect()
    other = connect()
    for number in range(7):  # Overwrite nearly all that the store considers free.
        other.put(b"%d" % number, [bytearray(b"\xff") * (9 * MIB)])
    assert np.array_equal(array.ravel(), values[10:-10])
    assert server.statistics().pinned_bytes >= values.nbytes
    del array
    eventually(lambda: server.statistics().pinned_bytes == 0)
    eventually(lambda: server.statistics().clients == 1)


def test_views_are_read_only_all_the_way(client: StoreClient) -> None:
    client.put(b"id", [np.arange(10)])
    view = get(client, b"id")
    array = np.frombuffer(view, dtype=np.int64)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(TypeError):
        ctypes.c_char.from_buffer(view)


def test_write_through_a_raw_pointer_faults_instead_of_changing_the_object(
    server: StoreServer, client: StoreClient
) -> None:
    client.put(b"id", [np.arange(10)])
    code = f"""
import ctypes, numpy, skate_object_store
client = skate_object_store.StoreClient({server.endpoint!r})
array = numpy.frombuffer(client.get([b"id"])[0], dtype=numpy.int64)
ctypes.memset(array.ctypes.data, 255, 8)
"""
    child = subprocess.run([sys.executable, "-c", code], check=False, timeout=30)
    assert child.returncode == -signal.SIGSEGV
    assert np.array_equal(np.frombuffer(get(client, b"id"), dtype=np.int64), np.arange(10))


def test_second_get_of_a_viewed_object_asks_nobody(
    server: StoreServer, client: StoreClient
) -> None:
    client.put(b"id", [b"value"])
    first = get(client, b"id")
    release = threading.Event()
    server._post(lambda: assert_true(release.wait(30)))
    try:
        second = client.get([b"id", b"id"])
        assert second == [b"value", b"value"]
        del first
        assert client.get([b"id"]) == [b"value"]
    finally:
        release.set()


def test_view_taken_again_before_the_release_left_keeps_the_pin(
    server: StoreServer, client: StoreClient, monkeypatch: MonkeyPatch, eventually: Eventually
) -> None:
    client.put(b"id", [b"value"])
    monkeypatch.setattr(attachment, "RELEASE_LINGER_S", 0.2)
    for _ in range(100):
        assert get(client, b"id") == b"value"
    view = get(client, b"id")
    client.contains(b"other")  # Takes along every release there is.
    assert server.statistics().pinned_bytes > 0
    client.delete([b"id"])
    client.put(b"filler", [b"\xff" * 100])
    assert view == b"value"
    del view
    eventually(lambda: server.statistics().pinned_bytes == 0)


def test_deleted_object_is_not_found_in_the_cache(client: StoreClient) -> None:
    client.put(b"id", [b"old"])
    view = get(client, b"id")
    client.delete([b"id"])
    assert client.get([b"id"]) == [None]
    client.put(b"id", [b"new"])
    assert get(client, b"id") == b"new"
    assert view == b"old"


def test_pins_of_two_threads_getting_at_once_are_all_dropped(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    for number in range(100):
        client.put(b"%d" % number, [b"x"])
    barrier = threading.Barrier(4)

    def work() -> None:
        for number in range(100):
            barrier.wait(10)
            get(client, b"%d" % number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    eventually(lambda: server.statistics().pinned_bytes == 0)


@pytest.mark.invariant("I4")
def test_views_outlive_the_server(server: StoreServer, client: StoreClient) -> None:
    client.put(b"id", [b"value" * 1000])
    view = get(client, b"id")
    server.close()
    assert view == b"value" * 1000
    with pytest.raises(StoreClosedError):
        client.contains(b"id")
    client.close()
    assert view == b"value" * 1000


def test_array_over_a_created_view_keeps_its_range_after_the_seal(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    view = client.create(b"id", 800)
    array = np.frombuffer(view, dtype=np.int64)
    array[:] = 5
    client.seal(b"id")
    client.delete([b"id"])
    client.contains(b"id")
    assert server.statistics().deleted_bytes > 0
    del array, view
    eventually(lambda: server.statistics().used_bytes == 0)


@pytest.mark.invariant("I4")
def test_aborted_range_is_reused_only_when_nobody_can_write_it(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    view = client.create(b"id", 800)
    array = np.frombuffer(view, dtype=np.int64)
    client.abort(b"id")
    client.contains(b"id")
    assert server.statistics().unsealed_bytes > 0
    array[:] = 1
    del array, view
    eventually(lambda: server.statistics().used_bytes == 0)


def test_closed_client_keeps_the_range_of_a_view_being_written(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    view = client.create(b"id", 800)
    array = np.frombuffer(view, dtype=np.int64)
    client.close()
    array[:] = 1
    assert server.statistics().unsealed_bytes > 0
    del array, view
    eventually(lambda: server.statistics().used_bytes == 0)


def test_sizes_of_every_kind_do_not_pile_up_array_types(client: StoreClient) -> None:
    for size in range(0, 3000, 7):
        client.put(b"%d" % size, [b"x" * size])
        assert get(client, b"%d" % size) == b"x" * size
    assert len(client._attachment._viewer._array_types) < 100


def test_view_can_be_used_as_bytes(client: StoreClient) -> None:
    client.put(b"id", [b"0123456789"])
    view = get(client, b"id")
    assert (view.readonly, view.format, view.nbytes, view.contiguous) == (True, "B", 10, True)
    assert view[3] == ord("3")
    assert view[2:4].tobytes() == b"23"
    assert bytes(view.cast("H")) == b"0123456789"
