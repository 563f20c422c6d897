"""A node of a cluster: worker leases, the worker pool, and the gateway of its processes.

Importing this package loads nothing else: the daemon spawns a zygote by
``skate_raylet.zygote_process`` before it imports the raylet, and with it gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skate_raylet.config import RayletConfig
    from skate_raylet.errors import ZygoteStartError
    from skate_raylet.machine.node_machine import NodeStatistics
    from skate_raylet.service.raylet import Raylet, RayletStatistics

__all__ = ["NodeStatistics", "Raylet", "RayletConfig", "RayletStatistics", "ZygoteStartError"]

_MODULES = {
    "NodeStatistics": "machine.node_machine",
    "Raylet": "service.raylet",
    "RayletConfig": "config",
    "RayletStatistics": "service.raylet",
    "ZygoteStartError": "errors",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
