"""A machine with a clock, a store and eyes on its commands, for the tests of this library."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import pytest

from skate_gcs.machine import GcsLimits, GcsMachine, Now, SavedState
from skate_gcs.machine.answers import (
    Accepted,
    ActorAssigned,
    Answer,
    GroupRegistered,
    JobAssigned,
    Refused,
    Reported,
)
from skate_gcs.machine.commands import (
    Command,
    CommitBundlesOnNode,
    ForgetNode,
    KillActorOnNode,
    Persist,
    PrepareBundlesOnNode,
    ProbeNode,
    Publish,
    Reply,
    ReturnBundlesOnNode,
    StartActorOnNode,
    Table,
)
from skate_gcs.machine.events import (
    ActorFailed,
    ActorRegistered,
    ActorStarted,
    BundlesCommitted,
    BundlesPrepared,
    Event,
    GetActor,
    GetGroup,
    GetNamedActor,
    GroupCreated,
    GroupRemoved,
    JobAdded,
    ListNodes,
    NodeRegistered,
    Request,
    ResourcesReported,
    StartAnswered,
    Tick,
)
from skate_gcs.machine.records import (
    ActorRecord,
    ActorSpec,
    ActorState,
    Address,
    Announced,
    BundleRef,
    BundleSpec,
    DeathCause,
    DeathKind,
    JobRecord,
    NodeRecord,
    PlacementGroupRecord,
    PlacementGroupSpec,
    PlacementGroupState,
)
from skate_gcs.service.rows import encode_row, load_state
from skate_gcs.storage import MemoryStorage, Write

UNIX_EPOCH_S = 1_000_000.0


class World:
    """Drives one machine. Every event is followed by a check of all invariants."""

    def __init__(self, limits: GcsLimits | None = None, seed: int = 0) -> None:
        self.limits = limits or GcsLimits()
        self.random = random.Random(seed)
        self.now_s = 100.0
        self.storage = MemoryStorage(Table)
        self.lazy: list[Persist] = []
        self.published: list[Announced] = []
        self.starts: list[StartActorOnNode] = []
        self.kills: list[KillActorOnNode] = []
        self.probes: list[ProbeNode] = []
        self.prepares: list[PrepareBundlesOnNode] = []
        self.commits_asked: list[CommitBundlesOnNode] = []
        self.returns: list[ReturnBundlesOnNode] = []
        self.forgotten: list[bytes] = []
        self.commits = 0
        self.beats: dict[bytes, int] = {}  # nodes that report while time passes, with the version
        self._ids = 0
        self.machine = self._machine(SavedState())

    def _machine(self, saved: SavedState) -> GcsMachine:
        return GcsMachine("cluster", self.limits, self.random, saved, self.now)

    @property
    def now(self) -> Now:
        return Now(self.now_s, UNIX_EPOCH_S + self.now_s)

    def id(self, size: int) -> bytes:
        self._ids += 1
        return self._ids.to_bytes(size, "big")

    # ---- driving ----

    def handle(self, event: Event) -> Answer | None:
        """The event's answer, for requests."""
        answers = self._carry_out(self.machine.handle(event, self.now))
        assert len(answers) == isinstance(event, Request), "one reply for each request"
        return answers[0] if answers else None

    def advance(self, seconds: float) -> None:
        """Let time pass, with a tick at each wakeup, as the runner does."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self._step(min(end_s, self.now_s + 1.0))
            for node_id in list(self.beats):
                self.beats[node_id] += 1
                node = next(
                    node
                    for node in self.machine.handle(ListNodes(), self.now)[0].answer.records
                    if node.node_id == node_id
                )
                if not self.report(node_id, self.beats[node_id], node.available, node.total):
                    del self.beats[node_id]

    def _step(self, end_s: float) -> None:
        for _ in range(10_000):
            wakeup = self.machine.next_wakeup()
            if wakeup is None or wakeup.at_s > end_s:
                self.now_s = end_s
                return
            assert wakeup.why
            self.now_s = max(self.now_s, wakeup.at_s)
            self.handle(Tick())
        raise AssertionError(f"the machine does not come to rest: {self.machine.next_wakeup()}")

    def restart(self, *, keeps_lazy: bool = False) -> None:
        """What a crash and a new start of the GCS do; orders that were not sent are lost."""
        if keeps_lazy:
            self._store(self.lazy)
        self.lazy.clear()
        before = self.machine.statistics()
        self.machine = self._machine(load_state(self.storage))
        assert self._carry_out(self.machine.resume(self.now)) == []
        after = self.machine.statistics()
        assert after.actors == before.actors or not keeps_lazy

    def _carry_out(self, commands: Iterable[Command]) -> list[Answer]:
        answers: list[Answer] = []
        urgent: list[Persist] = []
        for command in commands:
            match command:
                case Persist():
                    (self.lazy if command.is_lazy else urgent).append(command)
                case Reply(answer):
                    answers.append(answer)
                case Publish(record):
                    self.published.append(record)
                case StartActorOnNode():
                    self.starts.append(command)
                case KillActorOnNode():
                    self.kills.append(command)
                case PrepareBundlesOnNode():
                    self.prepares.append(command)
                case CommitBundlesOnNode():
                    self.commits_asked.append(command)
                case ReturnBundlesOnNode():
                    self.returns.append(command)
                case ProbeNode():
                    self.probes.append(command)
                case ForgetNode(node_id):
                    self.forgotten.append(node_id)
        if urgent:
            self.commits += 1
            self._store(self.lazy)
            self.lazy.clear()
            self._store(urgent)
        self.machine.check_invariants()
        return answers

    def _store(self, rows: list[Persist]) -> None:
        self.storage.commit(
            [
                Write(row.table, row.key, None if row.row is None else encode_row(row.row))
                for row in rows
            ]
        ).result()

    # ---- shorthands ----

    def add_node(self, cpus: int = 4, beats: bool = True, **fields) -> bytes:
        node_id = fields.pop("node_id", None) or self.id(28)
        total = fields.pop("total", {"CPU": cpus * 10_000})
        endpoint = fields.pop("raylet_endpoint", f"unix:/{node_id.hex()[-6:]}")
        node = NodeRecord(node_id, raylet_endpoint=endpoint, total=total, **fields)
        answer = self.handle(NodeRegistered(node))
        assert not isinstance(answer, Refused), answer
        if beats:
            self.beats[node_id] = 0
        return node_id

    def report(self, node_id: bytes, version: int, available=None, total=None) -> bool:
        if node_id in self.beats:
            self.beats[node_id] = max(self.beats[node_id], version)
        answer = self.handle(ResourcesReported(node_id, version, available or {}, total or {}))
        assert isinstance(answer, Reported)
        assert answer.stale_bundles == ()
        return answer.value

    def report_bundles(
        self, node_id: bytes, bundles: Iterable[BundleRef], available: dict[str, int] | None = None
    ) -> tuple[BundleRef, ...]:
        """A heartbeat that lists what the node holds; what it must give back."""
        self.beats[node_id] = self.beats.get(node_id, 0) + 1
        (node,) = [n for n in self.handle(ListNodes()).records if n.node_id == node_id]
        free = node.available if available is None else available
        event = ResourcesReported(node_id, self.beats[node_id], free, node.total, tuple(bundles))
        answer = self.handle(event)
        assert isinstance(answer, Reported)
        assert answer.value
        return answer.stale_bundles

    def add_job(self, node_id: bytes = b"", worker_id: bytes | None = None) -> bytes:
        driver = Address(node_id, worker_id or self.id(28), "unix:/driver")
        answer = self.handle(JobAdded(JobRecord(b"", driver)))
        assert isinstance(answer, JobAssigned)
        return answer.job_id

    def spec(self, **fields) -> ActorSpec:
        owner = fields.pop("owner", None) or Address(fields.pop("owner_node", b""), self.id(28))
        defaults = {
            "actor_id": self.id(16),
            "job_id": b"\0\0\0\1",
            "creation_task": b"task",
            "placement_resources": {"CPU": 10_000},
        }
        return ActorSpec(owner=owner, **(defaults | fields))

    def register(self, spec: ActorSpec | None = None, get_if_exists=False, **fields) -> bytes:
        spec = spec or self.spec(**fields)
        answer = self.handle(ActorRegistered(spec, get_if_exists))
        assert isinstance(answer, ActorAssigned), answer
        return answer.record.spec.actor_id

    def answer_start(self, refusal: str | None = None) -> StartActorOnNode:
        """The oldest start order is answered."""
        order = self.starts.pop(0)
        self.handle(StartAnswered(order.node_id, order.spec.actor_id, order.incarnation, refusal))
        return order

    def report_started(self, order: StartActorOnNode, worker_id: bytes | None = None) -> bool:
        address = Address(order.node_id, worker_id or self.id(28), "unix:/worker")
        answer = self.handle(ActorStarted(order.spec.actor_id, order.incarnation, address, 42))
        assert isinstance(answer, Accepted)
        return answer.value

    def run_actor(self, spec: ActorSpec | None = None, **fields) -> bytes:
        """A registered actor that is ALIVE."""
        actor_id = self.register(spec, **fields)
        self.finish_start()
        assert self.state(actor_id) is ActorState.ALIVE
        return actor_id

    def finish_start(self) -> StartActorOnNode:
        order = self.answer_start()
        assert self.report_started(order)
        return order

    def fail(self, actor_id: bytes, kind=DeathKind.SIGNALED, incarnation=None, **fields) -> None:
        if incarnation is None:
            incarnation = self.actor(actor_id).life.incarnation
        error = fields.pop("creation_error", b"")
        self.handle(ActorFailed(actor_id, incarnation, DeathCause(kind, **fields), error))

    def actor(self, actor_id: bytes) -> ActorRecord:
        record = self.machine.handle(GetActor(actor_id), self.now)[0].answer.record
        assert record is not None
        return record

    def state(self, actor_id: bytes) -> ActorState:
        return self.actor(actor_id).life.state

    def death(self, actor_id: bytes) -> DeathKind:
        cause = self.actor(actor_id).life.death_cause
        assert cause is not None
        return cause.kind

    def named(self, name: str, namespace: str = "") -> ActorRecord | None:
        return self.machine.handle(GetNamedActor(name, namespace), self.now)[0].answer.record

    def states_published(self, actor_id: bytes) -> list[ActorState]:
        return [
            record.life.state
            for record in self.published
            if isinstance(record, ActorRecord) and record.spec.actor_id == actor_id
        ]

    def assert_no_unclaimed_orders(self) -> None:
        assert (self.starts, self.kills, self.forgotten) == ([], [], [])
        assert (self.prepares, self.commits_asked, self.returns) == ([], [], [])

    # ---- placement groups ----

    def group_spec(self, *cpus: float, strategy: str = "PACK", **fields) -> PlacementGroupSpec:
        bundles = tuple(BundleSpec({"CPU": int(10_000 * amount)}) for amount in cpus)
        defaults = {
            "group_id": self.id(18),
            "job_id": b"\0\0\0\1",
            "owner": Address(b"", self.id(28)),
            "bundles": bundles,
        }
        return PlacementGroupSpec(strategy=strategy, **(defaults | fields))

    def create_group(self, *cpus: float, strategy: str = "PACK", **fields) -> bytes:
        answer = self.handle(GroupCreated(self.group_spec(*cpus, strategy=strategy, **fields)))
        assert isinstance(answer, GroupRegistered), answer
        return answer.record.spec.group_id

    def remove_group(self, group_id: bytes) -> None:
        self.handle(GroupRemoved(group_id, ""))

    def group(self, group_id: bytes) -> PlacementGroupRecord:
        record = self.machine.handle(GetGroup(group_id), self.now)[0].answer.record
        assert record is not None
        return record

    def group_state(self, group_id: bytes) -> PlacementGroupState:
        return self.group(group_id).state

    def answer_prepare(self, problem: str = "") -> PrepareBundlesOnNode:
        """The oldest order to set bundles aside is answered."""
        order = self.prepares.pop(0)
        self.handle(BundlesPrepared(order.node_id, order.group_id, order.attempt, problem))
        return order

    def answer_commit(self, is_done: bool = True, is_lost: bool = False) -> CommitBundlesOnNode:
        """The oldest order to open bundles is answered."""
        order = self.commits_asked.pop(0)
        ref = order.ref
        self.handle(BundlesCommitted(order.node_id, ref.group_id, ref.attempt, is_done, is_lost))
        return order

    def finish_groups(self) -> None:
        """All nodes do what they are told."""
        while self.prepares or self.commits_asked:
            if self.prepares:
                self.answer_prepare()
            else:
                self.answer_commit()

    def run_group(self, *cpus: float, strategy: str = "PACK", **fields) -> bytes:
        """A created group."""
        group_id = self.create_group(*cpus, strategy=strategy, **fields)
        self.finish_groups()
        assert self.group_state(group_id) is PlacementGroupState.CREATED
        return group_id


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def make_world():
    return World


@pytest.fixture
def socket_folder() -> Iterator[str]:
    # Not tmp_path: a socket's path must stay short.
    path = tempfile.mkdtemp(prefix="gcs-")
    yield path
    shutil.rmtree(path)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gcs-kills", type=int, default=10, help="SIGKILLs of the GCS, each storage.")


@pytest.fixture
def gcs_kills(request: pytest.FixtureRequest) -> int:
    count: int = request.config.getoption("--gcs-kills")
    return count
