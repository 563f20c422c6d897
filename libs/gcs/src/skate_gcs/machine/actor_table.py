"""The actor table: every actor's life, from its registration to some time after its end.

What may follow what is in ``actor_states``; how a node is found to start an actor in
``actor_starts``; ended actors' processes in ``kill_orders``. This module keeps the rows and their
indexes, and decides what each report means.

One live incarnation (RELIABILITY I10): a number names each start that could have run beside another
one. A report that carries another number than the row, or comes from another node than was asked,
changes nothing and its worker is killed. A node is asked under the same number until it has
answered; it is only given up, under a new number, when it is dead (and fenced) or has refused.

Cost: O(1) per event; O(actors concerned) for the end of a node, owner or job.

Source: SURFACE rows A13, A18-A25, A32, A39; RELIABILITY I10, I11.
"""

from __future__ import annotations

from msgspec.structs import replace

from skate_core_ids import ActorID
from skate_gcs.machine.actor_rows import ActorRows
from skate_gcs.machine.actor_starts import ActorStarts
from skate_gcs.machine.actor_states import Trigger, may_restart, next_state
from skate_gcs.machine.answers import (
    Accepted,
    ActorAssigned,
    ActorFound,
    Done,
    RefusalKind,
    Refused,
)
from skate_gcs.machine.clock import Now
from skate_gcs.machine.commands import Command, Reply
from skate_gcs.machine.events import (
    ActorFailed,
    ActorKilled,
    ActorRegistered,
    ActorStarted,
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
from skate_gcs.machine.start_queue import HomesOf
from skate_scheduler import RandomSource

_MAX_RESTARTS_LARGEST = 2**63 - 1


class ActorTable:
    """All actors, live and lately dead. Invariants: see :meth:`check_invariants`."""

    def __init__(
        self,
        nodes: NodeTable,
        kills: KillOrders,
        limits: GcsLimits,
        random: RandomSource,
        homes_of: HomesOf,
    ) -> None:
        """``homes_of`` knows where the bundles of placement groups are."""
        self._kills = kills
        self._rows = ActorRows(limits)
        self.starts = ActorStarts(self._rows, nodes, limits, random, self._give_up, homes_of)
        """How those that are not alive come to run; the owner of this table drives it too."""

    # ---- restart of the GCS ----

    def restore(self, specs: dict[bytes, ActorSpec], lives: dict[bytes, ActorLife]) -> None:
        """Take the stored rows; :meth:`resume` goes on with them."""
        self._rows.restore(specs, lives)

    def resume(self, now: Now, out: list[Command]) -> None:
        """Go on where the stored rows stand."""
        self._rows.trim(out)
        self.starts.resume(now, out)

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
            self.starts.enqueue(record)
        # The reply shows the row as it is after the whole event, with its node or reason.
        self.starts.pump(now, out)
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
        self.starts.started(event.actor_id, now)
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

    def node_died(
        self, node_id: bytes, node_cause: DeathCause, now: Now, out: list[Command]
    ) -> None:
        """What ran there is lost; what was owned there ends."""
        why = node_cause.message
        for actor_id in self._rows.index.owned_on(node_id):
            record = self._rows[actor_id]
            if not record.is_dead and not record.spec.is_detached:
                message = f"The actor's owner died with its node: {why}"
                self._end_with_process(record, DeathCause(DeathKind.OWNER_DIED, message), now, out)
        for actor_id in self._rows.index.on_node(node_id):
            record = self._rows[actor_id]
            message = f"The actor's node {node_id.hex()} died: {why}"
            self._lose(record, DeathCause(node_cause.kind, message), now, out)
        self.starts.nodes_changed()

    def group_removed(self, group_id: bytes, now: Now, out: list[Command]) -> None:
        """The actors inside a placement group end with it."""
        message = f"Its placement group {group_id.hex()} was removed."
        cause = DeathCause(DeathKind.PLACEMENT_GROUP_REMOVED, message)
        for actor_id in self._rows.index.of_group(group_id):
            self._end_with_process(self._rows[actor_id], cause, now, out)

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

    def outliving_creator(self, worker_id: bytes) -> bytes:
        """The actor in this worker, if it outlives its job; else nothing."""
        actor_id = self._rows.index.actor_of_worker(worker_id)
        outlives = actor_id is not None and self._rows[actor_id].life.outlives_job
        return actor_id if actor_id is not None and outlives else b""

    def records(self) -> list[ActorRecord]:
        """All actors, in order of registration."""
        return self._rows.all()

    def count_by_state(self) -> dict[ActorState, int]:
        """Actors in each state. O(live actors)."""
        return self._rows.count_by_state()

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        self._rows.check_invariants()
        self.starts.check_invariants()

    # ---- how it is done ----

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
        is_preempted = cause.kind is DeathKind.NODE_PREEMPTED
        moves = not was_alive and (is_preempted or cause.kind is DeathKind.NODE_DIED)
        if life.is_released:
            cause = DeathCause(DeathKind.HANDLES_RELEASED, "No handle of the actor was left.")
        if not moves and not may_restart(cause, record.spec.max_restarts, life.restarts_used):
            self._end(record, cause, now, out, creation_error)
        else:
            state = next_state(life.state, Trigger.MOVED if moves else Trigger.LOST)
            self._rows.change(
                record,
                replace(
                    life,
                    state=state,
                    incarnation=life.incarnation + 1,
                    restarts_used=life.restarts_used + (0 if moves or is_preempted else 1),
                    node_id=b"",
                    address=Address(),
                    pid=0,
                ),
                out,
            )
            self.starts.plan_restart(self._rows[actor_id], now)
        if was_alive and worker_id:
            why = f"the actor {actor_id.hex()} that created it is gone."
            self.owner_died(worker_id, why, now, out)

    def _order_kill(self, record: ActorRecord, cause: DeathCause, out: list[Command]) -> None:
        life = record.life
        if life.node_id:
            self._kills.give(life.node_id, record.spec.actor_id, life.incarnation, cause, out)

    def _end_with_process(
        self, record: ActorRecord, cause: DeathCause, now: Now, out: list[Command]
    ) -> None:
        self._order_kill(record, cause, out)
        self._end(record, cause, now, out)

    def _give_up(self, record: ActorRecord, reason: str, now: Now, out: list[Command]) -> None:
        self._end(record, DeathCause(DeathKind.UNSCHEDULABLE, reason), now, out)

    def _end(
        self,
        record: ActorRecord,
        cause: DeathCause,
        now: Now,
        out: list[Command],
        creation_error: bytes = b"",
    ) -> None:
        self.starts.ended(record.spec.actor_id)
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
