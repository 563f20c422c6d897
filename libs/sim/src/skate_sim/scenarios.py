"""What happens in a run: drawn from its seed, before the run begins.

Each action draws what it needs from a source of its own, so leaving one out changes nothing about
the others: that is what lets a failing run be made smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Final

from skate_rpc import node_protocol as node
from skate_sim.group_actions import create_group, create_inside, remove_group, run_inside
from skate_sim.network import NetworkHabits
from skate_sim.plans import ActorPlan, Plan
from skate_worker.specs import Strategy

if TYPE_CHECKING:
    from skate_sim.process import SimProcess
    from skate_sim.world import World

Play = Callable[["World", Random], None]
DURATIONS_S: Final = (0.0005, 0.002, 0.02, 0.2, 0.5)
CUTS_S: Final = (0.2, 1.0, 4.0, 11.5, 16.0)
LONG_CUTS_S: Final = (10.2, 11.5, 14.0, 20.0)  # the GCS holds a node for dead after 10
CALM: Final = NetworkHabits()


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that the scenario does."""

    number: int
    at_s: float
    name: str
    play: Play


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run's plan."""

    seed: int
    name: str
    totals: tuple[dict[str, float], ...]
    drivers: int
    seconds: float
    actions: tuple[Action, ...]
    habits: NetworkHabits = CALM
    habits_at_rest: NetworkHabits = CALM
    gcs_crash_rate: float = 0.0
    start_failure_rate: float = 0.0
    is_calm: bool = False  # no faults but those that tasks and actors cause themselves
    loses_messages: bool = True  # what a process said may be lost with it


@dataclass(slots=True)
class _Mix:
    """Weights of a scenario's actions."""

    work: dict[str, float]
    faults: dict[str, float] = field(default_factory=dict)
    fault_share: float = 0.0


WORK: Final = {"submit": 10.0, "nest": 2.0, "create": 3.0, "call": 6.0, "end_actor": 1.0}
TASKS: Final = {"submit": 10.0, "nest": 3.0, "cancel": 1.0}
ACTORS: Final = {"create": 3.0, "call": 8.0, "end_actor": 1.0}

MIXES: Final[dict[str, _Mix]] = {
    "calm": _Mix({"submit": 10.0, "nest": 3.0, "create": 3.0, "call": 4.0}),
    "tasks": _Mix(TASKS, {"kill_worker": 4.0, "end_driver": 0.5}, 0.15),
    "actors": _Mix(ACTORS, {"kill_worker": 4.0, "kill_actor": 2.0}, 0.2),
    "nodes": _Mix(WORK, {"crash_node": 2.0, "kill_worker": 1.0, "add_node": 0.5}, 0.12),
    "network": _Mix(
        WORK, {"cut_nodes": 3.0, "cut_gcs": 2.0, "break_stream": 2.0, "break_line": 2.0}, 0.2
    ),
    "gcs": _Mix(WORK, {"crash_gcs": 3.0, "kill_worker": 1.0, "break_subscription": 2.0}, 0.2),
    "fences": _Mix(
        {"submit": 3.0, "create": 4.0, "call": 6.0},
        {"cut_gcs_long": 3.0, "cut_gcs": 1.0, "crash_gcs": 0.5},
        0.2,
    ),
    "everything": _Mix(
        {**WORK, "cancel": 0.5},
        {
            "kill_worker": 3.0,
            "crash_node": 1.0,
            "add_node": 0.5,
            "cut_nodes": 1.5,
            "cut_gcs": 1.5,
            "break_stream": 1.5,
            "break_line": 1.0,
            "break_subscription": 1.0,
            "crash_gcs": 1.0,
            "end_driver": 0.5,
            "kill_actor": 0.5,
        },
        0.25,
    ),
}
_WITHOUT_GROUPS: Final = tuple(MIXES)
_EVERYTHING: Final = MIXES["everything"]
MIXES["groups"] = _Mix(
    {
        **_EVERYTHING.work,
        "create_group": 6.0,
        "remove_group": 2.0,
        "run_inside": 10.0,
        "create_inside": 3.0,
    },
    {**_EVERYTHING.faults, "crash_gcs": 2.0},
    0.2,
)
NAMES: Final = tuple(MIXES)
GROUPS_SHARE: Final = 0.25  # of all seeds
# Every node has room in "slot" for a task beside all actors that hold some of it while they live;
# of what they hold for ever, a task that is bound to their node could rightly wait for ever.
TOTALS: Final[tuple[dict[str, float], ...]] = (
    {"CPU": 2, "slot": 2},
    {"CPU": 4, "slot": 2},
    {"CPU": 1, "GPU": 1, "slot": 2},
    {"CPU": 2, "disk": 1, "slot": 2},
)
ALL: Final[dict[str, float]] = {"CPU": 4, "GPU": 1, "disk": 1, "slot": 2}


