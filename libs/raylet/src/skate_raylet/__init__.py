"""A node of a cluster: worker leases, the worker pool, and the gateway of its processes."""

from __future__ import annotations

from skate_raylet.config import RayletConfig
from skate_raylet.machine.node_machine import NodeStatistics
from skate_raylet.service.raylet import Raylet, RayletStatistics

__all__ = ["NodeStatistics", "Raylet", "RayletConfig", "RayletStatistics"]
