"""A seeded cluster of nodes with bundles around one machine: messages are lost, doubled and late.

The nodes do what ``skate_raylet.machine.bundle_table`` promises: they take an attempt of a group
that is not older than what they were told to give back, and report what they hold. Checked are
RELIABILITY I13 (all bundles or none; nothing is held for more than five seconds by a group that is
neither pending nor created) and, with crashes of the GCS in between, I14.

A failing seed is run alone with ``-k "[17]"``; ``cluster.trace`` then holds one line per step.
"""

from __future__ import annotations

import heapq
import itertools

import pytest

from skate_gcs.machine import GcsLimits
from skate_gcs.machine.commands import (
    CommitBundlesOnNode,
    PrepareBundlesOnNode,
    ReturnBundlesOnNode,
)
from skate_gcs.machine.events import (
    BundlesCommitted,
    BundlesPrepared,
    GroupCreated,
    GroupRemoved,
    ListGroups,
    ListNodes,
    ResourcesReported,
)
from skate_gcs.machine.records import BundleRef
from skate_gcs.machine.records import PlacementGroupState as State

SEEDS = range(30)
STEPS = 80
REST_S = 15.0
STALE_MAX_S = 5.0
CPUS = 8

LIMITS = GcsLimits(node_suspect_s=1.0, node_dead_s=3.0, groups_removed_max=50, nodes_dead_max=50)


class SimNode:
    def __init__(self, node_id):
        self.node_id = node_id
        self.version = 0
        self.is_up = True
        self.is_cut = False
        self.bundles = {}  # (group, index) -> [attempt, units, is_open]
        self.floors = {}  # group -> attempts up to this one were given back
        self.stale_since_s = {}  # (group, index, attempt) -> when it was first seen to be stale

    @property
    def free(self):
        return CPUS * 10_000 - sum(units for _, units, _ in self.bundles.values())

    def prepare(self, order):
        held = {
            index
            for index in order.bundles
            if self.bundles.get((order.group_id, index), [None])[0] == order.attempt
        }
        if held != set(order.bundles):
            if order.attempt <= self.floors.get(order.group_id, 0):
                return "it was given back"
            if held or sum(one["CPU"] for one in order.bundles.values()) > self.free:
                return "no room"
            for index, amounts in order.bundles.items():
                self.bundles[order.group_id, index] = [order.attempt, amounts["CPU"], False]
        if order.commits:
            for index in order.bundles:
                self.bundles[order.group_id, index][2] = True
        return ""

    def commit(self, ref):
        keys = [(ref.group_id, index) for index in ref.indices]
        if any(self.bundles.get(key, [None])[0] != ref.attempt for key in keys):
            return False
        for key in keys:
            self.bundles[key][2] = True
        return True

    def give_back(self, ref):
        self.floors[ref.group_id] = max(self.floors.get(ref.group_id, 0), ref.attempt)
        for index in ref.indices:
            bundle = self.bundles.get((ref.group_id, index))
            if bundle is not None and bundle[0] <= ref.attempt:
                del self.bundles[ref.group_id, index]

    def held(self):
        refs = {}
        for (group_id, index), (attempt, _, _) in sorted(self.bundles.items()):
            refs.setdefault((group_id, attempt), []).append(index)
        return tuple(BundleRef(*key, tuple(indices)) for key, indices in refs.items())


