"""Pure scheduling policy: exact resources, placement, the order of leases, reasons for waiting."""

from __future__ import annotations

from skate_scheduler.errors import ResourceTypeError, ResourceValueError
from skate_scheduler.lease_queue import LeaseQueue, LeaseQueueConfig, LeaseSupply, QueuedLease
from skate_scheduler.node_view import NodeView
from skate_scheduler.policy import Fit, HybridConfig, Placement, choose_node
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
    "CPU",
    "DEVICE_RESOURCES",
    "GPU",
    "MEMORY",
    "UNITS",
    "Fit",
    "HybridConfig",
    "LeaseQueue",
    "LeaseQueueConfig",
    "LeaseSupply",
    "Missing",
    "NodeView",
    "Placement",
    "QueuedLease",
    "RandomSource",
    "ResourceSet",
    "ResourceTypeError",
    "ResourceValueError",
    "WaitKind",
    "WaitReason",
    "choose_node",
    "find_missing",
    "format_units",
    "from_units",
    "request_units",
    "to_units",
]
