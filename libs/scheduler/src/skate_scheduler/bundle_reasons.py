"""Why a placement group waits, as a sentence: what it needs, and the most that the cluster has."""

from __future__ import annotations

from collections.abc import Sequence

from skate_scheduler.node_index import NodeIndex
from skate_scheduler.policy.bundles import BundleRequest, BundleStrategy
from skate_scheduler.policy.hybrid import Fit
from skate_scheduler.resources import ResourceSet


def why_bundles_wait(
    bundles: Sequence[BundleRequest], strategy: BundleStrategy, nodes: NodeIndex, fit: Fit
) -> str:
    """One sentence. ``fit``: what ``place_bundles`` answered; not NOW.

    O(bundles x classes of nodes that are alike to the group).
    """
    if not len(nodes):
        return f"It needs {_whole(bundles, strategy)}, and no node is alive."
    names = tuple(sorted({name for bundle in bundles for name in bundle.resources}))
    is_idle = fit is Fit.NEVER
    vectors = [
        ResourceSet(zip(names, key.amounts, strict=True))
        for key in nodes.classes(names, is_idle=is_idle)
    ]
    most = ResourceSet({name: max(vector[name] for vector in vectors) for name in names})
    has = f"the most that any node has {'' if is_idle else 'free '}is {most}"
    opening = "No nodes can ever hold it: it needs" if is_idle else "It needs"
    if strategy is BundleStrategy.STRICT_PACK:
        return f"{opening} {_whole(bundles, strategy)}; {has}."
    for index, bundle in enumerate(bundles):
        which = f" for bundle {index}" if len(bundles) > 1 else ""
        if not any(bundle.resources.fits_in(vector) for vector in vectors):
            return f"{opening} {bundle.resources} on one node{which}; {has}."
        if bundle.selector and not any(bundle.selector.matches(view.labels) for view in nodes):
            return f"{opening} a node where {bundle.selector}{which}; there is none."
    return f"{opening} {_whole(bundles, strategy)}; there are {len(nodes)} nodes, and {has}."


def _whole(bundles: Sequence[BundleRequest], strategy: BundleStrategy) -> str:
    total = ResourceSet.total_of(bundle.resources for bundle in bundles)
    if strategy is BundleStrategy.STRICT_PACK or len(bundles) == 1:
        return f"{total} on one node"
    if strategy is BundleStrategy.STRICT_SPREAD:
        return f"{total} in {len(bundles)} bundles on a node each"
    return f"{total} in {len(bundles)} bundles"
