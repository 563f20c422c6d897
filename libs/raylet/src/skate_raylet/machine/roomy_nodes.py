"""Which nodes have anything left of a resource, so that a choice need not look at every node.

For each resource name the nodes whose last report has some of it free, in an order that only joins
and leaves change. A request is looked for among the nodes of its scarcest resource: in a full
cluster these are none, and in an empty one the first few will do.

Cost: O(resources) per report; O(1) to begin a walk, O(nodes looked at) for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from skate_scheduler import NodeView, RandomSource, ResourceSet


class Ring:
    """Ids that can be walked from any place. Joining and leaving are O(1); the last fills a gap."""

    __slots__ = ("_ids", "_place")

    def __init__(self) -> None:
        self._ids: list[bytes] = []
        self._place: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, node_id: bytes) -> None:
        """Join; who is in it stays where it is."""
        if node_id not in self._place:
            self._place[node_id] = len(self._ids)
            self._ids.append(node_id)

    def discard(self, node_id: bytes) -> None:
        """Leave, if it is in it."""
        place = self._place.pop(node_id, None)
        if place is None:
            return
        last = self._ids.pop()
        if last != node_id:
            self._ids[place] = last
            self._place[last] = place

    def walk(self, start: int) -> Iterator[bytes]:
        """All ids, once, from this place on and around. Not to be changed meanwhile."""
        ids = self._ids
        for place in range(start, len(ids)):
            yield ids[place]
        for place in range(min(start, len(ids))):
            yield ids[place]


class RoomyNodes:
    """Invariant: a node is in a name's ring exactly while its last view has some of it free."""

    def __init__(self) -> None:
        self.all = Ring()
        self._free: dict[str, Ring] = {}

    def update(self, before: NodeView | None, after: NodeView) -> None:
        """Take a node's new view. ``before``: its last one."""
        self.all.add(after.node_id)
        for name in after.available:
            self._free.setdefault(name, Ring()).add(after.node_id)
        if before is not None:
            for name in before.available:
                if name not in after.available:
                    self._free[name].discard(after.node_id)

    def remove(self, view: NodeView) -> None:
        """The node is gone; this was its last view."""
        self.all.discard(view.node_id)
        for name in view.available:
            self._free[name].discard(view.node_id)

    def ring_for(self, needs: ResourceSet) -> Ring:
        """Every node that may have room for the request is in this ring."""
        ring = self.all
        for name in needs:
            free = self._free.get(name)
            if free is None:
                return Ring()
            if len(free) < len(ring):
                ring = free
        return ring


def start_of(ring: Ring, enough: int, random: RandomSource) -> int:
    """Where to begin a walk that ends after ``enough`` nodes: drawn only where that matters."""
    return random.randrange(len(ring)) if len(ring) > enough else 0
