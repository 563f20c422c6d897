"""A process of the borrowing simulation to which single messages are handed, and a picture of it.

Its submitters and its line to the raylet are the product's own. What is pictured is all of its
tables and all that it sent, so that two pictures are equal when nothing happened in between.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
from borrowing_world import SimProcess, World, small_limits
from sim_parts import SimConnection, SimLoop, SimRaylet, decode

from skate_rpc import node_protocol as node
from skate_rpc.serials import Serials
from skate_worker.actor_submitter import ActorSubmitter
from skate_worker.core import CoreWorker
from skate_worker.log_printer import LogPrinter
from skate_worker.machine.references import INLINE, STORED, Entry, Owner
from skate_worker.node_client import NodeClient
from skate_worker.object_giving import ObjectGiving
from skate_worker.peers import Peer
from skate_worker.placement_groups import PlacementGroups
from skate_worker.production import _Production
from skate_worker.serialization import serialize
from skate_worker.specs import TaskOptions
from skate_worker.task_protocol import (
    AskLocations,
    FreeObjects,
    GiveObject,
    Locations,
    ObjectsFreed,
    PushTask,
    Reference,
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


class NotingHandler(logging.Handler):
    """Notes what a user would read."""

    def __init__(self, told: list[Any]) -> None:
        super().__init__(logging.WARNING)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


class Process(SimProcess, ObjectGiving):
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
        self.log_printer = LogPrinter(self.raylet.post)
        self.log_printer._thread = threading.current_thread()  # the stage runs it
        core: Any = self
        self.placement_groups = PlacementGroups(core)
        self.blocked = {}
        self.group_id = self.captured_group = b""
        self.line = NodeClient.__new__(NodeClient)  # it dials when it is made
        self.line._calls = {}
        self.line._serials = Serials()
        self.line._registered = threading.Event()
        self.line._registration = None
        self.line._handlers = {
            **self._handlers(),
            node.AskObjects: lambda m: CoreWorker._on_ask_objects(core, m),
            node.AskWaits: lambda m: CoreWorker._on_ask_waits(core, m),
            node.PlacementGroupUpdate: self.placement_groups.on_update,
        }
        self.out_of_band = {}  # type: ignore[assignment]
        self._questions = {}
        self._control_handlers = {
            FreeObjects: self._on_free,
            ObjectsFreed: self._on_freed,
            AskLocations: self._on_ask_locations,
            Locations: self._on_locations,
            GiveObject: self._on_give,
        }

    def _make_raylet(self) -> SimRaylet:
        return NotingRaylet(self.world)


class Stage(World):
    """A receiver and a sender, between whom nothing travels by itself."""

    def __init__(self) -> None:
        super().__init__(0, count=2, repeats=False)
        self.told: list[Any] = []  # what raylets were told
        self.kept: list[Any] = []  # what the program holds
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

    def be_told(self, message: Any) -> None:
        """The receiver gets a message of its raylet."""
        self.enter(self.receiver, "is told")
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        self.receiver.line._on_messages(None, [copy])  # type: ignore[arg-type]
        self.settle_loops()
        printer = self.receiver.log_printer
        printer._queue.put(None)
        printer._run()

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

    def request(self, **options: Any) -> node.LeaseGranted:
        """The receiver submits a task. Returns the sender as a lease for it."""
        process = self.receiver
        self.enter(process, "submits")
        self.kept.append(process.submit_task(b"f", (), {}, TaskOptions("task", **options)))
        request = [m for m in self.told if isinstance(m, node.RequestLease)][-1]
        return node.LeaseGranted(
            request.request_id,
            b"lease",
            self.sender.worker_id,
            self.sender.node_id,
            self.sender.endpoint,
            2,
        )

    def submit(self, **options: Any) -> bytes:
        """The receiver submits a task, and the sender is leased for it. Returns the task's id."""
        process = self.receiver
        process.tasks.on_granted(self.request(**options))
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
    if isinstance(value, msgspec.Struct):
        return repr(value)
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
    between: Callable[[], object] = lambda: None


@contextmanager
def staged() -> Iterator[Stage]:
    """A stage whose limits are those of the simulation."""
    with small_limits():
        stage = Stage()
        log = logging.getLogger("skate")
        noting = NotingHandler(stage.told)
        log.addHandler(noting)
        try:
            yield stage
        finally:
            log.removeHandler(noting)
