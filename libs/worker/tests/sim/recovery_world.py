"""A cluster of a few dictionaries around a real owner, for ``test_recovery_of_random_graphs``.

The owner is the real one (ownership, results, directory, recovery); nodes, workers and the program
are not. Tasks take values and references inside lists, and return values that may hold references,
as the library's users nest them; some yield them one by one, and their takers may leave early.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from typing import Any

from skate_rpc import node_protocol as node
from skate_worker.deaths import Deaths
from skate_worker.errors import ReferenceCountingAssertionError, WorkerCrashedError
from skate_worker.generator_returns import STREAMING, encode_returns
from skate_worker.machine.generator_stream import FIRST_ITEM, GeneratorStream, item_id
from skate_worker.machine.lineage import LIMIT_BYTES
from skate_worker.machine.object_directory import ObjectDirectory
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry
from skate_worker.object_ref_generator import ObjectRefGenerator
from skate_worker.owned_objects import OwnedObjects
from skate_worker.ownership import Ownership
from skate_worker.recovery import Recovery
from skate_worker.results import Completion
from skate_worker.serialization import deserialize, serialize
from skate_worker.streams import Streams
from skate_worker.submission import DependencyFailed, Submission, resolve
from skate_worker.task_protocol import (
    AskCopy,
    CopyMade,
    CopySources,
    ItemReturned,
    PushTask,
    Reference,
    Returned,
    StopStream,
    TaskDone,
    TaskReturned,
)

HOME = b"n0"
OWNER = b"owner"
NO_ACTOR = b"\xff" * 16

Value = tuple[int, tuple[bytes, ...]]
"""A number, and the ids of the references beside it."""


class Loop:
    """Nothing is called back: the simulation counts what was dropped itself."""

    def call_soon_threadsafe(self, *args: Any) -> None:
        pass


class FakePeer:
    """A worker as its owner sees it, and its connection."""

    worker_id = b"executor"

    def __init__(self) -> None:
        self.connection = self
        self.is_stopped = False  # nobody wants more of its items

    def stamp(self, message: Any) -> Any:
        return message

    def post(self, message: Any) -> None:
        self.is_stopped = self.is_stopped or isinstance(message, StopStream)


def combined(own: int, below: list[int]) -> int:
    """What a value comes to with all that it refers to."""
    return zlib.crc32(f"{own}{below}".encode()) if below else own


class Task:
    """What the oracle knows of a task. ``arguments``: each with whether it is inside a list."""

    def __init__(
        self,
        number: int,
        arguments: list[tuple[Ref, bool]],
        rng: random.Random,
        items: int | None = None,
    ) -> None:
        self.number = number
        self.items = items  # how many it yields; None: it returns values
        self.arguments = arguments
        self.num_returns = rng.choice([1, 1, 2]) if items is None else items
        self.is_large = rng.random() < 0.7
        self.max_retries = rng.choice([0, 1, 3, 30, 30])
        # Its first return holds the references that it got.
        self.carried = [ref for ref, is_nested in arguments if is_nested and rng.random() < 0.6]
        self.starts = 0

    def numbers(self, arguments: list[int]) -> list[int]:
        text = f"{self.number}:{arguments}"
        return [zlib.crc32(f"{text}/{index}".encode()) for index in range(self.num_returns)]

    def carried_at(self, index: int) -> list[Ref]:
        return self.carried if index == 0 else []

    def expected(self, index: int) -> int:
        own = self.numbers([argument.expected() for argument, _ in self.arguments])[index]
        return combined(own, [ref.expected() for ref in self.carried_at(index)])


class Ref:
    """A reference that the program holds, or held."""

    def __init__(self, task: Task | None, index: int, entry: Entry, value: int = 0) -> None:
        self.task = task
        self.index = index
        self.entry = entry
        self.value = value
        self._expected: int | None = None

    def expected(self) -> int:
        if self._expected is None:
            self._expected = self.value if self.task is None else self.task.expected(self.index)
        return self._expected

    def can_have_failed(self, is_lineage_bounded: bool) -> bool:
        """Whether something it depends on may be lost for good."""
        if self.task is None:
            return True  # put: nothing makes it again
        if self.task.starts > self.task.max_retries or is_lineage_bounded:
            return True
        return any(a.can_have_failed(is_lineage_bounded) for a, _ in self.task.arguments)


class Run:
    """A task at a worker. It reads all that its arguments refer to, however deep."""

    def __init__(
        self, submission: Submission, task: Task, node_id: bytes, worker_id: bytes
    ) -> None:
        self.submission = submission
        self.task = task
        self.node_id = node_id
        self.worker_id = worker_id
        self.peer = FakePeer()
        self.yielded = 0
        self.values: dict[bytes, Value] = {}
        self.sources: list[bytes] | None = None  # of what is wanted first
        self.is_asked = False
        given = {item.position: item for item in submission.message.resolved}
        self.roots: list[bytes] = []
        for position, (ref, is_nested) in enumerate(task.arguments):
            self.roots.append(ref.entry.object_id)
            item = None if is_nested else given[position]
            if item is not None and item.data:
                self.values[ref.entry.object_id] = deserialize(item.data)
            elif item is not None:
                self.roots[-1] = item.object_id
        self.arguments = [item.object_id for item in given.values() if item.object_id]

    @property
    def wanted(self) -> bytes | None:
        """What is not here yet, of all that is reached; None: it can run."""
        reached = deque(self.roots)
        while reached:
            object_id = reached.popleft()
            if object_id not in self.values:
                return object_id
            reached.extend(self.values[object_id][1])
        return None

    def total(self, object_id: bytes) -> int:
        own, inside = self.values[object_id]
        return combined(own, [self.total(inner) for inner in inside])

    def took(self, object_id: bytes, value: Value) -> None:
        self.values[object_id] = value
        self.is_asked = False
        self.sources = None


class World:
    def __init__(self, seed: int, limit_bytes: int, *, has_streams: bool = False) -> None:
        self.rng = random.Random(seed)
        self.has_streams = has_streams
        self.stores: dict[bytes, dict[bytes, Value]] = {b"n%d" % n: {} for n in range(4)}
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
        self.streams = Streams(self, self.ownership)  # type: ignore[arg-type]
        self.streams.delete_stray = self.owned.delete_at
        self.streams.offer_copy = self.owned.offered
        self.streams.lineage = self.recovery.lineage
        self.completion.streams = self.streams
        self.recovery.is_made_anyway = self.streams.will_yield_again
        self.note_dropped = self.ownership.note_dropped  # as references and generators say it
        self.note_stream_dropped = self.streams.drop
        self.generators: list[tuple[Task, GeneratorStream, ObjectRefGenerator[Any]]] = []
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
        owned = [entry for entry in entries if entry.owner is None]
        self.owned.delete([entry for entry in owned if entry.state == STORED])
        self.recovery.released(owned)

    def say(self, worker_id: bytes, message: CopySources) -> None:
        if worker_id == OWNER:
            self.answers[message.object_id] = message
            return
        run = self.runs.get(worker_id)
        if run is None or not run.is_asked or run.wanted != message.object_id:
            if message.node_ids:
                self.owned.pull_stopped(worker_id, message.object_id)
            return
        if message.failure or message.is_error:
            assert message.data, "what a running task refers to is never freed"
            self.fail_run(run, message.data)
        elif message.data:
            run.took(message.object_id, deserialize(message.data))
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
        chosen = [rng.choice(self.refs) for _ in range(rng.randrange(4)) if self.refs]
        arguments = [(ref, rng.random() < 0.5) for ref in chosen]
        items = rng.randrange(5) if self.has_streams and rng.random() < 0.4 else None
        task = self.tasks[task_id] = Task(number, arguments, rng, items)
        num_returns = task.num_returns if items is None else encode_returns(STREAMING)
        message = PushTask(task_id, b"f", b"", "f", num_returns)
        submission = Submission(task_id, message, [], task.max_retries, False)
        with self.ownership.lock:
            if items is None:
                self.own_returns(task, submission)
            else:
                (generator,) = self.streams.begin(submission, num_returns)
                self.generators.append((task, self.streams._running[task_id], generator))
            submission.top_level = [
                (at, ref.entry) for at, (ref, is_nested) in enumerate(arguments) if not is_nested
            ]
            submission.pinned = tuple(ref.entry for ref, _ in arguments)
            for entry in submission.pinned:
                entry.pins += 1
        self.submit(submission)

    def own_returns(self, task: Task, submission: Submission) -> None:
        for index in range(1, task.num_returns + 1):
            entry = self.ownership.table.own(submission.task_id + index.to_bytes(4, "big"))
            submission.entries.append(entry)
            self.refs.append(Ref(task, index - 1, entry))

    def take(self) -> None:
        """The next item of some stream, if it is there; sometimes the program leaves instead."""
        if not self.generators:
            return
        task, stream, _ = chosen = self.rng.choice(self.generators)
        entry = self.streams.take(stream)
        if entry is not None:
            self.refs.append(Ref(task, stream.consumed - 1, entry))
        elif stream.is_finished or self.rng.random() < 0.1:
            self.generators.remove(chosen)

    def put(self) -> None:
        number = next(self.numbers)
        object_id = number.to_bytes(8, "big") + NO_ACTOR + (0x8000_0001).to_bytes(4, "big")
        with self.ownership.lock:
            entry = self.ownership.table.own(object_id)
            entry.state, entry.node_id, entry.size_bytes = STORED, HOME, 1
        self.stores[HOME][object_id] = (number, ())
        self.refs.append(Ref(None, 0, entry, number))

    def drop(self) -> None:
        if self.refs:
            ref = self.refs.pop(self.rng.randrange(len(self.refs)))
            self.drop_local(ref.entry)

    def drop_local(self, entry: Entry) -> None:
        released: list[Entry] = []
        with self.ownership.lock:
            self.ownership.table.drop_local(entry, released)
        self.ownership.finish_released(released)

    # ---- what the workers do ----

    def start(self) -> None:
        if self.ready:
            submission = self.ready.popleft()
            task = self.tasks[submission.task_id]
            task.starts += 1
            node_id = self.rng.choice(sorted(set(self.stores) - self.dead))
            worker_id = b"w%d" % next(self.numbers)
            self.runs[worker_id] = Run(submission, task, node_id, worker_id)

    def advance(self) -> None:
        if not self.runs:
            return
        run = self.rng.choice(list(self.runs.values()))
        wanted = run.wanted
        if wanted is None and run.task.items is not None and self.yields(run):
            if run.submission.task_id not in self.streams._running:
                assert run.yielded < len(run.submission.entries), "it was not told to stop"
            self.streams.on_item(run.peer, self.item(run))  # type: ignore[arg-type]
            run.yielded += 1
        elif wanted is None:
            del self.runs[run.worker_id]
            self.finish(run.submission, self.outcome(run))
            self.end_borrows(run)
        elif run.sources is not None:
            self.pull(run, wanted)
        elif not run.is_asked:
            self.look(run, wanted)

    def look(self, run: Run, object_id: bytes) -> None:
        """``get`` at the worker: of an argument where it lies is known, of others the owner is
        asked for the value first."""
        if object_id not in run.arguments:
            entry = self.ownership.table.entries.get(object_id)
            assert entry is not None, "what a running task refers to is never freed"
            if entry.state == PENDING:
                return
            for inner in entry.contained or ():
                self.ownership.table.add_borrower(inner.object_id, run.worker_id)
            if entry.state == INLINE:
                run.took(object_id, deserialize(entry.data))
                return
            if entry.state == FAILED:
                self.fail_run(run, entry.data)
                return
        store = self.stores[run.node_id]
        if object_id in store:
            run.took(object_id, store[object_id])
        else:
            run.is_asked = True
            self.owned.ask(run.worker_id, AskCopy(object_id, run.node_id))

    def pull(self, run: Run, object_id: bytes) -> None:
        lost = self.copy_for(run)
        if lost is None:
            run.is_asked = False
            self.owned.copy_made(run.worker_id, CopyMade(object_id, run.node_id))
        elif self.rng.random() < 0.05:
            run.is_asked = False
            self.owned.pull_stopped(run.worker_id, object_id)
        else:
            self.owned.ask(run.worker_id, AskCopy(object_id, run.node_id, lost))

    def copy_for(self, run: Run) -> list[bytes] | None:
        """The raylet's part; where it is not to be had, or None: it is here."""
        assert run.sources is not None
        assert run.wanted is not None
        sources, run.sources = run.sources, None
        for source in sources:
            if source not in self.dead and run.wanted in self.stores[source]:
                self.stores[run.node_id][run.wanted] = self.stores[source][run.wanted]
                return None
        return sources

    def yields(self, run: Run) -> bool:
        return run.yielded < run.task.num_returns and not run.peer.is_stopped

    def item(self, run: Run) -> ItemReturned:
        """Writes a large item, and says what the worker would."""
        submission, index = run.submission, run.yielded
        message = submission.message
        returned = Returned(b"")
        if index + FIRST_ITEM not in message.kept_returns:
            number = run.task.numbers([run.total(root) for root in run.roots])[index]
            inner = tuple(ref.entry.object_id for ref in run.task.carried_at(index))
            returned = self.returned(run, item_id(submission.task_id, index), number, inner)
        return ItemReturned(submission.task_id, index, returned, message.attempt)

    def returned(
        self, run: Run, object_id: bytes, number: int, inner: tuple[bytes, ...]
    ) -> Returned:
        if run.task.is_large:
            self.stores[run.node_id][object_id] = (number, inner)
            returned = Returned(b"", 1, node_id=run.node_id)
        else:
            returned = Returned(serialized((number, inner)))
        returned.contained = [Reference(i, OWNER, "", HOME) for i in dict.fromkeys(inner)]
        return returned

    def outcome(self, run: Run) -> Any:
        """Writes the large returns, and says what the worker would."""
        submission, task = run.submission, run.task
        if task.items is not None:
            done = [Returned(serialized((0, ())))]
            attempt = submission.message.attempt
            return TaskReturned(submission.task_id, done, items=run.yielded, attempt=attempt)
        numbers = task.numbers([run.total(root) for root in run.roots])
        inside = [tuple(r.entry.object_id for r in task.carried_at(i)) for i in range(len(numbers))]
        if len(numbers) == 1 and not task.is_large and not inside[0]:
            return TaskDone(submission.task_id, serialized((numbers[0], ())))
        returns: list[Returned] = []
        for index, (number, inner) in enumerate(zip(numbers, inside, strict=True), start=1):
            object_id = submission.task_id + index.to_bytes(4, "big")
            if index in submission.message.kept_returns:
                returns.append(Returned(b""))
                continue
            returns.append(self.returned(run, object_id, number, inner))
        return TaskReturned(submission.task_id, returns)

    def fail_run(self, run: Run, error: bytes) -> None:
        del self.runs[run.worker_id]
        assert not isinstance(deserialize(error).to_raise(), ReferenceCountingAssertionError)
        count = len(run.submission.entries) if run.task.items is None else 1
        returns = [Returned(error, is_error=True)] * count
        self.finish(run.submission, TaskReturned(run.submission.task_id, returns, is_error=True))
        self.end_borrows(run)

    def end_borrows(self, run: Run) -> None:
        released: list[Entry] = []
        with self.ownership.lock:
            self.ownership.table.lose_borrower(run.worker_id, released)
        self.ownership.finish_released(released)

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
        if run.node_id not in self.dead:
            if run.wanted is None and run.task.items is not None and self.yields(run):
                self.item(run)  # it stored its next item, and did not live to say so
            elif run.wanted is None:
                self.outcome(run)  # it wrote its returns, and did not live to say so
            elif run.sources is not None and self.rng.random() < 0.5:
                self.copy_for(run)  # its raylet brought what it asked for, and nobody hears of it
        self.owned.process_died(worker_id)
        self.end_borrows(run)
        self.completion.attempt_lost(run.submission, run.node_id)
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
            if run.node_id == node_id and worker_id in self.runs:
                self.kill_worker(worker_id)

    # ---- checks ----

    def step(self, *, has_faults: bool) -> None:
        roll = self.rng.random()
        if roll < 0.12 and has_faults:
            self.remote()
        elif roll < 0.15 and has_faults:
            self.put()
        elif roll < 0.25 and has_faults:
            self.drop()
        elif roll < 0.28 and has_faults:
            self.lose_copy()
        elif roll < 0.29 and has_faults:
            self.kill_node()
        elif roll < 0.31 and has_faults and self.runs:
            self.kill_worker(self.rng.choice(list(self.runs)))
        elif roll < 0.5:
            self.start()
        elif roll < 0.6 and has_faults and self.has_streams:
            self.take()
        else:
            self.advance()
        self.ownership.drain_dropped()
        self.ownership.table.check_invariants()
        self.directory.check_invariants()
        self.recovery.lineage.check_invariants()
        for task in self.tasks.values():
            assert task.starts <= task.max_retries + 1, "an attempt too many"

    def settle(self) -> None:
        """Until nothing is left to do; everything that is asked for must come."""
        self.ownership.drain_dropped()
        for _ in range(100_000):
            if not self.ready and not self.runs:
                return
            self.step(has_faults=False)
        raise AssertionError("some task never ends")

    def read(self, entry: Entry) -> int | BaseException:
        """``get`` on the owner's node, of a value and of all that it refers to."""
        value = self.read_one(entry)
        if isinstance(value, BaseException):
            return value
        own, inside = value
        held: list[Entry] = []
        for object_id in inside:
            inner = self.ownership.table.entries.get(object_id)
            assert inner is not None, "what a value refers to is never freed before it"
            inner.local += 1
            held.append(inner)
        below = [self.read(inner) for inner in held]
        for inner in held:
            self.drop_local(inner)
        failed = next((found for found in below if isinstance(found, BaseException)), None)
        return failed or combined(own, [found for found in below if isinstance(found, int)])

    def read_one(self, entry: Entry) -> Value | BaseException:
        lost: list[bytes] = []
        for _ in range(100):
            self.settle()
            assert entry.state != PENDING, "everything ended, and a value did not come"
            if entry.state == INLINE:
                value: Value = deserialize(entry.data)
                return value
            if entry.state == FAILED:
                error: BaseException = deserialize(entry.data).to_raise()
                return error
            if entry.object_id in self.stores[HOME]:
                return self.stores[HOME][entry.object_id]
            self.answers.pop(entry.object_id, None)
            self.owned.ask(OWNER, AskCopy(entry.object_id, HOME, lost))
            self.settle()
            answer = self.answers[entry.object_id]
            lost = []
            for source in answer.node_ids:
                if source not in self.dead and entry.object_id in self.stores[source]:
                    found = self.stores[source][entry.object_id]
                    self.stores[HOME][entry.object_id] = found
                    self.owned.copy_made(OWNER, CopyMade(entry.object_id, HOME))
                    break
                lost.append(source)
        raise AssertionError("the value neither came nor failed")


def serialized(value: Value) -> bytes:
    return serialize(value).to_bytes()
