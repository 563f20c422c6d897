"""The rounds of questions to nodes that an attempt to place a group consists of.

One round asks all nodes of the attempt to set bundles aside, the next tells them that it holds.
What an answer means is decided in ``placement_group_table``; here is who is still to answer, and
when who did not is asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from skate_gcs.machine.clock import Now, Timers, Wakeup
from skate_gcs.machine.commands import (
    Command,
    CommitBundlesOnNode,
    PrepareBundlesOnNode,
    ReturnBundlesOnNode,
)
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.records import BundleRef, GroupPhase, PlacementGroupRecord


class _Round(msgspec.Struct):
    nodes: dict[bytes, list[int]]  # that take part, with the bundles of the attempt there
    silent: dict[bytes, None]  # that have not answered
    failures: int = 0  # unanswered questions


class Rounds:
    """Invariant: a round is under way exactly while somebody is awaited."""

    def __init__(self, nodes: NodeTable, limits: GcsLimits) -> None:
        self._nodes = nodes
        self._limits = limits
        self._rounds: dict[bytes, _Round] = {}
        self._repeats: Timers[tuple[bytes, bytes]] = Timers()

    def begin(self, record: PlacementGroupRecord, now: Now) -> None:
        """Ask all nodes of the attempt anew, in the row's phase."""
        nodes = bundles_at(record)
        self._rounds[record.spec.group_id] = _Round(nodes, dict.fromkeys(nodes))

    def send(
        self, record: PlacementGroupRecord, out: list[Command], *, only: bytes | None = None
    ) -> None:
        """The questions of the round to all who have not answered, or to one of them."""
        round_ = self._rounds[record.spec.group_id]
        for node_id in round_.silent if only is None else (only,):
            node = self._nodes.get_alive(node_id)
            if node is None:
                continue  # its death follows
            indices = round_.nodes[node_id]
            if record.phase is GroupPhase.PREPARING:
                bundles = {index: record.spec.bundles[index].resources for index in indices}
                out.append(
                    PrepareBundlesOnNode(
                        node_id,
                        node.raylet_endpoint,
                        record.spec.group_id,
                        record.attempt,
                        bundles,
                        commits=len(round_.nodes) == 1,
                    )
                )
            else:
                ref = BundleRef(record.spec.group_id, record.attempt, tuple(indices))
                out.append(CommitBundlesOnNode(node_id, node.raylet_endpoint, ref))

    def give_back(
        self, record: PlacementGroupRecord, held: Mapping[bytes, Sequence[int]], out: list[Command]
    ) -> None:
        """Order nodes to give bundles back; the dead have nothing to give."""
        for node_id, indices in held.items():
            node = self._nodes.get_alive(node_id)
            if node is not None:
                ref = BundleRef(record.spec.group_id, record.attempt, tuple(indices))
                out.append(ReturnBundlesOnNode(node_id, node.raylet_endpoint, ref))

    def answered(self, group_id: bytes, node_id: bytes) -> bool:
        """A node is no longer awaited. Returns whether it was the last."""
        round_ = self._rounds[group_id]
        del round_.silent[node_id]
        self._repeats.cancel((group_id, node_id))
        if not round_.silent:
            del self._rounds[group_id]
            return True
        return False

    def repeat_later(self, group_id: bytes, node_id: bytes, now: Now) -> None:
        """A node did not answer: ask it again after a pause, until it answers or is dead."""
        round_ = self._rounds[group_id]
        round_.failures += 1
        pause_s = self._limits.retry_pause_s(round_.failures)
        self._repeats.set((group_id, node_id), now.now_s + pause_s)

    def end(self, group_id: bytes) -> None:
        """The attempt is over."""
        round_ = self._rounds.pop(group_id, None)
        for node_id in () if round_ is None else round_.silent:
            self._repeats.cancel((group_id, node_id))

    def due(self, now_s: float) -> Iterable[tuple[bytes, bytes]]:
        """Groups and the nodes that are to be asked again."""
        while (key := self._repeats.pop_due(now_s)) is not None:
            yield key

    def next_wakeup(self) -> Wakeup | None:
        """When the next node is asked again."""
        at_s = self._repeats.next_s()
        return None if at_s is None else Wakeup(at_s, "a node is told of its bundles again")

    def is_under_way(self, group_id: bytes) -> bool:
        """Whether anybody is awaited."""
        return group_id in self._rounds

    def is_alone(self, group_id: bytes) -> bool:
        """Whether one node alone takes part."""
        return len(self._rounds[group_id].nodes) == 1

    def awaits(self, group_id: bytes, node_id: bytes) -> bool:
        """Whether this node has not answered."""
        round_ = self._rounds.get(group_id)
        return round_ is not None and node_id in round_.silent

    def awaited(self, group_id: bytes) -> int:
        """How many have not answered."""
        round_ = self._rounds.get(group_id)
        return 0 if round_ is None else len(round_.silent)

    def takes_part(self, group_id: bytes, node_id: bytes, index: int | None = None) -> bool:
        """Whether the attempt under way has bundles there, or this very bundle."""
        round_ = self._rounds.get(group_id)
        indices = () if round_ is None else round_.nodes.get(node_id, ())
        return bool(indices) if index is None else index in indices

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the rounds are inconsistent."""
        for round_ in self._rounds.values():
            assert round_.silent
            assert round_.silent.keys() <= round_.nodes.keys()


def bundles_at(record: PlacementGroupRecord) -> dict[bytes, list[int]]:
    """The bundles of the latest attempt, by the nodes that were chosen for them."""
    nodes: dict[bytes, list[int]] = {}
    for index, node_id in enumerate(record.node_ids):
        if node_id and record.attempts[index] == record.attempt:
            nodes.setdefault(node_id, []).append(index)
    return nodes
