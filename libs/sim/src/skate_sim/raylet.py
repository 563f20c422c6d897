"""The shell around the real node machine of one simulated raylet.

Real here: ``NodeMachine`` with borrowing and lending, ``ActorHost``, ``ActorDirectory``,
``JobBook``. Simulated: worker processes, the zygote's forks, the lines to other raylets, the line
to the GCS. What the product's ``Raylet``, ``ProcessServer`` and ``LoanOffice`` do with a message or
a command is done here in the same order.
"""

from __future__ import annotations

import math
from collections import deque
from random import Random
from typing import TYPE_CHECKING, Any

from skate_gcs.machine import events as gcs_on
from skate_gcs.machine.commands import (
    BundleOrder,
    CommitBundlesOnNode,
    PrepareBundlesOnNode,
    ReturnBundlesOnNode,
)
from skate_gcs.machine.records import (
    ActorRecord,
    ActorSpec,
    Address,
    BundleRef,
    DeathCause,
    JobRecord,
    NodeRecord,
    PlacementGroupRecord,
    WorkerRecord,
)
from skate_gcs.service.convert import actor_to, cause_from, cause_to, spec_to
from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.lease_table import Granted
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_raylet.service.actor_directory import ActorDirectory
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.convert import actor_view, death_from_proto, death_to_proto
from skate_raylet.service.group_desk import USABLE
from skate_raylet.service.job_book import Job, JobBook
from skate_raylet.service.loan_convert import cause_of, death_of
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_rpc import node_protocol as node
from skate_scheduler import NodeView, ResourceSet
from skate_sim.agenda import Alarm
from skate_sim.link import Ask, SimLink
from skate_sim.loan_lines import LenderLine
from skate_sim.process import SimProcess

if TYPE_CHECKING:
    from skate_sim.world import World

WORKERS_MAX = 24
WAKEUP_MIN_S = 0.001  # as NodeRunner's
FORK_S = (0.005, 0.06)
REAP_S = (0.0005, 0.02)
STOP_S = 0.5


