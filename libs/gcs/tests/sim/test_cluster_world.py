"""A seeded cluster around one machine: nodes that crash, messages that are lost, doubled and late.

Every event is followed by a check of the machine's invariants (the World does that); this module
checks what the machine cannot see: that at no time two workers of one actor were told to go on
under the same number, that numbers only grow, and that after the last fault everything comes to
rest: every actor runs exactly where its row says or is dead for a reason, and no process is left
over.

A failing seed is run alone with ``-k "[17]"``; ``cluster.trace`` then holds one line per step.
"""

from __future__ import annotations

import heapq
import itertools

import pytest

from skate_gcs.machine import GcsLimits
from skate_gcs.machine.answers import Accepted, ActorAssigned
from skate_gcs.machine.events import (
    ActorFailed,
    ActorKilled,
    ActorRegistered,
    ActorReleased,
    ActorStarted,
    JobFinished,
    KillAnswered,
    ListActors,
    StartAnswered,
    StartUnanswered,
    WorkerDied,
)
from skate_gcs.machine.records import (
    ActorState,
    Address,
    DeathCause,
    DeathKind,
    WorkerRecord,
)

SEEDS = [*range(40), 1233]  # 1233: an order that was refused once and taken once
STEPS = 150
REST_S = 60.0

LIMITS = GcsLimits(node_suspect_s=1.0, node_dead_s=3.0, actors_dead_max=50, nodes_dead_max=5)


class SimNode:
    """A raylet: does what it is told, reports until it is heard, exits when it is fenced."""

    def __init__(self, node_id):
        self.node_id = node_id
        self.version = 0
        self.is_up = True
        self.is_cut = False  # from the GCS
        self.workers = {}  # (actor, incarnation) -> worker id
        self.seen = set()  # (actor, incarnation) that were ever started here
        self.slots = 6


