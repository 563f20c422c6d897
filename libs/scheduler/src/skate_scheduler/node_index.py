"""The nodes of a cluster, sorted into classes of nodes that are alike to a request.

A large cluster has many nodes and few kinds of them: ten thousand equal nodes of which some are in
use have a dozen different amounts of free CPUs. A policy that looks at one node of each class finds
what it would find by looking at all, for a cost that grows with the kinds and not with the nodes.

What is alike depends on what is asked for: each node has resources that only it has
(``node:10.0.0.1``), so classes are kept for each set of names that is asked about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from skate_scheduler.node_view import NodeView
from skate_scheduler.resources import DEVICE_RESOURCES

PROJECTIONS_MAX: Final = 32  # sets of names for which classes are kept

Ids = dict[bytes, None]  # a set that keeps the order in which its members came


@dataclass(frozen=True, slots=True)
class NodeClass:
    """What the nodes of one class have in common."""

    amounts: tuple[int, ...]  # units, in the order of the projection's names
    has_other_devices: bool  # devices that were not asked for


@dataclass(slots=True)
class _Projection:
    """The nodes by what they have of some resources: free, or in all."""

    names: tuple[str, ...]
    is_idle: bool
    classes: dict[NodeClass, Ids] = field(default_factory=dict)
    class_of: dict[bytes, NodeClass] = field(default_factory=dict)

    def put(self, view: NodeView) -> None:
        amounts = view.total if self.is_idle else view.available
        key = NodeClass(
            tuple([amounts[name] for name in self.names]),
            any(name in view.total and name not in self.names for name in DEVICE_RESOURCES),
        )
        before = self.class_of.get(view.node_id)
        if before != key:
            if before is not None:
                self.discard(view.node_id)
            self.class_of[view.node_id] = key
            self.classes.setdefault(key, {})[view.node_id] = None

    def discard(self, node_id: bytes) -> None:
        key = self.class_of.pop(node_id, None)
        if key is not None:
            ids = self.classes[key]
            del ids[node_id]
            if not ids:
                del self.classes[key]


class NodeIndex:
    """The nodes that may be chosen. Invariant: each is in exactly one class of each projection.

    A change of a node costs O(projections in use), the first question about a set of names
    O(nodes).
    """

    def __init__(self) -> None:
        self._views: dict[bytes, NodeView] = {}
        self._projections: OrderedDict[tuple[tuple[str, ...], bool], _Projection] = OrderedDict()

    def __len__(self) -> int:
        return len(self._views)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._views

    def __iter__(self) -> Iterator[NodeView]:
        """All nodes, in the order in which they came."""
        return iter(self._views.values())

    def get(self, node_id: bytes) -> NodeView | None:
        """One node."""
        return self._views.get(node_id)

    def put(self, view: NodeView) -> None:
        """Take a node in, or what is new of it."""
        self._views[view.node_id] = view
        for projection in self._projections.values():
            projection.put(view)

    def discard(self, node_id: bytes) -> None:
        """The node may not be chosen any more."""
        if self._views.pop(node_id, None) is not None:
            for projection in self._projections.values():
                projection.discard(node_id)

    def classes(self, names: tuple[str, ...], *, is_idle: bool) -> Mapping[NodeClass, Ids]:
        """The nodes by what they have of these resources: free now, or (``is_idle``) in all.

        ``names`` sorted. Not to be changed.
        """
        key = (names, is_idle)
        projection = self._projections.get(key)
        if projection is None:
            projection = self._projections[key] = _Projection(names, is_idle)
            for view in self._views.values():
                projection.put(view)
            while len(self._projections) > PROJECTIONS_MAX:
                self._projections.popitem(last=False)
        self._projections.move_to_end(key)
        return projection.classes

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when a class holds a node that does not belong there."""
        for projection in self._projections.values():
            fresh = _Projection(projection.names, projection.is_idle)
            for view in self._views.values():
                fresh.put(view)
            assert fresh.class_of == projection.class_of
            assert {key: set(ids) for key, ids in fresh.classes.items()} == {
                key: set(ids) for key, ids in projection.classes.items()
            }
