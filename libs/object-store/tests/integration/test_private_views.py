"""Private views: writable, seen by nobody else, and gone without a trace."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

from skate_object_store import StoreClient, StoreServer

SIZE = 3 * os.sysconf("SC_PAGESIZE") + 100


Eventually = Callable[[Callable[[], bool]], None]


def view_of(client: StoreClient, object_id: bytes) -> memoryview:
    (view,) = client.get([object_id])
    assert view is not None
    return view


def private(client: StoreClient, view: memoryview) -> memoryview:
    made = client.private_view(view)
    assert made is not None
    return made


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def test_writes_are_seen_by_nobody_else(server: StoreServer, client: StoreClient) -> None:
    other_client = StoreClient(server.endpoint)
    client.put(b"a", [b"x" * SIZE])
    client.put(b"b", [b"y" * 64])  # on the last page of the first
    shared = view_of(client, b"a")
    first, second = private(client, shared), private(client, shared)
    assert bytes(first) == b"x" * SIZE

    first[0] = 1
    first[-1] = 2

    assert (first[0], first[1], first[-1]) == (1, ord("x"), 2)
    assert bytes(second) == bytes(shared) == bytes(view_of(other_client, b"a")) == b"x" * SIZE
    assert bytes(view_of(client, b"b")) == b"y" * 64
    other_client.close()


def test_view_of_a_slice_is_private_too(client: StoreClient) -> None:
    client.put(b"a", [bytes(range(256)) * 100])
    part = private(client, view_of(client, b"a")[5000:6000])
    assert bytes(part) == (bytes(range(256)) * 100)[5000:6000]


def test_private_view_keeps_the_object_and_its_end_frees_it(
    server: StoreServer, client: StoreClient, eventually: Eventually
) -> None:
    client.put(b"a", [b"x" * SIZE])
    part = private(client, view_of(client, b"a"))[10:20]
    client.delete([b"a"])
    assert server.statistics().objects == 1
    part[0] = 7
    assert bytes(part) == b"\x07" + b"x" * 9

    del part
    gc.collect()
    eventually(lambda: server.statistics().objects == 0)


def test_what_was_written_does_not_show_in_a_later_object(client: StoreClient) -> None:
    for number in range(20):
        client.put(b"a", [bytes([number]) * SIZE])
        own = private(client, view_of(client, b"a"))
        assert bytes(own) == bytes([number]) * SIZE
        own[:] = b"!" * SIZE
        del own
        client.delete([b"a"])


def test_mappings_end_with_their_views(client: StoreClient) -> None:
    client.put(b"a", [b"x" * SIZE])
    shared = view_of(client, b"a")
    before = mappings()
    views = [private(client, shared) for _ in range(50)]
    views[0][0] = 1
    assert mappings() > before
    views.clear()
    gc.collect()
    assert mappings() <= before + 1  # the heap may have grown


def test_other_memory_has_no_private_view(client: StoreClient) -> None:
    client.put(b"empty", [b""])
    assert client.private_view(memoryview(b"x" * SIZE)) is None
    assert client.private_view(memoryview(bytearray(SIZE))) is None
    assert client.private_view(view_of(client, b"empty")) is None
