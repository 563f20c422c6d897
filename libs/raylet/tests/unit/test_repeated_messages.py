"""Each message of a process is handed to the raylet twice: the second time nothing happens.

What decides is the raylet's own: the node's machine, the pull planner, the book of owners, the
actors' host and directory. What those and the server call beyond is noted, and must not be called
again.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import pull_events as pulls
from skate_raylet.machine.pull_config import PullConfig
from skate_raylet.machine.pull_planner import PullPlanner
from skate_raylet.service.actor_directory import ActorDirectory
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.group_desk import GroupDesk
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_raylet.service.logs.driver_logs import DriverLogs
from skate_raylet.service.object_reporter import ObjectReporter
from skate_raylet.service.owner_book import OwnerBook
from skate_raylet.service.process_questions import ProcessQuestions
from skate_raylet.service.process_server import ProcessServer
from skate_raylet.service.wait_reporter import WaitReporter
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.node_messages import MESSAGES, WITH_SERIAL, stamp
from skate_rpc.repeats import Repeat
from skate_rpc.serials import Serials
from skate_scheduler import ResourceSet

JOB = b"\0\0\0\1"
PROCESS = b"p" * 28
THING = b"t" * 28
FAR = b"f" * 28  # a node
ACTOR = b"a" * 16
GROUP = b"g" * 18
KINDS = typing.get_args(node.FromProcess)


class Line:
    """A connection: what is sent is noted."""

    def __init__(self, noted: list[Any]) -> None:
        self.context: Any = None
        self.is_closed = False
        self.noted = noted

    def send(self, message: Any) -> None:
        if type(message) in WITH_SERIAL:
            message = msgspec.structs.replace(message, serial=0)  # each has another
        self.noted.append(msgspec.to_builtins(message))

    post = queue = send

    def flush(self) -> None:
        """All of it is noted already."""

    def close(self, reason: str) -> None:
        self.noted.append(f"closed: {reason}")


class Station:
    """A raylet's side of the stream, without a network."""

    def __init__(self, desk: Any) -> None:
        self.noted: list[Any] = []
        self.desk = desk
        self.line = Line(self.noted)
        self.serials = Serials()  # the process's
        self.process = LocalProcess(
            PROCESS, 1, JOB, "", "unix:/p", True, 0, self.line  # type: ignore[arg-type]
        )  # fmt: skip
        self.processes = LocalProcesses()
        self.processes.add(self.process)
        self.planner = PullPlanner(PullConfig(bytes_max=100), b"here")
        self.planner.handle(pulls.NodeSeen(FAR), 0.0)
        self.owners = OwnerBook(self.note("release an owner"))
        link: Any = SimpleNamespace(report=self.note("report"))
        self.actors = ActorHost(
            b"here",
            ResourceSet.from_amounts({"CPU": 2}),
            link,
            self.processes,
            self.tell,
            lambda strategy, placement, running: "",
        )
        self.directory = ActorDirectory(self.note("ask for an actor"))
        tailer: Any = SimpleNamespace(look_soon=lambda: None)
        self.logs = DriverLogs(self.process, tailer)
        nothing: Any = None
        self.objects = ObjectReporter(nothing, "", self.processes, nothing, nothing, nothing)
        lists: Any = (nothing, nothing, nothing)
        self.waits = WaitReporter(nothing, "", self.processes, desk.machine, *lists)
        client: Any = SimpleNamespace(groups=SimpleNamespace(get=self.find_group))
        self.groups = GroupDesk(client, b"here", self.tell, list)
        worker = self.worker = SimpleNamespace(intent="")
        config: Any = SimpleNamespace(gcs_endpoint="", node_id=b"here", session_dir="")
        config.is_tracing = False
        self.server = ProcessServer(
            config,
            machine=desk.machine,
            tell=self.tell,
            processes=self.processes,
            workers=self.stub(
                get=lambda startup_id: worker,
                announce_exit=lambda w, reason: setattr(w, "intent", w.intent or reason),
            ),
            actors=self.actors,
            directory=self.directory,
            gateway=self.stub(call=self.note("call")),
            link=nothing,
            jobs=nothing,
            transfers=self.stub(
                pull=self.note("pull"),
                cancel=lambda process_id, m: self.plan(pulls.PullCancelled(process_id, m.pull_id)),
                delete_copies=self.note("delete copies"),
                keep_copies=self.note("keep copies"),
            ),
            owners=self.owners,
            logs=self.stub(
                on_taken=lambda process, m: self.logs.taken(m.number),
                on_flush=lambda process, m: process.send(node.LogsFlushed(m.number)),
            ),
            on_driver_gone=nothing,
            on_task_events=self.note("task events"),
            user_metrics=self.stub(record=self.note("user metrics")),
            groups=self.groups,
            on_objects=self.objects.on_report,
            on_waits=self.waits.on_report,
        )
        self.line.context = self.process

    def stub(self, **methods: Any) -> Any:
        return SimpleNamespace(**methods)

    def note(self, what: str) -> Callable[..., None]:
        def noting(*args: Any) -> None:
            messages = [a for a in args if isinstance(a, msgspec.Struct)]
            self.noted.append((what, [msgspec.to_builtins(m) for m in messages]))

        return noting

    async def find_group(self, group_id: bytes) -> gcs_pb2.PlacementGroupInfo:
        spec = gcs_pb2.PlacementGroupSpec(group_id=group_id)
        return gcs_pb2.PlacementGroupInfo(spec=spec, state=gcs_pb2.PLACEMENT_GROUP_STATE_PENDING)

    def tell(self, event: Any) -> None:
        self.noted += map(repr, self.desk.tell(event))

    def plan(self, event: Any) -> None:
        self.noted += map(repr, self.planner.handle(event, 0.0))

    def hear(self, message: Any) -> None:
        """The raylet gets a message of the process."""
        copy = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message))
        self.server._on_messages(self.line, [copy])  # type: ignore[arg-type]

    async def settle(self) -> None:
        """What was begun in the background ends."""
        while tasks := list(self.groups._tasks):
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # for the callback that forgets them

    def say(self, message: Any) -> None:
        """A further message of the process, with a serial of its own."""
        self.hear(stamp(message, self.serials))

    def lease(self, number: int = 1) -> do.GrantLease:
        grant: do.GrantLease = self.desk.grant(number, PROCESS)
        return grant

    def questions(self) -> tuple[ProcessQuestions[Any], ...]:
        return self.objects._questions, self.waits._questions

    def place(self) -> None:
        """An actor's creation is sent to the process."""
        spec = gcs_pb2.ActorSpec(actor_id=ACTOR, job_id=JOB)
        self.actors._actors[ACTOR, 0] = actor = mock.Mock(spec=["spec", "worker_id"])
        actor.spec, actor.worker_id, actor.is_failure_reported = spec, PROCESS, False

    def picture(self) -> Any:
        """All that was decided, and all that was done about it."""
        machine = self.desk.machine
        leases = [
            (lease.lease_id, repr(lease.state), lease.is_blocked) for lease in machine.leases()
        ]
        waiting = [
            (w.holder_id, repr(w.needs), w.backlog) for w in machine.waiting(self.desk.now_s)
        ]
        return (
            list(self.noted),
            leases,
            waiting,
            repr(machine.available),
            sorted(self.planner._of_waiter),
            {k: list(v) for k, v in self.owners._by_node.items()},
            list(self.process.actors),
            self.logs._taken,
            self.worker.intent,
            {group_id: len(one) for group_id, one in self.groups._watchers.items()},
            [a.done() for q in self.questions() for a in q._answers.values()],
        )


