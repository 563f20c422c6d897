"""Who gets room, in which order, and when more has to be made by spilling.

Before it: the object table was asked to create an object, or to restore one; or room came. After
it: the table's effects carry the grants and refusals, and the batches to write.

Creates that may wait are served in order of arrival, so that small ones cannot starve a large one.
Restores come before them, because whoever views objects may free others; a restore that only the
end of views can help lets creates pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate_object_store.constants import HOLDERS_MAX
from skate_object_store.machine.facts import Fullness, FullReason
from skate_object_store.machine.inventory import Inventory
from skate_object_store.machine.records import (
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    Wakeup,
)
from skate_object_store.machine.restorer import Restorer
from skate_object_store.machine.spill_book import SpillBook
from skate_object_store.machine.spill_planner import SpillPlanner


class Admissions:
    """The wishes for room of one store. ``unanswered``: requests by client, shared with gets."""

    def __init__(
        self,
        inventory: Inventory,
        book: SpillBook,
        restorer: Restorer,
        planner: SpillPlanner | None,
        unanswered: dict[int, dict[int, None]],
    ) -> None:
        self._inventory = inventory
        self._book = book
        self._on_disk = book.by_id
        self._restorer = restorer
        self._restores = restorer.parked
        self._planner = planner
        self._unanswered = unanswered
        self._creates: dict[tuple[int, int], CreateRequest] = {}  # waiting for room, in order

    def __len__(self) -> int:
        return len(self._creates)

    def create(self, wish: CreateRequest, now_s: float) -> list[Effect]:
        """Grant, park or refuse a wish."""
        effects: list[Effect] = []
        if not self._creates and not self._restores and self._try_create(wish, now_s, effects):
            return effects
        can_wait = (
            wish.deadline_s > now_s
            and wish.size_bytes <= self._inventory.allocator.capacity_bytes
            and (not wish.is_for_spilling_only or self._can_spill(now_s))
        )
        has_to_queue = can_wait and (bool(self._creates) or self._must_restore_first(now_s))
        if not has_to_queue and self._try_create(wish, now_s, effects):
            return effects
        if can_wait:
            self._creates[wish.client, wish.request] = wish
            self._unanswered[wish.client][wish.request] = None
            self._spill(now_s, effects)
        else:
            effects.append(self.refuse(wish, now_s))
        return effects

    def serve(self, now_s: float) -> list[Effect]:
        """Grant what waits for room, as far as there is any; spill if more is wanted."""
        if not self._creates and not self._restores:
            planner = self._planner
            if planner is None or not planner.is_over_threshold():
                return []
            return planner.plan(now_s, is_room_wanted=False)
        effects: list[Effect] = []
        self._grant_restores(now_s, effects)
        if self._creates and not self._must_restore_first(now_s):
            self._grant_creates(now_s, effects)
        self._spill(now_s, effects)
        return effects

    def refuse(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> CreateRefused:
        """The answer to a wish for which there is no room."""
        return CreateRefused(wish.client, wish.request, self.fullness(wish, now_s, reason))

    def fullness(
        self, wish: CreateRequest, now_s: float, reason: FullReason = FullReason.NO_ROOM
    ) -> Fullness:
        """Why there is no room for a wish, and who holds the most. O(objects)."""
        inventory = self._inventory
        detail = ""
        if wish.size_bytes > inventory.allocator.capacity_bytes:
            reason = FullReason.TOO_LARGE
        elif reason is FullReason.NO_ROOM and inventory.idle_count:
            failure = None if self._planner is None else self._planner.failure
            if failure is not None:
                reason = FullReason.DISK_FULL if failure.is_disk_full else FullReason.SPILL_FAILED
                detail = failure.cause
        return Fullness(
            reason=reason,
            requested_bytes=wish.size_bytes,
            capacity_bytes=inventory.allocator.capacity_bytes,
            used_bytes=inventory.allocator.used_bytes,
            evictable_bytes=inventory.evictable_bytes,
            holders=tuple(inventory.holders(now_s, HOLDERS_MAX)),
            detail=detail,
        )

    def cancel(self, client: int, request: int, now_s: float) -> list[Effect]:
        """Refuse a wish, if it waits here."""
        wish = self._creates.get((client, request))
        if wish is None:
            return []
        self._unpark(wish)
        return [self.refuse(wish, now_s)]

    def forget(self, client: int, requests: Iterable[int]) -> None:
        """The client is gone."""
        for request in requests:
            self._creates.pop((client, request), None)

    def expire(self, now_s: float) -> list[Effect]:
        """Refuse the creates whose deadline has come."""
        late = [wish for wish in self._creates.values() if wish.deadline_s <= now_s]
        for wish in late:
            self._unpark(wish)
        return [self.refuse(wish, now_s) for wish in late]

    def wakeups(self) -> list[Wakeup]:
        """Deadlines, and when another try to write matters. O(creates that wait)."""
        if not self._creates and not self._restores:
            return []
        wakeups = [Wakeup(wish.deadline_s, "create") for wish in self._creates.values()]
        restore_at_s = self._restorer.next_deadline_s()
        if restore_at_s is not None:
            wakeups.append(Wakeup(restore_at_s, "restore"))
        retry_at_s = None if self._planner is None else self._planner.retry_at_s()
        if retry_at_s is not None:
            wakeups.append(Wakeup(retry_at_s, "spill"))
        return wakeups

    # Helpers, in call order.

    def _can_spill(self, now_s: float) -> bool:
        return self._planner is not None and self._planner.can_make_room(now_s)

    def _must_restore_first(self, now_s: float) -> bool:
        return bool(self._restores) and self._can_spill(now_s)

    def _try_create(self, wish: CreateRequest, now_s: float, effects: list[Effect]) -> bool:
        """Append the answer, and whatever it took; False if there is no room."""
        existing = self._inventory.find(wish.object_id)
        if existing is not None:
            effects.append(CreateExists(wish.client, wish.request, existing.is_sealed))
            return True
        if self._on_disk and self._book.is_readable(wish.object_id):
            effects.append(CreateExists(wish.client, wish.request, is_sealed=True))
            return True
        planner = self._planner
        if (
            planner is not None
            and planner.is_disk_short
            and not planner.leaves_room_to_restore(wish.size_bytes)
        ):
            return False
        entry = self._inventory.reserve(wish, now_s, effects)
        if entry is None:
            return False
        if self._on_disk:
            self._book.forget(wish.object_id)  # It was lost, and is made anew.
        effects.append(Created(wish, entry.copy.serial, entry.copy.offset))
        return True

    def _grant_restores(self, now_s: float, effects: list[Effect]) -> None:
        while (wish := self._restorer.first()) is not None:
            entry = self._inventory.reserve(wish, now_s, effects)
            if entry is None:
                break
            self._restorer.unpark(wish.object_id)
            spilled = self._book.find(wish.object_id)
            assert spilled is not None
            entry.created_s = spilled.created_s
            effects.append(Created(wish, entry.copy.serial, entry.copy.offset))

    def _grant_creates(self, now_s: float, effects: list[Effect]) -> None:
        """Grant parked wishes in order, up to the first for which there is no room."""
        while self._creates:
            wish = next(iter(self._creates.values()))
            if not self._try_create(wish, now_s, effects):
                break
            self._unpark(wish)

    def _spill(self, now_s: float, effects: list[Effect]) -> None:
        """Start a batch if that is called for; else refuse the creates that only wait for one."""
        planner = self._planner
        if planner is None:
            return
        is_room_wanted = bool(self._creates or self._restores)
        effects += planner.plan(now_s, is_room_wanted=is_room_wanted)
        if not self._creates or planner.can_make_room(now_s):
            return
        for wish in [wish for wish in self._creates.values() if wish.is_for_spilling_only]:
            self._unpark(wish)
            if not self._try_create(wish, now_s, effects):
                effects.append(self.refuse(wish, now_s))

    def _unpark(self, wish: CreateRequest) -> None:
        del self._creates[wish.client, wish.request]
        del self._unanswered[wish.client][wish.request]
