"""Spawning a zygote. Imports little, so that a node's daemon can do it before it imports gRPC.

What comes before: the daemon, for the first zygote, or ``service.zygote``, for those that replace a
dead one. What comes after: ``service.zygote`` sends the first message and asks for forks.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

MARK_VARIABLE = "SKATE_NODE_MARK"
"""Every process of a node has ``SKATE_NODE_MARK=<node id in hex>`` in its environment."""
SOCKET_BUFFER_BYTES = 2 << 20


class ZygoteProcess(NamedTuple):
    """A spawned zygote, which imports what it needs and then waits for its first message."""

    command: tuple[str, ...]
    """What it runs, but for the descriptor's number."""
    process: subprocess.Popen[bytes]
    control: socket.socket
    """This side's end of the ``SOCK_SEQPACKET`` pair."""
    node_id: bytes
    """Of the node whose mark it bears."""


def spawn_zygote(
    command: tuple[str, ...], session_dir: str, node_id: bytes, environment: Mapping[str, str]
) -> ZygoteProcess:
    """Start ``command`` with the number of its control descriptor appended.

    It bears the node's mark beside ``environment`` and prints into ``logs/zygote.{out,err}`` of the
    session. Raises ``OSError`` when the program can not be run.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    logs = os.path.join(session_dir, "logs")
    with theirs:
        try:
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
            with (
                open(os.path.join(logs, "zygote.out"), "ab") as out,
                open(os.path.join(logs, "zygote.err"), "ab") as err,
            ):
                process = subprocess.Popen(
                    [*command, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env={**environment, MARK_VARIABLE: node_id.hex()},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError:
            ours.close()
            raise
    return ZygoteProcess(command, process, ours, node_id)
