"""Placement groups of a simulated cluster: what programs ask for, and what must be true of them.

A group is seen from three sides: its row in the GCS, the bundles that nodes hold, and the tasks and
actors that run in it. :class:`Groups` compares them (RELIABILITY I13):

- after every event of the GCS: what the row calls created is held and open at each node that lives,
  and laid out as its strategy says;
- when a task or actor starts: its worker's lease is inside a bundle of its own group, all of whose
  bundles were held at one moment (all or nothing);
- all the time: after the last fault no node holds what no row places there for more than
  ``STALE_MAX_S``;
- who fails because a group was removed asked for one that was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from skate_gcs.machine import events as gcs_on
from skate_gcs.machine.records import (
    Address,
    BundleSpec,
    PlacementGroupRecord,
    PlacementGroupSpec,
    PlacementGroupState,
)
from skate_raylet.machine.bundle_table import Bundle
from skate_raylet.machine.lease_table import Granted
from skate_rpc import node_protocol as node
from skate_sim.oracle import Violation
from skate_sim.plans import GroupPlan

if TYPE_CHECKING:
    from skate_sim.process import SimProcess
    from skate_sim.raylet import SimRaylet
    from skate_sim.world import World

STALE_MAX_S: Final = 5.0  # RELIABILITY I13
SAMPLE_S: Final = 0.5
RETRY_S: Final = 0.5  # as the client's of a call that found no GCS
UNITS: Final = 10_000
_CREATED = PlacementGroupState.CREATED


class Groups:
    """The groups of one run. Costs nothing as long as there are none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.plans: dict[bytes, GroupPlan] = {}
        self._creators: dict[bytes, SimProcess] = {}
        self._whole: dict[bytes, None] = {}  # all bundles were held at one moment
        self._ready: dict[bytes, None] = {}  # were created
        self._stale_since_s: dict[tuple[str, bytes, int], float] = {}

    # ---- what programs do ----

    def create(self, driver: SimProcess, plan: GroupPlan) -> None:
        """Have a driver make a group, again while there is no GCS."""
        world = self._world
        if plan.group_id not in self.plans:
            world.note(driver.name, f"creates {plan.name}")
            world.count("groups")
            if not self.plans:
                world.agenda.after(SAMPLE_S, self._sample)
            self.plans[plan.group_id] = plan
            self._creators[plan.group_id] = driver

        def replied(reply: node.ControlReply) -> None:
            if reply.error_kind == "unavailable":
                world.agenda.after(RETRY_S, self._if_alive, driver, self.create, plan)
            elif not reply.error:
                plan.is_known = True

        units = [_units(bundle) for bundle in plan.bundles]
        body = node.PlacementGroupCreation(
            plan.group_id, plan.strategy, units, is_detached=plan.is_detached
        )
        driver.client.call_soon("create_placement_group", body, replied)

    def remove(self, driver: SimProcess, plan: GroupPlan) -> None:
        """Have a driver remove a group, again while there is no GCS."""
        world = self._world
        if not plan.is_removed:
            world.note(driver.name, f"removes {plan.name}")
            world.count("groups removed")
            plan.is_removed = True

        def replied(reply: node.ControlReply) -> None:
            if reply.error_kind == "unavailable":
                world.agenda.after(RETRY_S, self._if_alive, driver, self.remove, plan)

        body = node.PlacementGroupKey(plan.group_id)
        driver.client.call_soon("remove_placement_group", body, replied)

    def _if_alive(self, driver: SimProcess, act: Any, plan: GroupPlan) -> None:
        if driver.life.is_alive and not driver.client.is_lost:
            act(driver, plan)

    def usable(self) -> list[GroupPlan]:
        """Groups that programs may use: those that were acknowledged and nobody removed."""
        return [
            plan
            for plan in self.plans.values()
            if plan.is_known and not plan.is_removed and not self._may_be_gone(plan)
        ]

    def _may_be_gone(self, plan: GroupPlan) -> bool:
        """Whether it was removed or has ended with its job."""
        creator = self._creators[plan.group_id]
        is_over = (
            not creator.life.is_alive
            or creator.client.is_lost
            or self._world.gcs_holds_dead(creator.raylet)
        )
        return plan.is_removed or (is_over and not plan.is_detached)

    # ---- the GCS ----

    def rows(self) -> list[PlacementGroupRecord]:
        """The groups' table."""
        gcs = self._world.gcs
        answer: Any = gcs.machine.handle(gcs_on.ListGroups(), gcs.now)[0]
        records: list[PlacementGroupRecord] = answer.answer.records
        return records

    def gcs_changed(self) -> None:
        """The GCS has handled an event."""
        if not self.plans:
            return
        raylets = {raylet.node_id: raylet for raylet in self._world.raylets.values()}
        for row in self.rows():
            if row.state is not _CREATED:
                continue
            name = self.plans[row.spec.group_id].name
            self._check_layout(name, row)
            for index, node_id in enumerate(row.node_ids):
                raylet = raylets[node_id]
                if raylet.is_up and not _has_open(raylet, row, index):
                    raise Violation(f"I13: {name} is created without bundle {index} at {raylet}")
            if row.spec.group_id not in self._ready:
                self._ready[row.spec.group_id] = None
                self._world.count("groups ready")

    def _check_layout(self, name: str, row: PlacementGroupRecord) -> None:
        nodes = set(row.node_ids)
        if b"" in nodes:
            raise Violation(f"I13: {name} is created and has no place for a bundle")
        wanted = {"STRICT_PACK": 1, "STRICT_SPREAD": len(row.node_ids)}.get(row.spec.strategy)
        if wanted not in (None, len(nodes)):
            raise Violation(f"I13: {name} is {row.spec.strategy} and on {len(nodes)} nodes")

    # ---- nodes ----

    def node_changed(self, raylet: SimRaylet) -> None:
        """A node has handled an event."""
        for bundle in raylet.machine.bundles() if self.plans else ():
            group_id = bundle.key.group_id
            if group_id not in self._whole:
                held = {one.key.index for one in self._held(group_id)}
                if len(held) == len(self.plans[group_id].bundles):
                    self._whole[group_id] = None

    def _held(self, group_id: bytes) -> list[Bundle]:
        return [
            bundle
            for raylet in self._world.up()
            for bundle in raylet.machine.bundles()
            if bundle.key.group_id == group_id
        ]

    def starts_inside(self, what: str, group_id: bytes, process: SimProcess) -> None:
        """A task or an actor of a group begins."""
        world = self._world
        world.count("starts in groups")
        name = self.plans[group_id].name
        if group_id not in self._whole:
            raise Violation(f"I13: {what} starts in {name}, which was never whole")
        for lease in process.raylet.machine.leases():
            state = lease.state
            if isinstance(state, Granted) and state.startup_id == process.startup_id:
                key = lease.bundle_key
                if key is None or key.group_id != group_id:
                    raise Violation(f"I13: {what} of {name} starts outside of it")

    def misplaced(self) -> list[tuple[str, bytes, int]]:
        """Bundles that a node holds although no row places them there."""
        rows = {row.spec.group_id: row for row in self.rows()}
        found = []
        for raylet in self._world.up():
            if not raylet.link.is_started:
                continue  # nobody told it yet that it is registered, so it reports nothing
            for held in raylet.machine.held_bundles():
                row = rows.get(held.group_id)
                found += [
                    (raylet.name, held.group_id, index)
                    for index in held.indices
                    if row is None
                    or row.node_ids[index] != raylet.node_id
                    or row.attempts[index] != held.attempt
                ]
        return found

    def _sample(self) -> None:
        """A node that is cut off can not be told, so times count from the last fault on."""
        world = self._world
        now_s = world.agenda.now_s
        misplaced = self.misplaced() if world.gcs.is_up else []
        self._stale_since_s = {key: self._stale_since_s.get(key, now_s) for key in misplaced}
        for (where, group_id, index), since_s in self._stale_since_s.items():
            if now_s - max(since_s, world.scenario.seconds) > STALE_MAX_S:
                name = self.plans[group_id].name
                raise Violation(f"I13: {where} holds bundle {index} of {name} for nobody")
        world.agenda.after(SAMPLE_S, self._sample)

    # ---- outcomes ----

    def failed_as_removed(self, what: str, group_id: bytes) -> None:
        """A task or call has failed because its group is gone."""
        if not group_id or not self._may_be_gone(self.plans[group_id]):
            raise Violation(f"I13: {what} fails for the removal of a group that nobody removed")

    def waiting(self) -> list[str]:
        """The groups that are neither whole nor gone, with their reasons."""
        return [
            f"{self.plans[row.spec.group_id].name} ({row.state.name}: {row.pending_reason})"
            for row in (self.rows() if self.plans else [])
            if not row.is_removed and row.state is not _CREATED
        ]

    def left_over(self) -> list[str]:
        """Groups and bundles, when no program is left."""
        if not self.plans:
            return []
        left = [self.plans[row.spec.group_id].name for row in self.rows() if not row.is_removed]
        bundles = [bundle for raylet in self._world.up() for bundle in raylet.machine.bundles()]
        return [*left, *(f"a bundle of {self.plans[one.key.group_id].name}" for one in bundles)]

    def remove_detached(self) -> None:
        """Those that outlive their programs are removed by a person."""
        for plan in self.plans.values():
            if plan.is_detached:
                plan.is_removed = True
                self._world.gcs.handle(gcs_on.GroupRemoved(plan.group_id, ""), _ignore)


