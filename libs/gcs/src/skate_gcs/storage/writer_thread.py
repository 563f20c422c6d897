"""What back ends that outlive their process share: one thread that does all of a storage's work.

While one transaction is under way, the batches that arrive wait and share the next one (group
commit). After a failure that leaves it unknown what is stored, nothing is acknowledged any more.
A back end says how to open, write, read, undo and close, and which of its errors mean what.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Final, Generic, TypeVar

from skate_gcs.errors import (
    StorageClosedError,
    StorageError,
    StorageFailedError,
    StorageFullError,
)
from skate_gcs.storage.interface import StorageStatistics, Write

_log = logging.getLogger(__name__)

BATCHES_PER_COMMIT_MAX: Final = 256
"""More would make the first of them wait for the writes of the last."""
QUEUE_MAX: Final = 4_096
"""Batches that wait; a caller that exceeds it blocks, which the one runner of a GCS never does."""

_TABLE_NAME: Final = re.compile(r"[a-z][a-z_]{0,40}")

Rows = list[tuple[bytes, bytes]]
Batch = tuple[Sequence[Write], "Future[None]"]
_Scan = tuple[str, "Future[Rows]"]
C = TypeVar("C")  # a back end's connection


class WriterThread(ABC, Generic[C]):
    """A storage whose work is done by a thread of its own, in the order in which it was asked."""

    idle_s: float | None = None
    """How long the thread may wait for work before it calls :meth:`_idle`; None: for ever."""

    def __init__(self, where: str, tables: Iterable[str]) -> None:
        """Open it. ``where`` is named in errors.

        Raises:
            StorageError: it can not be opened.
        """
        self._where = where
        self._tables = tuple(tables)
        for name in self._tables:
            if not _TABLE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} can not be a table's name.")
        self._queue: queue.Queue[Batch | _Scan | None] = queue.Queue(QUEUE_MAX)
        self._lock = threading.Lock()
        self._is_closed = False
        self._failure: StorageFailedError | None = None
        self._counts = {"batches": 0, "commits": 0, "rows": 0, "bytes": 0, "failures": 0}
        self.failed: Future[str] = Future()
        """See :class:`Storage`."""
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(opened,), name="skate-gcs-storage", daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except BaseException:
            self._thread.join()
            raise

    def commit(self, batch: Sequence[Write]) -> Future[None]:
        """See :class:`Storage`."""
        for write in batch:
            self._check_table(write.table)
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a batch can not be taken back
        with self._lock:
            if self._is_closed:
                done.set_exception(StorageClosedError(self._where, "it is closed."))
            else:
                self._queue.put((batch, done))
        return done

    def scan(self, table: str) -> Rows:
        """See :class:`Storage`."""
        self._check_table(table)
        rows: Future[Rows] = Future()
        rows.set_running_or_notify_cancel()
        with self._lock:
            if self._is_closed:
                raise StorageClosedError(self._where, "it is closed.")
            self._queue.put((table, rows))
        return rows.result()

    def problem(self) -> str:
        """See :class:`Storage`. None that heals by itself, unless the back end says otherwise."""
        return ""

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

    def _check_table(self, table: str) -> None:
        if table not in self._tables:
            raise ValueError(f"There is no table {table!r}.")

    # ---- what a back end does, in the thread ----

    @abstractmethod
    def _open(self) -> C:
        """Connect, and check that what is there can be used."""

    @abstractmethod
    def _write(self, connection: C, batches: list[Batch]) -> None:
        """Store all batches in one transaction; durable when this returns."""

    @abstractmethod
    def _read(self, connection: C, table: str) -> Rows:
        """All rows, by key."""

    @abstractmethod
    def _close(self, connection: C) -> None:
        """Let go of it."""

    @abstractmethod
    def _typed(self, error: Exception) -> StorageError:
        """What an error means; ``StorageFullError``: nothing is stored and later batches may be."""

    def _roll_back(self, connection: C) -> None:
        """Undo what a failed :meth:`_write` began."""

    def _idle(self, connection: C) -> None:
        """Nothing was asked for ``idle_s`` seconds."""

    # ---- the thread ----

    def _run(self, opened: Future[None]) -> None:
        try:
            connection = self._open()
        except StorageError as error:
            opened.set_exception(error)
            return
        except Exception as error:  # noqa: BLE001  the thread's boundary: somebody waits
            opened.set_exception(self._typed(error))
            return
        opened.set_result(None)
        try:
            while self._serve(connection):
                pass
        finally:
            self._close(connection)

    def _serve(self, connection: C) -> bool:
        """Do the next piece of work: a scan, or all batches that wait. False: the end."""
        try:
            work: Batch | _Scan | None = self._queue.get(timeout=self.idle_s)
        except queue.Empty:
            self._be_idle(connection)
            return True
        batches: list[Batch] = []
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

    def _be_idle(self, connection: C) -> None:
        if self._failure is not None:
            return
        try:
            self._idle(connection)
        except Exception as error:  # noqa: BLE001  the thread's boundary
            failure = self._typed(error)
            if not isinstance(failure, StorageFullError):  # that one heals
                self._fail(failure)

    def _commit(self, connection: C, batches: list[Batch]) -> None:
        failure: StorageError | None = self._failure
        if failure is None:
            try:
                self._write(connection, batches)
            except Exception as error:  # noqa: BLE001  the thread's boundary: somebody waits
                failure = self._typed(error)
                _log.error("commit failed", extra={"where": self._where, "problem": str(error)})
                if not isinstance(failure, StorageFullError):
                    failure = self._fail(failure)
                self._roll_back(connection)
        if failure is not None:
            self._counts["failures"] += len(batches)
        for _, done in batches:
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

    def _scan(self, connection: C, table: str, done: Future[Rows]) -> None:
        try:
            if self._failure is not None:
                raise self._failure
            rows = self._read(connection, table)
        except StorageError as error:
            done.set_exception(error)
        except Exception as error:  # noqa: BLE001  as above
            done.set_exception(self._typed(error))
        else:
            done.set_result(rows)

    def _fail(self, why: StorageError) -> StorageFailedError:
        """Nothing is acknowledged from here on."""
        failure = (
            why
            if isinstance(why, StorageFailedError)
            else StorageFailedError(self._where, why.problem)
        )
        self._failure = failure
        if not self.failed.done():
            self.failed.set_result(str(failure))
        return failure

    def _count(self, batches: Sequence[Batch]) -> None:
        """Count a transaction that was committed."""
        self._counts["commits"] += 1
        self._counts["batches"] += len(batches)
        for batch, _ in batches:
            self._counts["rows"] += len(batch)
            self._counts["bytes"] += sum(
                len(write.key) + len(write.value or b"") for write in batch
            )
