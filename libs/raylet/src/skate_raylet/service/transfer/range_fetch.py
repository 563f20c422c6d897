"""Fetches one range of an object from one node, on a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from skate_raylet.service.transfer.pages_ahead import NoPagesError, PagesAhead
from skate_raylet.service.transfer.peer_connections import PeerConnections
from skate_raylet.service.transfer.sockets import (
    CHUNK_BYTES,
    TICK_S,
    PeerClosedError,
    receive_some,
    send_all,
)
from skate_raylet.service.transfer.wire import (
    REPLY_BYTES,
    MalformedError,
    Status,
    pack_request,
    unpack_reply,
)
from skate_rpc.handshake import AuthenticationError

REQUEST_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class RangeOutcome:
    """How a fetch ended; ``problem`` empty: with all of the range."""

    received_bytes: int
    problem: str = ""
    is_absent: bool = False


class _AbsentError(Exception):
    """The source answers, and does not have what is asked for."""


class RangeFetch:
    """One range. :meth:`run` on a thread, :meth:`stop` from any other.

    How long silence is borne is the planner's decision: ``on_progress`` is called about once a
    second while bytes, or signs of life, come, and the planner calls for the stop.
    """

    def __init__(
        self,
        object_id: bytes,
        size_bytes: int,
        offset: int,
        target: memoryview,
        pages: PagesAhead,
        on_progress: Callable[[], None],
        on_bytes: Callable[[int, int], None],
        *,
        is_arriving: bool = False,
    ) -> None:
        """``target``: where the range goes, as long as it; ``pages``: how far it may be written.

        ``on_bytes(start, end)``: of the object, what has come of the range by now.
        ``is_arriving``: the source may not have it yet.
        """
        self._object_id = object_id
        self._size_bytes = size_bytes
        self._offset = offset
        self._target = target
        self._pages = pages
        self._on_progress = on_progress
        self._on_bytes = on_bytes
        self._is_arriving = is_arriving
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._is_stopped = False
        self._received_bytes = 0
        self._told_at_s = time.monotonic()

    def run(self, endpoint: str, connections: PeerConnections) -> RangeOutcome:
        """Fetch; returns when nobody writes to the target any more. Blocks, bounded by stop()."""
        try:
            if not self._try_kept(endpoint, connections):
                self._run_on(connections.connect(endpoint), endpoint, connections)
            return RangeOutcome(self._received_bytes)
        except _AbsentError as error:
            return RangeOutcome(0, str(error), is_absent=True)
        except NoPagesError as error:
            return RangeOutcome(self._received_bytes, str(error))
        except (OSError, AuthenticationError, MalformedError, ValueError) as error:
            text = str(error) if isinstance(error, PeerClosedError) else f"{endpoint}: {error}"
            return RangeOutcome(self._received_bytes, text)
        finally:
            self._target.release()

    def stop(self) -> None:
        """Have :meth:`run` return soon."""
        with self._lock:
            self._is_stopped = True
            if self._sock is not None:
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # It broke by itself.

    def _try_kept(self, endpoint: str, connections: PeerConnections) -> bool:
        """Use a kept connection; False if there is none that still works."""
        while (sock := connections.take(endpoint)) is not None:
            try:
                self._run_on(sock, endpoint, connections)
            except OSError:
                # The peer closed it while it was idle, unless it has begun to answer.
                if self._is_stopped or self._received_bytes:
                    raise
            else:
                return True
        return False

    def _run_on(self, sock: socket.socket, endpoint: str, connections: PeerConnections) -> None:
        is_clean = False
        try:
            with self._lock:
                if self._is_stopped:
                    raise PeerClosedError("stopped")
                self._sock = sock
            self._fetch(sock)
            is_clean = True
        except _AbsentError:
            is_clean = True
            raise
        finally:
            with self._lock:
                self._sock = None
                is_kept = is_clean and not self._is_stopped
            if is_kept:
                connections.give(endpoint, sock)
            else:
                sock.close()

    def _fetch(self, sock: socket.socket) -> None:
        length = len(self._target)
        request = pack_request(self._object_id, self._offset, length, waits=self._is_arriving)
        send_all(sock, request, REQUEST_TIMEOUT_S)
        self._await_start(sock)
        while self._received_bytes < length:
            end = min(length, self._received_bytes + CHUNK_BYTES)
            self._await_pages(self._offset + end)
            with self._target[self._received_bytes : end] as chunk:
                count = receive_some(sock, chunk)
            self._received_bytes += count
            if count:
                self._on_bytes(self._offset, self._offset + self._received_bytes)
                self._tell_progress()
            elif self._is_stopped:
                raise PeerClosedError("stopped")

    def _await_pages(self, end: int) -> None:
        while not self._pages.wait_for(end, TICK_S):
            if self._is_stopped:
                raise PeerClosedError("stopped")
            self._tell_progress()  # The source is not to blame.

    def _await_start(self, sock: socket.socket) -> None:
        while True:
            status, size_bytes = unpack_reply(self._receive_reply(sock))
            if status is Status.OK and size_bytes == self._size_bytes:
                return
            match status:
                case Status.WAIT:
                    self._tell_progress()
                case Status.ABSENT:
                    raise _AbsentError("it does not have the object")
                case Status.FAILED:
                    raise MalformedError("its object store does not answer")
                case Status.OK | Status.OUT_OF_RANGE:
                    # What follows an OK is not wanted, so the connection can not be kept.
                    problem = f"its object has {size_bytes} bytes, not {self._size_bytes}"
                    raise MalformedError(problem)

    def _receive_reply(self, sock: socket.socket) -> bytes:
        reply = bytearray(REPLY_BYTES)
        left = memoryview(reply)
        while left:
            left = left[receive_some(sock, left) :]
            if self._is_stopped:
                raise PeerClosedError("stopped")
        return bytes(reply)

    def _tell_progress(self) -> None:
        now_s = time.monotonic()
        if now_s - self._told_at_s >= TICK_S:
            self._told_at_s = now_s
            self._on_progress()
