"""The GCS of a head whose tables outlive it: a process of its own, started again when it dies.

A GCS that shares the daemon's process takes the head's workers with it when it is killed, and waits
for whatever else the daemon does. So where its tables survive it, it is a child: its death costs
the cluster a pause (about half a second, more with more rows) and nothing else. Each life says the
same name to the storage, and only one runs at a time, so a successor need not wait for the word of
its predecessor to run out.

One that lives but does not answer (it was stopped, or it hangs) is killed, and so started again;
otherwise every node would give it up in the end, and the cluster be gone.

A GCS that says why it can not go on (a damaged file, a device that failed, another head that has
taken the storage over) is not started again: the node ends with that reason.

What comes before: ``composition``. What comes after: ``gcs_main``, on the other side.
Source: decision 0010.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import deque
from typing import Final

from skate_gcs import GcsConfig, GcsStatistics
from skate_node.daemon_process import ExitStatus
from skate_node.failures import ComponentFailedError
from skate_node.gcs_messages import (
    LINE_BYTES_MAX,
    AskStatistics,
    Begin,
    Failed,
    Listening,
    News,
    Order,
    Statistics,
    decode_news,
    encode,
)
from skate_node.launch_protocol import tail_of

_log = logging.getLogger(__name__)

COMMAND: Final = ("-P", "-m", "skate_node.gcs_main")
FIRST_WAIT_S: Final = 10.0
"""How long the storage may be away at the first start, when a person waits."""
RESTART_WAIT_S: Final = 60.0
"""How long it may be away, or the address taken, when the GCS is started again."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
SETTLED_S: Final = 5.0
"""A life this long was no failure to start: the next one follows at once."""
KILL_AFTER_S: Final = 1.0
PING_S: Final = 5.0
PINGS_MISSED_MAX: Final = 3
"""In a row; one can be missed because the whole machine stood still."""


