"""A seeded world of several nodes that lend each other workers, over lines that lose, repeat and
reorder what is said, break, and end with the death of a node.

A failure prints its seed; ``pytest "...::test_lending_world_keeps_its_promises[seed-17]"`` replays
it. The world knows on its own which worker serves which holder, and compares: no worker serves two
holders, a holder hears one answer to each request, and when all is quiet nothing is left anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import LabelRules, LabelSelector, NodeView, ResourceSet, WaitKind

SEEDS = range(30)
STEPS = 400
SHAPES: list[dict[str, float]] = [{"CPU": 1}, {"CPU": 1}, {"CPU": 2}, {"disk": 1}, {"GPU": 0.5}]
TOTALS: list[dict[str, float]] = [
    {"CPU": 2},
    {"CPU": 2, "disk": 1},
    {"CPU": 1, "GPU": 1},
    {"CPU": 4},
]
JOB = b"\0\0\0\1"
ZONES = ["a", "b", "a", "b"]
LINE_S = 1.0  # at most, from one side to the other
FOREVER_S = 45.0


class Node:
    """One node: its machine, its processes, and its holders' own account."""

    def __init__(self, node_id: bytes, total: dict[str, float], zone: str, seed: int) -> None:
        self.node_id = node_id
        self.labels = {"zone": zone}
        self.total = ResourceSet.from_amounts(total)
        self.machine = NodeMachine(
            LeaseConfig(self.total, node_id[:8], node_id=node_id, labels=self.labels),
            PoolConfig(soft_limit=4, starts_max=4, workers_max=20),
            random.Random(seed),
        )
        self.processes: dict[int, bytes] = {}  # startup -> worker id, or b"" while it starts
        self.ending: dict[int, None] = {}
        self.driver = b"driver-" + node_id
        self.has_driver = True
        self.asked: dict[int, None] = {}  # the driver's open requests
        self.granted: dict[bytes, bytes] = {}  # the driver's leases -> worker
        self.is_alive = True


