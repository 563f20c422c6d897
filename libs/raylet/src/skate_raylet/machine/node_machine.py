"""A node's leases and its worker pool as one machine, the only one that the shell talks to.

The two parts know each other only by what they ask and answer; here it is carried between them
until neither has anything left to say. Each event ends with no message under way, so the seeded
tests can check every invariant after every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

import msgspec
from msgspec.structs import replace

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine.borrowing import Borrowing
from skate_raylet.machine.bundle_table import Bundle, Held
from skate_raylet.machine.demand import Demand, collect_demands
from skate_raylet.machine.group_directory import GroupDirectory
from skate_raylet.machine.lease_machine import LeaseConfig, LeaseMachine
from skate_raylet.machine.lease_table import (
    ActorRequest,
    AwaitingWorker,
    Lease,
    Request,
    TaskRequest,
)
from skate_raylet.machine.lending import Lending, LoanOver
from skate_raylet.machine.loans import Cause, ToLender
from skate_raylet.machine.neighbours import Neighbours
from skate_raylet.machine.worker_pool_machine import (
    Idle,
    Leased,
    PoolConfig,
    Starting,
    Worker,
    WorkerPoolMachine,
)
from skate_scheduler import (
    ANY_LABELS,
    DEVICE_RESOURCES,
    LabelRules,
    Missing,
    NodeView,
    QueuedLease,
    RandomSource,
    ResourceSet,
    WaitKind,
    WaitReason,
    find_missing,
)

BLOCKERS_MAX = 5  # holders that a reason names
# How long a request that only another node can serve waits there before it looks for a third.
ELSEWHERE_WAIT_S = 2.0

Event = on.NodeEvent | loan.LoanEvent
Command = do.NodeCommand | loan.LoanCommand


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
    asked_elsewhere: int = 0  # requests that another node is asked to serve
    borrowed: int = 0  # leases of this node's holders at other nodes
    lent: int = 0  # requests and leases of other nodes' holders here


class WaitingRequest(msgspec.Struct, frozen=True):
    """One request that has no worker yet, and why."""

    request: Request
    holder_id: bytes  # of an actor: its job
    needs: ResourceSet
    backlog: int
    reason: WaitReason
    is_foreign: bool = False  # of another node's holder: ``request`` has the ask's number
    group_id: bytes = b""  # it waits for room inside this placement group


class NodeMachine:
    """Everything that a node decides about leases and workers."""

    def __init__(
        self,
        lease_config: LeaseConfig,
        pool_config: PoolConfig,
        random: RandomSource | None = None,
    ) -> None:
        """``random`` breaks ties between other nodes; None: the first."""
        self._node_id = lease_config.node_id
        self._labels = lease_config.labels
        self._is_draining = False
        self._neighbours = Neighbours(lease_config.node_id, random or _NoChance())
        self._leases = LeaseMachine(lease_config, self._neighbours)
        self._groups = GroupDirectory()
        self._borrowing = Borrowing(self._neighbours, self._groups)
        self._lending = Lending(self._leases)
        self._pool = WorkerPoolMachine(pool_config, self._is_holder)

    def handle(self, event: Event, now_s: float) -> list[Command]:
        """Take one event; returns what the shell has to do, in this order."""
        out: list[Command] = []
        match event:
            case on.LeaseRequested():
                self._place(event, now_s, out)
            case on.LeaseRequestCancelled(holder_id, request_id):
                out += self._borrowing.cancel(holder_id, request_id)
                self._dispatch(event, now_s, out)
            case on.BacklogTold(holder_id, backlogs):
                for request_id, backlog in backlogs:
                    self._leases.set_backlog(TaskRequest(holder_id, request_id), backlog)
                    self._borrowing.set_backlog(holder_id, request_id, backlog)
            case on.LeaseReturned(holder_id, lease_id, discard):
                returned = self._borrowing.give_back(holder_id, lease_id, discard)
                out += returned
                if not returned:
                    self._dispatch(event, now_s, out)
            case on.HolderGone(holder_id) | on.WorkerGone(_, holder_id):
                self._dispatch(event, now_s, out)
                text = "The process that owned its tasks ended."
                out += self._borrowing.lose_holder(holder_id, "owner_died", text)
            case on.GroupSeen(group_id, is_answer=True) | on.GroupGone(
                group_id, is_answer=True
            ) if not self._groups.is_asked_for(group_id):
                pass  # news came while it travelled
            case on.GroupSeen(group_id, node_ids):
                self._groups.see(group_id, node_ids)
                self._move_waiting(now_s, out)
            case on.GroupGone(group_id, message):
                self._groups.remove(group_id, message)
                self._dispatch(event, now_s, out)
            case on.BundlesReturned(group_id):
                self._dispatch(event, now_s, out)
                why = self._groups.why_removed(group_id)
                if why is not None:  # the news were quicker
                    self._dispatch(on.GroupGone(group_id, why), now_s, out)
                else:
                    self._ask_for_groups(out)
                    self._move_waiting(now_s, out)
            case on.GroupUnanswered(group_id):
                self._groups.was_not_answered(group_id)
                self._ask_for_groups(out)
            case on.TimePassed():
                self._dispatch(event, now_s, out)
                self._end_loans(self._lending.tick(now_s), now_s, out)
                self._end_late_asks(now_s, out)
                self._take_back(self._borrowing.tick(now_s), now_s, out)
                self._move_waiting(now_s, out)
            case (
                loan.NodeSeen()
                | loan.NodeGone()
                | loan.LenderConnected()
                | loan.LenderLost()
                | loan.LenderSaid()
                | loan.BorrowerSaid()
                | loan.BorrowerLost()
                | loan.BorrowedKilled()
            ):
                self._handle_other_node(event, now_s, out)
            case _:
                self._dispatch(event, now_s, out)
        return out

    def _dispatch(self, event: on.NodeEvent, now_s: float, out: list[Command]) -> None:
        """What concerns this node's leases and workers alone."""
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
            case on.GroupSeen() | on.GroupUnanswered() | on.BacklogTold():
                pass  # of concern to what goes to other nodes alone
            case _:
                self._settle(self._leases.handle(event, now_s), [], now_s, out)

    # ---- other nodes ----

    def _place(self, request: on.LeaseRequested, now_s: float, out: list[Command]) -> None:
        """Have a request served here or elsewhere."""
        is_free = request.strategy is on.DEFAULT_STRATEGY and not self._neighbours
        if is_free or request.is_foreign:
            self._dispatch(request, now_s, out)
            return
        holder_id, request_id = request.holder_id, request.request_id
        if self._borrowing.knows(holder_id, request_id):
            return  # said twice
        if self._leases.knows(TaskRequest(holder_id, request_id)) or self._leases.problem_with(
            request
        ):
            self._dispatch(request, now_s, out)
            return
        if request.since_s is None:
            request = replace(request, since_s=now_s)
        if request.strategy.group_id:
            self._place_in_group(request, now_s, out)
            return
        local = self._local_view()
        strategy = request.strategy
        if strategy.node_id:
            unbound, problem = self._bound(request, local, now_s)
            if problem:
                out.append(do.RefuseLease(holder_id, request_id, "unschedulable", problem))
                return
            request = unbound
        chosen = self._neighbours.choose(request, local, now_s)
        if chosen is None or chosen == self._node_id:
            self._dispatch(request, now_s, out)
        else:
            self._ask(chosen, request, local, now_s, out)

    def _place_in_group(self, request: on.LeaseRequested, now_s: float, out: list[Command]) -> None:
        """Have a request served inside a placement group: here, or where its bundles are."""
        group_id = request.strategy.group_id
        why = self._groups.why_removed(group_id)
        if why is not None:
            kind = "placement_group_removed"
            out.append(do.RefuseLease(request.holder_id, request.request_id, kind, why))
            return
        if self._groups.is_to_be_asked_for(group_id):
            out.append(do.AskForGroup(group_id))
        node_id = self._home_elsewhere(request, now_s)
        if node_id is None:
            self._dispatch(request, now_s, out)
        else:
            self._ask(node_id, request, self._local_view(), now_s, out)

    def _home_elsewhere(self, request: on.LeaseRequested, now_s: float) -> bytes | None:
        """Another node to ask for room in a bundle; None when it is best left waiting here."""
        strategy, needs = request.strategy, request.resources
        group_id, index = strategy.group_id, strategy.bundle_index
        if self._leases.table.bundles.with_room(group_id, index, needs) is not None:
            return None
        for node_id in self._groups.homes(group_id, index):
            is_known = node_id != self._node_id and node_id in self._neighbours
            if is_known and not self._groups.is_shunned(group_id, node_id, now_s):
                return node_id
        return None

    def _ask_for_groups(self, out: list[Command]) -> None:
        """Ask for the groups that something waits for and nothing is known of."""
        for request, _ in list(self._leases.movable()):
            group_id = request.strategy.group_id
            if group_id and self._groups.is_to_be_asked_for(group_id):
                out.append(do.AskForGroup(group_id))

    def _bound(
        self, request: on.LeaseRequested, local: NodeView, now_s: float
    ) -> tuple[on.LeaseRequested, str]:
        """A request that is bound to a node, set free where its strategy says so; or why it fails.

        Source: SURFACE row L4.
        """
        strategy, needs = request.strategy, request.resources
        name = strategy.node_id.hex()
        if strategy.is_soft:
            is_kept = self._neighbours.is_fit(strategy, needs, local) and (
                not strategy.is_impatient
                or self._neighbours.has_room(strategy, needs, local, now_s)
            )
            free = on.Strategy(labels=strategy.labels) if strategy.labels else on.DEFAULT_STRATEGY
            return (request if is_kept else replace(request, strategy=free)), ""
        if self._neighbours.is_dead(strategy.node_id):
            return request, f"It is bound to node {name}, which is dead."
        if strategy.is_impatient and not self._neighbours.has_room(strategy, needs, local, now_s):
            return request, f"It is bound to node {name}, which has no room now for {needs}."
        return request, ""

    def _ask(
        self,
        node_id: bytes,
        request: on.LeaseRequested,
        local: NodeView,
        now_s: float,
        out: list[Command],
    ) -> None:
        # What could be served here too comes back at once if the other node is busy after all.
        strategy = request.strategy
        is_homeless = not local.can_ever_hold(request.resources) or not strategy.labels.allow(
            self._labels
        )
        if strategy.group_id:
            # In one of several bundles: whoever is busy is not waited for while another may not be.
            is_homeless = self._groups.has_one_home(strategy.group_id, strategy.bundle_index)
        wait_s = ELSEWHERE_WAIT_S if strategy.node_id or is_homeless else 0.0
        out.append(self._borrowing.ask(node_id, request, wait_s, now_s))

    def _move_waiting(self, now_s: float, out: list[Command]) -> None:
        """Ask other nodes for what waits here and they have free. O(requests + shapes x nodes)."""
        if not self._neighbours:
            return
        local = self._local_view()
        hopeless: dict[tuple[ResourceSet, on.Strategy], None] = {}
        for request, item in list(self._leases.movable()):
            key = (request.resources, request.strategy)
            if key in hopeless:
                continue
            if request.strategy.group_id:
                node_id = self._home_elsewhere(request, now_s)
            else:
                node_id = self._neighbours.choose_other(request, local, now_s)
            if node_id is None:
                hopeless[key] = None
                continue
            self._leases.withdraw(TaskRequest(request.holder_id, request.request_id))
            self._ask(node_id, replace(request, since_s=item.since_s), local, now_s, out)

    def _handle_other_node(self, event: loan.LoanEvent, now_s: float, out: list[Command]) -> None:
        match event:
            case loan.NodeSeen(view):
                self._neighbours.see(view)
                self._move_waiting(now_s, out)
            case loan.NodeGone(node_id, cause):
                self._lose_node(node_id, cause, now_s, out)
            case loan.LenderConnected(node_id):
                out += self._borrowing.connected(node_id, now_s)
            case loan.LenderLost(node_id):
                self._take_back(([], self._borrowing.disconnected(node_id, now_s)), now_s, out)
                self._move_waiting(now_s, out)
            case loan.LenderSaid(node_id, message):
                self._take_back(self._borrowing.heard(node_id, message, now_s), now_s, out)
                self._move_waiting(now_s, out)
            case loan.BorrowerSaid(node_id, message):
                if not self._neighbours.is_dead(node_id):
                    self._lend(node_id, message, now_s, out)
            case loan.BorrowerLost(node_id):
                self._lending.disconnected(node_id, now_s)
            case loan.BorrowedKilled(holder_id, lease_id, text):
                out += self._borrowing.kill(holder_id, lease_id, text)
            case _:
                assert_never(event)

    def _lose_node(self, node_id: bytes, cause: Cause, now_s: float, out: list[Command]) -> None:
        self._neighbours.forget(node_id)
        text = f"Node {node_id.hex()}, where its owner was, died."
        self._end_loans(self._lending.lose_node(node_id, text), now_s, out)
        self._lending.forget_node(node_id)
        self._take_back(self._borrowing.lose_node(node_id, cause), now_s, out)
        for request, item in list(self._leases.movable()):
            if request.strategy.node_id == node_id:
                self._leases.withdraw(TaskRequest(request.holder_id, request.request_id))
                self._place(replace(request, since_s=item.since_s), now_s, out)
        self._dispatch(on.TimePassed(), now_s, out)  # what it alone could hold has no home now
        out.append(loan.HangUp(node_id))

    def _lend(self, node_id: bytes, message: ToLender, now_s: float, out: list[Command]) -> None:
        over, events, answers = self._lending.heard(node_id, message, now_s)
        self._end_loans(over, now_s, out)
        for event in events:
            self._dispatch(event, now_s, out)
        out += answers
        self._end_late_asks(now_s, out)

    def _end_loans(self, over: Sequence[LoanOver], now_s: float, out: list[Command]) -> None:
        for one in over:
            for event in self._lending.finish(one):
                self._dispatch(event, now_s, out)

    def _end_late_asks(self, now_s: float, out: list[Command]) -> None:
        while (late := self._lending.first_late(now_s)) is not None:
            self._end_loans([late], now_s, out)
            out.append(self._lending.refuse(late))

    def _take_back(
        self,
        answer: tuple[Sequence[Command], Sequence[on.LeaseRequested]],
        now_s: float,
        out: list[Command],
    ) -> None:
        commands, requests = answer
        out += commands
        for request in requests:
            self._place(request, now_s, out)

    def _local_view(self) -> NodeView:
        return NodeView(
            self._node_id,
            self.total,
            self.available,
            self._labels,
            is_draining=self._is_draining,
        )

    def _is_holder(self, worker_id: bytes) -> bool:
        return self._leases.is_holder(worker_id) or self._borrowing.is_holder(worker_id)

    def drain(self, now_s: float) -> list[Command]:
        """Give out nothing new: what waits goes to other nodes, or waits until there is one."""
        out: list[Command] = []
        self._is_draining = True
        self._settle(self._leases.drain(), [], now_s, out)
        self._move_waiting(now_s, out)
        return out

    def close(self, now_s: float) -> list[Command]:
        """Start nothing any more; whoever waits for a worker is refused."""
        out: list[Command] = []
        self._lending.is_closing = True
        self._settle([], self._pool.close(), now_s, out)
        return out

    def next_wakeup(self, now_s: float) -> tuple[float, str] | None:
        """When ``TimePassed`` is due, and why; None when time alone changes nothing."""
        times = [self._leases.next_wakeup(now_s), self._pool.next_wakeup(now_s)]
        if self._neighbours or self._lending:
            times += [self._borrowing.next_wakeup(), self._lending.next_wakeup()]
            change_s = self._neighbours.next_change_s(now_s)
            group_s = self._groups.next_change_s(now_s)
            if group_s is not None and (change_s is None or group_s < change_s):
                change_s = group_s
            if change_s is not None and self._leases.has_movable():
                times.append((change_s, "a node may be asked again"))
        return min((time for time in times if time is not None), default=None)

    def _settle(
        self,
        from_leases: Sequence[do.LeaseCommand],
        from_pool: Sequence[do.PoolCommand],
        now_s: float,
        out: list[Command],
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
                    | do.WarnHolder()
                    | do.LoseLease()
                    | do.AskLeaseBack()
                    | do.TellOthersWait()
                    | do.PlaceActor()
                    | do.RefuseActor()
                    | do.LoseActor()
                    | do.AskForGroup()
                    | do.StartWorker()
                    | do.EndWorker()
                ):
                    out.append(self._lending.route(command) if self._lending else command)
                case _:
                    assert_never(command)

    # ---- questions ----

    def bundles(self) -> list[Bundle]:
        """The bundles of placement groups that are here; not to be changed."""
        return list(self._leases.table.bundles)

    def held_bundles(self) -> list[Held]:
        """The same by group and attempt, as the GCS is told."""
        return self._leases.table.bundles.held()

    def holds_bundles(self, group_id: bytes, attempt: int, indices: Iterable[int]) -> bool:
        """Whether all of these are set aside here, under this very attempt."""
        return self._leases.table.bundles.holds(group_id, attempt, indices)

    def bundle_refusal(
        self, group_id: bytes, attempt: int, bundles: Mapping[int, ResourceSet]
    ) -> str:
        """Why bundles can not be set aside here now; empty when they can, or are."""
        return self._leases.bundle_refusal(group_id, attempt, bundles)

    def actor_refusal(
        self, strategy: on.Strategy, placement: ResourceSet, running: ResourceSet
    ) -> str:
        """Why an actor of a placement group can not come here; empty when it can, or may wait."""
        bundles, place = self._leases.table.bundles, (strategy.group_id, strategy.bundle_index)
        group = strategy.group_id.hex()
        if not all(bundles.could_hold(*place, needs) for needs in (placement, running)):
            return f"The node has no bundle of placement group {group} that could hold it."
        is_elsewhere = self._groups.has_other_home(strategy.group_id, self._node_id)
        if strategy.bundle_index < 0 and is_elsewhere and not bundles.with_room(*place, running):
            return f"No bundle of placement group {group} has room on this node."
        return ""

    def known_groups(self) -> list[bytes]:
        """The placement groups that are held for alive."""
        return self._groups.known()

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
            asked_elsewhere=self._borrowing.count()[0],
            borrowed=self._borrowing.count()[1],
            lent=self._lending.count(),
        )

    def demands(self) -> list[Demand]:
        """What waits for room, by shape. O(requests that wait)."""
        return collect_demands(self._leases, self._borrowing)

    def waiting(self, now_s: float) -> list[WaitingRequest]:
        """Every request without a worker, with its reason. O(requests x leases)."""
        supply = self._leases.supply()
        reserved = self._leases.queue.reserved_for(supply, now_s)
        found: list[WaitingRequest] = []
        for request, item, backlog in self._leases.waiting():
            origin = self._leases.origin_of(request)
            reason = self._reason(item, reserved, origin)
            is_foreign = origin is not None and origin.is_foreign
            place = self._leases.place_of(request)
            group_id = b"" if place is None else place[0]
            found.append(
                WaitingRequest(
                    request, item.holder, item.needs, backlog, reason, is_foreign, group_id
                )
            )
        found += map(self._asked, self._borrowing.unanswered())
        for lease in self._leases.table:
            if isinstance(lease.state, AwaitingWorker):
                kind = WaitKind.WORKER if self._pool.has_room() else WaitKind.WORKER_LIMIT
                reason = WaitReason(
                    kind, lease.resources, self.total, self.available, lease.created_s
                )
                holder = lease.holder_id or lease.job_id
                found.append(WaitingRequest(lease.request, holder, lease.resources, 0, reason))
        return found

    def _asked(self, asked: tuple[bytes, on.LeaseRequested]) -> WaitingRequest:
        node_id, request = asked
        assert request.since_s is not None
        needs = request.resources
        text = f"Node {node_id.hex()} was asked for a worker with {needs}."
        reason = WaitReason(
            WaitKind.ASKED, needs, self.total, self.available, request.since_s, detail=text
        )
        return WaitingRequest(
            TaskRequest(request.holder_id, request.request_id),
            request.holder_id,
            needs,
            request.backlog,
            reason,
        )

    def _most(self, labels: LabelRules) -> ResourceSet:
        """The largest amount of each resource that any node has which may serve the request."""
        totals = self._neighbours.totals(labels)
        if labels.allow(self._labels):
            totals.append(self.total)
        return ResourceSet.largest_of(totals)

    def _reason_elsewhere(
        self, item: QueuedLease, origin: on.LeaseRequested, request: Request
    ) -> WaitReason:
        """Why a request waits that this node does not serve."""
        most = self._most(origin.strategy.labels)
        if self._leases.is_homeless(request):
            kind, text = WaitKind.NOWHERE, self._leases.why_never(item.needs, origin)
        else:
            kind = WaitKind.ELSEWHERE
            text = f"Needs {item.needs}; {self._neighbours.why_full(origin)}."
        return WaitReason(
            kind, item.needs, self.total, self.available, item.since_s, most=most, detail=text
        )

    def _reason(
        self, item: QueuedLease, reserved: QueuedLease | None, origin: on.LeaseRequested | None
    ) -> WaitReason:
        request: Request = item.key  # type: ignore[assignment]  # as the lease machine made it
        if origin is not None and not origin.is_foreign and self._leases.is_not_for_here(request):
            return self._reason_elsewhere(item, origin, request)
        place = self._leases.place_of(item.key)  # type: ignore[arg-type]  # a request
        if place is not None:
            return self._reason_inside(item, *place)
        supply = self._leases.supply()
        if self._is_draining:
            return WaitReason(
                WaitKind.DRAINING, item.needs, self.total, self.available, item.since_s
            )
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
            kind,
            item.needs,
            self.total,
            self.available,
            item.since_s,
            missing,
            blocked_by,
            self._most(ANY_LABELS),
        )

    def _reason_inside(self, item: QueuedLease, group_id: bytes, index: int) -> WaitReason:
        bundles = self._leases.table.bundles.of_group(group_id, index)
        which = "a bundle" if index < 0 else f"bundle {index}"
        where = f"{which} of placement group {group_id.hex()}"
        if not self._groups.homes(group_id, index):
            where += ", which is not usable yet"
        total = ResourceSet.total_of(bundle.total for bundle in bundles)
        free = ResourceSet.total_of(bundle.available for bundle in bundles)
        return WaitReason(
            WaitKind.BUNDLE, item.needs, total, free, item.since_s, blocked_by=(where,)
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
        self._borrowing.check_invariants()
        self._lending.check_invariants()
        for request, _ in self._leases.movable():
            is_elsewhere = self._borrowing.knows(request.holder_id, request.request_id)
            assert not is_elsewhere, "a request waits here and elsewhere"
        serving = {lease.worker_id: lease for lease in self._leases.table if lease.worker_id}
        leased = {}
        for worker in self._pool.workers():
            if isinstance(worker.state, Leased):
                leased[worker.state.worker_id] = worker
        for worker_id in leased:
            assert worker_id in serving, "a worker is out on a lease that does not exist"


class _NoChance:
    """A source of randomness without any."""

    def randrange(self, _stop: int, /) -> int:
        return 0
