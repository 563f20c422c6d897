"""The bundles of placement groups that this node holds: accounts of their own.

A bundle takes its resources from the node as a lease does, and the leases inside it take theirs
from the bundle. What a bundle has free is computed from the live leases inside it, never counted up
and down, so that it can not drift::

    available[name] + sum(lease.effective[name] for leases inside) == total[name]

unless a blocked worker inside woke up while its CPUs were lent; ``available`` is then 0. A worker
that waits lends its CPUs inside its bundle alone.

Source: RELIABILITY I13; decision 0009.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Protocol

import msgspec

from skate_raylet.machine.commands import DeviceIds
from skate_raylet.machine.devices import assign_devices
from skate_scheduler import CPU, UNITS, ResourceSet

FLOORS_MAX: Final = 10_000


class BundleKey(msgspec.Struct, frozen=True):
    """Names a bundle."""

    group_id: bytes
    index: int


class Held(msgspec.Struct, frozen=True):
    """Bundles of one group, as one attempt placed them here."""

    group_id: bytes
    attempt: int
    indices: tuple[int, ...]


class _Lease(Protocol):
    """What a bundle knows of a lease inside it."""

    @property
    def lease_id(self) -> bytes: ...
    @property
    def holder_id(self) -> bytes: ...
    @property
    def resources(self) -> ResourceSet: ...
    @property
    def effective(self) -> ResourceSet: ...
    @property
    def device_ids(self) -> DeviceIds: ...


class Bundle(msgspec.Struct):
    """One bundle. Set aside first, then open to leases, then perhaps ending with its users."""

    key: BundleKey
    total: ResourceSet
    device_ids: DeviceIds  # the devices that it has of the node's
    attempt: int
    is_open: bool = False
    is_returning: bool = False  # given back; what it holds is free once its last user is gone
    leases: dict[bytes, _Lease] = msgspec.field(default_factory=dict)
    derived: tuple[ResourceSet, dict[str, list[int]]] | None = None

    @property
    def available(self) -> ResourceSet:
        """What is free in it. Never negative."""
        return self._derive()[0]

    @property
    def free(self) -> dict[str, list[int]]:
        """Units free on each of its devices, by the node's numbers; not to be changed."""
        return self._derive()[1]

    def holding(self) -> Iterable[_Lease]:
        """The leases inside that hold any resource."""
        return [lease for lease in self.leases.values() if lease.resources]

    def fits(self, needs: ResourceSet) -> bool:
        """Whether a lease has room in it now."""
        return (
            self.is_open
            and not self.is_returning
            and needs.fits_in(self.available)
            and assign_devices(needs, self.free) is not None
        )

    def _derive(self) -> tuple[ResourceSet, dict[str, list[int]]]:
        if self.derived is None:
            used = ResourceSet.total_of(lease.effective for lease in self.leases.values())
            free: dict[str, list[int]] = {}
            for name, parts in self.device_ids.items():
                units_of = dict(parts)
                free[name] = [units_of.get(index, 0) for index in range(max(units_of) + 1)]
            for lease in self.leases.values():
                for name, parts in lease.device_ids.items():
                    for index, units in parts:
                        free[name][index] -= units
            self.derived = (self.total.minus(used).clamped(), free)
        return self.derived


