"""The back end that forgets: for tests and for clusters that may die with their head."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from skate_gcs.errors import StorageClosedError
from skate_gcs.storage.interface import StorageStatistics, Write

_WHERE = "memory"


class MemoryStorage:
    """Tables in dicts. Nothing survives the process."""

    def __init__(self, tables: Iterable[str]) -> None:
        self._tables: dict[str, dict[bytes, bytes]] = {name: {} for name in tables}
        self._lock = threading.Lock()
        self._is_closed = False
        self._batches = 0
        self._rows = 0
        self._bytes = 0
        self.failed: Future[str] = Future()
        """See :class:`Storage`. It never does."""

    def problem(self) -> str:
        """See :class:`Storage`. There is none."""
        return ""

    def commit(self, batch: Sequence[Write]) -> Future[None]:
        """See :class:`Storage`. The future is complete at once."""
        done: Future[None] = Future()
        with self._lock:
            if self._is_closed:
                done.set_exception(StorageClosedError(_WHERE, "it is closed."))
                return done
            tables = [self._tables[write.table] for write in batch]
            for rows, write in zip(tables, batch, strict=True):
                if write.value is None:
                    rows.pop(write.key, None)
                else:
                    rows[write.key] = bytes(write.value)
                self._rows += 1
                self._bytes += len(write.key) + len(write.value or b"")
            self._batches += 1
        done.set_result(None)
        return done

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """See :class:`Storage`."""
        with self._lock:
            if self._is_closed:
                raise StorageClosedError(_WHERE, "it is closed.")
            return sorted(self._tables[table].items())

    def statistics(self) -> StorageStatistics:
        """See :class:`Storage`."""
        with self._lock:
            return StorageStatistics(self._batches, self._batches, self._rows, self._bytes, 0)

    def close(self) -> None:
        """See :class:`Storage`."""
        with self._lock:
            self._is_closed = True
