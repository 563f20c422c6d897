"""What a scheduler knows about a node: exact for the local one, a report old for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from skate_scheduler.resources import ResourceSet


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. ``0 <= available <= total`` for each resource, in units."""

    node_id: bytes
    total: ResourceSet
    available: ResourceSet
    labels: Mapping[str, str] = field(default_factory=dict)
    is_alive: bool = True
    is_draining: bool = False  # it is to leave, and gets nothing new

    @property
    def is_open(self) -> bool:
        """Whether it may get new work at all."""
        return self.is_alive and not self.is_draining

    def can_ever_hold(self, request: ResourceSet) -> bool:
        """Whether the request would fit if the node were idle."""
        return self.is_open and request.fits_in(self.total)

    def can_hold_now(self, request: ResourceSet) -> bool:
        """Whether the request fits in what is free."""
        return self.is_open and request.fits_in(self.available)

    def with_claimed(self, request: ResourceSet) -> NodeView:
        """The view after a placement that the node has not reported yet."""
        return NodeView(
            self.node_id,
            self.total,
            self.available.minus(request).clamped(),
            self.labels,
            self.is_alive,
            self.is_draining,
        )

    def utilization_with(self, request: ResourceSet) -> float:
        """The fullest resource's fraction in use after placing the request, at least 0.0.

        Only the resources that the node has and that the request or the node's load touches count:
        this is the score that placement minimises.
        """
        used = self.total.minus(self.available).plus(request)
        share = 0.0
        for name, units in used.items():
            whole = self.total[name]
            if whole > 0:
                share = max(share, units / whole)
        return share