class BundleTable:
    """All bundles of the node, by group and index."""

    def __init__(self) -> None:
        self._of_group: dict[bytes, dict[int, Bundle]] = {}
        # Attempts up to this one were given back: an order of one of them comes too late.
        self._floors: dict[bytes, int] = {}
        self._reserved = ResourceSet()
        self._with_devices: dict[BundleKey, Bundle] = {}

    def __iter__(self) -> Iterator[Bundle]:
        for group in self._of_group.values():
            yield from group.values()

    def __bool__(self) -> bool:
        return bool(self._of_group)

    def get(self, key: BundleKey) -> Bundle | None:
        """One bundle."""
        return self._of_group.get(key.group_id, {}).get(key.index)

    def of_group(self, group_id: bytes, index: int = -1) -> list[Bundle]:
        """The bundles of a group here; with an index that one alone."""
        group = self._of_group.get(group_id, {})
        if index < 0:
            return list(group.values())
        return [group[index]] if index in group else []

    @property
    def reserved(self) -> ResourceSet:
        """What all bundles together take of the node.

        The one sum that is kept and not computed anew: a node may hold thousands of bundles.
        """
        return self._reserved

    def device_ids(self) -> Iterator[DeviceIds]:
        """The devices that bundles have of the node."""
        for bundle in self._with_devices.values():
            yield bundle.device_ids

    def add(self, bundle: Bundle) -> None:
        """Set a bundle aside."""
        self._of_group.setdefault(bundle.key.group_id, {})[bundle.key.index] = bundle
        self._reserved = self._reserved.plus(bundle.total)
        if bundle.device_ids:
            self._with_devices[bundle.key] = bundle

    def remove(self, bundle: Bundle) -> None:
        """What the bundle took of the node is free."""
        group = self._of_group[bundle.key.group_id]
        del group[bundle.key.index]
        if not group:
            del self._of_group[bundle.key.group_id]
        self._reserved = self._reserved.minus(bundle.total)
        self._with_devices.pop(bundle.key, None)

    def fence(self, group_id: bytes, attempt: int) -> None:
        """Orders of this attempt and older ones are refused from now on."""
        floor = max(self._floors.pop(group_id, 0), attempt)
        self._floors[group_id] = floor
        while len(self._floors) > FLOORS_MAX:
            # The node's reports say what such a late order leaves behind.
            del self._floors[next(iter(self._floors))]

    def holds(self, group_id: bytes, attempt: int, indices: Iterable[int]) -> bool:
        """Whether all of these are held, of this very attempt, and not given back."""
        group = self._of_group.get(group_id, {})
        for index in indices:
            bundle = group.get(index)
            if bundle is None or bundle.attempt != attempt or bundle.is_returning:
                return False
        return True

    def refusal(
        self,
        group_id: bytes,
        attempt: int,
        bundles: Mapping[int, ResourceSet],
        available: ResourceSet,
        free: dict[str, list[int]],
    ) -> str:
        """Why bundles can not be set aside out of what is free; empty when they can, or are."""
        if self.holds(group_id, attempt, bundles):
            return ""
        if attempt <= self._floors.get(group_id, 0):
            return "This attempt was given back already."
        group = self._of_group.get(group_id, {})
        if any(index in group for index in bundles):
            return "Users of an earlier bundle of that number are still ending."
        needs = ResourceSet.total_of(bundles.values())
        if not needs.fits_in(available):
            short = needs.shortfall(available)
            return f"It needs {needs}, and {short} of that is not free."
        if self.assign(bundles, free) is None:
            return f"It needs {needs}, and no devices with that much are free."
        return ""

    def assign(
        self, bundles: Mapping[int, ResourceSet], free: dict[str, list[int]]
    ) -> dict[int, DeviceIds] | None:
        """Devices for each bundle, or None when they fit in sum only. Changes nothing."""
        left = {name: list(parts) for name, parts in free.items()}
        chosen: dict[int, DeviceIds] = {}
        for index, needs in bundles.items():
            device_ids = _devices_of(needs, left)
            if device_ids is None:
                return None
            chosen[index] = device_ids
            for name, parts in device_ids.items():
                for number, units in parts:
                    left[name][number] -= units
        return chosen

    def with_room(self, group_id: bytes, index: int, needs: ResourceSet) -> Bundle | None:
        """The bundle for a lease now: the fullest that has room; ``index`` -1: of all."""
        fitting = [bundle for bundle in self.of_group(group_id, index) if bundle.fits(needs)]
        if not fitting:
            return None
        return min(fitting, key=lambda one: (sum(one.available.values()), one.key.index))

    def could_hold(self, group_id: bytes, index: int, needs: ResourceSet) -> bool:
        """Whether a bundle here is large enough, whoever is in it now."""
        return any(
            needs.fits_in(bundle.total) and not bundle.is_returning
            for bundle in self.of_group(group_id, index)
        )

    def enter(self, bundle: Bundle, lease: _Lease) -> None:
        """A lease begins inside the bundle."""
        bundle.leases[lease.lease_id] = lease
        bundle.derived = None

    def leave(self, bundle: Bundle, lease: _Lease) -> None:
        """A lease inside the bundle is over; a bundle that was given back goes with its last."""
        del bundle.leases[lease.lease_id]
        bundle.derived = None
        if bundle.is_returning and not bundle.leases:
            self.remove(bundle)

    def held(self) -> list[Held]:
        """What the node holds, by group and attempt; what is ending is held too."""
        found: dict[tuple[bytes, int], list[int]] = {}
        for bundle in self:
            found.setdefault((bundle.key.group_id, bundle.attempt), []).append(bundle.key.index)
        return [Held(*key, tuple(sorted(indices))) for key, indices in found.items()]

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when a sum disagrees with the leases. O(leases). For tests."""
        for bundle in self:
            assert self.get(bundle.key) is bundle
            assert bundle.leases or not bundle.is_returning
            used = ResourceSet.total_of(lease.effective for lease in bundle.leases.values())
            woken = any(lease.resources[CPU] for lease in bundle.leases.values())
            for name in {**bundle.total, **used}:
                assert 0 <= bundle.available[name] <= bundle.total[name]
                exact = bundle.available[name] + used[name] == bundle.total[name]
                assert exact or (name == CPU and woken and bundle.available[name] == 0), name
            for parts in bundle.free.values():
                assert all(units >= 0 for units in parts), "a device is assigned twice"
        assert self.reserved == ResourceSet.total_of(bundle.total for bundle in self)


def _devices_of(needs: ResourceSet, free: dict[str, list[int]]) -> DeviceIds | None:
    """As ``assign_devices``, for amounts that a lease may not ask for (one and a half devices)."""
    chosen: dict[str, tuple[tuple[int, int], ...]] = {}
    for name in sorted(free.keys() | set(needs)):
        whole, part = divmod(needs[name], UNITS)
        if name not in free or not needs[name]:
            continue
        devices = assign_devices(ResourceSet({name: whole * UNITS}), free) if whole else {}
        if devices is None:
            return None
        parts = list(devices.get(name, ()))
        if part:
            left = list(free[name])
            for index, units in parts:
                left[index] -= units
            share = assign_devices(ResourceSet({name: part}), {name: left})
            if share is None:
                return None
            parts += share[name]
        chosen[name] = tuple(parts)
    return chosen
