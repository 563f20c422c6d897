"""Lineage: which finished tasks are kept so that their returns can be made again, and what to run.

A task is kept while one of its returns that lies in a store is referenced, or is an argument of
another kept task. A task whose returns are all small is not kept: they are in the owner's memory
and can not be lost without it. What a kept task costs is bounded in bytes; the oldest are given up
first.

A return that nobody refers to any more is deleted from the store, and its task may still be kept
for the sake of a later one: the value can be made again.

Items of a stream are used while its task still runs, and tasks that took them may end before it.
For these the record of the stream begins without a task, and gets it when the stream ends.

Invariants::

    size_bytes == sum of the kept tasks' sizes <= limit_bytes
    a record exists  =>  it has live returns or dependents
    a record has a task, or a reason why not, or is that of a stream that runs
    dependents of a record == records that name it as the maker of an argument

Source: the ownership paper (Wang et al., NSDI 2021), section 4.3; SURFACE O14 and E13. Before it:
results, which say what is stored. After it: ``object_recovery``, which submits again. Costs are
O(1) an event but for ``plan``: O(tasks to run, and their arguments).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar

from skate_worker.machine.generator_stream import FIRST_ITEM

LIMIT_BYTES: Final = 1 << 30  # SURFACE 3.2
TASK_ID_BYTES: Final = 24
FIRST_PUT: Final = 0x8000_0000  # from here on, an index says that the object was put


class Reason(StrEnum):
    """Why an object can not be made again; the values are those of the error's ``reason``."""

    MAX_ATTEMPTS = "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED"
    LINEAGE_EVICTED = "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED"
    PUT = "OBJECT_UNRECONSTRUCTABLE_PUT"
    RETRIES_DISABLED = "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED"
    BORROWED = "OBJECT_UNRECONSTRUCTABLE_BORROWED"
    REF_NOT_FOUND = "OBJECT_UNRECONSTRUCTABLE_REF_NOT_FOUND"
    TASK_CANCELLED = "OBJECT_UNRECONSTRUCTABLE_TASK_CANCELLED"
    LINEAGE_DISABLED = "OBJECT_UNRECONSTRUCTABLE_LINEAGE_DISABLED"


class Presence(StrEnum):
    """What is known of an argument's value when its task is to run again."""

    THERE = "there"  # a copy, an inline value, an error, or a task on its way to make one
    LOST = "lost"  # this process owns it, and no copy is left
    ELSEWHERE = "elsewhere"  # another process owned it, and this one holds it no more


class Repeatable(Protocol):
    """A task that may run again."""

    @property
    def attempts_left(self) -> int:
        """Retries that are left; -1: without end."""

    @property
    def attempt(self) -> int:
        """How often it was run again."""

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled it, even too late."""

    @property
    def is_running(self) -> bool:
        """Whether it runs again at this moment."""


T = TypeVar("T", bound=Repeatable)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The object can not be made again. ``object_id``: the one at fault, itself or an argument."""

    reason: Reason
    object_id: bytes


class _Record(Generic[T]):
    __slots__ = ("arguments", "dependents", "live", "makers", "reason", "size_bytes", "task")

    def __init__(self) -> None:
        self.task: T | None = None
        self.reason: Reason | None = None  # why there is no task; None too while a stream runs
        self.size_bytes = 0
        self.live: dict[bytes, None] = {}  # stored returns that are referenced
        self.arguments: tuple[bytes, ...] = ()  # those that lie in a store
        self.makers: list[bytes] = []  # the records that made them; one entry an argument
        self.dependents = 0


