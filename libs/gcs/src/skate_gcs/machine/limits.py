"""The machines' named limits and times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GcsLimits:
    """Times in seconds, counts in rows. The defaults are for production; tests shrink them."""

    node_suspect_s: float = 4.0
    """Silence after which a node gets no new actors. Below half of ``node_dead_s``, so that work
    stops going there well before its actors are declared lost."""

    node_probe_s: float = 2.0
    """Silence after which it is looked whether anything still listens at the node's endpoint, and
    the pause until the next look. A refused connection proves that the node's process is gone,
    well before ``node_dead_s``; no answer at all proves nothing."""

    node_dead_s: float = 10.0
    """Silence after which a node is dead and fenced."""

    node_oversleep_s: float = 1.0
    """If the GCS itself was not run for this much longer than it asked for (stopped, swapped out),
    the nodes' silence in that time proves nothing and is not counted."""

    resource_broadcast_s: float = 0.1
    """Least time between two announcements of one node's free resources."""

    nodes_dead_max: int = 1_000
    """Dead nodes that are kept for the state API; the oldest go first."""

    jobs_finished_max: int = 10_000
    """Finished jobs that are kept."""

    actors_dead_max: int = 100_000
    """Dead actors that are kept, so that late callers learn the cause."""

    workers_dead_max: int = 1_000
    """Dead workers that are kept."""

    retry_first_s: float = 0.2
    """First pause before an actor's start, or a kill order, is tried again. Doubles up to:"""

    retry_max_s: float = 2.0
    """Longest pause."""

    actor_settled_s: float = 0.5
    """An actor that lived this long has settled: its next restart is not delayed. Shorter lives in
    a row are spaced by the retry pauses, so that a class that always crashes does not occupy a
    node."""

    starts_window_max: int = 256
    """Start requests of one resource shape that may be unanswered at a time."""

    groups_removed_max: int = 10_000
    """Removed placement groups that are kept, so that late users learn the reason."""

    group_bundles_max: int = 10_000
    """Bundles of one placement group."""

    group_retry_first_s: float = 0.1
    """First pause after an attempt to place a group failed. Grows by half up to:"""

    group_retry_max_s: float = 1.0
    """Longest such pause (SURFACE P3)."""

    demand_shapes_max: int = 1_000
    """Shapes of waiting work that are kept of each node, and given in one answer; kinds of waiting
    placement groups in one answer, and of bundles in all of these."""

    group_pass_s: float = 0.01
    """Least time between two looks at all groups that wait for room."""

    def __post_init__(self) -> None:
        if not 0 < self.node_suspect_s * 2 <= self.node_dead_s:
            raise ValueError("node_suspect_s must be positive and at most half of node_dead_s.")
        if not self.node_probe_s > 0:
            raise ValueError("node_probe_s must be positive.")
        if not 0 < self.retry_first_s <= self.retry_max_s:
            raise ValueError("retry_first_s must be positive and at most retry_max_s.")

    def group_pause_s(self, failures: int) -> float:
        """The pause of a placement group after this many failed attempts, ``failures >= 1``."""
        pause_s = self.group_retry_first_s * 1.5 ** min(failures - 1, 32)
        return min(pause_s, self.group_retry_max_s)

    def retry_pause_s(self, failures: int) -> float:
        """The pause after this many failures in a row, ``failures >= 1``."""
        return min(self.retry_first_s * 2.0 ** min(failures - 1, 32), self.retry_max_s)
