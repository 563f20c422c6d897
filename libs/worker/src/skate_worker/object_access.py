"""``put``, ``get`` and ``wait``: a member's dealings with objects.

Before it: ``membership``. After it: ``task_submission``, whose large arguments are objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from skate_object_store import SpilledObjectLostError
from skate_rpc import node_protocol as node
from skate_rpc.wait_report import DEADLOCK, Explanation
from skate_worker.arrivals import Arrivals
from skate_worker.call_site import call_site
from skate_worker.context import running_task
from skate_worker.errors import (
    GetTimeoutError,
    LocalRayletDiedError,
    ObjectLostError,
    SkateSystemError,
)
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry, Owner
from skate_worker.membership import Membership
from skate_worker.object_ref import ObjectRef
from skate_worker.ownership import INLINE_MAX_BYTES, contained_entries
from skate_worker.serialization import (
    ErrorValue,
    Serialized,
    deserialize,
    serialize,
)
from skate_worker.task_protocol import Resolved
from skate_worker.waiting import ReadyCount
from skate_worker.why import explain_object

if TYPE_CHECKING:
    pass

_log = logging.getLogger("skate")

# A worker that waits longer lends its CPU; most waits are shorter than the message.
BLOCKED_AFTER_S = 0.001
LOADERS_MAX = 16  # futures whose bytes are fetched from other nodes at once
WARN_BLOCKING_VARIABLE = "SKATE_WARN_BLOCKING_GET_INSIDE_ASYNC"
SEAL_WAIT_S = 0.25  # at a time, so that news of the owner's death are seen
SEAL_WAITS = 8
EXPLAINED_FROM_S = 1.0  # a get() with a shorter timeout is one that looks again and again
WATCH_AFTER_S = 5.0  # a driver's wait that lasts so long is looked into
WATCH_PAUSE_MAX_S = 600.0  # the pauses between two looks double, up to this
FEW_POSITIONS = 16  # up to here, deleting from a copied list beats building it anew


class NotHereError(ObjectLostError):
    """The value is stored, but not in this node's store: it has to be brought. Internal."""


class BlockedThread(NamedTuple):
    """A thread that runs a task and waits for objects."""

    task_id: bytes
    entries: Sequence[Entry]
    needed: int  # -1: all of them
    since_s: float  # monotonic
    has_timeout: bool


