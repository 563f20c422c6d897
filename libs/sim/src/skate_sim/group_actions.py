"""What programs of a scenario do with placement groups."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from skate_sim.plans import ActorPlan, GroupPlan, Plan
from skate_worker.specs import Strategy

if TYPE_CHECKING:
    from skate_sim.world import World

GROUPS_MAX: Final = 6  # at a time: the last nodes have room for all of them
BUNDLES_MAX_SPREAD: Final = 2  # as many nodes are there after the last fault
STRATEGIES: Final = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
DURATIONS_S: Final = (0.002, 0.02, 0.2, 1.0)


def create_group(world: World, random: Random) -> None:
    """A placement group."""
    drivers = world.live_drivers()
    if not drivers or len(world.groups.usable()) >= GROUPS_MAX:
        return
    driver = random.choice(drivers)
    strategy = random.choice(STRATEGIES)
    count = random.choice((1, 1, 2, 3))
    if strategy == "STRICT_SPREAD":
        count = min(count, BUNDLES_MAX_SPREAD)
    bundles: list[dict[str, float]] = [{"CPU": random.choice((0.5, 1.0))} for _ in range(count)]
    if random.random() < 0.2:
        bundles[0]["disk"] = 0.2
    number = len(world.groups.plans)
    group_id = b"group%09d" % number + driver.job_id
    plan = GroupPlan(
        f"g{number}", group_id, strategy, tuple(bundles), random.random() < 0.1, driver.name
    )
    world.groups.create(driver, plan)


def remove_group(world: World, random: Random) -> None:
    """The user removes a group, whatever is in it."""
    drivers, groups = world.live_drivers(), world.groups.usable()
    if drivers and groups:
        world.groups.remove(random.choice(drivers), random.choice(groups))


def _inside(random: Random, group: GroupPlan) -> tuple[float, Strategy]:
    """CPUs that fit, and where: any bundle or one of them."""
    index = random.choice((-1, random.randrange(len(group.bundles))))
    return random.choice((0.5, 0.5, 0.0)), Strategy(group_id=group.group_id, bundle_index=index)


def run_inside(world: World, random: Random) -> None:
    """Some tasks in a group; some start others, which are captured."""
    drivers, groups = world.live_drivers(), world.groups.usable()
    if not drivers or not groups:
        return
    driver, group = random.choice(drivers), random.choice(groups)
    cpus, strategy = _inside(random, group)

    def make(*, may_start_others: bool) -> Plan:
        plan = Plan("", b"", random.choice(DURATIONS_S), random.choice((0, 1, 3, -1)))
        plan.cpus, plan.strategy, plan.group_id = cpus, strategy, group.group_id
        if random.random() < 0.15:
            plan.deaths = random.choice((1, 2))
        if may_start_others and random.random() < 0.25:
            plan.children = [make(may_start_others=False) for _ in range(random.choice((1, 2)))]
            for child in plan.children:  # any bundle will do, as with capture
                child.strategy = Strategy(group_id=group.group_id)
        return plan

    for _ in range(random.choice((1, 2, 4))):
        plan = make(may_start_others=True)
        plan.name = f"t{len(world.plans)}"
        for number, child in enumerate(plan.children):
            child.name = f"{plan.name}.{number}"
        world.submit(driver, plan)


def create_inside(world: World, random: Random) -> None:
    """An actor in a group; one of a group may hold CPUs of it as long as it lives."""
    drivers, groups = world.live_drivers(), world.groups.usable()
    if not drivers or not groups or len(world.actors) >= 8:
        return
    driver, group = random.choice(drivers), random.choice(groups)
    plan = ActorPlan(f"a{len(world.actors)}", b"", random.choice((0.002, 0.05, 0.3)))
    plan.max_restarts = random.choice((0, 1, 3, -1))
    if random.random() < 0.2:
        plan.deaths = 1
    plan.placement = {"CPU": 0.5}
    roomy = [index for index, bundle in enumerate(group.bundles) if bundle["CPU"] >= 1.0]
    index = -1
    if roomy and not group.holds and random.random() < 0.5:
        group.holds = True  # so half of its bundle stays for all others
        plan.running, index = plan.placement, roomy[0]
    plan.max_task_retries = random.choice((0, 0, 1, -1))
    plan.strategy = Strategy(group_id=group.group_id, bundle_index=index)
    plan.group_id = group.group_id
    world.create_actor(driver, plan)
