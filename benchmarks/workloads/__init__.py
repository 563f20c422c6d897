"""Every workload, in the order in which they run and are printed."""

from __future__ import annotations

from benchmarks.workload import Registry
from benchmarks.workloads import (
    actors,
    async_actors,
    lifecycle,
    limits,
    memory,
    objects,
    placement,
    tasks,
)


def all_workloads() -> Registry:
    """A new registry with every workload."""
    registry = Registry()
    for module in (
        lifecycle,
        objects,
        tasks,
        actors,
        async_actors,
        placement,
        limits,
        memory,
    ):
        module.register(registry)
    return registry


__all__ = ["all_workloads"]