def draw(seed: int, name: str = "") -> Scenario:
    """The scenario of a seed; ``name`` empty: the seed chooses that too."""
    random = Random(f"scenario {seed}")
    chosen = random.choice(_WITHOUT_GROUPS)
    if Random(f"groups {seed}").random() < GROUPS_SHARE:
        chosen = "groups"
    name = name or chosen
    mix = MIXES[name]
    is_calm = name == "calm"
    nodes = random.choice((1, 2, 3, 3))
    totals: tuple[dict[str, float], ...] = tuple(random.choice(TOTALS) for _ in range(nodes))
    if is_calm:
        totals = (ALL, *totals[1:])
    seconds = 24.0 if name == "fences" else random.choice((3.0, 6.0, 12.0))
    steps = random.choice((10, 20, 40))
    actions: list[Action] = []
    for number in range(steps):
        is_fault = random.random() < mix.fault_share
        weights = mix.faults if is_fault else mix.work
        kind = random.choices(list(weights), list(weights.values()))[0]
        at_s = random.uniform(0.3, 1.0 if is_calm and not is_fault else seconds)
        actions.append(Action(number, at_s, kind, ACTIONS[kind]))
    is_rough = name in ("network", "gcs", "fences", "everything", "groups")
    return Scenario(
        seed,
        name,
        totals,
        random.choice((1, 1, 2, 3)),
        seconds,
        tuple(actions),
        habits=NetworkHabits(
            random.choice((0.0, 0.1, 0.4)),
            0.3,
            random.choice((0.0, 0.05)) if is_rough else 0.0,
            random.choice((0.0, 0.0, 0.1)),
        )
        if not is_calm
        else CALM,
        gcs_crash_rate=random.choice((0.0, 0.02))
        if name in ("gcs", "everything", "groups")
        else 0.0,
        start_failure_rate=0.0 if is_calm else random.choice((0.0, 0.0, 0.1)),
        is_calm=is_calm,
        loses_messages=not is_calm,
    )


# ---- work ----


def _driver(world: World, random: Random) -> SimProcess | None:
    drivers = world.live_drivers()
    return random.choice(drivers) if drivers else None


def _strategy(world: World, random: Random) -> Strategy | None:
    kind = random.random()
    if kind < 0.7:
        return None
    if kind < 0.85:
        return Strategy(is_spread=True)
    raylets = list(world.raylets.values())
    node_id = random.choice(raylets).node_id
    # A node's CPUs may all be in bundles, for ever; who insists on it would rightly wait.
    return Strategy(node_id=node_id, is_soft=True, is_impatient=world.scenario.name == "groups")


def _task(world: World, random: Random, name: str) -> Plan:
    max_retries = random.choice((0, 0, 1, 3, -1))
    plan = Plan(name, b"", random.choice(DURATIONS_S), max_retries)
    fate = random.random()
    if fate < 0.25:
        plan.deaths = random.choice((1, 1, 2, 4))
    elif fate < 0.35:
        plan.raises, plan.retries_errors = random.choice((1, 2)), random.random() < 0.5
    elif fate < 0.4 and max_retries >= 0:
        plan.exits = True
    if random.random() < 0.15:
        plan.resources = {random.choice(("disk", "GPU", "slot")): random.choice((0.5, 1.0))}
    plan.cpus = random.choice((1.0, 1.0, 1.0, 0.5, 0.0, 2.0))
    plan.strategy = _strategy(world, random)
    return plan


