"""What the machines' work costs, and how it grows with the cluster.

Two numbers for each size: calls of Python functions per event, which a run repeats exactly, and
microseconds per event, which depend on the computer. A step whose work does not grow with the
cluster keeps both. No shells, no I/O: this is what no faster network or disk would mend.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Final

from skate_gcs.machine import GcsLimits, GcsMachine, Now, SavedState
from skate_gcs.machine import events as gcs_on
from skate_gcs.machine.commands import StartActorOnNode
from skate_gcs.machine.records import ActorSpec, Address, DeathCause, DeathKind, NodeRecord
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import NodeView, ResourceSet
from skate_worker.machine.lease_pool import Lease, LeasePool
from skate_worker.task_protocol import TaskDone

NODES: Final = (100, 1_000, 10_000)
TASKS: Final = (10_000, 100_000, 1_000_000)
ACTORS: Final = (1_000, 10_000, 100_000)
REPEATS: Final = 200
CPU = ResourceSet.from_amounts({"CPU": 1})
TOTAL = ResourceSet.from_amounts({"CPU": 4})
NOTHING = ResourceSet.from_amounts({})
DRIVER = b"driver" + bytes(22)
JOB = b"\0\0\0\1"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    size: int
    of: str  # what ``size`` counts
    events: int
    calls_per_event: float
    us_per_event: float


def count_and_time(
    what: str, size: int, of: str, step: Callable[[int], None], repeats: int = REPEATS
) -> Row:
    """Run ``step(n)`` some times counted and some times on the clock."""
    counted = max(1, repeats // 4)
    calls = 0

    def profile(frame: Any, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event == "call"

    numbers = itertools.count()
    sys.setprofile(profile)
    try:
        for _ in range(counted):
            step(next(numbers))
    finally:
        sys.setprofile(None)
    began_s = time.perf_counter()
    for _ in range(repeats):
        step(next(numbers))
    took_s = time.perf_counter() - began_s
    return Row(what, size, of, repeats, round(calls / counted, 1), round(took_s / repeats * 1e6, 1))


# ---- a node among many ----


def node_id_of(number: int) -> bytes:
    """The id of a node."""
    return b"node" + number.to_bytes(24, "big")


def make_node(nodes: int, *, free: bool) -> NodeMachine:
    """A node whose CPUs are taken, and its neighbours: all with room, or all full."""
    config = LeaseConfig(TOTAL, b"node0000", 10.0, node_id_of(0))
    machine = NodeMachine(config, PoolConfig(4, 4, 1000), Random(1))
    for number in range(4):  # these take what it has
        machine.handle(on.LeaseRequested(b"other", number, JOB, CPU), 0.0)
    for number in range(1, nodes):
        view = NodeView(node_id_of(number), TOTAL, TOTAL if free else NOTHING)
        machine.handle(loan.NodeSeen(view), 0.0)
    return machine


def measure_placement(nodes: int) -> Iterator[Row]:
    """A request that this node can not serve now: where it goes, and back."""
    spread = on.Strategy(is_spread=True)
    for name, free, strategy in (
        ("a request, others have room", True, on.DEFAULT_STRATEGY),
        ("a request, all are full", False, on.DEFAULT_STRATEGY),
        ("a request, SPREAD", True, spread),
    ):
        machine = make_node(nodes, free=free)

        def ask(number: int, machine: NodeMachine = machine, strategy: Any = strategy) -> None:
            request = on.LeaseRequested(DRIVER, number, JOB, CPU, strategy=strategy)
            machine.handle(request, 1.0)
            machine.handle(on.LeaseRequestCancelled(DRIVER, number), 1.0)

        yield count_and_time(name, nodes, "nodes", ask)
    machine = make_node(nodes, free=False)
    for number in range(50):
        machine.handle(on.LeaseRequested(DRIVER, 10_000 + number, JOB, CPU), 1.0)

    def see(number: int) -> None:
        view = NodeView(node_id_of(1 + number % (nodes - 1)), TOTAL, NOTHING)
        machine.handle(loan.NodeSeen(view), 1.0)

    yield count_and_time("a report, 50 requests wait", nodes, "nodes", see)
    machine = make_node(nodes, free=False)
    gpu = ResourceSet.from_amounts({"GPU": 1})
    for number in range(50):
        machine.handle(on.LeaseRequested(DRIVER, number, JOB, gpu), 1.0)

    def wake(number: int) -> None:
        machine.handle(on.WorkerUnblocked(b"nobody"), 1.0)

    yield count_and_time("any event, 50 impossible requests", nodes, "nodes", wake)


def measure_asks(nodes: int) -> Row:
    """Borrowing: ask, granted, returned."""
    machine = make_node(nodes, free=True)

    def borrow(number: int) -> None:
        asked = machine.handle(on.LeaseRequested(DRIVER, number, JOB, CPU), 1.0)
        for command in asked:
            if isinstance(command, loan.TellLender) and isinstance(command.message, loans.Ask):
                ask_id = command.message.ask_id
                lease_id = b"lease" + number.to_bytes(8, "big")
                granted = loans.Granted(ask_id, lease_id, b"worker", "unix:/w", 1)
                machine.handle(loan.LenderSaid(command.node_id, granted), 1.0)
                machine.handle(on.LeaseReturned(DRIVER, lease_id), 1.0)

    return count_and_time("a lease of another node, there and back", nodes, "nodes", borrow)


# ---- an owner with many tasks ----


class _Task:
    __slots__ = ("attempt", "is_solo", "task_id")

    def __init__(self, number: int) -> None:
        self.task_id = number.to_bytes(8, "big")
        self.attempt = 0
        self.is_solo = False


def measure_owner(tasks: int, leases: int = 100) -> Iterator[Row]:
    """An owner that queues tasks of 10 ms and runs them all on its leases."""
    pool: LeasePool[_Task] = LeasePool()
    queue = pool.queue_of("key")
    made = [_Task(number) for number in range(tasks)]
    began_s = time.perf_counter()
    for task in made:
        pool.submit(queue, task)
        if pool.requests_wanted(queue) > 0:
            pool.new_request(queue)
    took_s = time.perf_counter() - began_s
    yield Row("queue a task", tasks, "tasks", tasks, 0.0, round(took_s / tasks * 1e6, 2))
    held = []
    for number in range(leases):
        lease: Lease[_Task] = Lease(number.to_bytes(8, "big"), b"w", "", 0)
        pool.granted(queue, lease, 0.0)
        held.append(lease)
    running = [(lease, task) for lease in held for task in pool.refill(lease)]
    done = 0
    began_s = time.perf_counter()
    while running:
        following: list[tuple[Lease[_Task], _Task]] = []
        for lease, task in running:
            pool.done_all(lease, [TaskDone(task.task_id, b"", 10_000)], 0.0)
            following += [(lease, one) for one in pool.refill(lease)]
            done += 1
        running = following
    took_s = time.perf_counter() - began_s
    assert done == tasks
    yield Row("run a task", tasks, "tasks", tasks, 0.0, round(took_s / tasks * 1e6, 2))


# ---- the GCS with many actors ----


class Gcs:
    """A GCS machine whose nodes obey at once."""

    def __init__(self, nodes: int) -> None:
        self.now_s = 100.0
        self.machine = GcsMachine(
            "cluster", GcsLimits(), Random(1), SavedState(), Now(self.now_s, self.now_s)
        )
        self.count = 0
        self.nodes = nodes
        for number in range(nodes):
            total = {"CPU": 40_000_000}
            record = NodeRecord(node_id_of(number), raylet_endpoint=f"n{number}", total=total)
            self.handle(gcs_on.NodeRegistered(record))

    def handle(self, event: Any) -> list[StartActorOnNode]:
        """Take an event; returns the start orders."""
        commands = self.machine.handle(event, Now(self.now_s, self.now_s))
        return [command for command in commands if isinstance(command, StartActorOnNode)]

    def obey(self, orders: list[StartActorOnNode]) -> None:
        """The nodes start what they are asked to."""
        while orders:
            order = orders.pop()
            key = (order.spec.actor_id, order.incarnation)
            orders += self.handle(gcs_on.StartAnswered(order.node_id, *key, None))
            worker_id = order.spec.actor_id + bytes(8) + order.incarnation.to_bytes(4, "big")
            where = Address(order.node_id, worker_id, "unix:/w")
            orders += self.handle(gcs_on.ActorStarted(*key, where, 1))

    def create(self) -> bytes:
        """Register an actor and have it start."""
        self.count += 1
        actor_id = self.count.to_bytes(12, "big") + JOB
        owner = Address(node_id_of(self.count % self.nodes), DRIVER, "unix:/d")
        spec = ActorSpec(actor_id, JOB, owner, max_restarts=-1, placement_resources={"CPU": 10_000})
        self.obey(self.handle(gcs_on.ActorRegistered(spec, False)))
        return actor_id


def measure_gcs(actors: int, nodes: int = 100) -> Iterator[Row]:
    """A GCS with so many live actors."""
    gcs = Gcs(nodes)
    ids = [gcs.create() for _ in range(actors)]
    lives = dict.fromkeys(ids, 0)
    turn = itertools.cycle(ids)
    versions = itertools.count(1)

    def create(number: int) -> None:
        gcs.create()

    def die(number: int) -> None:
        actor_id = next(turn)
        cause = DeathCause(DeathKind.SIGNALED, "killed")
        gcs.obey(gcs.handle(gcs_on.ActorFailed(actor_id, lives[actor_id], cause, b"")))
        lives[actor_id] += 1

    def beat(number: int) -> None:
        report = gcs_on.ResourcesReported(
            node_id_of(number % nodes), next(versions), {"CPU": 30_000_000}, {"CPU": 40_000_000}
        )
        gcs.handle(report)

    def find(number: int) -> None:
        gcs.handle(gcs_on.GetActor(ids[number % actors]))

    def tick(number: int) -> None:
        gcs.machine.next_wakeup()
        gcs.handle(gcs_on.Tick())

    yield count_and_time("create an actor and start it", actors, "actors", create)
    yield count_and_time("a heartbeat", actors, "actors", beat)
    yield count_and_time("look an actor up", actors, "actors", find)
    yield count_and_time("a tick", actors, "actors", tick)
    yield count_and_time("a death and a restart", actors, "actors", die)

    def lose_node(number: int) -> None:
        record = NodeRecord(node_id_of(nodes + number), raylet_endpoint=f"x{number}")
        gcs.handle(gcs_on.NodeRegistered(record))
        gcs.handle(gcs_on.NodeUnregistered(record.node_id, DeathCause(DeathKind.NODE_DIED)))

    yield count_and_time("an empty node comes and dies", actors, "actors", lose_node, 20)


def measure_gcs_nodes(nodes: int) -> Iterator[Row]:
    """A GCS with so many nodes."""
    gcs = Gcs(nodes)
    versions = itertools.count(1)

    def beat(number: int) -> None:
        report = gcs_on.ResourcesReported(
            node_id_of(number % nodes), next(versions), {"CPU": 30_000_000}, {"CPU": 40_000_000}
        )
        gcs.handle(report)

    def create(number: int) -> None:
        gcs.create()

    def tick(number: int) -> None:
        gcs.machine.next_wakeup()
        gcs.handle(gcs_on.Tick())

    yield count_and_time("GCS: a heartbeat", nodes, "nodes", beat)
    yield count_and_time("GCS: create an actor and start it", nodes, "nodes", create)
    yield count_and_time("GCS: a tick", nodes, "nodes", tick)


def measure(*, is_short: bool = False) -> Iterator[Row]:
    """All rows. ``is_short``: without the largest sizes."""
    cut = 2 if is_short else 3
    for nodes in NODES[:cut]:
        yield from measure_placement(nodes)
        yield measure_asks(nodes)
        yield from measure_gcs_nodes(nodes)
    for tasks in TASKS[:cut]:
        yield from measure_owner(tasks)
    for actors in ACTORS[:cut]:
        yield from measure_gcs(actors)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, one line for each step, with the growth from end to end."""
    by_step: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_step.setdefault((row.of, row.what), []).append(row)
    lines = [
        "| step | size | us per event | calls per event | growth of calls, of time |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (of, what), found in by_step.items():
        sizes = ", ".join(f"{row.size:,}" for row in found)
        times = ", ".join(f"{row.us_per_event:g}" for row in found)
        calls = ", ".join(f"{row.calls_per_event:g}" for row in found)
        first, last = found[0], found[-1]
        scale = last.size / first.size
        grown = f"{last.us_per_event / max(first.us_per_event, 0.01):.1f}x for {scale:g}x"
        if first.calls_per_event:
            grown = f"{last.calls_per_event / first.calls_per_event:.1f}x, {grown}"
        lines.append(f"| {what} | {sizes} {of} | {times} | {calls} | {grown} |")
    return "\n".join(lines)


def as_records(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows for a file."""
    return [asdict(row) for row in rows]
