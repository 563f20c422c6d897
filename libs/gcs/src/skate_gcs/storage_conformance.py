"""What every storage back end must do, as a test class to inherit from.

Define ``open_storage`` (a fresh back end with these tables) and, for a back end that outlives its
process, ``reopen_storage``; pytest then runs every test here against it::

    class TestMyStorage(StorageConformance):
        def open_storage(self, tables): ...

Needs no test library itself; plain asserts.
"""

# ruff: noqa: D102  a test's name says what it shows

from __future__ import annotations

from collections.abc import Sequence

from skate_gcs.errors import StorageClosedError
from skate_gcs.storage.interface import Storage, Write

TABLES = ("first", "second")
_TIMEOUT_S = 10.0


class StorageConformance:
    """Inherit, and define the two methods below."""

    def open_storage(self, tables: Sequence[str]) -> Storage:
        """A new, empty storage with these tables; closed by the test."""
        raise NotImplementedError

    def reopen_storage(self, tables: Sequence[str]) -> Storage | None:
        """The storage that :meth:`open_storage` made, after its close; None: it forgets."""
        return None

    def test_new_storage_is_empty(self) -> None:
        storage = self.open_storage(TABLES)
        assert [storage.scan(table) for table in TABLES] == [[], []]
        storage.close()

    def test_committed_rows_are_scanned_in_key_order(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(storage, Write("first", b"b", b"2"), Write("first", b"a", b"1"))
        assert storage.scan("first") == [(b"a", b"1"), (b"b", b"2")]
        storage.close()

    def test_tables_do_not_share_keys(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(storage, Write("first", b"k", b"1"), Write("second", b"k", b"2"))
        _commit(storage, Write("first", b"k", None))
        assert storage.scan("first") == []
        assert storage.scan("second") == [(b"k", b"2")]
        storage.close()

    def test_last_write_of_a_key_in_a_batch_wins(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(
            storage,
            Write("first", b"k", b"1"),
            Write("first", b"k", None),
            Write("first", b"k", b"3"),
            Write("second", b"k", b"1"),
            Write("second", b"k", None),
        )
        assert storage.scan("first") == [(b"k", b"3")]
        assert storage.scan("second") == []
        storage.close()

    def test_deleting_an_unknown_key_is_harmless(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(storage, Write("first", b"k", None))
        assert storage.scan("first") == []
        storage.close()

    def test_empty_batch_is_committed(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(storage)
        storage.close()

    def test_any_bytes_are_kept(self) -> None:
        storage = self.open_storage(TABLES)
        rows = [
            (bytes([0]), b""),
            (b"\x00\xff", bytes(range(256))),
            (b"\xff" * 300, b"x" * 100_000),
        ]
        _commit(storage, *(Write("first", key, value) for key, value in rows))
        assert storage.scan("first") == rows
        storage.close()

    def test_many_batches_take_effect_in_order(self) -> None:
        storage = self.open_storage(TABLES)
        pending = [storage.commit([Write("first", b"k", b"%d" % n)]) for n in range(500)]
        for done in pending:
            done.result(_TIMEOUT_S)
        assert storage.scan("first") == [(b"k", b"499")]
        assert storage.statistics().batches == 500
        assert storage.statistics().rows_written == 500
        storage.close()

    def test_scan_sees_the_batches_before_it(self) -> None:
        storage = self.open_storage(TABLES)
        for number in range(50):
            storage.commit([Write("first", b"%03d" % number, b"")])
            assert len(storage.scan("first")) == number + 1
        storage.close()

    def test_closed_storage_refuses(self) -> None:
        storage = self.open_storage(TABLES)
        storage.close()
        storage.close()
        refusal = storage.commit([Write("first", b"k", b"v")]).exception(_TIMEOUT_S)
        assert isinstance(refusal, StorageClosedError)
        try:
            storage.scan("first")
        except StorageClosedError:
            return
        raise AssertionError("a closed storage was scanned")

    def test_reopened_storage_has_what_was_committed(self) -> None:
        storage = self.open_storage(TABLES)
        _commit(storage, Write("first", b"a", b"1"), Write("second", b"b", b"2"))
        last = storage.commit([Write("first", b"a", b"3"), Write("second", b"b", None)])
        storage.close()
        assert last.result(_TIMEOUT_S) is None  # close finishes what was given before
        reopened = self.reopen_storage(TABLES)
        if reopened is None:
            return
        assert reopened.scan("first") == [(b"a", b"3")]
        assert reopened.scan("second") == []
        reopened.close()


def _commit(storage: Storage, *batch: Write) -> None:
    storage.commit(batch).result(_TIMEOUT_S)
