"""The streams of this process: generators that run elsewhere and whose items it owns.

The decisions are in ``machine.generator_stream``; this shell gives items their values, wakes who
waits, and tells producers what was taken and when to stop. A stream is known here while its task
has no outcome; what is unread afterwards is held by its ``ObjectRefGenerator`` alone.

Before it: ``task_submission`` (which begins a stream) and the executor's messages. After it:
``object_ref_generator``, what the user iterates over.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from skate_rpc.stream import StreamClosedError
from skate_worker.generator_returns import DYNAMIC, STATIC, decode_returns
from skate_worker.machine.generator_stream import FIRST_ITEM, GeneratorStream, item_id
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry
from skate_worker.object_ref import ObjectRef
from skate_worker.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator
from skate_worker.ownership import Ownership, Waiters, contained_entries, wake
from skate_worker.peers import Peer
from skate_worker.serialization import serialize
from skate_worker.submission import Submission
from skate_worker.task_protocol import (
    FreeReturns,
    ItemReturned,
    ItemsTaken,
    Returned,
    StopStream,
    TaskReturned,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from skate_worker.machine.lineage import Lineage
    from skate_worker.object_access import ObjectAccess
    from skate_worker.recovery import KeptTask

UNREPORTED_MAX = 256
"""Items that were stored when their producer died, and whose messages were still in it."""


class Streams:
    """The owner's side of every stream of this process. Thread-safe where it says so."""

    def __init__(self, core: ObjectAccess, ownership: Ownership) -> None:
        self._core = core
        self._ownership = ownership
        self._running: dict[bytes, GeneratorStream] = {}
        self.delete_stray: Callable[[bytes, list[bytes]], None] = _delete_nowhere
        self.offer_copy: Callable[[Entry, bytes], None] = _offer_nobody
        self.lineage: Lineage[KeptTask] | None = None
        self._streams: weakref.WeakSet[GeneratorStream] = weakref.WeakSet()  # also those that ended

    def begin(self, submission: Submission, num_returns: int) -> list[Any]:
        """What ``.remote()`` gives for a generator. With the lock, before the task is sent."""
        core = self._core
        kind, count = decode_returns(num_returns)
        task_id = submission.task_id
        table = self._ownership.table
        for index in range(1, (count if kind == STATIC else 1) + 1):
            entry = table.own(task_id + index.to_bytes(4, "big"))
            entry.task_id = task_id
            submission.entries.append(entry)
        refs: list[Any] = [ObjectRef(core, entry) for entry in submission.entries]
        if kind == STATIC:
            return refs
        stream = GeneratorStream(table, task_id, count)
        self._streams.add(stream)
        self._running[task_id] = stream
        if self.lineage is not None:
            self.lineage.stream_began(task_id)
        submission.entries[0].waiters = [partial(self._completed, submission, stream)]
        return refs if kind == DYNAMIC else [ObjectRefGenerator(core, stream, refs[0])]

    def unread(self) -> list[Entry]:
        """Every item that came and was not taken. With the lock. O(streams and such items)."""
        return [entry for stream in self._streams for entry in stream.unread()]

    # ---- the consumer; on any thread ----

    def take(self, stream: GeneratorStream) -> Entry | None:
        """The next item's entry, with one local reference; None: not here yet, or the end."""
        with self._ownership.lock:
            entry = stream.take()
            consumed = stream.credit() if stream.limit else None
        if consumed is not None:
            self._tell_producer(stream.producer, ItemsTaken(stream.task_id, consumed))
        return entry

    def drop(self, stream: GeneratorStream) -> None:
        """The generator is gone: free what is unread and stop the producer."""
        released: list[Entry] = []
        with self._ownership.lock:
            stream.drop(released)
        if released:
            self._ownership.finish_released(released)
        if stream.end is None and stream.producer is not None:
            self._tell_producer(stream.producer, StopStream(stream.task_id))

    # ---- the producer; on the loop's thread ----

    def on_item(self, peer: Peer, message: ItemReturned) -> None:
        """A stream of ours yielded."""
        returned = message.value
        if not returned.data and not returned.node_id:
            return  # the task runs again for other items: this one exists and stays
        stream = self._running.get(message.task_id)
        entry: Entry | None = None
        consumed: int | None = None
        waiters: Waiters = []
        if returned.node_id and returned.node_id != self._ownership.node_id:
            self._ownership.has_remote = True
        with self._ownership.lock:
            if stream is not None:
                entry = stream.accept(message.index, message.attempt)
                stream.has_stored = stream.has_stored or bool(returned.node_id)
                if message.attempt == stream.attempt:
                    stream.producer = peer
                    consumed = stream.credit()
            if entry is None:
                entry = self._lost(message)
            if entry is not None and not returned.contained:
                waiters = _fill(entry, returned)
        if stream is not None and stream.lost_at and entry is not None:
            self._delete_unreported_item(stream, message)
        if entry is None:
            self._refuse(peer, stream, message)
        elif returned.contained:
            self._fill_container(peer, entry, message)
        wake(waiters)
        if consumed is not None:
            self._tell_producer(peer, ItemsTaken(message.task_id, consumed))

    def on_outcome(self, submission: Submission, result: TaskReturned) -> bool:
        """A generator's task has ended; its completion is settled next. Whether stores hold items.

        From here on the items are returns like any other, which lineage can make again.
        """
        stream = self._running.get(submission.task_id)
        kind = decode_returns(submission.message.num_returns)[0]
        if stream is not None and result.items >= 0:
            stream.announced = result.items
            if kind == DYNAMIC:
                result.returns = [self._collect(stream, submission.entries[0])]
        has_stored = False
        if stream is not None and stream.has_stored:
            has_stored = self._add_items(submission, stream.known_items(result.items))
        missing = len(submission.entries) - len(result.returns)
        if missing > 0:
            last = result.returns[-1]
            result.returns += [last if last.is_error else Returned(b"")] * missing
        return has_stored

    def _add_items(self, submission: Submission, count: int) -> bool:
        # Of items that nobody refers to one entry says so, to `recovery` too.
        task_id = submission.task_id
        gone = Entry(submission.entries[0].object_id, None)
        gone.state = INLINE
        gone.is_released = True
        with self._ownership.lock:
            known = self._ownership.table.entries
            items = [known.get(item_id(task_id, index), gone) for index in range(count)]
            is_needed = self.lineage is not None and self.lineage.has_dependents(task_id)
        if not is_needed and all(entry.state not in (STORED, PENDING) for entry in items):
            return False
        submission.entries = [submission.entries[0], *items]
        return True

    def will_yield_again(self, entry: Entry) -> bool:
        """An item has no copy left: whether the task, which still runs, makes it once more.

        With the lock. The item is pending then, and has its value or an error when the task ends.
        """
        stream = self._running.get(entry.object_id[:24])
        if stream is None or entry.task_id != stream.task_id:
            return False
        entry.state = PENDING
        entry.node_id = b""
        stream.lost.append(entry)
        return True

    def _lost(self, message: ItemReturned) -> Entry | None:
        # An item that was here once, and whose last copy went with its node.
        entry = self._ownership.table.entries.get(item_id(message.task_id, message.index))
        return entry if entry is not None and entry.state == PENDING else None

    def _fill_container(self, peer: Peer, entry: Entry, message: ItemReturned) -> None:
        # What the value refers to is held, and the owners know it, before anyone sees the value.
        ownership = self._ownership
        freed = partial(self._tell, peer, FreeReturns(entry.object_id, message.attempt))
        ownership.take_contained(
            entry, message.value.contained, peer, freed if message.holds_pins else None
        )
        with ownership.lock:
            waiters = _fill(entry, message.value)
            is_released = entry.is_released
        wake(waiters)
        if is_released and entry.state == STORED:
            ownership.finish_released([entry])

    def _refuse(self, peer: Peer, stream: GeneratorStream | None, message: ItemReturned) -> None:
        # Nobody wants the value: it came twice, or too late.
        object_id = item_id(message.task_id, message.index)
        unwanted = Entry(object_id, None)
        unwanted.is_released = True
        if message.value.contained:
            freed = partial(self._tell, peer, FreeReturns(object_id, message.attempt))
            self._ownership.take_contained(
                unwanted, message.value.contained, peer, freed if message.holds_pins else None
            )
        if self._is_enough(stream, message):
            self._tell_producer(peer, StopStream(message.task_id))
        if message.value.data or (stream is not None and message.attempt < stream.attempt):
            return
        held = self._ownership.table.entries.get(object_id)
        if held is None:
            self.delete_stray(message.value.node_id, [object_id])
        else:
            self.offer_copy(held, message.value.node_id)

    def _is_enough(self, stream: GeneratorStream | None, message: ItemReturned) -> bool:
        # Whether the producer of this item has nothing to yield that somebody wants.
        if stream is not None:
            return stream.is_enough
        if self.lineage is None or message.task_id not in self.lineage:
            return True
        # It runs again for what was lost: of that nothing comes after the last item known.
        kept = self.lineage.task_of(message.task_id)
        return kept is not None and message.index + FIRST_ITEM > len(kept.submission.entries)

    def _completed(
        self, submission: Submission, stream: GeneratorStream, completion: Entry
    ) -> None:
        # The task has its outcome, whichever way: from the executor, or from the runtime.
        released: list[Entry] = []
        with self._ownership.lock:
            self._running.pop(stream.task_id, None)
            if self.lineage is not None:
                self.lineage.stream_ended(stream.task_id)
            if completion.state == FAILED:
                waiters = stream.fail(completion.data, released)
                for entry in stream.lost:
                    if entry.state == PENDING:
                        waiters.append((entry, entry.settle(FAILED, completion.data) or []))
            else:
                waiters = stream.finish(released)
        if released:
            self._ownership.finish_released(released)
        self._delete_unreported(stream)
        wake(waiters)

    def attempt_lost(self, submission: Submission, node_id: bytes) -> None:
        """A producer is gone, and may have stored items there that it did not live to report."""
        stream = self._running.get(submission.task_id)
        if stream is not None and node_id:
            has_begun = stream.attempt == submission.message.attempt
            stream.lost_at.append((node_id, stream.arrived if has_begun else 0))

    def _delete_unreported_item(self, stream: GeneratorStream, message: ItemReturned) -> None:
        # An item is here, so it is certain where it is not.
        for node_id, first in stream.lost_at:
            if message.index >= first and message.value.node_id != node_id:
                self.delete_stray(node_id, [item_id(stream.task_id, message.index)])

    def _delete_unreported(self, stream: GeneratorStream) -> None:
        live = self._ownership.table.entries
        for node_id, first in stream.lost_at:
            unreported: list[bytes] = []
            for index in range(max(0, first - 1), first + UNREPORTED_MAX):
                object_id = item_id(stream.task_id, index)
                entry = live.get(object_id)
                if entry is None or entry.state != STORED or entry.node_id != node_id:
                    unreported.append(object_id)
            self.delete_stray(node_id, unreported)

    def _collect(self, stream: GeneratorStream, completion: Entry) -> Returned:
        # The value of a dynamic return: references to all items, which this process owns.
        ownership = self._ownership
        refs: list[ObjectRef[Any]] = []
        with ownership.lock:
            while (entry := stream.take()) is not None:
                refs.append(ObjectRef(self._core, entry))
        value = serialize(DynamicObjectRefGenerator(refs))
        with ownership.lock:
            if not completion.is_released and value.contained:
                completion.contained = contained_entries(value)
                for inner in completion.contained:
                    inner.pins += 1
        return Returned(value.to_bytes())

    def _tell_producer(self, peer: Peer, message: ItemsTaken | StopStream) -> None:
        self._tell(peer, peer.stamp(message))

    def _tell(self, peer: Peer, message: Any) -> None:
        try:
            peer.connection.post(message)
        except StreamClosedError:
            return  # the producer is gone, and what it held with it


def _fill(entry: Entry, returned: Returned) -> Waiters:
    if returned.data:
        waiters = entry.settle(FAILED if returned.is_error else INLINE, returned.data)
    else:
        entry.node_id = returned.node_id
        entry.size_bytes = returned.size_bytes
        waiters = entry.settle(STORED, None)
    return [(entry, waiters)] if waiters else []


def _delete_nowhere(node_id: bytes, object_ids: list[bytes]) -> None:
    return None


def _offer_nobody(entry: Entry, node_id: bytes) -> None:
    return None
