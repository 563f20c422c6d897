"""The other nodes as this one sees them, and which of them should serve a request.

A view is a report old, so what was asked of a node and not yet answered counts as taken, and a node
that said it is busy, or does not answer, is left alone for a while. O(nodes) for a choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from skate_raylet.machine.events import DEFAULT_STRATEGY, LeaseRequested, Strategy
from skate_scheduler import (
    DEVICE_RESOURCES,
    Fit,
    NodeView,
    Placement,
    RandomSource,
    ResourceSet,
    choose_node,
    choose_spread,
)

SPREAD_THRESHOLD: Final = 0.5  # as in HybridConfig: below, no other node is looked at
SHUN_S: Final = 0.2  # a node that was busy is not asked again for this long
UNREACHABLE_S: Final = 1.0  # nor one whose line broke, for this long after each attempt
DEAD_KEPT_MAX: Final = 1000


class _Neighbour(msgspec.Struct):
    view: NodeView
    claimed: dict[int, ResourceSet] = msgspec.field(default_factory=dict)  # by ask


class Neighbours:
    """The live nodes but for this one."""

    def __init__(self, node_id: bytes, random: RandomSource) -> None:
        self._node_id = node_id
        self._random = random
        self._nodes: dict[bytes, _Neighbour] = {}
        self._dead: dict[bytes, None] = {}
        self._shunned: dict[bytes, float] = {}  # until when; few, and dropped when it is over
        self._turn = b""  # the node that was last chosen by SPREAD

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._nodes

    def see(self, view: NodeView) -> None:
        """Take a report; one of a dead node is late."""
        if view.node_id in self._dead or view.node_id == self._node_id:
            return
        known = self._nodes.get(view.node_id)
        if known is None:
            self._nodes[view.node_id] = _Neighbour(view)
        else:
            known.view = view

    def forget(self, node_id: bytes) -> None:
        """The node is dead."""
        self._nodes.pop(node_id, None)
        self._shunned.pop(node_id, None)
        self._dead[node_id] = None
        while len(self._dead) > DEAD_KEPT_MAX:
            del self._dead[next(iter(self._dead))]

    def claim(self, node_id: bytes, ask_id: int, resources: ResourceSet) -> None:
        """A node was asked for this and has not answered."""
        self._nodes[node_id].claimed[ask_id] = resources

    def settle(self, node_id: bytes, ask_id: int) -> None:
        """It answered, or is no longer asked.

        What was granted is in its next report or was in the last: nothing tells which, and taking
        it off a report that knows it already would hide room that is there until the next change.
        """
        node = self._nodes.get(node_id)
        if node is not None:
            node.claimed.pop(ask_id, None)

    def shun(self, node_id: bytes, now_s: float, pause_s: float) -> None:
        """Leave a node alone for a while."""
        if node_id in self._nodes:
            self._shunned[node_id] = max(self._shunned.get(node_id, now_s), now_s + pause_s)

    def next_change_s(self, now_s: float) -> float | None:
        """When the next node is no longer shunned; None when none is. O(shunned nodes)."""
        for node_id in [one for one, until_s in self._shunned.items() if until_s <= now_s]:
            del self._shunned[node_id]
        return min(self._shunned.values(), default=None)

    def choose(self, request: LeaseRequested, local: NodeView, now_s: float) -> bytes | None:
        """The node for a new request, perhaps this one; None when none can ever hold it."""
        needs, strategy = request.resources, request.strategy
        if strategy is not DEFAULT_STRATEGY and strategy.node_id:
            affine = self._affine(strategy, needs, local)
            if affine in self._nodes and self._is_shunned(affine, now_s):
                return local.node_id  # to wait there until it may be asked again
            if affine is not None or not strategy.is_soft:
                return affine
        elif strategy.is_spread:
            return self._spread([local, *self._views(now_s)], needs)
        elif _is_half_used_at_most(local, needs):
            return local.node_id
        others = self._views(now_s)
        placement = choose_node(
            needs, [local, *others], random=self._random, local_id=local.node_id
        )
        if placement.fit is Fit.LATER and local.can_ever_hold(needs):
            return local.node_id
        return placement.node_id

    def choose_other(self, request: LeaseRequested, local: NodeView, now_s: float) -> bytes | None:
        """Another node for a request that waits here; None when it is best left waiting."""
        needs, strategy = request.resources, request.strategy
        if strategy.node_id:
            affine = self._affine(strategy, needs, local)
            if affine is not None or not strategy.is_soft:
                is_ready = affine in self._nodes and not self._is_shunned(affine, now_s)
                return affine if affine != local.node_id and is_ready else None
        placement: Placement = choose_node(needs, self._views(now_s), random=self._random)
        if placement.fit is Fit.LATER and local.can_ever_hold(needs):
            return None
        return placement.node_id

    def has_home(self, request: LeaseRequested) -> bool:
        """Whether some other node could ever hold the request."""
        strategy = request.strategy
        if strategy.node_id and not strategy.is_soft:
            node = self._nodes.get(strategy.node_id)
            return node is not None and node.view.can_ever_hold(request.resources)
        return any(node.view.can_ever_hold(request.resources) for node in self._nodes.values())

    def is_fit(self, strategy: Strategy, needs: ResourceSet, local: NodeView) -> bool:
        """Whether the node that a request is bound to lives and could ever hold it."""
        return self._affine(strategy, needs, local) is not None

    def is_dead(self, node_id: bytes) -> bool:
        """Whether the node is known to have died."""
        return node_id in self._dead

    def totals(self) -> list[ResourceSet]:
        """What each of the nodes has."""
        return [node.view.total for node in self._nodes.values()]

    def _affine(self, strategy: Strategy, needs: ResourceSet, local: NodeView) -> bytes | None:
        """The node that was asked for, if it can ever hold the request."""
        if strategy.node_id == local.node_id:
            return local.node_id if local.can_ever_hold(needs) else None
        node = self._nodes.get(strategy.node_id)
        return strategy.node_id if node is not None and node.view.can_ever_hold(needs) else None

    def _spread(self, views: list[NodeView], needs: ResourceSet) -> bytes | None:
        placement = choose_spread(needs, views, after=self._turn)
        if placement.node_id is not None:
            self._turn = placement.node_id
        return placement.node_id

    def _is_shunned(self, node_id: bytes, now_s: float) -> bool:
        return self._shunned.get(node_id, now_s) > now_s

    def _views(self, now_s: float) -> list[NodeView]:
        return [
            _less(node.view, node.claimed.values()) if node.claimed else node.view
            for node in self._nodes.values()
            if not self._shunned or not self._is_shunned(node.view.node_id, now_s)
        ]


def _less(view: NodeView, claims: Iterable[ResourceSet]) -> NodeView:
    return view.with_claimed(ResourceSet.total_of(claims))


def _is_half_used_at_most(local: NodeView, needs: ResourceSet) -> bool:
    """Whether the default policy takes this node without a look at others."""
    if not local.can_hold_now(needs) or local.utilization_with(needs) > SPREAD_THRESHOLD:
        return False
    return not any(name in local.total and name not in needs for name in DEVICE_RESOURCES)
