"""When to spill and what: the least recently used objects that nobody views, one file at a time.

Before it: the table sees that memory is short. After it: the shell writes the batch on a thread of
its own and says how that ended.

Spilling an object does not take it out of memory. It makes it evictable, because a copy is on disk:
what is wanted again soon is found in memory, and what is not is dropped for the next create. An
object is held while it is being written, so that neither a delete nor an eviction takes its bytes;
one that could not be written is as it was before.

When the disk is about to be full, new objects must leave room in memory for the largest one that is
on disk, twice: so that what was spilled can still be read, one object after the other, by a loop
that holds the last one while it gets the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from skate_object_store.constants import SPILL_RETRY_S
from skate_object_store.machine.inventory import Entry, Inventory
from skate_object_store.machine.records import (
    Effect,
    Place,
    SpillFailure,
    SpillItem,
    WriteBatch,
)
from skate_object_store.machine.spill_book import SpillBook, SpilledObject
from skate_object_store.spill_config import SpillConfig

_VIEWED_AT_ONCE = 2


class SpillPlanner:
    """Decides over one inventory. Times are the table's."""

    def __init__(self, inventory: Inventory, book: SpillBook, config: SpillConfig) -> None:
        self.failure: SpillFailure | None = None
        """Why the last batch, or a part of it, was not written; None after a success."""
        self.spilled_total = 0
        self.spilled_bytes_total = 0
        self.failures_total = 0
        self._inventory = inventory
        self._book = book
        self._config = config
        self._start_bytes = int(inventory.allocator.capacity_bytes * config.threshold)
        self._batches_total = 0
        self._batch: dict[int, Entry] = {}  # by serial: being written, and pinned for that
        self._retry_s = float("-inf")
        self.is_disk_short = False
        """Whether creates must ask :meth:`leaves_room_to_restore`."""

    @property
    def spilling_objects(self) -> int:
        """How many objects are being written."""
        return len(self._batch)

    def is_over_threshold(self) -> bool:
        """Whether more than the threshold is used by what cannot be evicted."""
        inventory = self._inventory
        return inventory.allocator.used_bytes - inventory.evictable_bytes > self._start_bytes

    def leaves_room_to_restore(self, size_bytes: int) -> bool:
        """Whether what is on disk can still be read after an object of this size was created."""
        inventory = self._inventory
        allocator = inventory.allocator
        free_bytes = allocator.capacity_bytes - allocator.used_bytes + inventory.evictable_bytes
        return free_bytes - size_bytes >= _VIEWED_AT_ONCE * self._book.largest_bytes

    def can_make_room(self, now_s: float) -> bool:
        """Whether waiting for the disk is any use: a batch is under way, or could be started."""
        return bool(self._batch) or (self._inventory.idle_count > 0 and self._retry_s <= now_s)

    def plan(self, now_s: float, *, is_room_wanted: bool) -> list[Effect]:
        """Start the next batch, if one is wanted and none is under way."""
        if not is_room_wanted and not self.is_over_threshold():
            return []
        if self._batch or self._retry_s > now_s:
            return []
        self._retry_s = float("-inf")
        entries = self._inventory.take_idle(self._config.min_batch_bytes, self._config.fuse_max)
        if not entries:
            return []
        self._batches_total += 1
        self._batch = {entry.copy.serial: entry for entry in entries}
        items = tuple(
            SpillItem(entry.copy.serial, entry.copy.offset, entry.copy.size_bytes)
            for entry in entries
        )
        return [WriteBatch(self._batches_total, items)]

    def ended(
        self,
        number: int,
        file_key: str,
        places: Mapping[int, Place],
        failure: SpillFailure | None,
        room_bytes: int | None,
        now_s: float,
    ) -> list[Effect]:
        """A batch has ended: ``places`` says by serial what was written, if anything.

        ``room_bytes``: what the disk has left; None: not known.
        """
        assert number == self._batches_total
        assert self._batch
        batch, self._batch = self._batch, {}
        self.failure = failure
        is_short = room_bytes is not None and room_bytes < self._config.min_batch_bytes
        self.is_disk_short = is_short or (failure is not None and failure.is_disk_full)
        if failure is not None:
            self.failures_total += 1
            self._retry_s = now_s + SPILL_RETRY_S
        wanted: list[SpilledObject] = []
        for serial, place in places.items():
            entry = batch[serial]
            self.spilled_total += 1
            self.spilled_bytes_total += place.size_bytes
            if not entry.is_deleted:
                entry.is_evictable = True
                wanted.append(_spilled(entry, place))
        effects: list[Effect] = list(self._book.add_file(file_key, wanted)) if places else []
        for entry in batch.values():
            effects += self._inventory.let_go(entry)
        return effects

    def disk_was_freed(self) -> None:
        """A file goes: what failed for want of disk may succeed now."""
        self._retry_s = float("-inf")
        self.is_disk_short = False

    def retry_at_s(self) -> float | None:
        """When a create that waits may be helped by another try."""
        return None if self._retry_s == float("-inf") else self._retry_s

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless what is being written is held for that."""
        assert self._inventory.held_serials() == set(self._batch)


def _spilled(entry: Entry, place: Place) -> SpilledObject:
    return SpilledObject(
        entry.object_id, entry.copy.size_bytes, entry.owner, entry.created_s, entry.note, place
    )