def submit(world: World, random: Random) -> None:
    """Some tasks, alike or not."""
    driver = _driver(world, random)
    if driver is None:
        return
    first = _task(world, random, "")
    for _ in range(random.choice((1, 1, 2, 5, 12))):
        plan = _task(world, random, f"t{len(world.plans)}")
        if random.random() < 0.7:  # of one scheduling key
            plan.cpus, plan.resources, plan.strategy = first.cpus, first.resources, first.strategy
        world.submit(driver, plan)


def nest(world: World, random: Random) -> None:
    """A task that waits for tasks of its own."""
    driver = _driver(world, random)
    if driver is None:
        return

    def make(depth: int) -> Plan:
        plan = Plan(f"t{world.new_task_id(b'')[-4:].hex()}", b"", random.choice(DURATIONS_S))
        plan.max_retries = random.choice((0, 3))
        if depth:
            plan.children = [make(depth - 1) for _ in range(random.choice((1, 2)))]
        return plan

    world.submit(driver, make(random.choice((1, 1, 2))))


def cancel(world: World, random: Random) -> None:
    """Cancel a task, by force or not."""
    waiting = [
        (plan, process)
        for plan, process, _ in world.outstanding.values()
        if process.is_driver and not plan.actor_id and not process.client.is_lost
    ]
    if waiting:
        plan, process = random.choice(waiting)
        world.oracle.cancelled(plan)
        process.tasks.cancel(plan.task_id, force=random.random() < 0.3, is_recursive=False)


def create(world: World, random: Random) -> None:
    """An actor."""
    driver = _driver(world, random)
    if driver is None or len(world.actors) >= 8:
        return
    durations_s = (0.05, 0.3, 4.0) if world.scenario.name == "fences" else (0.002, 0.05, 0.3)
    plan = ActorPlan(f"a{len(world.actors)}", b"", random.choice(durations_s))
    plan.max_restarts = random.choice((0, 1, 3, -1))
    fate = random.random()
    if fate < 0.25:
        plan.deaths = random.choice((1, 2))
    elif fate < 0.3:
        plan.raises = True
    plan.is_detached = random.random() < 0.2
    plan.placement = {"CPU": 1.0}
    if random.random() < 0.25 and sum(bool(one.running) for one in world.actors.values()) < 2:
        plan.running = {"slot": 0.5}
        plan.placement = plan.running
    plan.max_task_retries = random.choice((0, 0, 1, -1))
    plan.strategy = _strategy(world, random)
    world.create_actor(driver, plan)


def call(world: World, random: Random) -> None:
    """Some calls of one actor by one driver."""
    driver = _driver(world, random)
    if driver is None:
        return
    actors = [
        plan for plan in world.actors.values() if plan.is_registered or plan.creator == driver.name
    ]
    if not actors:
        return
    actor = random.choice(actors)
    for _ in range(random.choice((1, 2, 5))):
        plan = Plan(f"c{len(world.plans)}", b"", random.choice(DURATIONS_S), actor.max_task_retries)
        if random.random() < 0.08:
            plan.deaths = 1
            actor.kills += 1
        elif random.random() < 0.05:
            plan.raises = 1
        if random.random() < 0.15:
            plan.resolves_s = random.choice((0.01, 0.3))
        world.call(driver, plan, actor)


def _ordering_driver(world: World) -> SimProcess | None:
    drivers = world.live_drivers()
    return drivers[0] if drivers else None


def end_actor(world: World, random: Random) -> None:
    """The user kills an actor for good, or no handle is left."""
    driver = _ordering_driver(world)
    actors = [plan for plan in world.actors.values() if not plan.is_released and not plan.kills]
    if driver is None or not actors:
        return
    plan = random.choice(actors)
    if random.random() < 0.5:
        plan.kills += 1
        body: node.ActorKill | node.ActorRelease = node.ActorKill(plan.actor_id, True)
        driver.client.call_soon("kill_actor", body, _ignore)
    else:
        plan.is_released = True
        driver.client.call_soon("release_actor", node.ActorRelease(plan.actor_id), _ignore)


def kill_actor(world: World, random: Random) -> None:
    """The user kills an actor's process; it may restart."""
    driver = _ordering_driver(world)
    if driver is not None and world.actors:
        plan = random.choice(list(world.actors.values()))
        plan.kills += 1
        world.oracle.actor_killed(plan.actor_id)
        driver.client.call_soon("kill_actor", node.ActorKill(plan.actor_id, False), _ignore)


