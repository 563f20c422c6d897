"""Who has which of the node's resources: requests become leases, leases end, others wait.

::

    LeaseRequested --> queue --resources free--> AwaitingWorker --WorkerHanded--> Granted -->
    returned
                         |                             |                             |
                     cancelled,                   WorkerRefused,                discarded, holder
                     gone,
                    unschedulable                   cancelled                     worker unfit:
                    Ending
                                                                                         |
                                                                          WorkerGone --> removed

Resources are set aside *before* a worker is sought, so no more processes start than can be granted.
They stay set aside until the process is really gone, because until then it may hold a device's
memory.

Actors need ``placement`` to fit the node's total and hold ``running`` while they live. They do not
wait for free CPUs that they would give up at once: a default actor starts on a busy node, as users
of Ray expect.

Comes after the stream's dispatch in the shell; next is ``worker_pool_machine``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import assert_never, cast

import msgspec
from msgspec.structs import replace

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine.bundle_requests import BundleRequests, Place
from skate_raylet.machine.bundle_table import Bundle, BundleKey
from skate_raylet.machine.devices import assign_devices
from skate_raylet.machine.idle_wanted import IdleWanted
from skate_raylet.machine.lease_table import (
    ActorRequest,
    AwaitingWorker,
    Ending,
    Granted,
    Lease,
    LeaseTable,
    Request,
    TaskRequest,
)
from skate_raylet.machine.neighbours import Neighbours
from skate_raylet.machine.reclaim import Pool, choose_leases_to_ask_back
from skate_scheduler import (
    ANY_LABELS,
    DEVICE_RESOURCES,
    UNITS,
    LabelRules,
    LeaseQueue,
    LeaseQueueConfig,
    LeaseSupply,
    QueuedLease,
    ResourceSet,
    format_units,
)

BOUND_GRACE_S = 10.0  # how long a node is waited for that a request is bound to (SURFACE L4)
WARN_AFTER_S = 10.0  # whoever waits for what no node can hold is told, once
RECLAIM_INTERVAL_S = 0.01  # passes over all leases are not made more often than this
DISCARD_GRACE_S = 5.0  # a retired worker runs its exit hooks for at most this long
REQUESTS_PER_HOLDER_MAX = 10_000
WARNINGS_MAX = 100  # to one holder
GROUP_REMOVED = "placement_group_removed"


class LeaseConfig(msgspec.Struct, frozen=True):
    """The constants of a node's leases."""

    total: ResourceSet
    # First bytes of every lease id; makes them unique in the cluster.
    id_prefix: bytes
    # A request that no live node can ever hold is refused after this long; None: it waits for a
    # node that can. One that is bound to a node waits for that node for BOUND_GRACE_S at most.
    infeasible_grace_s: float | None = None
    node_id: bytes = b""
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    queue: LeaseQueueConfig = msgspec.field(default_factory=LeaseQueueConfig)


class _Waiting(msgspec.Struct, frozen=True):
    """What the queue does not need to know about a request."""

    request: Request
    job_id: bytes
    env_vars: on.EnvVars
    backlog: int = 0
    origin: on.LeaseRequested | None = None  # of a task's
    place: Place | None = None  # inside a placement group


