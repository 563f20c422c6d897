"""The threads that move objects between the arena and the disk, so that the loop need not wait.

Before it: the table's effects say what to write, read and delete. After it: the outcomes go back to
the server's loop. One thread writes and deletes, in order; another reads, so that a get does not
wait for a long write.

Bytes go through a buffer of a few megabytes by ``pread`` and ``pwrite`` on the arena's descriptor:
they are in the processor's cache when they are checksummed, and a page that is missing, for
whatever reason, is an error rather than SIGBUS.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from skate_object_store.constants import SPILL_CHUNK_BYTES, SPILL_CLOSE_S
from skate_object_store.machine.records import (
    Place,
    ReadBack,
    SpillFailure,
    SpillItem,
    WriteBatch,
)
from skate_object_store.service.spill_backends import SpillBackend

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch; objects without a place were not written."""

    number: int
    file_key: str = ""
    places: dict[int, Place] = field(default_factory=dict)  # by serial
    failure: SpillFailure | None = None
    room_bytes: int | None = None
    """What the disk had left, beyond what was written; None: not known."""


@dataclass(frozen=True, slots=True)
class ReadEnded:
    """What became of a restore. ``cause`` None: the object is whole in its range."""

    serial: int
    cause: str | None = None
    is_lost: bool = False
    """Reading it again would be no use."""


class _StoppedError(Exception):
    """The server closes while a batch is being written or read."""


class _DamagedError(Exception):
    """What was read is not what had been written."""