class Scene(NamedTuple):
    """A message, and what happens between it and its repetition."""

    message: Any
    between: Callable[[], object] = lambda: None


Play = Callable[[Station], Scene]


def cancelled_request(station: Station) -> Scene:
    for number in (1, 2, 3):
        station.say(node.RequestLease(number, {"CPU": 20_000}))
    return Scene(node.CancelLeaseRequest(3))


def told_backlog(station: Station) -> Scene:
    station.lease()
    station.say(node.RequestLease(9, {"CPU": 20_000}))
    return Scene(node.TellBacklog([(9, 5)]), lambda: station.say(node.TellBacklog([(9, 3)])))


def returned_lease(station: Station) -> Scene:
    grant = station.lease()
    return Scene(node.ReturnLease(grant.lease_id), lambda: station.lease(2))


def blocked(station: Station) -> Scene:
    grant = station.lease()
    station.process.worker_id = grant.worker_id
    return Scene(node.Blocked(), lambda: station.say(node.Unblocked()))


def unblocked(station: Station) -> Scene:
    grant = station.lease()
    station.process.worker_id = grant.worker_id
    station.say(node.Blocked())
    return Scene(node.Unblocked(), lambda: station.say(node.Blocked()))


def created(station: Station) -> Scene:
    station.place()
    return Scene(node.ActorCreated(ACTOR, 0))


def creation_failed(station: Station) -> Scene:
    station.place()
    return Scene(node.ActorCreationFailed(ACTOR, 0, b"error", "it raised"))


def exiting(station: Station) -> Scene:
    station.lease()
    (lease,) = station.desk.machine.leases()
    station.process.startup_id = lease.state.startup_id
    return Scene(node.Exiting("max_calls"))


def unsubscribed(station: Station) -> Scene:
    station.say(node.SubscribeActor(ACTOR))
    return Scene(node.UnsubscribeActor(ACTOR), lambda: station.say(node.SubscribeActor(ACTOR)))


