"""Requests that wait for room inside a placement group, and which of them is next.

Each place (a bundle, or any bundle of a group) has a queue of its own, with the rules of the
node's: fair between holders, and nothing starves. A bundle whose index is asked for and "any"
compete for the same room; whose head has waited longest is served first.

Comes beside ``lease_machine``, which owns the leases; ``bundle_table`` says what is free.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from skate_raylet.machine.bundle_table import Bundle, BundleTable
from skate_scheduler import LeaseQueue, LeaseQueueConfig, LeaseSupply, QueuedLease, ResourceSet

Place = tuple[bytes, int]
"""A group and the index of one of its bundles; -1: any with room."""


class BundleRequests:
    """Invariant: a queue is kept only while something waits in it."""

    def __init__(
        self,
        bundles: BundleTable,
        config: LeaseQueueConfig,
        share_of: Callable[[bytes], float],
        is_blocked: Callable[[bytes], bool],
    ) -> None:
        self._bundles = bundles
        self._config = config
        self._share_of = share_of
        self._is_blocked = is_blocked
        self._queues: dict[Place, LeaseQueue] = {}
        self._place_of: dict[Hashable, Place] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __contains__(self, key: object) -> bool:
        return key in self._place_of

    def __iter__(self) -> Iterator[QueuedLease]:
        for queue in self._queues.values():
            yield from queue

    def push(self, place: Place, item: QueuedLease) -> None:
        """Add a request at the end of its line."""
        queue = self._queues.get(place)
        if queue is None:
            queue = self._queues[place] = LeaseQueue(self._config)
        queue.push(item)
        self._place_of[item.key] = place

    def discard(self, key: Hashable) -> None:
        """Remove a request that is no longer wanted; unknown ones are ignored."""
        place = self._place_of.pop(key, None)
        if place is not None:
            queue = self._queues[place]
            queue.discard(key)
            if not queue:
                del self._queues[place]

    def place_of(self, key: Hashable) -> Place | None:
        """Where a request waits."""
        return self._place_of.get(key)

    def of_group(self, group_id: bytes) -> list[QueuedLease]:
        """The requests that wait for room in a group, in order of arrival in each line."""
        return [
            item for place, queue in self._queues.items() if place[0] == group_id for item in queue
        ]

    def pop_next(self, now_s: float) -> tuple[QueuedLease, Bundle] | None:
        """Remove and return the request to grant next, with its bundle; None when none may be."""
        by_age = sorted(
            self._queues.items(), key=lambda pair: min(item.since_s for item in pair[1])
        )
        for place, queue in by_age:
            item = queue.pop_next(self._supply(place), now_s)
            if item is None:
                continue
            bundle = self._bundles.with_room(*place, item.needs)
            assert bundle is not None, "the queue granted what does not fit"
            del self._place_of[item.key]
            if not queue:
                del self._queues[place]
            return item, bundle
        return None

    def waiting_for(self, bundle: Bundle, now_s: float) -> list[QueuedLease]:
        """The requests that this bundle could serve, in the order in which they would be."""
        found: dict[Hashable, QueuedLease] = {}
        for index in (bundle.key.index, -1):
            place = (bundle.key.group_id, index)
            queue = self._queues.get(place)
            if queue is not None:
                supply = self._supply(place)
                reserved = queue.reserved_for(supply, now_s)
                for item in [*([reserved] if reserved else []), *queue.heads(supply), *queue]:
                    found.setdefault(item.key, item)
        return list(found.values())

    def groups(self) -> list[bytes]:
        """The groups for which something waits."""
        return list(dict.fromkeys(group_id for group_id, _ in self._queues))

    def next_change_s(self, now_s: float) -> float | None:
        """When the order of a queue next changes by time alone."""
        times = [queue.next_change_s(now_s) for queue in self._queues.values()]
        return min((time for time in times if time is not None), default=None)

    def _supply(self, place: Place) -> LeaseSupply:
        bundles = self._bundles.of_group(*place)
        returnable = [
            bundle.total.minus(
                ResourceSet.total_of(
                    lease.resources for lease in bundle.holding() if not lease.holder_id
                )
            ).clamped()
            for bundle in bundles
        ]
        return LeaseSupply(
            available=ResourceSet.total_of(bundle.available for bundle in bundles),
            fits=lambda needs: self._bundles.with_room(*place, needs) is not None,
            can_return=lambda needs: any(needs.fits_in(one) for one in returnable),
            share_of=self._share_of,
            is_blocked=self._is_blocked,
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the queues and their index disagree. For tests."""
        for place, queue in self._queues.items():
            assert queue, "a queue without a waiting request is kept"
            queue.check_invariants()
            for item in queue:
                assert self._place_of[item.key] == place
        assert sum(map(len, self._queues.values())) == len(self._place_of)