class Spiller:
    """Starts its threads with their first job; outcomes are handed over on them."""

    def __init__(
        self,
        backend: SpillBackend,
        arena_fd: int,
        on_written: Callable[[Written], None],
        on_read: Callable[[ReadEnded], None],
    ) -> None:
        self._backend = backend
        self._arena_fd = os.dup(arena_fd)  # Its own, for a thread that outlives the server.
        self._on_written = on_written
        self._on_read = on_read
        self._is_stopping = False
        self._writer = _Worker("skate-store-spill")
        self._reader = _Worker("skate-store-restore")

    def write(self, batch: WriteBatch) -> None:
        """Queue a batch. Only the server's loop calls this and the next two."""
        self._writer.submit(lambda: self._on_written(self._do_write(batch)))

    def read(self, wanted: ReadBack) -> None:
        """Queue a restore."""
        self._reader.submit(lambda: self._on_read(self._do_read(wanted)))

    def delete(self, file_key: str) -> None:
        """Queue the removal of a file."""
        self._writer.submit(lambda: self._do_delete(file_key))

    def close(self) -> None:
        """Stop after the chunks under way, and remove everything from the disk.

        A disk that hangs for ``SPILL_CLOSE_S`` is left alone, with what is on it.
        """
        self._is_stopping = True
        deadline_s = time.monotonic() + SPILL_CLOSE_S
        has_ended = [worker.close(deadline_s) for worker in (self._writer, self._reader)]
        if not all(has_ended):
            logger.error("event=store_spill_hangs seconds=%g", SPILL_CLOSE_S)
            return
        os.close(self._arena_fd)
        try:
            self._backend.close()
        except Exception:  # Boundary: a foreign back end; the server closes all the same.
            logger.exception("event=store_spill_close_failed")

    # On the threads.

    def _do_write(self, batch: WriteBatch) -> Written:
        places: dict[int, Place] = {}
        failure: SpillFailure | None = None
        file_key = ""
        room_bytes: int | None = None
        try:
            room_bytes = self._backend.room_bytes()
            fitting = _fitting(batch.items, room_bytes)
            if len(fitting) < len(batch.items):
                failure = SpillFailure("the disk is as full as it may be", is_disk_full=True)
            while fitting and not places:
                try:
                    file_key = self._backend.write(
                        sum(item.size_bytes for item in fitting), self._chunks(fitting, places)
                    )
                except OSError as error:
                    # Less may fit, by a quota or because others fill the disk too.
                    places.clear()
                    if error.errno not in _FULL or len(fitting) == 1:
                        raise
                    failure = SpillFailure(str(error), is_disk_full=True)
                    fitting = fitting[: len(fitting) // 2]
        except _StoppedError:
            return Written(batch.number, failure=SpillFailure("the store closes", False))
        except Exception as error:  # noqa: BLE001  Boundary: a foreign back end may raise anything.
            is_full = isinstance(error, OSError) and error.errno in _FULL
            failure = SpillFailure(f"{type(error).__name__}: {error}", is_full)
            places.clear()
        if failure is not None:
            logger.warning(
                "event=store_spill_failed written=%d of=%d cause=%s",
                len(places),
                len(batch.items),
                failure.cause,
            )
        found = {serial: replace(place, file_key=file_key) for serial, place in places.items()}
        if room_bytes is not None:
            room_bytes -= sum(place.size_bytes for place in found.values())
        return Written(batch.number, file_key, found, failure, room_bytes)

    def _chunks(self, items: Sequence[SpillItem], places: dict[int, Place]) -> Iterator[memoryview]:
        """The objects' bytes one after the other; notes where each will be found."""
        buffer = memoryview(bytearray(SPILL_CHUNK_BYTES))
        start = 0
        written: dict[int, Place] = {}
        for item in items:
            checksum = 0
            done = 0
            while done < item.size_bytes:
                if self._is_stopping:
                    raise _StoppedError
                want = buffer[: min(SPILL_CHUNK_BYTES, item.size_bytes - done)]
                count = os.preadv(self._arena_fd, [want], item.offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the arena ends before the object")
                checksum = zlib.crc32(want[:count], checksum)
                yield want[:count]
                done += count
            written[item.serial] = Place("", start, item.size_bytes, checksum)
            start += item.size_bytes
        places.update(written)

    def _do_read(self, wanted: ReadBack) -> ReadEnded:
        try:
            self._copy_back(wanted)
        except (_DamagedError, FileNotFoundError) as error:
            return ReadEnded(wanted.serial, f"{error}", is_lost=True)
        except _StoppedError:
            return ReadEnded(wanted.serial, "the store closes")
        except Exception as error:  # noqa: BLE001  Boundary: a foreign back end may raise anything.
            logger.warning("event=store_restore_failed cause=%s", error)
            return ReadEnded(wanted.serial, f"{type(error).__name__}: {error}")
        return ReadEnded(wanted.serial)

    def _copy_back(self, wanted: ReadBack) -> None:
        place = wanted.place
        done = 0
        checksum = 0
        if place.size_bytes:
            for chunk in self._backend.read(place.file_key, place.position, place.size_bytes):
                if self._is_stopping:
                    raise _StoppedError
                if done + len(chunk) > place.size_bytes:
                    raise _DamagedError("the back end gave more bytes than were asked for")
                checksum = zlib.crc32(chunk, checksum)
                written = 0
                while written < len(chunk):
                    at = wanted.offset + done + written
                    written += os.pwrite(self._arena_fd, chunk[written:], at)
                done += len(chunk)
        if done != place.size_bytes:
            raise _DamagedError(f"{done} of its {place.size_bytes} bytes are there")
        if checksum != place.checksum:
            raise _DamagedError("its checksum is not that of what was written")

    def _do_delete(self, file_key: str) -> None:
        try:
            self._backend.delete(file_key)
        except Exception as error:  # noqa: BLE001  Boundary: a foreign back end may raise anything.
            # The file stays until the store closes, which costs room and nothing else.
            logger.warning("event=store_spill_delete_failed file=%s error=%s", file_key, error)


class _Worker:
    """A thread that does its jobs in order, from the first on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self, deadline_s: float) -> bool:
        """Wait for the job under way; False if it did not end in time."""
        self._jobs.put(None)
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # It holds what it was about.


def _fitting(items: Sequence[SpillItem], room_bytes: int | None) -> list[SpillItem]:
    """The items, in order, that have room together; a large one does not keep small ones out."""
    if room_bytes is None:
        return list(items)
    chosen: list[SpillItem] = []
    for item in items:
        if item.size_bytes <= room_bytes:
            chosen.append(item)
            room_bytes -= item.size_bytes
    return chosen
