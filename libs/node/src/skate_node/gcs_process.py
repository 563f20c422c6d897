"""The GCS of a head whose tables outlive it: a process of its own, started again when it dies.

A GCS that shares the daemon's process takes the head's workers with it when it is killed, and waits
for whatever else the daemon does. So where its tables survive it, it is a child: its death costs
the cluster a pause (some tenths of a second, more with more rows) and nothing else. Each life says
the same name to the storage, and only one runs at a time, so a successor need not wait for the word
of its predecessor to run out.

A second process stands by: it has imported everything and waits, so that the pause is not the time
in which an interpreter starts and imports gRPC. It opens nothing before it is told to.

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
import subprocess
import time
from collections import deque
from typing import Final

from skate_gcs import GcsConfig, GcsStatistics
from skate_node.daemon_process import ExitStatus
from skate_node.failures import ComponentFailedError
from skate_node.gcs_child import GcsChild
from skate_node.gcs_messages import AskStatistics, Begin, Begun, Failed, Listening, Statistics
from skate_node.gcs_spawn import COMMAND, spawn_gcs
from skate_node.launch_protocol import tail_of

_log = logging.getLogger(__name__)

FIRST_WAIT_S: Final = 10.0
"""How long the storage may be away at the first start, when a person waits."""
RESTART_WAIT_S: Final = 60.0
"""How long it may be away, or the address taken, when the GCS is started again."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 2.0
SETTLED_S: Final = 5.0
"""A life this long was no failure to start: the next one follows at once."""
KILL_AFTER_S: Final = 1.0
STANDBY_AFTER_S: Final = 1.0
"""So long after a GCS serves its standby is started: who waited for the GCS comes first."""
BEGIN_STANDBY_S: Final = 10.0
"""A process that was started beforehand has answered by then, or another takes its place."""
BEGIN_FRESH_S: Final = 30.0
"""The same of one that is started when it is needed; nothing takes its place."""
PING_S: Final = 5.0
PINGS_MISSED_MAX: Final = 3
"""In a row; one can be missed because the whole machine stood still."""


class GcsProcess:
    """Looks like a ``GcsServer`` to the daemon. Start once, stop once, on one event loop."""

    def __init__(
        self,
        config: GcsConfig,
        session_dir: str,
        command: tuple[str, ...] = COMMAND,
        first: subprocess.Popen[bytes] | None = None,
    ) -> None:
        """Nothing is started before :meth:`start`.

        ``first``: a process of ``spawn_gcs`` that has been started already; this object ends it.
        """
        assert config.token is not None
        self._config = config
        self._token = config.token
        self._session_dir = session_dir
        self._command = command
        self._endpoint = config.endpoint
        self._process: GcsChild | None = None
        self._standby = first
        self._preparing: asyncio.Task[None] | None = None
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

    @property
    def standby_pid(self) -> int:
        """The process that would follow; 0 while there is none."""
        return 0 if self._standby is None else self._standby.pid

    async def start(self) -> str:
        """Start it; returns the bound endpoint, which later lives keep.

        Raises:
            ComponentFailedError: it does not start; says why.
        """
        self._endpoint = await self._live(FIRST_WAIT_S)
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
            process.say_no_more()
            try:
                async with asyncio.timeout(grace_s + KILL_AFTER_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._preparing is not None:
            self._preparing.cancel()
        standby, self._standby = self._standby, None
        if standby is not None:
            child = await GcsChild.adopt(standby)
            child.kill()
            await child.wait()
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
        self._process.tell(AskStatistics())
        return await answer

    async def _live(self, wait_s: float) -> str:
        """Have a process serve; returns where. Raises ``ComponentFailedError``, ``OSError``."""
        self._failure = None
        self._started_s = time.monotonic()
        process = await self._begin(wait_s)
        news = await process.next_news()
        if isinstance(news, Listening):
            self._preparing = asyncio.create_task(self._prepare(), name="skate-gcs-standby")
            return news.endpoint
        status = ExitStatus(await process.wait())
        self._process = None
        if isinstance(news, Failed):
            self._failure = news
            raise ComponentFailedError("gcs", news.reason)
        raise self._died(status)

    async def _begin(self, wait_s: float) -> GcsChild:
        """Have the standby become the GCS, or another process if it can not."""
        standby, self._standby = self._standby, None
        if standby is not None:  # one that has ended meanwhile is adopted too, to be buried
            child = await GcsChild.adopt(standby)
            if await self._has_begun(child, wait_s, BEGIN_STANDBY_S):
                return child
            status = ExitStatus(await self._bury(child))
            _log.error("the GCS's standby is of no use", extra={"how": str(status)})
        child = await GcsChild.adopt(self._spawn())
        if await self._has_begun(child, wait_s, BEGIN_FRESH_S):
            return child
        raise self._died(ExitStatus(await self._bury(child)))

    async def _has_begun(self, child: GcsChild, wait_s: float, limit_s: float) -> bool:
        self._process = child
        logs = os.path.join(self._session_dir, "logs")
        child.tell(
            Begin(
                self._endpoint,
                self._token,
                self._config.storage,
                self._config.holder or os.path.basename(self._session_dir),
                wait_s,
                self._config.advertised_host,
                os.path.join(logs, "gcs.log"),
            )
        )
        try:
            async with asyncio.timeout(limit_s):
                return isinstance(await child.next_news(), Begun)
        except TimeoutError:
            return False

    async def _bury(self, child: GcsChild) -> int:
        """Wait for the end of one that said nothing; it is killed if it lives."""
        self._process = None
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                return await child.wait()
        except TimeoutError:
            child.kill()
            return await child.wait()

    def _died(self, status: ExitStatus) -> ComponentFailedError:
        tail = tail_of(os.path.join(self._session_dir, "logs", "gcs.err"))
        return ComponentFailedError("gcs", "its process ended", str(status), tail)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return spawn_gcs(self._session_dir, self._config.storage, self._command)

    async def _prepare(self) -> None:
        """Have a process stand by. Without one the next life takes longer to begin."""
        await asyncio.sleep(STANDBY_AFTER_S)
        try:
            self._standby = self._spawn()
        except OSError as error:
            _log.warning("the GCS has no standby", extra={"why": str(error)})

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
            status = ExitStatus(await self._process.wait())
            lived_s = time.monotonic() - self._started_s
            self._process = None
            if self._preparing is not None:
                self._preparing.cancel()
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

    async def _ping(self, process: GcsChild) -> None:
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
                await self._live(RESTART_WAIT_S)
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

    async def _listen(self, process: GcsChild) -> None:
        while (news := await process.next_news()) is not None:
            if isinstance(news, Failed):
                self._failure = news
            elif isinstance(news, Statistics) and self._questions:
                answer = self._questions.popleft()
                if not answer.done():
                    answer.set_result(news.counts)

    def _drop_questions(self) -> None:
        while self._questions:
            answer = self._questions.popleft()
            if not answer.done():
                answer.set_exception(ConnectionError("The GCS died."))
