"""Each message of the task plane is handed to its handler twice: the second time nothing happens.

For each kind there is a situation in which the first has an effect, and, where there can be, one in
between in which a second would have another: a task that was given back is here again, a fetch that
was stopped began anew. The process is the simulation's, with the product's own submitters, and what
is compared is a picture of all its tables and of all that it sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest
from borrowing_world import SimProcess, World, small_limits
from sim_parts import SimConnection, SimLoop, SimRaylet, decode

from skate_rpc import node_protocol as node
from skate_rpc.repeats import Repeat
from skate_worker.actor_submitter import ActorSubmitter
from skate_worker.generator_returns import STREAMING, encode_returns
from skate_worker.machine.fetches import Outcome
from skate_worker.machine.references import INLINE, STORED, Entry, Owner
from skate_worker.machine.serials import Received
from skate_worker.object_control import ObjectControl, _Question
from skate_worker.peers import Peer
from skate_worker.production import _Production
from skate_worker.serialization import serialize
from skate_worker.specs import TaskOptions
from skate_worker.task_messages import MESSAGES, WITH_SERIAL
from skate_worker.task_protocol import (
    AskCopy,
    AskLocations,
    AskObject,
    Borrow,
    BorrowKnown,
    Cancel,
    CopyMade,
    CopySources,
    EndBorrow,
    FreeObjects,
    FreeReturns,
    Hello,
    ItemReturned,
    ItemsTaken,
    LeaseBegins,
    Leaving,
    Location,
    Locations,
    ObjectsFreed,
    ObjectValue,
    PullStopped,
    PushCall,
    PushTask,
    Reference,
    Returned,
    StopStream,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)
from skate_worker.task_submitter import TaskSubmitter

TASK = b"task".ljust(24, b"-")
THING = b"thing".ljust(28, b"-")
INNER = b"inner".ljust(28, b"-")
ELSEWHERE = b"e" * 28  # a node
DATA = serialize("value").to_bytes()
# Parts of a process that say nothing about what it decided.
UNTOLD = {"world", "connection", "serials", "_loop", "loop", "lock", "_lock", "_core", "task_ids"}


class NotingRaylet(SimRaylet):
    """Takes what it is told, and does nothing."""

    def post(self, message: Any) -> None:
        self.world.told.append(message)  # type: ignore[attr-defined]


class Process(SimProcess, ObjectControl):
    """A simulated process with the product's submitters, whose raylet notes what it is told."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        parts: tuple[Any, ...] = (
            self.ownership,
            self.completion,
            self.peers,
            self.raylet,
            self._loop,
        )
        self.tasks = TaskSubmitter(*parts)
        self.actor_calls = ActorSubmitter(*parts)
        self._questions = {}
        self._control_handlers = {
            FreeObjects: self._on_free,
            ObjectsFreed: self._on_freed,
            AskLocations: self._on_ask_locations,
            Locations: self._on_locations,
        }

    def _make_raylet(self) -> SimRaylet:
        return NotingRaylet(self.world)


