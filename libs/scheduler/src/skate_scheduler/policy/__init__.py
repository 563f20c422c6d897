"""Placement policies: plain functions, one per file."""

from __future__ import annotations

from skate_scheduler.policy.bundles import (
    BundlePlacement,
    BundleRequest,
    BundleStrategy,
    place_bundles,
)
from skate_scheduler.policy.hybrid import Fit, HybridConfig, Placement, choose_node
from skate_scheduler.policy.spread import choose_spread

__all__ = [
    "BundlePlacement",
    "BundleRequest",
    "BundleStrategy",
    "Fit",
    "HybridConfig",
    "Placement",
    "choose_node",
    "choose_spread",
    "place_bundles",
]