class SimRaylet:
    """One life of a node. An :class:`~skate_sim.network.Endpoint`."""

    life = 0  # a node that comes back is another one

    def __init__(self, world: World, number: int, host: str, total: dict[str, float]) -> None:
        self.world = world
        self.number = number
        self.name = f"n{number}"
        self.host = host
        self.node_id = b"node%04d" % number + bytes(20)
        self.endpoint = f"{host}/{self.name}"
        self.is_up = True
        self.is_dark = False  # its host has no power
        self.is_fenced = False
        self.total = ResourceSet.from_amounts(total)
        config = LeaseConfig(self.total, self.node_id[:8], 10.0, self.node_id)
        cpus = max(1, int(total.get("CPU", 1)))
        self.machine = NodeMachine(
            config, PoolConfig(cpus, 4, WORKERS_MAX), Random(world.random.getrandbits(32))
        )
        self.processes = LocalProcesses()
        self.alive: dict[int, SimProcess] = {}  # worker processes by startup id
        self.intents: dict[int, node.Death] = {}
        self._kills: dict[int, Alarm] = {}
        self._deaths: dict[bytes, node.Death] = {}
        self.link = SimLink(self)
        link: Any = self.link
        self.jobs = JobBook()
        self.directory = ActorDirectory(self._ask_for_actor)
        self.actors = ActorHost(
            self.node_id, self.total, link, self.processes, self.tell, self.machine.actor_refusal
        )
        self._events: deque[Any] = deque()
        self._is_running = False
        self._wakeup: Alarm | None = None
        self._endpoints: dict[bytes, str] = {}
        self._dead_nodes: dict[bytes, None] = {}
        self.lenders: dict[bytes, LenderLine] = {}
        self.borrowers: dict[bytes, LenderLine] = {}  # the lines of those who ask us

    def __repr__(self) -> str:
        return self.name

    def start(self) -> None:
        """Register with the GCS, again until it answers."""
        record = NodeRecord(
            self.node_id,
            raylet_endpoint=self.endpoint,
            total=self.total.to_dict(),
            available=self.machine.available.to_dict(),
        )

        def done(_: Any, error: Any) -> None:
            if error is None:
                self.link.start()
            elif error.code == "FAILED_PRECONDITION":
                self.fenced(str(error))
            else:
                self.world.agenda.after(0.5, self.start)

        if self.is_up:
            self.link.ask(gcs_on.NodeRegistered(record), done)

    # ---- the machine ----

    def tell(self, event: Any) -> None:
        """Have the machine take an event, and carry out what follows."""
        self._events.append(event)
        if self._is_running or not self.is_up:
            return
        self._is_running = True
        world = self.world
        try:
            while self._events:
                one = self._events.popleft()
                world.note(self.name, world.describe(one))
                for command in self.machine.handle(one, world.agenda.now_s):
                    self._perform(command)
                world.oracle.check_node(self)
                world.groups.node_changed(self)
        finally:
            self._is_running = False
        self._plan_wakeup()

    def _plan_wakeup(self) -> None:
        agenda = self.world.agenda
        wakeup = self.machine.next_wakeup(agenda.now_s)
        if wakeup is None or not self.is_up:
            if self._wakeup is not None:
                self._wakeup.cancel()
                self._wakeup = None
            return
        due_s = max(wakeup[0], agenda.now_s + WAKEUP_MIN_S)
        if self._wakeup is not None:
            if self._wakeup.at_s == due_s:
                return
            self._wakeup.cancel()
        self._wakeup = agenda.at(due_s, self._wake)

    def _wake(self) -> None:
        self._wakeup = None
        self.tell(on.TimePassed())

    def _perform(self, command: Any) -> None:
        match command:
            case do.StartWorker():
                self._start_worker(command)
            case do.EndWorker():
                self._end_worker(command)
            case do.GrantLease():
                self._grant(command)
            case do.RefuseLease(holder_id, request_id, kind, message):
                self._send(holder_id, node.LeaseRefused(request_id, kind, message))
            case do.LoseLease(holder_id, lease_id, worker_id):
                self._send(holder_id, node.LeaseLost(lease_id, self._deaths[worker_id]))
            case do.AskLeaseBack(holder_id, lease_id):
                self._send(holder_id, node.ReclaimLease(lease_id))
            case do.TellOthersWait(holder_id, lease_id):
                self._send(holder_id, node.ReclaimLease(lease_id, when_idle=True))
            case do.PlaceActor():
                self.actors.place(command)
            case do.RefuseActor():
                self.actors.refuse(command)
            case do.LoseActor(_, _, worker_id):
                self.actors.lose(command, self._deaths[worker_id])
            case do.AskForGroup(group_id):
                self._ask_for_group(group_id)
            case _:
                self._perform_loan(command)
        self.link.changed()

    def _grant(self, command: do.GrantLease) -> None:
        worker = self.processes.get(command.worker_id)
        endpoint = worker.endpoint if worker is not None else ""
        granted = node.LeaseGranted(
            command.request_id, command.lease_id, command.worker_id, self.node_id, endpoint, 0
        )
        self._send(command.holder_id, granted)

    def _send(self, worker_id: bytes, message: Any) -> None:
        process = self.processes.get(worker_id)
        if process is not None:
            process.send(message)

    def make_report(self) -> tuple[dict[str, int], dict[str, int]]:
        """What is free, and the total."""
        return self.machine.available.to_dict(), self.total.to_dict()

    # ---- loans ----

    def _perform_loan(self, command: loan.LoanCommand) -> None:
        match command:
            case loan.TellLender(node_id, message):
                line = self.lenders.get(node_id)
                if line is not None:
                    line.say(message)
                elif node_id in self._endpoints:
                    lender = self.world.raylet_at(self._endpoints[node_id])
                    self.lenders[node_id] = LenderLine(self, lender)
            case loan.HangUp(node_id):
                borrower = self.borrowers.pop(node_id, None)
                if borrower is not None:
                    borrower.snap()
                line = self.lenders.pop(node_id, None)
                if line is not None:
                    line.close()
            case loan.Lend(node_id, ask_id, lease_id, worker_id):
                worker = self.processes.get(worker_id)
                endpoint = worker.endpoint if worker is not None else ""
                granted = loans.Granted(ask_id, lease_id, worker_id, endpoint, 0)
                self._tell_borrower(node_id, granted)
            case loan.TellBorrower(node_id, news):
                self._tell_borrower(node_id, news)
            case loan.ReportLoss(node_id, ask_id, worker_id):
                cause = cause_of(self._deaths[worker_id])
                self._tell_borrower(node_id, loans.Ended(ask_id, cause))
            case loan.GrantBorrowed(holder_id, request_id, node_id, lent):
                self.world.count("leases on other nodes")
                grant = node.LeaseGranted(
                    request_id, lent.lease_id, lent.worker_id, node_id, lent.endpoint, lent.pid
                )
                self._send(holder_id, grant)
            case loan.LoseBorrowed(holder_id, lease_id, cause):
                self._send(holder_id, node.LeaseLost(lease_id, death_of(cause)))

    def _tell_borrower(self, node_id: bytes, message: loans.ToBorrower) -> None:
        line = self.borrowers.get(node_id)
        if line is not None:
            line.answer(message)

    # ---- the GCS's news ----

    def take_news(self, record: Any) -> None:
        """A row of a table, new or repeated."""
        match record:
            case ActorRecord():
                self.directory.update(actor_view(actor_to(record)))
            case JobRecord():
                if self.jobs.update(Job(record.job_id, "", (), record.is_finished)):
                    self.tell(on.JobFinished(record.job_id))
            case NodeRecord():
                self._take_node(record)
            case PlacementGroupRecord():
                self._take_group(record)
            case _:
                pass  # deaths of workers matter to references only

    def _take_node(self, record: NodeRecord) -> None:
        node_id = record.node_id
        if record.death_cause is None:
            if node_id != self.node_id:
                self._endpoints[node_id] = record.raylet_endpoint
                total, available = ResourceSet(record.total), ResourceSet(record.available)
                self.tell(loan.NodeSeen(NodeView(node_id, total, available)))
            return
        if node_id == self.node_id:
            self.fenced("the GCS holds it for dead")
            return
        self._endpoints.pop(node_id, None)
        death = death_from_proto(cause_to(record.death_cause))
        self.tell(loan.NodeGone(node_id, cause_of(death)))
        if node_id not in self._dead_nodes:
            self._dead_nodes[node_id] = None
            for process in self.processes:
                process.post(node.NodeDied(node_id, death))

    def _ask_for_actor(self, actor_id: bytes) -> None:
        def done(answer: Any, error: Any) -> None:
            if error is None:
                record = answer.record
                view = actor_view(actor_to(record)) if record is not None else None
                self.directory.answer(actor_id, view)

        self.link.ask(gcs_on.GetActor(actor_id), done)

    def subscription_broke(self) -> None:
        """The GCS went away; this node hears of it a little later."""
        if self.is_up:
            self.world.network.travel(self.world.gcs.host, self.host, self.link.broke)

    # ---- orders of the GCS ----

    def start_actor(self, node_id: bytes, spec: ActorSpec, incarnation: int) -> str:
        """``RayletService.StartActor``; returns the refusal, or ""."""
        if node_id != self.node_id:
            return "this is another node"
        return self.actors.start(spec_to(spec, with_creation_task=True), incarnation)

    def kill_actor(
        self, node_id: bytes, actor_id: bytes, incarnation: int, cause: DeathCause
    ) -> None:
        """``RayletService.KillActor``."""
        if node_id == self.node_id:
            self.actors.kill(actor_id, incarnation, death_from_proto(cause_to(cause)))

    def take_bundle_order(self, order: BundleOrder) -> str:
        """``RayletService.PrepareBundles`` and its companions; returns the refusal, or ""."""
        if order.node_id != self.node_id:
            return "this is another node"
        match order:
            case PrepareBundlesOnNode(_, _, group_id, attempt, amounts, opens):
                bundles = {index: ResourceSet(one) for index, one in amounts.items()}
                refusal = self.machine.bundle_refusal(group_id, attempt, bundles)
                if not refusal:
                    self.tell(on.BundlesWanted(group_id, attempt, bundles, opens))
                return refusal
            case CommitBundlesOnNode(_, _, ref):
                if not self.machine.holds_bundles(ref.group_id, ref.attempt, ref.indices):
                    return "it does not hold them"
                self.tell(on.BundlesOpened(ref.group_id, ref.attempt, ref.indices))
            case ReturnBundlesOnNode(_, _, ref):
                self.give_back(ref)
        return ""

    def held_bundles(self) -> tuple[BundleRef, ...]:
        """What a report lists."""
        return tuple(
            BundleRef(held.group_id, held.attempt, held.indices)
            for held in self.machine.held_bundles()
        )

    def give_back(self, ref: BundleRef) -> None:
        """The GCS does not want these bundles here."""
        self.tell(on.BundlesReturned(ref.group_id, ref.attempt, ref.indices))

    def _ask_for_group(self, group_id: bytes) -> None:
        def done(answer: Any, error: Any) -> None:
            if not self.is_up:
                return
            if error is not None:
                self.tell(on.GroupUnanswered(group_id))
            elif answer.record is None:
                self.tell(on.GroupGone(group_id, "The cluster does not know it.", is_answer=True))
            else:
                self._take_group(answer.record, is_answer=True)

        self.link.ask(gcs_on.GetGroup(group_id), done)

    def _take_group(self, record: PlacementGroupRecord, *, is_answer: bool = False) -> None:
        group_id = record.spec.group_id
        if record.is_removed:
            self.tell(on.GroupGone(group_id, record.removal_reason, is_answer))
        else:
            is_usable = record.state.name in USABLE
            self.tell(on.GroupSeen(group_id, record.node_ids if is_usable else (), is_answer))

    # ---- worker processes ----

    def _start_worker(self, command: do.StartWorker) -> None:
        world = self.world
        startup_id = command.startup_id

        def forked() -> None:
            if not self.is_up:
                return
            if world.random.random() < world.scenario.start_failure_rate:
                self.tell(on.WorkerStartFailed(startup_id, "the fork failed", True))
                return
            process = SimProcess(world, self, command.job_id, startup_id=startup_id)
            self.alive[startup_id] = process
            if startup_id in self.intents:  # told to end while it started
                self._kill(process)
                return
            self._admit(process)
            self.tell(on.WorkerRegistered(startup_id, process.worker_id))

        world.agenda.after(world.random.uniform(*FORK_S), forked)

    def _end_worker(self, command: do.EndWorker) -> None:
        process = self.alive.get(command.startup_id)
        self.intents.setdefault(command.startup_id, node.Death(command.kind, command.message))
        if process is None:
            return  # it is killed as soon as it is forked
        if command.grace_s <= 0:
            self._kill(process)
            return
        self._send(process.worker_id, node.ExitNow(command.message, command.grace_s))
        if not math.isinf(command.grace_s):
            due_s = self.world.agenda.now_s + command.grace_s
            known = self._kills.get(command.startup_id)
            if known is None or known.at_s > due_s:
                if known is not None:
                    known.cancel()
                self._kills[command.startup_id] = self.world.agenda.at(due_s, self._kill, process)

    def _kill(self, process: SimProcess) -> None:
        process.die("killed by its raylet")

    def process_died(self, process: SimProcess, why: str) -> None:
        """A worker or driver of this node ended; it is seen a moment later."""
        if self.is_up:
            delay_s = self.world.random.uniform(*REAP_S)
            self.world.agenda.after(delay_s, self._reaped, process, why)

    def _reaped(self, process: SimProcess, why: str) -> None:
        if not self.is_up:
            return
        if process.is_driver:
            self._driver_gone(process, why)
            return
        startup_id = process.startup_id
        del self.alive[startup_id]
        alarm = self._kills.pop(startup_id, None)
        if alarm is not None:
            alarm.cancel()
        intent = self.intents.pop(startup_id, None)
        death = intent or node.Death("signaled", why, signal=9)
        if process.local is None:
            self.tell(on.WorkerStartFailed(startup_id, "it ended before it registered", False))
            return
        self.processes.remove(process.worker_id)
        self.directory.forget(process.local)
        self._deaths[process.worker_id] = death
        self.tell(on.WorkerGone(startup_id, process.worker_id))
        del self._deaths[process.worker_id]
        self._report_death(process, death)

    def _driver_gone(self, process: SimProcess, why: str) -> None:
        if process.local is None:
            return  # its registration notices
        self.processes.remove(process.worker_id)
        self.directory.forget(process.local)
        death = node.Death("exited", why)
        if self.jobs.finish(process.job_id):
            self.tell(on.JobFinished(process.job_id))
        self.tell(on.HolderGone(process.worker_id))
        cause = cause_from(death_to_proto(death))

        async def report() -> None:
            await self._ask(gcs_on.JobFinished(process.job_id, cause))

        self.link.report(("job", process.job_id), "job_finished", report)
        self._report_death(process, death)

    def _report_death(self, process: SimProcess, death: node.Death) -> None:
        record = WorkerRecord(
            process.worker_id,
            self.node_id,
            process.job_id,
            is_driver=process.is_driver,
            death_cause=cause_from(death_to_proto(death)),
        )

        async def report() -> None:
            await self._ask(gcs_on.WorkerDied(record))

        self.link.report(("worker", process.worker_id), "worker_death", report)

    async def _ask(self, request: Any) -> Any:
        return await Ask(self.link, request)

    # ---- what processes say ----

    def _admit(self, process: SimProcess) -> LocalProcess:
        connection: Any = process.to_process
        local = LocalProcess(
            process.worker_id,
            0,
            process.job_id,
            "",
            process.endpoint,
            process.is_driver,
            process.startup_id,
            connection,
        )
        process.local = local
        self.processes.add(local)
        return local

    def register_driver(self, process: SimProcess) -> None:
        """``ProcessServer._register_driver``: the job is added, then the driver is admitted."""
        driver = Address(self.node_id, process.worker_id, process.endpoint)

        def done(answer: Any, error: Any) -> None:
            if not self.is_up:
                return
            if error is not None:
                self.world.agenda.after(0.5, self.register_driver, process)
                return
            process.job_id = answer.job_id
            if not process.life.is_alive:  # it hung up before it was registered
                self._admit(process)
                self._driver_gone(process, "it hung up before it was registered")
                return
            self.jobs.update(Job(answer.job_id, "", ()))
            self._admit(process)
            process.registered()

        self.link.ask(gcs_on.JobAdded(_job(driver)), done)

    def on_messages(self, process: SimProcess, batch: list[Any]) -> None:
        """Messages of a registered process, in order."""
        local = process.local
        assert local is not None
        for message in batch:
            if self.processes.get(process.worker_id) is not local or not self.is_up:
                return
            self._on_message(process, local, message)

    def _on_message(self, process: SimProcess, local: LocalProcess, message: Any) -> None:
        worker_id = local.worker_id
        match message:
            case node.RequestLease():
                self.tell(
                    on.LeaseRequested(
                        worker_id,
                        message.request_id,
                        local.job_id,
                        ResourceSet(message.resources),
                        tuple(sorted(message.env_vars.items())),
                        max(0, message.backlog),
                        _strategy_of(message),
                    )
                )
            case node.CancelLeaseRequest(request_id):
                self.tell(on.LeaseRequestCancelled(worker_id, request_id))
            case node.TellBacklog(backlogs):
                self.tell(on.BacklogTold(worker_id, tuple(backlogs)))
            case node.ReturnLease(lease_id, discard):
                self.tell(on.LeaseReturned(worker_id, lease_id, discard))
            case node.Blocked():
                self.tell(on.WorkerBlocked(worker_id))
            case node.Unblocked():
                self.tell(on.WorkerUnblocked(worker_id))
            case node.KillWorker(lease_id, reason):
                self._kill_worker(local, lease_id, reason)
            case node.ActorCreated():
                self.actors.created(local, message)
            case node.ActorCreationFailed():
                self.actors.creation_failed(local, message)
            case node.Exiting(reason):
                self.intents.setdefault(local.startup_id, node.Death("intended_exit", reason))
                self.tell(on.WorkerRetiring(local.startup_id))
            case node.SubscribeActor(actor_id):
                self.directory.subscribe(local, actor_id)
            case node.ControlCall():
                self._control(process, message)
            case _:
                raise AssertionError(f"a process said {message}")

    def _kill_worker(self, local: LocalProcess, lease_id: bytes, reason: str) -> None:
        lease = self.machine.lease_of(lease_id)
        if lease is None:
            self.tell(loan.BorrowedKilled(local.worker_id, lease_id, reason))
        elif lease.holder_id == local.worker_id and isinstance(lease.state, Granted):
            self.tell(on.WorkerUnfit(lease.state.startup_id, "killed_by_user", reason))

    def _control(self, process: SimProcess, call: node.ControlCall) -> None:
        request, answer_of = self.world.control_request(process, self, call)

        def done(answer: Any, error: Any) -> None:
            if error is not None:
                kind = "unavailable" if error.code == "UNAVAILABLE" else "internal"
                reply = node.ControlReply(call.call_id, error=str(error), error_kind=kind)
            else:
                reply = node.ControlReply(call.call_id, answer_of(answer))
            self._send(process.worker_id, reply)

        self.link.ask(request, done)

    # ---- the end ----

    def fenced(self, reason: str) -> None:
        """This life of the node is over for the cluster: everything of it ends."""
        if self.is_fenced or not self.is_up:
            return
        self.is_fenced = True
        self.world.note(self.name, f"is fenced: {reason}")
        self.world.count("nodes fenced")
        self.actors.is_closing = True
        self.world.agenda.after(STOP_S, self.die, "it was fenced")

    def die(self, why: str, *, is_dark: bool = False) -> None:
        """The daemon is gone, with its workers; without power also the drivers and all news."""
        if not self.is_up:
            return
        self.world.note(self.name, f"dies: {why}")
        self.is_up = False
        self.is_dark = is_dark
        for process in list(self.alive.values()):
            process.die("its node is gone", is_told=not is_dark)
        self.world.raylet_died(self, is_dark=is_dark)


def _job(driver: Address) -> JobRecord:
    return JobRecord(b"", driver)


def _strategy_of(message: node.RequestLease) -> on.Strategy:
    if message.placement_group_id:
        return on.Strategy(group_id=message.placement_group_id, bundle_index=message.bundle_index)
    if message.node_id or message.is_spread:
        return on.Strategy(
            message.is_spread, message.node_id, message.is_soft, message.is_impatient
        )
    return on.DEFAULT_STRATEGY
