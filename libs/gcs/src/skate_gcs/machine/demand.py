"""What the cluster's work waits for, by shape: what an autoscaler reads.

Nodes report the shapes of the requests that wait there, when these change; the sums over all nodes
are kept in step with the reports, so that nobody has to go through the nodes to read them. Actors
that no node has taken, and placement groups, are added by those who hold them, at the moment of the
question. Nothing here is stored: after a restart of the GCS every node reports anew.

Size: ``demand_shapes_max`` shapes of a node and of an answer. Cost: O(shapes of a report) per
report; O(shapes) per question.

Source: SURFACE rows Z2, P16, L9; Ray's ``autoscaler.proto`` (pending resource requests, gang
requests).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import BundleSpec, PlacementGroupRecord, Strategy
from skate_scheduler import ResourceSet

_DEFAULT_STRATEGY = Strategy()


class Demand(msgspec.Struct, frozen=True):
    """What waits for room for one shape, at one place or in all."""

    shape: ResourceSet
    strategy: Strategy = _DEFAULT_STRATEGY  # without a placement group
    requests: int = 0  # tasks that a worker was asked for
    backlog: int = 0  # tasks behind those
    actors: int = 0
    is_infeasible: bool = False  # no live node could ever hold it, as everybody says who knows it

    @property
    def count(self) -> int:
        """Tasks and actors."""
        return self.requests + self.backlog + self.actors


class GroupDemand(msgspec.Struct, frozen=True):
    """Placement groups that are alike and wait."""

    strategy: str
    bundles: tuple[tuple[BundleSpec, int], ...]  # of one group: those not reserved, and how many
    count: int  # groups
    is_infeasible: bool
    since_s: float  # Unix time since which the first in line waits


class _Sum(msgspec.Struct):
    requests: int = 0
    backlog: int = 0
    actors: int = 0
    places: int = 0  # that know the shape
    infeasible: int = 0  # of these

    def add(self, demand: Demand, sign: int) -> None:
        self.requests += sign * demand.requests
        self.backlog += sign * demand.backlog
        self.actors += sign * demand.actors
        self.places += sign
        self.infeasible += sign * demand.is_infeasible


class _Reported(msgspec.Struct, frozen=True):
    version: int
    demands: tuple[Demand, ...]
    left_out: int  # shapes that the node did not name, or that were not kept


_Key = tuple[ResourceSet, Strategy]


class DemandTable:
    """What the live nodes last reported.

    Invariant: each sum is that of the nodes' demands with its shape and strategy, and none is kept
    of nobody.
    """

    def __init__(self, limits: GcsLimits) -> None:
        self._shapes_max = limits.demand_shapes_max
        self._nodes: dict[bytes, _Reported] = {}
        self._sums: dict[_Key, _Sum] = {}

    def reported(
        self, node_id: bytes, version: int, demands: Sequence[Demand], left_out: int
    ) -> None:
        """Take all that waits on a node; a report that was overtaken changes nothing.

        No two ``demands`` have the same shape and strategy. ``left_out``: shapes not among them.
        """
        before = self._nodes.get(node_id)
        if before is not None and version < before.version:
            return
        kept = tuple(demands[: self._shapes_max])
        left_out += len(demands) - len(kept)
        self._count(() if before is None else before.demands, -1)
        self._count(kept, 1)
        self._nodes[node_id] = _Reported(version, kept, left_out)

    def forget(self, node_id: bytes) -> None:
        """The node is dead, and those who asked there with it."""
        before = self._nodes.pop(node_id, None)
        if before is not None:
            self._count(before.demands, -1)

    def with_actors(self, actors: Iterable[Demand]) -> tuple[list[Demand], int]:
        """The nodes' demands and these, summed, the most numerous first.

        Also how many shapes are missing, because of a limit here or at a node.
        """
        sums = dict(self._sums)
        for demand in actors:
            key = (demand.shape, demand.strategy)
            known = sums.get(key)
            sums[key] = _Sum() if known is None else replace(known)
            sums[key].add(demand, 1)
        demands = [
            Demand(*key, one.requests, one.backlog, one.actors, one.infeasible == one.places)
            for key, one in sums.items()
        ]
        demands.sort(key=lambda demand: -demand.count)
        left_out = sum(node.left_out for node in self._nodes.values())
        return demands[: self._shapes_max], left_out + max(0, len(demands) - self._shapes_max)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the sums disagree with the reports. O(shapes of all)."""
        fresh: dict[_Key, _Sum] = {}
        for node in self._nodes.values():
            assert len(node.demands) <= self._shapes_max
            for demand in node.demands:
                fresh.setdefault((demand.shape, demand.strategy), _Sum()).add(demand, 1)
        assert fresh == self._sums

    def _count(self, demands: Iterable[Demand], sign: int) -> None:
        for demand in demands:
            key = (demand.shape, demand.strategy)
            one = self._sums.setdefault(key, _Sum())
            one.add(demand, sign)
            if not one.places:
                del self._sums[key]


def sum_groups(
    waiting: Iterable[tuple[PlacementGroupRecord, int, bool]], kinds_max: int
) -> tuple[list[GroupDemand], int]:
    """Waiting placement groups, those that are alike as one, the most numerous first.

    ``waiting``: the first of some that are alike, how many they are, whether no live nodes could
    ever hold one. ``kinds_max``: of bundles in the whole answer. Also how many groups are past it.
    """
    sums: dict[tuple[object, ...], GroupDemand] = {}
    for record, count, is_infeasible in waiting:
        kinds = _bundle_kinds(record)
        key = (record.spec.strategy, tuple(sorted((kind, n) for kind, (_, n) in kinds.items())))
        demand = GroupDemand(
            record.spec.strategy,
            tuple(kinds.values()),
            count,
            is_infeasible,
            record.pending_since_s,
        )
        known = sums.get(key)
        if known is not None:
            demand = replace(
                known,
                count=known.count + count,
                is_infeasible=known.is_infeasible and is_infeasible,
                since_s=min(known.since_s, demand.since_s),
            )
        sums[key] = demand
    shown: list[GroupDemand] = []
    left_out, room = 0, kinds_max
    for demand in sorted(sums.values(), key=lambda one: -one.count):
        room -= len(demand.bundles)
        if room >= 0:
            shown.append(demand)
        else:
            left_out += demand.count
    return shown, left_out


_BundleKey = tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str], ...]]


def _bundle_kinds(record: PlacementGroupRecord) -> dict[_BundleKey, tuple[BundleSpec, int]]:
    """The bundles that are not reserved: each kind with how many there are."""
    kinds: dict[_BundleKey, tuple[BundleSpec, int]] = {}
    for bundle, node_id in zip(record.spec.bundles, record.node_ids, strict=True):
        if not node_id:
            key = (tuple(sorted(bundle.resources.items())), tuple(sorted(bundle.selector.items())))
            kinds[key] = (bundle, kinds[key][1] + 1 if key in kinds else 1)
    return kinds
