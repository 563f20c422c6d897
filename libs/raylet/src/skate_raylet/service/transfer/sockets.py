"""Sockets of the transfer: addresses, options, and blocking reads and writes with a tick.

The sockets are blocking, so that one system call moves megabytes. The kernel interrupts a call
that waits for longer than a tick, with what was moved by then; so a thread notices a stop, and can
say whether anything moves at all.
"""

from __future__ import annotations

import socket
import struct

TICK_S = 1.0
CHUNK_BYTES = 8 << 20
"""Moved by one system call."""
UNIX_BUFFER_BYTES = 4 << 20
"""TCP sizes its buffers by itself; Unix sockets have the small one that they are given."""
KEEPALIVE_IDLE_S = 10
KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_PROBES = 3


class PeerClosedError(ConnectionError):
    """The peer hung up."""


class PeerSilentError(ConnectionError):
    """Nothing moved for too long."""


def prepare(sock: socket.socket) -> None:
    """Make a connected socket blocking, with a tick, and fit for bulk."""
    sock.setblocking(True)
    tick = struct.pack("@ll", int(TICK_S), 0)  # struct timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def receive_some(sock: socket.socket, target: memoryview) -> int:
    """Fill as much of ``target`` as comes within a tick; 0 when nothing did.

    Raises :class:`PeerClosedError` at the end of the stream, ``OSError`` when it broke.
    """
    try:
        count = sock.recv_into(target, 0, socket.MSG_WAITALL)
    except (BlockingIOError, InterruptedError):
        return 0
    if not count and target:
        raise PeerClosedError("it hung up")
    return count


def receive_exactly(sock: socket.socket, count: int, timeout_s: float) -> bytes:
    """A message's fixed part.

    Raises :class:`PeerSilentError` when nothing comes for about ``timeout_s``, and as
    :func:`receive_some`.
    """
    data = bytearray(count)
    left = memoryview(data)
    ticks = max(1, round(timeout_s / TICK_S))
    while left:
        received = receive_some(sock, left)
        left = left[received:]
        ticks -= 1
        if left and not ticks:
            raise PeerSilentError(f"it sent nothing for {timeout_s:g} s")
    return bytes(data)


def send_all(sock: socket.socket, data: memoryview | bytes, timeout_s: float) -> None:
    """Send everything. Raises :class:`PeerSilentError` when nothing moves for ``timeout_s``."""
    left = memoryview(data)
    ticks_max = max(1, round(timeout_s / TICK_S))
    ticks = ticks_max
    while left:
        try:
            sent = sock.send(left[:CHUNK_BYTES], socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent:
            ticks = ticks_max
            left = left[sent:]
        else:
            ticks -= 1
            if not ticks:
                raise PeerSilentError(f"it took nothing for {timeout_s:g} s")