class Stage(World):
    """A receiver and a sender, between whom nothing travels by itself."""

    def __init__(self) -> None:
        super().__init__(0, count=2, repeats=False)
        self.told: list[Any] = []  # what raylets were told
        receiver, sender = Process(self, 1), Process(self, 2)
        self.processes = [receiver, sender]
        self.by_id = {p.worker_id: p for p in self.processes}
        self.receiver, self.sender = receiver, sender
        self.to_sender = receiver.peers.get(sender.worker_id, sender.endpoint)
        self.to_receiver = self._other_end()
        self.as_owner = Owner(sender.worker_id, sender.endpoint)

    def _other_end(self) -> Peer:
        for end in self.connections:
            if end.process is self.sender:
                end.deliver(1)  # the Hello
                peer: Peer = end.context
                return peer
        raise AssertionError("no connection")

    def hear(self, message: Any) -> None:
        """The receiver gets a message of the sender."""
        self.enter(self.receiver, "hears")
        copy = decode(msgspec.msgpack.encode([message]))
        self.receiver._on_peer_messages(self.to_sender, copy)
        self.settle_loops()

    def say(self, message: Any) -> None:
        """A further message of the sender, with a serial of its own."""
        self.hear(self.to_receiver.stamp(message))

    def settle_loops(self) -> None:
        loop: SimLoop = self.receiver._loop  # type: ignore[assignment]
        while loop.ready:
            callback, args = loop.ready.popleft()
            callback(*args)

    def picture(self) -> Any:
        """All that the receiver knows, and all that it sent."""
        process = self.receiver
        inbox: SimConnection = self.to_receiver.connection  # type: ignore[assignment]
        sent = [msgspec.to_builtins(m) for m in inbox.waiting()]
        parts = {name: value for name, value in vars(process).items() if name not in UNTOLD}
        return picture(parts, {}), sent, [repr(message) for message in self.told]

    # ---- situations ----

    def own(self, object_id: bytes, state: int = INLINE) -> Entry:
        entry = self.receiver.ownership.table.own(object_id)
        entry.state = state
        entry.data = DATA if state == INLINE else None
        entry.node_id = ELSEWHERE if state == STORED else b""
        entry.size_bytes = 100 if state == STORED else 0
        return entry

    def borrow(self, object_id: bytes) -> Entry:
        return self.receiver.ownership.adopt(object_id, self.as_owner)

    def reference(self, object_id: bytes) -> Reference:
        return Reference(object_id, self.sender.worker_id, self.sender.endpoint)

    def submit(self, **options: Any) -> bytes:
        """The receiver submits a task, and the sender is leased for it. Returns the task's id."""
        process = self.receiver
        self.enter(process, "submits")
        refs = process.submit_task(b"f", (), {}, TaskOptions("task", **options))
        process.held += [ref for ref in refs if hasattr(ref, "_entry")]
        self.kept = refs
        request = next(m for m in self.told if isinstance(m, node.RequestLease))
        granted = node.LeaseGranted(
            request.request_id,
            b"lease",
            self.sender.worker_id,
            self.sender.node_id,
            self.sender.endpoint,
            2,
        )
        process.tasks.on_granted(granted)
        self.settle_loops()
        (lease,) = process.tasks._pool.leases.values()
        (task_id,) = lease.in_flight
        return bytes(task_id)

    def push(self, attempt: int = 0, task_id: bytes = TASK) -> None:
        """The sender gives the receiver a task to run."""
        self.say(PushTask(task_id, b"f", b"", "task", attempt=attempt))

    def produce(self, attempt: int) -> None:
        """A generator of the sender runs in the receiver."""
        message = PushTask(TASK, b"f", b"", "task", -1, attempt=attempt)
        producers = self.receiver.executor.producers  # type: ignore[union-attr]
        producers._running[TASK] = _Production(producers, self.to_sender, message, 5)


def picture(value: Any, seen: dict[int, int]) -> Any:
    """A value as nested lists that can be compared; whatever does no more than act is left out."""
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, float):
        return "a time"
    if id(value) in seen:
        return f"as {seen[id(value)]}"
    seen[id(value)] = len(seen)
    if isinstance(value, Mapping):
        return [[picture(k, seen), picture(v, seen)] for k, v in value.items()]
    if isinstance(value, list | tuple | deque | set | frozenset):
        return [picture(item, seen) for item in value]
    if not type(value).__module__.startswith("skate_worker") or callable(value):
        return type(value).__name__
    names = [*getattr(value, "__dict__", ())]
    for base in type(value).__mro__:
        names += [name for name in getattr(base, "__slots__", ()) if name not in names]
    fields = [n for n in names if n not in UNTOLD and hasattr(value, n)]
    return [type(value).__name__, *([n, picture(getattr(value, n), seen)] for n in sorted(fields))]


class Scene(NamedTuple):
    """A message, and what happens between it and its repetition."""

    message: Any
    between: Callable[[], None] = lambda: None


SCENES: dict[type, Callable[[Stage], Scene]] = {}
Play = Callable[[Stage], Scene]


