"""One simulated cluster, from its seed to its verdict.

The world owns the clock, the network and every host; it plays the scenario's actions, then heals
everything, and asks three things: does all work settle within ``SETTLE_S`` of the last fault (I1),
was every promise kept on the way (``oracle``), and is nothing left when the programs have gone.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from skate_gcs.machine import events as gcs_on
from skate_gcs.machine.records import ActorSpec, ActorState, Address
from skate_gcs.machine.records import Strategy as GcsStrategy
from skate_gcs.service.convert import actor_to
from skate_raylet.service.convert import actor_view
from skate_rpc import node_protocol as node
from skate_rpc.stream import TCP_SILENCE_S
from skate_sim.agenda import Agenda
from skate_sim.gcs import SimGcs
from skate_sim.groups import Groups, request_of
from skate_sim.journal import Journal
from skate_sim.network import Network
from skate_sim.oracle import Oracle, Violation
from skate_sim.plans import ActorPlan, Plan
from skate_sim.process import SimProcess
from skate_sim.raylet import SimRaylet
from skate_sim.scenarios import Action, Scenario
from skate_sim.streams import SimSockets
from skate_worker.machine.references import Entry
from skate_worker.specs import TaskOptions

SETTLE_S = 30.0  # RELIABILITY I1
RETURN_S = 25.0  # for a lease whose holder needs it no more
QUIET_S = 60.0  # for leases, workers and reports to be given back once the programs have gone
POLL_S = 0.5
UNITS = 10_000
_PADDING = re.compile(r"(\\x00){4,}")  # of ids, in a trace
HOME: dict[str, float] = {"CPU": 8, "GPU": 1, "disk": 2, "slot": 4}  # room for all that is left
HOME_CPUS_WITH_GROUPS = 48.0
HOME_OF_GROUPS: dict[str, float] = {"CPU": 48, "disk": 4, "slot": 2}


class World:
    """One run. ``keep``: only these actions of the scenario happen."""

    def __init__(
        self, scenario: Scenario, *, trace: bool = False, keep: frozenset[int] | None = None
    ) -> None:
        seed = scenario.seed
        self.scenario = scenario
        self.agenda = Agenda()
        self.journal = Journal(trace=trace)
        self.is_tracing = trace
        self.random = Random(f"world {seed}")
        self.network = Network(self.agenda, Random(f"network {seed}"), scenario.habits)
        self.sockets = SimSockets(self.network)
        self.oracle = Oracle(self)
        self.groups = Groups(self)
        self.counts: Counter[str] = Counter()
        self.loses_messages = scenario.loses_messages
        self.gcs = SimGcs(self, Random(f"gcs {seed}"))
        self.gcs.crash_rate = scenario.gcs_crash_rate
        self.raylets: dict[str, SimRaylet] = {}  # by endpoint, dead ones too
        self.drivers: list[SimProcess] = []
        self.plans: dict[bytes, Plan] = {}
        self.actors: dict[bytes, ActorPlan] = {}
        self.outstanding: dict[bytes, tuple[Plan, SimProcess, Entry]] = {}
        self.entries: dict[bytes, tuple[Plan, Entry]] = {}
        self._sequences: Counter[tuple[str, bytes]] = Counter()
        self._numbers = itertools.count(1)
        self._process_numbers = itertools.count(1)
        self._node_numbers = itertools.count(1)
        self._actions = [
            action for action in scenario.actions if keep is None or action.number in keep
        ]

    # ---- for the parts ----

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.agenda.now_s

    def note(self, who: str, what: str) -> None:
        """Write a line of the journal."""
        self.journal.note(self.agenda.now_s, who, what)

    def count(self, what: str) -> None:
        """Count something worth reporting."""
        self.counts[what] += 1

    def describe(self, event: Any) -> str:
        """An event as a line: its fields only when tracing, for they cost more than the event."""
        return _PADDING.sub("", repr(event)) if self.is_tracing else type(event).__name__

    def next_process(self) -> int:
        """Number a process."""
        return next(self._process_numbers)

    def raylet_at(self, endpoint: str) -> SimRaylet:
        """Who listens there, or did."""
        return self.raylets[endpoint]

    def up(self) -> list[SimRaylet]:
        """The nodes whose daemons run."""
        return [raylet for raylet in self.raylets.values() if raylet.is_up]

    def live_drivers(self) -> list[SimProcess]:
        """The drivers that run, registered, with a raylet."""
        return [
            one
            for one in self.drivers
            if one.life.is_alive and one.job_id and not one.client.is_lost
        ]

    def workers(self) -> list[SimProcess]:
        """The worker processes that run."""
        return [process for raylet in self.up() for process in raylet.alive.values()]

    def gcs_holds_dead(self, raylet: SimRaylet) -> bool:
        """Whether the cluster holds this node for dead."""
        return not raylet.is_up or self.gcs.holds_dead(raylet.node_id)

    def actor_plan(self, actor_id: bytes) -> ActorPlan:
        """What an actor's constructor does."""
        return self.actors[actor_id]

    # ---- work ----

    def new_task_id(self, suffix: bytes) -> bytes:
        """A task id; ``suffix`` is the actor's id, or the job's without an actor."""
        return next(self._numbers).to_bytes(8, "big") + suffix

    def submit(
        self, process: SimProcess, plan: Plan, on_settled: Callable[[Any], None] | None = None
    ) -> None:
        """Have a process submit a plain task."""
        plan.task_id = self.new_task_id(bytes(12) + process.job_id)
        self.plans[plan.task_id] = plan
        amounts = {"CPU": plan.cpus, **plan.resources}
        options = TaskOptions(
            plan.name,
            1,
            tuple((name, int(amount * UNITS)) for name, amount in amounts.items()),
            plan.max_retries,
            plan.retries_errors,
            strategy=plan.strategy,
        )
        self.note(process.name, f"submits {plan.name}")
        self.count("tasks")
        submission = process.submit(plan, options)
        self._watch(plan, process, submission.entries[0], on_settled)

    def call(self, process: SimProcess, plan: Plan, actor: ActorPlan) -> None:
        """Have a process call an actor."""
        plan.task_id = self.new_task_id(actor.actor_id)
        plan.actor_id = actor.actor_id
        plan.caller = process.name
        key = (process.name, actor.actor_id)
        self._sequences[key] += 1
        plan.sequence = self._sequences[key]
        self.plans[plan.task_id] = plan
        self.note(process.name, f"calls {plan.name} of {actor.name}")
        self.count("calls")
        call = process.submit_call(plan, actor.actor_id, plan.max_retries)
        self._watch(plan, process, call.entries[0], None)

    def _watch(
        self,
        plan: Plan,
        process: SimProcess,
        entry: Entry,
        on_settled: Callable[[Any], None] | None,
    ) -> None:
        self.outstanding[plan.task_id] = (plan, process, entry)
        self.entries[plan.task_id] = (plan, entry)

        def settled(_: Entry) -> None:
            self.outstanding.pop(plan.task_id, None)
            if process.life.is_alive:
                self.note(process.name, f"has the outcome of {plan.name}")
                self.oracle.settled(plan, entry)
                if on_settled is not None:
                    on_settled(entry)

        if not process.ownership.watch(entry, settled):
            settled(entry)

    def create_actor(self, process: SimProcess, plan: ActorPlan) -> None:
        """Have a driver create an actor."""
        plan.actor_id = next(self._numbers).to_bytes(12, "big") + process.job_id
        self.actors[plan.actor_id] = plan
        self.note(process.name, f"creates {plan.name}")
        self.count("actors")
        strategy = plan.strategy
        body = node.ActorRegistration(
            plan.actor_id,
            "",
            "",
            plan.is_detached,
            "A",
            plan.max_restarts,
            {name: int(amount * UNITS) for name, amount in plan.placement.items()},
            {name: int(amount * UNITS) for name, amount in plan.running.items()},
            {},
            b"creation",
            b"",
            is_spread=strategy is not None and strategy.is_spread,
            node_id=b"" if strategy is None else strategy.node_id,
            is_soft=strategy is not None and strategy.is_soft,
            is_impatient=strategy is not None and strategy.is_impatient,
            placement_group_id=b"" if strategy is None else strategy.group_id,
            bundle_index=-1 if strategy is None else strategy.bundle_index,
        )

        plan.creator = process.name

        def replied(reply: node.ControlReply) -> None:
            plan.is_registered = not reply.error
            if reply.error:
                plan.is_doomed = True
                process.actor_calls.fail_creation(plan.actor_id, reply.error)

        process.client.call_soon("register_actor", body, replied)
        process.actor_calls.calls_of(plan.actor_id)

    def control_request(
        self, process: SimProcess, raylet: SimRaylet, call: node.ControlCall
    ) -> tuple[Any, Callable[[Any], bytes]]:
        """What the gateway asks the GCS for a process's call, and how it answers."""
        encode = msgspec.msgpack.encode
        if call.method.endswith("_placement_group"):
            return request_of(process, raylet, call), lambda _: encode(None)
        if call.method == "register_actor":
            body = msgspec.msgpack.decode(call.body, type=node.ActorRegistration)
            owner = Address(raylet.node_id, process.worker_id, process.endpoint)
            spec = ActorSpec(
                body.actor_id,
                process.job_id,
                owner,
                is_detached=body.is_detached,
                max_restarts=body.max_restarts,
                placement_resources=body.placement_resources,
                running_resources=body.running_resources,
                creation_task=body.creation_task,
                strategy=GcsStrategy(
                    body.is_spread,
                    body.node_id,
                    body.is_soft,
                    body.is_impatient,
                    group_id=body.placement_group_id,
                    bundle_index=body.bundle_index,
                ),
            )
            return gcs_on.ActorRegistered(spec, False), lambda answer: encode(
                node.RegisteredActor(actor_view(actor_to(answer.record)), answer.is_new)
            )
        if call.method == "kill_actor":
            kill = msgspec.msgpack.decode(call.body, type=node.ActorKill)
            request = gcs_on.ActorKilled(kill.actor_id, kill.no_restart, None)
            return request, lambda answer: encode(answer.value)
        release = msgspec.msgpack.decode(call.body, type=node.ActorRelease)
        return gcs_on.ActorReleased(release.actor_id), lambda _: encode(None)

    # ---- hosts ----

    def add_node(self, total: dict[str, float]) -> SimRaylet:
        """A new node on a new host."""
        number = next(self._node_numbers)
        raylet = SimRaylet(self, number, f"h{number}", total)
        self.raylets[raylet.endpoint] = raylet
        self.note(raylet.name, "starts")
        raylet.start()
        return raylet

    def add_driver(self, raylet: SimRaylet) -> SimProcess:
        """A new driver on a node."""
        driver = SimProcess(self, raylet, b"")
        self.drivers.append(driver)
        raylet.register_driver(driver)
        return driver

    def owner_ended(self, process: SimProcess) -> None:
        """Nobody waits any more for what it had submitted."""
        for task_id, (_, owner, _) in list(self.outstanding.items()):
            if owner is process:
                del self.outstanding[task_id]

    def raylet_died(self, raylet: SimRaylet, *, is_dark: bool) -> None:
        """A daemon is gone: its lines end, its drivers hear of it or are gone too."""
        if is_dark:
            self.sockets.dark_hosts[raylet.host] = None
        for other in self.up():
            line = other.lenders.get(raylet.node_id)
            if line is not None and not is_dark:
                line.end_of(raylet)
            line = raylet.lenders.get(other.node_id)
            if line is not None and not is_dark:
                line.end_of(raylet)
        for driver in self.drivers:
            if driver.raylet is raylet:
                if is_dark:
                    driver.die("its host has no power", is_told=False)
                else:
                    self.agenda.after(0.001, driver.raylet_lost)
        if is_dark:
            return
        lost = self.gcs.subscriber_lost
        self.network.travel(raylet.host, self.gcs.host, lambda: lost(raylet.node_id))

    def cut(self, source: str, target: str, duration_s: float, *, is_one_way: bool) -> None:
        """Cut two hosts off from each other for a while. A silence that lasts breaks streams."""
        ways = [(source, target)] if is_one_way else [(source, target), (target, source)]
        for way in ways:
            self.network.cut(*way)
            self.agenda.after(duration_s, self.network.heal, *way)
        if duration_s > TCP_SILENCE_S:
            self.agenda.after(TCP_SILENCE_S, self._snap_between, source, target)

    def _snap_between(self, one: str, other: str) -> None:
        for end in list(self.sockets.open):
            if {end.life.host, end.other.life.host} == {one, other} and not end.has_ended:
                end.snap()

    # ---- the run ----

    def run(self) -> None:
        """Play the scenario. Raises :class:`Violation`, or whatever a machine raises."""
        scenario = self.scenario
        for total in scenario.totals:
            self.add_node(total)
        raylets = self.up()
        for number in range(scenario.drivers):
            self.add_driver(raylets[number % len(raylets)])
        for action in self._actions:
            self.agenda.at(action.at_s, self._act, action)
        self.agenda.run_until(scenario.seconds)
        self.heal()
        self._settle()
        self._leave()

    def _act(self, action: Action) -> None:
        self.note("action", f"{action.number} {action.name}")
        action.play(self, Random(f"{self.scenario.seed} {action.number}"))

    def heal(self) -> None:
        """The last fault: from now on everything works, and there is room for everything."""
        self.note("world", "heals")
        self.network.heal_all()
        self.network.habits = self.scenario.habits_at_rest
        self.gcs.crash_rate = 0.0
        self.gcs.restart()
        if self.groups.plans:  # which may fill any node for ever, and some need two
            self.add_node({**HOME, "CPU": HOME_CPUS_WITH_GROUPS})
            self.add_node(HOME_OF_GROUPS)
        elif not self.scenario.is_calm:
            self.add_node(HOME)

    def _settle(self) -> None:
        end_s = self.agenda.now_s + SETTLE_S
        if not self.agenda.run_until(
            end_s, lambda: not self.outstanding and not self.groups.waiting()
        ):
            waiting = [
                f"{plan.name} of {process.name} ({status_of(process, plan)})"
                for plan, process, _ in self.outstanding.values()
            ]
            waiting += self.groups.waiting()
            raise Violation(f"I1: after {SETTLE_S:g} s wait {'; '.join(waiting)}")
        self.counts["settled within ms"] += int((self.agenda.now_s - end_s + SETTLE_S) * 1000)
        self._check_leases_returned()
        self.oracle.check_outcomes_stand(self.entries)
        self._check_actors()

    def _check_leases_returned(self) -> None:
        """Who has nothing to run keeps no worker."""
        end_s = self.agenda.now_s + RETURN_S
        while held := [
            f"{lease.holder_id[:9].decode()} at {raylet.name}"
            for raylet in self.up()
            for lease in raylet.machine.leases()
            if lease.holder_id
        ]:
            if self.agenda.now_s >= end_s:
                raise Violation(f"I14: {RETURN_S:g} s after its work a lease is held: {held}")
            self.agenda.run_until(self.agenda.now_s + POLL_S)

    def _check_actors(self) -> None:
        if self.scenario.is_calm:
            self.agenda.run_until(self.agenda.now_s + 15.0)  # the last restarts
        for record in self.gcs.actors():
            plan = self.actors[record.spec.actor_id]
            self.oracle.check_actor(plan, record.life.state is ActorState.DEAD)

    def _leave(self) -> None:
        """All programs end, and nothing of them may be left."""
        for driver in self.drivers:
            driver.die("its program ends")
        end_s = self.agenda.now_s + QUIET_S
        while left := self.left_over():
            if self.agenda.now_s >= end_s:
                raise Violation(f"I14/I15: after {QUIET_S:g} s are left: {'; '.join(left)}")
            for record in self.gcs.actors():
                if record.spec.is_detached and not record.is_dead:
                    kill = gcs_on.ActorKilled(record.spec.actor_id, True, None)
                    self.gcs.handle(kill, _ignore)
            self.groups.remove_detached()
            self.agenda.run_until(self.agenda.now_s + POLL_S)

    def left_over(self) -> list[str]:
        """What a cluster without programs should not have."""
        left: list[str] = []
        for raylet in self.up():
            machine = raylet.machine
            if machine.leases() or machine.available != machine.total:
                left.append(f"leases of {raylet.name}")
            counts = machine.statistics()
            if counts.waiting or counts.borrowed or counts.asked_elsewhere or counts.lent:
                left.append(f"requests of {raylet.name}")
            if raylet.alive or counts.workers:
                left.append(f"workers of {raylet.name}")
            if raylet.link.unsent_reports():
                left.append(f"reports of {raylet.name}")
            if raylet.actors.count():
                left.append(f"actors of {raylet.name}")
        if any(not record.is_dead for record in self.gcs.actors()):
            left.append("actors in the GCS")
        if self.gcs.machine.statistics().kill_orders:
            left.append("kill orders")
        return [*left, *self.groups.left_over()]


def status_of(process: SimProcess, plan: Plan) -> str:
    """Where an unfinished task is, as its owner sees it."""
    for submission, status in (*process.tasks.unfinished(), *process.actor_calls.unfinished()):
        if submission.task_id == plan.task_id:
            return status
    return "unknown to its owner"


def _ignore(answer: Any) -> None:
    return None
