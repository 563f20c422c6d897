"""``put``, ``get`` and ``wait``: a member's dealings with objects.

Before it: ``membership``. After it: ``task_submission``, whose large arguments are objects.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from skate_rpc import node_protocol as node
from skate_worker.errors import (
    GetTimeoutError,
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
from skate_worker.waiting import ReadyCount

if TYPE_CHECKING:
    pass

# A worker that waits longer lends its CPU; most waits are shorter than the message.
BLOCKED_AFTER_S = 0.001
SEAL_WAIT_S = 10.0
FEW_POSITIONS = 16  # up to here, deleting from a copied list beats building it anew


class ObjectAccess(Membership):
    """A member that reads and writes objects. Thread-safe."""

    # ---- values ----

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value and own it; raises ``TypeError`` or ``StoreFullError``."""
        serialized = serialize(value)
        object_id = self._put_prefix + (0x8000_0000 | next(self._put_numbers)).to_bytes(4, "big")
        return self._own_value(object_id, serialized)

    def _own_value(self, object_id: bytes, serialized: Serialized) -> ObjectRef[Any]:
        ownership = self.ownership
        if serialized.total_bytes > INLINE_MAX_BYTES:
            ownership.put_parts(object_id, serialized, bytes(self.worker_id))
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
        if pending:
            self._wait_for(pending, timeout_s)
        values = [self._load(entry) for entry in entries]
        if self.ownership.untold:
            self.ownership.tell_untold(None, _nothing)
        return values

    def _wait_for(self, pending: list[Entry], timeout_s: float | None) -> None:
        unique = list(dict.fromkeys(pending))
        count = ReadyCount(len(unique), stops_at_failure=True)
        for entry in self.ownership.watch_all(unique, count):
            count(entry)
        if not self._block(count, timeout_s):
            self.ownership.unwatch_all(unique, count)
            left = sum(1 for entry in unique if entry.state == PENDING)
            raise GetTimeoutError(
                f"get() timed out after {timeout_s:g} s: {left} of {len(unique)} objects are not"
                " ready yet."
            )
        for entry in unique:
            if entry.state == FAILED:
                self.ownership.unwatch_all(unique, count)
                self._load(entry)

    def wait_for_entry(self, entry: Entry) -> None:
        """Wait until the entry is settled."""
        count = self.new_count()
        if self.ownership.watch(entry, count):
            try:
                self._block(count, None)
            finally:
                self.ownership.unwatch_all([entry], count)

    def new_count(self) -> ReadyCount:
        """What one thread waits at until it is called once."""
        return ReadyCount(1)

    def wait_at(self, count: ReadyCount) -> None:
        """Wait until ``count`` opens; a worker that waits long lends its CPU."""
        self._block(count, None)

    def _block(self, count: ReadyCount, timeout_s: float | None) -> bool:
        executor = self.executor
        if executor is None or not executor.is_executing_here():
            return count.wait(timeout_s)
        short_s = BLOCKED_AFTER_S if timeout_s is None else min(BLOCKED_AFTER_S, timeout_s)
        if count.wait(short_s):
            return True
        if timeout_s is not None and timeout_s <= short_s:
            return False
        executor.give_back_queue()
        self.raylet.post(node.Blocked())
        try:
            return count.wait(None if timeout_s is None else timeout_s - short_s)
        finally:
            self.raylet.post(node.Unblocked())

    def _load(self, entry: Entry) -> Any:
        state = entry.state
        if state == INLINE:
            return deserialize(entry.data)
        if state == STORED:
            return deserialize(self._stored(entry))
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
        if entry.node_id != self.ownership.node_id:
            raise ObjectLostError(
                entry.object_id.hex(),
                detail="it is larger than 100 KiB and in another node's store, and values of that"
                " size do not travel between nodes yet",
            )
        return self.read_stored(entry.object_id)

    def read_stored(self, object_id: bytes) -> memoryview:
        """A view of an object in this node's store. Raises :class:`ObjectLostError`."""
        store = self.ownership.store
        assert store is not None
        # Whoever wrote it said so on another connection: its seal may still be on the way.
        view: memoryview | None = store.get([object_id], SEAL_WAIT_S)[0]
        if view is None:
            raise ObjectLostError(object_id.hex(), detail="it is not in the store of this node")
        return view

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
                self._block(count, timeout_s)
                self.ownership.unwatch_all(pending, count)
            ready_at = _ready_positions(refs, num_returns)
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

    def is_ready(self, ref: ObjectRef[Any]) -> bool:
        """Whether a value or error is there."""
        return ref._entry.state != PENDING

    def when_ready(self, ref: ObjectRef[Any], callback: Callable[[ObjectRef[Any]], None]) -> None:
        """Call back once the value or error is there; at once on this thread if it is already."""
        if not self.ownership.watch(ref._entry, lambda _: callback(ref)):
            callback(ref)

    # ---- references ----

    def note_dropped(self, entry: Entry) -> None:
        """See :meth:`Ownership.note_dropped`."""
        self.ownership.note_dropped(entry)

    def adopt(self, object_id: bytes, owner: Owner) -> ObjectRef[Any]:
        """A reference that was unpickled in this process."""
        return ObjectRef(self, self.ownership.adopt(object_id, owner))

    def pin_out_of_band(self, entry: Entry) -> None:
        """Someone pickled a reference by other means: keep the object while the process lives."""
        warnings.warn(
            f"ObjectRef({entry.object_id.hex()}) was pickled by something other than Skate, which"
            " can not tell when those bytes are gone: its object is kept as long as this process"
            " lives. Pass references as arguments or inside values instead.",
            stacklevel=3,
        )
        with self.ownership.lock:
            entry.pins += 1


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
