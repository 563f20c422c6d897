"""Which waiting lease request is granted next.

Requests with one holder and one shape are alike; they form a *class* and are served first come,
first served. Only the heads of classes compete, by these rules, in this order:

1. **Saving up.** A head whose class has not been served for ``reserve_after_s`` is *starving*. The
   one that starves longest, among those that could be served by waiting at all, is granted before
   all others as soon as it fits; until then, a grant to another may not touch what it still lacks.
   So a request for a whole node is not passed for ever by requests for single CPUs.
2. **Least share first.** The holder whose leases take the smallest dominant share of the node goes
   first. A task that waits for its own child holds little, so children go before new parents.
3. **Turns.** Equal shares take turns: the holder, then its class, that was served least recently.

Two exceptions keep saving up from stopping a node. A request whose holder is itself blocked (the
leases that it waits for may be the very ones saved up for) passes. And saving up pauses for
``reserve_pause_s`` after every ``reserve_hold_s``, so that no cycle of waits that the node can not
see lasts for ever.

Comes after the lease machine has decided that something may be grantable, before devices and a
worker are chosen. Each call costs O(c log c) in the number of classes that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from skate_scheduler.resources import ResourceSet


@dataclass(frozen=True, slots=True)
class LeaseQueueConfig:
    """When a waiting class is saved up for. All in seconds."""

    # Long enough that ordinary turns of a busy node do not count as starving.
    reserve_after_s: float = 0.5
    # Longest time for which others are held back at a stretch.
    reserve_hold_s: float = 10.0
    # Length of the pause after that.
    reserve_pause_s: float = 1.0


@dataclass(frozen=True, slots=True)
class QueuedLease:
    """One waiting request. Requests with equal ``holder`` and ``shape`` have equal ``needs``."""

    key: Hashable  # the caller's own name for it, unique in the queue
    holder: bytes
    shape: Hashable
    needs: ResourceSet
    since_s: float


@dataclass(frozen=True, slots=True)
class LeaseSupply:
    """What can be handed out now, as the caller sees it."""

    available: ResourceSet
    fits: Callable[[ResourceSet], bool]  # also counts whole devices
    can_return: Callable[[ResourceSet], bool]  # would it fit once all returnable leases are back?
    share_of: Callable[[bytes], float]  # a holder's dominant share
    is_blocked: Callable[[bytes], bool]  # whether a holder waits and has lent its CPUs


@dataclass(slots=True)
class _Class:
    holder: bytes
    waiting: dict[Hashable, QueuedLease] = field(default_factory=dict)
    served_at_s: float = float("-inf")
    turn: int = 0

    def head(self) -> QueuedLease:
        return next(iter(self.waiting.values()))

    def starving_since_s(self) -> float:
        return max(self.head().since_s, self.served_at_s)


class LeaseQueue:
    """The waiting requests of one node. Invariant: no class is kept without a waiting request."""

    def __init__(self, config: LeaseQueueConfig | None = None) -> None:
        self._config = config or LeaseQueueConfig()
        self._classes: dict[tuple[bytes, Hashable], _Class] = {}
        self._items: dict[Hashable, QueuedLease] = {}
        self._turn = 0
        # Turns outlive their class, else a holder that asks one by one would always be first.
        # Bounded: cleared when the queue is empty.
        self._holder_turns: dict[bytes, int] = {}
        self._class_turns: dict[tuple[bytes, Hashable], tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[QueuedLease]:
        """All waiting requests, in order of arrival."""
        return iter(self._items.values())

    def push(self, item: QueuedLease) -> None:
        """Add a request at the end of its class. Raises ``ValueError`` if the key is taken."""
        if item.key in self._items:
            raise ValueError(f"Request {item.key!r} already waits.")
        class_key = (item.holder, item.shape)
        entry = self._classes.get(class_key)
        if entry is None:
            turn, served_at_s = self._class_turns.get(class_key, (0, float("-inf")))
            entry = self._classes[class_key] = _Class(
                item.holder, served_at_s=served_at_s, turn=turn
            )
        entry.waiting[item.key] = item
        self._items[item.key] = item

    def discard(self, key: Hashable) -> QueuedLease | None:
        """Remove a request that is no longer wanted; None when it does not wait."""
        item = self._items.pop(key, None)
        if item is not None:
            class_key = (item.holder, item.shape)
            entry = self._classes[class_key]
            del entry.waiting[key]
            if not entry.waiting:
                del self._classes[class_key]
            if not self._items:
                self._holder_turns.clear()
                self._class_turns.clear()
        return item

    def discard_holder(self, holder: bytes) -> list[QueuedLease]:
        """Remove all requests of one holder, in order of arrival."""
        gone = [item for item in self._items.values() if item.holder == holder]
        for item in gone:
            self.discard(item.key)
        self._holder_turns.pop(holder, None)
        return gone

    def pop_next(self, supply: LeaseSupply, now_s: float) -> QueuedLease | None:
        """Remove and return the request to grant next; None when none may be granted."""
        item = self._choose(supply, now_s)
        if item is None:
            return None
        class_key = (item.holder, item.shape)
        self._turn += 1
        entry = self._classes[class_key]
        entry.turn, entry.served_at_s = self._turn, now_s
        self._holder_turns[item.holder] = self._turn
        self._class_turns[class_key] = (self._turn, now_s)
        self.discard(item.key)
        return item

    def reserved_for(self, supply: LeaseSupply, now_s: float) -> QueuedLease | None:
        """The starving request that is saved up for at this moment, if any (rule 1)."""
        best: _Class | None = None
        for entry in self._classes.values():
            if (
                self._is_reserving(entry, now_s)
                and (best is None or entry.starving_since_s() < best.starving_since_s())
                and supply.can_return(entry.head().needs)
            ):
                best = entry
        return best.head() if best is not None else None

    def heads(self, supply: LeaseSupply) -> list[QueuedLease]:
        """The head of each class, in the order of rules 2 and 3."""
        entries = sorted(
            self._classes.values(),
            key=lambda entry: (
                supply.share_of(entry.holder),
                self._holder_turns.get(entry.holder, 0),
                entry.turn,
            ),
        )
        return [entry.head() for entry in entries]

    def is_held_back(
        self, item: QueuedLease, reserved: QueuedLease | None, supply: LeaseSupply
    ) -> bool:
        """Whether saving up for ``reserved`` forbids granting ``item`` although it fits."""
        if reserved is None or item.key == reserved.key or supply.is_blocked(item.holder):
            return False
        left = supply.available.minus(item.needs)
        return any(left[name] < reserved.needs[name] for name in item.needs)

    def next_change_s(self, now_s: float) -> float | None:
        """When rule 1 next changes by time alone; None when it does not. Later than ``now_s``."""
        times = [self._next_boundary_s(entry, now_s) for entry in self._classes.values()]
        return min(times, default=None)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the two views of the queue disagree. For tests."""
        counted = 0
        for (holder, shape), entry in self._classes.items():
            assert entry.waiting, "a class without a waiting request is kept"
            for key, item in entry.waiting.items():
                assert self._items[key] is item
                assert (item.holder, item.shape) == (holder, shape)
            counted += len(entry.waiting)
        assert counted == len(self._items)

    def _choose(self, supply: LeaseSupply, now_s: float) -> QueuedLease | None:
        reserved = self.reserved_for(supply, now_s)
        if reserved is not None and supply.fits(reserved.needs):
            return reserved
        for item in self.heads(supply):
            if supply.fits(item.needs) and not self.is_held_back(item, reserved, supply):
                return item
        return None

    def _is_reserving(self, entry: _Class, now_s: float) -> bool:
        config = self._config
        starved_s = now_s - entry.starving_since_s() - config.reserve_after_s
        if starved_s < 0:
            return False
        return starved_s % (config.reserve_hold_s + config.reserve_pause_s) < config.reserve_hold_s

    def _next_boundary_s(self, entry: _Class, now_s: float) -> float:
        config = self._config
        start_s = entry.starving_since_s() + config.reserve_after_s
        if now_s < start_s:
            return start_s
        period_s = config.reserve_hold_s + config.reserve_pause_s
        periods = (now_s - start_s) // period_s
        into_s = (now_s - start_s) - periods * period_s
        step_s = config.reserve_hold_s if into_s < config.reserve_hold_s else period_s
        boundary_s = start_s + periods * period_s + step_s
        # Rounding may land on the present; a caller that sleeps until then must make progress.
        return boundary_s if boundary_s > now_s else now_s + config.reserve_pause_s
