"""From the wish to run an actor to a node's word that it has taken it.

Three ways to wait: in the start queue for a node, in a pause after lives that ended early, and for
a node that did not answer. An actor without a node is in one of the first two.

::

    enqueue ─► start queue ─► order ─► taken: the node reports the outcome
                  ▲             ├────► refused: back to the queue
    plan_restart ─┤             └────► unanswered: the same order again, until the node is dead
                  └─ pause ◄─ early ends in a row

Cost: O(1) per event, and what the start queue costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, assert_never

from skate_gcs.machine.actor_rows import ActorRows
from skate_gcs.machine.clock import Now, Timers, Wakeup
from skate_gcs.machine.commands import Command, StartActorOnNode
from skate_gcs.machine.demand import Demand
from skate_gcs.machine.events import StartAnswered, StartUnanswered
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.records import ActorRecord, ActorState
from skate_gcs.machine.start_queue import HomesOf, Impossible, Placed, Postponed, StartQueue
from skate_scheduler import RandomSource, ResourceSet

_Retry = tuple[Literal["restart", "resend"], bytes]


class ActorStarts:
    """Invariant: an actor that is neither alive nor dead waits, or a node was asked to start it."""

    def __init__(
        self,
        rows: ActorRows,
        nodes: NodeTable,
        limits: GcsLimits,
        random: RandomSource,
        give_up: Callable[[ActorRecord, str, Now, list[Command]], None],
        homes_of: HomesOf,
    ) -> None:
        """``give_up`` ends an actor that can not run any more, for this reason."""
        self._give_up = give_up
        self._rows = rows
        self._nodes = nodes
        self._limits = limits
        self._queue = StartQueue(nodes, limits, random, homes_of)
        self._retries: Timers[_Retry] = Timers()
        self._failures: dict[bytes, int] = {}  # early ends and unanswered orders in a row
        self._started_s: dict[bytes, float] = {}  # monotonic, of actors that are alive

    def resume(self, now: Now, out: list[Command]) -> None:
        """Repeat orders whose outcome is unknown, and queue what waits for a node."""
        for record in self._rows.live():
            life = record.life
            if life.node_id and self._nodes.get_alive(life.node_id) is None:
                # It refused, which is not stored, and died later; a node that runs an actor, or may
                # run it, and the actor's loss are stored together.
                assert life.state is not ActorState.ALIVE
                self.enqueue(self._rows.unplace(record))
            elif life.state is ActorState.ALIVE:
                self._started_s[record.spec.actor_id] = now.now_s
            elif life.node_id:
                self._send(record, out)
            else:
                self.enqueue(record)

    def enqueue(self, record: ActorRecord) -> None:
        """Have a node chosen at the next :meth:`pump`."""
        request = ResourceSet(record.spec.placement_resources)
        spec = record.spec
        self._queue.add(spec.actor_id, request, spec.owner.node_id, spec.strategy)

    def plan_restart(self, record: ActorRecord, now: Now) -> None:
        """Start again: at once, but with growing pauses when life after life ends early."""
        actor_id = record.spec.actor_id
        self._forget(actor_id)
        started_s = self._started_s.pop(actor_id, None)
        if started_s is not None and now.now_s - started_s >= self._limits.actor_settled_s:
            self._failures.pop(actor_id, None)
        failures = self._failures.get(actor_id, 0) + 1
        self._failures[actor_id] = failures
        if failures == 1:
            self.enqueue(record)
        else:
            pause_s = self._limits.retry_pause_s(failures - 1)
            self._retries.set(("restart", actor_id), now.now_s + pause_s)

    def started(self, actor_id: bytes, now: Now) -> None:
        """The actor is alive."""
        self._queue.taken(actor_id)
        self._forget(actor_id)
        self._started_s[actor_id] = now.now_s

    def ended(self, actor_id: bytes) -> None:
        """The actor will not start again."""
        self._forget(actor_id)
        self._failures.pop(actor_id, None)
        self._started_s.pop(actor_id, None)

    def answered(self, event: StartAnswered, out: list[Command]) -> None:
        """The node takes the actor, or refuses it."""
        record = self._asked(event.node_id, event.actor_id, event.incarnation)
        if record is None:
            return
        if event.refusal is None:
            self._queue.taken(event.actor_id)
            self._forget(event.actor_id)
            if record.pending_reason:
                self._rows.postpone(record, "", out)
            return
        self._retries.cancel(("resend", event.actor_id))
        waiting = self._rows.unplace(record)
        if event.actor_id in self._queue:
            self._queue.refused(event.actor_id, event.node_id, event.refusal)
        else:
            self.enqueue(waiting)

    def unanswered(self, event: StartUnanswered, now: Now, out: list[Command]) -> None:
        """The actor may have been started there: ask the same node again, until it is dead."""
        record = self._asked(event.node_id, event.actor_id, event.incarnation)
        if record is None:
            return
        self._queue.discard(event.actor_id)
        failures = self._failures.get(event.actor_id, 0) + 1
        self._failures[event.actor_id] = failures
        pause_s = self._limits.retry_pause_s(failures)
        self._retries.set(("resend", event.actor_id), now.now_s + pause_s)
        reason = f"Its node did not answer ({event.problem}); it is asked again."
        self._rows.postpone(record, reason, out)

    def demands(self) -> Iterator[Demand]:
        """The actors that no node has taken, by shape."""
        return self._queue.demands()

    def nodes_changed(self) -> None:
        """A node came, went, or has other totals."""
        self._queue.nodes_changed()

    def resources_freed(self, node_id: bytes) -> None:
        """More is free on this node."""
        view = self._nodes.candidate(node_id)
        if view is not None:
            self._queue.resources_freed(view)

    def group_changed(self, group_id: bytes) -> None:
        """A placement group has other bundles that can be used."""
        self._queue.group_changed(group_id)

    def tick(self, now: Now, out: list[Command]) -> None:
        """End the pauses that are over."""
        while (retry := self._retries.pop_due(now.now_s)) is not None:
            kind, actor_id = retry
            if kind == "restart":
                self.enqueue(self._rows[actor_id])
            else:
                self._send(self._rows[actor_id], out)

    def pump(self, now: Now, out: list[Command]) -> None:
        """Order what can be ordered."""
        for decision in self._queue.pump(now.now_s):
            record = self._rows[decision.actor_id]
            match decision:
                case Placed(_, node_id):
                    self._send(self._rows.place(record, node_id, out), out)
                case Postponed(_, reason):
                    self._rows.postpone(record, reason, out)
                case Impossible(_, reason):
                    self._give_up(record, reason, now, out)
                case _:
                    assert_never(decision)

    def next_wakeup(self) -> Wakeup | None:
        """The earliest pause that ends."""
        wakeup = self._queue.next_wakeup()
        at_s = self._retries.next_s()
        if at_s is not None and (wakeup is None or at_s < wakeup.at_s):
            return Wakeup(at_s, "an actor's start is tried again")
        return wakeup

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the bookkeeping does not fit the rows."""
        self._queue.check_invariants()
        for record in self._rows.all():
            actor_id, life = record.spec.actor_id, record.life
            waits = actor_id in self._queue
            retries = [kind for kind in ("restart", "resend") if (kind, actor_id) in self._retries]
            if record.is_dead or life.state is ActorState.ALIVE:
                assert not waits
                assert not retries
            elif life.node_id:
                assert retries in ([], ["resend"])
                assert not (waits and retries)
            else:
                assert waits != bool(retries), "an actor without a node waits for one"
            if life.node_id:
                assert self._nodes.get_alive(life.node_id) is not None
            if record.is_dead:
                assert actor_id not in self._failures
                assert actor_id not in self._started_s

    def _asked(self, node_id: bytes, actor_id: bytes, incarnation: int) -> ActorRecord | None:
        """The actor, if this node was asked to start this incarnation and that is still open."""
        record = self._rows.get(actor_id)
        if record is None or record.is_dead or record.life.state is ActorState.ALIVE:
            return None
        life = record.life
        return record if (life.node_id, life.incarnation) == (node_id, incarnation) else None

    def _send(self, record: ActorRecord, out: list[Command]) -> None:
        node = self._nodes.get_alive(record.life.node_id)
        assert node is not None, "actors of a dead node are lost with it"
        out.append(
            StartActorOnNode(
                node.node_id, node.raylet_endpoint, record.spec, record.life.incarnation
            )
        )

    def _forget(self, actor_id: bytes) -> None:
        self._queue.discard(actor_id)
        self._retries.cancel(("restart", actor_id))
        self._retries.cancel(("resend", actor_id))