class Cluster:
    def __init__(self, make_world, seed):
        self.world = make_world(LIMITS, seed)
        self.random = self.world.random
        self.nodes = {}
        self.agenda = []  # (time, number, action)
        self.numbers = itertools.count()
        self.accepted = {}  # (actor, incarnation) -> worker
        self.highest = {}  # actor -> last accepted incarnation
        self.jobs = []
        self.owners = []
        self.has_faults = True
        self.life = 0  # of the GCS: grows with each crash
        self.trace = []

    # ---- time and messages ----

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
        self.world.advance(max(end_s - self.world.now_s, 0.0))
        self.carry_orders()

    def carry_orders(self):
        self.world.forgotten.clear()
        while self.world.starts:
            self.send_start(self.world.starts.pop(0))
        while self.world.kills:
            self.send_kill(self.world.kills.pop(0))

    def handle(self, event):
        """The answer, or None when the GCS crashed after its commit and before anything else."""
        answer = self.world.handle(event)
        self.trace.append(f"{self.world.now_s:8.2f} {event} -> {answer}")
        if self.chance(0.02):
            self.world.starts.clear()
            self.world.kills.clear()
            self.crash_gcs()
            return None
        self.carry_orders()
        return answer

    def crash_gcs(self):
        """What was stored lazily may be lost, and every order and answer under way with it."""
        self.life += 1
        self.trace.append(f"{self.world.now_s:8.2f} crash")
        self.world.restart(keeps_lazy=self.random.random() < 0.5)
        self.carry_orders()

    def reply(self, event, delay_s=None):
        """Hand an order's outcome to the GCS that gave it; another life has not asked."""
        life = self.life
        self.later(lambda: life == self.life and self.handle(event), delay_s)

    # ---- orders ----

    def send_start(self, order):
        node = self.nodes[order.node_id]
        key = (order.spec.actor_id, order.incarnation)
        unanswered = StartUnanswered(order.node_id, *key, problem="lost")
        if not node.is_up or node.is_cut or self.chance(0.1):
            self.reply(unanswered, 0.5)
            return
        life = self.life

        def arrive():
            if life != self.life and self.chance(0.5):
                return
            refusal = self.start_on(node, key) if node.is_up else "down"
            if not node.is_up or self.chance(0.1):
                self.reply(unanswered, 0.5)
            else:
                self.reply(StartAnswered(node.node_id, *key, refusal=refusal))

        self.later(arrive)
        if self.chance(0.1):
            self.later(lambda: node.is_up and self.start_on(node, key))

    def start_on(self, node, key):
        """Idempotent by key, as RayletService.StartActor promises. Returns the refusal."""
        if key in node.seen:
            return None
        if len(node.workers) >= node.slots or self.chance(0.1):
            return "full"
        node.seen.add(key)
        worker_id = self.world.id(28)
        node.workers[key] = worker_id
        if self.chance(0.1):
            kind = self.random.choice([DeathKind.CREATION_FAILED, DeathKind.SIGNALED])
            self.later(lambda: self.lose_worker(node, key, kind))
        else:
            self.later(lambda: self.report_started(node, key, worker_id))
        return None

    def send_kill(self, order):
        node = self.nodes[order.node_id]
        key = (order.actor_id, order.incarnation)

        life = self.life

        def arrive():
            if life != self.life and self.chance(0.5):
                return
            is_done = node.is_up and not node.is_cut
            if is_done:
                node.seen.add(key)  # a start that is still on its way comes too late
                if key in node.workers:
                    self.later(lambda: self.lose_worker(node, key, DeathKind.SIGNALED))
            is_done = is_done and not self.chance(0.2)
            self.reply(KillAnswered(node.node_id, *key, is_done=is_done))

        self.later(arrive)

    # ---- reports ----

    def report(self, node, event, on_answer=lambda answer: None):
        """At least once: lost, doubled, and repeated until it is heard or the node is down."""
        if not node.is_up:
            return
        if node.is_cut or self.chance(0.1):
            self.later(lambda: self.report(node, event, on_answer), 0.4)
            return
        answer = self.handle(event)
        if answer is None or self.chance(0.1):
            self.later(lambda: self.report(node, event, on_answer))
        if answer is not None:
            on_answer(answer)

    def report_started(self, node, key, worker_id):
        if node.workers.get(key) != worker_id:
            return
        event = ActorStarted(*key, Address(node.node_id, worker_id, "unix:/w"), 1)

        def on_answer(answer):
            assert isinstance(answer, Accepted)
            if answer.value:
                self.note_accepted(key, worker_id)
            elif node.workers.get(key) == worker_id:
                self.lose_worker(node, key, DeathKind.SIGNALED)

        self.report(node, event, on_answer)

    def note_accepted(self, key, worker_id):
        assert self.accepted.setdefault(key, worker_id) == worker_id, "two workers, one number"
        actor_id, incarnation = key
        (row,) = [row for row in self.rows() if row.spec.actor_id == actor_id]
        assert row.life.state is ActorState.ALIVE
        assert (row.life.incarnation, row.life.address.worker_id) == (incarnation, worker_id)
        assert self.highest.get(actor_id, -1) <= incarnation, "numbers only grow"
        self.highest[actor_id] = incarnation

    def lose_worker(self, node, key, kind):
        worker_id = node.workers.pop(key, None)
        if worker_id is None:
            return
        error = b"error" if kind is DeathKind.CREATION_FAILED else b""
        self.report(node, ActorFailed(*key, DeathCause(kind), error))
        self.report(node, WorkerDied(WorkerRecord(worker_id, node.node_id)))

    def beat(self, node):
        if not node.is_up:
            return
        node.version += 1
        if not node.is_cut and not self.chance(0.05):
            free = max(node.slots - len(node.workers), 0) * 10_000
            if not self.world.report(node.node_id, node.version, {"CPU": free}, {"CPU": 60_000}):
                self.crash(node)  # fenced
                return
            self.carry_orders()
        self.later(lambda: self.beat(node), 0.5)

    # ---- what happens ----

    def add_node(self):
        node = SimNode(self.world.add_node(cpus=6, beats=False))
        self.nodes[node.node_id] = node
        self.carry_orders()
        self.later(lambda: self.beat(node), 0.5)

    def crash(self, node):
        node.is_up = False
        node.workers.clear()

    def up_nodes(self):
        return [node for node in self.nodes.values() if node.is_up]

    def rows(self):
        return self.world.handle(ListActors()).records

    def register(self):
        owner = self.random.choice(self.owners)
        workers = [
            (node.node_id, worker_id)
            for node in self.up_nodes()
            for worker_id in node.workers.values()
        ]
        if workers and self.random.random() < 0.3:
            node_id, worker_id = self.random.choice(workers)
            owner = Address(node_id, worker_id)
        spec = self.world.spec(
            owner=owner,
            job_id=self.random.choice(self.jobs)[0],
            name=self.random.choice(["", "a", "b"]),
            is_detached=self.random.random() < 0.3,
            max_restarts=self.random.choice([0, 1, 3, -1]),
            placement_resources={"CPU": self.random.choice([10_000, 20_000])},
        )
        for _ in range(1 + self.chance(0.2)):
            answer = self.handle(ActorRegistered(spec, bool(spec.name)))
            assert answer is None or isinstance(answer, ActorAssigned)

    def step(self):
        live = [row for row in self.rows() if not row.is_dead]
        choice = self.random.choices(
            ["register", "crash_worker", "kill", "release", "crash_node", "cut", "job", "restart"],
            [30, 20, 8, 8, 2, 2, 2, 4],
        )[0]
        actor = self.random.choice(live) if live else None
        up = self.up_nodes()
        match choice:
            case "register":
                self.register()
            case "crash_worker":
                node = self.random.choice(up) if up else None
                if node is not None and node.workers:
                    key = self.random.choice(list(node.workers))
                    kind = self.random.choice([DeathKind.SIGNALED, DeathKind.INTENDED_EXIT])
                    self.lose_worker(node, key, kind)
            case "kill" if actor is not None:
                event = ActorKilled(actor.spec.actor_id, self.random.random() < 0.5, None)
                self.handle(event)
            case "release" if actor is not None:
                self.handle(ActorReleased(actor.spec.actor_id))
            case "crash_node" if up:
                self.crash(self.random.choice(up))
                self.later(self.add_node, 1.0)
            case "cut" if up:
                node = self.random.choice(up)
                node.is_cut = True
                self.later(lambda: setattr(node, "is_cut", False), self.random.uniform(0.5, 6.0))
            case "job":
                self.add_job()
                job_id, _ = self.jobs.pop(0)
                self.handle(JobFinished(job_id, DeathCause()))
            case "restart":
                self.crash_gcs()

    def add_job(self):
        driver = self.world.id(28)
        self.jobs.append((self.world.add_job(worker_id=driver), driver))
        self.owners = [Address(b"", driver) for _, driver in self.jobs]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.invariant("I1", "I10", "I11")
