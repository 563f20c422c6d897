"""A Redis server of one's own, for tests and benchmarks: on a Unix socket in a folder, no port.

It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from typing import Final

PROGRAM: Final = "redis-server"
START_S: Final = 10.0
_POLL_S: Final = 0.01
_PR_SET_PDEATHSIG: Final = 1


def is_redis_installed() -> bool:
    """Whether there is a server to start (Debian: ``apt-get install redis-server``)."""
    return shutil.which(PROGRAM) is not None


class OwnRedisServer:
    """One server; may be killed and started again with what it had saved."""

    def __init__(self, folder: str, *, appendfsync: str = "always", settings: str = "") -> None:
        """Start nothing yet. ``settings``: further lines of its configuration."""
        self.folder = folder
        self.path = os.path.join(folder, "redis.sock")
        self.url = f"redis+unix://{self.path}"
        self._config = "\n".join(
            [
                "port 0",
                f"unixsocket {self.path}",
                "unixsocketperm 700",
                f"dir {folder}",
                'save ""',
                "appendonly yes",
                f"appendfsync {appendfsync}",
                "loglevel warning",
                settings,
                "",
            ]
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None, "start it first"
        return self._process.pid

    def start(self) -> None:
        """Start it; returns when it answers.

        Raises:
            TimeoutError: it does not within ``START_S`` seconds.
        """
        self._process = subprocess.Popen(
            [PROGRAM, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  one system call, made before any thread
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._config.encode())
        self._process.stdin.close()
        deadline_s = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise TimeoutError(f"{PROGRAM} does not answer at {self.path}.")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """SIGKILL; what it had not saved is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1.0)
                client.connect(self.path)
                client.sendall(b"PING\r\n")
                # A server that wants a password answers too; one that still loads says so.
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
