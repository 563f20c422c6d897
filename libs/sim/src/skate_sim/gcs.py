"""The shell around the real GCS machine: durable rows, orders, subscriptions, and crashes.

As the product's runner does: every row of an event is stored before anything else of it happens. A
crash keeps the rows that were stored for certain, perhaps those that could wait, and nothing else;
the next life loads them and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from skate_gcs.machine import GcsLimits, GcsMachine, Now, SavedState, answers
from skate_gcs.machine import commands as do
from skate_gcs.machine import events as on
from skate_gcs.machine.records import ActorRecord
from skate_gcs.service.rows import encode_row, load_state
from skate_gcs.storage import MemoryStorage, Write
from skate_sim.agenda import Alarm
from skate_sim.network import REFUSED, Pipe

if TYPE_CHECKING:
    from skate_sim.raylet import SimRaylet
    from skate_sim.world import World

UNIX_EPOCH_S = 1_000_000.0
NODE_CALL_TIMEOUT_S = 5.0  # as GcsConfig's
CHANNELS = tuple(on.Channel)


class SimGcs:
    """One GCS across its lives. An :class:`~skate_sim.network.Endpoint`."""

    host = "gcs"

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.limits = GcsLimits()
        self.life = 0
        self.is_up = True
        self.crash_rate = 0.0  # of the changes: it crashes right after their commit
        self._random = random
        self._storage = MemoryStorage(do.Table)
        self._lazy: list[do.Persist] = []
        self._subscribers: dict[bytes, tuple[SimRaylet, Pipe]] = {}
        self._alarm: Alarm | None = None
        self.events = 0
        self.machine = GcsMachine("cluster", self.limits, random, SavedState(), self.now)

    @property
    def now(self) -> Now:
        """The moment, as the machine reads it."""
        return Now(self.world.agenda.now_s, UNIX_EPOCH_S + self.world.agenda.now_s)

    # ---- calls ----

    def ask(self, request: Any, reply: Callable[[Any], None]) -> None:
        """Handle a request that arrived. No reply ever comes of one that a crash ended."""
        self.handle(request, reply)

    def handle(self, event: Any, reply: Callable[[Any], None] | None = None) -> None:
        """Have the machine take an event, and carry out what follows."""
        world = self.world
        self.events += 1
        if not isinstance(event, on.Query | on.ResourcesReported):
            world.note("gcs", world.describe(event))
        commands = self.machine.handle(event, self.now)
        is_change = self._store(commands)
        if is_change and self.crash_rate and self._random.random() < self.crash_rate:
            self.crash(self._random.choice((0.0, 0.3, 2.0)))
            return
        self._perform(commands, reply)
        if isinstance(event, on.ActorStarted) and do.Reply(answers.Accepted(True)) in commands:
            world.oracle.gcs_accepted(event.actor_id, event.incarnation, event.address)
        self.machine.check_invariants()
        world.groups.gcs_changed()
        self._plan_tick()

    def holds_dead(self, node_id: bytes) -> bool:
        """Whether the node table has this node as dead."""
        answer: Any = self.machine.handle(on.ListNodes(), self.now)[0]
        rows = {row.node_id: row for row in answer.answer.records}
        return node_id in rows and not rows[node_id].is_alive

    def actors(self) -> list[ActorRecord]:
        """The actor table."""
        answer: Any = self.machine.handle(on.ListActors(), self.now)[0]
        records: list[ActorRecord] = answer.answer.records
        return records

    def _store(self, commands: list[do.Command]) -> bool:
        urgent = [one for one in commands if isinstance(one, do.Persist) and not one.is_lazy]
        self._lazy += [one for one in commands if isinstance(one, do.Persist) and one.is_lazy]
        if urgent:
            self._commit([*self._lazy, *urgent])
            self._lazy.clear()
        return bool(urgent)

    def _commit(self, rows: list[do.Persist]) -> None:
        writes = [
            Write(row.table, row.key, None if row.row is None else encode_row(row.row))
            for row in rows
        ]
        self._storage.commit(writes).result()

    def _perform(
        self, commands: list[do.Command], reply: Callable[[Any], None] | None = None
    ) -> None:
        for command in commands:
            match command:
                case do.Persist() | do.ForgetNode():
                    pass  # stored before; and simulated calls end by themselves
                case do.Reply(answer):
                    assert reply is not None
                    reply(answer)
                case do.Publish(record):
                    for _, pipe in list(self._subscribers.values()):
                        pipe.send(record)
                case do.StartActorOnNode():
                    self._start_actor(command)
                case do.KillActorOnNode():
                    self._kill_actor(command)
                case (
                    do.PrepareBundlesOnNode() | do.CommitBundlesOnNode() | do.ReturnBundlesOnNode()
                ):
                    self._order_bundles(command)
                case do.ProbeNode(node_id, endpoint):
                    self._probe(node_id, endpoint)

    def _plan_tick(self) -> None:
        wakeup = self.machine.next_wakeup()
        if self._alarm is not None:
            if (
                wakeup is not None
                and self._alarm.callback is not None
                and self._alarm.at_s == max(wakeup.at_s, self.world.agenda.now_s)
            ):
                return
            self._alarm.cancel()
            self._alarm = None
        if wakeup is not None:
            self._alarm = self.world.agenda.at(wakeup.at_s, self._tick, self.life)

    def _tick(self, life: int) -> None:
        if self.is_up and life == self.life:
            self._alarm = None
            self.handle(on.Tick())

    # ---- orders to nodes ----

    def _start_actor(self, order: do.StartActorOnNode) -> None:
        node = self.world.raylet_at(order.endpoint)
        key = (order.node_id, order.spec.actor_id, order.incarnation)

        def done(refusal: Any, problem: str) -> None:
            if problem:
                self.handle(on.StartUnanswered(*key, problem=problem))
            else:
                self.handle(on.StartAnswered(*key, refusal=refusal or None))

        self.world.network.call(
            self,
            node,
            lambda reply: reply(node.start_actor(order.node_id, order.spec, order.incarnation)),
            done,
            NODE_CALL_TIMEOUT_S,
        )

    def _kill_actor(self, order: do.KillActorOnNode) -> None:
        node = self.world.raylet_at(order.endpoint)
        key = (order.node_id, order.actor_id, order.incarnation)

        def handle(reply: Callable[[Any], None]) -> None:
            node.kill_actor(order.node_id, order.actor_id, order.incarnation, order.cause)
            reply(True)

        def done(_: Any, problem: str) -> None:
            self.handle(on.KillAnswered(*key, is_done=not problem))

        self.world.network.call(self, node, handle, done, NODE_CALL_TIMEOUT_S)

    def _order_bundles(self, order: do.BundleOrder) -> None:
        node = self.world.raylet_at(order.endpoint)

        def done(outcome: Any, problem: str) -> None:
            match order:
                case do.PrepareBundlesOnNode(node_id, _, group_id, attempt):
                    refusal = problem or outcome
                    self.handle(on.BundlesPrepared(node_id, group_id, attempt, refusal))
                case do.CommitBundlesOnNode(node_id, _, ref):
                    is_done = not problem and not outcome
                    is_lost = not problem and bool(outcome)
                    self.handle(
                        on.BundlesCommitted(node_id, ref.group_id, ref.attempt, is_done, is_lost)
                    )
                case do.ReturnBundlesOnNode():
                    pass  # the node's reports say whether it did

        self.world.network.call(
            self,
            node,
            lambda reply: reply(node.take_bundle_order(order)),
            done,
            NODE_CALL_TIMEOUT_S,
        )

    def _probe(self, node_id: bytes, endpoint: str) -> None:
        node = self.world.raylet_at(endpoint)

        def done(_: Any, problem: str) -> None:
            is_refused = problem == REFUSED and not node.is_dark
            self.handle(on.NodeProbed(node_id, endpoint, is_refused))

        self.world.network.call(self, node, lambda reply: reply(True), done, 1.0)

    # ---- subscriptions ----

    def subscribe(self, raylet: SimRaylet, pipe: Pipe) -> None:
        """Send a raylet the present rows, then every change."""
        self.unsubscribe(raylet.node_id)
        for command in self.machine.handle(on.TakeSnapshot(CHANNELS), self.now):
            assert isinstance(command, do.Reply)
            answer: Any = command.answer
            for record in answer.records:
                pipe.send(record)
        self._subscribers[raylet.node_id] = (raylet, pipe)

    def unsubscribe(self, node_id: bytes) -> None:
        """A subscription ended."""
        known = self._subscribers.pop(node_id, None)
        if known is not None:
            known[1].is_closed = True

    def subscriber_lost(self, node_id: bytes) -> None:
        """The stream of a subscriber broke."""
        if self.is_up and node_id in self._subscribers:
            self.unsubscribe(node_id)
            self.handle(on.SubscriberLeft(node_id))

    # ---- crashes ----

    def crash(self, away_s: float) -> None:
        """Lose everything but what is stored; come back after ``away_s``."""
        if not self.is_up:
            return
        self.world.note("gcs", f"crashes for {away_s:g} s")
        self.world.count("gcs crashes")
        self.is_up = False
        self.life += 1
        if self._random.random() < 0.5:
            self._commit(self._lazy)
        self._lazy.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        subscribers, self._subscribers = self._subscribers, {}
        for raylet, pipe in subscribers.values():
            pipe.is_closed = True
            raylet.subscription_broke()
        self.world.agenda.after(away_s, self.restart)

    def restart(self) -> None:
        """Begin a new life with the stored rows."""
        if self.is_up:
            return
        self.is_up = True
        self.world.note("gcs", "is back")
        state = load_state(self._storage)
        self.machine = GcsMachine("cluster", self.limits, self._random, state, self.now)
        commands = self.machine.resume(self.now)
        self._store(commands)
        self._perform(commands)
        self.machine.check_invariants()
        self._plan_tick()