class World:
    def __init__(self, seed: int, *, loss: float = 0.05, count: int | None = None) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.now_s = 0.0
        self.nodes: dict[bytes, Node] = {}
        for number in range(count or self.random.randrange(2, 5)):
            node_id = b"node-%d-" % number * 2
            self.nodes[node_id] = Node(node_id, TOTALS[number], ZONES[number], seed)
        # Under way: (when, to, event). Lines by (borrower, lender): open or not.
        self.under_way: list[tuple[float, int, bytes, Any]] = []
        self.is_open: dict[tuple[bytes, bytes], bool] = {}
        self.numbers = 0
        self.grants = 0
        self.far_grants = 0
        self.lost = 0
        self.log: list[str] = []
        self.publish_all()

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_alive]

    # ---- the shell's side ----

    def tell(self, node: Node, event: Any) -> None:
        if not node.is_alive:
            return
        self.log.append(f"{self.now_s:.2f} {node.node_id[:6]!r} {event}")
        for command in node.machine.handle(event, self.now_s):
            self.log.append(f"        {command}")
            self.obey(node, command)
        node.machine.check_invariants()
        self.check_reasons(node)

    def check_reasons(self, node: Node) -> None:
        """Whatever waits has a reason, and it is what an independent look at the node says."""
        reasons = {}
        for waiting in node.machine.waiting(self.now_s):
            reason, needs = waiting.reason, waiting.needs
            assert reason.sentence()
            assert reason.since_s <= self.now_s
            if not waiting.is_foreign:
                reasons[waiting.request.request_id] = reason
            fits = needs.fits_in(node.machine.available)
            match reason.kind:
                case WaitKind.RESOURCES:
                    is_device = all(part.name == "GPU" for part in reason.missing)
                    assert needs.fits_in(node.total)
                    assert is_device or not fits
                case WaitKind.TURN | WaitKind.RESERVED:
                    assert fits
                case WaitKind.NOWHERE:
                    assert not needs.fits_in(reason.most) or "label" in reason.detail
                case _:
                    pass
        assert node.asked.keys() <= reasons.keys(), "a request waits and nothing says why"

    def obey(self, node: Node, command: Any) -> None:
        match command:
            case do.StartWorker(startup_id):
                node.processes[startup_id] = b""
            case do.EndWorker(startup_id):
                if startup_id in node.processes:
                    node.ending[startup_id] = None
            case do.GrantLease(holder_id, request_id, lease_id, startup_id, worker_id):
                assert node.processes[startup_id] == worker_id
                self.grant(node, holder_id, request_id, lease_id, worker_id)
            case loan.GrantBorrowed(holder_id, request_id, _, granted):
                self.far_grants += 1
                self.grant(node, holder_id, request_id, granted.lease_id, granted.worker_id)
            case do.WarnHolder(holder_id, request_id, message):
                assert holder_id == node.driver
                assert message
                assert request_id in node.asked or not node.has_driver
            case do.RefuseLease(holder_id, request_id, kind):
                assert holder_id == node.driver
                assert kind == "worker_start_failed"
                if node.has_driver:
                    del node.asked[request_id]
            case do.LoseLease(holder_id, lease_id) | loan.LoseBorrowed(holder_id, lease_id):
                assert holder_id == node.driver
                self.lost += 1
                node.granted.pop(lease_id, None)  # unless it was returned meanwhile
            case loan.TellLender(lender_id, message):
                self.say_to_lender(node, lender_id, message)
            case loan.TellBorrower(borrower_id, message):
                self.say_to_borrower(node, borrower_id, message)
            case loan.Lend(borrower_id, ask_id, lease_id, worker_id):
                granted = loans.Granted(ask_id, lease_id, worker_id, "unix:/w", 1)
                self.say_to_borrower(node, borrower_id, granted)
            case loan.ReportLoss(borrower_id, ask_id):
                ended = loans.Ended(ask_id, loans.Cause("signaled", "killed"))
                self.say_to_borrower(node, borrower_id, ended)
            case _:
                quiet = (do.AskLeaseBack, do.TellOthersWait, loan.HangUp)
                assert isinstance(command, quiet), command

    def grant(
        self, node: Node, holder_id: bytes, request_id: int, lease_id: bytes, worker_id: bytes
    ) -> None:
        if holder_id == node.driver and not node.has_driver:
            return  # its end is on the way
        assert holder_id == node.driver, "granted to a holder of another node"
        assert request_id in node.asked, "granted what was not asked, or twice"
        del node.asked[request_id]
        users = [w for other in self.alive() for w in other.granted.values()]
        assert worker_id not in users, "one worker serves two holders"
        node.granted[lease_id] = worker_id
        self.grants += 1

    # ---- lines ----

    def say_to_lender(self, node: Node, lender_id: bytes, message: Any) -> None:
        line = (node.node_id, lender_id)
        if line not in self.is_open:
            self.is_open[line] = False
            self.post(node.node_id, lambda: self.connect(line))
        elif self.is_open[line]:
            self.send(lender_id, loan.BorrowerSaid(node.node_id, message))

    def say_to_borrower(self, node: Node, borrower_id: bytes, message: Any) -> None:
        if self.is_open.get((borrower_id, node.node_id)):
            self.send(borrower_id, loan.LenderSaid(node.node_id, message))

    def send(self, to: bytes, event: Any) -> None:
        while True:
            if self.random.random() >= self.loss:
                self.post(to, event)
            if self.random.random() >= self.loss:
                return

    def post(self, to: bytes, event: Any) -> None:
        self.numbers += 1
        at_s = self.now_s + self.random.uniform(0.0, LINE_S if self.loss else 0.01)
        self.under_way.append((at_s, self.numbers, to, event))

    def connect(self, line: tuple[bytes, bytes]) -> None:
        borrower, lender = (self.nodes[node_id] for node_id in line)
        if not borrower.is_alive or self.is_open[line]:
            return
        if not lender.is_alive or self.random.random() < self.loss:
            self.tell(borrower, loan.LenderLost(lender.node_id))
            if lender.is_alive:
                self.post(borrower.node_id, lambda: self.connect(line))
            return
        self.is_open[line] = True
        self.tell(borrower, loan.LenderConnected(lender.node_id))

    def break_line(self) -> None:
        lines = [line for line, is_open in self.is_open.items() if is_open]
        if lines:
            self.close_line(self.random.choice(lines))

    def close_line(self, line: tuple[bytes, bytes]) -> None:
        self.is_open[line] = False
        borrower, lender = (self.nodes[node_id] for node_id in line)
        self.tell(lender, loan.BorrowerLost(borrower.node_id))
        self.tell(borrower, loan.LenderLost(lender.node_id))
        if lender.is_alive:
            self.post(borrower.node_id, lambda: self.connect(line))

    def resync(self) -> None:
        """Every line is opened anew, as after a break."""
        for line, is_open in list(self.is_open.items()):
            if is_open:
                self.tell(self.nodes[line[0]], loan.LenderConnected(line[1]))

    def deliver(self, until_s: float) -> None:
        while self.under_way:
            first = min(self.under_way)[:2]
            if first[0] > until_s:
                return
            (item,) = (item for item in self.under_way if item[:2] == first)
            self.under_way.remove(item)
            self.now_s = max(self.now_s, item[0])
            if callable(item[3]):
                item[3]()
            else:
                self.tell(self.nodes[item[2]], item[3])

    def publish_all(self) -> None:
        for node in self.alive():
            view = NodeView(node.node_id, node.total, node.machine.available, node.labels)
            for other in self.alive():
                if other is not node:
                    self.post(other.node_id, loan.NodeSeen(view))

    # ---- what may happen ----

    def request(self) -> None:
        node = self.random.choice(self.alive())
        if not node.has_driver or len(node.asked) > 8:
            return
        self.numbers += 1
        shape = self.random.choice(SHAPES)
        strategy = on.DEFAULT_STRATEGY
        if self.random.random() < 0.2:
            other = self.random.choice(self.alive())
            strategy = on.Strategy(node_id=other.node_id, is_soft=True)
        elif self.random.random() < 0.2:
            strategy = on.Strategy(is_spread=True)
        elif self.random.random() < 0.3:
            zones = self.random.sample(["a", "!a", "b", ""], 2)
            selectors = tuple(LabelSelector.parse({"zone": zone} if zone else {}) for zone in zones)
            strategy = on.Strategy(labels=LabelRules(selectors[:1], selectors[1]))
            if self.random.random() < 0.5:
                strategy = on.Strategy(labels=LabelRules(selectors))
        near: tuple[tuple[bytes, int], ...] = ()
        if self.random.random() < 0.3:
            near = ((self.random.choice(list(self.nodes)), 9),)
        node.asked[self.numbers] = None
        needs = ResourceSet.from_amounts(shape)
        event = on.LeaseRequested(
            node.driver, self.numbers, JOB, needs, strategy=strategy, near=near
        )
        self.tell(node, event)
        if self.random.random() < 0.1:
            self.tell(node, event)

    def cancel(self) -> None:
        node = self.random.choice(self.alive())
        if node.asked:
            request_id = self.random.choice(list(node.asked))
            del node.asked[request_id]
            self.tell(node, on.LeaseRequestCancelled(node.driver, request_id))

    def give_back(self) -> None:
        node = self.random.choice(self.alive())
        if node.granted:
            lease_id = self.random.choice(list(node.granted))
            del node.granted[lease_id]
            event = on.LeaseReturned(node.driver, lease_id, self.random.random() < 0.1)
            self.tell(node, event)
            if self.random.random() < 0.1:
                self.tell(node, event)

    def kill_one(self) -> None:
        node = self.random.choice(self.alive())
        if node.granted:
            lease_id = self.random.choice(list(node.granted))
            self.tell(node, loan.BorrowedKilled(node.driver, lease_id, "killed"))

    def register(self) -> None:
        for node in self.alive():
            for startup_id, worker_id in list(node.processes.items()):
                if worker_id or self.random.random() < 0.3:
                    continue
                if self.random.random() < 0.05:
                    del node.processes[startup_id]
                    node.ending.pop(startup_id, None)
                    self.tell(node, on.WorkerStartFailed(startup_id, "failed", True))
                    continue
                name = b"%s-w%d" % (node.node_id, startup_id)
                node.processes[startup_id] = name
                self.tell(node, on.WorkerRegistered(startup_id, name))

    def end_workers(self) -> None:
        for node in self.alive():
            for startup_id in list(node.ending):
                del node.ending[startup_id]
                self.end_worker(node, startup_id)

    def crash_worker(self) -> None:
        node = self.random.choice(self.alive())
        alive = [number for number, worker_id in node.processes.items() if worker_id]
        if alive:
            startup_id = self.random.choice(alive)
            node.ending.pop(startup_id, None)
            self.end_worker(node, startup_id)

    def end_worker(self, node: Node, startup_id: int) -> None:
        worker_id = node.processes.pop(startup_id)
        if worker_id:
            self.tell(node, on.WorkerGone(startup_id, worker_id))
        else:
            self.tell(node, on.WorkerStartFailed(startup_id, "ended while it started", False))

    def lose_driver(self) -> None:
        node = self.random.choice(self.alive())
        if node.has_driver:
            node.has_driver = False
            node.asked.clear()
            node.granted.clear()
            self.tell(node, on.HolderGone(node.driver))

    def kill_node(self) -> None:
        if len(self.alive()) < 2:
            return
        node = self.random.choice(self.alive())
        node.is_alive = False
        for line, is_open in list(self.is_open.items()):
            if is_open and node.node_id in line:
                self.close_line(line)
        gone = loan.NodeGone(node.node_id, loans.Cause("node_died", "killed"))
        for other in self.alive():
            self.post(other.node_id, gone)

    def pass_time(self) -> None:
        self.deliver(self.now_s + self.random.choice([0.01, 0.1, 1.0]))
        self.wake()

    def wake(self) -> None:
        for node in self.alive():
            due = node.machine.next_wakeup(self.now_s)
            if due is not None and due[0] <= self.now_s:
                self.tell(node, on.TimePassed())

    def run(self) -> None:
        deeds: list[tuple[Callable[[], None], int]] = [
            (self.request, 14),
            (self.cancel, 2),
            (self.give_back, 10),
            (self.kill_one, 1),
            (self.register, 12),
            (self.end_workers, 6),
            (self.crash_worker, 1),
            (self.publish_all, 4),
            (self.pass_time, 14),
        ]
        rare: list[Callable[[], None]] = [self.break_line] * 6 + [self.lose_driver, self.kill_node]
        choices = [deed for deed, weight in deeds for _ in range(weight)]
        for _ in range(STEPS):
            self.random.choice(choices)()
            if self.loss and self.random.random() < 0.02:
                self.random.choice(rare)()
            self.now_s += 0.01

    def settle(self, duration_s: float) -> None:
        """Let time pass with lines that lose nothing more; what they lost is found once."""
        if self.loss:
            self.loss = 0.0
            self.deliver(self.now_s + 2 * LINE_S)
            self.resync()
        end_s = self.now_s + duration_s
        while self.now_s < end_s:
            self.publish_all()
            self.deliver(self.now_s + 0.5)
            self.now_s += 0.5
            self.wake()
            self.register()
            self.end_workers()

    def assert_served(self) -> None:
        """Whoever asked, and whose request some live node could hold, gets it when others leave."""
        for _ in range(200):
            if not any(node.asked for node in self.alive()):
                return
            for node in self.alive():
                for lease_id in list(node.granted):
                    del node.granted[lease_id]
                    self.tell(node, on.LeaseReturned(node.driver, lease_id))
            for node in self.alive():
                for request, _ in list(node.machine._leases.movable()):
                    needs, labels = request.resources, request.strategy.labels
                    if not any(
                        needs.fits_in(other.total) and labels.allow(other.labels)
                        for other in self.alive()
                    ):
                        node.asked.pop(request.request_id, None)
                        gone = on.LeaseRequestCancelled(node.driver, request.request_id)
                        self.tell(node, gone)
            self.settle(1.0)
        pytest.fail(f"not served: {[node.asked for node in self.alive()]}")

    def assert_nothing_is_left(self) -> None:
        for node in self.alive():
            node.has_driver = False
            node.asked.clear()
            node.granted.clear()
            self.tell(node, on.HolderGone(node.driver))
            self.tell(node, on.JobFinished(JOB))
        self.settle(FOREVER_S)
        for node in self.alive():
            statistics = node.machine.statistics()
            assert node.machine.leases() == []
            assert node.machine.available == node.total
            assert (statistics.borrowed, statistics.asked_elsewhere, statistics.lent) == (0, 0, 0)
            assert statistics.waiting == 0
            assert node.processes == {}
            assert node.machine.next_wakeup(self.now_s) is None


def play(seed: int, **options: Any) -> World:
    world = World(seed, **options)
    try:
        world.run()
        world.settle(FOREVER_S)
        world.assert_served()
        world.assert_nothing_is_left()
    except AssertionError:
        print("\n".join(world.log[-80:]))
        raise
    return world


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
@pytest.mark.invariant("I14", "I1")
def test_lending_world_keeps_its_promises(seed: int) -> None:
    play(seed)


@pytest.mark.parametrize("seed", range(10), ids=lambda seed: f"seed-{seed}")
def test_lending_world_with_perfect_lines_loses_no_lease_to_them(seed: int) -> None:
    world = play(seed, loss=0.0, count=3)
    assert world.far_grants > 0


def test_lending_world_same_seed_gives_the_same_history() -> None:
    assert play(3).log == play(3).log


def test_lending_worlds_together_lend_lose_and_grant() -> None:
    worlds = [play(seed) for seed in range(100, 110)]
    assert sum(world.far_grants for world in worlds) > 50
    assert sum(world.lost for world in worlds) > 10