def end_driver(world: World, random: Random) -> None:
    """A program ends, or is killed."""
    drivers = world.live_drivers()
    if len(drivers) > 1:
        driver = random.choice(drivers)
        driver.die("its program ends")


# ---- faults ----


def kill_worker(world: World, random: Random) -> None:
    """SIGKILL of a worker, rather one that runs something."""
    workers = world.workers()
    busy = [one for one in workers if not one.executor.is_idle]
    if busy and random.random() < 0.8:
        workers = busy
    if workers:
        world.count("workers killed")
        random.choice(workers).die("it was killed")


def crash_node(world: World, random: Random) -> None:
    """A daemon is killed, or a host loses its power; another node comes some time later."""
    up = world.up()
    if up:
        world.count("nodes crashed")
        raylet = random.choice(up)
        raylet.die("it was killed", is_dark=random.random() < 0.4)
        total = random.choice(TOTALS)
        world.agenda.after(random.uniform(0.2, 3.0), add_node_with, world, total, random)


def add_node_with(world: World, total: dict[str, float], random: Random) -> None:
    """A node, perhaps with a driver."""
    raylet = world.add_node(total)
    if random.random() < 0.6 or not world.live_drivers():
        world.add_driver(raylet)


def add_node(world: World, random: Random) -> None:
    """A node joins."""
    world.add_node(random.choice(TOTALS))


def cut_nodes(world: World, random: Random) -> None:
    """Two nodes can not reach each other, or one not the other; the GCS reaches both."""
    up = world.up()
    if len(up) >= 2:
        world.count("cuts")
        one, other = random.sample(up, 2)
        world.cut(one.host, other.host, random.choice(CUTS_S), is_one_way=random.random() < 0.4)


def cut_gcs(world: World, random: Random) -> None:
    """A node is cut off from the GCS, in one direction or both, perhaps from all others too."""
    _cut_gcs(world, random, random.choice(CUTS_S))


def cut_gcs_long(world: World, random: Random) -> None:
    """The same for so long that the node is held for dead, and returns."""
    _cut_gcs(world, random, random.choice(LONG_CUTS_S))


def _cut_gcs(world: World, random: Random, duration_s: float) -> None:
    up = world.up()
    if not up:
        return
    world.count("cuts")
    raylet = random.choice(up)
    source, target = raylet.host, world.gcs.host
    if random.random() < 0.5:
        source, target = target, source
    world.cut(source, target, duration_s, is_one_way=random.random() < 0.4)
    if random.random() < 0.5:
        for other in up:
            if other is not raylet:
                world.cut(raylet.host, other.host, duration_s, is_one_way=False)


def break_stream(world: World, random: Random) -> None:
    """A connection of two processes on different hosts breaks."""
    ends = [
        end
        for end in world.sockets.open
        if not end.has_ended and end.life.host != end.other.life.host
    ]
    if ends:
        world.count("streams broken")
        random.choice(ends).snap()


def break_line(world: World, random: Random) -> None:
    """A line between two raylets breaks."""
    lines = [line for raylet in world.up() for line in raylet.lenders.values() if line.is_open]
    if lines:
        world.count("lines broken")
        random.choice(lines).snap()


def break_subscription(world: World, random: Random) -> None:
    """A raylet's subscription breaks."""
    up = world.up()
    if up and world.gcs.is_up:
        raylet = random.choice(up)
        world.gcs.subscriber_lost(raylet.node_id)
        raylet.subscription_broke()


def crash_gcs(world: World, random: Random) -> None:
    """SIGKILL of the GCS."""
    world.gcs.crash(random.choice((0.0, 0.2, 1.0, 5.0)))


def _ignore(reply: node.ControlReply) -> None:
    return None


ACTIONS: Final[dict[str, Play]] = {
    play.__name__: play
    for play in (
        submit,
        nest,
        cancel,
        create,
        create_group,
        create_inside,
        remove_group,
        run_inside,
        call,
        end_actor,
        kill_actor,
        end_driver,
        kill_worker,
        crash_node,
        add_node,
        cut_nodes,
        cut_gcs,
        cut_gcs_long,
        break_stream,
        break_line,
        break_subscription,
        crash_gcs,
    )
}
