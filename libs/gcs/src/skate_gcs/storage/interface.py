"""The storage interface: tables of bytes, written in batches that are durable or did not happen.

Every back end passes ``skate_gcs.storage_conformance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import msgspec


class Write(NamedTuple):
    """One row's new value; ``value`` None deletes it."""

    table: str
    key: bytes
    value: bytes | None


class StorageStatistics(msgspec.Struct, frozen=True):
    """What a back end has done since it was opened."""

    batches: int  # committed
    commits: int  # transactions; several batches may share one
    rows_written: int
    bytes_written: int  # keys and values
    failures: int  # batches that were refused


class Storage(Protocol):
    """Durable tables. Thread-safe; batches take effect in the order of :meth:`commit`."""

    @property
    def failed(self) -> Future[str]:
        """Completes with the reason when nothing will be acknowledged any more, asked or not."""
        ...

    def problem(self) -> str:
        """Why nothing is stored at this moment, although it may heal by itself; empty: nothing."""
        ...

    def commit(self, batch: Sequence[Write]) -> Future[None]:
        """Store all of the batch or nothing. Later writes of a key override earlier ones.

        The future completes once the batch would survive a power cut (of back ends that outlive
        their process at all), or with:

        - ``StorageFullError``: nothing of it is stored, later batches may be;
        - ``StorageFailedError``: the device failed, and every later batch fails alike;
        - ``StorageClosedError``: the storage is closed.
        """
        ...

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """All rows of a table, by key, as of all batches committed before. Blocks.

        Raises:
            StorageCorruptError: a row is not what was written.
            StorageFailedError: the device failed.
            StorageClosedError: the storage is closed.
        """
        ...

    def statistics(self) -> StorageStatistics:
        """Counts since the storage was opened."""
        ...

    def close(self) -> None:
        """Finish what was committed and release everything. May be repeated."""
        ...
