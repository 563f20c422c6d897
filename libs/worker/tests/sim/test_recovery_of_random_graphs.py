"""Random task graphs over nodes that die and copies that vanish, against a sequential run.

The owner is the real one (ownership, results, directory, recovery); the cluster around it is a
few dictionaries. Whatever is referenced must come out as the sequential run says, unless the budget
of a task that it depends on is used up, or its lineage was given up for want of room.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from typing import Any

import pytest

from skate_rpc import node_protocol as node
from skate_worker.deaths import Deaths
from skate_worker.errors import ObjectReconstructionFailedError, WorkerCrashedError
from skate_worker.machine.lineage import LIMIT_BYTES
from skate_worker.machine.object_directory import ObjectDirectory
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry
from skate_worker.owned_objects import OwnedObjects
from skate_worker.ownership import Ownership
from skate_worker.recovery import Recovery
from skate_worker.results import Completion
from skate_worker.serialization import deserialize
from skate_worker.submission import DependencyFailed, Submission, resolve
from skate_worker.task_protocol import (
    AskCopy,
    CopyMade,
    CopySources,
    PullStopped,
    PushTask,
    Returned,
    TaskDone,
    TaskReturned,
)

HOME = b"n0"
OWNER = b"owner"
NO_ACTOR = b"\xff" * 16


class Loop:
    """Nothing is called back: the simulation counts what was dropped itself."""

    def call_soon_threadsafe(self, *args: Any) -> None:
        pass


class Connection:
    def post(self, message: Any) -> None:
        pass


class FakePeer:
    worker_id = b"executor"
    connection = Connection()


class Task:
    """What the oracle knows of a task."""

    def __init__(self, number: int, arguments: list[Ref], num_returns: int, is_large: bool) -> None:
        self.number = number
        self.arguments = arguments
        self.num_returns = num_returns
        self.is_large = is_large
        self.starts = 0
        self.max_retries = 0

    def values(self, arguments: list[int]) -> list[int]:
        text = f"{self.number}:{arguments}"
        return [zlib.crc32(f"{text}/{index}".encode()) for index in range(self.num_returns)]

    def expected(self) -> list[int]:
        return self.values([argument.expected() for argument in self.arguments])


class Ref:
    """A reference that the program holds, or held."""

    def __init__(self, task: Task | None, index: int, entry: Entry, value: int = 0) -> None:
        self.task = task
        self.index = index
        self.entry = entry
        self.value = value

    def expected(self) -> int:
        return self.value if self.task is None else self.task.expected()[self.index]

    def can_have_failed(self, is_lineage_bounded: bool) -> bool:
        """Whether something it depends on may be lost for good."""
        if self.task is None:
            return True  # put: nothing makes it again
        if self.task.starts > self.task.max_retries or is_lineage_bounded:
            return True
        return any(a.can_have_failed(is_lineage_bounded) for a in self.task.arguments)


class Run:
    """A task at a worker."""

    def __init__(self, submission: Submission, node_id: bytes, worker_id: bytes) -> None:
        self.submission = submission
        self.node_id = node_id
        self.worker_id = worker_id
        self.missing = [item.object_id for item in submission.message.resolved if item.object_id]
        self.values: dict[bytes, int] = {}
        self.sources: list[bytes] | None = None  # of the first missing one
        self.is_asked = False


class World:
    def __init__(self, seed: int, limit_bytes: int) -> None:
        self.rng = random.Random(seed)
        self.stores: dict[bytes, dict[bytes, int]] = {b"n%d" % n: {} for n in range(4)}
        self.dead: set[bytes] = set()
        self.ownership = Ownership(OWNER, HOME, Loop())  # type: ignore[arg-type]
        self.ownership.store = self  # type: ignore[assignment]
        self.directory = ObjectDirectory()
        self.deaths = Deaths()
        self.recovery = Recovery(
            self.ownership, self.directory, self.deaths, self.submit, limit_bytes
        )
        self.is_lineage_bounded = limit_bytes < LIMIT_BYTES
        self.owned = OwnedObjects(
            self.ownership, self.directory, self.recovery, self.say, self.post
        )
        self.ownership.on_stored_released = self.released
        self.completion = Completion(self.ownership, 1, "ip")
        self.completion.recovery = self.recovery
        self.completion.delete_stray = self.owned.delete_at
        self.tasks: dict[bytes, Task] = {}
        self.ready: deque[Submission] = deque()
        self.runs: dict[bytes, Run] = {}
        self.answers: dict[bytes, CopySources] = {}  # of this process's own questions
        self.refs: list[Ref] = []
        self.numbers = iter(range(1, 1 << 30))

    # ---- what the owner does to the world ----

    def delete(self, object_ids: list[bytes]) -> None:
        for object_id in object_ids:
            self.stores[HOME].pop(object_id, None)

    def post(self, message: Any) -> None:
        if isinstance(message, node.KeepCopies):
            for node_id, object_ids in message.copies.items():
                store = self.stores[node_id]
                gone = [object_id for object_id in object_ids if object_id not in store]
                self.owned.copies_kept(node.CopiesKept(node_id, [], gone))
            return
        assert isinstance(message, node.DeleteCopies)
        for node_id, object_ids in message.copies.items():
            for object_id in object_ids:
                self.stores[node_id].pop(object_id, None)

    def released(self, entries: list[Entry]) -> None:
        self.owned.delete([entry for entry in entries if entry.state == STORED])
        self.recovery.released(entries)

    def say(self, worker_id: bytes, message: CopySources) -> None:
        if worker_id == OWNER:
            self.answers[message.object_id] = message
            return
        run = self.runs.get(worker_id)
        if run is None or not run.missing or run.missing[0] != message.object_id:
            if message.node_ids:
                self.owned.pull_stopped(worker_id, message.object_id)
            return
        if message.failure or message.is_error:
            del self.runs[worker_id]
            error = message.data or b""
            assert error, "an argument of a running task is never freed"
            returns = [Returned(error, is_error=True)] * len(run.submission.entries)
            self.finish(run.submission, TaskReturned(run.submission.task_id, returns))
        elif message.data:
            run.values[message.object_id] = int(deserialize(message.data))
            run.missing.pop(0)
            run.is_asked = False
        elif message.node_ids:
            run.sources = message.node_ids

    def submit(self, submission: Submission) -> None:
        resolve(self.ownership, submission, self.resolved)

    def resolved(self, submission: Submission, failure: DependencyFailed | None) -> None:
        if failure is not None:
            self.completion.fail_dependency(submission, failure.data)
        else:
            self.ready.append(submission)

    # ---- what the program does ----

    def remote(self) -> None:
        rng = self.rng
        number = next(self.numbers)
        task_id = number.to_bytes(8, "big") + NO_ACTOR
        arguments = [rng.choice(self.refs) for _ in range(rng.randrange(3)) if self.refs]
        task = Task(number, arguments, rng.choice([1, 1, 2]), rng.random() < 0.8)
        task.max_retries = rng.choice([0, 1, 3, 30, 30])
        self.tasks[task_id] = task
        message = PushTask(task_id, b"f", b"", "f", task.num_returns)
        submission = Submission(task_id, message, [], task.max_retries, False)
        with self.ownership.lock:
            for index in range(1, task.num_returns + 1):
                entry = self.ownership.table.own(task_id + index.to_bytes(4, "big"))
                submission.entries.append(entry)
                self.refs.append(Ref(task, index - 1, entry))
            submission.top_level = [(at, ref.entry) for at, ref in enumerate(arguments)]
            for ref in arguments:
                ref.entry.pins += 1
            submission.pinned = tuple(ref.entry for ref in arguments)
        self.submit(submission)

    def put(self) -> None:
        number = next(self.numbers)
        object_id = number.to_bytes(8, "big") + NO_ACTOR + (0x8000_0001).to_bytes(4, "big")
        with self.ownership.lock:
            entry = self.ownership.table.own(object_id)
            entry.state, entry.node_id, entry.size_bytes = STORED, HOME, 1
        self.stores[HOME][object_id] = number
        self.refs.append(Ref(None, 0, entry, number))

    def drop(self) -> None:
        if self.refs:
            ref = self.refs.pop(self.rng.randrange(len(self.refs)))
            released: list[Entry] = []
            with self.ownership.lock:
                self.ownership.table.drop_local(ref.entry, released)
            self.ownership.finish_released(released)

    # ---- what the workers do ----

    def start(self) -> None:
        if self.ready:
            submission = self.ready.popleft()
            self.tasks[submission.task_id].starts += 1
            node_id = self.rng.choice(sorted(set(self.stores) - self.dead))
            worker_id = b"w%d" % next(self.numbers)
            self.runs[worker_id] = Run(submission, node_id, worker_id)

    def advance(self) -> None:
        if not self.runs:
            return
        run = self.rng.choice(list(self.runs.values()))
        if not run.missing:
            del self.runs[run.worker_id]
            self.return_values(run)
            return
        object_id = run.missing[0]
        store = self.stores[run.node_id]
        if not run.is_asked:
            if object_id in store:
                run.values[object_id] = store[object_id]
                run.missing.pop(0)
            else:
                run.is_asked = True
                self.owned.ask(run.worker_id, AskCopy(object_id, run.node_id))
        elif run.sources is not None:
            self.pull(run, object_id)

    def pull(self, run: Run, object_id: bytes) -> None:
        assert run.sources is not None
        sources, run.sources = run.sources, None
        lost: list[bytes] = []
        for source in sources:
            if source not in self.dead and object_id in self.stores[source]:
                self.stores[run.node_id][object_id] = self.stores[source][object_id]
                run.is_asked = False
                self.owned.copy_made(run.worker_id, CopyMade(object_id, run.node_id))
                return
            lost.append(source)
        if self.rng.random() < 0.05:
            run.is_asked = False
            self.owned.pull_stopped(run.worker_id, PullStopped(object_id).object_id)
        else:
            self.owned.ask(run.worker_id, AskCopy(object_id, run.node_id, lost))

    def return_values(self, run: Run) -> None:
        submission = run.submission
        task = self.tasks[submission.task_id]
        arguments: list[int] = []
        for position in range(len(task.arguments)):
            item = next(i for i in submission.message.resolved if i.position == position)
            arguments.append(
                int(deserialize(item.data)) if item.data else run.values[item.object_id]
            )
        values = task.values(arguments)
        if task.num_returns == 1 and not task.is_large:
            data = self.serialized(values[0])
            self.finish(submission, TaskDone(submission.task_id, data))
            return
        returns: list[Returned] = []
        for index, value in enumerate(values, start=1):
            object_id = submission.task_id + index.to_bytes(4, "big")
            if index in submission.message.kept_returns:
                returns.append(Returned(b""))
            elif task.is_large:
                self.stores[run.node_id][object_id] = value
                returns.append(Returned(b"", 1, node_id=run.node_id))
            else:
                returns.append(Returned(self.serialized(value)))
        self.finish(submission, TaskReturned(submission.task_id, returns))

    def serialized(self, value: int) -> bytes:
        from skate_worker.serialization import serialize

        return serialize(value).to_bytes()

    def finish(self, submission: Submission, outcome: Any) -> None:
        with self.ownership.lock:
            self.completion.settle([(submission, outcome)])
        self.completion.finish(FakePeer(), [(submission, outcome)])  # type: ignore[arg-type]
        self.completion.wake()

    # ---- faults ----

    def lose_copy(self) -> None:
        held = [(n, o) for n, store in self.stores.items() for o in store]
        if held:
            node_id, object_id = self.rng.choice(held)
            del self.stores[node_id][object_id]

    def kill_worker(self, worker_id: bytes) -> None:
        run = self.runs.pop(worker_id)
        self.owned.process_died(worker_id)
        if run.submission.take_attempt():
            self.ready.appendleft(run.submission)
        else:
            self.completion.fail(run.submission, WorkerCrashedError("killed"))

    def kill_node(self) -> None:
        alive = sorted(set(self.stores) - self.dead - {HOME})
        if len(alive) < 2:
            return
        node_id = self.rng.choice(alive)
        self.dead.add(node_id)
        self.stores[node_id].clear()
        self.stores[b"n%d" % next(self.numbers)] = {}  # a new one takes its place
        self.deaths.node_died(node_id, node.Death("node_lost", "killed"))
        self.owned.node_died(node_id)
        for worker_id, run in list(self.runs.items()):
            if run.node_id == node_id:
                self.kill_worker(worker_id)

    # ---- checks ----

    def step(self, *, has_faults: bool) -> None:
        roll = self.rng.random()
        if roll < 0.15 and has_faults:
            self.remote()
        elif roll < 0.18 and has_faults:
            self.put()
        elif roll < 0.28 and has_faults:
            self.drop()
        elif roll < 0.31 and has_faults:
            self.lose_copy()
        elif roll < 0.32 and has_faults:
            self.kill_node()
        elif roll < 0.34 and has_faults and self.runs:
            self.kill_worker(self.rng.choice(list(self.runs)))
        elif roll < 0.6:
            self.start()
        else:
            self.advance()
        self.ownership.table.check_invariants()
        self.directory.check_invariants()
        self.recovery.lineage.check_invariants()
        for task in self.tasks.values():
            assert task.starts <= task.max_retries + 1, "an attempt too many"

    def settle(self) -> None:
        """Until nothing is left to do; everything that is asked for must come."""
        for _ in range(100_000):
            if not self.ready and not self.runs:
                return
            self.step(has_faults=False)
        raise AssertionError("some task never ends")

    def read(self, ref: Ref) -> int | BaseException:
        """``get``, on the owner's node."""
        entry = ref.entry
        lost: list[bytes] = []
        for _ in range(100):
            self.settle()
            assert entry.state != PENDING, "everything ended, and a value did not come"
            if entry.state in (INLINE, FAILED):
                value = deserialize(entry.data)
                return value if isinstance(value, int) else value.to_raise()
            if entry.object_id in self.stores[HOME]:
                return self.stores[HOME][entry.object_id]
            self.answers.pop(entry.object_id, None)
            self.owned.ask(OWNER, AskCopy(entry.object_id, HOME, lost))
            self.settle()
            answer = self.answers[entry.object_id]
            lost = []
            for source in answer.node_ids:
                if source not in self.dead and entry.object_id in self.stores[source]:
                    value = self.stores[source][entry.object_id]
                    self.stores[HOME][entry.object_id] = value
                    self.owned.copy_made(OWNER, CopyMade(entry.object_id, HOME))
                    break
                lost.append(source)
        raise AssertionError("the value neither came nor failed")


@pytest.mark.parametrize("limit_bytes", [LIMIT_BYTES, 20_000], ids=["unbounded", "bounded"])
@pytest.mark.parametrize("seed", range(150))
@pytest.mark.invariant("I2")
def test_every_referenced_value_equals_the_sequential_run(seed: int, limit_bytes: int) -> None:
    world = World(seed, limit_bytes)
    for _ in range(400):
        world.step(has_faults=True)
    world.settle()
    for ref in list(world.refs):
        got = world.read(ref)
        if isinstance(got, BaseException):
            assert ref.can_have_failed(world.is_lineage_bounded), f"lost without need: {got}"
            assert isinstance(got, ObjectReconstructionFailedError | WorkerCrashedError)
        else:
            assert got == ref.expected()
    while world.refs:
        world.drop()
    world.settle()
    assert not world.ownership.table.entries
    assert len(world.recovery.lineage) == 0
    assert world.recovery.lineage.size_bytes == 0
    assert not world.directory._records
    assert not any(world.stores.values()), "bytes are left in a store"
