"""The whole GCS as one state machine: what each event means across the tables.

Each table decides for itself; what one table's change means to another is here, and only here::

    node dies    ──► jobs of drivers there finish; actors there are lost, those owned there end;
                     bundles there are placed again
    job finishes ──► its actors and placement groups end, unless they outlive it
    worker dies  ──► actors that it owned end; a driver's job finishes
    nodes change ──► placement groups, then actors that wait for a node are placed
    group placed ──► actors that wait for it are placed
    group gone   ──► actors in it end

The runner calls :meth:`GcsMachine.handle` for each event and ``Tick`` when :meth:`next_wakeup` says
so.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from skate_gcs.machine import answers, events
from skate_gcs.machine.actor_table import ActorTable
from skate_gcs.machine.clock import Now, Wakeup
from skate_gcs.machine.commands import Command, Reply
from skate_gcs.machine.demand import DemandTable
from skate_gcs.machine.job_table import JobTable
from skate_gcs.machine.kill_orders import KillOrders
from skate_gcs.machine.kv_table import KvTable
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable, ReportEffect
from skate_gcs.machine.placement_group_table import PlacementGroupTable
from skate_gcs.machine.records import (
    ActorLife,
    ActorSpec,
    ActorState,
    Announced,
    CounterRecord,
    DeathCause,
    DeathKind,
    JobRecord,
    KillRecord,
    NodeRecord,
    PlacementGroupRecord,
    PlacementGroupState,
    WorkerRecord,
)
from skate_gcs.machine.worker_table import WorkerTable
from skate_scheduler import RandomSource


class SavedState(msgspec.Struct, frozen=True):
    """The stored rows, decoded. Empty for a new cluster."""

    nodes: list[NodeRecord] = msgspec.field(default_factory=list)
    jobs: list[JobRecord] = msgspec.field(default_factory=list)
    job_counter: CounterRecord | None = None
    actor_specs: dict[bytes, ActorSpec] = msgspec.field(default_factory=dict)
    actors: dict[bytes, ActorLife] = msgspec.field(default_factory=dict)
    workers: list[WorkerRecord] = msgspec.field(default_factory=list)
    kills: list[KillRecord] = msgspec.field(default_factory=list)
    kv: list[tuple[bytes, bytes]] = msgspec.field(default_factory=list)
    groups: list[PlacementGroupRecord] = msgspec.field(default_factory=list)


class MachineStatistics(msgspec.Struct, frozen=True):
    """Counts for metrics."""

    actors: dict[ActorState, int]
    nodes_alive: int
    nodes_dead: int
    jobs_running: int
    jobs_finished: int
    workers_dead: int
    kv_entries: int
    kv_bytes: int
    kill_orders: int
    placement_groups: dict[PlacementGroupState, int]
    group_creations: int  # since the start
    group_creation_s: float  # how long they took in all, from registration


class GcsMachine:
    """All tables of one cluster."""

    def __init__(
        self, cluster_id: str, limits: GcsLimits, random: RandomSource, saved: SavedState, now: Now
    ) -> None:
        """Start from what is stored; :meth:`resume` must be handled before the first event."""
        self._nodes = NodeTable(cluster_id, limits)
        self._demand = DemandTable(limits)
        self._jobs = JobTable(limits)
        self._kills = KillOrders(self._nodes, limits)
        self._groups = PlacementGroupTable(self._nodes, limits)
        self._actors = ActorTable(self._nodes, self._kills, limits, random, self._groups.homes)
        self._workers = WorkerTable(limits)
        self._kv = KvTable()
        self._nodes.restore(saved.nodes, now)
        self._jobs.restore(saved.jobs, saved.job_counter)
        self._kills.restore(saved.kills)
        self._groups.restore(saved.groups)
        self._actors.restore(saved.actor_specs, saved.actors)
        self._workers.restore(saved.workers)
        for row_key, value in saved.kv:
            self._kv.restore(row_key, value)

    def resume(self, now: Now) -> list[Command]:
        """Go on where the stored state stands: orders whose outcome is unknown are repeated."""
        out: list[Command] = []
        self._nodes.trim(out)
        self._jobs.trim(out)
        self._workers.trim(out)
        self._kills.resume(out)
        self._groups.resume(now, out)
        self._actors.resume(now, out)
        self._settle(now, out)
        return out

    def handle(self, event: events.Event, now: Now) -> list[Command]:
        """Take one event; exactly one ``Reply`` is among the commands if it is a request."""
        out: list[Command] = []
        if isinstance(event, events.Query):
            out.append(Reply(self._answer(event)))
            return out
        self._apply(event, now, out)
        self._settle(now, out)
        return out

    def next_wakeup(self) -> Wakeup | None:
        """When ``Tick`` is wanted although nothing else happened, and why."""
        wakeups = [
            wakeup
            for wakeup in (
                self._nodes.next_wakeup(),
                self._kills.next_wakeup(),
                self._groups.next_wakeup(),
                self._actors.starts.next_wakeup(),
            )
            if wakeup is not None
        ]
        return min(wakeups, key=lambda wakeup: wakeup.at_s) if wakeups else None

    def statistics(self) -> MachineStatistics:
        """Counts of all tables. O(live actors)."""
        nodes_alive, nodes_dead = self._nodes.count()
        jobs_running, jobs_finished = self._jobs.count()
        creations, creation_s = self._groups.creations
        return MachineStatistics(
            actors=self._actors.count_by_state(),
            nodes_alive=nodes_alive,
            nodes_dead=nodes_dead,
            jobs_running=jobs_running,
            jobs_finished=jobs_finished,
            workers_dead=len(self._workers),
            kv_entries=len(self._kv),
            kv_bytes=self._kv.size_bytes,
            kill_orders=len(self._kills),
            placement_groups=self._groups.count_by_state(),
            group_creations=creations,
            group_creation_s=creation_s,
        )

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if any table is inconsistent. O(rows)."""
        self._nodes.check_invariants()
        self._demand.check_invariants()
        self._jobs.check_invariants()
        self._kills.check_invariants()
        self._groups.check_invariants()
        self._actors.check_invariants()
        self._workers.check_invariants()
        self._kv.check_invariants()

    def _answer(self, query: events.Question) -> answers.Answer:
        match query:
            case events.ListNodes():
                return answers.Nodes(self._nodes.records())
            case events.ListDemands():
                demands, demands_left_out = self._demand.with_actors(self._actors.starts.demands())
                groups, groups_left_out = self._groups.demands()
                return answers.Demands(demands, groups, demands_left_out, groups_left_out)
            case events.ListJobs():
                return answers.Jobs(self._jobs.records())
            case events.GetActor(actor_id):
                return self._actors.get(actor_id)
            case events.GetNamedActor(name, namespace):
                return self._actors.get_named(namespace, name)
            case events.ListActors():
                return answers.Actors(self._actors.records())
            case events.GetGroup(group_id):
                return self._groups.get(group_id)
            case events.GetNamedGroup(name, namespace):
                return self._groups.get_named(namespace, name)
            case events.ListGroups():
                return answers.Groups(self._groups.records())
            case events.ListDeadWorkers():
                return answers.Workers(self._workers.records())
            case events.KvGet():
                return self._kv.get(query)
            case events.KvList():
                return self._kv.keys(query)
            case events.TakeSnapshot(channels):
                return answers.Snapshot(self._snapshot(channels))
            case _:
                assert_never(query)

    def _apply(self, event: events.Change | events.Fact, now: Now, out: list[Command]) -> None:
        match event:
            case events.NodeRegistered():
                replaced = self._nodes.register(event, now, out)
                if replaced is not None:
                    message = "Another process has taken the node's endpoint."
                    self._bury(replaced, DeathCause(DeathKind.NODE_DIED, message), now, out)
                self._nodes_changed()
            case events.NodeUnregistered(node_id, cause):
                self._bury(node_id, cause, now, out)
                out.append(Reply(answers.Done()))
            case events.ResourcesReported():
                self._report(event, now, out)
            case events.NodeDrained(node_id, drain):
                out.append(Reply(answers.Accepted(self._nodes.drain(node_id, drain, out))))
                self._actors.starts.nodes_changed()
            case events.JobAdded():
                self._jobs.add(event, now, out)
            case events.JobFinished(job_id, cause):
                self._finish_job(job_id, cause.message, now, out)
                out.append(Reply(answers.Done()))
            case events.ActorRegistered():
                self._actors.register(event, self._doom(event.spec), now, out)
            case events.ActorKilled():
                self._actors.kill(event, now, out)
            case events.ActorReleased(actor_id):
                self._actors.release(actor_id, now, out)
            case events.ActorStarted():
                self._actors.started(event, now, out)
            case events.ActorFailed():
                self._actors.failed(event, now, out)
            case events.GroupCreated(spec):
                creator_id = self._actors.outliving_creator(spec.owner.worker_id)
                doomed = self._doom_group(event, creator_id)
                self._groups.register(event, doomed, creator_id, now, out)
            case events.GroupRemoved(group_id, reason):
                self._groups.remove(group_id, reason, now, out)
            case events.WorkerDied(worker):
                self._worker_died(worker, now, out)
            case events.KvPut():
                self._kv.put(event, out)
            case events.KvDelete():
                self._kv.delete(event, out)
            case events.StartAnswered():
                self._actors.starts.answered(event, out)
            case events.StartUnanswered():
                self._actors.starts.unanswered(event, now, out)
            case events.KillAnswered(node_id, actor_id, incarnation, is_done):
                self._kills.answered((node_id, actor_id, incarnation), is_done, now, out)
            case events.BundlesPrepared():
                self._groups.prepared(event, now, out)
            case events.BundlesCommitted():
                self._groups.committed(event, now, out)
            case events.SubscriberLeft(node_id):
                self._nodes.probe(node_id, now, out)
            case events.NodeProbed(node_id, endpoint, is_refused):
                if is_refused and self._nodes.listens_at(node_id, endpoint):
                    message = f"Nothing listens at {endpoint} any more: its process is gone."
                    self._bury(node_id, DeathCause(DeathKind.NODE_DIED, message), now, out)
            case events.Tick():
                self._tick(now, out)
            case _:
                assert_never(event)

    def _report(self, event: events.ResourcesReported, now: Now, out: list[Command]) -> None:
        effect = self._nodes.report(event, now, out)
        if effect is ReportEffect.CHANGED:
            self._nodes_changed()
        elif effect is ReportEffect.FREED:
            self._groups.nodes_changed()
            self._actors.starts.resources_freed(event.node_id)
        if effect is ReportEffect.FENCED:
            out.append(Reply(answers.Reported(False)))
        else:
            if event.demands is not None:
                self._demand.reported(
                    event.node_id, event.version, event.demands, event.demands_left_out
                )
            stale = self._groups.reported(event.node_id, event.bundles or ())
            out.append(Reply(answers.Reported(True, stale)))

    def _nodes_changed(self) -> None:
        self._groups.nodes_changed()
        self._actors.starts.nodes_changed()

    def _settle(self, now: Now, out: list[Command]) -> None:
        """Place what can be placed, and end what ended with something else."""
        while True:
            self._end_groups_of_dead(now, out)
            self._groups.pump(now, out)
            changed = self._groups.take_changed()
            for group_id in changed:
                if self._groups.live(group_id) is None:
                    self._actors.group_removed(group_id, now, out)
                else:
                    self._actors.starts.group_changed(group_id)
            self._actors.starts.pump(now, out)
            if not changed:
                return

    def _end_groups_of_dead(self, now: Now, out: list[Command]) -> None:
        for actor_id in self._groups.creators():
            actor = self._actors.get(actor_id).record
            if actor is None or (actor.is_dead and not self._jobs.is_running(actor.spec.job_id)):
                self._groups.creator_ended(actor_id, now, out)

    def _tick(self, now: Now, out: list[Command]) -> None:
        for node_id, cause in self._nodes.tick(now, out):
            self._bury(node_id, cause, now, out)
        self._kills.tick(now, out)
        self._groups.tick(now, out)
        self._actors.starts.tick(now, out)

    def _bury(self, node_id: bytes, cause: DeathCause, now: Now, out: list[Command]) -> None:
        node = self._nodes.get_alive(node_id)
        if node is None or not self._nodes.bury(node_id, cause, now, out):
            return
        self._demand.forget(node_id)
        self._kills.node_died(node_id, out)
        for job_id in self._jobs.running_on(node_id):
            self._finish_job(job_id, f"Its driver's node died: {cause.message}", now, out)
        self._groups.node_died(node_id, now, out)
        kind = DeathKind.NODE_PREEMPTED if node.is_preempted else DeathKind.NODE_DIED
        self._actors.node_died(node_id, DeathCause(kind, cause.message), now, out)

    def _finish_job(self, job_id: bytes, why: str, now: Now, out: list[Command]) -> None:
        if self._jobs.finish(job_id, now, out):
            self._actors.job_finished(job_id, why, now, out)
            self._groups.job_finished(job_id, why, self._live_creators(), now, out)

    def _live_creators(self) -> list[bytes]:
        found = ((actor_id, self._actors.get(actor_id)) for actor_id in self._groups.creators())
        return [
            one for one, actor in found if actor.record is not None and not actor.record.is_dead
        ]

    def _worker_died(self, worker: WorkerRecord, now: Now, out: list[Command]) -> None:
        if not worker.worker_id:
            problem = "A worker's death needs its worker_id."
            out.append(Reply(answers.Refused(answers.RefusalKind.INVALID, problem)))
            return
        if self._workers.add(worker, now, out):
            job_id = self._jobs.job_of_driver(worker.worker_id)
            if job_id is not None:
                self._finish_job(job_id, worker.death_cause.message, now, out)
            self._actors.owner_died(worker.worker_id, worker.death_cause.message, now, out)
        out.append(Reply(answers.Done()))

    def _doom(self, spec: ActorSpec) -> DeathCause | None:
        """Why a new actor must not run: its registration was overtaken by its owner's end."""
        group_id = spec.strategy.group_id
        if group_id and self._groups.live(group_id) is None:
            message = f"Its placement group {group_id.hex()} was removed."
            return DeathCause(DeathKind.PLACEMENT_GROUP_REMOVED, message)
        if spec.is_detached:
            return None
        owner = spec.owner
        dead = self._workers.get_dead(owner.worker_id)
        if dead is not None:
            message = f"The actor's owner died: {dead.death_cause.message}"
            return DeathCause(DeathKind.OWNER_DIED, message)
        if self._nodes.is_dead(owner.node_id):
            return DeathCause(DeathKind.OWNER_DIED, "The actor's owner died with its node.")
        if self._jobs.is_finished(spec.job_id) and not self._actors.outlives_job(owner.worker_id):
            return DeathCause(DeathKind.JOB_FINISHED, "The actor's job has finished.")
        return None

    def _doom_group(self, event: events.GroupCreated, creator_id: bytes) -> str:
        """Why a new group must not be placed: its registration was overtaken by its job's end."""
        spec = event.spec
        if spec.is_detached or creator_id or not self._jobs.is_finished(spec.job_id):
            return ""
        return "Its job has finished."

    def _snapshot(self, channels: tuple[events.Channel, ...]) -> list[Announced]:
        records: list[Announced] = []
        for channel in dict.fromkeys(channels):
            match channel:
                case events.Channel.NODE:
                    records += self._nodes.records()
                case events.Channel.JOB:
                    records += self._jobs.records()
                case events.Channel.ACTOR:
                    records += self._actors.records()
                case events.Channel.WORKER:
                    records += self._workers.records()
                case events.Channel.PLACEMENT_GROUP:
                    records += self._groups.records()
                case _:
                    assert_never(channel)
        return records