class GcsProcess:
    """Looks like a ``GcsServer`` to the daemon. Start once, stop once, on one event loop."""

    def __init__(
        self, config: GcsConfig, session_dir: str, command: tuple[str, ...] = COMMAND
    ) -> None:
        """Nothing is started before :meth:`start`."""
        assert config.token is not None
        self._config = config
        self._token = config.token
        self._session_dir = session_dir
        self._command = command
        self._endpoint = config.endpoint
        self._process: asyncio.subprocess.Process | None = None
        self._started_s = 0.0
        self._failure: Failed | None = None
        self._questions: deque[asyncio.Future[GcsStatistics]] = deque()
        self._stopped: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0
        """Lives after the first."""

    @property
    def pid(self) -> int:
        """The present process; 0 between two."""
        return 0 if self._process is None else self._process.pid

    async def start(self) -> str:
        """Start it; returns the bound endpoint, which later lives keep.

        Raises:
            ComponentFailedError: it does not start; says why.
        """
        self._endpoint = await self._spawn(FIRST_WAIT_S)
        self._keeper = asyncio.create_task(self._keep(), name="skate-gcs-keeper")
        return self._endpoint

    async def wait_stopped(self) -> str:
        """Wait until it has stopped for good; returns why."""
        return await asyncio.shield(self._stopped)

    async def stop(self, grace_s: float) -> None:
        """End it, in order if it does so in time."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(grace_s + KILL_AFTER_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if not self._stopped.done():
            self._stopped.set_result("stopped")

    async def statistics(self) -> GcsStatistics:
        """Its counts of this moment.

        Raises:
            ConnectionError: it is away.
        """
        if self._process is None:
            raise ConnectionError("The GCS is being started again.")
        answer: asyncio.Future[GcsStatistics] = asyncio.get_running_loop().create_future()
        self._questions.append(answer)
        self._tell(AskStatistics())
        return await answer

    async def _spawn(self, wait_s: float) -> str:
        """Start a process and wait for its first word. Raises ``ComponentFailedError``."""
        logs = os.path.join(self._session_dir, "logs")
        with open(os.path.join(logs, "gcs.err"), "ab") as errors:  # noqa: ASYNC230  a local log file
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                limit=LINE_BYTES_MAX,
            )
        self._process, self._failure = process, None
        self._started_s = time.monotonic()
        self._tell(
            Begin(
                self._endpoint,
                self._token,
                self._config.storage,
                self._config.holder or os.path.basename(self._session_dir),
                wait_s,
                self._config.advertised_host,
                os.path.join(logs, "gcs.log"),
                os.getpid(),
            )
        )
        news = await self._next_news(process)
        if isinstance(news, Listening):
            return news.endpoint
        status = ExitStatus(await _wait_status(process))
        self._process = None
        if isinstance(news, Failed):
            self._failure = news
            raise ComponentFailedError("gcs", news.reason)
        tail = tail_of(os.path.join(logs, "gcs.err"))
        raise ComponentFailedError("gcs", "its process ended", str(status), tail)

    async def _keep(self) -> None:
        """Take its news; start it again when it dies without a reason."""
        pause_s = PAUSE_FIRST_S
        while True:
            assert self._process is not None
            pings = asyncio.create_task(self._ping(self._process))
            try:
                await self._listen(self._process)
            finally:
                pings.cancel()
            status = ExitStatus(await _wait_status(self._process))
            lived_s = time.monotonic() - self._started_s
            self._process = None
            self._drop_questions()
            if self._failure is not None:
                self._stopped.set_result(self._failure.reason)
                return
            _log.error("the GCS died", extra={"how": str(status), "lived_s": round(lived_s, 1)})
            if lived_s < SETTLED_S:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
            else:
                pause_s = PAUSE_FIRST_S
            if not await self._revive():
                return

    async def _ping(self, process: asyncio.subprocess.Process) -> None:
        """Kill it when it does not answer."""
        missed = 0
        while missed < PINGS_MISSED_MAX:
            await asyncio.sleep(PING_S)
            try:
                async with asyncio.timeout(PING_S):
                    await self.statistics()
                missed = 0
            except TimeoutError:
                missed += 1
            except ConnectionError:
                return  # it died, and another one has its own
        _log.error("the GCS does not answer and is killed", extra={"pid": process.pid})
        process.kill()

    async def _revive(self) -> bool:
        """Start it again; False: it can not be, and :meth:`wait_stopped` says why."""
        deadline_s = time.monotonic() + RESTART_WAIT_S
        while True:
            try:
                await self._spawn(RESTART_WAIT_S)
            except (ComponentFailedError, OSError) as error:
                is_final = self._failure is not None and not self._failure.may_pass
                if is_final or time.monotonic() >= deadline_s:
                    self._stopped.set_result(f"it could not be started again: {error}")
                    return False
                _log.error("the GCS does not start again yet", extra={"why": str(error)})
                await asyncio.sleep(PAUSE_MAX_S / 4)
            else:
                self.restarts += 1
                took_s = round(time.monotonic() - self._started_s, 3)
                _log.info("the GCS runs again", extra={"took_s": took_s, "lives": self.restarts})
                return True

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        while (news := await self._next_news(process)) is not None:
            if isinstance(news, Failed):
                self._failure = news
            elif isinstance(news, Statistics) and self._questions:
                answer = self._questions.popleft()
                if not answer.done():
                    answer.set_result(news.counts)

    async def _next_news(self, process: asyncio.subprocess.Process) -> News | None:
        assert process.stdout is not None
        line = await process.stdout.readline()
        return decode_news(line) if line.endswith(b"\n") else None

    def _tell(self, order: Order) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(encode(order) + b"\n")

    def _drop_questions(self) -> None:
        while self._questions:
            answer = self._questions.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError("The GCS died."))


async def _wait_status(process: asyncio.subprocess.Process) -> int:
    """How it ended, as ``waitpid`` would say it."""
    code = await process.wait()
    return -code if code < 0 else code << 8
