"""Reads what this node's workers print, and hands it to whoever wants their job's output.

What comes before: workers, which write to files of their own (SURFACE W1). What comes after: a
:class:`LogSink` for each job: its driver, or the line to the driver's node. A sink that has no room
is not read for, so what waits lies in files and not in memory. Files are looked at every 20 ms
while they grow, and up to every 400 ms while they do not: it costs no system call while there is no
worker, or nobody who wants to know.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from skate_raylet.machine.log_lines import LineSplitter, Run

_log = logging.getLogger(__name__)

LOOK_FIRST_S: Final = 0.02
LOOK_MAX_S: Final = 0.4
READ_BYTES: Final = 64 * 1024  # of one file, before the next one has its turn
FILES_KEPT_MAX: Final = 1000  # of workers that ended: unread, and as many that were read


class LogChunk(msgspec.Struct, frozen=True):
    """Some whole lines that one worker printed."""

    file: str  # its name in the session's logs
    end: int  # the offset behind them
    name: str  # of who printed them; empty: not known
    pid: int
    is_error: bool
    lines: list[str]


class LogSink(Protocol):
    """Who takes the output of one job's workers."""

    def has_room(self) -> bool:
        """Whether it takes more now; :meth:`LogTailer.look_soon` is called when it does again."""
        ...

    def take(self, chunk: LogChunk) -> None:
        """Lines of one file come in their order."""
        ...


class _File:
    """One file of one worker."""

    def __init__(self, path: str, pid: int, is_error: bool) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.pid = pid
        self.is_error = is_error
        self.is_ended = False  # nothing is written any more
        self.lines = LineSplitter()

    def size(self) -> int:
        """How long it is now; what was deleted has nothing left to read."""
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return self.lines.read_to

    def read(self) -> list[Run]:
        """The next lines. Raises ``OSError`` when the file can not be read."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.lines.read_to)
            return self.lines.feed(file.read(READ_BYTES))


class _JobLogs:
    """One job's files here, and who takes what is in them."""

    def __init__(self) -> None:
        self.files: dict[str, _File] = {}  # by name
        self.read: dict[
            str, _File
        ] = {}  # to their end; the newest, which may have to be read again
        self.sink: LogSink | None = None
        self.flushes: list[_Flush] = []


class _Flush:
    """Somebody waits until what is in the files now has been handed out."""

    def __init__(self, sizes: dict[str, int], done: Callable[[], None]) -> None:
        self.sizes = sizes  # of the files that are not read so far, by name
        self.done = done