def request_of(process: SimProcess, raylet: SimRaylet, call: node.ControlCall) -> Any:
    """What the gateway asks the GCS for a process's call about groups."""
    if call.method == "remove_placement_group":
        key = msgspec.msgpack.decode(call.body, type=node.PlacementGroupKey)
        return gcs_on.GroupRemoved(key.group_id, "")
    body = msgspec.msgpack.decode(call.body, type=node.PlacementGroupCreation)
    owner = Address(raylet.node_id, process.worker_id, process.endpoint)
    return gcs_on.GroupCreated(
        PlacementGroupSpec(
            body.group_id,
            process.job_id,
            owner,
            body.strategy,
            tuple(BundleSpec(amounts) for amounts in body.bundles),
            is_detached=body.is_detached,
        )
    )


def _has_open(raylet: SimRaylet, row: PlacementGroupRecord, index: int) -> bool:
    return any(
        bundle.is_open and not bundle.is_returning and bundle.attempt == row.attempts[index]
        for bundle in raylet.machine.bundles()
        if (bundle.key.group_id, bundle.key.index) == (row.spec.group_id, index)
    )


def _units(amounts: dict[str, float]) -> dict[str, int]:
    return {name: int(amount * UNITS) for name, amount in amounts.items()}


def _ignore(answer: Any) -> None:
    return None
