"""The store's server: a listener, one thread around a selector, and its host's calls.

Before it: a node, or a test, chose a socket path and a capacity. After it: clients connect to
:attr:`StoreServer.endpoint`. The thread owns the table; other threads post closures to it.
"""

from __future__ import annotations

import logging
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from skate_object_store.constants import OWNER_BYTES_MAX
from skate_object_store.errors import StoreClosedError
from skate_object_store.handshake import HandshakeFactory
from skate_object_store.machine.facts import Holder, ObjectRecord
from skate_object_store.machine.records import TableStatistics
from skate_object_store.machine.table import ObjectTable
from skate_object_store.service.arena import Arena
from skate_object_store.service.committer import Committer, Outcome
from skate_object_store.service.config import StoreConfig
from skate_object_store.service.dispatcher import Dispatcher
from skate_object_store.service.listener import Listener
from skate_object_store.service.pages import PageKeeper
from skate_object_store.service.peer import Peer
from skate_object_store.service.reception import Reception
from skate_object_store.service.spill_backends import SpillBackend, open_backend
from skate_object_store.service.spiller import ReadEnded, Spiller, Written

logger = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class StoreStatistics(TableStatistics):
    """Counts of one moment: the table's, and the process side's."""

    committed_bytes: int
    """Arena bytes that have pages, used or not."""
    connections: int
    """Open connections, admitted or not."""
    refused_connections_total: int
    """Ended before they were admitted."""


