"""Which device serves which lease: whole devices apart, shares packed.

What is free is computed from the assignments of the live leases each time, so there is nothing to
leak.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate_raylet.machine.commands import DeviceIds
from skate_scheduler import DEVICE_RESOURCES, UNITS, ResourceSet


def device_capacities(total: ResourceSet) -> dict[str, list[int]]:
    """Units that each device of each kind has: all whole, but for a last part of one."""
    capacities: dict[str, list[int]] = {}
    for name in DEVICE_RESOURCES:
        whole, part = divmod(total[name], UNITS)
        if whole or part:
            capacities[name] = [UNITS] * whole + ([part] if part else [])
    return capacities


def free_devices(total: ResourceSet, assigned: Iterable[DeviceIds]) -> dict[str, list[int]]:
    """Units free on each device. O(devices + assignments)."""
    free = device_capacities(total)
    for device_ids in assigned:
        for name, parts in device_ids.items():
            for index, units in parts:
                free[name][index] -= units
    return free


def assign_devices(needs: ResourceSet, free: dict[str, list[int]]) -> DeviceIds | None:
    """Choose devices for a request, or None when it fits in sum only. Changes nothing.

    A share goes to the fullest device that still has room, so that whole ones stay whole.
    """
    chosen: dict[str, tuple[tuple[int, int], ...]] = {}
    for name in DEVICE_RESOURCES:
        units = needs[name]
        if not units:
            continue
        devices = free.get(name, [])
        if units < UNITS:
            fitting = [(left, index) for index, left in enumerate(devices) if left >= units]
            if not fitting:
                return None
            chosen[name] = ((min(fitting)[1], units),)
        else:
            whole = [index for index, left in enumerate(devices) if left == UNITS]
            count = units // UNITS
            if len(whole) < count:
                return None
            chosen[name] = tuple((index, UNITS) for index in whole[:count])
    return chosen
