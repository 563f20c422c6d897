"""The actors of this node, from the GCS's order to the report of their end.

::

    StartActor --> lease --> PlaceActor --> CreateActor (worker) --> ActorCreated --> ReportStarted
        |           |                            |                                        |
     refused     RefuseActor               ActorCreationFailed                      refused: stale,
     killed
                    |                            |
                 ReportFailed               ReportFailed, then the worker exits

Each life (actor id and incarnation) is reported to have failed at most once, and in any case when
it ends. What comes before: ``servicer``. What comes after: the node's machine, and ``gcs_link``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from skate_raylet.machine.commands import LoseActor, PlaceActor, RefuseActor
from skate_raylet.machine.events import (
    DEFAULT_STRATEGY,
    ActorEnded,
    ActorRequested,
    NodeEvent,
    Strategy,
)
from skate_raylet.service.convert import death_to_proto
from skate_raylet.service.gcs_link import GcsLink
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.node_protocol import ActorCreated, ActorCreationFailed, CreateActor, Death
from skate_scheduler import ResourceSet

_log = logging.getLogger(__name__)

ENDED_KEPT_MAX = 10_000
CREATION_FAILED_GRACE_S = 5.0
# How long an actor's worker may take to end by itself, by the cause; the others are killed at once.
GRACE_S = {"handles_released": 30.0, "owner_died": 1.0, "job_finished": 1.0}

_Life = tuple[bytes, int]


class _Actor(msgspec.Struct):
    """One life of an actor here."""

    spec: gcs_pb2.ActorSpec
    worker_id: bytes = b""
    is_failure_reported: bool = False


@dataclass(slots=True)
class ActorHost:
    """Invariant: ``_actors`` holds a life from its acceptance until its end is on its way."""

    node_id: bytes
    total: ResourceSet
    link: GcsLink
    processes: LocalProcesses
    tell: Callable[[NodeEvent], None]
    group_refusal: Callable[[Strategy, ResourceSet, ResourceSet], str]  # of actors in bundles
    is_closing: bool = False  # the node stops: what it does not start is another's to start
    is_draining: bool = False
    _actors: dict[_Life, _Actor] = field(default_factory=dict)
    _ended: dict[_Life, None] = field(default_factory=dict)

    def start(self, spec: gcs_pb2.ActorSpec, incarnation: int) -> str:
        """Take an order; returns why not, or "". Repeating it changes nothing."""
        life = (spec.actor_id, incarnation)
        if life in self._actors or life in self._ended:
            return ""
        if self.is_closing:
            return "The node is shutting down."
        if self.is_draining:
            return "The node is draining: it is to leave."
        placement = ResourceSet(spec.placement_resources.amounts)
        running = ResourceSet(spec.running_resources.amounts)
        strategy = DEFAULT_STRATEGY
        if spec.strategy.placement_group_id:
            strategy = Strategy(
                group_id=spec.strategy.placement_group_id,
                bundle_index=spec.strategy.bundle_index,
            )
            refusal = self.group_refusal(strategy, placement, running)
            if refusal:
                return refusal
        for needs in (placement, running):
            if not needs.fits_in(self.total):
                return f"The node has {self.total}, which can never hold {needs}."
        self._actors[life] = _Actor(spec)
        env_vars = tuple(sorted(spec.env_vars.items()))
        self.tell(ActorRequested(*life, spec.job_id, placement, running, env_vars, strategy))
        return ""

    def kill(self, actor_id: bytes, incarnation: int, cause: Death) -> None:
        """End a life, whether it waits, is being made, or lives. Repeating it changes nothing."""
        life = (actor_id, incarnation)
        actor = self._actors.get(life)
        if actor is None:
            self._remember_ended(life)  # an order to start it may still be on its way
            return
        grace_s = GRACE_S.get(cause.kind, 0.0)
        self.tell(ActorEnded(actor_id, incarnation, cause.kind, cause.message, grace_s))
        if not actor.worker_id:
            # It never got a worker, so no death will end it.
            self._fail(life, cause)

    # ---- commands of the machine ----

    def place(self, command: PlaceActor) -> None:
        """Send the creation to the worker."""
        actor = self._actors[command.actor_id, command.incarnation]
        actor.worker_id = command.worker_id
        process = self.processes.get(command.worker_id)
        if process is not None:  # else it just died, which comes as LoseActor
            process.send(
                CreateActor(
                    command.actor_id,
                    command.incarnation,
                    actor.spec.creation_task,
                    {name: list(parts) for name, parts in command.device_ids.items()},
                )
            )

    def refuse(self, command: RefuseActor) -> None:
        """There is no worker for it."""
        is_known = command.kind in ("unschedulable", "placement_group_removed")
        kind = command.kind if is_known else "start_failed"
        if self.is_closing:
            kind = "node_died"  # which is no failure of the actor's
        self._fail((command.actor_id, command.incarnation), Death(kind, command.message))

    def lose(self, command: LoseActor, death: Death) -> None:
        """Its worker died."""
        self._fail((command.actor_id, command.incarnation), death)

    # ---- messages of the worker ----

    def created(self, process: LocalProcess, message: ActorCreated) -> None:
        """The constructor ran."""
        life = (message.actor_id, message.incarnation)
        actor = self._actors.get(life)
        if actor is None or actor.worker_id != process.worker_id:
            _log.warning("event=stray_actor_created pid=%d", process.pid)
            return
        actor.spec.ClearField("creation_task")  # it may be large, and is needed no more
        address = common_pb2.Address(
            node_id=self.node_id, worker_id=process.worker_id, endpoint=process.endpoint
        )

        async def report() -> None:
            is_accepted = await self.link.client.actors.report_started(*life, address, process.pid)
            if not is_accepted:
                message = "The GCS has given this life of the actor up."
                self.tell(ActorEnded(*life, "killed_by_user", message))

        self.link.report(("actor", message.actor_id), "actor_started", report)

    def creation_failed(self, process: LocalProcess, message: ActorCreationFailed) -> None:
        """The constructor raised; the worker exits."""
        life = (message.actor_id, message.incarnation)
        actor = self._actors.get(life)
        if actor is None or actor.worker_id != process.worker_id:
            return
        death = Death("creation_failed", message.message, process.pid)
        self._report_failure(life, actor, death, message.error)
        self.tell(
            ActorEnded(*life, "creation_failed", "Its constructor raised.", CREATION_FAILED_GRACE_S)
        )

    def count(self) -> int:
        """Lives that wait or live here."""
        return len(self._actors)

    def _fail(self, life: _Life, death: Death) -> None:
        actor = self._actors.pop(life, None)
        if actor is not None:
            self._remember_ended(life)
            self._report_failure(life, actor, death, b"")

    def _report_failure(self, life: _Life, actor: _Actor, death: Death, error: bytes) -> None:
        if actor.is_failure_reported:
            return
        actor.is_failure_reported = True
        cause = death_to_proto(death)

        async def report() -> None:
            await self.link.client.actors.report_failed(*life, cause, error)

        self.link.report(("actor", life[0]), "actor_failed", report)

    def _remember_ended(self, life: _Life) -> None:
        self._ended[life] = None
        while len(self._ended) > ENDED_KEPT_MAX:
            del self._ended[next(iter(self._ended))]
