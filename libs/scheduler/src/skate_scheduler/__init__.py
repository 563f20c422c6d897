"""Pure scheduling policy: exact resources, placement, the order of leases, reasons for waiting."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skate_scheduler.bundle_reasons import why_bundles_wait
    from skate_scheduler.errors import LabelError, ResourceTypeError, ResourceValueError
    from skate_scheduler.labels import (
        ANY_NODE,
        NODE_ID_LABEL,
        RESERVED_PREFIX,
        LabelExpression,
        LabelOperator,
        LabelSelector,
        check_labels,
    )
    from skate_scheduler.lease_queue import LeaseQueue, LeaseQueueConfig, LeaseSupply, QueuedLease
    from skate_scheduler.node_index import NodeIndex
    from skate_scheduler.node_view import NodeView
    from skate_scheduler.policy import (
        ANY_LABELS,
        BundlePlacement,
        BundleRequest,
        BundleStrategy,
        Fit,
        HybridConfig,
        LabelRules,
        LabelTest,
        Placement,
        choose_node,
        choose_spread,
        place_bundles,
    )
    from skate_scheduler.random_source import RandomSource
    from skate_scheduler.reasons import Missing, WaitKind, WaitReason, find_missing
    from skate_scheduler.resources import (
        CPU,
        DEVICE_RESOURCES,
        GPU,
        MEMORY,
        UNITS,
        ResourceSet,
        format_units,
        from_units,
        request_units,
        to_units,
    )

__all__ = [
    "ANY_LABELS",
    "ANY_NODE",
    "CPU",
    "DEVICE_RESOURCES",
    "GPU",
    "MEMORY",
    "NODE_ID_LABEL",
    "RESERVED_PREFIX",
    "UNITS",
    "BundlePlacement",
    "BundleRequest",
    "BundleStrategy",
    "Fit",
    "HybridConfig",
    "LabelError",
    "LabelExpression",
    "LabelOperator",
    "LabelRules",
    "LabelSelector",
    "LabelTest",
    "LeaseQueue",
    "LeaseQueueConfig",
    "LeaseSupply",
    "Missing",
    "NodeIndex",
    "NodeView",
    "Placement",
    "QueuedLease",
    "RandomSource",
    "ResourceSet",
    "ResourceTypeError",
    "ResourceValueError",
    "WaitKind",
    "WaitReason",
    "check_labels",
    "choose_node",
    "choose_spread",
    "find_missing",
    "format_units",
    "from_units",
    "place_bundles",
    "request_units",
    "to_units",
    "why_bundles_wait",
]

# A driver uses the resources alone, and its start waits for what is imported here.
_MODULES = {
    "ANY_LABELS": "policy",
    "ANY_NODE": "labels",
    "BundlePlacement": "policy",
    "BundleRequest": "policy",
    "BundleStrategy": "policy",
    "CPU": "resources",
    "DEVICE_RESOURCES": "resources",
    "Fit": "policy",
    "GPU": "resources",
    "HybridConfig": "policy",
    "LabelError": "errors",
    "LabelExpression": "labels",
    "LabelOperator": "labels",
    "LabelRules": "policy",
    "LabelSelector": "labels",
    "LabelTest": "policy",
    "LeaseQueue": "lease_queue",
    "LeaseQueueConfig": "lease_queue",
    "LeaseSupply": "lease_queue",
    "MEMORY": "resources",
    "Missing": "reasons",
    "NODE_ID_LABEL": "labels",
    "NodeIndex": "node_index",
    "NodeView": "node_view",
    "Placement": "policy",
    "QueuedLease": "lease_queue",
    "RESERVED_PREFIX": "labels",
    "RandomSource": "random_source",
    "ResourceSet": "resources",
    "ResourceTypeError": "errors",
    "ResourceValueError": "errors",
    "UNITS": "resources",
    "WaitKind": "reasons",
    "WaitReason": "reasons",
    "check_labels": "labels",
    "choose_node": "policy",
    "choose_spread": "policy",
    "find_missing": "reasons",
    "format_units": "resources",
    "from_units": "resources",
    "place_bundles": "policy",
    "request_units": "resources",
    "to_units": "resources",
    "why_bundles_wait": "bundle_reasons",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
