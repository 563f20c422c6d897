"""Which node is asked next to start which actor.

Actors wait in one line for each *shape* (set of placement resources), because what keeps one of a
shape waiting keeps all of them::

    add ──► waiting ──pump: choose a node──► asked ──taken──► (gone: the node reports the outcome)
              ▲                                │
              └──────────── refused ───────────┘

A shape has a window of unanswered requests. While nodes take the actors it grows by one for each;
when every node that could hold the shape has refused, it falls to one and the shape pauses
(backoff), so that a full cluster is probed by one request per shape and pause, however many actors
wait. A shape that no node could ever hold waits without a timer for the nodes to change.

Cost: O(1) per actor on its creator's node; elsewhere O(nodes that are full) and the policy's cost
for at most ``CANDIDATES_MAX`` nodes; O(shapes) per pump.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from skate_gcs.machine.clock import Wakeup
from skate_gcs.machine.demand import Demand
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.records import Strategy
from skate_scheduler import (
    DEVICE_RESOURCES,
    HybridConfig,
    LabelTest,
    NodeView,
    RandomSource,
    ResourceSet,
    choose_node,
    choose_spread,
    format_units,
)

CANDIDATES_MAX: Final = 64
"""Nodes that the policy weighs for one actor; it costs some 10 us for each."""

HomesOf = Callable[[bytes, int, ResourceSet], list[bytes]]
"""The nodes that hold a usable bundle: by group, bundle index (-1: any) and the least size."""

_READY = float("-inf")
_NEVER = float("inf")
_HYBRID = HybridConfig()
_DEFAULT_STRATEGY = Strategy()


class Placed(msgspec.Struct, frozen=True):
    """This node is to be asked to start the actor."""

    actor_id: bytes
    node_id: bytes


class Postponed(msgspec.Struct, frozen=True):
    """The actor waits, for this reason."""

    actor_id: bytes
    reason: str


class Impossible(msgspec.Struct, frozen=True):
    """The actor can not run any more, for this reason."""

    actor_id: bytes
    reason: str


Decision = Placed | Postponed | Impossible


class _Waiting(msgspec.Struct):
    preferred_id: bytes  # the creator's node
    refused_by: tuple[bytes, ...] = ()  # in this round of the shape
    round: int = -1
    refusal: str = ""  # the latest
    told: str = ""  # the reason that was given out


class _Shape(msgspec.Struct):
    request: ResourceSet
    strategy: Strategy
    window: int
    waiting: OrderedDict[bytes, _Waiting] = msgspec.field(default_factory=OrderedDict)
    untold: dict[bytes, None] = msgspec.field(default_factory=dict)
    asked: dict[bytes, _Waiting] = msgspec.field(default_factory=dict)
    retry_s: float = _READY  # nothing is asked before
    failures: int = 0  # pauses in a row
    round: int = 0  # grows when nodes that refused may be asked again


class StartQueue:
    """Invariant: an actor waits or is asked for, in one shape; ``asked <= window`` when asking."""

    def __init__(
        self, nodes: NodeTable, limits: GcsLimits, random: RandomSource, homes_of: HomesOf
    ) -> None:
        self._homes_of = homes_of
        self._nodes = nodes
        self._limits = limits
        self._random = random
        self._shapes: dict[tuple[ResourceSet, Strategy], _Shape] = {}
        self._turn = b""  # the node that SPREAD chose last
        self._shape_of: dict[bytes, _Shape] = {}

    def __contains__(self, actor_id: bytes) -> bool:
        return actor_id in self._shape_of

    def add(
        self,
        actor_id: bytes,
        request: ResourceSet,
        preferred_id: bytes,
        strategy: Strategy = _DEFAULT_STRATEGY,
    ) -> None:
        """Put an actor at the end of its line."""
        key = (request, strategy)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape(request, strategy, self._limits.starts_window_max)
        shape.waiting[actor_id] = _Waiting(preferred_id)
        shape.untold[actor_id] = None
        self._shape_of[actor_id] = shape

    def discard(self, actor_id: bytes) -> None:
        """The actor needs no start any more, or its request went unanswered."""
        shape = self._shape_of.pop(actor_id, None)
        if shape is None:
            return
        shape.waiting.pop(actor_id, None)
        shape.untold.pop(actor_id, None)
        shape.asked.pop(actor_id, None)
        if not shape.waiting and not shape.asked:
            del self._shapes[shape.request, shape.strategy]

    def taken(self, actor_id: bytes) -> None:
        """The node that was asked takes the actor."""
        shape = self._shape_of.get(actor_id)
        if shape is None or actor_id not in shape.asked:
            return
        shape.window = min(shape.window + 1, self._limits.starts_window_max)
        shape.failures = 0
        self.discard(actor_id)

    def refused(self, actor_id: bytes, node_id: bytes, refusal: str) -> None:
        """The node that was asked does not take it: the actor is the head of its line again."""
        shape = self._shape_of.get(actor_id)
        waiting = shape.asked.pop(actor_id, None) if shape is not None else None
        if shape is None or waiting is None:
            return
        # Else its next report would look as if something had been freed there.
        self._nodes.unclaim(node_id, _claim(shape))
        if waiting.round == shape.round:
            waiting.refused_by += (node_id,)
        waiting.refusal = refusal
        if not waiting.told:
            shape.untold[actor_id] = None
        shape.waiting[actor_id] = waiting
        shape.waiting.move_to_end(actor_id, last=False)

    def nodes_changed(self) -> None:
        """A node came, went, or has other totals: every line may move."""
        for shape in self._shapes.values():
            _open_round(shape)

    def group_changed(self, group_id: bytes) -> None:
        """A placement group has other bundles that can be used."""
        for shape in self._shapes.values():
            if shape.strategy.group_id == group_id:
                _open_round(shape)

    def resources_freed(self, view: NodeView) -> None:
        """More is free on this node: lines that fit there may move."""
        for shape in self._shapes.values():
            if (
                shape.retry_s != _READY
                and view.can_hold_now(shape.request)
                and shape.strategy.labels.allow(view.labels)
            ):
                _open_round(shape)

    def pump(self, now_s: float) -> list[Decision]:
        """Choose nodes for all that may be asked now. The claims are counted in the node table."""
        decisions: list[Decision] = []
        for shape in self._shapes.values():
            if shape.retry_s <= now_s:
                if shape.retry_s != _READY:
                    _open_round(shape)
                self._pump_shape(shape, now_s, decisions)
            elif shape.untold:
                self._tell(shape, self._reason_behind(shape), decisions)
        return decisions

    def demands(self) -> Iterator[Demand]:
        """The actors that no node has taken, by shape.

        Without those that wait inside a placement group: its group waits, or their own kind do.
        """
        for shape in self._shapes.values():
            if shape.waiting and not shape.strategy.group_id:
                yield Demand(
                    shape.request,
                    shape.strategy,
                    actors=len(shape.waiting),
                    is_infeasible=shape.retry_s == _NEVER,
                )

    def next_wakeup(self) -> Wakeup | None:
        """When the first pause ends."""
        pauses = [
            shape.retry_s
            for shape in self._shapes.values()
            if shape.waiting and _READY < shape.retry_s < _NEVER
        ]
        return Wakeup(min(pauses), "a full cluster is asked again") if pauses else None

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the queue is inconsistent."""
        count = 0
        for shape in self._shapes.values():
            assert shape.waiting or shape.asked
            assert not shape.waiting.keys() & shape.asked.keys()
            assert shape.untold.keys() <= shape.waiting.keys()
            assert 1 <= shape.window <= self._limits.starts_window_max
            for actor_id in (*shape.waiting, *shape.asked):
                assert self._shape_of[actor_id] is shape
                count += 1
        assert count == len(self._shape_of)

    def _pump_shape(self, shape: _Shape, now_s: float, decisions: list[Decision]) -> None:
        reason = self._why_impossible(shape)
        if reason:
            decisions.extend(Impossible(actor_id, reason) for actor_id in shape.waiting)
            return
        while shape.waiting and len(shape.asked) < shape.window:
            actor_id, waiting = next(iter(shape.waiting.items()))
            if waiting.round != shape.round:
                waiting.round = shape.round
                waiting.refused_by = ()
            node_id = self._choose(shape, waiting)
            if node_id is None:
                self._pause(shape, waiting, now_s)
                self._tell(shape, waiting.refusal, decisions)
                return
            del shape.waiting[actor_id]
            shape.untold.pop(actor_id, None)
            shape.asked[actor_id] = waiting
            self._nodes.claim(node_id, _claim(shape))
            decisions.append(Placed(actor_id, node_id))

    def _choose(self, shape: _Shape, waiting: _Waiting) -> bytes | None:
        request, strategy = shape.request, shape.strategy
        if strategy.group_id:
            for node_id in self._homes_of(strategy.group_id, strategy.bundle_index, request):
                is_ready = self._nodes.candidate(node_id) is not None
                if is_ready and node_id not in waiting.refused_by:
                    return node_id
            return None
        if strategy.node_id:
            alive = self._nodes.get_alive(strategy.node_id)
            is_fit = (
                alive is not None
                and request.fits_in(ResourceSet(alive.total))
                and strategy.labels.allow(alive.labels)
            )
            view = self._nodes.candidate(strategy.node_id)
            is_left = strategy.is_soft and (
                not is_fit or (strategy.is_impatient and not _has_room(view, request))
            )
            if not is_left:
                is_open = view is not None and strategy.node_id not in waiting.refused_by
                return strategy.node_id if is_fit and is_open else None
        if strategy.is_spread:
            placement = strategy.labels.choose(
                lambda test: choose_spread(
                    request, self._sample(request, waiting, test), after=self._turn
                )
            )
            self._turn = placement.node_id or self._turn
            return placement.node_id
        preferred = self._nodes.candidate(waiting.preferred_id)
        if (
            preferred is not None
            and not strategy.labels
            and preferred.node_id not in waiting.refused_by
            and preferred.can_hold_now(request)
            and not any(name in preferred.total for name in DEVICE_RESOURCES)
            and preferred.utilization_with(request) <= _HYBRID.spread_threshold
        ):
            return preferred.node_id  # what the policy would find, without looking at all nodes
        placement = strategy.labels.choose(
            lambda test: choose_node(
                request,
                self._sample(request, waiting, test),
                random=self._random,
                local_id=waiting.preferred_id,
                config=_HYBRID,
            )
        )
        return placement.node_id

    def _sample(self, request: ResourceSet, waiting: _Waiting, test: LabelTest) -> list[NodeView]:
        """Nodes for the policy to weigh: the first that have room, else the first that could."""
        free: list[NodeView] = []
        feasible: list[NodeView] = []
        for view in self._nodes.candidates():
            if view.node_id in waiting.refused_by or not test(view.labels):
                continue
            if view.can_hold_now(request):
                free.append(view)
                if len(free) == CANDIDATES_MAX:
                    break
            elif len(feasible) < CANDIDATES_MAX and view.can_ever_hold(request):
                feasible.append(view)
        return free or feasible

    def _pause(self, shape: _Shape, head: _Waiting, now_s: float) -> None:
        if head.refused_by:
            shape.failures += 1
            shape.retry_s = now_s + self._limits.retry_pause_s(shape.failures)
        else:
            shape.retry_s = _NEVER
            head.refusal = self._why_infeasible(shape)
        shape.window = 1

    def _tell(self, shape: _Shape, reason: str, decisions: list[Decision]) -> None:
        """Give each waiting actor a reason once, and the head each new one."""
        head_id, head = next(iter(shape.waiting.items()))
        if head.told != reason:
            head.told = reason
            decisions.append(Postponed(head_id, reason))
        for actor_id in shape.untold:
            if actor_id != head_id:
                shape.waiting[actor_id].told = reason
                decisions.append(Postponed(actor_id, reason))
        shape.untold.clear()

    def _reason_behind(self, shape: _Shape) -> str:
        head = next(iter(shape.waiting.values()))
        return head.told or head.refusal

    def _why_impossible(self, shape: _Shape) -> str:
        """Why no node will ever be asked; empty when that is not so."""
        strategy = shape.strategy
        if not strategy.node_id or strategy.is_soft:
            return ""
        name = strategy.node_id.hex()
        if self._nodes.is_dead(strategy.node_id):
            return f"It is bound to node {name}, which is dead."
        view = self._nodes.candidate(strategy.node_id)
        if strategy.is_impatient and not shape.asked and not _has_room(view, shape.request):
            return f"It is bound to node {name}, which has no room now for {shape.request}."
        return ""

    def _why_infeasible(self, shape: _Shape) -> str:
        request, strategy = shape.request, shape.strategy
        if strategy.group_id:
            bundle = "a bundle" if strategy.bundle_index < 0 else f"bundle {strategy.bundle_index}"
            group = strategy.group_id.hex()
            return f"It waits for {bundle} with {request} of placement group {group}."
        if strategy.node_id and not strategy.is_soft:
            node = strategy.node_id.hex()
            return f"It is bound to node {node}, which is not there or can not hold {request}."
        views = list(self._nodes.candidates())
        if not views:
            return f"It needs {request}, and no node is alive."
        views = [view for view in views if strategy.labels.allow(view.labels)]
        if not views:
            return f"No node has the labels that it asks for: {strategy.labels}."
        lacks = [
            f"{name} {format_units(units)} (the most any node has is"
            f" {format_units(max(view.total[name] for view in views))})"
            for name, units in request.items()
            if not any(view.total[name] >= units for view in views)
        ]
        what = ", ".join(lacks) or f"{request} on one node"
        return f"No node can ever hold it: it needs {what}."


def _claim(shape: _Shape) -> ResourceSet:
    """What a start takes of the node's free resources: a bundle's are taken already."""
    return ResourceSet() if shape.strategy.group_id else shape.request


def _has_room(view: NodeView | None, request: ResourceSet) -> bool:
    return view is not None and view.can_hold_now(request)


def _open_round(shape: _Shape) -> None:
    shape.retry_s = _READY
    shape.round += 1
