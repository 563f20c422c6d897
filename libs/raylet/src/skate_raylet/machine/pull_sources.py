"""Which nodes can send objects, how busy each is, and which of them to ask next.

Part of the pull planner.
"""

from __future__ import annotations

import math
from collections import Counter

from skate_raylet.machine.pull import Pull, Source
from skate_raylet.machine.pull_config import PullConfig

NODES_DEAD_MAX = 10_000


class PullSources:
    """Invariant: ``loads`` holds the ranges under way of each node that has any."""

    def __init__(self, config: PullConfig, node_id: bytes) -> None:
        self._config = config
        self._node_id = node_id  # this one
        self._alive: dict[bytes, None] = {}  # and it is known where they serve
        self._dead: dict[bytes, str] = {}  # -> why, oldest first
        self.loads: Counter[bytes] = Counter()

    def seen(self, node_id: bytes) -> bool:
        """A node is alive; returns whether that is news. The dead stay dead."""
        is_news = node_id not in self._alive and node_id not in self._dead
        if is_news:
            self._alive[node_id] = None
        return is_news

    def gone(self, node_id: bytes, why: str) -> bool:
        """A node died; returns whether that is news."""
        if node_id in self._dead:
            return False
        self._alive.pop(node_id, None)
        self._dead[node_id] = why
        while len(self._dead) > NODES_DEAD_MAX:
            del self._dead[next(iter(self._dead))]
        return True

    def holders(self, pull: Pull) -> int:
        """Sources of the object that can be asked, now or later."""
        return sum(
            node_id in self._alive and node_id != self._node_id
            for node_id, _ in pull.asked_sources()
        )

    def lose_dead(self, pull: Pull) -> None:
        """Give up the sources that are known to be dead."""
        for node_id in pull.sources:
            if node_id in self._dead:
                pull.lose_source(node_id, self._dead[node_id])

    def lose_unknown(self, pull: Pull, now_s: float) -> None:
        """Give up the sources that nobody has heard of in time, and this node itself."""
        pull.lose_source(self._node_id, "it is this node, whose store does not have it")
        for node_id, source in pull.sources.items():
            deadline_s = source.named_at_s + self._config.unknown_node_s
            if node_id not in self._alive and now_s >= deadline_s:
                pull.lose_source(node_id, "it is not a node of this cluster")

    def choose(self, pull: Pull, now_s: float) -> bytes | None:
        """The source to ask next: the least busy, then the most reliable, then the first named."""
        usable = [
            (self.loads[node_id], source.failures, place, node_id)
            for place, (node_id, source) in enumerate(pull.asked_sources())
            if self._usable_at_s(pull, node_id, source) <= now_s
        ]
        return min(usable)[3] if usable else None

    def next_s(self, pull: Pull) -> float:
        """When time alone makes a source usable, or lost; infinite: never.

        Of a pull that could use one more source; so whatever is usable already has been used.
        """
        return min(
            (self._usable_at_s(pull, node_id, source) for node_id, source in pull.asked_sources()),
            default=math.inf,
        )

    def begin(self, node_id: bytes) -> None:
        """The node was asked for a range."""
        self.loads[node_id] += 1

    def end(self, node_id: bytes) -> None:
        """One of its ranges ended."""
        self.loads[node_id] -= 1
        if not self.loads[node_id]:
            del self.loads[node_id]

    def _usable_at_s(self, pull: Pull, node_id: bytes, source: Source) -> float:
        """When it can be asked, or is lost as unknown; infinite while something must end first."""
        if source.is_lost or pull.is_sent_by(node_id):
            return math.inf
        if node_id not in self._alive:
            return source.named_at_s + self._config.unknown_node_s
        if self.loads[node_id] >= self._config.ranges_per_source_max:
            return math.inf
        return source.not_before_s
