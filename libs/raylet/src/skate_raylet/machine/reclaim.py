"""Which leases to ask back when others wait.

A lease is asked back for a request that waits only if that makes the node fairer: the lease's
holder has a larger share than the requester (for one holder's own shapes: the lease's shape has). A
lease is left alone for its first ``LEASE_MIN_S``, so that two holders with endless work change
places ten times a second at most. Nobody is asked for a request younger than ``REQUEST_MIN_S``:
most of those come from a task that is about to block and lend its own CPU. Blocked workers and
actors are never asked, the former hold no CPU and the latter do not end by asking, nor is a
worker's own lease for the worker's own request.

Shares are followed through the choices made here, and leases already asked back count as free, so
the same pass may run as often as it likes. O(requests x leases).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from skate_raylet.machine.lease_table import Granted, Lease, TaskRequest
from skate_scheduler import QueuedLease, ResourceSet

LEASE_MIN_S: Final = 0.1
REQUEST_MIN_S: Final = 0.02
REQUESTS_PER_PASS_MAX: Final = 16

_Group = tuple[bytes, object] | bytes


class Pool(Protocol):
    """The node, or one bundle: what leases take from."""

    @property
    def total(self) -> ResourceSet:
        """What it has."""
        ...

    @property
    def available(self) -> ResourceSet:
        """What is free."""
        ...

    def holding(self) -> Iterable[Lease]:
        """The leases that hold of it."""
        ...


def choose_leases_to_ask_back(
    waiting: Iterable[QueuedLease], table: Pool, now_s: float
) -> tuple[list[Lease], float | None]:
    """The leases to ask back now, and when what is too young now can be looked at again.

    ``waiting`` in the order in which requests would be granted.
    """
    coming = [table.available]
    candidates: list[Lease] = []
    next_s: float | None = None
    for lease in table.holding():
        if not isinstance(lease.request, TaskRequest) or lease.is_blocked:
            continue
        if not isinstance(lease.state, Granted):
            # One that waits for its worker is not reclaimed; one that ends comes back by itself.
            if lease.worker_id:
                coming.append(lease.effective)
            continue
        if lease.state.is_asked_back:
            coming.append(lease.effective)
        elif now_s < (ready_s := lease.state.since_s + LEASE_MIN_S):
            next_s = ready_s if next_s is None else min(next_s, ready_s)
        else:
            candidates.append(lease)
    free = ResourceSet.total_of(coming)
    shares = _Shares(table)
    chosen: list[Lease] = []
    for _, item in zip(range(REQUESTS_PER_PASS_MAX), waiting, strict=False):
        if not item.needs.fits_in(table.total):
            continue
        ready_s = item.since_s + REQUEST_MIN_S
        if now_s < ready_s:
            next_s = ready_s if next_s is None else min(next_s, ready_s)
            continue
        asked = _cover(item, free, candidates, shares)
        if asked is None:
            continue
        for lease in asked:
            candidates.remove(lease)
            free = free.plus(lease.effective)
            shares.move(lease.holder_id, lease.shape, lease.effective, is_gain=False)
        chosen += asked
        free = free.minus(item.needs)
        shares.move(item.holder, item.shape, item.needs, is_gain=True)
    return chosen, next_s


def _cover(
    item: QueuedLease, free: ResourceSet, candidates: list[Lease], shares: _Shares
) -> list[Lease] | None:
    """The leases whose return lets ``item`` fit, of the largest holder first; None if none do."""
    missing = item.needs.shortfall(free.clamped())
    if not missing:
        return []
    usable = [
        lease
        for lease in candidates
        if lease.shape != item.shape or lease.holder_id != item.holder
        if lease.worker_id != item.holder
        if shares.is_larger(lease, item)
    ]
    usable.sort(key=lambda lease: (-shares.of(lease.holder_id), _granted_s(lease)))
    asked: list[Lease] = []
    for lease in usable:
        if not missing:
            break
        if any(name in missing for name in lease.effective):
            asked.append(lease)
            missing = missing.minus(lease.effective).clamped().restricted_to(missing)
    return None if missing else asked


def _granted_s(lease: Lease) -> float:
    return lease.state.since_s if isinstance(lease.state, Granted) else 0.0


class _Shares:
    """Dominant shares by holder, and by holder and shape, after the choices made so far."""

    def __init__(self, table: Pool) -> None:
        self._total = table.total
        self._used: dict[_Group, ResourceSet] = {}
        for lease in table.holding():
            self.move(lease.holder_id, lease.shape, lease.effective, is_gain=True)

    def of(self, group: _Group) -> float:
        return self._used.get(group, ResourceSet()).clamped().dominant_share(self._total)

    def move(self, holder_id: bytes, shape: object, amounts: ResourceSet, *, is_gain: bool) -> None:
        for group in (holder_id, (holder_id, shape)):
            used = self._used.get(group, ResourceSet())
            self._used[group] = used.plus(amounts) if is_gain else used.minus(amounts)

    def is_larger(self, lease: Lease, item: QueuedLease) -> bool:
        if lease.holder_id == item.holder:
            return self.of((lease.holder_id, lease.shape)) > self.of((item.holder, item.shape))
        return self.of(lease.holder_id) > self.of(item.holder)
