"""Placement groups between real machines: the GCS's table, nodes' bundles, and tasks inside them.

Groups come and go while nodes crash, lines are cut and the GCS is killed at any commit. All the
time: nobody holds a bundle for long of a group that is neither pending nor created. After the last
fault: every group is whole, and holds exactly its bundles; when the programs have gone, none.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from skate_gcs.machine import events as gcs_on
from skate_gcs.machine.records import (
    Address,
    BundleSpec,
    PlacementGroupRecord,
    PlacementGroupSpec,
    PlacementGroupState,
)
from skate_sim.network import NetworkHabits
from skate_sim.oracle import Violation
from skate_sim.plans import Plan
from skate_sim.scenarios import ACTIONS, Action, Scenario
from skate_sim.world import World
from skate_worker.specs import Strategy

SEEDS = range(40)
STALE_MAX_S = 5.0
WHOLE_S = 30.0
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
FAULTS = ("crash_node", "add_node", "cut_nodes", "cut_gcs", "break_subscription", "crash_gcs")


class GroupWorld(World):
    """A world whose programs make placement groups."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.groups: list[bytes] = []
        self.kept: list[bytes] = []  # with tasks inside: not removed before the end
        self.stale_since_s: dict[tuple[str, bytes, int], float] = {}
        self.agenda.after(0.1, self.watch)

    def table(self) -> dict[bytes, PlacementGroupRecord]:
        answer: Any = self.gcs.machine.handle(gcs_on.ListGroups(), self.gcs.now)[0]
        return {row.spec.group_id: row for row in answer.answer.records}

    def misplaced(self) -> list[tuple[str, bytes, int]]:
        """Bundles that a node holds although no row says so."""
        rows = self.table()
        found = []
        for raylet in self.up():
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

    def watch(self) -> None:
        """Sample what nodes hold; a node that is cut off can not be told."""
        now_s = self.agenda.now_s
        misplaced = self.misplaced() if self.gcs.is_up else []
        self.stale_since_s = {key: self.stale_since_s.get(key, now_s) for key in misplaced}
        for raylet in self.up():
            raylet.machine.check_invariants()
        for (name, group_id, index), since_s in self.stale_since_s.items():
            is_healed = since_s > self.scenario.seconds
            if is_healed and now_s - since_s > STALE_MAX_S:
                raise Violation(f"I13: {name} holds bundle {index} of {group_id.hex()} for nobody")
        self.agenda.after(0.1, self.watch)

    def whole(self) -> bool:
        """Every group is created, and each of its bundles is held and open."""
        rows = [row for row in self.table().values() if not row.is_removed]
        held = {
            (raylet.node_id, bundle.key.group_id, bundle.key.index)
            for raylet in self.up()
            for bundle in raylet.machine.bundles()
            if bundle.is_open and not bundle.is_returning
        }
        wanted = {
            (node_id, row.spec.group_id, index)
            for row in rows
            for index, node_id in enumerate(row.node_ids)
        }
        states = {row.state for row in rows}
        return states <= {PlacementGroupState.CREATED} and held == wanted

    def _settle(self) -> None:
        if not self.agenda.run_until(self.agenda.now_s + WHOLE_S, self.whole):
            rows = [(row.state.name, row.pending_reason) for row in self.table().values()]
            raise Violation(f"I13: after {WHOLE_S:g} s the groups are {rows}")
        super()._settle()


def create_group(world: GroupWorld, random: Random) -> None:
    drivers = world.live_drivers()
    if not drivers or len(world.groups) >= 5:
        return
    driver = random.choice(drivers)
    count = random.choice((1, 1, 2, 3))
    bundles = tuple(BundleSpec({"CPU": random.choice((5_000, 10_000))}) for _ in range(count))
    owner = Address(driver.raylet.node_id, driver.worker_id, driver.endpoint)
    group_id = random.randbytes(14) + driver.job_id
    strategy = random.choice(STRATEGIES if count <= 2 else STRATEGIES[:3])
    spec = PlacementGroupSpec(group_id, driver.job_id, owner, strategy, bundles)
    world.count("groups")

    def done(_: Any, error: Any) -> None:
        if error is None:
            world.groups.append(group_id)

    driver.raylet.link.ask(gcs_on.GroupCreated(spec), done)


def remove_group(world: GroupWorld, random: Random) -> None:
    drivers = world.live_drivers()
    groups = [group_id for group_id in world.groups if group_id not in world.kept]
    if drivers and groups:
        group_id = random.choice(groups)
        world.groups.remove(group_id)
        event = gcs_on.GroupRemoved(group_id, "")
        random.choice(drivers).raylet.link.ask(event, lambda _answer, _error: None)


def run_inside(world: GroupWorld, random: Random) -> None:
    drivers = [one for one in world.live_drivers() if world.groups]
    if not drivers:
        return
    driver = random.choice(drivers)
    group_id = random.choice(world.groups)
    world.kept.append(group_id)
    for _ in range(random.choice((1, 2, 4))):
        plan = Plan(f"t{len(world.plans)}", b"", random.choice((0.01, 0.2)), -1)
        plan.cpus = 0.5
        plan.strategy = Strategy(group_id=group_id)
        world.submit(driver, plan)


def draw(seed: int) -> Scenario:
    random = Random(f"groups {seed}")
    plays: dict[str, Any] = {
        play.__name__: play for play in (create_group, remove_group, run_inside)
    }
    seconds = random.choice((6.0, 12.0))
    actions = []
    for number in range(random.choice((20, 40))):
        is_fault = random.random() < 0.25
        name = random.choice(FAULTS if is_fault else (*plays, "create_group"))
        at_s = random.uniform(0.3, seconds)
        actions.append(Action(number, at_s, name, plays.get(name) or ACTIONS[name]))
    return Scenario(
        seed,
        "groups",
        ({"CPU": 2, "slot": 2}, {"CPU": 4, "slot": 2}, {"CPU": 2, "slot": 2}),
        random.choice((1, 2)),
        seconds,
        tuple(actions),
        habits=NetworkHabits(
            random.choice((0.0, 0.2)), 0.3, random.choice((0.0, 0.05)), random.choice((0.0, 0.1))
        ),
        gcs_crash_rate=random.choice((0.0, 0.02)),
        start_failure_rate=random.choice((0.0, 0.1)),
    )


@pytest.mark.invariant("I13", "I14")
@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_whole_or_nothing_between_real_machines(seed: int) -> None:
    world = GroupWorld(draw(seed))
    world.run()
    rows = world.table().values()
    assert not [row for row in rows if not row.is_removed], "groups outlive their jobs"
    assert world.misplaced() == []


def test_scenarios_make_groups_and_faults_happen() -> None:
    groups = tasks = 0
    for seed in range(6):
        world = GroupWorld(draw(seed))
        world.run()
        groups += world.counts["groups"]
        tasks += world.counts["successes"]
    assert groups > 10
    assert tasks > 5
