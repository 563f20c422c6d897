"""A streaming task at its owner: which items came, which were taken, and how the stream ends.

::

    items:   0 .. consumed-1      consumed         consumed+1 .. received-1
             taken                ``head``         unread

``head`` is the entry of the next item, from the start: pending until the item comes, so whoever
waits for the next item waits for an entry like any other. It enters the reference table when it has
a value, and the stream holds it from then on, also while it is pending again because its value was
lost. A retried task yields its items again from the first: what is here already, or was taken, is
not wanted twice. At the end ``head`` is settled too and stands for the end.

Invariants::

    unread indexes > consumed;  told <= consumed
    end is None, or consumed <= end and every unread index < end
    dropped: nothing is unread

Before this module: the executor's messages, in order within an attempt. After it: ``streams``, the
shell. All methods are O(1) but those at the end of a stream, which are O(unread). The rules are
those of SURFACE 1.5 (G1-G6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from skate_worker.machine.references import FAILED, PENDING, Entry, ReferenceTable

FIRST_ITEM: Final = 2
"""The index of the first item among the task's returns; 1 is the task's completion."""

Waiters = list[tuple[Entry, list[Callable[[Entry], None]]]]


def item_id(task_id: bytes, index: int) -> bytes:
    """The object id of an item, the same in each attempt."""
    return task_id + (index + FIRST_ITEM).to_bytes(4, "big")


class GeneratorStream:
    """One stream. The caller serialises the calls.

    ``limit``: how many items may be unconsumed before the producer pauses; 0: no bound.
    """

    __slots__ = (
        "__weakref__",
        "_table",
        "_told",
        "_unread",
        "announced",
        "arrived",
        "attempt",
        "consumed",
        "end",
        "has_stored",
        "head",
        "is_dropped",
        "limit",
        "lost",
        "lost_at",
        "producer",
        "task_id",
    )

    def __init__(self, table: ReferenceTable, task_id: bytes, limit: int = 0) -> None:
        self.task_id: bytes = task_id
        self.limit: int = limit
        self.consumed: int = 0
        self.attempt: int = 0
        self.end: int | None = None  # how many there are to take, an error included
        self.announced: int | None = None  # how many the task said that it yielded
        self.is_dropped: bool = False
        # The shell's: who yields, whether any item lies in a store, whose last copy went.
        self.producer: Any = None
        self.has_stored: bool = False
        self.lost: list[Entry] = []
        # Where attempts died, and which items they may have stored without saying so: from this on.
        self.lost_at: list[tuple[bytes, int]] = []
        self._table = table
        self._unread: dict[int, Entry] = {}
        self.arrived: int = 0  # items of this attempt
        self._told = 0  # how many taken items this attempt's producer knows of
        self.head: Entry = self._new_entry(0)

    @property
    def is_finished(self) -> bool:
        """Whether everything was taken and no more will come."""
        return self.end == self.consumed

    @property
    def is_ready(self) -> bool:
        """Whether the next item, or the error in its place, is here."""
        return self.head.state != PENDING and self.end != self.consumed

    @property
    def is_enough(self) -> bool:
        """Whether no item is wanted any more: neither a new one nor one that was lost."""
        return self.is_dropped and all(entry.state != PENDING for entry in self.lost)

    def known_items(self, yielded: int) -> int:
        """How many items the owner may know at the end, of which ``yielded`` came from the last
        attempt (-1: it failed).

        More than ``yielded``, where an earlier attempt came further than one that was stopped.
        """
        return self._received() if yielded < 0 else max(yielded, self.consumed)

    def accept(self, index: int, attempt: int) -> Entry | None:
        """An item came: the entry to be settled with its value, or None if nobody wants it.

        The entry is in the reference table, held by the stream. An item of an attempt that is over
        tells nothing about what the running one needs.
        """
        if attempt < self.attempt:
            return None
        if attempt > self.attempt:
            self.attempt = attempt
            self.arrived = 0
            self._told = 0
        self.arrived = index + 1
        if self.is_dropped or self.end is not None or index < self.consumed:
            return None
        if index == self.consumed:
            if self.head.state != PENDING:
                return None
            entry = self.head
        elif index in self._unread:
            return None
        else:
            entry = self._unread[index] = self._new_entry(index)
        self._table.entries[entry.object_id] = entry
        return entry

    def unread(self) -> list[Entry]:
        """The items that are here and were not taken; each is held by this stream once."""
        head = [self.head] if self._holds_head else []
        return [*head, *self._unread.values()]

    def take(self) -> Entry | None:
        """The next item's entry, with the stream's hold on it. None: not here, or the end."""
        entry = self.head
        if entry.state == PENDING or self.end == self.consumed:
            return None
        self.consumed += 1
        head = self._unread.pop(self.consumed, None)
        if head is None:
            head = self._new_entry(self.consumed)
            if self.end == self.consumed:
                head.settle(FAILED, None)
        self.head = head
        return entry

    def finish(self, released: list[Entry]) -> Waiters:
        """The task succeeded. Returns who waits; appends what a shorter retry made void."""
        if self.end is not None:
            return []
        count = self._received() if self.announced is None else self.announced
        self.end = max(count, self.consumed)
        self._release_from(self.end, released)
        return self._settle_head(FAILED, None) if self.end == self.consumed else []

    def fail(self, data: bytes, released: list[Entry]) -> Waiters:
        """The task failed: its error comes after the items that are here. Returns who waits."""
        if self.end is not None:
            return []
        at = self._received()
        self.end = at + 1
        self._release_from(at, released)
        if self.is_dropped:
            return self._settle_head(FAILED, data)
        if at == self.consumed:
            self._table.entries[self.head.object_id] = self.head
            return self._settle_head(FAILED, data)
        error = self._unread[at] = self._new_entry(at)
        error.settle(FAILED, data)
        self._table.entries[error.object_id] = error
        return []

    def drop(self, released: list[Entry]) -> None:
        """Nobody will take anything more. Appends the unread items that are thereby released."""
        if self.is_dropped:
            return
        self.is_dropped = True
        if self._holds_head:
            self._table.drop_local(self.head, released)
            self.head = self._new_entry(self.consumed)
        for entry in self._unread.values():
            self._table.drop_local(entry, released)
        self._unread = {}

    def credit(self) -> int | None:
        """How many items were taken, when the producer may be waiting to hear it; else None.

        A producer runs on until ``limit`` items are unconsumed as far as it knows, so it needs to
        be told only once that many have arrived: about one message per ``limit`` items.
        """
        if not self.limit or self.consumed <= self._told or self.arrived - self._told < self.limit:
            return None
        self._told = self.consumed
        return self.consumed

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an invariant of the module's docstring is broken."""
        assert all(index > self.consumed for index in self._unread)
        assert all(self._holds(entry) for entry in self._unread.values())
        assert not (self.is_dropped and self._unread)
        if self.end is not None:
            assert self.consumed <= self.end
            assert all(index < self.end for index in self._unread)
            assert self.head.state != PENDING or self.is_dropped or self._holds_head

    def _new_entry(self, index: int) -> Entry:
        entry = Entry(item_id(self.task_id, index), None)
        entry.local = 1
        entry.task_id = self.task_id
        return entry

    @property
    def _holds_head(self) -> bool:
        # Whether the next item came; its value may be lost since, and pending once more.
        return self._holds(self.head)

    def _holds(self, entry: Entry) -> bool:
        return self._table.entries.get(entry.object_id) is entry

    def _received(self) -> int:
        at = self.consumed
        if self._holds_head:
            at += 1
            while at in self._unread:
                at += 1
        return at

    def _settle_head(self, state: int, data: bytes | None) -> Waiters:
        waiters = self.head.settle(state, data)
        return [(self.head, waiters)] if waiters else []

    def _release_from(self, end: int, released: list[Entry]) -> None:
        for index in [index for index in self._unread if index >= end]:
            self._table.drop_local(self._unread.pop(index), released)
        if end == self.consumed and self._holds_head:
            self._table.drop_local(self.head, released)
            self.head = self._new_entry(self.consumed)