def scene(kind: type) -> Callable[[Play], Play]:
    def note(play: Play) -> Play:
        SCENES[kind] = play
        return play

    return note


# ---- the borrowing protocol ----


@scene(AskObject)
def _(stage: Stage) -> Scene:
    thing, inner = stage.own(THING), stage.own(INNER)
    thing.contained = [inner]
    inner.pins += 1
    return Scene(AskObject(THING))


@scene(ObjectValue)
def _(stage: Stage) -> Scene:
    stage.receiver.ownership.watch(stage.borrow(THING), lambda entry: None)
    ((_, asked),) = stage.receiver.ownership._asks
    return Scene(ObjectValue(THING, DATA, contained=[stage.reference(INNER)], asked=asked))


@scene(Borrow)
def _(stage: Stage) -> Scene:
    stage.own(THING)
    return Scene(Borrow(1, [THING]))


@scene(BorrowKnown)
def _(stage: Stage) -> Scene:
    stage.borrow(THING)
    stage.receiver.ownership.tell_untold(None, lambda: None)
    (number,) = stage.receiver.ownership._borrows
    return Scene(BorrowKnown(number))


@scene(EndBorrow)
def _(stage: Stage) -> Scene:
    stage.own(THING)
    stage.say(Borrow(1, [THING]))
    stage.say(Borrow(2, [THING]))
    return Scene(EndBorrow([THING]))


# ---- about objects ----


@scene(FreeObjects)
def _(stage: Stage) -> Scene:
    stage.own(INNER)
    stage.receiver.ownership.table.own(THING)  # not ready: left alone

    def is_made() -> None:
        stage.receiver.ownership.settle(stage.receiver.ownership.table.entries[THING], INLINE, DATA)

    return Scene(FreeObjects([THING, INNER]), is_made)


@scene(ObjectsFreed)
def _(stage: Stage) -> Scene:
    stage.borrow(THING).settle(INLINE, DATA)
    return Scene(ObjectsFreed([THING]))


@scene(AskLocations)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    return Scene(AskLocations(1, [THING]))


@scene(Locations)
def _(stage: Stage) -> Scene:
    question = _Question(2)
    stage.receiver._questions = {
        1: (stage.sender.worker_id, question),
        2: (b"another", question),
    }
    return Scene(Locations(1, [Location(THING, [ELSEWHERE], 100)]))


@scene(AskCopy)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    here = stage.sender.node_id
    return Scene(AskCopy(THING, here), lambda: stage.say(CopyMade(THING, here)))


@scene(CopySources)
def _(stage: Stage) -> Scene:
    def never(outcome: Outcome) -> None:
        raise AssertionError(outcome)

    fetching = stage.receiver.plane.fetching
    fetching.start(THING, stage.as_owner, 100, never)
    stage.settle_loops()
    return Scene(CopySources(THING, [ELSEWHERE], 100))


@scene(CopyMade)
def _(stage: Stage) -> Scene:
    entry = stage.own(THING, STORED)
    here = b"h" * 28
    stage.say(AskCopy(THING, here))
    directory = stage.receiver.plane.directory

    def is_lost() -> None:
        directory.lost_at(entry.object_id, [here], here, is_precious=False)

    return Scene(CopyMade(THING, here), is_lost)


@scene(PullStopped)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    stage.say(AskCopy(THING, b"h" * 28))
    return Scene(PullStopped(THING), lambda: stage.say(AskCopy(THING, b"h" * 28)))


# ---- owner to executor ----


@scene(PushTask)
def _(stage: Stage) -> Scene:
    return Scene(PushTask(TASK, b"f", b"", "task"), lambda: stage.say(TakeBack(1)))


@scene(PushCall)
def _(stage: Stage) -> Scene:
    return Scene(PushCall(TASK, "call", b"", "call"))


@scene(TakeBack)
def _(stage: Stage) -> Scene:
    for number in range(3):
        stage.push(task_id=bytes([number]) * 24)
    return Scene(TakeBack(1))


@scene(Cancel)
def _(stage: Stage) -> Scene:
    stage.push()
    return Scene(Cancel(TASK), lambda: stage.push(attempt=1))