def test_cluster_with_faults_comes_to_rest(make_world, seed):
    cluster = Cluster(make_world, seed)
    for _ in range(3):
        cluster.add_node()
        cluster.add_job()
    for _ in range(STEPS):
        cluster.step()
        cluster.run(cluster.random.uniform(0.0, 0.4))
    cluster.has_faults = False
    for node in cluster.nodes.values():
        node.is_cut = False
    for _ in range(6):
        cluster.add_node()  # room for everybody
    cluster.run(REST_S)
    assert_at_rest(cluster)
    cluster.world.restart()
    cluster.carry_orders()
    cluster.run(REST_S)
    assert_at_rest(cluster)


def assert_at_rest(cluster):
    processes = {key: node.node_id for node in cluster.up_nodes() for key in node.workers}
    for row in cluster.rows():
        key = (row.spec.actor_id, row.life.incarnation)
        assert row.life.state in {ActorState.ALIVE, ActorState.DEAD}, (row, cluster.trace[-20:])
        if row.life.state is ActorState.ALIVE:
            assert processes.pop(key) == row.life.node_id
    assert processes == {}, "processes of no actor are left"
    names = [
        (row.spec.namespace, row.spec.name)
        for row in cluster.rows()
        if row.spec.name and not row.is_dead
    ]
    assert len(names) == len(set(names))
    assert cluster.world.machine.statistics().kill_orders == 0


def test_same_seed_gives_the_same_trace(make_world):
    traces = []
    for _ in range(2):
        cluster = Cluster(make_world, 7)
        for _ in range(3):
            cluster.add_node()
            cluster.add_job()
        for _ in range(40):
            cluster.step()
            cluster.run(0.2)
        traces.append(cluster.trace)
    assert traces[0] == traces[1]
    assert len(traces[0]) > 40
