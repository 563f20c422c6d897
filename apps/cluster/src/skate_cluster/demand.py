"""What a cluster's work waits for, by shape, as ``skate status`` shows it.

The GCS sums it up over all nodes (``NodeService.ListDemands``); an autoscaler reads the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_scheduler import LabelRules, LabelSelector
from skate_scheduler.resources import from_units


@dataclass(frozen=True, slots=True)
class Demand:
    """Tasks and actors that wait for one shape. Amounts are whole resources, not units."""

    resources: dict[str, float]
    tasks: int
    """For which a worker was asked, and those behind them."""
    actors: int
    where: str
    """Which nodes may serve them, as a phrase; empty: any."""
    is_infeasible: bool
    """No live node could ever hold one."""


@dataclass(frozen=True, slots=True)
class BundleDemand:
    """Bundles of one kind in a placement group."""

    count: int
    resources: dict[str, float]
    label_selector: dict[str, str]


@dataclass(frozen=True, slots=True)
class GroupDemand:
    """Placement groups that are alike and wait."""

    count: int
    strategy: str
    bundles: list[BundleDemand]
    """Of one group, those that are not reserved."""
    since_s: float
    """Unix time since which the first in line waits."""
    is_infeasible: bool


@dataclass(frozen=True, slots=True)
class Demands:
    """All of it, the most numerous first."""

    shapes: list[Demand] = field(default_factory=list)
    groups: list[GroupDemand] = field(default_factory=list)
    shapes_left_out: int = 0
    """Shapes past a limit."""
    groups_left_out: int = 0
    """Placement groups past a limit."""


def demands_of(reply: gcs_pb2.ListDemandsReply) -> Demands:
    """The GCS's answer in whole resources."""
    return Demands(
        [
            Demand(
                amounts_of(one.shape.amounts),
                one.count + one.backlog,
                one.actors,
                _where(one.strategy),
                one.infeasible,
            )
            for one in reply.demands
        ],
        [
            GroupDemand(
                one.count,
                one.strategy,
                [
                    BundleDemand(
                        kind.count,
                        amounts_of(kind.bundle.resources.amounts),
                        dict(kind.bundle.label_selector),
                    )
                    for kind in one.bundles
                ],
                one.since_s,
                one.infeasible,
            )
            for one in reply.groups
        ],
        reply.demands_left_out,
        reply.groups_left_out,
    )


def amounts_of(units: Mapping[str, int]) -> dict[str, float]:
    """Whole resources from units, sorted by name."""
    return {name: from_units(units[name]) for name in sorted(units)}


def _where(strategy: gcs_pb2.SchedulingStrategy) -> str:
    parts: list[str] = []
    if strategy.node_id:
        soft = "at best " if strategy.soft else ""
        parts.append(f"{soft}on node {strategy.node_id.hex()[:12]}")
    if strategy.spread:
        parts.append("spread")
    if strategy.selectors:
        parts.append(f"where {LabelRules(tuple(map(_selector, strategy.selectors)))}")
    if strategy.preferred.expressions:
        parts.append(f"at best where {_selector(strategy.preferred)}")
    return ", ".join(parts)


def _selector(message: gcs_pb2.LabelSelector) -> LabelSelector:
    return LabelSelector.from_tuples(
        (one.key, one.operator, tuple(one.values)) for one in message.expressions
    )
