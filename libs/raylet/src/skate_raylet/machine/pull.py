"""One object on its way to this node: who waits for it, who may send it, which parts are open.

Part of the pull planner, which decides when and from whom.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

SOURCE_ATTEMPTS_MAX = 2
"""Failures in a row, without :data:`PROGRESS_BYTES` between them, after which a source is lost."""

PROGRESS_BYTES = 1 << 20
"""A try that brought this much was no failure of the source, though it ended early."""

Waiter = tuple[bytes, int]
"""(process id, its pull id)."""


class Stage(Enum):
    """How far a transfer is. Memory of the store is reserved from ``FETCHING`` on."""

    QUEUED = "queued"
    MAKING_ROOM = "making_room"
    FETCHING = "fetching"
    SEALING = "sealing"
    DROPPING = "dropping"


@dataclass(slots=True)
class Source:
    """A node that is said to hold the object."""

    named_at_s: float
    failures: int = 0  # in a row
    not_before_s: float = 0.0  # a pause after a failure
    problem: str = ""
    is_lost: bool = False  # not asked again
    is_absent: bool = False  # it said itself that it does not have the object
    is_arriving: bool = False  # it is under way there; while such a one is left, others are spared


@dataclass(slots=True)
class Range:
    """A part that a source is sending."""

    node_id: bytes
    offset: int
    length: int
    progress_at_s: float
    stop_reason: str = ""  # it was told to end, and why


@dataclass(slots=True, eq=False)
class Pull:
    """All that waits for one object, and its transfer.

    Invariant: while fetching, ``missing`` and ``ranges`` are disjoint, and together with the bytes
    received they cover the object.
    """

    object_id: bytes
    size_bytes: int
    owner_id: bytes
    waiters: dict[Waiter, int] = field(default_factory=dict)  # -> priority
    sources: dict[bytes, Source] = field(default_factory=dict)  # best first
    stage: Stage = Stage.QUEUED
    retry_at_s: float = 0.0  # while queued: the store was full, ask again then
    room_deadline_s: float | None = None  # for room; from the first refusal on
    missing: list[tuple[int, int]] = field(default_factory=list)  # (offset, length), last first
    ranges: dict[int, Range] = field(default_factory=dict)
    is_unwanted: bool = False  # the transfer is to end; those who wait now get a new one
    successor: tuple[int, bytes] | None = None  # size and owner that those have named
    withdrawal: tuple[str, bytes] | None = None  # why the store took its room back; then it ends

    @property
    def priority(self) -> int:
        """That of the most urgent who waits."""
        return min(self.waiters.values())

    def add_sources(
        self, node_ids: tuple[bytes, ...], now_s: float, *, are_arriving: bool = False
    ) -> None:
        """Sources that are known keep what is known of them."""
        for node_id in node_ids:
            source = self.sources.get(node_id)
            if source is None:
                self.sources[node_id] = Source(now_s, is_arriving=are_arriving)
            elif not are_arriving:
                source.is_arriving = False  # it has it by now

    def asked_sources(self) -> list[tuple[bytes, Source]]:
        """Those that are not lost, but where some are to be asked first, only these."""
        left = [(node_id, one) for node_id, one in self.sources.items() if not one.is_lost]
        return [(node_id, one) for node_id, one in left if one.is_arriving] or left

    def forgive_sources(self, now_s: float) -> None:
        """Those that were lost get another chance: somebody named the object anew."""
        for node_id, source in self.sources.items():
            if source.is_lost:
                self.sources[node_id] = Source(now_s, is_arriving=source.is_arriving)

    def lose_source(self, node_id: bytes, problem: str) -> None:
        """Do not ask this node again."""
        source = self.sources.get(node_id)
        if source is not None and not source.is_lost:
            source.is_lost = True
            source.problem = problem

    def source_failed(
        self, node_id: bytes, received_bytes: int, problem: str, not_before_s: float
    ) -> None:
        """A try ended early: pause, and after too many of them give the source up."""
        source = self.sources[node_id]
        source.failures = 1 if received_bytes >= PROGRESS_BYTES else source.failures + 1
        source.not_before_s = not_before_s
        source.problem = problem
        if source.failures >= SOURCE_ATTEMPTS_MAX:
            source.is_lost = True

    def cut(self, piece_bytes: int) -> None:
        """Everything is missing, in pieces of at most ``piece_bytes``."""
        offsets = range(0, max(1, self.size_bytes), piece_bytes)
        pieces = [(offset, min(piece_bytes, self.size_bytes - offset)) for offset in offsets]
        self.missing = pieces[::-1]

    def renew(self) -> None:
        """The transfer is over: who waits now waits for another, perhaps of a new object."""
        self.is_unwanted = False
        if self.successor is not None:
            self.size_bytes, self.owner_id = self.successor
            self.successor = None

    def is_sent_by(self, node_id: bytes) -> bool:
        """Whether this source is sending a range at this moment."""
        return any(part.node_id == node_id for part in self.ranges.values())

    def lost_at(self) -> tuple[bytes, ...]:
        """The sources that were given up."""
        return tuple(node_id for node_id, source in self.sources.items() if source.is_lost)

    def absent_at(self) -> tuple[bytes, ...]:
        """The sources that said that they do not have it."""
        return tuple(node_id for node_id, source in self.sources.items() if source.is_absent)

    def why_lost(self) -> str:
        """Why no source is left, as a sentence."""
        if not self.sources:
            return "No node is known to hold the object."
        reasons = "; ".join(
            f"node {node_id.hex()[:8]}: {source.problem}"
            for node_id, source in self.sources.items()
        )
        return f"No node could send the object ({reasons})."