class Lineage(Generic[T]):
    """The caller serialises the calls, and lets go of what the tasks returned to it hold."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes  # 0: nothing is kept
        self.size_bytes: int = 0
        self._records: dict[bytes, _Record[T]] = {}  # by task id, the oldest first
        self._streams: set[bytes] = set()  # tasks that yield items, and have not ended

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, task_id: bytes) -> bool:
        """Whether a return of the task may be needed again, kept or not."""
        return task_id in self._records

    def keep(
        self,
        task_id: bytes,
        task: T,
        size_bytes: int,
        live: Iterable[bytes],
        arguments: Iterable[bytes],
        nested: Iterable[bytes] = (),
    ) -> list[T]:
        """A task finished, for the first time or again, and ``live`` of its returns are stored.

        ``arguments``: the objects in stores whose values it needs. ``nested``: those that it may
        ask for itself, by references inside its arguments. Returns the tasks that are thereby given
        up; ``task`` itself may be among them.
        """
        dropped: list[T] = []
        self._streams.discard(task_id)
        record = self._records.get(task_id)
        if record is None:
            record = self._records[task_id] = _Record[T]()
        record.live = dict.fromkeys(live)
        # Before the old ones are let go: they may be the same.
        is_kept = bool(record.live or record.dependents) and self._refusal(task) is None
        kept_arguments = tuple(arguments) if is_kept else ()
        makers = self._take_makers((*kept_arguments, *nested)) if is_kept else []
        self._empty(record, dropped)
        record.reason = self._refusal(task)
        if not is_kept:
            dropped.append(task)
            self._drop_unneeded(task_id, dropped)
            return dropped
        record.task = task
        record.size_bytes = size_bytes
        record.arguments = kept_arguments
        record.makers = makers
        self.size_bytes += size_bytes
        self._evict(dropped)
        return dropped

    def _take_makers(self, object_ids: Iterable[bytes]) -> list[bytes]:
        makers: list[bytes] = []
        for object_id in object_ids:
            task_id = object_id[:TASK_ID_BYTES]
            maker = self._records.get(task_id)
            if maker is None and self.is_streaming(object_id):
                maker = self._records[task_id] = _Record[T]()
            if maker is not None:
                maker.dependents += 1
                makers.append(task_id)
        return makers

    def stream_began(self, task_id: bytes) -> None:
        """A task will yield items, which others may use before it has ended."""
        self._streams.add(task_id)

    def stream_ended(self, task_id: bytes) -> None:
        """It ended, whichever way; after :meth:`keep` if it is kept."""
        if task_id in self._streams:
            self._streams.remove(task_id)
            record = self._records.get(task_id)
            if record is not None:
                record.reason = Reason.REF_NOT_FOUND

    def is_streaming(self, object_id: bytes) -> bool:
        """Whether the object is an item of a stream that runs."""
        is_item = FIRST_ITEM <= int.from_bytes(object_id[TASK_ID_BYTES:], "big") < FIRST_PUT
        return is_item and object_id[:TASK_ID_BYTES] in self._streams

    def has_dependents(self, task_id: bytes) -> bool:
        """Whether a kept task may need a return of this one again."""
        record = self._records.get(task_id)
        return record is not None and record.dependents > 0

    def released(self, object_id: bytes) -> list[T]:
        """Nobody refers to a return any more. Returns the tasks that are thereby given up."""
        dropped: list[T] = []
        task_id = object_id[:TASK_ID_BYTES]
        record = self._records.get(task_id)
        if record is not None:
            record.live.pop(object_id, None)
            self._drop_unneeded(task_id, dropped)
        return dropped

    def revived(self, object_id: bytes) -> None:
        """A return that nobody referred to is needed again, by a task that runs again."""
        record = self._records.get(object_id[:TASK_ID_BYTES])
        if record is not None:
            record.live[object_id] = None

    def plan(
        self, object_id: bytes, presence_of: Callable[[T, bytes], Presence]
    ) -> list[T] | Refusal:
        """The tasks to run so that a lost object is made again, arguments first.

        All of them can run, or the answer is why the object is lost for good. One that runs already
        is among them if it does not make the object this time, but for a stream whose first run has
        not ended. Nothing is changed: whoever runs them takes their attempts.
        """
        chosen: dict[bytes, T] = {}
        stack: list[tuple[bytes, bool]] = [(object_id, False)]
        order: list[T] = []
        while stack:
            wanted, are_arguments_done = stack.pop()
            task_id = wanted[:TASK_ID_BYTES]
            if are_arguments_done:
                order.append(chosen[task_id])
                continue
            if task_id in chosen:
                continue
            record = self._records.get(task_id)
            if self.is_streaming(wanted):
                continue  # its task runs, and is told when somebody asks for the item
            refusal = self._why_not(wanted, record)
            if refusal is not None:
                return Refusal(refusal, wanted)
            assert record is not None
            assert record.task is not None
            chosen[task_id] = record.task
            stack.append((wanted, True))
            if record.task.is_running:
                continue  # its arguments are its own affair; it runs once more when it has ended
            for argument in record.arguments:
                presence = presence_of(record.task, argument)
                if presence is Presence.ELSEWHERE:
                    return Refusal(Reason.BORROWED, argument)
                if presence is Presence.LOST:
                    stack.append((argument, False))
        return order

    def task_of(self, object_id: bytes) -> T | None:
        """The kept task that made an object."""
        record = self._records.get(object_id[:TASK_ID_BYTES])
        return None if record is None else record.task

    def is_precious(self, object_id: bytes) -> bool:
        """Whether nothing can make the object again, or it is not known yet."""
        if self.is_streaming(object_id):
            return True
        return self._why_not(object_id, self._records.get(object_id[:TASK_ID_BYTES])) is not None

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an invariant of the module's docstring is broken."""
        dependents = dict.fromkeys(self._records, 0)
        for task_id, record in self._records.items():
            has_one = (record.task is not None) + (record.reason is not None)
            assert has_one == (task_id not in self._streams)
            assert record.live or record.dependents
            for maker in record.makers:
                dependents[maker] += 1
        assert dependents == {key: record.dependents for key, record in self._records.items()}
        assert self.size_bytes == sum(record.size_bytes for record in self._records.values())
        assert self.size_bytes <= self.limit_bytes or not self._records

    # ---- why not ----

    def _refusal(self, task: T) -> Reason | None:
        if task.is_cancelled:
            return Reason.TASK_CANCELLED
        if task.attempts_left == 0:
            return Reason.MAX_ATTEMPTS if task.attempt else Reason.RETRIES_DISABLED
        return None if self.limit_bytes else Reason.LINEAGE_DISABLED

    def _why_not(self, object_id: bytes, record: _Record[T] | None) -> Reason | None:
        if is_put(object_id):
            return Reason.PUT
        if record is None:
            return Reason.REF_NOT_FOUND
        if record.task is None:
            return record.reason
        return self._refusal(record.task)

    # ---- giving up ----

    def _evict(self, dropped: list[T]) -> None:
        if self.size_bytes <= self.limit_bytes:
            return
        for task_id in list(self._records):
            record = self._records.get(task_id)
            if record is None or record.task is None:
                continue
            self._empty(record, dropped)
            # What is left of it says why its returns are lost for good, as long as there are any.
            record.reason = Reason.LINEAGE_EVICTED
            if self.size_bytes <= self.limit_bytes:
                return

    def _empty(self, record: _Record[T], dropped: list[T]) -> None:
        if record.task is not None:
            dropped.append(record.task)
            record.task = None
        self.size_bytes -= record.size_bytes
        record.size_bytes = 0
        record.arguments = ()
        makers, record.makers = record.makers, []
        for maker in makers:
            self._records[maker].dependents -= 1
        for maker in makers:
            self._drop_unneeded(maker, dropped)

    def _drop_unneeded(self, task_id: bytes, dropped: list[T]) -> None:
        # Iterative: a chain of tasks must not be as deep as the interpreter's stack.
        candidates = [task_id]
        while candidates:
            record = self._records.get(candidates[-1])
            candidate = candidates.pop()
            if record is None or record.live or record.dependents:
                continue
            del self._records[candidate]
            if record.task is not None:
                dropped.append(record.task)
            self.size_bytes -= record.size_bytes
            for maker in record.makers:
                self._records[maker].dependents -= 1
                candidates.append(maker)


def is_put(object_id: bytes) -> bool:
    """Whether the object was put: no task made it."""
    return int.from_bytes(object_id[TASK_ID_BYTES:], "big") >= FIRST_PUT