class ObjectAccess(Membership):
    """A member that reads and writes objects. Thread-safe."""

    blocked: dict[int, BlockedThread]  # by thread
    _told_circles: dict[tuple[str, ...], None]

    records_sites = False  # which line made each object is noted, and told with its references
    _loaders: ThreadPoolExecutor | None = None
    _warns_blocking = os.environ.get(WARN_BLOCKING_VARIABLE, "1") != "0"

    # ---- values ----

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value and own it; raises ``TypeError`` or ``StoreFullError``."""
        serialized = serialize(value)
        return self._own_value(self.new_put_id(), serialized)

    def new_put_id(self) -> bytes:
        """The id of the next object that this process puts."""
        return self._put_prefix + (0x8000_0000 | next(self._put_numbers)).to_bytes(4, "big")

    def _own_value(self, object_id: bytes, serialized: Serialized) -> ObjectRef[Any]:
        ownership = self.ownership
        if serialized.total_bytes > INLINE_MAX_BYTES:
            site = call_site()
            ownership.put_parts(object_id, serialized, bytes(self.worker_id), site)
            ownership.sites[object_id] = site
            state, data = STORED, None
        else:
            state, data = INLINE, serialized.to_bytes()
        with ownership.lock:
            entry = ownership.table.own(object_id)
            entry.state = state
            entry.data = data
            entry.size_bytes = serialized.total_bytes
            if state == STORED:
                entry.node_id = ownership.node_id
            if serialized.contained:
                entry.contained = contained_entries(serialized)
                for inner in entry.contained:
                    inner.pins += 1
        return ObjectRef(self, entry)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None = None) -> list[Any]:
        """The values, in order. Raises the first error, at once when it is known.

        Raises:
            GetTimeoutError: not all values came within ``timeout_s``.
        """
        entries = [ref._entry for ref in refs]
        pending = [entry for entry in entries if entry.state == PENDING]
        ends_s: float | None = None
        if pending:
            if len(pending) < len(entries):
                self._raise_first_error(entries)
            if timeout_s is not None:
                ends_s = time.monotonic() + timeout_s
            self._wait_for(pending if not self.ownership.has_remote else entries, timeout_s)
        try:
            values = [self._load(entry) for entry in entries]
        except NotHereError:
            if timeout_s is not None and ends_s is None:
                ends_s = time.monotonic() + timeout_s
            views = self.bring(entries, ends_s, node.PULL_FOR_GET)
            values = [
                deserialize(views[entry]) if entry in views else self._load(entry)
                for entry in entries
            ]
        if self.ownership.untold:
            self.ownership.tell_untold(None, _nothing)
        return values

    def _raise_first_error(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.state == FAILED:
                self._load(entry)

    def _wait_for(self, pending: list[Entry], timeout_s: float | None) -> None:
        unique = list(dict.fromkeys(pending))
        count = self._count(len(unique), node.PULL_FOR_GET, stops_at_failure=True)
        for entry in self.ownership.watch_all(unique, count):
            count(entry)
        is_done = self._block(count, timeout_s, unique)
        if isinstance(count, Arrivals):
            count.stop()
        if not is_done:
            self.ownership.unwatch_all(unique, count)
            left = sum(1 for entry in unique if not self._is_readable(entry))
            raise GetTimeoutError(
                f"get() timed out after {timeout_s:g} s: {left} of {len(unique)} objects are not"
                f" ready yet.{self._why_late(unique, timeout_s)}"
            )
        if any(entry.state == FAILED for entry in unique):
            self.ownership.unwatch_all(unique, count)
            self._raise_first_error(unique)
        if isinstance(count, Arrivals):
            for failure in count.failures.values():
                self.ownership.unwatch_all(unique, count)
                raise failure

    def _why_late(self, entries: list[Entry], timeout_s: float | None) -> str:
        """What this process alone knows of the first value that is missing."""
        if timeout_s is None or timeout_s < EXPLAINED_FROM_S:
            return ""
        for entry in entries:
            if entry.state == PENDING:
                return f" {self.reason_here(entry)} ref.why() says more."
        return ""

    def reason_here(self, entry: Entry) -> str:
        """A sentence on a value that is waited for; who submits tasks knows one."""
        return ""

    def _count(self, needed: int, priority: int, *, stops_at_failure: bool = False) -> ReadyCount:
        if self.ownership.has_remote:
            return Arrivals(needed, self.plane, priority, stops_at_failure=stops_at_failure)
        return ReadyCount(needed, stops_at_failure=stops_at_failure)

    def _is_readable(self, entry: Entry) -> bool:
        state = entry.state
        return state != PENDING and (state != STORED or self.plane.is_here(entry))

    def wait_for_entry(self, entry: Entry) -> None:
        """Wait until the entry is settled."""
        count = self.new_count()
        if self.ownership.watch(entry, count):
            try:
                self._block(count, None, [entry])
            finally:
                self.ownership.unwatch_all([entry], count)

    def new_count(self) -> ReadyCount:
        """What one thread waits at until it is called once."""
        return ReadyCount(1)

    def wait_at(self, count: ReadyCount) -> None:
        """Wait until ``count`` opens; a worker that waits long lends its CPU."""
        self._block(count, None)

    def _block(
        self,
        count: ReadyCount,
        timeout_s: float | None,
        entries: Sequence[Entry] = (),
        needed: int = -1,
    ) -> bool:
        """Wait at ``count``, for ``needed`` of ``entries`` (-1: all of them)."""
        executor = self.executor
        if executor is not None and self.stop_async_actor is not None:
            self._warn_blocking()
        if executor is None:
            return self._wait_watched(count, timeout_s, entries)
        if not executor.is_executing_here():
            return self._wait_noted(count, timeout_s, entries, needed)
        short_s = BLOCKED_AFTER_S if timeout_s is None else min(BLOCKED_AFTER_S, timeout_s)
        if count.wait(short_s):
            return True
        if timeout_s is not None and timeout_s <= short_s:
            return False
        with self._lent_cpu():
            left_s = None if timeout_s is None else timeout_s - short_s
            return self._wait_noted(count, left_s, entries, needed)

    @contextlib.contextmanager
    def _lent_cpu(self) -> Iterator[None]:
        """Inside, the running task's CPU is lent. On the main thread of a worker."""
        assert self.executor is not None
        self.executor.give_back_queue()
        self.raylet.post(node.Blocked())
        try:
            yield
        finally:
            self.raylet.post(node.Unblocked())

    # ---- for a task that is a coroutine, on the main thread; see ``async_tasks`` ----

    def begin_await(self, entry: Entry) -> int:
        """A coroutine begins to wait for the value; 0 where it is not a task's own loop."""
        if self.executor is None or not self.executor.is_executing_here():
            return 0
        number = next(self._await_numbers)
        self.awaited[number] = entry
        return number

    def end_await(self, number: int) -> None:
        """The wait to which ``begin_await`` gave this number is over."""
        del self.awaited[number]

    @contextlib.contextmanager
    def sleeping_loop(self) -> Iterator[None]:
        """Inside, the event loop sleeps until the first of what is awaited comes."""
        key = threading.get_ident()
        self.blocked[key] = BlockedThread(
            running_task.get().task_id,
            list(self.awaited.values()),
            1,
            time.monotonic(),
            has_timeout=False,
        )
        try:
            with self._lent_cpu():
                yield
        finally:
            self.blocked.pop(key, None)

    def _wait_watched(
        self, count: ReadyCount, timeout_s: float | None, entries: Sequence[Entry]
    ) -> bool:
        """A driver's wait. One that lasts is looked into, and a deadlock is warned of."""
        pause_s, left_s = WATCH_AFTER_S, timeout_s
        while left_s is None or left_s > pause_s:
            if count.wait(pause_s):
                return True
            left_s = None if left_s is None else left_s - pause_s
            self._look_for_deadlock(entries)
            pause_s = min(2 * pause_s, WATCH_PAUSE_MAX_S)
        return count.wait(left_s)

    def _look_for_deadlock(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.state == PENDING:
                body = node.Why(entry.object_id.hex(), WATCH_AFTER_S)
                try:
                    self.raylet.call_soon("why", body, self._on_watched)
                except LocalRayletDiedError:
                    return  # whoever waits is told
                return

    def _on_watched(self, reply: node.ControlReply) -> None:
        if reply.error:
            return  # the GCS is away; it is asked again
        for found in msgspec.msgpack.decode(reply.body, type=list[Explanation]):
            if found.circle and found.circle not in self._told_circles:
                self._told_circles[found.circle] = None
                _log.warning("%s\n%s", DEADLOCK, "\n".join(found.circle))

    def why_object(self, entry: Entry, timeout_s: float) -> Explanation:
        """What is known of a value; see :meth:`ObjectRef.why`."""
        return explain_object(self, entry, timeout_s)

    def _wait_noted(
        self, count: ReadyCount, timeout_s: float | None, entries: Sequence[Entry], needed: int
    ) -> bool:
        """Wait, and let :mod:`skate_worker.wait_report` know for what."""
        task_id = running_task.get().task_id
        if not task_id or not entries:
            return count.wait(timeout_s)
        key = threading.get_ident()
        self.blocked[key] = BlockedThread(
            task_id, entries, needed, time.monotonic(), timeout_s is not None
        )
        try:
            return count.wait(timeout_s)
        finally:
            self.blocked.pop(key, None)

    def _warn_blocking(self) -> None:
        # Once a process, and only where the wait stops the event loop of an async actor.
        if self._warns_blocking and asyncio._get_running_loop() is not None:
            self._warns_blocking = False
            _log.warning(
                "get() or wait() blocks the event loop of this async actor at %s: no other call of"
                " it runs meanwhile. Use `await ref`, or asyncio.gather(*refs)"
                " (%s=0 silences this).",
                call_site(),
                WARN_BLOCKING_VARIABLE,
            )

    def _load(self, entry: Entry) -> Any:
        state = entry.state
        if state == INLINE:
            return deserialize(entry.data)
        if state == STORED:
            return deserialize(self._stored(entry))
        if entry.owner is None:
            self.ownership.errors.seen.add(entry.object_id)
        value = deserialize(entry.data)
        if isinstance(value, ErrorValue):
            try:
                raise value.to_raise()
            finally:
                # The error leads to this frame: with it in here they would hold each other, and all
                # references in the frames of the caller, until the garbage collector comes by.
                del value
        raise SkateSystemError(f"Object {entry.object_id.hex()} failed without an error.")

    def _stored(self, entry: Entry) -> memoryview:
        view = self._view(entry)
        if view is None:
            raise NotHereError(entry.object_id.hex(), detail="it is not in this node's store")
        return view

    def _view(self, entry: Entry) -> memoryview | None:
        """A view of a stored value, if it is in this node's store and whole."""
        try:
            return self._view_in_store(entry)
        except SpilledObjectLostError as error:
            # A damaged file is a lost copy: there may be another one, or a task that makes it anew.
            _log.warning("event=object_damaged error=%s", error)
            self.plane.note_damaged(entry, str(error))
            return None

    def _view_in_store(self, entry: Entry) -> memoryview | None:
        store = self.ownership.store
        assert store is not None
        object_id = entry.object_id
        if entry.node_id == self.ownership.node_id:
            # Whoever wrote it said so on another connection: its seal may still be on the way.
            for _ in range(SEAL_WAITS):
                view: memoryview | None = store.get([object_id], SEAL_WAIT_S)[0]
                if view is not None or entry.state != STORED:
                    return view
                if entry.owner is not None and self.plane.deaths.is_dead(entry.owner):
                    return None
            return None
        if object_id not in self.plane.here:
            return None
        view = store.get([object_id], 0)[0]
        if view is None:
            self.plane.here.pop(object_id, None)  # it was evicted
        return view

    def bring(
        self, entries: list[Entry], ends_s: float | None, priority: int
    ) -> dict[Entry, memoryview]:
        """Wait until every value can be read here; returns views of those that are stored.

        All that is on other nodes is pulled at the same time. Raises the first error, also of
        values that are not stored, or :class:`GetTimeoutError` at ``ends_s``.
        """
        unique = list(dict.fromkeys(entries))
        views: dict[Entry, memoryview] = {}
        while True:
            missing: list[Entry] = []
            for entry in unique:
                if entry.state == FAILED:
                    self._load(entry)
                if entry.state == STORED and entry not in views:
                    view = self._view(entry)
                    if view is not None:
                        views[entry] = view
                        continue
                if entry.state == PENDING or (entry.state == STORED and entry not in views):
                    missing.append(entry)
            if not missing:
                return views
            self._bring_once(missing, ends_s, priority)

    def _bring_once(self, missing: list[Entry], ends_s: float | None, priority: int) -> None:
        count = Arrivals(len(missing), self.plane, priority, stops_at_failure=True)
        for entry in self.ownership.watch_all(missing, count):
            if entry.state == STORED:
                count.fetch(entry)
            else:
                count(entry)
        left_s = None if ends_s is None else max(0.0, ends_s - time.monotonic())
        is_done = self._block(count, left_s, missing)
        count.stop()
        self.ownership.unwatch_all(missing, count)
        for failure in count.failures.values():
            raise failure
        if not is_done:
            left = sum(1 for entry in missing if not self._is_readable(entry))
            raise GetTimeoutError(
                f"get() timed out: {left} of {len(missing)} objects have not come from other"
                " nodes yet."
            )

    # ---- arguments of a task that runs here ----

    def has_here(self, resolved: list[Resolved]) -> bool:
        """Whether all arguments that are stored have their primary copy on this node."""
        here = self.ownership.node_id
        return all(item.stored_at is None or item.stored_at.node_id == here for item in resolved)

    def stored_arguments(self, resolved: list[Resolved]) -> dict[int | str, Any]:
        """The serialised values, by position, of a task's arguments that were in stores.

        Waits until all are on this node. Raises what the owner says of one that can not be had.
        """
        stored = {item.position: _entry_of(item) for item in resolved if not item.data}
        views = self.bring(list(stored.values()), None, node.PULL_FOR_ARGUMENT)
        return {position: views.get(entry, entry.data) for position, entry in stored.items()}

    def wait(
        self,
        refs: Sequence[ObjectRef[Any]],
        num_returns: int,
        timeout_s: float | None,
        fetch_local: bool = True,
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split ``refs`` into at most ``num_returns`` ready ones and the rest, both in the given
        order.
        """
        if fetch_local and self.ownership.has_remote:
            ready_at = self._wait_local(refs, num_returns, timeout_s)
            return _split(refs, ready_at)
        ready_at = _ready_positions(refs, num_returns)
        if len(ready_at) < num_returns:
            pending = [ref._entry for ref in refs if ref._entry.state == PENDING]
            if timeout_s == 0:
                # Asking the owners of borrowed ones is what makes them ready for a later look.
                self.ownership.watch_all([e for e in pending if e.owner is not None], _ignore)
            else:
                count = ReadyCount(num_returns - len(ready_at))
                for entry in self.ownership.watch_all(pending, count):
                    count(entry)
                self._block(count, timeout_s, pending, num_returns - len(ready_at))
                self.ownership.unwatch_all(pending, count)
            ready_at = _ready_positions(refs, num_returns)
        return _split(refs, ready_at)

    def _wait_local(
        self, refs: Sequence[ObjectRef[Any]], num_returns: int, timeout_s: float | None
    ) -> list[int]:
        """As :meth:`wait`, where values may lie on other nodes: those count when they are here."""
        entries = [ref._entry for ref in refs]
        unready = [entry for entry in entries if not self._is_readable(entry)]
        needed = num_returns - (len(entries) - len(unready))
        failed: set[Entry] = set()
        if needed > 0:
            count = Arrivals(needed, self.plane, node.PULL_FOR_WAIT)
            for entry in self.ownership.watch_all(unready, count):
                count(entry)
            self._block(count, timeout_s, unready, needed)
            self.ownership.unwatch_all(unready, count)
            # What can not be brought here is ready too: a get raises the reason. What is on its
            # way goes on: a program that looks again and again would get nothing otherwise.
            failed = set(count.failures)
        ready_at = [
            at for at, entry in enumerate(entries) if self._is_readable(entry) or entry in failed
        ]
        return ready_at[:num_returns]

    def is_ready(self, ref: ObjectRef[Any]) -> bool:
        """Whether a value or error is there, and on this node."""
        return self._is_readable(ref._entry)

    def when_ready(self, ref: ObjectRef[Any], callback: Callable[[ObjectRef[Any]], None]) -> None:
        """Call back once the value or error is on this node; at once on this thread if it is."""
        entry = ref._entry

        def settled(_: Entry) -> None:
            if self._is_readable(entry):
                callback(ref)
            else:
                self.plane.fetch(entry, lambda _: callback(ref))

        if not self.ownership.watch(entry, settled):
            settled(entry)

    def may_wait_for_bytes(self, ref: ObjectRef[Any]) -> bool:
        """Whether a ``get`` of this ready reference may have to fetch from another node."""
        entry = ref._entry
        return entry.state == STORED and not self.plane.is_here(entry)

    def where_it_may_wait(
        self, ref: ObjectRef[Any], load: Callable[[ObjectRef[Any]], None]
    ) -> None:
        """Run ``load`` here, or on a thread of its own if it may have to wait for bytes."""
        if not self.may_wait_for_bytes(ref):
            load(ref)
            return
        with self.ownership.lock:
            if self._loaders is None:
                self._loaders = ThreadPoolExecutor(LOADERS_MAX, "skate-loader")
        self._loaders.submit(load, ref)

    def close(self) -> None:
        """See :meth:`Membership.close`."""
        super().close()
        if self._loaders is not None:
            self._loaders.shutdown(wait=False, cancel_futures=True)

    # ---- references ----

    def note_dropped(self, entry: Entry) -> None:
        """See :meth:`Ownership.note_dropped`."""
        self.ownership.note_dropped(entry)

    def adopt(self, object_id: bytes, owner: Owner) -> ObjectRef[Any]:
        """A reference that was unpickled in this process."""
        return ObjectRef(self, self.ownership.adopt(object_id, owner))

    def pin_out_of_band(self, entry: Entry) -> None:
        """Someone pickled a reference by other means: keep the object while the process lives."""
        with self.ownership.lock:
            entry.pins += 1


def _entry_of(item: Resolved) -> Entry:
    """An argument's entry, known to this task alone: its caller holds the object."""
    at = item.stored_at
    assert at is not None
    entry = Entry(item.object_id, Owner(at.owner_id, at.owner_endpoint, at.owner_node))
    entry.state = STORED
    entry.node_id = at.node_id
    entry.size_bytes = at.size_bytes
    return entry


def _split(
    refs: Sequence[ObjectRef[Any]], ready_at: list[int]
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    ready = [refs[position] for position in ready_at]
    rest = list(refs)
    if len(ready_at) == len(rest):
        rest = []
    elif len(ready_at) <= FEW_POSITIONS:
        for position in reversed(ready_at):
            del rest[position]
    else:
        taken = set(ready_at)
        rest = [ref for position, ref in enumerate(refs) if position not in taken]
    return ready, rest


def _ready_positions(refs: Sequence[ObjectRef[Any]], needed: int) -> list[int]:
    positions: list[int] = []
    for position, ref in enumerate(refs):
        if ref._entry.state != PENDING:
            positions.append(position)
            if len(positions) == needed:
                break
    return positions


def _nothing() -> None:
    return None


def _ignore(entry: Entry) -> None:
    return None
