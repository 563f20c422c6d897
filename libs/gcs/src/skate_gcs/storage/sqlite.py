"""The default back end: one SQLite file, written by one thread, several batches per transaction.

Durability is SQLite's: the write-ahead log is synced at each commit (``synchronous=FULL``), a torn
or unsynced tail of it is discarded by its checksums, and so a crash leaves a prefix of the commits
that has everything acknowledged. On top of that each row has a checksum of its own, because the
main file's pages have none; a row that fails it is named and never used.

A bit that flips in the middle of the log makes SQLite take everything after it for the torn tail,
and drop commits that were acknowledged. So the commits are counted in the database, and beside it,
in ``<path>-acknowledged``, once they are acknowledged: a database that counts less than was
acknowledged has lost something, and is refused. The second count is not synced; a power cut may
leave an older one, which proves less but nothing wrong.

After an I/O error nothing is acknowledged any more: a failed fsync may have dropped the very pages
that a second one would report as safe.

The file is locked exclusively for as long as it is open.

Source: RELIABILITY I17, I18, I19; USERS P37.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
import zlib
from collections.abc import Iterable
from typing import Final

from skate_gcs.errors import (
    StorageBusyError,
    StorageCorruptError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.storage.writer_thread import Batch, Rows, WriterThread

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
FILE_MODE: Final = 0o600
ACKNOWLEDGED_SUFFIX: Final = "-acknowledged"
_COUNT: Final = struct.Struct(">QI")  # commits, checksum

_RETRYABLE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class SqliteStorage(WriterThread[sqlite3.Connection]):
    """Tables in one SQLite file."""

    def __init__(self, path: str, tables: Iterable[str]) -> None:
        """Open or create the file, with mode 0600.

        Raises:
            StorageBusyError: another process has it open.
            StorageVersionError: it has another schema.
            StorageCorruptError: it is damaged, or no database.
            StorageFailedError: it can not be opened.
        """
        self._path = path
        self._commits = 0
        self._acknowledged_fd = -1
        super().__init__(path, tables)

    def _open(self) -> sqlite3.Connection:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(self._path, flags, FILE_MODE))
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.0)
        try:
            # Exclusive: no second writer, and no shared-memory file beside the log.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._check(connection)
            connection.execute("BEGIN IMMEDIATE")
            for name in self._tables:
                connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {name}"
                    " (key BLOB PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL)"
                )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS commit_count"
                " (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL)"
            )
            connection.execute("INSERT OR IGNORE INTO commit_count VALUES (1, 0)")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute("COMMIT")
            self._check_commits(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in {0, SCHEMA_VERSION}:
            raise StorageVersionError(
                self._path,
                f"it has schema {version}, this release reads {SCHEMA_VERSION};"
                " start the release that wrote it, or give another path.",
            )
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StorageCorruptError(self._path, f"the file is damaged ({verdict}).")

    def _check_commits(self, connection: sqlite3.Connection) -> None:
        (self._commits,) = connection.execute("SELECT value FROM commit_count").fetchone()
        path = self._path + ACKNOWLEDGED_SUFFIX
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._acknowledged_fd = os.open(path, flags, FILE_MODE)
        stored = os.pread(self._acknowledged_fd, _COUNT.size, 0)
        if len(stored) == _COUNT.size:
            acknowledged, checksum = _COUNT.unpack(stored)
            is_intact = checksum == zlib.crc32(stored[:8])
            if is_intact and acknowledged > self._commits:
                os.close(self._acknowledged_fd)
                raise StorageCorruptError(
                    self._path,
                    f"the last {acknowledged - self._commits} of {acknowledged} acknowledged"
                    " commits are missing: its log is damaged. Restore the file and its -wal file"
                    f" from a copy, or delete {path} to go on with what is left.",
                )

    def _write(self, connection: sqlite3.Connection, batches: list[Batch]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for batch, _ in batches:
            for table, key, value in batch:
                if value is None:
                    connection.execute(f"DELETE FROM {table} WHERE key=?", (key,))
                else:
                    connection.execute(
                        f"INSERT INTO {table} (key, value, checksum) VALUES (?, ?, ?)"
                        " ON CONFLICT (key) DO UPDATE"
                        " SET value=excluded.value, checksum=excluded.checksum",
                        (key, value, _checksum(key, value)),
                    )
        connection.execute("UPDATE commit_count SET value=?", (self._commits + 1,))
        connection.execute("COMMIT")
        self._commits += 1
        stored = self._commits.to_bytes(8, "big")
        try:
            os.pwrite(self._acknowledged_fd, _COUNT.pack(self._commits, zlib.crc32(stored)), 0)
        except OSError as error:  # the commit is durable; an older count proves less, no wrong
            _log.warning("a commit was not counted", extra={"where": self._path, "why": error})
        self._count(batches)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._fail(StorageFailedError(self._path, f"a rollback failed ({error})."))

    def _read(self, connection: sqlite3.Connection, table: str) -> Rows:
        rows: Rows = []
        for key, value, checksum in connection.execute(
            f"SELECT key, value, checksum FROM {table} ORDER BY key"
        ):
            if _checksum(key, value) != checksum:
                problem = f"the row {key.hex()} of table {table} is damaged."
                raise StorageCorruptError(self._path, problem)
            rows.append((key, value))
        return rows

    def _close(self, connection: sqlite3.Connection) -> None:
        connection.close()
        os.close(self._acknowledged_fd)

    def _typed(self, error: Exception) -> StorageError:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if code is not None else None
        if primary in _RETRYABLE:
            return StorageFullError(self._path, f"there is no room ({error}).")
        if primary in _DAMAGED:
            return StorageCorruptError(self._path, f"the file is damaged ({error}).")
        if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            return StorageBusyError(self._path, "another process has it open.")
        return StorageFailedError(self._path, f"the device failed ({error}).")


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))
