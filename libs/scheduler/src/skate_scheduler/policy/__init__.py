"""Placement policies: plain functions, one per file."""

from __future__ import annotations

from skate_scheduler.policy.bundles import (
    BundlePlacement,
    BundleRequest,
    BundleStrategy,
    place_bundles,
)
from skate_scheduler.policy.hybrid import Fit, HybridConfig, Placement, choose_node
from skate_scheduler.policy.label_match import ANY_LABELS, LabelRules, LabelTest
from skate_scheduler.policy.spread import choose_spread

__all__ = [
    "ANY_LABELS",
    "Fit",
    "HybridConfig",
    "LabelRules",
    "LabelTest",
    "Placement",
    "choose_node",
    "choose_spread",
    "BundlePlacement",
    "BundleRequest",
    "BundleStrategy",
    "place_bundles",
]
