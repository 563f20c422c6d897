"""Spawning a GCS's process ahead of its need. Imports little, so that the daemon can do it early.

The process imports all that a GCS needs and waits for its first order: beside the daemon's own
imports at the start of a head, and later as the standby of the GCS that serves. It ends with its
parent, told or not.

What comes before: the daemon, for the first one, or ``gcs_process``, for those that follow. What
comes after: ``gcs_child`` gives it its orders; ``gcs_main`` is the other side.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from skate_node.launch_protocol import Launch

COMMAND: Final = ("-P", "-m", "skate_node.gcs_main")
IN_DAEMON: Final = "memory"
"""The storage whose tables die with the daemon, so that its GCS needs no process of its own."""


def storage_of(launch: Launch) -> str:
    """Where a head keeps its tables: what was asked for, or else what its life suggests."""
    storage = launch.options.storage
    if storage is not None:
        return storage
    if launch.starter_pid:
        return IN_DAEMON
    return f"sqlite:{os.path.join(launch.session_dir, 'gcs.sqlite')}"


def spawn_gcs(
    session_dir: str, storage: str, command: tuple[str, ...] = COMMAND
) -> subprocess.Popen[bytes]:
    """Start a process that will be told by its standard input which GCS to be.

    Of ``storage`` (a setting) it hears the kind alone, to import what that needs: its arguments are
    everybody's to read. It prints into ``logs/gcs.err`` of the session. The caller waits for its
    end. Raises ``OSError`` when it can not be run.
    """
    with open(os.path.join(session_dir, "logs", "gcs.err"), "ab") as errors:
        return subprocess.Popen(
            [sys.executable, *command, str(os.getpid()), storage.partition(":")[0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
        )
