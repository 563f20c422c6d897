"""In which order pulls start, and how much may be under way at a time.

Part of the pull planner. A pull is queued, or parked for a while because the store was full, or
under way; the planner knows what it does then.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate_raylet.machine.pull import Pull, Stage
from skate_raylet.machine.pull_config import PullConfig


class PullQueue:
    """Invariant: a pull is in at most one of the queues, ``_parked`` and ``under_way``."""

    def __init__(self, config: PullConfig) -> None:
        self._config = config
        self._queues: dict[int, dict[bytes, Pull]] = {}  # by priority, in order of arrival
        self._parked: dict[bytes, Pull] = {}
        self.under_way: dict[bytes, Pull] = {}
        self.bytes_under_way = 0
        """The sum of their sizes; at most ``bytes_max``, unless a single one is larger."""

    def __len__(self) -> int:
        """Pulls that are not under way."""
        return sum(map(len, self._queues.values())) + len(self._parked)

    def add(self, pull: Pull) -> None:
        """Stand in the queue of the pull's priority; one that stands there keeps its place."""
        queue = self._queues.setdefault(pull.priority, {})
        if pull.object_id not in queue and pull.object_id not in self._parked:
            self.remove(pull)
            queue[pull.object_id] = pull

    def remove(self, pull: Pull) -> None:
        """Wait no longer; a pull that does not wait is not affected."""
        self._parked.pop(pull.object_id, None)
        for queue in self._queues.values():
            queue.pop(pull.object_id, None)

    def admit_next(self) -> Pull | None:
        """Let the next pull be under way, if it may; what is urgent holds back what is behind."""
        for _, queue in sorted(self._queues.items()):
            for pull in queue.values():
                total_bytes = self.bytes_under_way + pull.size_bytes
                is_too_much = self.under_way and total_bytes > self._config.bytes_max
                if is_too_much or len(self.under_way) >= self._config.transfers_max:
                    return None
                del queue[pull.object_id]
                self.under_way[pull.object_id] = pull
                self.bytes_under_way = total_bytes
                return pull
        return None

    def end(self, pull: Pull) -> None:
        """It is not under way any more."""
        del self.under_way[pull.object_id]
        self.bytes_under_way -= pull.size_bytes

    def park(self, pull: Pull, now_s: float) -> None:
        """Have a pull that ended come back to the queue after a pause."""
        pull.retry_at_s = now_s + self._config.retry_pause_s
        self._parked[pull.object_id] = pull

    def unpark(self, now_s: float) -> None:
        """Put those whose pause is over back into the queue."""
        for pull in [one for one in self._parked.values() if one.retry_at_s <= now_s]:
            del self._parked[pull.object_id]
            self.add(pull)

    def next_unpark_s(self) -> float | None:
        """When that is due next."""
        return min((pull.retry_at_s for pull in self._parked.values()), default=None)

    def check_invariants(self, pulls: Iterable[Pull]) -> None:
        """Raise ``AssertionError`` unless exactly these pulls are here, each in one place."""
        waiting = [object_id for queue in self._queues.values() for object_id in queue]
        waiting += self._parked
        assert len(waiting) == len(set(waiting))
        found = {pull.object_id: pull.stage is Stage.QUEUED for pull in pulls}
        assert set(waiting) == {object_id for object_id, is_queued in found.items() if is_queued}
        assert set(self.under_way) == set(found) - set(waiting)
        assert self.bytes_under_way == sum(pull.size_bytes for pull in self.under_way.values())
        assert len(self.under_way) <= self._config.transfers_max
        assert len(self.under_way) <= 1 or self.bytes_under_way <= self._config.bytes_max
