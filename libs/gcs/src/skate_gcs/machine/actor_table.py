"""The actor table: every actor's life, from its registration to some time after its end.

What may follow what is in ``actor_states``; which node is asked to start an actor in
``start_queue``; ended actors' processes in ``kill_orders``. This module keeps the rows and their
indexes, and decides what each report means.

One live incarnation (RELIABILITY I10): a number names each start that could have run beside another
one. A report that carries another number than the row, or comes from another node than was asked,
changes nothing and its worker is killed. A node is asked under the same number until it has
answered; it is only given up, under a new number, when it is dead (and fenced) or has refused.

Cost: O(1) per event; O(actors concerned) for the end of a node, owner or job, and O(live actors) to
find those whose owner lived on a dead node.

Source: SURFACE rows A13, A18-A25, A32, A39; RELIABILITY I10, I11.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from skate_core_ids import ActorID
from skate_gcs.machine.actor_rows import ActorRows
from skate_gcs.machine.actor_states import Trigger, may_restart, next_state
from skate_gcs.machine.answers import (
    Accepted,
    ActorAssigned,
    ActorFound,
    Done,
    RefusalKind,
    Refused,
)
from skate_gcs.machine.clock import Now, Timers, Wakeup
from skate_gcs.machine.commands import Command, Reply, StartActorOnNode
from skate_gcs.machine.events import (
    ActorFailed,
    ActorKilled,
    ActorRegistered,
    ActorStarted,
    StartAnswered,
    StartUnanswered,
)
from skate_gcs.machine.kill_orders import KillOrders
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.records import (
    ActorLife,
    ActorRecord,
    ActorSpec,
    ActorState,
    Address,
    DeathCause,
    DeathKind,
)
from skate_gcs.machine.start_queue import Placed, Postponed, StartQueue
from skate_scheduler import RandomSource, ResourceSet

_MAX_RESTARTS_LARGEST = 2**63 - 1
# A restart after a pause; an order that is repeated because nobody knows whether it arrived.
_Retry = tuple[Literal["restart", "resend"], bytes]


class ActorTable:
    """All actors, live and lately dead. Invariants: see :meth:`check_invariants`."""

    def __init__(
        self, nodes: NodeTable, kills: KillOrders, limits: GcsLimits, random: RandomSource
    ) -> None:
        self._nodes = nodes
        self._kills = kills
        self._limits = limits
        self._rows = ActorRows(limits)
        self._starts = StartQueue(nodes, limits, random)
        self._retries: Timers[_Retry] = Timers()
        self._failures: dict[bytes, int] = {}  # lives in a row that ended early
        self._started_s: dict[bytes, float] = {}  # monotonic, of actors that are alive

    # ---- restart of the GCS ----

    def restore(self, specs: dict[bytes, ActorSpec], lives: dict[bytes, ActorLife]) -> None:
        """Take the stored rows; :meth:`resume` goes on with them."""
        self._rows.restore(specs, lives)

    def resume(self, now: Now, out: list[Command]) -> None:
        """Repeat unanswered start orders, and queue what waits for a node."""
        self._rows.trim(out)
        for record in self._rows.live():
            life = record.life
            if life.node_id and self._nodes.get_alive(life.node_id) is None:
                # It refused, which is not stored, and died later; a node that runs an actor, or may
                # run it, and the actor's loss are stored together.
                assert life.state is not ActorState.ALIVE
                self._enqueue(self._rows.unplace(record))
            elif life.state is ActorState.ALIVE:
                self._started_s[record.spec.actor_id] = now.now_s
            elif life.node_id:
                self._send_start(record, out)
            else:
                self._enqueue(record)

    # ---- requests and reports ----

    def register(
        self, event: ActorRegistered, doomed: DeathCause | None, now: Now, out: list[Command]
    ) -> None:
        """Create an actor unless its name is held. ``doomed``: its owner is gone, it never runs."""
        spec = event.spec
        problem = _problem_of(event)
        if problem:
            out.append(Reply(Refused(RefusalKind.INVALID, problem)))
            return
        known = self._rows.get(spec.actor_id)
        if known is not None:
            out.append(Reply(ActorAssigned(known, is_new=True)))
            return
        holder = self._rows.index.holder_of(spec.namespace, spec.name)
        if holder is not None:
            out.append(Reply(ActorAssigned(self._rows[holder], is_new=False)))
            return
        life = ActorLife(
            state=next_state(ActorState.DEPENDENCIES_UNREADY, Trigger.REGISTERED),
            outlives_job=spec.is_detached or self.outlives_job(spec.owner.worker_id),
        )
        record = self._rows.add(spec, life, out)
        if doomed is not None:
            self._end(record, doomed, now, out)
        else:
            self._enqueue(record)
        # The reply shows the row as it is after the whole event, with its node or reason.
        self.pump(now, out)
        out.append(Reply(ActorAssigned(self._rows[spec.actor_id], is_new=True)))

    def started(self, event: ActorStarted, now: Now, out: list[Command]) -> None:
        """A worker runs the actor; answered whether it may go on."""
        record = self._rows.get(event.actor_id)
        if record is None or event.incarnation != record.life.incarnation:
            out.append(Reply(Accepted(False)))
            return
        life = record.life
        if life.state is ActorState.ALIVE:
            out.append(Reply(Accepted(life.address.worker_id == event.address.worker_id)))
            return
        if not life.node_id or life.node_id != event.address.node_id:
            out.append(Reply(Accepted(False)))  # dead, or another node was asked
            return
        self._forget_start(event.actor_id, was_taken=True)
        self._started_s[event.actor_id] = now.now_s
        self._rows.change(
            record,
            replace(
                life,
                state=next_state(life.state, Trigger.STARTED),
                address=event.address,
                pid=event.pid,
                start_time_s=now.unix_s,
            ),
            out,
        )
        out.append(Reply(Accepted(True)))

    def failed(self, event: ActorFailed, now: Now, out: list[Command]) -> None:
        """An incarnation's worker ended: start again or end the actor."""
        record = self._rows.get(event.actor_id)
        if record is not None and not record.is_dead:
            life = record.life
            if life.node_id and life.incarnation == event.incarnation:
                self._lose(record, event.cause, now, out, creation_error=event.creation_error)
        out.append(Reply(Done()))

    def kill(self, event: ActorKilled, now: Now, out: list[Command]) -> None:
        """The user's kill; answered whether the actor is known."""
        record = self._rows.get(event.actor_id)
        out.append(Reply(Accepted(record is not None)))
        if record is None or record.is_dead:
            return
        is_alive = record.life.state is ActorState.ALIVE
        if event.no_restart:
            never_ran = "" if record.life.start_time_s else " before it ever ran"
            message = f"The actor was killed by kill(){never_ran}."
            cause = event.cause or DeathCause()
            if cause.kind is DeathKind.UNSPECIFIED:
                cause = replace(
                    cause, kind=DeathKind.KILLED_BY_USER, message=cause.message or message
                )
            self._end_with_process(record, cause, now, out)
        elif is_alive:
            # Counts like the death of its process, but the process must be ended first.
            message = "The actor's process was killed by kill(no_restart=False)."
            cause = DeathCause(DeathKind.SIGNALED, message, pid=record.life.pid, signal=9)
            self._order_kill(record, cause, out)
            self._lose(record, cause, now, out)

    def release(self, actor_id: bytes, now: Now, out: list[Command]) -> None:
        """No handle is left: an actor that runs ends in order, one that does not is dropped."""
        out.append(Reply(Done()))
        record = self._rows.get(actor_id)
        if record is None or record.is_dead or record.spec.is_detached or record.life.is_released:
            return
        cause = DeathCause(DeathKind.HANDLES_RELEASED, "No handle of the actor was left.")
        if record.life.state is not ActorState.ALIVE:
            self._end_with_process(record, cause, now, out)
            return
        # It stays ALIVE until its node reports the end, so that calls under way can be answered.
        self._rows.index.free_name(record)
        self._rows.change(record, replace(record.life, is_released=True), out)
        self._order_kill(record, cause, out)

    def start_answered(self, event: StartAnswered, out: list[Command]) -> None:
        """The node takes the actor, or refuses it."""
        record = self._starting_on(event.node_id, event.actor_id, event.incarnation)
        if record is None:
            return
        if event.refusal is None:
            self._forget_start(event.actor_id, was_taken=True)
            if record.pending_reason:
                self._rows.postpone(record, "", out)
            return
        self._retries.cancel(("resend", event.actor_id))
        waiting = self._rows.unplace(record)
        if event.actor_id in self._starts:
            self._starts.refused(event.actor_id, event.node_id, event.refusal)
        else:
            self._enqueue(waiting)

    def start_unanswered(self, event: StartUnanswered, now: Now, out: list[Command]) -> None:
        """The actor may have been started there: ask the same node again, until it is dead."""
        record = self._starting_on(event.node_id, event.actor_id, event.incarnation)
        if record is None:
            return
        self._starts.discard(event.actor_id)
        failures = self._failures.get(event.actor_id, 0) + 1
        self._failures[event.actor_id] = failures
        pause_s = self._limits.retry_pause_s(failures)
        self._retries.set(("resend", event.actor_id), now.now_s + pause_s)
        reason = f"Its node did not answer ({event.problem}); it is asked again."
        self._rows.postpone(record, reason, out)

    # ---- the ends of others ----

    def owner_died(self, worker_id: bytes, why: str, now: Now, out: list[Command]) -> None:
        """The actors that this worker owned end with it, unless detached."""
        for actor_id in self._rows.index.owned_by(worker_id):
            record = self._rows[actor_id]
            if not record.is_dead and not record.spec.is_detached:
                message = f"The actor's owner died: {why}"
                self._end_with_process(record, DeathCause(DeathKind.OWNER_DIED, message), now, out)

    def job_finished(self, job_id: bytes, why: str, now: Now, out: list[Command]) -> None:
        """The job's actors end with it, unless they outlive it."""
        message = f"The actor's job has finished. {why}".rstrip()
        for actor_id in self._rows.index.of_job(job_id):
            record = self._rows[actor_id]
            if not record.is_dead and not record.life.outlives_job:
                self._end_with_process(
                    record, DeathCause(DeathKind.JOB_FINISHED, message), now, out
                )

    def node_died(self, node_id: bytes, why: str, now: Now, out: list[Command]) -> None:
        """What ran there is lost; what was owned there ends."""
        for record in self._rows.live():
            if record.spec.owner.node_id == node_id and not record.spec.is_detached:
                message = f"The actor's owner died with its node: {why}"
                self._end_with_process(record, DeathCause(DeathKind.OWNER_DIED, message), now, out)
        for actor_id in self._rows.index.on_node(node_id):
            record = self._rows[actor_id]
            message = f"The actor's node {node_id.hex()} died: {why}"
            self._lose(record, DeathCause(DeathKind.NODE_DIED, message), now, out)
        self._starts.nodes_changed()

    # ---- time and nodes ----

    def nodes_changed(self) -> None:
        """A node came or changed its totals."""
        self._starts.nodes_changed()

    def resources_freed(self, node_id: bytes) -> None:
        """More is free on this node."""
        view = self._nodes.candidate(node_id)
        if view is not None:
            self._starts.resources_freed(view)

    def tick(self, now: Now, out: list[Command]) -> None:
        """Do what is due."""
        while (retry := self._retries.pop_due(now.now_s)) is not None:
            record = self._rows[retry[1]]
            if retry[0] == "restart":
                self._enqueue(record)
            else:
                self._send_start(record, out)

    def pump(self, now: Now, out: list[Command]) -> None:
        """Place what can be placed."""
        for decision in self._starts.pump(now.now_s):
            record = self._rows[decision.actor_id]
            match decision:
                case Placed(_, node_id):
                    self._send_start(self._rows.place(record, node_id, out), out)
                case Postponed(_, reason):
                    self._rows.postpone(record, reason, out)

    def next_wakeup(self) -> Wakeup | None:
        """The earliest pause that ends."""
        wakeup = self._starts.next_wakeup()
        at_s = self._retries.next_s()
        if at_s is not None and (wakeup is None or at_s < wakeup.at_s):
            return Wakeup(at_s, "an actor's start is tried again")
        return wakeup

    # ---- questions ----

    def get(self, actor_id: bytes) -> ActorFound:
        """One actor."""
        return ActorFound(self._rows.get(actor_id))

    def get_named(self, namespace: str, name: str) -> ActorFound:
        """The actor that holds a name."""
        holder = self._rows.index.holder_of(namespace, name)
        return ActorFound(self._rows[holder] if holder is not None else None)

    def outlives_job(self, worker_id: bytes) -> bool:
        """Whether what this worker creates outlives its job, as the worker's own actor does."""
        actor_id = self._rows.index.actor_of_worker(worker_id)
        return actor_id is not None and self._rows[actor_id].life.outlives_job

    def records(self) -> list[ActorRecord]:
        """All actors, in order of registration."""
        return self._rows.all()

    def count_by_state(self) -> dict[ActorState, int]:
        """Actors in each state. O(live actors)."""
        return self._rows.count_by_state()

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        self._rows.check_invariants()
        self._starts.check_invariants()
        for record in self._rows.all():
            actor_id, life = record.spec.actor_id, record.life
            waits = actor_id in self._starts
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

    # ---- how it is done ----

    def _starting_on(self, node_id: bytes, actor_id: bytes, incarnation: int) -> ActorRecord | None:
        record = self._rows.get(actor_id)
        if record is None or record.is_dead or record.life.state is ActorState.ALIVE:
            return None
        life = record.life
        return record if (life.node_id, life.incarnation) == (node_id, incarnation) else None

    def _enqueue(self, record: ActorRecord) -> None:
        request = ResourceSet(record.spec.placement_resources)
        self._starts.add(record.spec.actor_id, request, record.spec.owner.node_id)

    def _send_start(self, record: ActorRecord, out: list[Command]) -> None:
        node = self._nodes.get_alive(record.life.node_id)
        assert node is not None, "actors of a dead node are lost with it"
        out.append(
            StartActorOnNode(
                node.node_id, node.raylet_endpoint, record.spec, record.life.incarnation
            )
        )

    def _forget_start(self, actor_id: bytes, *, was_taken: bool) -> None:
        if was_taken:
            self._starts.taken(actor_id)
        self._starts.discard(actor_id)
        self._retries.cancel(("restart", actor_id))
        self._retries.cancel(("resend", actor_id))

    def _lose(
        self,
        record: ActorRecord,
        cause: DeathCause,
        now: Now,
        out: list[Command],
        creation_error: bytes = b"",
    ) -> None:
        """The incarnation's process is gone, or ordered to go."""
        life = record.life
        actor_id = record.spec.actor_id
        worker_id = life.address.worker_id
        was_alive = life.state is ActorState.ALIVE
        moves = not was_alive and cause.kind is DeathKind.NODE_DIED
        if life.is_released:
            cause = DeathCause(DeathKind.HANDLES_RELEASED, "No handle of the actor was left.")
        if not moves and not may_restart(cause, record.spec.max_restarts, life.restarts_used):
            self._end(record, cause, now, out, creation_error)
        else:
            self._forget_start(actor_id, was_taken=False)
            state = next_state(life.state, Trigger.MOVED if moves else Trigger.LOST)
            self._rows.change(
                record,
                replace(
                    life,
                    state=state,
                    incarnation=life.incarnation + 1,
                    restarts_used=life.restarts_used + (0 if moves else 1),
                    node_id=b"",
                    address=Address(),
                    pid=0,
                ),
                out,
            )
            self._plan_restart(actor_id, now)
        if was_alive and worker_id:
            why = f"the actor {actor_id.hex()} that created it is gone."
            self.owner_died(worker_id, why, now, out)

    def _plan_restart(self, actor_id: bytes, now: Now) -> None:
        """At once, but with growing pauses when life after life ends early."""
        started_s = self._started_s.pop(actor_id, None)
        if started_s is not None and now.now_s - started_s >= self._limits.actor_settled_s:
            self._failures.pop(actor_id, None)
        failures = self._failures.get(actor_id, 0) + 1
        self._failures[actor_id] = failures
        if failures == 1:
            self._enqueue(self._rows[actor_id])
        else:
            pause_s = self._limits.retry_pause_s(failures - 1)
            self._retries.set(("restart", actor_id), now.now_s + pause_s)

    def _order_kill(self, record: ActorRecord, cause: DeathCause, out: list[Command]) -> None:
        life = record.life
        if life.node_id:
            self._kills.give(life.node_id, record.spec.actor_id, life.incarnation, cause, out)

    def _end_with_process(
        self, record: ActorRecord, cause: DeathCause, now: Now, out: list[Command]
    ) -> None:
        self._order_kill(record, cause, out)
        self._end(record, cause, now, out)

    def _end(
        self,
        record: ActorRecord,
        cause: DeathCause,
        now: Now,
        out: list[Command],
        creation_error: bytes = b"",
    ) -> None:
        actor_id = record.spec.actor_id
        self._forget_start(actor_id, was_taken=False)
        self._failures.pop(actor_id, None)
        self._started_s.pop(actor_id, None)
        self._rows.end(record, cause, creation_error, now, out)


def _problem_of(event: ActorRegistered) -> str:
    """Why the request makes no sense, or nothing."""
    spec = event.spec
    if len(spec.actor_id) != ActorID.SIZE:
        return f"An actor_id has {ActorID.SIZE} bytes, got {len(spec.actor_id)}."
    if not -1 <= spec.max_restarts <= _MAX_RESTARTS_LARGEST:
        return f"max_restarts is -1 or a count, got {spec.max_restarts}."
    if event.get_if_exists and not spec.name:
        return "get_if_exists needs a name."
    if any(units < 0 for units in spec.placement_resources.values()):
        return f"Resources can not be negative, got {spec.placement_resources}."
    return ""
