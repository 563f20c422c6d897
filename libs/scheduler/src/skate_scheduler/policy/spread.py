"""The SPREAD policy: nodes take turns, those with room first.

Source: SURFACE row L2.
"""

from __future__ import annotations

from collections.abc import Sequence

from skate_scheduler.node_view import NodeView
from skate_scheduler.policy.hybrid import Fit, Placement
from skate_scheduler.resources import ResourceSet


def choose_spread(request: ResourceSet, nodes: Sequence[NodeView], *, after: bytes) -> Placement:
    """The node whose turn it is: the first with room that comes after ``after``, in order of ids.

    Without room anywhere, the first that could ever hold the request. O(n log n).
    """
    feasible = sorted(
        (node for node in nodes if node.can_ever_hold(request)), key=lambda node: node.node_id
    )
    if not feasible:
        return Placement(Fit.NEVER, None)
    free = [node for node in feasible if node.can_hold_now(request)]
    fit, candidates = (Fit.NOW, free) if free else (Fit.LATER, feasible)
    for node in candidates:
        if node.node_id > after:
            return Placement(fit, node.node_id)
    return Placement(fit, candidates[0].node_id)
