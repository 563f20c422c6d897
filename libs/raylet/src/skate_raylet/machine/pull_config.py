"""Limits of a node's pulls, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class PullConfig:
    """Limits of a node's pulls. Times in seconds."""

    bytes_max: int
    """Sum of the sizes of objects under way; a single larger one still comes, alone."""
    transfers_max: int = 16
    """Objects under way at a time: each occupies a thread."""
    ranges_per_source_max: int = 4
    """Ranges that one node sends to this one at a time."""
    sources_per_object: int = 2
    """Nodes that send parts of one large object at a time."""
    split_bytes: int = 64 << 20
    """From this size on several sources are used."""
    piece_bytes: int = 32 << 20
    """What a source sends before it is asked for the next part, where several are used."""
    stall_s: float = 10.0
    """Silence after which a source is given up."""
    retry_pause_s: float = 0.2
    """Before a source that failed, or a full store, is tried again."""
    room_wait_s: float = 10.0
    """How long room in the store is waited for."""
    unknown_node_s: float = 3.0
    """How long to wait for news of a node that this one has not heard of."""


class PullStatistics(msgspec.Struct, frozen=True):
    """Counts of one moment. A transfer counts once, however many waited for it."""

    queued: int
    under_way: int
    bytes_under_way: int
    done_total: int
    failed_total: int
