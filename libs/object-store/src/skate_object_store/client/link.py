"""The client's one connection: many threads' requests, without a thread of its own.

Before it: :mod:`~skate_object_store.client.admission` opened the socket. After it: the client
unpacks replies.

Whichever thread waits for a reply and finds nobody reading becomes the reader: it takes every reply
off the socket, hands the others theirs, and on leaving wakes one of them to read on. A lone thread
therefore sends and receives without a switch.

An interrupt (``KeyboardInterrupt``) may come between any two bytecodes. Bytes are moved by single C
calls into state that the next caller goes on from, so an interrupted call never leaves the stream
cut; its reply, when it comes, is handed to ``on_orphan``, which gives back what it granted.
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from skate_object_store.errors import StoreClosedError, StoreProtocolError, StoreTimeoutError
from skate_object_store.protocol import (
    Kind,
    MalformedFrameError,
    split_frames,
    unpack_refused,
)

_TICK_S = 0.25
"""A blocked send or receive looks at its deadline this often. Replies do not wait for it."""

_READ_SIZES = (1 << 16,)

_LAST_READS_MAX = 4

Reply = tuple[int, memoryview]
"""(kind, body)."""

Frame = tuple[int, int, memoryview]
"""(kind, request, body)."""


class Call:
    """One request, from :meth:`Link.begin` until its grant is claimed or undone."""

    __slots__ = ("is_queued", "is_waiting", "number", "reply", "wakes")

    def __init__(self, number: int) -> None:
        self.number = number
        self.reply: Reply | None = None
        self.is_queued = False
        """Whether the request will reach the server, and so be answered, unless the line breaks."""
        self.is_waiting = False
        self.wakes: SimpleQueue[None] = SimpleQueue()

    def has_reply(self) -> bool:
        """Whether the server has answered, and nobody has claimed the answer."""
        return self.reply is not None

    def claim(self) -> None:
        """What the reply grants is recorded elsewhere from here on: there is nothing to undo."""
        self.reply = None
        self.is_queued = False


class Link:
    """Takes over a connected and admitted socket.

    Args:
        endpoint: For error messages.
        connection: The socket; nothing after WELCOME has been read from it.
        drain: What waits to be sent along, taken under the send lock.
        on_orphan: Undoes a reply (kind, body) that nobody waits for. May only add to the outbox.
        on_abandoned: Tells the store not to make a request wait any longer. May only add to the
            outbox.
        on_unread: Has :meth:`collect_orphans` called soon, by a thread that does not wait here.
    """

    def __init__(
        self,
        endpoint: str,
        connection: socket.socket,
        *,
        drain: Callable[[], bytes],
        on_orphan: Callable[[int, memoryview], None],
        on_abandoned: Callable[[int], None],
        on_unread: Callable[[], None],
    ) -> None:
        self.endpoint = endpoint
        self._socket = connection
        tick = struct.pack("@ll", 0, int(_TICK_S * 1e6))  # struct timeval
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)
        self._drain = drain
        self._on_orphan = on_orphan
        self._on_abandoned = on_abandoned
        self._on_unread = on_unread
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._calls_lock = threading.Lock()  # makes "find the call and fill it" one step
        self._abandoned: set[int] = set()  # undone before the reply
        self._send_lock = threading.Lock()
        # Bytes under way, and how many of them each send took.
        self._output: tuple[bytes, list[int]] = (b"", [])
        self._read_lock = threading.Lock()
        # The start of a frame, then what was received after it and not yet cut; whole frames.
        self._input: tuple[list[bytes], deque[Frame]] = ([b""], deque())
        self._end: StoreClosedError | StoreProtocolError | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests can be made. A server's death shows at the next one."""
        return self._end is None

    def check_open(self) -> None:
        """Raise what ended the connection, if anything did."""
        if self._end is not None:
            # A new one each time: a raised exception grows a traceback.
            raise type(self._end)(self._end.endpoint, self._end.reason)

    def begin(self) -> Call:
        """A call to make with :meth:`request`. Undo it if anything goes wrong before its claim."""
        self.check_open()
        call = Call(next(self._numbers))
        self._calls[call.number] = call
        return call

    def request(self, call: Call, pack: Callable[[int], bytes], timeout_s: float) -> Reply:
        """Send what ``pack`` makes of the call's number and wait for the reply.

        Raises:
            StoreClosedError: the connection is over.
            StoreProtocolError: the server sent what it should not.
            StoreTimeoutError: no reply in ``timeout_s``.
        """
        deadline_s = time.monotonic() + timeout_s
        self._send(pack(call.number), deadline_s, timeout_s, call)
        self._wait(call, deadline_s, timeout_s)
        del self._calls[call.number]
        self._promote()
        assert call.reply is not None
        return call.reply

    def undo(self, call: Call) -> None:
        """Give back what the reply granted and nobody claimed, now or when it comes."""
        with self._calls_lock:
            self._calls.pop(call.number, None)
            if call.is_queued and call.reply is None:
                self._abandoned.add(call.number)
        if call.reply is not None:
            self._on_orphan(*call.reply)
        elif call.is_queued:
            self._on_abandoned(call.number)
        self._promote()

    def post(self, data: bytes, timeout_s: float) -> None:
        """Send frames without reply, after all of the outbox. Raises like :meth:`request`."""
        self.check_open()
        self._send(data, time.monotonic() + timeout_s, timeout_s)

    def collect_orphans(self) -> None:
        """Take in replies that nobody waits for, until all have come or another thread reads.

        For the thread that ``on_abandoned`` and ``on_unread`` wake.
        """
        if self._abandoned and self._read_while(lambda: bool(self._abandoned)):
            self._promote()

    def close(self, reason: str) -> None:
        """End the connection; threads that wait on it raise ``StoreClosedError`` at once."""
        self._fail(StoreClosedError(self.endpoint, reason))
        # Threads inside send() or recv() were ended by the shutdown and are on their way out.
        with self._send_lock, self._read_lock:
            self._socket.close()

    def fail(self, reason: str) -> None:
        """The server sent what it should not: the connection is over."""
        self._fail(StoreProtocolError(self.endpoint, reason))

    def forget_after_fork(self) -> None:
        """In a forked child: the connection is the parent's, so let go of it without a word.

        The parent's threads may have held any lock at the fork; none is touched.
        """
        self._end = StoreClosedError(
            self.endpoint, "it was opened by the parent process, before a fork; connect anew"
        )
        self._socket.close()

    def _send(
        self, data: bytes, deadline_s: float, timeout_s: float, call: Call | None = None
    ) -> None:
        taken: list[bool] = []
        try:
            if not _acquire(self._send_lock, taken, _patience_s(deadline_s)):
                raise StoreTimeoutError(self.endpoint, timeout_s)
            queued, counts = self._output
            rest = queued[sum(counts) :]
            self._output = queued, counts = b"".join((rest, self._drain(), data)), []
            if call is not None:
                call.is_queued = True
            while (sent := sum(counts)) < len(queued):
                self.check_open()
                try:
                    # The call and its result meet in C: an interrupt cannot fall between them.
                    counts.extend(map(self._socket.send, (memoryview(queued)[sent:],)))
                except BlockingIOError:
                    if time.monotonic() >= deadline_s:
                        raise StoreTimeoutError(self.endpoint, timeout_s) from None
                except OSError as error:
                    self._read_last_words()
                    self._fail(StoreClosedError(self.endpoint, f"sending failed ({error})"))
            self._output = b"", []
        finally:
            if taken and taken[0]:
                self._send_lock.release()

    def _wait(self, call: Call, deadline_s: float, timeout_s: float) -> None:
        # Set before the first look at the read lock: a reader that leaves then finds this slot to
        # wake.
        call.is_waiting = True
        while call.reply is None:
            self.check_open()
            if time.monotonic() >= deadline_s:
                raise StoreTimeoutError(self.endpoint, timeout_s)
            if self._read_while(lambda: not call.has_reply() and time.monotonic() < deadline_s):
                continue
            try:
                call.wakes.get(timeout=_patience_s(deadline_s))
            except Empty:
                pass  # The deadline came; the loop sees it.
        call.is_waiting = False

    def _read_while(self, is_wanted: Callable[[], bool]) -> bool:
        """Be the reader while that is wanted and the line is up; False if another thread is."""
        taken: list[bool] = []
        try:
            if not _acquire(self._read_lock, taken, 0):
                return False
            while self._end is None and is_wanted():
                self._read()
        finally:
            if taken and taken[0]:
                self._read_lock.release()
        return True

    def _read(self) -> None:
        """Take what has come, waiting a tick at most, and hand it out. Under the read lock."""
        chunks, frames = self._input
        if not frames:
            if len(chunks) == 1:
                try:
                    chunks.extend(map(self._socket.recv, _READ_SIZES))  # As in _send().
                except BlockingIOError:
                    return
                except OSError as error:
                    self._fail(StoreClosedError(self.endpoint, f"receiving failed ({error})"))
                    return
            if not chunks[-1]:
                self._fail(StoreClosedError(self.endpoint, "the server hung up"))
                return
            data = b"".join(chunks)
            try:
                cut, used = split_frames(data)
            except MalformedFrameError as error:
                self._fail(StoreProtocolError(self.endpoint, str(error)))
                return
            frames = deque(cut)
            self._input = [data[used:]], frames
        while frames:
            self._deliver(*frames[0])
            frames.popleft()

    def _deliver(self, kind: int, number: int, body: memoryview) -> None:
        if kind == Kind.REFUSED:
            self._fail(StoreClosedError(self.endpoint, unpack_refused(body)))
            return
        # After an interrupt the frame at the head may come here again, when a thread may have left
        # with it already. What was abandoned is handed over once: as it leaves the set.
        with self._calls_lock:
            call = self._calls.get(number)
            if call is not None:
                call.reply = kind, body
            is_orphan = number in self._abandoned
            self._abandoned.discard(number)
        if is_orphan:
            self._on_orphan(kind, body)
        elif call is not None and call.is_waiting:
            call.wakes.put(None)

    def _read_last_words(self) -> None:
        """The server hung up while we sent: what it said before tells more than a broken pipe."""
        reads = itertools.count()
        self._read_while(lambda: next(reads) < _LAST_READS_MAX)

    def _fail(self, error: StoreClosedError | StoreProtocolError) -> None:
        if self._end is None:
            self._end = error
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # It is over already.
        for call in list(self._calls.values()):
            call.wakes.put(None)

    def _promote(self) -> None:
        """Wake one waiting thread, to be the next reader."""
        for call in list(self._calls.values()):
            if call.is_waiting and call.reply is None:
                call.wakes.put(None)
                return
        if self._abandoned:
            self._on_unread()


def _acquire(lock: threading.Lock, taken: list[bool], timeout_s: float) -> bool:
    """Acquire a lock and note it in ``taken`` by one C call, which no interrupt can divide."""
    taken.extend(map(lock.acquire, (True,), (timeout_s,)))
    return taken[-1]


def _patience_s(deadline_s: float) -> float:
    """What is left until the deadline, as locks and queues like it."""
    return min(max(0.0, deadline_s - time.monotonic()), threading.TIMEOUT_MAX)
