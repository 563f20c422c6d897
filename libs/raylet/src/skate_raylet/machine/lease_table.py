"""The live leases of a node, and what follows from them: what is free, and who holds how much.

Nothing here is ever added to or subtracted from by hand. ``available`` is the total minus what the
live leases hold, computed anew after each change, so a lost or repeated message can not make it
drift:

    0 <= available[name] <= total[name]
    available[name] + sum(lease.effective[name]) == total[name]   unless the node is oversubscribed

It is oversubscribed only after a blocked worker woke up while its CPUs were lent; ``available`` is
then 0.

Bundles of placement groups take their share as leases do; a lease inside a bundle takes nothing of
the node's but of the bundle (``bundle_table``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from skate_raylet.machine.bundle_table import Bundle, BundleKey, BundleTable
from skate_raylet.machine.commands import DeviceIds
from skate_raylet.machine.devices import free_devices
from skate_raylet.machine.events import EnvVars, LeaseRequested
from skate_scheduler import CPU, ResourceSet


class TaskRequest(msgspec.Struct, frozen=True):
    """Names a process's request for a worker."""

    holder_id: bytes
    request_id: int


class ActorRequest(msgspec.Struct, frozen=True):
    """Names one life of an actor."""

    actor_id: bytes
    incarnation: int


Request = TaskRequest | ActorRequest


class AwaitingWorker(msgspec.Struct, frozen=True):
    """Its resources are set aside; its worker is not there yet.

    The rest is for a task whose bundle is given back meanwhile: it waits again, for another one.
    """

    origin: LeaseRequested | None = None
    bundle_index: int = -1
    since_s: float = 0.0


class Granted(msgspec.Struct, frozen=True):
    """The worker serves the holder."""

    startup_id: int
    worker_id: bytes
    since_s: float
    is_asked_back: bool = False


class Ending(msgspec.Struct, frozen=True):
    """Nobody uses the worker any more; its resources are free once its process is gone."""

    startup_id: int
    worker_id: bytes
    is_loss_reported: bool  # whether the holder is still to hear of the death


LeaseState = AwaitingWorker | Granted | Ending


class Lease(msgspec.Struct):
    """One live lease. ``resources`` stay; what it holds of them depends on ``is_blocked``."""

    lease_id: bytes
    request: Request
    holder_id: bytes  # for an actor: b"", the GCS holds it
    job_id: bytes
    resources: ResourceSet
    env_vars: EnvVars
    created_s: float
    device_ids: DeviceIds
    state: LeaseState
    is_blocked: bool = False
    bundle_key: BundleKey | None = None  # the bundle that it is inside of

    @property
    def effective(self) -> ResourceSet:
        """What it holds now: a blocked worker lends its CPUs and nothing else."""
        return self.resources.without(CPU) if self.is_blocked else self.resources

    @property
    def shape(self) -> tuple[ResourceSet, EnvVars]:
        """Requests of one shape can use each other's workers."""
        return (self.resources, self.env_vars)

    @property
    def worker_id(self) -> bytes:
        """The worker's id, or b"" while there is none."""
        return b"" if isinstance(self.state, AwaitingWorker) else self.state.worker_id


class _Derived(msgspec.Struct, frozen=True):
    available: ResourceSet
    used: ResourceSet
    used_by_actors: ResourceSet
    shares: dict[bytes, float]
    free: dict[str, list[int]]