class StoreServer:
    """A shared-memory store on a Unix socket, run by its own thread.

    Args:
        socket_path: Where to listen; the directory must not be writable by others and is made,
            0700, if absent.
        capacity_bytes: Size of the arena. It is address space only; pages follow use.
        handshake: Makes the server's side of a proof for each connection. None: same user is proof
            enough. In both cases another user's process is refused by ``SO_PEERCRED`` first.
        config: How the store treats memory, and where it spills to.
        spill_backend: Where it spills to instead; closed with the server.

    Raises:
        OSError: the arena cannot be made, or the place to spill to cannot be used.
    """

    def __init__(
        self,
        socket_path: str,
        capacity_bytes: int,
        *,
        handshake: HandshakeFactory | None = None,
        config: StoreConfig | None = None,
        spill_backend: SpillBackend | None = None,
    ) -> None:
        self._config = config or StoreConfig()
        spill = self._config.spill
        has_spill = spill.is_on or spill_backend is not None
        self._table = ObjectTable(capacity_bytes, spill if has_spill else None)
        self._arena = Arena(capacity_bytes, self._config.arena_directory)
        self._spiller: Spiller | None = None
        if has_spill:
            try:
                backend = open_backend(spill) if spill_backend is None else spill_backend
            except BaseException:
                self._arena.close()
                raise
            self._spiller = Spiller(backend, self._arena.fd, self._on_written, self._on_read)
        self._socket_path = socket_path
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._calls: deque[Callable[[], None]] = deque()
        self._calls_lock = threading.Lock()
        self._has_ended = False
        self._is_stopping = False
        self._committer = Committer(self._arena, self._on_outcome)
        self._pages = PageKeeper(self._table.allocator, self._config, self._committer)
        poison = self._arena.poison if self._config.is_poisoning else None
        self._reception = Reception(self._selector, self._arena, handshake)
        self._dispatcher = Dispatcher(
            self._table, self._pages, self._reception.send, poison, self._spiller
        )

    @property
    def endpoint(self) -> str:
        """What clients connect to: ``unix:`` and the path."""
        return f"unix:{self._socket_path}"

    @property
    def is_closed(self) -> bool:
        """Whether it has stopped serving, by :meth:`close` or by a failure of its thread."""
        return self._is_stopping or self._has_ended

    def start(self) -> None:
        """Listen and serve. Returns when clients can connect.

        Raises:
            OSError: the socket cannot be made there.
            ValueError: the path is too long for a socket, or its directory is open to others.
        """
        self._reception.open(Listener(self._socket_path), self._dispatcher)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, self._drain_wakes)
        self._thread = threading.Thread(target=self._run, name="skate-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and let go of the memory. Clients see it at once; their live views stay valid."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._committer.close()
        if self._spiller is not None:
            self._spiller.close()
        self._reception.close()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()
        self._arena.close()

    def __enter__(self) -> StoreServer:
        try:
            self.start()
        except (OSError, ValueError):
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # For the hosting process; every method may be called from any thread.

    def release_owner(self, owner: bytes) -> int:
        """Delete everything that bears this owner's tag; returns the bytes freed at once.

        Objects that clients still view are freed when the last view goes and do not count.

        Raises:
            ValueError: the tag is empty: that would name everything that nobody owns.
            StoreClosedError: the server is closed, or its thread does not answer.
        """
        if not 0 < len(owner) <= OWNER_BYTES_MAX:
            raise ValueError(f"an owner tag has 1 to {OWNER_BYTES_MAX} bytes, got {len(owner)}")

        def release() -> int:
            before = self._table.allocator.used_bytes
            now_s = time.monotonic()
            effects = self._table.release_owner(owner, now_s)
            freed = before - self._table.allocator.used_bytes
            self._dispatcher.perform(effects, now_s)
            return freed

        return self._call(release)

    def statistics(self) -> StoreStatistics:
        """Counts of this moment. O(objects). Raises ``StoreClosedError``."""

        def count() -> StoreStatistics:
            table = self._table.statistics()
            return StoreStatistics(
                **{name: getattr(table, name) for name in TableStatistics.__dataclass_fields__},
                committed_bytes=self._pages.committed_bytes,
                connections=len(self._reception),
                refused_connections_total=self._reception.refused_total,
            )

        return self._call(count)

    def holders(self, limit: int = 100) -> list[Holder]:
        """The biggest objects that cannot be evicted, biggest first. O(objects)."""
        return self._call(lambda: self._table.holders(time.monotonic(), limit))

    def objects(self, limit: int = 1000) -> list[ObjectRecord]:
        """Every object once, in memory or on disk, the biggest first. O(objects)."""
        return self._call(lambda: self._table.objects(time.monotonic(), limit))

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table contradicts itself. O(everything); for tests."""
        self._call(self._table.check_invariants)

    def _call(self, function: Callable[[], _Result]) -> _Result:
        """Run on the server's thread and wait for the result."""
        outcome: Future[_Result] = Future()

        def run() -> None:
            try:
                outcome.set_result(function())
            except Exception as error:  # noqa: BLE001  Boundary: the caller's thread gets it.
                outcome.set_exception(error)

        if self._thread is None:
            raise StoreClosedError(self.endpoint, "the server was not started")
        if self._thread is threading.current_thread():
            return function()
        self._post(run)
        try:
            return outcome.result(_CALL_TIMEOUT_S)
        except TimeoutError:
            raise StoreClosedError(self.endpoint, "the server's thread does not answer") from None

    def _post(self, call: Callable[[], None]) -> None:
        with self._calls_lock:
            if self._has_ended:
                raise StoreClosedError(self.endpoint, "the server is not running")
            self._calls.append(call)
        self._wake()

    def _wake(self) -> None:
        try:
            self._wake_sender.send(b"\0")
        except OSError:
            pass  # Full: a wake is under way already. Closed: nobody is left to wake.

    def _on_outcome(self, outcome: Outcome) -> None:
        try:
            self._post(lambda: self._dispatcher.settle(outcome, time.monotonic()))
        except StoreClosedError:
            pass  # Nobody waits for pages any more.

    def _on_written(self, outcome: Written) -> None:
        try:
            self._post(lambda: self._dispatcher.written(outcome, time.monotonic()))
        except StoreClosedError:
            pass  # Everything on disk goes now.

    def _on_read(self, outcome: ReadEnded) -> None:
        try:
            self._post(lambda: self._dispatcher.read_ended(outcome, time.monotonic()))
        except StoreClosedError:
            pass  # Nobody waits for it any more.

    # The loop's thread from here on.

    def _run(self) -> None:
        try:
            self._pages.commit_ahead(time.monotonic())
            while not self._is_stopping:
                self._step()
        except Exception:  # Boundary: the thread. Clients must see the end rather than wait.
            logger.exception("event=store_thread_failed endpoint=%s", self.endpoint)
        finally:
            self._reception.close()
            with self._calls_lock:
                self._has_ended = True
            while self._calls:
                self._calls.popleft()()

    def _step(self) -> None:
        for key, events in self._selector.select(self._select_timeout_s()):
            if isinstance(key.data, Peer):
                self._reception.serve(key.data, events)
            else:
                key.data()
        while self._calls:
            self._calls.popleft()()
        now_s = time.monotonic()
        self._dispatcher.expire(now_s)
        self._reception.expire(now_s)
        self._reception.flush()

    def _select_timeout_s(self) -> float | None:
        deadlines = (self._dispatcher.next_deadline_s(), self._reception.next_deadline_s())
        first_s = min((at_s for at_s in deadlines if at_s is not None), default=math.inf)
        return None if first_s == math.inf else max(0.0, first_s - time.monotonic())

    def _drain_wakes(self) -> None:
        try:
            self._wake_receiver.recv(4096)
        except BlockingIOError:
            pass  # Another step drained it.