class LogTailer:
    """The output of all workers of one node. Runs on the event loop's thread alone."""

    def __init__(self) -> None:
        self._jobs: dict[bytes, _JobLogs] = {}
        self._files: dict[int, tuple[bytes, list[_File]]] = {}  # of living workers, by startup id
        self._wanted = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    def worker_started(
        self, startup_id: int, job_id: bytes, pid: int, err_path: str, out_path: str
    ) -> None:
        """A worker of a job writes into these files from now on."""
        files = [_File(err_path, pid, True), _File(out_path, pid, False)]
        self._files[startup_id] = (job_id, files)
        job = self._job(job_id)
        for file in files:
            job.files[file.name] = file
        self.look_soon()

    def worker_ended(self, startup_id: int) -> None:
        """It writes no more; what it wrote is still handed out."""
        job_id, files = self._files.pop(startup_id, (b"", []))
        for file in files:
            file.is_ended = True
        job = self._jobs.get(job_id)
        if job is not None and job.sink is None:
            ended = [name for name, file in job.files.items() if file.is_ended]
            for name in ended[:-FILES_KEPT_MAX]:
                del job.files[name]
        self.look_soon()

    def job_finished(self, job_id: bytes) -> None:
        """Nobody is left to read its output, though some of its workers may live on."""
        job = self._jobs.pop(job_id, None)
        for flush in job.flushes if job is not None else ():
            flush.done()

    def attach(self, job_id: bytes, sink: LogSink) -> None:
        """From now on this sink takes what the job's workers print; it replaces another."""
        self._job(job_id).sink = sink
        self.look_soon()

    def detach(self, job_id: bytes, sink: LogSink) -> None:
        """The sink takes no more; where it stands is kept."""
        job = self._jobs.get(job_id)
        if job is not None and job.sink is sink:
            job.sink = None
            for flush in job.flushes:
                flush.done()
            job.flushes.clear()

    def seek(self, job_id: bytes, positions: dict[str, tuple[int, str]]) -> None:
        """Go on where whoever takes the output says that it stands: offset and name, by file.

        A file that is not named is read from its beginning. Files of workers that ended are among
        them, if what was read of them did not arrive.
        """
        job = self._job(job_id)
        job.files = {**job.read, **job.files}
        job.read = {}
        for name, file in job.files.items():
            end, who = positions.get(name, (0, ""))
            file.lines = LineSplitter(end, who)

    def flush(self, job_id: bytes, done: Callable[[], None]) -> None:
        """Call ``done`` when all that has been printed by now is handed out, or can not be."""
        job = self._jobs.get(job_id)
        if job is None or job.sink is None:
            done()
            return
        job.flushes.append(_Flush({name: file.size() for name, file in job.files.items()}, done))
        self.look_soon()

    def look_soon(self) -> None:
        """There may be something to read, or room for it."""
        self._wanted.set()

    async def close(self) -> None:
        """Read no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _job(self, job_id: bytes) -> _JobLogs:
        return self._jobs.setdefault(job_id, _JobLogs())

    async def _run(self) -> None:
        pause_s = LOOK_FIRST_S
        while True:
            is_busy = self._look()
            if is_busy:
                pause_s = LOOK_FIRST_S
                await asyncio.sleep(0)  # others have their turn between two readings
                continue
            if self._is_watching():
                try:
                    async with asyncio.timeout(pause_s):
                        await self._wanted.wait()
                    pause_s = LOOK_FIRST_S
                except TimeoutError:
                    pause_s = min(LOOK_MAX_S, 1.5 * pause_s)
            else:
                await self._wanted.wait()
            self._wanted.clear()

    def _is_watching(self) -> bool:
        """Whether a file may grow that somebody would take."""
        return any(job.files and job.sink is not None for job in self._jobs.values())

    def _look(self) -> bool:
        """Hand out what there is, one reading of each file; whether there may be more."""
        is_busy = False
        for job in list(self._jobs.values()):
            if job.sink is not None:
                is_busy |= self._look_at(job, job.sink)
        return is_busy

    def _look_at(self, job: _JobLogs, sink: LogSink) -> bool:
        is_busy = False
        for file in list(job.files.values()):
            if not sink.has_room():
                return False  # it says when it has room again
            is_ended = file.is_ended  # before the look: nothing is written behind this size
            size = file.size()
            if size > file.lines.read_to:
                self._read(file, sink)
                is_busy = True
            elif is_ended:
                _hand_out(file, file.lines.finish(), sink)
                job.read[file.name] = job.files.pop(file.name)
                if len(job.read) > FILES_KEPT_MAX:
                    del job.read[next(iter(job.read))]
        for flush in list(job.flushes):
            if self._is_flushed(job, flush, sink):
                job.flushes.remove(flush)
                flush.done()
        return is_busy

    def _read(self, file: _File, sink: LogSink) -> None:
        try:
            runs = file.read()
        except OSError as problem:
            _log.warning("event=log_unreadable file=%s error=%s", file.name, problem)
            file.lines = LineSplitter(file.size())  # what is there is skipped, and told
            runs = [Run("", [f"[some of {file.name} could not be read: {problem}]"], file.size())]
        _hand_out(file, runs, sink)

    def _is_flushed(self, job: _JobLogs, flush: _Flush, sink: LogSink) -> bool:
        for name, size in list(flush.sizes.items()):
            file = job.files.get(name)
            if file is not None:
                if file.lines.read_to < size:
                    return False
                _hand_out(file, file.lines.finish(), sink)
            del flush.sizes[name]
        return True


def _hand_out(file: _File, runs: list[Run], sink: LogSink) -> None:
    for run in runs:
        sink.take(LogChunk(file.name, run.end, run.name, file.pid, file.is_error, run.lines))
