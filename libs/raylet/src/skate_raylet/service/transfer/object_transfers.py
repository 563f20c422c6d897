"""Carries out what the pull planner decides: the shell between processes, store and other nodes.

::

    PullObject -> planner -> room in the store -> ranges, each on a thread -> seal -> PullEnded

The planner and this class live on the daemon's event loop. Whatever may wait (the store, sockets)
runs on threads, and comes back to the loop as an event.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import assert_never

import msgspec

from skate_object_store import FullReason, ObjectExistsError, StoreError, StoreFullError
from skate_object_store.protocol import pack_fullness
from skate_raylet.machine import pull_events as on
from skate_raylet.machine.pull_config import PullConfig, PullStatistics
from skate_raylet.machine.pull_planner import PullPlanner
from skate_raylet.service.transfer.arrivals import Arrivals
from skate_raylet.service.transfer.copy_deletions import CopyDeletions
from skate_raylet.service.transfer.copy_keeping import CopyKeeping
from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.object_server import ObjectServer
from skate_raylet.service.transfer.pages_ahead import SIZE_BYTES_MIN, PagesAhead
from skate_raylet.service.transfer.peer_connections import PeerConnections
from skate_raylet.service.transfer.range_fetch import RangeFetch, RangeOutcome
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import ID_BYTES_MAX, OBJECT_BYTES_MAX
from skate_rpc import node_protocol as node
from skate_rpc.listener import TokenListener

_log = logging.getLogger(__name__)

ROOM_TRY_S = 1.0
"""How long the store may wait for room at a time; it may spill or evict meanwhile."""
STORE_THREADS = 16
PAGE_THREADS = 16
FETCH_THREADS = 64
ORDER_THREADS = 16
IDLE_SWEEP_S = 10.0
WAKEUP_MIN_S = 0.001

_FULL_KINDS = {
    **dict.fromkeys(FullReason, on.RoomRefusal.FULL),  # memory, the machine or the disk
    FullReason.TOO_LARGE: on.RoomRefusal.TOO_LARGE,
}


class TransferStatistics(msgspec.Struct, frozen=True):
    """Counts of one moment."""

    pulls: PullStatistics
    pulled_bytes_total: int
    served_bytes_total: int
    peers: int  # connections of other nodes


class ObjectTransfers:
    """One node's transfers. All methods on the loop's thread.

    ``send(process_id, message)`` reaches a process of this node.
    """

    def __init__(
        self,
        node_id: bytes,
        token: bytes,
        store_endpoint: str,
        config: PullConfig,
        send: Callable[[bytes, object], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._token = token
        self._send = send
        self._planner = PullPlanner(config, node_id)
        self._store = StoreAccess(store_endpoint, token)
        self._store_threads = DaemonThreads("skate-pull-store", STORE_THREADS)
        self._page_threads = DaemonThreads("skate-pull-pages", PAGE_THREADS)
        self._fetch_threads = DaemonThreads("skate-pull", FETCH_THREADS)
        self._arrivals = Arrivals()
        self._server = ObjectServer(self._store, self._arrivals)
        self._connections = PeerConnections(token)
        self._order_threads = DaemonThreads("skate-orders", ORDER_THREADS)
        parts = (self._store, self._connections, self._order_threads)
        self._deletions = CopyDeletions(node_id, *parts)
        self._keeping = CopyKeeping(node_id, *parts, self._send_soon)
        self._listener: TokenListener | None = None
        self._endpoints: dict[bytes, str] = {}
        self._copies: dict[bytes, memoryview] = {}  # being written
        self._pages: dict[bytes, PagesAhead] = {}  # of them
        self._fetches: dict[int, RangeFetch] = {}  # by range id
        self._timer: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._pulled_bytes_total = 0

    def start(self, endpoint: str) -> str:
        """Serve this node's objects; returns the bound endpoint. Raises ``OSError``."""
        self._listener = TokenListener(
            endpoint, self._token, asyncio.get_running_loop(), self._server.serve
        )
        return self._listener.endpoint

    def stop_serving(self) -> None:
        """Take no new peers, and hang up on those there are."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._server.close()

    async def close(self) -> None:
        """End everything; pulls are not answered any more."""
        self._is_closed = True
        self.stop_serving()
        self._arrivals.close()
        for timer in (self._timer, self._sweep):
            if timer is not None:
                timer.cancel()
        for fetch in self._fetches.values():
            fetch.stop()
        for pages in self._pages.values():
            pages.stop()
        self._deletions.close()
        self._keeping.close()
        self._connections.close()
        await asyncio.to_thread(self._store.close)

    # ---- what happens ----

    def pull(self, process_id: bytes, message: node.PullObject) -> None:
        """A process of this node needs a copy of an object here."""
        problem = _problem_of(message)
        if problem:
            self._send(process_id, node.PullEnded(message.pull_id, "lost", problem))
            return
        self._tell(
            on.PullRequested(
                process_id,
                message.pull_id,
                message.object_id,
                message.size_bytes,
                message.owner_id,
                tuple(message.node_ids),
                message.priority,
                tuple(message.arriving_at),
            )
        )

    def cancel(self, process_id: bytes, message: node.CancelPull) -> None:
        """A process no longer waits."""
        self._tell(on.PullCancelled(process_id, message.pull_id))

    def delete_copies(self, message: node.DeleteCopies) -> None:
        """An owner on this node has released objects."""
        self._deletions.delete(message.copies)

    def keep_copies(self, process_id: bytes, message: node.KeepCopies) -> None:
        """An owner on this node has lost primary copies, and chosen new ones."""
        self._keeping.keep(process_id, message.copies)

    def process_ended(self, process_id: bytes) -> None:
        """A process of this node is gone."""
        self._tell(on.ProcessGone(process_id))

    def owner_died(self, owner_id: bytes, why: str) -> None:
        """Some process of the cluster died; what it owned is not worth fetching."""
        self._tell(on.OwnerGone(owner_id, why))

    def node_seen(self, node_id: bytes, endpoint: str) -> None:
        """A node is alive and serves objects there; repeating it changes nothing."""
        if endpoint and self._endpoints.get(node_id) != endpoint:
            self._endpoints[node_id] = endpoint
            self._deletions.node_seen(node_id, endpoint)
            self._keeping.node_seen(node_id, endpoint)
            self._tell(on.NodeSeen(node_id))

    def node_died(self, node_id: bytes, why: str) -> None:
        """A node is dead."""
        self._endpoints.pop(node_id, None)
        self._deletions.node_died(node_id)
        self._keeping.node_died(node_id)
        self._tell(on.NodeGone(node_id, why))

    def statistics(self) -> TransferStatistics:
        """O(1)."""
        return TransferStatistics(
            pulls=self._planner.statistics(),
            pulled_bytes_total=self._pulled_bytes_total,
            served_bytes_total=self._server.served_bytes_total,
            peers=self._server.peers(),
        )

    # ---- the planner ----

    def _tell(self, event: on.PullEvent) -> None:
        if self._is_closed:
            return
        for command in self._planner.handle(event, self._loop.time()):
            self._perform(command)
        self._plan_wakeup()

    def _tell_soon(self, event: on.PullEvent) -> None:
        """From any thread."""
        self._call_soon(partial(self._tell, event))

    def _send_soon(self, process_id: bytes, message: node.CopiesKept) -> None:
        """From any thread."""
        self._call_soon(partial(self._send, process_id, message))

    def _call_soon(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            if not self._is_closed:
                raise
            # The loop is closed, with everything that the news was about.

    def _plan_wakeup(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self._planner.next_wakeup()
        if wakeup is not None:
            at_s = max(wakeup[0], self._loop.time() + WAKEUP_MIN_S)
            self._timer = self._loop.call_at(at_s, self._tell, on.TimePassed())

    def _perform(self, command: on.PullCommand) -> None:
        match command:
            case on.MakeRoom(object_id):
                self._arrivals.begin(object_id)
                self._store_threads.run(partial(self._make_room, command))
            case on.FetchRange():
                self._start_fetch(command)
            case on.StopRange(_, range_id):
                self._fetches[range_id].stop()
            case on.SealCopy(object_id):
                self._arrivals.end(object_id, is_whole=True)
                self._end_copy(object_id)
                self._store_threads.run(partial(self._seal, object_id))
            case on.DropCopy(object_id):
                self._arrivals.end(object_id, is_whole=False)
                self._end_copy(object_id)
                self._store_threads.run(partial(self._drop, object_id))
            case on.EndPull(process_id, pull_id, kind, message, lost_at, fullness):
                if kind not in {"", "cancelled"}:
                    _log.info("event=pull_failed kind=%s why=%r", kind, message)
                self._send(
                    process_id, node.PullEnded(pull_id, kind, message, list(lost_at), fullness)
                )
            case _:
                assert_never(command)

    # ---- the store, on threads ----

    def _make_room(self, command: on.MakeRoom) -> None:
        object_id = command.object_id
        refusal, message, fullness = on.RoomRefusal.FAILED, "", b""
        try:
            view = self._store.client().create(
                object_id,
                command.size_bytes,
                evictable=True,
                owner=command.owner_id,
                wait_s=ROOM_TRY_S,
                late_pages=command.size_bytes >= SIZE_BYTES_MIN,
            )
        except ObjectExistsError as error:
            refusal = on.RoomRefusal.SEALED if error.is_sealed else on.RoomRefusal.BEING_WRITTEN
            message = str(error)
        except StoreFullError as error:
            refusal, message = _FULL_KINDS[error.reason], str(error)
            fullness = pack_fullness(error.fullness)
        except (StoreError, ValueError) as error:
            message = str(error)
        else:
            self._call_soon(partial(self._room_made, object_id, view))
            return
        self._arrivals.end(object_id, is_whole=False)
        self._tell_soon(on.RoomRefused(object_id, refusal, message, fullness))

    def _room_made(self, object_id: bytes, view: memoryview) -> None:
        self._copies[object_id] = view
        pages = PagesAhead(object_id, len(view), partial(self._room_withdrawn, object_id))
        self._pages[object_id] = pages
        if not self._is_closed:
            self._arrivals.has_room(object_id, view[:])
            if pages.are_late:
                self._page_threads.run(partial(pages.run, self._store))
        self._tell(on.RoomMade(object_id))

    def _room_withdrawn(self, object_id: bytes, error: StoreError) -> None:
        """On a thread: the store has no memory for the rest of a copy."""
        fullness = pack_fullness(error.fullness) if isinstance(error, StoreFullError) else b""
        self._tell_soon(on.RoomWithdrawn(object_id, str(error), fullness))

    def _end_copy(self, object_id: bytes) -> None:
        self._pages.pop(object_id).stop()
        self._copies.pop(object_id).release()

    def _seal(self, object_id: bytes) -> None:
        problem = ""
        try:
            self._store.client().seal(object_id)
        except StoreError as error:
            problem = str(error)
        self._tell_soon(on.CopySealed(object_id, problem))

    def _drop(self, object_id: bytes) -> None:
        try:
            self._store.client().abort(object_id)
        except StoreError as error:
            # Deleted meanwhile, or the store is gone: the room is not this node's to give back.
            _log.info("event=copy_not_dropped id=%s why=%r", object_id.hex(), str(error))
        self._tell_soon(on.CopyDropped(object_id))

    # ---- ranges, on threads ----

    def _start_fetch(self, command: on.FetchRange) -> None:
        object_id, range_id = command.object_id, command.range_id
        end = command.offset + command.length
        fetch = RangeFetch(
            object_id,
            command.size_bytes,
            command.offset,
            self._copies[object_id][command.offset : end],
            self._pages[object_id],
            partial(self._tell_soon, on.RangeProgressed(object_id, range_id)),
            partial(self._arrivals.received, object_id),
            is_arriving=command.is_arriving,
        )
        self._fetches[range_id] = fetch
        endpoint = self._endpoints[command.node_id]
        self._fetch_threads.run(partial(self._fetch, fetch, object_id, range_id, endpoint))

    def _fetch(self, fetch: RangeFetch, object_id: bytes, range_id: int, endpoint: str) -> None:
        try:
            outcome = fetch.run(endpoint, self._connections)
        except Exception as error:  # noqa: BLE001  the thread's boundary: whoever waits must hear
            _log.exception("event=fetch_failed endpoint=%s", endpoint)
            outcome = RangeOutcome(0, repr(error))
        self._call_soon(partial(self._fetched, object_id, range_id, outcome))

    def _fetched(self, object_id: bytes, range_id: int, outcome: RangeOutcome) -> None:
        del self._fetches[range_id]
        self._pulled_bytes_total += outcome.received_bytes
        if self._sweep is None and not self._is_closed:
            self._sweep = self._loop.call_later(IDLE_SWEEP_S, self._close_idle)
        if not outcome.problem:
            self._tell(on.RangeFetched(object_id, range_id))
            return
        received_bytes, problem, is_absent = (
            outcome.received_bytes,
            outcome.problem,
            outcome.is_absent,
        )
        self._tell(on.RangeFailed(object_id, range_id, received_bytes, problem, is_absent))

    def _close_idle(self) -> None:
        self._sweep = None
        if self._connections.close_idle():
            self._sweep = self._loop.call_later(IDLE_SWEEP_S, self._close_idle)


def _problem_of(message: node.PullObject) -> str:
    """What is malformed in it; empty: nothing."""
    if not 0 < len(message.object_id) <= ID_BYTES_MAX or len(message.owner_id) > ID_BYTES_MAX:
        return "The object's or the owner's id is malformed."
    if not 0 <= message.size_bytes <= OBJECT_BYTES_MAX:
        return f"An object can not have {message.size_bytes} bytes."
    return ""