class Cluster:
    def __init__(self, make_world, seed):
        self.world = make_world(LIMITS, seed)
        self.random = self.world.random
        self.nodes = {}
        self.agenda = []
        self.numbers = itertools.count()
        self.has_faults = True
        self.life = 0
        self.checked_s = 0.0
        self.job_id = self.world.add_job()
        self.groups = []
        self.trace = []

    def later(self, action, delay_s=None):
        delay_s = self.random.uniform(0.0, 0.3) if delay_s is None else delay_s
        heapq.heappush(self.agenda, (self.world.now_s + delay_s, next(self.numbers), action))

    def chance(self, share):
        return self.has_faults and self.random.random() < share

    def run(self, seconds):
        end_s = self.world.now_s + seconds
        while self.agenda and self.agenda[0][0] <= end_s:
            at_s, _, action = heapq.heappop(self.agenda)
            self.world.advance(max(at_s - self.world.now_s, 0.0))
            action()
            self.carry_orders()
            if self.world.now_s > self.checked_s + 0.05:
                self.checked_s = self.world.now_s
                self.check()
        self.world.advance(max(end_s - self.world.now_s, 0.0))
        self.carry_orders()

    def carry_orders(self):
        world = self.world
        world.forgotten.clear()
        world.probes.clear()
        orders = world.prepares + world.commits_asked + world.returns
        world.prepares, world.commits_asked, world.returns = [], [], []
        for order in orders:
            self.send(order)

    def handle(self, event):
        answer = self.world.handle(event)
        self.trace.append(f"{self.world.now_s:8.2f} {event} -> {answer}")
        if self.chance(0.02):
            self.world.prepares, self.world.commits_asked, self.world.returns = [], [], []
            self.life += 1
            self.trace.append(f"{self.world.now_s:8.2f} crash")
            self.world.restart(keeps_lazy=self.random.random() < 0.5)
            self.carry_orders()
            return None
        self.carry_orders()
        return answer

    # ---- orders: lost on the way there, lost on the way back, doubled, late ----

    def send(self, order):
        life = self.life
        if self.chance(0.1):
            self.later(lambda: self.answer(order, None, life), 0.5)
        else:
            self.later(lambda: self.answer(order, self.deliver(order), life))
        if self.chance(0.15):
            self.later(lambda: self.deliver(order), self.random.uniform(0.0, 3.0))

    def deliver(self, order):
        """The node does what it is told; None: it can not be reached."""
        node = self.nodes[order.node_id]
        if not node.is_up or node.is_cut:
            return None
        match order:
            case PrepareBundlesOnNode():
                return node.prepare(order)
            case CommitBundlesOnNode():
                return node.commit(order.ref)
            case ReturnBundlesOnNode():
                return node.give_back(order.ref)

    def answer(self, order, outcome, life):
        """What the GCS hears of it; another life has not asked."""
        is_lost = outcome is None or self.chance(0.1)
        match order:
            case PrepareBundlesOnNode(node_id, _, group_id, attempt):
                event = BundlesPrepared(
                    node_id, group_id, attempt, "no answer" if is_lost else outcome
                )
            case CommitBundlesOnNode(node_id, _, ref):
                event = BundlesCommitted(
                    node_id,
                    ref.group_id,
                    ref.attempt,
                    is_done=bool(outcome) and not is_lost,
                    is_lost=outcome is False and not is_lost,
                )
            case ReturnBundlesOnNode():
                return
        self.later(lambda: life == self.life and self.handle(event))

    def beat(self, node):
        if not node.is_up:
            return
        node.version += 1
        if not node.is_cut and not self.chance(0.1):
            event = ResourcesReported(
                node.node_id,
                node.version,
                {"CPU": node.free},
                {"CPU": CPUS * 10_000},
                node.held() if node.version % 2 else None,
            )

            def arrive():
                answer = self.handle(event)
                if answer is None or self.chance(0.1) or not node.is_up:
                    return
                if not answer.value:
                    self.crash(node)  # fenced
                for ref in answer.stale_bundles:
                    node.give_back(ref)

            self.later(arrive, self.random.uniform(0.0, 0.2))
        self.later(lambda: self.beat(node), 0.5)

    # ---- what is checked all the time ----

    def rows(self):
        (reply,) = self.world.machine.handle(ListGroups(), self.world.now)
        return {row.spec.group_id: row for row in reply.answer.records}

    def check(self):
        rows = self.rows()
        for node in self.nodes.values():
            assert node.free >= 0
            stale = {}
            for (group_id, index), (attempt, _, is_open) in node.bundles.items():
                row = rows.get(group_id)
                is_known = (
                    row is not None
                    and row.node_ids[index] == node.node_id
                    and row.attempts[index] == attempt
                )
                # Open means that all were set aside, and only a node's death undoes that.
                assert (
                    not (is_open and is_known)
                    or row.state is not State.PENDING
                    or (len(set(row.node_ids)) == 1)
                )
                if not is_known and node.is_up and not node.is_cut:
                    key = (group_id, index, attempt)
                    stale[key] = node.stale_since_s.get(key, self.world.now_s)
                    # While messages are being lost, chance may take longer than the bound.
                    late_s = self.world.now_s - stale[key]
                    assert self.has_faults or late_s <= STALE_MAX_S, (key, self.trace[-20:])
            node.stale_since_s = stale
        for row in rows.values():
            if row.state is State.CREATED:
                for index, node_id in enumerate(row.node_ids):
                    node = self.nodes[node_id]
                    bundle = node.bundles.get((row.spec.group_id, index))
                    assert not node.is_up or (bundle and bundle[0] == row.attempts[index])
                    assert not node.is_up or bundle[2], "created, and not open everywhere"

    # ---- what happens ----

    def add_node(self):
        node = SimNode(self.world.add_node(cpus=CPUS, beats=False))
        self.nodes[node.node_id] = node
        self.carry_orders()
        self.later(lambda: self.beat(node), 0.3)

    def crash(self, node):
        node.is_up = False
        node.bundles.clear()

    def step(self):
        up = [node for node in self.nodes.values() if node.is_up]
        choice = self.random.choices(
            ["create", "remove", "crash_node", "cut", "restart"], [30, 20, 4, 4, 4]
        )[0]
        match choice:
            case "create":
                cpus = [self.random.choice([1, 1, 2]) for _ in range(self.random.randint(1, 4))]
                strategy = self.random.choice(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"])
                spec = self.world.group_spec(*cpus, strategy=strategy, job_id=self.job_id)
                self.groups.append(spec.group_id)
                for _ in range(1 + self.chance(0.2)):
                    self.handle(GroupCreated(spec))
            case "remove" if self.groups:
                group_id = self.random.choice(self.groups)
                if self.random.random() < 0.7:
                    group_id = self.groups.pop(0)
                self.handle(GroupRemoved(group_id, ""))
            case "crash_node" if len(up) > 1:
                self.crash(self.random.choice(up))
                self.later(self.add_node, 1.0)
            case "cut" if up:
                node = self.random.choice(up)
                node.is_cut = True
                self.later(lambda: setattr(node, "is_cut", False), self.random.uniform(0.5, 5.0))
            case "restart":
                self.life += 1
                self.world.restart()
                self.carry_orders()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.invariant("I13", "I14")
def test_groups_are_whole_or_nothing_whatever_is_lost(make_world, seed):
    cluster = Cluster(make_world, seed)
    for _ in range(4):
        cluster.add_node()
    for _ in range(STEPS):
        cluster.step()
        cluster.run(cluster.random.uniform(0.0, 0.3))
    cluster.has_faults = False
    for node in cluster.nodes.values():
        node.is_cut = False
        node.stale_since_s.clear()
    cluster.run(REST_S)
    rows = cluster.rows()
    live = [row for row in rows.values() if not row.is_removed]
    units = sum(one.resources["CPU"] for row in live for one in row.spec.bundles)
    for _ in range(4 + units // (CPUS * 5_000)):
        cluster.add_node()  # room for everybody
    cluster.run(REST_S)
    rows = cluster.rows()
    expected = {}
    for row in rows.values():
        assert row.state in {State.CREATED, State.REMOVED}, (row, cluster.trace[-20:])
        for index, node_id in enumerate(row.node_ids):
            if node_id:
                expected.setdefault(node_id, set()).add((row.spec.group_id, index))
    for node in cluster.nodes.values():
        if node.is_up:
            assert set(node.bundles) == expected.pop(node.node_id, set())
    assert expected == {}
    for node in cluster.world.handle(ListNodes()).records:
        if node.is_alive:
            assert node.available.get("CPU", 0) == cluster.nodes[node.node_id].free


def test_same_seed_gives_the_same_trace(make_world):
    traces = []
    for _ in range(2):
        cluster = Cluster(make_world, 7)
        for _ in range(3):
            cluster.add_node()
        for _ in range(40):
            cluster.step()
            cluster.run(0.2)
        traces.append(cluster.trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 40


class OneFault(Cluster):
    """Nothing goes wrong but the order number ``k``: it, or its answer, is lost, or it comes twice,
    the second time after everything else.
    """

    def __init__(self, make_world, k, mode):
        super().__init__(make_world, 0)
        self.has_faults = False
        self.left = k
        self.mode = mode

    def send(self, order):
        self.left -= 1
        if self.left != -1:
            super().send(order)
        elif self.mode == "request lost":
            self.later(lambda: self.answer(order, None, self.life), 0.5)
        elif self.mode == "answer lost":
            self.later(lambda: (self.deliver(order), self.answer(order, None, self.life)), 0.5)
        else:
            super().send(order)
            self.later(lambda: self.deliver(order), 4.0)


@pytest.mark.parametrize("mode", ["request lost", "answer lost", "twice"])
@pytest.mark.parametrize("is_removed_early", [False, True], ids=["removed", "removed at once"])
@pytest.mark.invariant("I13")
def test_each_order_of_a_groups_life_may_be_lost_or_come_twice(make_world, is_removed_early, mode):
    """Prepare, commit and give back on three nodes: nine orders, each of them in each mode."""
    k = 0
    while True:
        cluster = OneFault(make_world, k, mode)
        for _ in range(3):
            cluster.add_node()
        group_id = cluster.world.group_spec(2, 2, 2, strategy="STRICT_SPREAD").group_id
        spec = cluster.world.group_spec(
            2, 2, 2, strategy="STRICT_SPREAD", group_id=group_id, job_id=cluster.job_id
        )
        cluster.handle(GroupCreated(spec))
        cluster.run(0.15 if is_removed_early else 10.0)
        if not is_removed_early:
            assert cluster.rows()[group_id].state is State.CREATED, (k, cluster.trace[-20:])
        cluster.handle(GroupRemoved(group_id, ""))
        cluster.run(STALE_MAX_S)
        for node in cluster.nodes.values():
            assert node.bundles == {}, (k, cluster.trace[-20:])
        assert cluster.rows()[group_id].state is State.REMOVED
        if cluster.left > 0:
            break  # there were not so many orders
        k += 1
    assert k >= (6 if is_removed_early else 9)
