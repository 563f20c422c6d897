"""What the SQLite back end promises beyond the conformance suite."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from skate_gcs.errors import (
    GcsConfigError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.storage import SqliteStorage, Write, open_storage

TABLES = ("rows",)
TIMEOUT_S = 10.0


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "gcs.sqlite")


def put(storage, key, value):
    storage.commit([Write("rows", key, value)]).result(TIMEOUT_S)


def test_file_is_private(path):
    SqliteStorage(path, TABLES).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_second_opener_is_refused(path):
    storage = SqliteStorage(path, TABLES)
    put(storage, b"k", b"v")
    with pytest.raises(StorageBusyError):
        SqliteStorage(path, TABLES)
    storage.close()
    SqliteStorage(path, TABLES).close()


def test_file_of_another_schema_is_refused(path):
    SqliteStorage(path, TABLES).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StorageVersionError, match="99"):
        SqliteStorage(path, TABLES)


def test_file_that_is_no_database_is_named(path):
    Path(path).write_bytes(b"something else entirely" * 100)
    with pytest.raises(StorageCorruptError, match=r"gcs\.sqlite"):
        SqliteStorage(path, TABLES)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(StorageFailedError):
        SqliteStorage(str(tmp_path / "absent" / "gcs.sqlite"), TABLES)


def test_link_is_not_followed(tmp_path, path):
    (tmp_path / "elsewhere").touch()
    os.symlink(tmp_path / "elsewhere", path)
    with pytest.raises(StorageFailedError):
        SqliteStorage(path, TABLES)


def test_damaged_row_is_named_and_not_used(path):
    storage = SqliteStorage(path, TABLES)
    put(storage, b"key", b"the value")
    storage.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE rows SET value=?", (b"thE value",))
    connection.commit()
    connection.close()
    storage = SqliteStorage(path, TABLES)
    with pytest.raises(StorageCorruptError, match=b"key".hex()):
        storage.scan("rows")
    storage.close()


@pytest.mark.invariant("I18")
def test_flipped_bits_in_the_file_are_never_returned_as_data(path, tmp_path):
    rows = [(b"%04d" % number, os.urandom(300)) for number in range(200)]
    storage = SqliteStorage(path, TABLES)
    storage.commit([Write("rows", *row) for row in rows]).result(TIMEOUT_S)
    storage.close()
    clean = Path(path).read_bytes()
    source = random.Random(1)
    detected = 0
    for number in range(40):
        damaged = bytearray(clean)
        damaged[source.randrange(100, len(damaged))] ^= 1 << source.randrange(8)
        copy = str(tmp_path / f"copy{number}")
        Path(copy).write_bytes(damaged)
        try:
            storage = SqliteStorage(copy, TABLES)
        except (StorageCorruptError, StorageFailedError):
            detected += 1
            continue
        try:
            # Free space on a page holds nothing: a flip there must not change what is read.
            assert storage.scan("rows") == rows
        except StorageCorruptError:
            detected += 1
        finally:
            storage.close()
    assert detected > 20


@pytest.mark.invariant("I18")
def test_log_cut_anywhere_gives_a_prefix_with_all_that_was_acknowledged(path, tmp_path):
    storage = SqliteStorage(path, TABLES)
    source = random.Random(2)
    states: list[dict[bytes, bytes]] = [{}]
    ends: list[int] = [_log_size(path)]  # length of the log when each state was acknowledged
    for _ in range(60):
        batch = [
            Write(
                "rows",
                b"%d" % source.randrange(20),
                None if source.random() < 0.3 else os.urandom(source.randrange(200)),
            )
            for _ in range(source.randrange(1, 5))
        ]
        storage.commit(batch).result(TIMEOUT_S)
        state = dict(states[-1])
        for _, key, value in batch:
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
        states.append(state)
        ends.append(_log_size(path))
    main, log = Path(path).read_bytes(), Path(path + "-wal").read_bytes()
    storage.close()
    cuts = {source.randrange(ends[0], len(log)) for _ in range(60)} | set(ends)
    for cut in sorted(cuts):
        copy = tmp_path / "cut"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "db").write_bytes(main)
        torn = bytearray(log[:cut])
        if torn and cut not in ends:
            torn[-1] ^= 0xFF  # the last sector was half written
        (copy / "db-wal").write_bytes(torn)
        reopened = SqliteStorage(str(copy / "db"), TABLES)
        found = dict(reopened.scan("rows"))
        reopened.close()
        acknowledged = max(index for index, end in enumerate(ends) if end <= cut)
        assert found in states[acknowledged : acknowledged + 2]
        if cut in ends:
            assert found == states[acknowledged]


@pytest.mark.invariant("I18")
def test_flipped_bit_in_the_log_never_drops_acknowledged_commits_silently(path, tmp_path):
    storage = SqliteStorage(path, TABLES)
    for number in range(30):
        put(storage, b"%d" % (number % 7), b"%d" % number)
    rows = storage.scan("rows")
    for suffix in ("", "-wal", "-acknowledged"):
        shutil.copy(path + suffix, tmp_path / f"whole{suffix}")
    storage.close()
    clean = (tmp_path / "whole-wal").read_bytes()
    source = random.Random(3)
    refused = 0
    for number in range(120):
        damaged = bytearray(clean)
        damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
        copy = tmp_path / f"copy{number}"
        copy.mkdir()
        shutil.copy(tmp_path / "whole", copy / "db")
        shutil.copy(tmp_path / "whole-acknowledged", copy / "db-acknowledged")
        (copy / "db-wal").write_bytes(damaged)
        try:
            storage = SqliteStorage(str(copy / "db"), TABLES)
        except StorageCorruptError:
            refused += 1
            continue
        assert storage.scan("rows") == rows  # the flip hit what SQLite does not need
        storage.close()
    assert refused > 100


def test_count_that_a_power_cut_left_behind_or_damaged_is_no_reason_to_refuse(path):
    storage = SqliteStorage(path, TABLES)
    put(storage, b"k", b"1")
    old = Path(path + "-acknowledged").read_bytes()
    put(storage, b"k", b"2")
    storage.close()
    for count in (old, b"", b"\xff" * 12, old[:5]):
        Path(path + "-acknowledged").write_bytes(count)
        storage = SqliteStorage(path, TABLES)
        assert storage.scan("rows") == [(b"k", b"2")]
        storage.close()


def _log_size(path):
    return os.path.getsize(path + "-wal")


class CrampedStorage(SqliteStorage):
    """A storage whose file may only grow to so many pages."""

    pages_max = 2**30

    def _write(self, connection, batches):
        connection.execute(f"PRAGMA max_page_count={self.pages_max}")
        super()._write(connection, batches)


@pytest.mark.invariant("I19")
def test_full_disk_refuses_the_batch_whole_and_recovers(path):
    storage = CrampedStorage(path, TABLES)
    put(storage, b"a", b"1")
    storage.pages_max = 8
    refusal = storage.commit(
        [Write("rows", b"a", b"2"), Write("rows", b"b", b"x" * 1_000_000)]
    ).exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFullError)
    assert storage.scan("rows") == [(b"a", b"1")]
    storage.pages_max = 2**30
    put(storage, b"b", b"x" * 1_000_000)
    assert [key for key, _ in storage.scan("rows")] == [b"a", b"b"]
    assert storage.statistics().failures == 1
    storage.close()


class BrokenStorage(SqliteStorage):
    """A storage whose device fails when told."""

    is_broken = False

    def _write(self, connection, batches):
        if self.is_broken:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        super()._write(connection, batches)


@pytest.mark.invariant("I18")
def test_failed_device_acknowledges_nothing_any_more(path):
    storage = BrokenStorage(path, TABLES)
    put(storage, b"a", b"1")
    storage.is_broken = True
    refusal = storage.commit([Write("rows", b"a", b"2")]).exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFailedError)
    storage.is_broken = False  # a second fsync may report what the first one dropped as safe
    refusal = storage.commit([Write("rows", b"a", b"3")]).exception(TIMEOUT_S)
    assert isinstance(refusal, StorageFailedError)
    with pytest.raises(StorageFailedError):
        storage.scan("rows")
    storage.close()
    reopened = SqliteStorage(path, TABLES)
    assert reopened.scan("rows") == [(b"a", b"1")]
    reopened.close()


def test_batches_that_wait_share_a_commit(path):
    storage = SqliteStorage(path, TABLES)
    pending = [storage.commit([Write("rows", b"%d" % number, b"")]) for number in range(300)]
    for done in pending:
        done.result(TIMEOUT_S)
    statistics = storage.statistics()
    storage.close()
    assert statistics.batches == 300
    assert statistics.commits < 300


def test_unknown_table_is_a_mistake(path):
    storage = SqliteStorage(path, TABLES)
    with pytest.raises(ValueError, match="absent"):
        storage.commit([Write("absent", b"", b"")])
    with pytest.raises(ValueError, match="absent"):
        storage.scan("absent")
    storage.close()
    with pytest.raises(ValueError, match="drop"):
        SqliteStorage(path, ["x; drop table y"])


@pytest.mark.parametrize("setting", ["", "etcd://x", "sqlite:", "sqlite:relative", "sqlite"])
def test_setting_that_names_no_back_end_is_refused(setting):
    with pytest.raises(GcsConfigError, match="storage"):
        open_storage(setting, TABLES, "me")


@pytest.mark.parametrize(
    "kind",
    [StorageBusyError, StorageClosedError, StorageFullError, StorageCorruptError],
    ids=lambda kind: kind.__name__,
)
def test_storage_errors_keep_their_fields_when_pickled(kind):
    error = pickle.loads(pickle.dumps(kind("/path", "problem")))
    assert (type(error), error.where, error.problem) == (kind, "/path", "problem")
    assert "/path" in str(error)
