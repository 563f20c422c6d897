"""The default policy: stay local until the node is half used, then spread over the least used.

Packing keeps arguments close and lets idle nodes be given back; spreading past one half keeps a
node from being filled while its neighbours idle. Choosing at random among the best few, and not
always the best, keeps many schedulers with the same slightly old view from all choosing the same
node.

Source: SURFACE row L1, which restates Ray's hybrid policy; its choice of a node for a request that
fits nowhere now is the one with the least shortfall to come, here by the same score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from skate_scheduler.node_view import NodeView
from skate_scheduler.random_source import RandomSource
from skate_scheduler.resources import DEVICE_RESOURCES, ResourceSet


@dataclass(frozen=True, slots=True)
class HybridConfig:
    """The policy's constants."""

    # Fraction in use below which all nodes are alike, so that the local one is taken.
    spread_threshold: float = 0.5
    # The choice is among this fraction of the nodes, and at least this many.
    top_fraction: float = 0.2
    top_min: int = 1
    # Keep work that needs no device off nodes that have one while another node is free.
    avoids_devices: bool = True


DEFAULT_CONFIG = HybridConfig()


class Fit(Enum):
    """How a request fits the cluster."""

    NOW = "now"  # the chosen node has room
    LATER = "later"  # the chosen node could hold it, once others return
    NEVER = "never"  # no live node could ever hold it


@dataclass(frozen=True, slots=True)
class Placement:
    """The decision. ``node_id`` is None exactly when ``fit`` is ``NEVER``."""

    fit: Fit
    node_id: bytes | None


def choose_node(
    request: ResourceSet,
    nodes: Sequence[NodeView],
    *,
    random: RandomSource,
    local_id: bytes | None = None,
    config: HybridConfig = DEFAULT_CONFIG,
) -> Placement:
    """Choose a node for the request. O(n log n) in the number of nodes.

    ``nodes`` in a fixed order and one state of ``random`` give one decision.
    """
    feasible = [node for node in nodes if node.can_ever_hold(request)]
    if not feasible:
        return Placement(Fit.NEVER, None)
    free = [node for node in feasible if node.can_hold_now(request)]
    if not free:
        return Placement(Fit.LATER, _best(request, feasible, random, local_id, config))
    if config.avoids_devices and not any(name in request for name in DEVICE_RESOURCES):
        plain = [node for node in free if not any(name in node.total for name in DEVICE_RESOURCES)]
        free = plain or free
    return Placement(Fit.NOW, _best(request, free, random, local_id, config))


def _best(
    request: ResourceSet,
    nodes: Sequence[NodeView],
    random: RandomSource,
    local_id: bytes | None,
    config: HybridConfig,
) -> bytes:
    """The local node if it scores with the best, else one of the top few."""
    scored: list[tuple[float, bytes]] = []
    for node in nodes:
        utilization = node.utilization_with(request)
        score = 0.0 if utilization <= config.spread_threshold else utilization
        scored.append((score, node.node_id))
    lowest = min(score for score, _ in scored)
    for score, node_id in scored:
        if node_id == local_id and score <= lowest:
            return node_id
    scored.sort()
    top = max(config.top_min, int(len(scored) * config.top_fraction), 1)
    candidates = scored[:top]
    return candidates[random.randrange(len(candidates))][1]
