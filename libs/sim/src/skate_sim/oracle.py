"""What must be true of every run, judged by what the programs saw, not by what the machines count.

Each check names the invariant of RELIABILITY that it holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate_gcs.machine.records import Address
from skate_scheduler import CPU, ResourceSet
from skate_sim.plans import ActorPlan, Plan
from skate_worker.errors import (
    ActorDiedError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    LocalRayletDiedError,
    TaskCancelledError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from skate_worker.machine.references import FAILED, INLINE, Entry
from skate_worker.serialization import ErrorValue, deserialize

if TYPE_CHECKING:
    from skate_sim.process import SimProcess
    from skate_sim.raylet import SimRaylet
    from skate_sim.world import World
    from skate_worker.peers import Peer

_RUNTIME_ERRORS = (
    WorkerCrashedError,
    TaskUnschedulableError,
    TaskCancelledError,
    LocalRayletDiedError,
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
)
_GROUP_REMOVED = (TaskPlacementGroupRemovedError, ActorPlacementGroupRemovedError)


class Violation(AssertionError):
    """A promise was broken."""


class Oracle:
    """The history of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._starts: dict[bytes, list[int]] = {}  # task -> attempts, as they started
        self._ends: dict[bytes, list[int]] = {}  # task -> attempts that came to their end
        self._outcomes: dict[bytes, tuple[int, Any]] = {}
        self._cancelled: dict[bytes, None] = {}
        self._order: dict[tuple[str, bytes, int, Peer | None], int] = {}
        self._constructors: dict[tuple[bytes, int], SimProcess] = {}
        self._accepted: dict[bytes, tuple[int, SimProcess]] = {}
        self._killed: dict[bytes, None] = {}  # actors that the user had killed, to be restarted

    # ---- tasks ----

    def task_starts(self, plan: Plan, message: Any, process: SimProcess) -> None:
        """A worker begins to run a task or call."""
        starts = self._starts.setdefault(plan.task_id, [])
        starts.append(message.attempt)
        if plan.task_id in self._cancelled and len(starts) == 1 and plan.is_settled:
            raise Violation(f"I21: {plan.name} starts after its cancellation was confirmed")
        self._check_starts(plan)
        if plan.group_id:
            self._world.groups.starts_inside(plan.name, plan.group_id, process)
        if plan.actor_id:
            peer = process.executor.caller
            key = (plan.caller, plan.actor_id, process.executor.incarnation, peer)
            last = self._order.get(key, -1)
            if plan.sequence <= last:
                raise Violation(f"I9: {plan.name} runs after call {last} of the same caller")
            self._order[key] = plan.sequence

    def _check_starts(self, plan: Plan) -> None:
        count = len(self._starts.get(plan.task_id, ()))
        if plan.max_retries < 0:
            return
        # A task whose first attempt shared its worker may have started once more than its owner
        # knows, when what the worker said was lost (decision 0004). One without retries never.
        slack = bool(plan.max_retries and not plan.actor_id and self._world.loses_messages)
        if count > 1 + plan.max_retries + slack:
            promise = "I8" if plan.max_retries else "I7"
            raise Violation(
                f"{promise}: {plan.name} with max_retries={plan.max_retries} started {count} times"
            )

    def task_ends(self, plan: Plan, message: Any) -> None:
        """An attempt returned."""
        self._ends.setdefault(plan.task_id, []).append(message.attempt)

    def cancelled(self, plan: Plan) -> None:
        """Its owner had a task cancelled."""
        self._cancelled[plan.task_id] = None

    def settled(self, plan: Plan, entry: Entry) -> None:
        """The owner has the outcome of a task."""
        outcome = (entry.state, entry.data)
        if plan.task_id in self._outcomes:
            raise Violation(f"I12: {plan.name} has a second outcome")
        self._outcomes[plan.task_id] = outcome
        plan.is_settled = True
        starts = self._starts.get(plan.task_id, [])
        if entry.state == INLINE:
            attempt = int(entry.data.rpartition(b"#")[2])
            if attempt not in self._ends.get(plan.task_id, ()):
                raise Violation(f"I12: {plan.name} has the value of an attempt that never ended")
            self._world.count("successes")
            self._check_exact(plan, len(starts), None)
            return
        if entry.state != FAILED:
            raise Violation(f"{plan.name} is settled in state {entry.state}")
        stored = deserialize(entry.data)
        assert isinstance(stored, ErrorValue)
        error = stored.error
        self._world.count(type(error).__name__)
        if isinstance(error, _GROUP_REMOVED):
            actor = self._world.actors.get(plan.actor_id)
            group_id = plan.group_id if actor is None else actor.group_id
            self._world.groups.failed_as_removed(plan.name, group_id)
        elif not isinstance(error, _RUNTIME_ERRORS):
            is_meant = "on purpose" in str(error) and plan.raises
            if not is_meant and plan.task_id not in self._cancelled:
                raise Violation(f"{plan.name} failed with {error!r}")
        self._check_exact(plan, len(starts), error)

    def _check_exact(self, plan: Plan, starts: int, error: BaseException | None) -> None:
        """Without faults every number is known beforehand (I8)."""
        if not self._world.scenario.is_calm or plan.actor_id or plan.task_id in self._cancelled:
            return
        retries = plan.max_retries if plan.max_retries >= 0 else plan.deaths + plan.raises
        failures = plan.deaths + (plan.raises if plan.retries_errors else 0)
        if plan.exits:
            failures = retries + 1
        wanted = min(failures, retries) + 1
        if starts != wanted:
            raise Violation(f"I8: {plan.name} started {starts} times, not {wanted}")
        succeeds = failures <= retries and (plan.retries_errors or not plan.raises)
        if (error is None) != succeeds:
            raise Violation(f"I8: {plan.name} ended with {error!r}")
        if plan.deaths > retries and not isinstance(error, WorkerCrashedError):
            raise Violation(f"I8: {plan.name} ended with {error!r}, and its worker died")

    def check_outcomes_stand(self, entries: dict[bytes, tuple[Plan, Entry]]) -> None:
        """What was seen once is seen for ever (I12)."""
        for task_id, (plan, entry) in entries.items():
            known = self._outcomes.get(task_id)
            if known is not None and known != (entry.state, entry.data):
                raise Violation(f"I12: the outcome of {plan.name} changed")

    # ---- actors ----

    def actor_starts(self, actor_id: bytes, incarnation: int, process: SimProcess) -> None:
        """A worker begins to run a constructor."""
        if (actor_id, incarnation) in self._constructors:
            raise Violation(f"I10: life {incarnation} of an actor starts twice")
        self._constructors[actor_id, incarnation] = process
        actor = self._world.actors[actor_id]
        if actor.group_id:
            self._world.groups.starts_inside(actor.name, actor.group_id, process)

    def gcs_accepted(self, actor_id: bytes, incarnation: int, where: Address) -> None:
        """The GCS told a node that this life of the actor may go on."""
        process = self._constructors.get((actor_id, incarnation))
        if process is None or process.worker_id != where.worker_id:
            raise Violation("I10: the GCS accepted a worker that runs no such actor")
        before = self._accepted.get(actor_id)
        if before is not None:
            number, old = before
            if number > incarnation or (number == incarnation and old is not process):
                raise Violation("I10: an older life of an actor, or a second one, was accepted")
            is_fenced = self._world.gcs_holds_dead(old.raylet)
            is_over = not old.life.is_alive or is_fenced or actor_id in self._killed
            if number < incarnation and not is_over:
                raise Violation("I10: two lives of one actor go on at once")
        self._accepted[actor_id] = (incarnation, process)

    def actor_killed(self, actor_id: bytes) -> None:
        """The user had the actor's process killed: the next life may begin before it has ended."""
        self._killed[actor_id] = None

    def constructors_of(self, actor_id: bytes) -> int:
        """How often a constructor began."""
        return sum(key[0] == actor_id for key in self._constructors)

    def check_actor(self, plan: ActorPlan, is_dead: bool) -> None:
        """Without faults every restart is known beforehand (I11)."""
        if not self._world.scenario.is_calm or plan.kills or plan.is_released or plan.is_doomed:
            return
        restarts = plan.max_restarts if plan.max_restarts >= 0 else plan.deaths
        wanted = 1 if plan.raises and not plan.deaths else min(plan.deaths, restarts) + 1
        starts = self.constructors_of(plan.actor_id)
        if starts != wanted:
            raise Violation(f"I11: {plan.name} was constructed {starts} times, not {wanted}")
        if is_dead != (plan.deaths > restarts or plan.raises):
            raise Violation(f"I11: {plan.name} is {'dead' if is_dead else 'not dead'}")

    # ---- nodes ----

    def check_node(self, raylet: SimRaylet) -> None:
        """Resources are conserved (I14), and the machine's parts agree."""
        machine = raylet.machine
        machine.check_invariants()
        available, total = machine.available, machine.total
        # A lease inside a bundle takes of the bundle, which takes of the node.
        leases = [lease for lease in machine.leases() if lease.bundle_key is None]
        parts = [lease.effective for lease in leases]
        used = ResourceSet.total_of([*parts, *(bundle.total for bundle in machine.bundles())])
        for name in total:
            free = available[name]
            is_lent = name == CPU and free == 0  # who wakes up takes its CPUs back at once
            if free < 0 or (free + used[name] != total[name] and not is_lent):
                raise Violation(f"I14: {raylet.name} has {free} of {name} free, {used[name]} used")
