"""A node's leases and its worker pool as one machine, the only one that the shell talks to.

The two parts know each other only by what they ask and answer; here it is carried between them
until neither has anything left to say. Each event ends with no message under way, so the seeded
tests can check every invariant after every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import assert_never

import msgspec

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine.lease_machine import LeaseConfig, LeaseMachine
from skate_raylet.machine.lease_table import ActorRequest, AwaitingWorker, Lease, Request
from skate_raylet.machine.worker_pool_machine import (
    Idle,
    Leased,
    PoolConfig,
    Starting,
    Worker,
    WorkerPoolMachine,
)
from skate_scheduler import (
    DEVICE_RESOURCES,
    Missing,
    QueuedLease,
    ResourceSet,
    WaitKind,
    WaitReason,
    find_missing,
)

BLOCKERS_MAX = 5  # holders that a reason names


class NodeStatistics(msgspec.Struct, frozen=True):
    """Counts of one moment."""

    total: ResourceSet
    available: ResourceSet
    task_leases: int
    actor_leases: int
    waiting: int
    infeasible: int
    workers: int
    workers_idle: int
    workers_starting: int


class WaitingRequest(msgspec.Struct, frozen=True):
    """One request that has no worker yet, and why."""

    request: Request
    holder_id: bytes  # of an actor: its job
    needs: ResourceSet
    backlog: int
    reason: WaitReason


class Demand(msgspec.Struct, frozen=True):
    """Requests of one shape that wait, with what waits behind them."""

    shape: ResourceSet
    count: int
    is_infeasible: bool


class NodeMachine:
    """Everything that a node decides about leases and workers."""

    def __init__(self, lease_config: LeaseConfig, pool_config: PoolConfig) -> None:
        self._leases = LeaseMachine(lease_config)
        self._pool = WorkerPoolMachine(pool_config, self._leases.is_holder)

    def handle(self, event: on.NodeEvent, now_s: float) -> list[do.NodeCommand]:
        """Take one event; returns what the shell has to do, in this order."""
        out: list[do.NodeCommand] = []
        match event:
            case (
                on.WorkerRegistered()
                | on.WorkerStartFailed()
                | on.WorkerRetiring()
                | on.WorkerUnfit()
            ):
                self._settle([], self._pool.handle(event, now_s), now_s, out)
            case on.WorkerGone() | on.JobFinished() | on.TimePassed():
                # The pool first: what the leases then ask for must not be given to the one that
                # left.
                from_pool = self._pool.handle(event, now_s)
                self._settle(self._leases.handle(event, now_s), from_pool, now_s, out)
            case _:
                self._settle(self._leases.handle(event, now_s), [], now_s, out)
        return out

    def close(self, now_s: float) -> list[do.NodeCommand]:
        """Start nothing any more; whoever waits for a worker is refused."""
        out: list[do.NodeCommand] = []
        self._settle([], self._pool.close(), now_s, out)
        return out

    def next_wakeup(self, now_s: float) -> tuple[float, str] | None:
        """When ``TimePassed`` is due, and why; None when time alone changes nothing."""
        times = [self._leases.next_wakeup(now_s), self._pool.next_wakeup(now_s)]
        return min((time for time in times if time is not None), default=None)

    def _settle(
        self,
        from_leases: Sequence[do.LeaseCommand],
        from_pool: Sequence[do.PoolCommand],
        now_s: float,
        out: list[do.NodeCommand],
    ) -> None:
        """Carry messages between the parts until none is left; the rest is the shell's."""
        pending: deque[do.LeaseCommand | do.PoolCommand] = deque([*from_pool, *from_leases])
        while pending:
            command = pending.popleft()
            match command:
                case (
                    do.AcquireWorker() | do.AbandonWorker() | do.ReleaseWorker() | do.RetireWorker()
                ):
                    pending.extend(self._pool.handle(command, now_s))
                case on.WorkerHanded() | on.WorkerRefused():
                    pending.extend(self._leases.handle(command, now_s))
                case (
                    do.GrantLease()
                    | do.RefuseLease()
                    | do.LoseLease()
                    | do.AskLeaseBack()
                    | do.TellOthersWait()
                    | do.PlaceActor()
                    | do.RefuseActor()
                    | do.LoseActor()
                    | do.StartWorker()
                    | do.EndWorker()
                ):
                    out.append(command)
                case _:
                    assert_never(command)

    # ---- questions ----

    @property
    def total(self) -> ResourceSet:
        """What the node has."""
        return self._leases.table.total

    @property
    def available(self) -> ResourceSet:
        """What is free. Never negative."""
        return self._leases.table.available

    def leases(self) -> list[Lease]:
        """The live leases, oldest first; not to be changed."""
        return list(self._leases.table)

    def workers(self) -> list[Worker]:
        """The worker processes, oldest first; not to be changed."""
        return self._pool.workers()

    def lease_of(self, lease_id: bytes) -> Lease | None:
        """The live lease with this id."""
        return self._leases.table.get(lease_id)

    def lease_of_worker(self, worker_id: bytes) -> Lease | None:
        """The live lease that this worker serves."""
        return self._leases.table.of_worker(worker_id)

    def has_actor(self, actor_id: bytes, incarnation: int) -> bool:
        """Whether this life of the actor waits or lives here."""
        request = ActorRequest(actor_id, incarnation)
        table = self._leases.table
        return table.of_request(request) is not None or self._leases.is_waiting(request)

    def statistics(self) -> NodeStatistics:
        """Counts. O(leases + workers)."""
        actors = sum(isinstance(lease.request, ActorRequest) for lease in self._leases.table)
        states = [worker.state for worker in self._pool.workers()]
        return NodeStatistics(
            total=self.total,
            available=self.available,
            task_leases=len(self._leases.table) - actors,
            actor_leases=actors,
            waiting=len(self._leases.waiting()),
            infeasible=self._leases.infeasible_count(),
            workers=len(states),
            workers_idle=sum(isinstance(state, Idle) for state in states),
            workers_starting=sum(isinstance(state, Starting) for state in states),
        )

    def demands(self) -> list[Demand]:
        """What waits, by shape, in order of first arrival."""
        counts: dict[tuple[ResourceSet, bool], int] = {}
        for _, item, backlog in self._leases.waiting():
            key = (item.needs, not item.needs.fits_in(self.total))
            counts[key] = counts.get(key, 0) + 1 + backlog
        return [Demand(shape, count, never) for (shape, never), count in counts.items()]

    def waiting(self, now_s: float) -> list[WaitingRequest]:
        """Every request without a worker, with its reason. O(requests x leases)."""
        supply = self._leases.supply()
        reserved = self._leases.queue.reserved_for(supply, now_s)
        found: list[WaitingRequest] = []
        for request, item, backlog in self._leases.waiting():
            reason = self._reason(item, reserved)
            found.append(WaitingRequest(request, item.holder, item.needs, backlog, reason))
        for lease in self._leases.table:
            if isinstance(lease.state, AwaitingWorker):
                kind = WaitKind.WORKER if self._pool.has_room() else WaitKind.WORKER_LIMIT
                reason = WaitReason(
                    kind, lease.resources, self.total, self.available, lease.created_s
                )
                holder = lease.holder_id or lease.job_id
                found.append(WaitingRequest(lease.request, holder, lease.resources, 0, reason))
        return found

    def _reason(self, item: QueuedLease, reserved: QueuedLease | None) -> WaitReason:
        supply = self._leases.supply()
        blocked_by: tuple[str, ...] = ()
        missing: tuple[Missing, ...] = ()
        found = find_missing(item.needs, self.available, self.total)
        if found is not None:
            kind, missing = found
        elif not supply.fits(item.needs):
            # Enough in sum, but no single device has the share, or too few are whole.
            kind = WaitKind.RESOURCES
            missing = tuple(
                Missing(name, item.needs[name], self.available[name], self.total[name])
                for name in DEVICE_RESOURCES
                if name in item.needs
            )
        elif self._leases.queue.is_held_back(item, reserved, supply):
            kind = WaitKind.RESERVED
            assert reserved is not None
            blocked_by = (f"a request for {reserved.needs}",)
        else:
            kind = WaitKind.TURN
        if kind is WaitKind.RESOURCES:
            blocked_by = self._holders_of([part.name for part in missing])
        return WaitReason(
            kind, item.needs, self.total, self.available, item.since_s, missing, blocked_by
        )

    def _holders_of(self, names: list[str]) -> tuple[str, ...]:
        counts: dict[str, int] = {}
        for lease in self._leases.table.holding():
            if any(name in lease.effective for name in names):
                if isinstance(lease.request, ActorRequest):
                    holder = f"actor {lease.request.actor_id.hex()}"
                else:
                    holder = f"tasks of {lease.holder_id.hex()[:16]}"
                counts[holder] = counts.get(holder, 0) + 1
        ranked = sorted(counts.items(), key=lambda pair: -pair[1])[:BLOCKERS_MAX]
        return tuple(f"{holder} ({count})" if count > 1 else holder for holder, count in ranked)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the parts disagree. O(everything). For tests."""
        self._leases.check_invariants()
        self._pool.check_invariants()
        serving = {lease.worker_id: lease for lease in self._leases.table if lease.worker_id}
        leased = {}
        for worker in self._pool.workers():
            if isinstance(worker.state, Leased):
                leased[worker.state.worker_id] = worker
        for worker_id in leased:
            assert worker_id in serving, "a worker is out on a lease that does not exist"