class LeaseTable:
    """The live leases, indexed by lease, request, worker and holder."""

    def __init__(self, total: ResourceSet) -> None:
        self.total = total
        self._leases: dict[bytes, Lease] = {}
        self._by_request: dict[Request, Lease] = {}
        self._by_worker: dict[bytes, Lease] = {}
        self._by_holder: dict[bytes, dict[bytes, Lease]] = {}
        # Most actors hold nothing while they run; they cost nothing in the sums either.
        self._holding: dict[bytes, Lease] = {}
        self._derived: _Derived | None = None
        self.bundles = BundleTable()

    def __len__(self) -> int:
        return len(self._leases)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._leases.values())

    def get(self, lease_id: bytes) -> Lease | None:
        """The live lease with this id."""
        return self._leases.get(lease_id)

    def of_request(self, request: Request) -> Lease | None:
        """The live lease that this request became."""
        return self._by_request.get(request)

    def of_worker(self, worker_id: bytes) -> Lease | None:
        """The live lease that this worker serves."""
        return self._by_worker.get(worker_id)

    def of_holder(self, holder_id: bytes) -> list[Lease]:
        """The live leases of a process, oldest first."""
        return list(self._by_holder.get(holder_id, {}).values())

    def holding(self) -> Iterable[Lease]:
        """The live leases that hold any resource."""
        return self._holding.values()

    def add(self, lease: Lease) -> None:
        """Begin a lease."""
        self._leases[lease.lease_id] = lease
        self._by_request[lease.request] = lease
        if lease.holder_id:
            self._by_holder.setdefault(lease.holder_id, {})[lease.lease_id] = lease
        if lease.bundle_key is not None:
            bundle = self.bundles.get(lease.bundle_key)
            assert bundle is not None, "a lease begins in a bundle that is not here"
            self.bundles.enter(bundle, lease)
        elif lease.resources:
            self._holding[lease.lease_id] = lease
            self._derived = None

    def add_bundle(self, bundle: Bundle) -> None:
        """Set a bundle aside."""
        self.bundles.add(bundle)
        self._derived = None

    def remove_bundle(self, bundle: Bundle) -> None:
        """End a bundle that nobody uses: what it took is free."""
        self.bundles.remove(bundle)
        self._derived = None

    def remove(self, lease: Lease) -> None:
        """End a lease: what it held is free."""
        del self._leases[lease.lease_id]
        del self._by_request[lease.request]
        self._by_worker.pop(lease.worker_id, None)
        if lease.holder_id:
            siblings = self._by_holder[lease.holder_id]
            del siblings[lease.lease_id]
            if not siblings:
                del self._by_holder[lease.holder_id]
        bundle = None if lease.bundle_key is None else self.bundles.get(lease.bundle_key)
        if bundle is not None:
            self.bundles.leave(bundle, lease)
            if bundle.is_returning:
                self._derived = None
        elif self._holding.pop(lease.lease_id, None) is not None:
            self._derived = None

    def set_state(self, lease: Lease, state: LeaseState) -> None:
        """Move a lease on."""
        lease.state = state
        if lease.worker_id:
            self._by_worker[lease.worker_id] = lease

    def set_blocked(self, lease: Lease, is_blocked: bool) -> None:
        """Lend a lease's CPUs, or take them back."""
        if lease.is_blocked != is_blocked:
            lease.is_blocked = is_blocked
            bundle = None if lease.bundle_key is None else self.bundles.get(lease.bundle_key)
            if bundle is not None:
                bundle.derived = None
            else:
                self._derived = None

    @property
    def available(self) -> ResourceSet:
        """What is free. Never negative."""
        return self._derive().available

    @property
    def used_by_actors(self) -> ResourceSet:
        """What actors and bundles hold: it does not come back by waiting for tasks to end."""
        return self._derive().used_by_actors

    @property
    def free(self) -> dict[str, list[int]]:
        """Units free on each device; not to be changed."""
        return self._derive().free

    def share_of(self, holder_id: bytes) -> float:
        """The dominant share of the node that a holder's leases take."""
        return self._derive().shares.get(holder_id, 0.0)

    def _derive(self) -> _Derived:
        derived = self._derived
        if derived is None:
            by_holder: dict[bytes, list[ResourceSet]] = {}
            for lease in self._holding.values():
                by_holder.setdefault(lease.holder_id, []).append(lease.effective)
            sums = {holder: ResourceSet.total_of(parts) for holder, parts in by_holder.items()}
            used, held_for_long = ResourceSet.total_of(sums.values()), sums.get(b"", ResourceSet())
            if self.bundles:
                used = used.plus(self.bundles.reserved)
                held_for_long = held_for_long.plus(self.bundles.reserved)
            derived = self._derived = _Derived(
                available=self.total.minus(used).clamped(),
                used=used,
                used_by_actors=held_for_long,
                shares={holder: part.dominant_share(self.total) for holder, part in sums.items()},
                free=free_devices(self.total, self._assigned()),
            )
        return derived

    def _assigned(self) -> Iterator[DeviceIds]:
        """The devices that leases and bundles have of the node."""
        for lease in self._holding.values():
            if lease.device_ids:
                yield lease.device_ids
        yield from self.bundles.device_ids()

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an index or a sum disagrees with the leases. O(leases)."""
        self.bundles.check_invariants()
        used = ResourceSet.total_of(
            lease.effective for lease in self if lease.bundle_key is None
        ).plus(self.bundles.reserved)
        woken = any(lease.resources[CPU] for lease in self)
        for name in self.total:
            assert 0 <= self.available[name] <= self.total[name]
            exact = self.available[name] + used[name] == self.total[name]
            # Only CPUs are lent, so only they can be oversubscribed.
            assert exact or (name == CPU and woken and self.available[name] == 0), name
        for parts in free_devices(self.total, self._assigned()).values():
            assert all(units >= 0 for units in parts), "a device is assigned twice"
        for lease in self:
            assert self._by_request[lease.request] is lease
            assert not lease.worker_id or self._by_worker[lease.worker_id] is lease
            assert not lease.holder_id or lease.lease_id in self._by_holder[lease.holder_id]
            if lease.bundle_key is not None:
                bundle = self.bundles.get(lease.bundle_key)
                assert bundle is not None, "a lease outlives its bundle"
                assert bundle.leases[lease.lease_id] is lease
            is_holding = bool(lease.resources) and lease.bundle_key is None
            assert is_holding == (lease.lease_id in self._holding)
        inside = sum(len(bundle.leases) for bundle in self.bundles)
        assert inside == sum(lease.bundle_key is not None for lease in self)
        assert len(self._by_request) == len(self._leases)
        assert len(self._by_worker) == sum(bool(lease.worker_id) for lease in self)
        assert sum(map(len, self._by_holder.values())) == sum(
            bool(lease.holder_id) for lease in self
        )