def cancelled_pull(station: Station) -> Scene:
    station.plan(pulls.PullRequested(PROCESS, 1, THING, 10, b"owner", (FAR,), 0))
    station.plan(pulls.PullRequested(PROCESS, 2, THING, 10, b"owner", (FAR,), 0))
    return Scene(node.CancelPull(1))


def reported(message: Any) -> Play:
    def play(station: Station) -> Scene:
        for questions in station.questions():
            questions._answers[PROCESS, 1] = asyncio.get_running_loop().create_future()
        return Scene(message)

    return play


def killed(station: Station) -> Scene:
    return Scene(node.KillWorker(station.lease().lease_id, "cancelled"))


def taken(station: Station) -> Scene:
    station.logs._sent = 5
    return Scene(node.LogsTaken(2), lambda: station.say(node.LogsTaken(4)))


SCENES: dict[type, Play] = {
    node.RegisterProcess: lambda station: Scene(node.RegisterProcess(b"short", 1, "unix:/p", True)),
    node.RequestLease: lambda station: Scene(
        node.RequestLease(1, {"CPU": 10_000}), lambda: station.say(node.CancelLeaseRequest(1))
    ),
    node.CancelLeaseRequest: cancelled_request,
    node.TellBacklog: told_backlog,
    node.ReturnLease: returned_lease,
    node.Blocked: blocked,
    node.Unblocked: unblocked,
    node.ControlCall: lambda station: Scene(node.ControlCall(1, "kill_actor", b"")),
    node.KillWorker: killed,
    node.ActorCreated: created,
    node.ActorCreationFailed: creation_failed,
    node.Exiting: exiting,
    node.TaskEvents: lambda station: Scene(node.TaskEvents([])),
    node.UserMetrics: lambda station: Scene(node.UserMetrics([])),
    node.SubscribeActor: lambda station: Scene(
        node.SubscribeActor(ACTOR), lambda: station.say(node.UnsubscribeActor(ACTOR))
    ),
    node.UnsubscribeActor: unsubscribed,
    node.PullObject: lambda station: Scene(node.PullObject(1, THING, 10, b"owner", [FAR])),
    node.CancelPull: cancelled_pull,
    node.ObjectsReport: reported(node.ObjectsReport(1, [])),
    node.WaitsReport: reported(node.WaitsReport(1, [], 0, [], [])),
    node.DeleteCopies: lambda station: Scene(node.DeleteCopies({FAR: [THING]})),
    node.KnowOwner: lambda station: Scene(node.KnowOwner(b"owner", FAR)),
    node.KeepCopies: lambda station: Scene(node.KeepCopies({FAR: [THING]})),
    node.SubscribePlacementGroup: lambda station: Scene(node.SubscribePlacementGroup(GROUP)),
    node.LogsTaken: taken,
    node.FlushLogs: lambda station: Scene(node.FlushLogs(1)),
}


def play(desk: Any, kind: type) -> tuple[Any, Any, Any, Any]:
    """Pictures: at first, after the message, after what came between, after the repetition."""

    async def acts() -> tuple[Any, Any, Any, Any]:
        station = Station(desk)
        message, between = SCENES[kind](station)
        assert type(message) is kind
        if kind is node.RegisterProcess:
            station.line.context = None
        stamp(message, station.serials)
        at_first = station.picture()
        station.hear(message)
        await station.settle()
        after = station.picture()
        between()
        before_again = station.picture()
        station.hear(message)
        await station.settle()
        return at_first, after, before_again, station.picture()

    return asyncio.run(acts())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_message_has_an_effect_and_its_repetition_none(desk: Any, kind: type) -> None:
    assert kind in SCENES, f"no scene repeats {kind.__name__}"
    at_first, after, before_again, again = play(desk, kind)
    assert again[1:] == before_again[1:]
    said_again = again[0][len(before_again[0]) :]
    match MESSAGES[kind].repeat:
        case Repeat.READ_ONLY:
            assert after[1:] == at_first[1:]
            assert said_again == after[0][len(at_first[0]) :]  # answered again
        case Repeat.IDEMPOTENT:
            assert after != at_first
            # What it reports or orders is the same, and changes nothing a second time there.
            assert all(line in after[0] for line in said_again)
        case _:
            assert after != at_first
            assert said_again == []


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind in WITH_SERIAL], ids=lambda kind: kind.__name__
)
@pytest.mark.invariant("I25")
def test_repetition_that_no_serial_gives_away_has_an_effect(desk: Any, kind: type) -> None:
    """Otherwise the test above would show nothing, or the serial would be for nothing."""
    with mock.patch("skate_raylet.service.process_server.is_new", return_value=True):
        _, _, before_again, again = play(desk, kind)
    assert again != before_again
