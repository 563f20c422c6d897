"""What the launcher and the daemon it spawns say to each other. Standard library only.

::

    launcher                                     daemon (python -P -m skate_node.daemon <session>)
      stdin    --- one JSON object, then EOF -->   0  options, session folder, starter's pid
      log file <-- whatever is printed ---------   1, 2
      ready    <-- JSON lines ------------------   3  starting* then ready or failed, then EOF
      lifeline --- nothing; EOF when the           4  (absent without a lifeline)
                   starter is gone
      lock     --- shared open file ------------   5  the session folder's flock

The starter's ends are close-on-exec, so the daemon never holds the writing end of its own lifeline.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from skate_node.options import NodeOptions

READY_FD = 3
LIFELINE_FD = 4
LOCK_FD = 5
FIRST_FREE_FD = 6
LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 16 * 1024
READY_BYTES_MAX = 256 * 1024


@dataclass(frozen=True)
class Launch:
    """What the launcher handed over, as the daemon holds it."""

    options: NodeOptions
    session_dir: str
    starter_pid: int
    """0: nobody's life ends this node."""
    umask: int
    """The starter's, for user code; the daemon's own files are closed to others."""


@dataclass(frozen=True)
class ReadyNode:
    """The facts of a node that is up, as the ready line carries them."""

    node_id: str
    gcs_endpoint: str
    stream_endpoint: str
    store_endpoint: str
    raylet_endpoint: str
    metrics_endpoint: str
    token: str
    ip_address: str = "127.0.0.1"


class ReadyWriter:
    """The daemon's end. The reader may be gone: then nobody waits, and lines are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self.component = "python import"

    def starting(self, component: str) -> None:
        """The component whose start begins; blamed if the daemon dies without another word."""
        self.component = component
        self._write({"event": "starting", "component": component})

    def ready(self, node: ReadyNode) -> None:
        """The node is up. The last line."""
        self._write({"event": "ready", **node.__dict__})
        self.close()

    def failed(
        self, component: str, reason: str, exit_status: str = "", log_tail: str = ""
    ) -> None:
        """The node will not come up. The last line."""
        self._write(
            {
                "event": "failed",
                "component": component,
                "reason": reason,
                "exit_status": exit_status,
                "log_tail": log_tail,
            }
        )
        self.close()

    def close(self) -> None:
        """Close the pipe; later lines are dropped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, values: dict[str, Any]) -> None:
        if self._fd < 0:
            return
        data = memoryview(json.dumps(values).encode() + b"\n")
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BrokenPipeError:
            self.close()


def tail_of(path: str, lines_max: int = LOG_TAIL_LINES) -> str:
    """The last lines of a log file; empty when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines_max:])