class LeaseMachine:
    """The leases of one node. ``neighbours``: the others, who may hold what this one can not."""

    def __init__(self, config: LeaseConfig, neighbours: Neighbours | None = None) -> None:
        self.table = LeaseTable(config.total)
        self.queue = LeaseQueue(config.queue)
        self._config = config
        self._neighbours = neighbours
        self._homeless_since_s: dict[Request, float] = {}  # no live node can ever hold these
        # Holder and shape of which a warning was given; forgotten when the holder goes.
        self._warned: dict[bytes, dict[tuple[ResourceSet, on.Strategy], None]] = {}
        self._waiting: dict[Request, _Waiting] = {}
        self._infeasible: dict[Request, QueuedLease] = {}  # in order of arrival; not in the queue
        self._requests_of: dict[bytes, int] = {}  # waiting requests by holder
        self._blocked: dict[bytes, None] = {}
        self._finished_jobs: dict[bytes, None] = {}
        self._idle_wanted = IdleWanted()
        self._is_draining = False
        self._inside = BundleRequests(
            self.table.bundles, config.queue, self.table.share_of, self._is_holder_blocked()
        )
        self._count = 0
        self._reclaimed_at_s = float("-inf")
        self._reclaim_next_s: float | None = None

    def handle(self, event: on.LeaseEvent, now_s: float) -> list[do.LeaseCommand]:
        """Take one event; returns what follows from it, grants to others included."""
        commands: list[do.LeaseCommand] = []
        match event:
            case on.LeaseRequested():
                self._request(event, now_s, commands)
            case on.LeaseRequestCancelled(holder_id, request_id):
                self._cancel(TaskRequest(holder_id, request_id), commands)
            case on.LeaseReturned(holder_id, lease_id, discard):
                self._take_back(holder_id, lease_id, discard, commands)
            case on.LeaseRevoked():
                self._revoke(event, commands)
            case on.ActorRequested():
                self._request_actor(event, now_s, commands)
            case on.ActorEnded():
                self._end_actor(event, commands)
            case on.BundlesWanted():
                self._prepare_bundles(event)
            case on.BundlesOpened(group_id, attempt, indices):
                if self.table.bundles.holds(group_id, attempt, indices):
                    for index in indices:
                        self._bundle(group_id, index).is_open = True
            case on.BundlesReturned():
                self._return_bundles(event, commands)
            case on.GroupGone(group_id, message):
                for item in self._inside.of_group(group_id):
                    request: Request = item.key  # type: ignore[assignment]  # see _enqueue
                    self._forget(request)
                    commands.append(_refusal(request, GROUP_REMOVED, message))
            case on.WorkerBlocked(worker_id):
                self._blocked[worker_id] = None
                self._set_blocked(worker_id, True)
            case on.WorkerUnblocked(worker_id):
                self._blocked.pop(worker_id, None)
                self._set_blocked(worker_id, False)
            case on.WorkerHanded():
                self._hand(event, now_s, commands)
            case on.WorkerRefused(lease_id, kind, message):
                lease = self.table.get(lease_id)
                if lease is not None:
                    self.table.remove(lease)
                    commands.append(_refusal(lease.request, kind, message))
            case on.WorkerGone(_, worker_id):
                self._lose_worker(worker_id, commands)
            case on.HolderGone(holder_id):
                self._lose_holder(holder_id, commands)
            case on.JobFinished(job_id):
                self._finished_jobs[job_id] = None  # names the cause of what ends with it
            case on.TimePassed():
                pass
            case _:
                assert_never(event)
        self._judge_homeless(now_s, commands)
        self._grant_ready(now_s, commands)
        if self._inside:
            self._grant_inside(now_s, commands)
        self._tell_others_wait(commands)
        self._reclaim(now_s, commands)
        return commands

    def drain(self) -> list[do.LeaseCommand]:
        """Grant nothing any more, and ask for what is granted to come back when it is idle."""
        self._is_draining = True
        commands: list[do.LeaseCommand] = []
        for lease in self.table:
            if isinstance(lease.state, Granted) and isinstance(lease.request, TaskRequest):
                self.table.set_state(lease, replace(lease.state, is_asked_back=True))
                commands.append(do.AskLeaseBack(lease.holder_id, lease.lease_id))
        return commands

    def next_wakeup(self, now_s: float) -> tuple[float, str] | None:
        """When ``TimePassed`` is due, and why; None when time alone changes nothing."""
        times: list[tuple[float, str]] = []
        change_s = self.queue.next_change_s(now_s)
        if change_s is not None:
            times.append((change_s, "a waiting request begins or stops to be saved up for"))
        if self._inside and (change_s := self._inside.next_change_s(now_s)) is not None:
            times.append((change_s, "a request in a bundle begins or stops to be saved up for"))
        if self._reclaim_next_s is not None and (self.queue or self._inside):
            times.append((self._reclaim_next_s, "a lease can be asked back"))
        if self._homeless_since_s:
            due_s = min(map(self._judgement_s, self._homeless_since_s))
            if due_s < float("inf"):
                times.append((due_s, "an impossible request is refused, or its holder is told"))
        return min(times, default=None)

    def is_holder(self, worker_id: bytes) -> bool:
        """Whether this process holds leases or waits for one, so that its end would cost work."""
        return worker_id in self._requests_of or bool(self.table.of_holder(worker_id))

    def supply(self) -> LeaseSupply:
        """What can be handed out now."""
        table = self.table
        returnable = table.total.minus(table.used_by_actors).clamped()
        return LeaseSupply(
            available=table.available,
            fits=lambda needs: (
                needs.fits_in(table.available) and assign_devices(needs, table.free) is not None
            ),
            can_return=lambda needs: needs.fits_in(returnable),
            share_of=table.share_of,
            is_blocked=self._is_holder_blocked(),
        )

    def waiting(self) -> list[tuple[Request, QueuedLease, int]]:
        """The requests without resources, feasible ones first, with the backlog behind each."""
        items = [*self.queue, *self._inside, *self._infeasible.values()]
        result = []
        for item in items:
            entry = self._waiting[item.key]
            result.append((entry.request, item, entry.backlog))
        return result

    def wanted(
        self,
    ) -> Iterator[tuple[ResourceSet, on.LeaseRequested | None, int, bool]]:
        """What waits outside of placement groups: needs, what was asked for (None: an actor), the
        backlog, and whether any live node could ever hold it. Those of this node come first.
        """
        for item in self.queue:
            key: Request = item.key  # type: ignore[assignment]  # see _enqueue
            entry = self._waiting[key]
            yield item.needs, entry.origin, entry.backlog, True
        for request, item in self._infeasible.items():
            entry = self._waiting[request]
            yield item.needs, entry.origin, entry.backlog, request not in self._homeless_since_s

    def is_waiting(self, request: Request) -> bool:
        """Whether the request has no resources yet."""
        return request in self._waiting

    def movable(self) -> Iterator[tuple[on.LeaseRequested, QueuedLease]]:
        """The waiting requests of this node's own holders, which another node may serve."""
        for item in chain(self.queue, list(self._inside), self._infeasible.values()):
            request: Request = item.key  # type: ignore[assignment]  # see _enqueue
            origin = self._waiting[request].origin
            if origin is not None and not origin.is_foreign:
                yield origin, item

    def has_movable(self) -> bool:
        """Whether any request waits that another node may serve."""
        return next(self.movable(), None) is not None

    def knows(self, request: Request) -> bool:
        """Whether the request waits here or has become a lease here."""
        return request in self._waiting or self.table.of_request(request) is not None

    def set_backlog(self, request: Request, backlog: int) -> None:
        """What is behind a request of a task that waits here."""
        entry = self._waiting.get(request)
        if entry is not None and entry.origin is not None:
            origin = replace(entry.origin, backlog=backlog)
            self._waiting[request] = replace(entry, backlog=backlog, origin=origin)

    def withdraw(self, request: Request) -> None:
        """The request is served elsewhere; it no longer waits here."""
        self._forget(request)

    def problem_with(self, event: on.LeaseRequested) -> str:
        """Why the request is invalid; empty when it is not."""
        if self._requests_of.get(event.holder_id, 0) >= REQUESTS_PER_HOLDER_MAX:
            return f"More than {REQUESTS_PER_HOLDER_MAX} lease requests of one process wait."
        return _problem_with(event.resources)

    def infeasible_count(self) -> int:
        """Requests that this node can never hold."""
        return len(self._infeasible)

    def place_of(self, request: Request) -> Place | None:
        """The bundle, or bundles, that a request waits for."""
        return self._inside.place_of(request)

    def bundle_refusal(
        self, group_id: bytes, attempt: int, bundles: Mapping[int, ResourceSet]
    ) -> str:
        """Why bundles can not be set aside now; empty when they can, or are."""
        table = self.table
        return table.bundles.refusal(group_id, attempt, bundles, table.available, table.free)

    # ---- events ----

    def _request(
        self, event: on.LeaseRequested, now_s: float, commands: list[do.LeaseCommand]
    ) -> None:
        request = TaskRequest(event.holder_id, event.request_id)
        if request in self._waiting or self.table.of_request(request) is not None:
            return  # said twice
        problem = self.problem_with(event)
        if problem:
            commands.append(_refusal(request, "invalid", problem))
            return
        place = _place_of(event.strategy)
        entry = _Waiting(request, event.job_id, event.env_vars, event.backlog, event, place)
        since_s = now_s if event.since_s is None else event.since_s
        self._enqueue(entry, event.holder_id, event.resources, since_s)

    def _request_actor(
        self, event: on.ActorRequested, now_s: float, commands: list[do.LeaseCommand]
    ) -> None:
        request = ActorRequest(event.actor_id, event.incarnation)
        if request in self._waiting or self.table.of_request(request) is not None:
            return
        problem = _problem_with(event.running) or _problem_with(event.placement)
        kind = "invalid"
        place = _place_of(event.strategy)
        for needs in () if place else (event.placement, event.running):
            if not problem and not needs.fits_in(self.table.total):
                short = needs.shortfall(self.table.total)
                problem, kind = f"This node lacks {short} of the {needs} needed.", "unschedulable"
        if problem:
            commands.append(_refusal(request, kind, problem))
            return
        entry = _Waiting(request, event.job_id, event.env_vars, place=place)
        # Actors are asked for by the GCS; for the order of requests their job counts as the holder.
        self._enqueue(entry, event.job_id, event.running, now_s)

    def _enqueue(self, entry: _Waiting, holder: bytes, needs: ResourceSet, now_s: float) -> None:
        item = QueuedLease(entry.request, holder, (needs, entry.env_vars), needs, now_s)
        self._waiting[entry.request] = entry
        if isinstance(entry.request, TaskRequest):
            self._requests_of[holder] = self._requests_of.get(holder, 0) + 1
        if entry.place is not None:
            self._inside.push(entry.place, item)
        elif needs.fits_in(self.table.total) and self._may_run_here(entry.origin):
            self.queue.push(item)
        else:
            self._infeasible[entry.request] = item

    def _may_run_here(self, origin: on.LeaseRequested | None) -> bool:
        if origin is None or origin.is_foreign:
            return True  # of an actor or of another node, which has looked
        strategy = origin.strategy
        is_bound_elsewhere = strategy.node_id and strategy.node_id != self._config.node_id
        return not is_bound_elsewhere and strategy.labels.allow(self._config.labels)

    def _forget(self, request: Request) -> _Waiting | None:
        """The request no longer waits."""
        entry = self._waiting.pop(request, None)
        if entry is not None and isinstance(request, TaskRequest):
            left = self._requests_of[request.holder_id] - 1
            if left:
                self._requests_of[request.holder_id] = left
            else:
                del self._requests_of[request.holder_id]
        self._infeasible.pop(request, None)
        self._homeless_since_s.pop(request, None)
        if entry is not None and entry.place is not None:
            self._inside.discard(request)
        else:
            self.queue.discard(request)
        return entry

    def _cancel(self, request: Request, commands: list[do.LeaseCommand]) -> None:
        self._forget(request)
        lease = self.table.of_request(request)
        if lease is not None and isinstance(lease.state, AwaitingWorker):
            self.table.remove(lease)
            commands.append(do.AbandonWorker(lease.lease_id))

    def _take_back(
        self, holder_id: bytes, lease_id: bytes, discard: bool, commands: list[do.LeaseCommand]
    ) -> None:
        lease = self.table.get(lease_id)
        if lease is None or lease.holder_id != holder_id or not isinstance(lease.state, Granted):
            return  # returned twice, lost meanwhile, or not this process's to return
        state = lease.state
        if discard:
            self._end(
                lease,
                False,
                "intended_exit",
                "Its lease's holder discarded it.",
                DISCARD_GRACE_S,
                commands,
            )
            return
        self._blocked.pop(state.worker_id, None)
        self._idle_wanted.ended(lease)
        self.table.remove(lease)
        commands.append(do.ReleaseWorker(state.startup_id))

    def _revoke(self, event: on.LeaseRevoked, commands: list[do.LeaseCommand]) -> None:
        request = TaskRequest(event.holder_id, event.request_id)
        self._cancel(request, commands)
        lease = self.table.of_request(request)
        if lease is not None:
            self._end(lease, False, event.kind, event.message, 0.0, commands)

    def _end_actor(self, event: on.ActorEnded, commands: list[do.LeaseCommand]) -> None:
        request = ActorRequest(event.actor_id, event.incarnation)
        self._cancel(request, commands)
        lease = self.table.of_request(request)
        if lease is not None:
            self._end(lease, True, event.kind, event.message, event.grace_s, commands)

    def _hand(self, event: on.WorkerHanded, now_s: float, commands: list[do.LeaseCommand]) -> None:
        lease = self.table.get(event.lease_id)
        if lease is None or not isinstance(lease.state, AwaitingWorker):
            commands.append(do.ReleaseWorker(event.startup_id))
            return
        self._blocked.pop(event.worker_id, None)
        self.table.set_state(lease, Granted(event.startup_id, event.worker_id, now_s))
        match lease.request:
            case TaskRequest(holder_id, request_id):
                commands.append(
                    do.GrantLease(
                        holder_id,
                        request_id,
                        lease.lease_id,
                        event.startup_id,
                        event.worker_id,
                        lease.device_ids,
                    )
                )
                self._idle_wanted.granted(lease)
            case ActorRequest(actor_id, incarnation):
                commands.append(
                    do.PlaceActor(
                        actor_id,
                        incarnation,
                        lease.lease_id,
                        event.startup_id,
                        event.worker_id,
                        lease.device_ids,
                    )
                )

    def _lose_worker(self, worker_id: bytes, commands: list[do.LeaseCommand]) -> None:
        self._blocked.pop(worker_id, None)
        lease = self.table.of_worker(worker_id)
        if lease is not None:
            self._idle_wanted.ended(lease)
            self.table.remove(lease)
            is_reported = isinstance(lease.state, Granted) or (
                isinstance(lease.state, Ending) and lease.state.is_loss_reported
            )
            if is_reported:
                match lease.request:
                    case TaskRequest(holder_id, _):
                        commands.append(do.LoseLease(holder_id, lease.lease_id, worker_id))
                    case ActorRequest(actor_id, incarnation):
                        commands.append(do.LoseActor(actor_id, incarnation, worker_id))
        self._lose_holder(worker_id, commands)

    def _lose_holder(self, holder_id: bytes, commands: list[do.LeaseCommand]) -> None:
        self._idle_wanted.holder_gone(holder_id)
        self._warned.pop(holder_id, None)
        self._blocked.pop(holder_id, None)
        if holder_id in self._requests_of:
            for request in list(self._waiting):
                if isinstance(request, TaskRequest) and request.holder_id == holder_id:
                    self._forget(request)
        for lease in self.table.of_holder(holder_id):
            if isinstance(lease.state, AwaitingWorker):
                self._cancel(lease.request, commands)
                continue
            kind, message = "owner_died", "The process that owned its tasks ended."
            if lease.job_id in self._finished_jobs:
                kind, message = "job_finished", "Its job finished."
            self._end(lease, False, kind, message, 0.0, commands)

    def _set_blocked(self, worker_id: bytes, is_blocked: bool) -> None:
        lease = self.table.of_worker(worker_id)
        if lease is not None:
            self.table.set_blocked(lease, is_blocked)

    def _end(
        self,
        lease: Lease,
        is_loss_reported: bool,
        kind: str,
        message: str,
        grace_s: float,
        commands: list[do.LeaseCommand],
    ) -> None:
        """Have the lease's worker ended; the lease goes with it."""
        match lease.state:
            case Granted(startup_id, worker_id):
                self.table.set_state(lease, Ending(startup_id, worker_id, is_loss_reported))
                commands.append(do.RetireWorker(startup_id, kind, message, grace_s))
            case Ending(startup_id):
                lease.state = replace(
                    lease.state,
                    is_loss_reported=lease.state.is_loss_reported and is_loss_reported,
                )
                commands.append(do.RetireWorker(startup_id, kind, message, grace_s))
            case AwaitingWorker():
                pass  # cancelled before, nothing to end

    # ---- bundles ----

    def _bundle(self, group_id: bytes, index: int) -> Bundle:
        bundle = self.table.bundles.get(BundleKey(group_id, index))
        assert bundle is not None
        return bundle

    def _prepare_bundles(self, event: on.BundlesWanted) -> None:
        table = self.table
        if self.bundle_refusal(event.group_id, event.attempt, event.bundles):
            return  # the shell has asked for the reason
        if not table.bundles.holds(event.group_id, event.attempt, event.bundles):
            devices = table.bundles.assign(event.bundles, table.free)
            assert devices is not None, "bundles were set aside that do not fit"
            for index, needs in event.bundles.items():
                key = BundleKey(event.group_id, index)
                table.add_bundle(Bundle(key, needs, devices[index], event.attempt))
        if event.opens:
            for index in event.bundles:
                self._bundle(event.group_id, index).is_open = True

    def _return_bundles(self, event: on.BundlesReturned, commands: list[do.LeaseCommand]) -> None:
        table = self.table
        table.bundles.fence(event.group_id, event.attempt)
        message = f"The placement group {event.group_id.hex()} was removed, or its bundle moved."
        for index in event.indices:
            bundle = table.bundles.get(BundleKey(event.group_id, index))
            if bundle is None or bundle.attempt > event.attempt or bundle.is_returning:
                continue
            if not bundle.leases:
                table.remove_bundle(bundle)
                continue
            bundle.is_returning = True
            for lease in [table.get(lease_id) for lease_id in bundle.leases]:
                assert lease is not None
                if isinstance(lease.state, AwaitingWorker):
                    table.remove(lease)
                    commands.append(do.AbandonWorker(lease.lease_id))
                    if lease.state.origin is None:  # an actor: only usable bundles are for those
                        commands.append(_refusal(lease.request, GROUP_REMOVED, message))
                    else:
                        self._wait_again(lease, lease.state, lease.state.origin)
                else:
                    self._idle_wanted.ended(lease)
                    self._end(lease, True, GROUP_REMOVED, message, 0.0, commands)

    def _wait_again(self, lease: Lease, state: AwaitingWorker, origin: on.LeaseRequested) -> None:
        """Its bundle was of an attempt that was undone, or of a group that is gone, as news say."""
        place = (origin.strategy.group_id, state.bundle_index)
        entry = _Waiting(lease.request, lease.job_id, lease.env_vars, origin.backlog, origin, place)
        self._enqueue(entry, lease.holder_id, lease.resources, state.since_s)

    # ---- what follows ----

    def _judge_homeless(self, now_s: float, commands: list[do.LeaseCommand]) -> None:
        """Requests that no node can hold are refused, or their holders told, when it is time."""
        for request, item in list(self._infeasible.items()):
            origin = self._waiting[request].origin
            if origin is not None and not origin.is_foreign and self._has_home(origin):
                self._homeless_since_s.pop(request, None)
                continue
            since_s = self._homeless_since_s.setdefault(request, now_s)
            grace_s = self._grace_s(origin)
            if grace_s is not None and now_s >= since_s + grace_s:
                self._forget(request)
                message = self.why_never(item.needs, origin)
                commands.append(_refusal(request, "unschedulable", message))
            elif (
                origin is not None
                and now_s >= since_s + WARN_AFTER_S
                and not self._is_warned(origin)
            ):
                self._warn(origin, commands)

    def _judgement_s(self, request: Request) -> float:
        """When something is to be done about a request that no node can hold; else infinite."""
        origin, since_s = self._waiting[request].origin, self._homeless_since_s[request]
        grace_s = self._grace_s(origin)
        due_s = float("inf") if grace_s is None else since_s + grace_s
        if origin is not None and not self._is_warned(origin):
            due_s = min(due_s, since_s + WARN_AFTER_S)
        return due_s

    def _is_warned(self, origin: on.LeaseRequested) -> bool:
        if origin.is_foreign:
            return True  # its own node does
        warned = self._warned.get(origin.holder_id, {})
        return (origin.resources, origin.strategy) in warned or len(warned) >= WARNINGS_MAX

    def _grace_s(self, origin: on.LeaseRequested | None) -> float | None:
        grace_s = self._config.infeasible_grace_s
        if origin is not None and origin.strategy.node_id and not origin.strategy.is_soft:
            return BOUND_GRACE_S if grace_s is None else min(grace_s, BOUND_GRACE_S)
        return grace_s

    def _warn(self, origin: on.LeaseRequested, commands: list[do.LeaseCommand]) -> None:
        warned = self._warned.setdefault(origin.holder_id, {})
        warned[origin.resources, origin.strategy] = None
        message = self.why_never(origin.resources, origin)
        commands.append(do.WarnHolder(origin.holder_id, origin.request_id, message))

    def _has_home(self, request: on.LeaseRequested) -> bool:
        return self._neighbours is not None and self._neighbours.has_home(request)

    def _has_label_match(self, labels: LabelRules) -> bool:
        is_here = labels.allow(self._config.labels)
        return is_here or (self._neighbours is not None and bool(self._neighbours.totals(labels)))

    def is_not_for_here(self, request: Request) -> bool:
        """Whether a request that waits here is too large for this node, or bound to others."""
        return request in self._infeasible

    def is_homeless(self, request: Request) -> bool:
        """Whether no live node could ever hold a request that waits here."""
        return request in self._homeless_since_s

    def origin_of(self, request: Request) -> on.LeaseRequested | None:
        """What was asked for, by a process of this node or another's; None for actors."""
        entry = self._waiting.get(request)
        return None if entry is None else entry.origin

    def why_never(self, needs: ResourceSet, origin: on.LeaseRequested | None) -> str:
        """Why no node can ever hold a request: what it needs, and the most that there is."""
        if origin is not None and origin.strategy.node_id:
            node = origin.strategy.node_id.hex()
            return f"It is bound to node {node}, which is no live node that could hold {needs}."
        if origin is not None and not self._has_label_match(origin.strategy.labels):
            return f"No node has the labels that it asks for: {origin.strategy.labels}."
        labels = ANY_LABELS if origin is None else origin.strategy.labels
        others = [] if self._neighbours is None else self._neighbours.totals(labels)
        total = self.table.total
        if not others and not labels:
            short = needs.shortfall(total)
            names = ", ".join(f"{name} {format_units(needs[name])}" for name in short)
            totals = ", ".join(f"{name} {format_units(total[name])}" for name in short)
            return f"This node can never hold it: it needs {names} and the node has {totals}."
        wholes = [total, *others] if labels.allow(self._config.labels) else others
        most = ", ".join(
            f"{name} {format_units(max(whole[name] for whole in wholes))}" for name in needs
        )
        which = f" of those with the labels that it asks for ({labels})" if labels.selectors else ""
        return (
            f"No node{which} can ever hold it: it needs {needs}; the most that any has is {most}."
        )

    def _grant_ready(self, now_s: float, commands: list[do.LeaseCommand]) -> None:
        while self.queue and not self._is_draining:
            item = self.queue.pop_next(self.supply(), now_s)
            if item is None:
                return
            self._begin_lease(item, None, now_s, commands)

    def _grant_inside(self, now_s: float, commands: list[do.LeaseCommand]) -> None:
        while self._inside:
            found = self._inside.pop_next(now_s)
            if found is None:
                return
            self._begin_lease(*found, now_s, commands)

    def _begin_lease(
        self,
        item: QueuedLease,
        bundle: Bundle | None,
        now_s: float,
        commands: list[do.LeaseCommand],
    ) -> None:
        request: Request = item.key  # type: ignore[assignment]  # see _enqueue
        entry = self._forget(request)
        free = self.table.free if bundle is None else bundle.free
        device_ids = assign_devices(item.needs, free)
        assert entry is not None
        assert device_ids is not None, "the queue granted what does not fit"
        self._count += 1
        lease = Lease(
            lease_id=self._config.id_prefix + self._count.to_bytes(8, "big"),
            request=request,
            holder_id=request.holder_id if isinstance(request, TaskRequest) else b"",
            job_id=entry.job_id,
            resources=item.needs,
            env_vars=entry.env_vars,
            created_s=now_s,
            device_ids=device_ids,
            state=AwaitingWorker(
                entry.origin, -1 if entry.place is None else entry.place[1], item.since_s
            ),
            bundle_key=None if bundle is None else bundle.key,
        )
        self.table.add(lease)
        is_actor = isinstance(request, ActorRequest)
        commands.append(
            do.AcquireWorker(
                lease.lease_id, lease.job_id, lease.env_vars, is_actor, lease.holder_id
            )
        )

    def _tell_others_wait(self, commands: list[do.LeaseCommand]) -> None:
        commands.extend(
            do.TellOthersWait(lease.holder_id, lease.lease_id)
            for lease in self._idle_wanted.tell(self._requests_of)
        )

    def _reclaim(self, now_s: float, commands: list[do.LeaseCommand]) -> None:
        if not self.queue and not self._inside:
            self._reclaim_next_s = None
            return
        if now_s < self._reclaimed_at_s + RECLAIM_INTERVAL_S:
            self._reclaim_next_s = self._reclaimed_at_s + RECLAIM_INTERVAL_S
            return
        self._reclaimed_at_s = now_s
        supply = self.supply()
        reserved = self.queue.reserved_for(supply, now_s)
        waiting: dict[object, QueuedLease] = {}
        for item in ([reserved] if reserved else []) + self.queue.heads(supply) + list(self.queue):
            waiting.setdefault(item.key, item)
        chosen, self._reclaim_next_s = choose_leases_to_ask_back(
            waiting.values(), self.table, now_s
        )
        for group_id in self._inside.groups() if self._inside else ():
            for bundle in self.table.bundles.of_group(group_id):
                more, next_s = choose_leases_to_ask_back(
                    self._inside.waiting_for(bundle, now_s), cast("Pool", bundle), now_s
                )
                chosen += more
                known_s = self._reclaim_next_s
                if next_s is not None and (known_s is None or next_s < known_s):
                    self._reclaim_next_s = next_s
        for lease in chosen:
            assert isinstance(lease.state, Granted)
            self.table.set_state(lease, replace(lease.state, is_asked_back=True))
            commands.append(do.AskLeaseBack(lease.holder_id, lease.lease_id))

    def _is_holder_blocked(self) -> Callable[[bytes], bool]:
        blocked = self._blocked
        return lambda holder_id: holder_id in blocked

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the parts disagree. O(leases + requests). For tests."""
        self.table.check_invariants()
        self.queue.check_invariants()
        self._inside.check_invariants()
        queued = {item.key for item in (*self.queue, *self._inside)}
        assert queued | set(self._infeasible) == set(self._waiting)
        assert not queued & set(self._infeasible)
        counts: dict[bytes, int] = {}
        for request in self._waiting:
            assert self.table.of_request(request) is None, "a request waits and is granted"
            if isinstance(request, TaskRequest):
                counts[request.holder_id] = counts.get(request.holder_id, 0) + 1
        assert counts == self._requests_of
        for lease in self.table:
            assert not lease.is_blocked or lease.worker_id in self._blocked


def _refusal(request: Request, kind: str, message: str) -> do.RefuseLease | do.RefuseActor:
    match request:
        case TaskRequest(holder_id, request_id):
            return do.RefuseLease(holder_id, request_id, kind, message)
        case ActorRequest(actor_id, incarnation):
            return do.RefuseActor(actor_id, incarnation, kind, message)


def _place_of(strategy: on.Strategy) -> Place | None:
    return (strategy.group_id, strategy.bundle_index) if strategy.group_id else None


def _problem_with(needs: ResourceSet) -> str:
    """What is wrong with the amounts of a request; empty when nothing is."""
    for name, units in needs.items():
        if units < 0:
            return f"The amount of {name} is negative."
        if name in DEVICE_RESOURCES and units > UNITS and units % UNITS:
            return f"Above one, only whole devices of {name} can be requested."
    return ""
