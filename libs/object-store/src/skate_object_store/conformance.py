"""What any store must do, as tests: for this one, and for other arenas and spill back ends.

Derive a class whose name starts with ``Test``, and give it a pytest fixture ``connect``: a function
that makes a new client of one and the same fresh store of ``CAPACITY_BYTES``; or, for a spill back
end, a fixture ``backend``::

    class TestSharedMemory(StoreConformance):
        @pytest.fixture
        def connect(self, tmp_path): ...

    class TestMyPlace(SpillConformance):
        @pytest.fixture
        def backend(self, tmp_path): ...

Needs pytest to run, and nothing but the standard library to import.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from skate_object_store.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreClosedError,
    StoreFullError,
)

if TYPE_CHECKING:
    from skate_object_store.service.spill_backends import SpillBackend

CAPACITY_BYTES = 4 << 20

_PATIENCE_S = 10.0


class ObjectStore(Protocol):
    """The calls under test; :class:`~skate_object_store.StoreClient` documents them."""

    def create(
        self,
        object_id: bytes,
        size: int,
        *,
        evictable: bool = False,
        wait_s: float = 0.0,
        late_pages: bool = False,
    ) -> memoryview:
        """Reserve room for an object."""

    def commit(self, object_id: bytes, size: int) -> None:
        """Have memory for its first bytes, if it was created with late pages."""

    def seal(self, object_id: bytes) -> None:
        """Publish it."""

    def abort(self, object_id: bytes) -> None:
        """Give it up."""

    def put(self, object_id: bytes, parts: Sequence[bytes], *, evictable: bool = False) -> int:
        """Create, write and seal."""

    def get(
        self, object_ids: Sequence[bytes], timeout_s: float | None = 0
    ) -> list[memoryview | None]:
        """Read-only views."""

    def contains(self, object_id: bytes) -> bool:
        """Whether the object is sealed."""

    def wait(
        self, object_ids: Sequence[bytes], num_ready: int, timeout_s: float | None
    ) -> list[bytes]:
        """The ids that are ready."""

    def keep(self, object_ids: Sequence[bytes]) -> list[bytes]:
        """Make evictable copies primary; the ids that stay."""

    def delete(self, object_ids: Sequence[bytes]) -> None:
        """Forget objects."""

    def close(self) -> None:
        """End the connection."""


Connect = Callable[[], ObjectStore]


class StoreConformance:
    """One behaviour a method. ``connect()`` makes a client; the fixture closes what it made."""

    is_spilling = False
    """Whether the store under test takes more primary copies than it has room for."""

    def test_put_then_get_returns_the_bytes(self, connect: Connect) -> None:
        """What another client reads is what was written, parts joined."""
        assert connect().put(b"id", [b"one ", b"", b"two"]) == 7
        assert _bytes_of(connect(), b"id") == b"one two"

    def test_empty_object_is_an_object(self, connect: Connect) -> None:
        """An object of no bytes is there and can be had."""
        store = connect()
        store.put(b"empty", [])
        assert store.contains(b"empty")
        assert _bytes_of(store, b"empty") == b""

    def test_created_object_is_invisible_until_sealed(self, connect: Connect) -> None:
        """A half-written object is never seen."""
        writer, reader = connect(), connect()
        view = writer.create(b"id", 3)
        view[:] = b"abc"
        assert reader.get([b"id"]) == [None]
        assert not reader.contains(b"id")
        writer.seal(b"id")
        assert _eventually(lambda: reader.contains(b"id"))
        assert _bytes_of(reader, b"id") == b"abc"

    def test_created_view_is_aligned_and_writable(self, connect: Connect) -> None:
        """64 bytes of alignment show in the addresses of two neighbours."""
        store = connect()
        for number in range(3):
            view = store.create(b"id%d" % number, 100)
            assert not view.readonly
            assert len(view) == 100
            assert _address(view) % 64 == 0

    def test_sealed_object_cannot_be_written(self, connect: Connect) -> None:
        """Neither through the writer's view nor through a reader's."""
        store = connect()
        view = store.create(b"id", 3)
        view[:] = b"abc"
        store.seal(b"id")
        assert isinstance(_error_of(lambda: view.__setitem__(0, 1)), ValueError)
        (read,) = store.get([b"id"], _PATIENCE_S)
        assert read is not None
        assert read.readonly
        assert isinstance(_error_of(lambda: read.__setitem__(0, 1)), TypeError)

    def test_second_create_of_an_id_is_refused(self, connect: Connect) -> None:
        """Sealed or not: an object is written once."""
        first, second = connect(), connect()
        first.create(b"id", 1)
        error = _error_of(lambda: second.create(b"id", 1))
        assert isinstance(error, ObjectExistsError)
        assert not error.is_sealed
        first.seal(b"id")
        assert second.get([b"id"], _PATIENCE_S) != [None]
        error = _error_of(lambda: second.put(b"id", [b"x"]))
        assert isinstance(error, ObjectExistsError)
        assert error.is_sealed

    def test_aborted_object_frees_its_id(self, connect: Connect) -> None:
        """After an abort the id can be created again."""
        store = connect()
        store.create(b"id", 1)
        store.abort(b"id")
        store.put(b"id", [b"new"])
        assert _bytes_of(store, b"id") == b"new"

    def test_seal_and_abort_of_what_is_not_written_raise(self, connect: Connect) -> None:
        """Only the writer can, and once."""
        store = connect()
        store.put(b"id", [b"x"])
        assert isinstance(_error_of(lambda: store.seal(b"id")), ObjectNotFoundError)
        assert isinstance(_error_of(lambda: store.abort(b"id")), ObjectNotFoundError)

    def test_get_keeps_order_and_repeats(self, connect: Connect) -> None:
        """Answers stand where their ids stood; missing ones are None."""
        store = connect()
        store.put(b"a", [b"A"])
        store.put(b"b", [b"B"])
        views = store.get([b"b", b"missing", b"a", b"b"])
        assert [None if view is None else bytes(view) for view in views] == [b"B", None, b"A", b"B"]

    def test_get_waits_for_a_later_put(self, connect: Connect) -> None:
        """A get with time answers when the object comes, not before and not at its deadline."""
        writer, reader = connect(), connect()
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(_bytes_of(reader, b"late")))
        thread.start()
        writer.put(b"other", [b"x"])
        assert not found
        writer.put(b"late", [b"now"])
        thread.join(_PATIENCE_S)
        assert found == [b"now"]

    def test_get_at_its_deadline_returns_what_there_is(self, connect: Connect) -> None:
        """A timeout is no error."""
        store = connect()
        store.put(b"a", [b"A"])
        first, second = store.get([b"a", b"never"], 0.05)
        assert first is not None
        assert second is None

    def test_wait_counts_and_keeps_order(self, connect: Connect) -> None:
        """Ready ids come in the order given; a deadline returns fewer."""
        store = connect()
        store.put(b"b", [b"B"])
        store.put(b"a", [b"A"])
        assert store.wait([b"a", b"x", b"b"], 2, _PATIENCE_S) == [b"a", b"b"]
        assert store.wait([b"x", b"b"], 2, 0.05) == [b"b"]
        assert store.wait([b"x"], 1, 0) == []

    def test_deleted_object_is_gone_but_its_views_stay(self, connect: Connect) -> None:
        """The id goes at once, the bytes with the last view."""
        store, other = connect(), connect()
        store.put(b"id", [b"keep me"])
        (view,) = other.get([b"id"])
        store.delete([b"id", b"unknown"])
        assert not store.contains(b"id")
        store.put(b"id", [b"another"])
        for number in range(20):
            store.put(b"filler%d" % number, [b"\xff" * (CAPACITY_BYTES // 40)])
        assert view is not None
        assert bytes(view) == b"keep me"
        assert _bytes_of(store, b"id") == b"another"

    def test_slice_of_a_view_keeps_the_object(self, connect: Connect) -> None:
        """A pin lasts as long as anything made from the view."""
        store = connect()
        store.put(b"id", [b"0123456789"])
        (view,) = store.get([b"id"])
        assert view is not None
        part = view[2:5]
        del view
        gc.collect()
        store.delete([b"id"])
        _fill(store)
        assert bytes(part) == b"234"

    def test_full_store_refuses_and_names_holders(self, connect: Connect) -> None:
        """Primary copies are never dropped for room; views keep them from being spilled."""
        store = connect()
        store.put(b"big", [bytes(CAPACITY_BYTES // 2)])
        store.put(b"small", [bytes(CAPACITY_BYTES // 4)])
        views = store.get([b"big", b"small"])
        half = bytes(CAPACITY_BYTES // 2)
        error = _error_of(lambda: store.create(b"more", len(half)))
        assert isinstance(error, StoreFullError)
        assert [holder.object_id for holder in error.holders] == [b"big", b"small"]
        views.clear()
        store.delete([b"big"])
        assert _eventually(lambda: _error_of(lambda: store.put(b"more", [half])) is None)

    def test_every_object_is_kept_beyond_the_capacity(self, connect: Connect) -> None:
        """For a store that spills: three times its capacity comes back whole."""
        if not self.is_spilling:
            return
        store, reader = connect(), connect()
        size = CAPACITY_BYTES // 8
        for number in range(24):
            store.put(b"%d" % number, [bytes((number,)) * size])
        assert len(reader.wait([b"%d" % number for number in range(24)], 24, 0)) == 24
        for number in range(24):
            assert _bytes_of(reader, b"%d" % number) == bytes((number,)) * size

    def test_evictable_copies_make_room(self, connect: Connect) -> None:
        """The least recently used goes first; one with a view does not go at all."""
        store = connect()
        quarter = bytes(CAPACITY_BYTES // 4)
        for name in (b"a", b"b", b"c"):
            store.put(name, [quarter], evictable=True)
        (pinned,) = store.get([b"a"])
        store.put(b"primary", [bytes(CAPACITY_BYTES // 2)])
        assert pinned is not None
        assert store.contains(b"a")
        assert not store.contains(b"b")

    def test_kept_copy_does_not_make_room(self, connect: Connect) -> None:
        """It is there afterwards; of what is not there nothing is promised."""
        store = connect()
        quarter = bytes(CAPACITY_BYTES // 4)
        store.put(b"kept", [quarter], evictable=True)
        store.put(b"copy", [quarter], evictable=True)
        assert store.keep([b"kept", b"nowhere"]) == [b"kept"]
        store.put(b"primary", [bytes(CAPACITY_BYTES // 2)])
        assert store.contains(b"kept")
        store.delete([b"primary"])
        assert _bytes_of(store, b"kept") == quarter

    def test_id_of_a_deleted_object_is_another_object(self, connect: Connect) -> None:
        """Views of the first keep its bytes; who gets the second sees its own."""
        store, other = connect(), connect()
        store.put(b"id", [b"first"])
        (view,) = other.get([b"id"])
        store.delete([b"id"])
        store.put(b"id", [b"second"])
        assert view is not None
        assert bytes(view) == b"first"
        assert _bytes_of(store, b"id") == b"second"

    def test_create_that_may_wait_gets_the_room_when_it_comes(self, connect: Connect) -> None:
        """A delete elsewhere serves it."""
        store, other = connect(), connect()
        store.put(b"old", [bytes(CAPACITY_BYTES * 3 // 4)])
        views: list[memoryview] = []

        def create() -> None:
            views.append(other.create(b"new", CAPACITY_BYTES // 2, wait_s=_PATIENCE_S))

        thread = threading.Thread(target=create)
        thread.start()
        assert store.wait([b"new"], 1, 0.05) == []
        store.delete([b"old"])
        thread.join(_PATIENCE_S)
        assert len(views) == 1

    def test_closed_client_aborts_its_writes_and_keeps_its_views(self, connect: Connect) -> None:
        """What it had sealed stays; what it wrote halfway does not; its views are valid."""
        store, other = connect(), connect()
        store.put(b"id", [b"value"])
        store.create(b"half", 10)
        (view,) = store.get([b"id"])
        store.close()
        store.close()
        assert isinstance(_error_of(lambda: store.contains(b"id")), StoreClosedError)
        assert _eventually(lambda: _error_of(lambda: other.put(b"half", [b"x"])) is None)
        other.delete([b"id"])
        _fill(other)
        assert view is not None
        assert bytes(view) == b"value"

    def test_object_with_late_pages_is_written_as_they_come(self, connect: Connect) -> None:
        """Part after part, each behind its commit; repeating a commit changes nothing."""
        store, reader = connect(), connect()
        size, part = CAPACITY_BYTES // 2 + 5, CAPACITY_BYTES // 8
        view = store.create(b"id", size, late_pages=True)
        for start in range(0, size, part):
            end = min(size, start + part)
            store.commit(b"id", end)
            store.commit(b"id", start)
            view[start:end] = bytes([start // part]) * (end - start)
        assert reader.get([b"id"]) == [None]
        del view
        store.seal(b"id")
        content = _bytes_of(reader, b"id")
        assert content == bytes(n // part for n in range(size))

    def test_object_is_sealed_with_all_of_its_pages_only(self, connect: Connect) -> None:
        """A seal before that raises, and the object can still be finished."""
        store = connect()
        store.create(b"id", CAPACITY_BYTES // 2, late_pages=True)
        error = _error_of(lambda: store.seal(b"id"))
        assert error is None or isinstance(error, ValueError)  # None: all were there before.
        if error is not None:
            assert isinstance(_error_of(lambda: store.commit(b"id", CAPACITY_BYTES)), ValueError)
            store.commit(b"id", CAPACITY_BYTES // 2)
            store.seal(b"id")
        assert store.contains(b"id")

    def test_pages_of_what_is_not_being_written_cannot_be_had(self, connect: Connect) -> None:
        """Never created, by another, or given up; and what was given up leaves its room."""
        store, other = connect(), connect()
        store.create(b"id", CAPACITY_BYTES, late_pages=True)
        for client, name in ((store, b"never"), (other, b"id")):
            error = _error_of(lambda client=client, name=name: client.commit(name, 1))  # type: ignore[misc]
            assert isinstance(error, ObjectNotFoundError)
        store.abort(b"id")
        assert isinstance(_error_of(lambda: store.commit(b"id", 1)), ObjectNotFoundError)
        store.put(b"id", [b"x" * CAPACITY_BYTES])
        assert _bytes_of(other, b"id") == b"x" * CAPACITY_BYTES

    def test_closed_client_leaves_the_room_of_its_late_pages(self, connect: Connect) -> None:
        """As of everything that it was writing."""
        store, other = connect(), connect()
        store.create(b"id", CAPACITY_BYTES, late_pages=True)
        store.commit(b"id", 1)
        store.close()
        whole = b"y" * CAPACITY_BYTES
        assert _eventually(lambda: _error_of(lambda: other.put(b"id", [whole])) is None)


class SpillConformance:
    """What a place to spill to must do. ``backend`` is fresh, and the test closes it."""

    def test_written_parts_come_back(self, backend: SpillBackend) -> None:
        """Any part of a file, in chunks that add up to it."""
        content = bytes(range(256)) * 20_000
        key = backend.write(len(content), _cut(content, 1_000_000))
        for position, size in ((0, len(content)), (1, 10), (4_999_999, 120_001), (7, 0)):
            assert _read(backend, key, position, size) == content[position : position + size]
        backend.close()

    def test_files_are_apart(self, backend: SpillBackend) -> None:
        """Each write has a key of its own, whatever else is written or deleted."""
        keys = [backend.write(3, _cut(b"%03d" % number, 2)) for number in range(20)]
        assert len(set(keys)) == 20
        for key in keys[::2]:
            backend.delete(key)
        for number, key in list(enumerate(keys))[1::2]:
            assert _read(backend, key, 0, 3) == b"%03d" % number
        backend.close()

    def test_empty_file_is_a_file(self, backend: SpillBackend) -> None:
        """A batch of objects without bytes."""
        key = backend.write(0, iter(()))
        assert _read(backend, key, 0, 0) == b""
        backend.delete(key)
        backend.close()

    def test_deleted_file_is_gone_and_deleting_again_is_no_error(
        self, backend: SpillBackend
    ) -> None:
        """Gone for good says so by its own error."""
        key = backend.write(3, _cut(b"abc", 3))
        backend.delete(key)
        backend.delete(key)
        assert isinstance(_error_of(lambda: _read(backend, key, 0, 3)), FileNotFoundError)
        backend.close()

    def test_read_ends_with_the_file(self, backend: SpillBackend) -> None:
        """What is not there is left out, so that the store sees the gap."""
        key = backend.write(3, _cut(b"abc", 3))
        assert _read(backend, key, 2, 10) == b"c"
        backend.close()

    def test_write_that_fails_leaves_nothing(self, backend: SpillBackend) -> None:
        """Whatever the source of the bytes raises comes out, and later writes work."""

        def broken() -> Iterator[memoryview]:
            yield memoryview(b"half")
            raise OSError("the source failed")

        assert isinstance(_error_of(lambda: backend.write(8, broken())), OSError)
        key = backend.write(2, _cut(b"ok", 2))
        assert _read(backend, key, 0, 2) == b"ok"
        backend.close()

    def test_writing_and_reading_go_on_at_once(self, backend: SpillBackend) -> None:
        """One thread writes while another reads."""
        key = backend.write(1 << 20, _cut(b"r" * (1 << 20), 1 << 16))
        keys: list[str] = []
        writer = threading.Thread(
            target=lambda: keys.extend(
                backend.write(1 << 20, _cut(b"w" * (1 << 20), 1 << 16)) for _ in range(5)
            )
        )
        writer.start()
        for _ in range(5):
            assert _read(backend, key, 0, 1 << 20) == b"r" * (1 << 20)
        writer.join(_PATIENCE_S)
        assert [_read(backend, written, 0, 1) for written in keys] == [b"w"] * 5
        backend.close()

    def test_room_is_a_number_or_unknown(self, backend: SpillBackend) -> None:
        """A place that can tell has room for a little."""
        room_bytes = backend.room_bytes()
        assert room_bytes is None or room_bytes > 0
        backend.close()


def _cut(content: bytes, size: int) -> Iterator[memoryview]:
    """Chunks in one buffer that is overwritten, as a store hands them out."""
    buffer = bytearray(size)
    for start in range(0, len(content), size):
        part = content[start : start + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]
    buffer[:] = bytes(size)


def _read(backend: SpillBackend, key: str, position: int, size: int) -> bytes:
    return b"".join(bytes(chunk) for chunk in backend.read(key, position, size)) if size else b""


def _fill(store: ObjectStore) -> None:
    """Use every free byte, so that memory freed by mistake is overwritten."""
    size = CAPACITY_BYTES // 2
    filled = 0
    while size >= 64 and filled <= 2 * CAPACITY_BYTES:  # A store that spills is never full.
        try:
            store.put(b"fill %d" % time.monotonic_ns(), [b"\xff" * size])
            filled += size
        except StoreFullError:
            size //= 2


def _bytes_of(store: ObjectStore, object_id: bytes) -> bytes:
    (view,) = store.get([object_id], _PATIENCE_S)
    assert view is not None, f"{object_id!r} did not come"
    return bytes(view)


def _error_of(call: Callable[[], object]) -> Exception | None:
    try:
        call()
    except Exception as error:  # noqa: BLE001  The caller looks at its type.
        return error
    return None


def _eventually(condition: Callable[[], bool]) -> bool:
    """Whether the condition comes true within the patience; one-way messages take a moment."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline_s:
            return False
    return True


def _address(view: memoryview) -> int:

    return ctypes.addressof(ctypes.c_char.from_buffer(view))
