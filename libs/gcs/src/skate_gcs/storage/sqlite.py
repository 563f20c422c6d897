"""The default back end: one SQLite file, written by one thread, several batches per transaction.

Durability is SQLite's: the write-ahead log is synced at each commit (``synchronous=FULL``), a torn
or unsynced tail of it is discarded by its checksums, and so a crash leaves a prefix of the commits
that has everything acknowledged. On top of that each row has a checksum of its own, because the
main file's pages have none; a row that fails it is named and never used.

While one transaction is being synced, the batches that arrive wait and share the next one (group
commit). After an I/O error nothing is acknowledged any more: a failed fsync may have dropped the
very pages that a second one would report as safe.

The file is locked exclusively for as long as it is open.

Source: RELIABILITY I17, I18, I19; USERS P37.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Final

from skate_gcs.errors import (
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFailedError,
    StorageFullError,
    StorageVersionError,
)
from skate_gcs.storage.interface import StorageStatistics, Write

_log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
BATCHES_PER_COMMIT_MAX: Final = 256
"""More would make the first of them wait for the writes of the last."""
QUEUE_MAX: Final = 4_096
"""Batches that wait; a caller that exceeds it blocks, which the one runner of a GCS never does."""
FILE_MODE: Final = 0o600

_TABLE_NAME: Final = re.compile(r"[a-z][a-z_]{0,40}")
_RETRYABLE: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_TOOBIG})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

_Batch = tuple[Sequence[Write], "Future[None]"]
_Scan = tuple[str, "Future[list[tuple[bytes, bytes]]]"]


class SqliteStorage:
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
        self._tables = tuple(tables)
        for name in self._tables:
            if not _TABLE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} can not be a table's name.")
        self._queue: queue.Queue[_Batch | _Scan | None] = queue.Queue(QUEUE_MAX)
        self._lock = threading.Lock()
        self._is_closed = False
        self._failure: StorageFailedError | None = None
        self._counts = {"batches": 0, "commits": 0, "rows": 0, "bytes": 0, "failures": 0}
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name="skate-gcs-storage", daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except StorageError:
            self._thread.join()
            raise

    def commit(self, batch: Sequence[Write]) -> Future[None]:
        """See :class:`Storage`."""
        for write in batch:
            if write.table not in self._tables:
                raise ValueError(f"There is no table {write.table!r}.")
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a batch can not be taken back
        with self._lock:
            if self._is_closed:
                done.set_exception(StorageClosedError(self._path, "it is closed."))
            else:
                self._queue.put((batch, done))
        return done

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """See :class:`Storage`."""
        if table not in self._tables:
            raise ValueError(f"There is no table {table!r}.")
        rows: Future[list[tuple[bytes, bytes]]] = Future()
        rows.set_running_or_notify_cancel()
        with self._lock:
            if self._is_closed:
                raise StorageClosedError(self._path, "it is closed.")
            self._queue.put((table, rows))
        return rows.result()

    def statistics(self) -> StorageStatistics:
        """See :class:`Storage`."""
        counts = dict(self._counts)
        return StorageStatistics(
            batches=counts["batches"],
            commits=counts["commits"],
            rows_written=counts["rows"],
            bytes_written=counts["bytes"],
            failures=counts["failures"],
        )

    def close(self) -> None:
        """See :class:`Storage`."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._queue.put(None)
        self._thread.join()

    # ---- everything below runs in the writer thread ----

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = self._open()
        except (sqlite3.Error, OSError) as error:
            opened.set_exception(self._typed(error))
            return
        except StorageError as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        try:
            while self._serve(connection):
                pass
        finally:
            connection.close()

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
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.execute("COMMIT")
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

    def _serve(self, connection: sqlite3.Connection) -> bool:
        """Do the next piece of work: a scan, or all batches that wait. False: the end."""
        work: _Batch | _Scan | None = self._queue.get()
        batches: list[_Batch] = []
        while work is not None and not isinstance(work[0], str):
            batches.append((work[0], work[1]))
            if len(batches) == BATCHES_PER_COMMIT_MAX:
                break
            try:
                work = self._queue.get_nowait()
            except queue.Empty:
                break
        if batches:
            self._commit(connection, batches)
        if work is None:
            return False
        if isinstance(work[0], str):
            self._scan(connection, work[0], work[1])
        return True

    def _commit(self, connection: sqlite3.Connection, batches: list[_Batch]) -> None:
        failure: StorageError | None = self._failure
        if failure is None:
            try:
                self._write(connection, batches)
            except Exception as error:  # noqa: BLE001  the thread's boundary: somebody waits
                failure = self._typed(error)
                if not isinstance(failure, StorageFullError):
                    failure = self._failure = StorageFailedError(self._path, failure.problem)
                _log.error("commit failed", extra={"path": self._path, "problem": str(error)})
                self._roll_back(connection)
        if failure is not None:
            self._counts["failures"] += len(batches)
        for _, done in batches:
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    def _write(self, connection: sqlite3.Connection, batches: list[_Batch]) -> None:
        rows = size = 0
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
                    size += len(value)
                size += len(key)
                rows += 1
        connection.execute("COMMIT")
        self._counts["commits"] += 1
        self._counts["batches"] += len(batches)
        self._counts["rows"] += rows
        self._counts["bytes"] += size

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._failure = StorageFailedError(self._path, f"a rollback failed ({error}).")

    def _scan(
        self,
        connection: sqlite3.Connection,
        table: str,
        done: Future[list[tuple[bytes, bytes]]],
    ) -> None:
        rows: list[tuple[bytes, bytes]] = []
        try:
            if self._failure is not None:
                raise self._failure
            for key, value, checksum in connection.execute(
                f"SELECT key, value, checksum FROM {table} ORDER BY key"
            ):
                if _checksum(key, value) != checksum:
                    problem = f"the row {key.hex()} of table {table} is damaged."
                    raise StorageCorruptError(self._path, problem)
                rows.append((key, value))
        except StorageError as error:
            done.set_exception(error)
        except Exception as error:  # noqa: BLE001  as above
            done.set_exception(self._typed(error))
        else:
            done.set_result(rows)

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
