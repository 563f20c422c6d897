"""Reads files among the logs of this node, and of others on behalf of a process here.

A name is one file of the one folder: no path, no link, nothing that is not a plain file. Source:
RELIABILITY S11; SURFACE J16.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from typing import Final

from skate_raylet.service.local_process import LocalProcess
from skate_rpc.errors import RpcUnavailableError
from skate_rpc.grpc_channel import open_channel
from skate_rpc.node_protocol import ListLogs, LogFile, LogPart, ReadLog
from skate_rpc.raylet_client import RayletClient

BYTES_MAX: Final = 1 << 20  # of one reading
FILES_MAX: Final = 10_000  # of one listing, the newest


class LogReader:
    """Runs on the event loop's thread; files are read by threads, because disks may be slow."""

    def __init__(
        self, node_id: bytes, folder: str, token: str, endpoint_of: Callable[[bytes], str]
    ) -> None:
        """``folder``: this node's logs. ``endpoint_of``: where another node's raylet listens."""
        self._node_id = node_id
        self._folder = folder
        self._token = token
        self._endpoint_of = endpoint_of

    async def list_here(self) -> list[LogFile]:
        """The files of this node, by name."""
        return await asyncio.to_thread(_list, self._folder)

    async def read_here(self, file: str, offset: int, bytes_max: int) -> LogPart | None:
        """Part of a file of this node; None when there is no such file."""
        return await asyncio.to_thread(
            _read, self._folder, file, offset, min(max(bytes_max, 0), BYTES_MAX)
        )

    async def list_logs(self, _: LocalProcess, body: ListLogs) -> list[LogFile]:
        """The control call of a process here. Raises ``RpcError``."""
        if body.node_id == self._node_id:
            return await self.list_here()
        channel = open_channel(endpoint := self._find(body.node_id), self._token)
        try:
            files = await RayletClient(channel, endpoint).list_logs()
        finally:
            await channel.close()
        return [LogFile(file.name, file.size, file.changed_s) for file in files]

    async def read_log(self, _: LocalProcess, body: ReadLog) -> LogPart | None:
        """The control call of a process here. Raises ``RpcError``."""
        if body.node_id == self._node_id:
            return await self.read_here(body.file, body.offset, body.bytes_max)
        channel = open_channel(endpoint := self._find(body.node_id), self._token)
        try:
            client = RayletClient(channel, endpoint)
            part = await client.read_log(body.file, body.offset, body.bytes_max)
        finally:
            await channel.close()
        return LogPart(part.data, part.offset, part.size) if part.found else None

    def _find(self, node_id: bytes) -> str:
        endpoint = self._endpoint_of(node_id)
        if not endpoint:
            raise RpcUnavailableError(
                f"Node {node_id.hex()} is not alive, and its logs are with it.", "read_log", ""
            )
        return endpoint


def _list(folder: str) -> list[LogFile]:
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                facts = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # it went meanwhile
            if stat.S_ISREG(facts.st_mode):
                files.append(LogFile(entry.name, facts.st_size, facts.st_mtime))
    files.sort(key=lambda file: file.changed_s)
    return sorted(files[-FILES_MAX:], key=lambda file: file.name)


def _read(folder: str, file: str, offset: int, bytes_max: int) -> LogPart | None:
    if not file or file != os.path.basename(file) or "\0" in file or file in (".", ".."):
        return None
    try:
        # A pipe among the logs must not hold the thread.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(os.path.join(folder, file), flags)
    except OSError:
        return None  # not there, or a link, or not a name
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return None
        start = max(0, facts.st_size + offset) if offset < 0 else offset
        return LogPart(os.pread(descriptor, bytes_max, start), start, facts.st_size)
    finally:
        os.close(descriptor)
