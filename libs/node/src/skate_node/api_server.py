"""The cluster's API server on a head: its port from the start, its process when somebody calls.

The daemon binds the port, so that one that is taken is said at once and the address never changes;
the first connection starts the process, which takes the listening socket over and answers what
waits in its queue. Until then it costs nothing. One that dies is started again at once, because
jobs are looked after by it; its end is never the node's.

::

    bound --connection--> running --dies--> pause --> running ...
      |                      |
      +------- stop ---------+--> its standard input closes --> ended, or killed

What comes before: ``composition``. What comes after: a command of an app above this library, which
gets ``--session PATH --listen-fd N``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import Final

from skate_node.daemon_process import ExitStatus
from skate_rpc.errors import BindError

_log = logging.getLogger(__name__)

BACKLOG: Final = 128
PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 5.0
SETTLED_S: Final = 10.0
"""A life this long was no failure to start: the next pause is the shortest again."""


def bind_first(host: str, ports: Sequence[int]) -> socket.socket:
    """A socket that listens on the first of ``ports`` that is free; 0 takes any.

    Raises:
        BindError: none is, or the host can not be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    problem = "no port was given"
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            problem = error.strerror or str(error)
        else:
            return listener
    raise BindError(
        f"{host}:{ports[-1] if ports else 0}",
        f"{problem}. Give another port or host to the API server, or none.",
    )


class ApiServer:
    """Start once, stop once, on one event loop."""

    def __init__(self, command: tuple[str, ...], listener: socket.socket, session_dir: str) -> None:
        """``command``: arguments of this interpreter. Takes the listening socket."""
        self._command = command
        self._listener = listener
        self._session_dir = session_dir
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.starts = 0

    @property
    def endpoint(self) -> str:
        """``host:port`` that it is bound to."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def pid(self) -> int:
        """Its process; 0 when none runs."""
        return 0 if self._process is None else self._process.pid

    def start(self, *, at_once: bool) -> None:
        """Start the process now, or with the first connection."""
        self._keeper = asyncio.create_task(self._keep(at_once), name="skate-api-server-keeper")

    async def stop(self, grace_s: float) -> None:
        """End the process, in order if it does so in time, and close the port."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(grace_s):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        self._listener.close()

    async def _keep(self, at_once: bool) -> None:
        if not at_once:
            await self._first_connection()
        pause_s = PAUSE_FIRST_S
        while True:
            started_s = time.monotonic()
            try:
                process = await self._spawn()
            except OSError as error:
                _log.error("the API server does not start", extra={"why": str(error)})
            else:
                status = ExitStatus.of_returncode(await process.wait())
                self._process = None
                _log.error("the API server ended", extra={"how": str(status)})
            if time.monotonic() - started_s >= SETTLED_S:
                pause_s = PAUSE_FIRST_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _first_connection(self) -> None:
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(self._listener, came.set)
        try:
            await came.wait()
        finally:
            loop.remove_reader(self._listener)

    async def _spawn(self) -> asyncio.subprocess.Process:
        log = os.path.join(self._session_dir, "logs", "api_server.log")
        with open(log, "ab") as output:  # noqa: ASYNC230  a local log file
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                "--session",
                self._session_dir,
                "--listen-fd",
                str(self._listener.fileno()),
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[self._listener.fileno()],
            )
        self._process = process
        self.starts += 1
        _log.info("the API server starts", extra={"pid": process.pid, "starts": self.starts})
        return process
