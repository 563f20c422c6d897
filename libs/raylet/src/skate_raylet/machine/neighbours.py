"""The other nodes as this one sees them, and which of them should serve a request.

A view is a report old, so what was asked of a node and not yet answered counts as taken, and a node
that said it is busy, or does not answer, is left alone for a while.

A choice weighs at most ``CANDIDATES_MAX`` nodes with room, found from a random place on, and looks
at those alone that have any of the request's scarcest resource free; without room anywhere, at the
first that could ever hold it. So it costs the same in a cluster of any size, unless most of what it
looks at is in the way: nodes with a little of that resource left but not enough. Requests with
conditions on labels look at all nodes.
"""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

from skate_raylet.machine.events import DEFAULT_STRATEGY, LeaseRequested, Strategy
from skate_raylet.machine.roomy_nodes import Ring, RoomyNodes, start_of
from skate_scheduler import (
    ANY_LABELS,
    DEVICE_RESOURCES,
    Fit,
    LabelRules,
    LabelTest,
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
NODES_SHOWN_MAX: Final = 5  # in a sentence
CANDIDATES_MAX: Final = 64  # nodes that a policy weighs for one request, as in the GCS
HOMES_KEPT_MAX: Final = 1000


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
        self._roomy = RoomyNodes()
        self._ids: list[bytes] = []  # sorted: the order of turns
        # Whether any of these nodes could ever hold a request; forgotten when one changes its size.
        self._homes: dict[tuple[ResourceSet, Strategy], bool] = {}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def __contains__(self, node_id: bytes) -> bool:
        return node_id in self._nodes

    def see(self, view: NodeView) -> None:
        """Take a report; one of a dead node is late."""
        if view.node_id in self._dead or view.node_id == self._node_id:
            return
        known = self._nodes.get(view.node_id)
        before = None if known is None else known.view
        self._roomy.update(before, view)
        if known is None:
            self._nodes[view.node_id] = _Neighbour(view)
            bisect.insort(self._ids, view.node_id)
        else:
            known.view = view
        if before is None or not _is_alike(before, view):
            self._homes.clear()

    def forget(self, node_id: bytes) -> None:
        """The node is dead."""
        node = self._nodes.pop(node_id, None)
        if node is not None:
            self._roomy.remove(node.view)
            del self._ids[bisect.bisect_left(self._ids, node_id)]
            self._homes.clear()
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
        if request.near:
            near = self._nearest(request, local, now_s)
            if near is not None:
                return near
        if strategy is DEFAULT_STRATEGY and _is_half_used_at_most(local, needs):
            return local.node_id
        if strategy.node_id:
            affine = self._affine(strategy, needs, local)
            if affine in self._nodes and self._is_shunned(affine, now_s):
                return local.node_id  # to wait there until it may be asked again
            if affine is not None or not strategy.is_soft:
                return affine
        if strategy.is_spread:
            return self._spread(local, request, now_s)
        views = [local, *self._candidates(request, local, now_s)]
        placement = self._best(views, request, local.node_id)
        if placement.fit is Fit.LATER and _may_run_at(local, request):
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
        if request.near:
            near = self._nearest(request, local, now_s)
            if near is not None:
                return near if near != local.node_id else None
        placement = self._best(self._candidates(request, local, now_s), request, None)
        if placement.fit is Fit.LATER and _may_run_at(local, request):
            return None
        return placement.node_id

    def has_home(self, request: LeaseRequested) -> bool:
        """Whether some other node could ever hold the request."""
        strategy = request.strategy
        if strategy.node_id and not strategy.is_soft:
            node = self._nodes.get(strategy.node_id)
            return node is not None and _may_run_at(node.view, request)
        key = (request.resources, strategy)
        known = self._homes.get(key)
        if known is None:
            known = any(_may_run_at(node.view, request) for node in self._nodes.values())
            if len(self._homes) >= HOMES_KEPT_MAX:
                self._homes.clear()
            self._homes[key] = known
        return known

    def is_fit(self, strategy: Strategy, needs: ResourceSet, local: NodeView) -> bool:
        """Whether the node that a request is bound to lives and could ever hold it."""
        return self._affine(strategy, needs, local) is not None

    def is_dead(self, node_id: bytes) -> bool:
        """Whether the node is known to have died."""
        return node_id in self._dead

    def why_full(self, request: LeaseRequested) -> str:
        """Which other nodes could hold a request, and what they have free."""
        able = [node.view for node in self._nodes.values() if _may_run_at(node.view, request)]
        bound_to = request.strategy.node_id
        if bound_to and not request.strategy.is_soft:
            able = [view for view in able if view.node_id == bound_to]
        shown = [
            f"node {view.node_id.hex()[:12]} (free:"
            f" {view.available.restricted_to(request.resources)})"
            for view in able[:NODES_SHOWN_MAX]
        ]
        others = len(able) - len(shown)
        more = f" and {others} more" if others > 0 else ""
        return f"only other nodes could hold it, and they are busy: {', '.join(shown)}{more}"

    def totals(self, labels: LabelRules = ANY_LABELS) -> list[ResourceSet]:
        """What each of the nodes has whose labels are allowed."""
        return [node.view.total for node in self._nodes.values() if labels.allow(node.view.labels)]

    def has_room(
        self, strategy: Strategy, needs: ResourceSet, local: NodeView, now_s: float
    ) -> bool:
        """Whether the node that a request is bound to has room now, as far as is known."""
        if strategy.node_id == local.node_id:
            return local.can_hold_now(needs)
        node = self._nodes.get(strategy.node_id)
        is_asked = node is not None and not self._is_shunned(strategy.node_id, now_s)
        return node is not None and is_asked and _claimed(node).can_hold_now(needs)

    def _affine(self, strategy: Strategy, needs: ResourceSet, local: NodeView) -> bytes | None:
        """The node that was asked for, if it can ever hold the request."""
        node = self._nodes.get(strategy.node_id)
        view = local if strategy.node_id == local.node_id else node.view if node else None
        is_fit = (
            view is not None and view.can_ever_hold(needs) and strategy.labels.allow(view.labels)
        )
        return strategy.node_id if is_fit else None

    def _nearest(self, request: LeaseRequested, local: NodeView, now_s: float) -> bytes | None:
        """The node with most bytes of the arguments among those that have room now.

        Source: SURFACE row L3; explicit strategies come first.
        """
        strategy = request.strategy
        if strategy.node_id or strategy.is_spread:
            return None
        for node_id, _ in request.near:
            node = self._nodes.get(node_id)
            if node_id == local.node_id:
                view = local
            elif node is not None and not self._is_shunned(node_id, now_s):
                view = _claimed(node)
            else:
                continue
            if view.can_hold_now(request.resources) and strategy.labels.allow(view.labels):
                return node_id
        return None

    def _best(
        self, views: list[NodeView], request: LeaseRequested, local_id: bytes | None
    ) -> Placement:
        """The default policy over the nodes that the request's labels allow."""
        needs, labels = request.resources, request.strategy.labels

        def choose(test: LabelTest | None) -> Placement:
            nodes = views if test is None else [view for view in views if test(view.labels)]
            return choose_node(needs, nodes, random=self._random, local_id=local_id)

        return labels.choose(choose) if labels else choose(None)

    def _spread(self, local: NodeView, request: LeaseRequested, now_s: float) -> bytes | None:
        labels = request.strategy.labels
        views = None if labels else self._in_turn(local, request.resources, now_s)
        if views is None:
            views = [local, *self._views(now_s)]

        def choose(test: LabelTest) -> Placement:
            nodes = [view for view in views if test(view.labels)]
            return choose_spread(request.resources, nodes, after=self._turn)

        placement = labels.choose(choose)
        if placement.node_id is not None:
            self._turn = placement.node_id
        return placement.node_id

    def _in_turn(self, local: NodeView, needs: ResourceSet, now_s: float) -> list[NodeView] | None:
        """The nodes among which the next turn is, for a request without conditions on labels.

        None: it has to be looked for among all.
        """
        ring = self._roomy.ring_for(needs)
        if len(ring) <= CANDIDATES_MAX:
            return (
                None if len(self._ids) <= CANDIDATES_MAX else self._few(ring, local, needs, now_s)
            )
        begin = bisect.bisect_right(self._ids, self._turn)
        for step in range(len(self._ids)):
            node_id = self._ids[(begin + step) % len(self._ids)]
            if not self._is_shunned(node_id, now_s):
                view = _claimed(self._nodes[node_id])
                if view.can_hold_now(needs):
                    return [local, view]
        return None

    def _few(
        self, ring: Ring, local: NodeView, needs: ResourceSet, now_s: float
    ) -> list[NodeView] | None:
        views = [
            _claimed(self._nodes[one]) for one in ring.walk(0) if not self._is_shunned(one, now_s)
        ]
        views = [view for view in [local, *views] if view.can_hold_now(needs)]
        if not views and local.can_ever_hold(needs):
            return [local]  # all are full: its own turn is as good as any other's
        return views or None

    def _candidates(self, request: LeaseRequested, local: NodeView, now_s: float) -> list[NodeView]:
        """The other nodes for a policy to weigh: some with room; without any, and if this node is
        too small, some that could have.
        """
        if request.strategy.labels or len(self._ids) <= CANDIDATES_MAX:
            return self._views(now_s)
        needs = request.resources
        found: list[NodeView] = []
        ring = self._roomy.ring_for(needs)
        for node_id in ring.walk(start_of(ring, CANDIDATES_MAX, self._random)):
            if self._is_shunned(node_id, now_s):
                continue
            view = _claimed(self._nodes[node_id])
            if view.can_hold_now(needs):
                found.append(view)
                if len(found) == CANDIDATES_MAX:
                    break
        if found or _may_run_at(local, request) or not self.has_home(request):
            return found
        ring = self._roomy.all
        for node_id in ring.walk(start_of(ring, CANDIDATES_MAX, self._random)):
            view = _claimed(self._nodes[node_id])
            if view.can_ever_hold(needs) and not self._is_shunned(node_id, now_s):
                found.append(view)
                if len(found) == CANDIDATES_MAX:
                    break
        return found

    def _is_shunned(self, node_id: bytes, now_s: float) -> bool:
        return self._shunned.get(node_id, now_s) > now_s

    def _views(self, now_s: float) -> list[NodeView]:
        return [
            _claimed(node)
            for node in self._nodes.values()
            if not self._shunned or not self._is_shunned(node.view.node_id, now_s)
        ]


def _is_alike(before: NodeView, after: NodeView) -> bool:
    """Whether the same requests could ever run there."""
    return (
        before.total == after.total
        and before.labels == after.labels
        and before.is_alive == after.is_alive
        and before.is_draining == after.is_draining
    )


def _claimed(node: _Neighbour) -> NodeView:
    """The node's view less what was asked of it and not answered."""
    if not node.claimed:
        return node.view
    return node.view.with_claimed(ResourceSet.total_of(node.claimed.values()))


def _may_run_at(view: NodeView, request: LeaseRequested) -> bool:
    """Whether the node could ever serve the request, as far as size and labels go."""
    return view.can_ever_hold(request.resources) and request.strategy.labels.allow(view.labels)


def _is_half_used_at_most(local: NodeView, needs: ResourceSet) -> bool:
    """Whether the default policy takes this node without a look at others."""
    if not local.can_hold_now(needs) or local.utilization_with(needs) > SPREAD_THRESHOLD:
        return False
    return not any(name in local.total and name not in needs for name in DEVICE_RESOURCES)