@scene(LeaseBegins)
def _(stage: Stage) -> Scene:
    return Scene(LeaseBegins({"CPU": 1}), lambda: stage.say(LeaseBegins({"CPU": 2})))


@scene(FreeReturns)
def _(stage: Stage) -> Scene:
    outcomes = stage.receiver.outcomes
    assert outcomes is not None
    entry = stage.own(THING)
    entry.pins += 2
    for attempt in (0, 1):  # the task was run again here, because what it returned was lost
        outcomes._pins[TASK, attempt] = (stage.sender.worker_id, [entry])
    return Scene(FreeReturns(TASK, 0))


@scene(ItemsTaken)
def _(stage: Stage) -> Scene:
    stage.produce(0)
    return Scene(ItemsTaken(TASK, 3), lambda: stage.produce(1))


@scene(StopStream)
def _(stage: Stage) -> Scene:
    stage.produce(0)
    return Scene(StopStream(TASK), lambda: stage.produce(1))


# ---- executor to owner ----


@scene(TaskDone)
def _(stage: Stage) -> Scene:
    return Scene(TaskDone(stage.submit(), DATA))


@scene(TaskReturned)
def _(stage: Stage) -> Scene:
    task_id = stage.submit(retry_exceptions=True)
    failed = Returned(serialize(ValueError(), is_error=True).to_bytes(), is_error=True)
    return Scene(TaskReturned(task_id, [failed], is_error=True))  # and it is there again


@scene(TasksGivenBack)
def _(stage: Stage) -> Scene:
    return Scene(TasksGivenBack([stage.submit()]))  # and it is there again


@scene(Leaving)
def _(stage: Stage) -> Scene:
    stage.submit()
    return Scene(Leaving("max_calls"))


@scene(ItemReturned)
def _(stage: Stage) -> Scene:
    task_id = stage.submit(num_returns=encode_returns(STREAMING))
    return Scene(ItemReturned(task_id, 0, Returned(DATA, contained=[stage.reference(INNER)])))


# ---- the tests ----


@contextmanager
def staged() -> Iterator[Stage]:
    with small_limits():
        yield Stage()


def play(stage: Stage, kind: type) -> tuple[Any, Any, Any, Any]:
    """Pictures: at first, after the message, after what came between, after the repetition."""
    message, between = SCENES[kind](stage)
    assert type(message) is kind
    if kind in WITH_SERIAL:
        stage.to_receiver.stamp(message)
    at_first = stage.picture()
    stage.hear(message)
    after = stage.picture()
    between()
    before_again = stage.picture()
    stage.hear(message)
    return at_first, after, before_again, stage.picture()


KINDS = [kind for kind in MESSAGES if kind is not Hello]  # which is for the connection


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_message_has_an_effect_and_its_repetition_none(kind: type) -> None:
    assert kind in SCENES, f"no scene repeats {kind.__name__}"
    with staged() as stage:
        at_first, after, before_again, again = play(stage, kind)
    assert after != at_first
    if MESSAGES[kind].repeat is Repeat.READ_ONLY:
        assert again[0] == at_first[0]  # it is answered again, and that is all
    else:
        assert again == before_again


@pytest.mark.parametrize("kind", sorted(WITH_SERIAL, key=str), ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_repetition_that_no_serial_gives_away_has_an_effect(kind: type) -> None:
    """Otherwise the test above would show nothing, or the serial would be for nothing."""
    with (
        staged() as stage,
        mock.patch("skate_worker.membership.WITH_SERIAL", frozenset()),
        mock.patch.object(Received, "new_of", lambda self, work: work),
    ):
        _, _, before_again, again = play(stage, kind)
    assert again != before_again


def test_second_hello_changes_nothing() -> None:
    with staged() as stage:
        line = stage.to_receiver.connection
        before = stage.picture(), dict(stage.sender.peers._peers)
        hello = Hello(stage.receiver.worker_id, stage.receiver.endpoint)
        stage.sender.peers._on_messages(line, [hello])
        assert (stage.picture(), dict(stage.sender.peers._peers)) == before
