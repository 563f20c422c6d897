"""Which placement groups wait for nodes, and which of them is looked at next.

Groups that are alike (same bundles, same strategy) wait in one line, because what keeps one waiting
keeps all of them: when the head of a line does not fit, nobody behind it is looked at until the
nodes have changed. Groups that lost bundles are looked at first, each in a line of its own.

Cost: O(1) per group; O(lines) per pass, and passes over lines that were stuck are at least
``group_pass_s`` apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from skate_gcs.machine.clock import Timers, Wakeup
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import BundleSpec, PlacementGroupRecord

_Shape = tuple[object, ...]


class Line(msgspec.Struct):
    """Groups that are alike. ``reason``: why the head waits, when ``is_stuck``."""

    shape: _Shape
    is_urgent: bool
    number: int  # of the first group that came
    waiting: OrderedDict[bytes, None] = msgspec.field(default_factory=OrderedDict)
    is_stuck: bool = False
    reason: str = ""
    scheduling_state: str = "QUEUED"


class PlacementGroupQueue:
    """Invariant: a group is in one line, or in a pause, or in neither."""

    def __init__(self, limits: GcsLimits) -> None:
        self._limits = limits
        self._lines: dict[_Shape, Line] = {}
        self._line_of: dict[bytes, Line] = {}
        self._pauses: Timers[bytes] = Timers()
        self._has_changed = False  # the nodes, since the last pass over stuck lines
        self._passed_s = float("-inf")

    def __contains__(self, group_id: bytes) -> bool:
        return group_id in self._line_of or group_id in self._pauses

    def add(self, record: PlacementGroupRecord, *, is_urgent: bool) -> None:
        """Have nodes sought for a group. ``is_urgent``: it lost bundles."""
        spec = record.spec
        self.discard(spec.group_id)
        shape: _Shape = (spec.group_id,)
        if not is_urgent:
            bundles = tuple(_freeze(bundle) for bundle in spec.bundles)
            shape = (spec.strategy, bundles, spec.soft_target_id)
        line = self._lines.get(shape)
        if line is None:
            line = self._lines[shape] = Line(shape, is_urgent, record.number)
        line.waiting[spec.group_id] = None
        self._line_of[spec.group_id] = line

    def pause(self, group_id: bytes, until_s: float) -> None:
        """Have nodes sought for a group, but not before."""
        self.discard(group_id)
        self._pauses.set(group_id, until_s)

    def discard(self, group_id: bytes) -> None:
        """Nodes are not sought any more."""
        self._pauses.cancel(group_id)
        line = self._line_of.pop(group_id, None)
        if line is not None:
            del line.waiting[group_id]
            if not line.waiting:
                del self._lines[line.shape]

    def nodes_changed(self) -> None:
        """A node came, went, or has more free."""
        self._has_changed = True

    def ended_pauses(self, now_s: float) -> list[bytes]:
        """The groups whose pauses are over; to be added again."""
        ended: list[bytes] = []
        while (group_id := self._pauses.pop_due(now_s)) is not None:
            ended.append(group_id)
        return ended

    def open_lines(self, now_s: float) -> list[Line]:
        """The lines whose heads are to be looked at: urgent ones first, then by age."""
        if self._has_changed and now_s >= self._passed_s + self._limits.group_pass_s:
            self._has_changed = False
            self._passed_s = now_s
            for line in self._lines.values():
                line.is_stuck = False
        is_open = [line for line in self._lines.values() if not line.is_stuck]
        if len(is_open) > 1:
            is_open.sort(key=lambda line: (not line.is_urgent, line.number))
        return is_open

    def line_of(self, group_id: bytes) -> Line | None:
        """The line that a group waits in."""
        return self._line_of.get(group_id)

    def lines(self) -> Iterator[Line]:
        """All lines."""
        return iter(self._lines.values())

    def paused(self) -> Iterator[bytes]:
        """The groups that are in a pause."""
        return iter(self._pauses)

    def next_wakeup(self) -> Wakeup | None:
        """When a pause ends, or stuck lines may be looked at again."""
        at_s = self._pauses.next_s()
        wakeup = None if at_s is None else Wakeup(at_s, "a placement group is tried again")
        if self._has_changed and any(line.is_stuck for line in self._lines.values()):
            pass_s = self._passed_s + self._limits.group_pass_s
            if wakeup is None or pass_s < wakeup.at_s:
                wakeup = Wakeup(pass_s, "placement groups that wait are looked at again")
        return wakeup

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the queue is inconsistent."""
        count = 0
        for shape, line in self._lines.items():
            assert line.shape == shape
            assert line.waiting
            for group_id in line.waiting:
                assert self._line_of[group_id] is line
                assert group_id not in self._pauses
                count += 1
        assert count == len(self._line_of)


def _freeze(bundle: BundleSpec) -> tuple[object, ...]:
    return tuple(sorted(bundle.resources.items())), tuple(sorted(bundle.selector.items()))
