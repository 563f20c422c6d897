"""``python -P -m skate_node.gcs_main PARENT STORAGE``: the GCS of a head in a process of its own.

It imports what a GCS with such a storage (``sqlite``, ``redis``) needs and waits for its first
order, which may come at once or never.

What comes before: ``gcs_spawn`` in the daemon. It ends with the daemon: in order when its standard
input closes, at the latest by the kernel's hand.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

from skate_core_ids import SkateError
from skate_gcs import GcsConfig, GcsServer
from skate_gcs.storage import import_back_end
from skate_node.gcs_messages import (
    LINE_BYTES_MAX,
    AskStatistics,
    Begin,
    Begun,
    Failed,
    Listening,
    News,
    Statistics,
    decode_order,
    encode,
)
from skate_rpc.errors import BindError
from skate_telemetry.logs import configure_logging

STOP_GRACE_S = 0.2
LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_BACKUPS_MAX = 1
NAME_WAITING = b"skate-gcs-wait"
NAME = b"skate-gcs"
"""What ``ps`` and ``top`` call it; at most 15 bytes."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve until standard input closes or the storage fails. Does not return."""
    parent_pid, storage = sys.argv[1:]
    _die_with(int(parent_pid))
    _set_name(NAME_WAITING)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides
    import_back_end(storage)
    sys.exit(asyncio.run(_serve()))


async def _serve() -> int:
    orders = await _open_orders()
    line = await orders.readline()
    if not line:
        return 0  # it was never needed
    begin = decode_order(line)
    assert isinstance(begin, Begin)
    _set_name(NAME)
    _tell(Begun())
    configure_logging("gcs", begin.log_path, bytes_max=LOG_BYTES_MAX, backups_max=LOG_BACKUPS_MAX)
    gcs = GcsServer(
        GcsConfig(
            endpoint=begin.endpoint,
            token=begin.token,
            storage=begin.storage,
            storage_wait_s=begin.storage_wait_s,
            holder=begin.holder,
            advertised_host=begin.advertised_host,
        )
    )
    try:
        endpoint = await gcs.start()
    except SkateError as error:
        _tell(Failed(str(error), may_pass=isinstance(error, BindError)))
        return 1
    _tell(Listening(endpoint))
    listening = asyncio.create_task(_take_orders(orders, gcs))
    ended = asyncio.create_task(gcs.wait_stopped())
    await asyncio.wait([listening, ended], return_when=asyncio.FIRST_COMPLETED)
    if ended.done() and not listening.done():
        _tell(Failed(ended.result()))
        listening.cancel()
    await gcs.stop(STOP_GRACE_S)
    return 1 if ended.done() else 0


async def _take_orders(orders: asyncio.StreamReader, gcs: GcsServer) -> None:
    while line := await orders.readline():
        if isinstance(decode_order(line), AskStatistics):
            _tell(Statistics(gcs.statistics()))


async def _open_orders() -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(LINE_BYTES_MAX, loop)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), sys.stdin.buffer
    )
    return reader


def _tell(news: News) -> None:
    data = memoryview(encode(news) + b"\n")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return  # the daemon is gone; standard input says so too


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process when the daemon's main thread ends."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(1)  # it ended before


def _set_name(name: bytes) -> None:
    _libc.prctl(_PR_SET_NAME, name, 0, 0, 0)


if __name__ == "__main__":
    main()
