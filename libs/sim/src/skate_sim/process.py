"""One simulated driver or worker: the real parts that own and submit, and a simulated executor.

Real here: ``Ownership``, ``Completion``, ``Peers``, ``TaskSubmitter``, ``ActorSubmitter`` and the
machines under them. User code can not wait inside a simulation, so the executor is the
simulator's; it obeys the rules of ``skate_worker.execution``: one task after the other, the
youngest given back first, the whole queue when the running task blocks, and no task of an owner
that is gone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from skate_core_ids import SkateError
from skate_raylet.service.local_process import LocalProcess
from skate_rpc import node_protocol as node
from skate_rpc.stream import StreamClosedError
from skate_sim.network import Pipe
from skate_sim.streams import Life, SimConnection, SimListener, SimLoop
from skate_worker.actor_submitter import ActorCall, ActorSubmitter
from skate_worker.errors import LocalRayletDiedError
from skate_worker.machine.references import PENDING, Owner
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.serialization import serialize
from skate_worker.specs import TaskOptions
from skate_worker.submission import Submission
from skate_worker.task_messages import WITH_SERIAL
from skate_worker.task_protocol import (
    Cancel,
    Hello,
    LeaseBegins,
    Leaving,
    PushCall,
    PushTask,
    Returned,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)
from skate_worker.task_submitter import TaskSubmitter

if TYPE_CHECKING:
    from skate_sim.plans import Plan
    from skate_sim.raylet import SimRaylet
    from skate_sim.world import World

_encode = msgspec.msgpack.Encoder().encode
FIRST_RETURN = b"\0\0\0\1"


class SimulatedError(Exception):
    """What a simulated task raises on purpose."""


class SimNodeClient:
    """Stands for ``NodeClient``: this process's line to its raylet."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._calls: dict[int, Callable[[node.ControlReply], None]] = {}
        self._numbers = itertools.count(1)
        self.is_lost = False

    def send(self, message: Any) -> None:
        """Send at once. Raises :class:`LocalRayletDiedError`."""
        if self.is_lost:
            raise LocalRayletDiedError("the raylet is gone")
        self._process.to_raylet.send(message)

    def post(self, message: Any) -> None:
        """Send soon; a closed line is ignored."""
        if not self.is_lost:
            self._process.to_raylet.send(message)

    def call_soon(
        self, method: str, body: Any, callback: Callable[[node.ControlReply], None]
    ) -> None:
        """Call the GCS through the raylet."""
        number = next(self._numbers)
        self._calls[number] = callback
        self.send(node.ControlCall(number, method, _encode(body)))

    def replied(self, reply: node.ControlReply) -> None:
        """A call was answered."""
        callback = self._calls.pop(reply.call_id, None)
        if callback is not None:
            callback(reply)

    def lost(self) -> None:
        """The raylet is gone: what is not answered never will be."""
        self.is_lost = True
        for number in list(self._calls):
            error = node.ControlReply(number, error="the raylet is gone", error_kind="unavailable")
            self.replied(error)


class ToProcess:
    """The raylet's end of the line; stands for its ``StreamConnection``."""

    def __init__(self, pipe: Pipe, life: Life) -> None:
        self._pipe = pipe
        self._life = life

    def send(self, message: Any) -> None:
        """Send. Raises :class:`StreamClosedError` when the process is gone."""
        if not self._life.is_alive:
            raise StreamClosedError("closed")
        self._pipe.send(message)

    post = send

    def close(self, reason: str = "") -> None:
        """Ends with the process anyway."""


class SimProcess:
    """One process of one node."""

    def __init__(
        self, world: World, raylet: SimRaylet, job_id: bytes, *, startup_id: int = 0
    ) -> None:
        number = world.next_process()
        self.world = world
        self.raylet = raylet
        self.job_id = job_id
        self.startup_id = startup_id
        self.is_driver = startup_id == 0
        self.name = f"{'d' if self.is_driver else 'w'}{number}"
        self.worker_id = b"proc%05d" % number + bytes(19)
        self.endpoint = f"{raylet.host}/{self.name}"
        self.life = Life(self.name, raylet.host)
        self.local: LocalProcess | None = None
        network = world.network
        self.to_raylet = Pipe(network, raylet.host, raylet.host, self._raylet_takes)
        self.from_raylet = Pipe(network, raylet.host, raylet.host, self._take)
        self.to_process = ToProcess(self.from_raylet, self.life)
        loop: Any = SimLoop(world.agenda, self.life)
        self.loop = loop
        self.ownership = Ownership(self.worker_id, raylet.node_id, loop)
        self.ownership.as_owner = Owner(self.worker_id, self.endpoint, raylet.node_id)
        self.peers = Peers(
            self.worker_id,
            self.endpoint,
            b"",
            loop,
            self._on_peer_messages,
            self._on_peer_lost,
            dial=self._dial,
            listen_at=self._listen_at,
        )
        self.peers.node_id = raylet.node_id
        self.ownership.peers = self.peers
        self.peers.listen()
        client: Any = SimNodeClient(self)
        self.client: SimNodeClient = client
        self.completion = Completion(self.ownership, number, "")
        self.tasks = TaskSubmitter(
            self.ownership, self.completion, self.peers, client, loop, clock=world.clock
        )
        self.actor_calls = ActorSubmitter(self.ownership, self.completion, self.peers, client, loop)
        self.executor = SimExecutor(self)
        self.on_registered: Callable[[], None] = _nothing

    def __repr__(self) -> str:
        return self.name

    # ---- submitting, as TaskSubmission and ActorManagement do ----

    def submit(self, plan: Plan, options: TaskOptions) -> Submission:
        """Submit a plain task."""
        message = PushTask(plan.task_id, b"f" * 16, b"", options.name)
        return self._submit(
            Submission(plan.task_id, message, [], options.max_retries, options.retry_exceptions),
            options,
        )

    def _submit(self, submission: Submission, options: TaskOptions) -> Submission:
        entry = self.ownership.table.own(submission.task_id + FIRST_RETURN)
        submission.entries.append(entry)
        submission.queue = self.tasks.queue_for(options)
        self.tasks.submit(submission)
        return submission

    def submit_call(self, plan: Plan, actor_id: bytes, max_retries: int) -> ActorCall:
        """Call an actor."""
        message = PushCall(plan.task_id, "m", b"", "m", is_retriable=bool(max_retries))
        call = ActorCall(plan.task_id, message, [], max_retries, False)
        call.entries.append(self.ownership.table.own(plan.task_id + FIRST_RETURN))
        calls = self.actor_calls.calls_of(actor_id)
        call.is_resolved = not plan.resolves_s
        self.actor_calls.submit(calls, call)
        if plan.resolves_s:
            self.loop.call_later(plan.resolves_s, self.actor_calls.resolved, calls, call, None)
        return call

    # ---- connections ----

    def _dial(self, endpoint: str, token: bytes, loop: Any, **handlers: Any) -> SimConnection:
        return self.world.sockets.dial(
            self.life,
            endpoint,
            handlers["incoming"],
            handlers["on_messages"],
            handlers["on_close"],
        )

    def _listen_at(self, endpoint: str, token: bytes, loop: Any, **handlers: Any) -> SimListener:
        return SimListener(
            self.world.sockets,
            self.life,
            endpoint,
            handlers["on_open"],
            handlers["on_messages"],
            handlers["on_close"],
        )

    def _on_peer_messages(self, peer: Peer, batch: list[Any]) -> None:
        received = peer.serials.received
        results: list[Any] = []
        for message in batch:
            if type(message) is TaskDone or type(message) is TaskReturned:
                results.append(message)
                continue
            if type(message) in WITH_SERIAL and not received.is_new(message.serial):
                continue  # it comes a second time
            if results:
                self._on_results(peer, results)
                results = []
            self._on_other_message(peer, message)
        if results:
            self._on_results(peer, results)

    def _on_results(self, peer: Peer, results: list[Any]) -> None:
        if peer.lease is not None:
            self.tasks.on_results(peer, results)
        elif peer.actor is not None:
            self.actor_calls.on_results(peer, results)

    def _on_other_message(self, peer: Peer, message: Any) -> None:
        match message:
            case PushTask() | PushCall():
                self.executor.push(peer, message)
            case TasksGivenBack():
                if peer.lease is not None:
                    self.tasks.on_given_back(peer, message)
            case TakeBack(count):
                self.executor.take_back(peer, count)
            case Cancel(task_id):
                self.executor.cancel(peer, task_id)
            case Leaving():
                if peer.lease is not None:
                    self.tasks.on_leaving(peer, message)
            case LeaseBegins() | Hello():
                pass
            case _:
                raise AssertionError(f"a peer said {message}")

    def _on_peer_lost(self, peer: Peer, reason: str) -> None:
        self.world.note(self.name, "lost a peer")
        if peer.lease is not None:
            self.tasks.on_peer_lost(peer, reason)
        if peer.actor is not None:
            self.actor_calls.on_peer_lost(peer, reason)
        self.executor.caller_lost(peer)

    # ---- the raylet ----

    def _raylet_takes(self, batch: list[Any]) -> None:
        self.raylet.on_messages(self, batch)

    def registered(self) -> None:
        """The raylet admitted this driver."""
        self.on_registered()

    def _take(self, batch: list[Any]) -> None:
        for message in batch:
            if not self.life.is_alive:
                return
            match message:
                case node.LeaseGranted():
                    self.tasks.on_granted(message)
                case node.LeaseRefused():
                    self.tasks.on_refused(message)
                case node.LeaseLost():
                    self.tasks.on_lost(message)
                case node.ReclaimLease():
                    self.tasks.on_reclaim(message)
                case node.ActorUpdate():
                    self.actor_calls.on_update(message)
                case node.ControlReply():
                    self.client.replied(message)
                case node.CreateActor():
                    self.executor.create_actor(message)
                case node.ExitNow():
                    self.executor.exit_soon()
                case node.NodeDied(node_id, cause):
                    for peer in self.peers.on_node(node_id):
                        peer.connection.close(f"its node died: {cause.message}")
                case _:
                    raise AssertionError(f"a raylet said {message}")

    def raylet_lost(self) -> None:
        """The daemon is gone: a worker ends, a driver is told."""
        if not self.life.is_alive:
            return
        if not self.is_driver:
            self.die("its raylet is gone")
            return
        self.client.lost()
        entries = self.ownership.table.entries.values()
        pending = [entry for entry in entries if entry.state == PENDING]
        self.tasks.abandon()
        self.actor_calls.abandon()
        error: SkateError = LocalRayletDiedError("the raylet is gone")
        self.ownership.fail(pending, error)

    # ---- the end ----

    def die(self, why: str, *, is_told: bool = True) -> None:
        """This process ends here and now."""
        if not self.life.is_alive:
            return
        world = self.world
        world.note(self.name, f"ends: {why}")
        sockets = world.sockets
        ends = sockets.ends_of(self.life)
        self.life.is_alive = False
        for end in ends:
            is_far = end.other.life.host != self.life.host
            lost = world.random.choice((0, 0, 1, 3)) if is_far and world.loses_messages else 0
            end.die(lost, is_told=is_told)
        self.from_raylet.is_closed = True
        self.executor.ended()
        world.owner_ended(self)
        self.raylet.process_died(self, why)

    def exit(self, reason: str, running_task: bytes = b"", peer: Peer | None = None) -> None:
        """End on purpose: the caller hears it first, then the raylet. Nothing starts any more."""
        self.executor.has_left = True
        if peer is not None:
            try:
                peer.connection.send(Leaving(reason, running_task))
            except StreamClosedError:
                pass  # the owner is gone
        self.client.post(node.Exiting(reason))
        self.world.agenda.after(0.002, self.die, reason)


class SimExecutor:
    """What a worker runs. Invariant: at most one task runs, and it is not in the queue."""

    def __init__(self, process: SimProcess) -> None:
        self._process = process
        self._world = process.world
        self._queue: deque[tuple[Peer | None, Any]] = deque()
        self._current: tuple[Peer | None, Any] | None = None
        self._is_exiting = False
        self.has_left = False  # nothing starts any more
        self._waits_for = 0  # children that the running task waits for
        self.actor_id = b""
        self.incarnation = -1

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._current is None and not self._queue

    @property
    def caller(self) -> Peer | None:
        """Whose task runs."""
        return None if self._current is None else self._current[0]

    @property
    def running(self) -> bytes:
        """The task that runs, or b""."""
        return b"" if self._current is None else getattr(self._current[1], "task_id", b"")

    def push(self, peer: Peer, message: Any) -> None:
        """Queue what arrived."""
        self._queue.append((peer, message))
        self._go_on()

    def create_actor(self, message: node.CreateActor) -> None:
        """Become an actor; queued like a task."""
        self._queue.append((None, message))
        self._go_on()

    def take_back(self, peer: Peer, count: int) -> None:
        """Give back up to ``count`` tasks of this caller, the youngest."""
        taken: list[bytes] = []
        kept: list[tuple[Peer | None, Any]] = []
        while len(taken) < count and self._queue:
            work = self._queue.pop()
            if work[0] is peer and type(work[1]) is PushTask:
                taken.append(work[1].task_id)
            else:
                kept.append(work)
        self._queue.extend(reversed(kept))
        taken.reverse()
        self._say(peer, peer.stamp(TasksGivenBack(taken)))

    def cancel(self, peer: Peer, task_id: bytes) -> None:
        """Drop a task that has not started; interrupt one that runs."""
        for work in list(self._queue):
            if getattr(work[1], "task_id", b"") == task_id:
                self._queue.remove(work)
                self._say(peer, _error(work[1], is_cancelled=True))
                return
        if self.running == task_id and not self._waits_for and self._current is not None:
            self._finish(_error(self._current[1], is_cancelled=True))

    def caller_lost(self, peer: Peer) -> None:
        """The connection to an owner is gone: its tasks that have not started may run elsewhere."""
        self._queue = deque(
            work for work in self._queue if work[0] is not peer or type(work[1]) is not PushTask
        )

    def exit_soon(self) -> None:
        """End after the task that runs now."""
        self._is_exiting = True
        if self._current is None:
            self._process.die("it was asked to end")

    def ended(self) -> None:
        """The process is gone."""
        self.has_left = True
        self._queue.clear()
        self._current = None

    def _say(self, peer: Peer | None, message: Any) -> None:
        if peer is None:
            return
        try:
            peer.connection.post(message)
        except StreamClosedError:
            return  # the caller is gone

    def _go_on(self) -> None:
        if self._current is not None or not self._queue or self.has_left:
            return
        work = self._current = self._queue.popleft()
        message = work[1]
        world, process = self._world, self._process
        if type(message) is node.CreateActor:
            world.oracle.actor_starts(message.actor_id, message.incarnation, process)
            duration_s = world.actor_plan(message.actor_id).duration_s
            world.agenda.after(duration_s, self._created, work, message)
            return
        plan = world.plans[message.task_id]
        world.note(process.name, f"starts {plan.name} attempt {message.attempt}")
        world.oracle.task_starts(plan, message, process)
        if plan.children and message.attempt == 0:
            self._run_children(work, plan)
        else:
            world.agenda.after(plan.duration_s, self._ran, work, plan)

    def _created(self, work: Any, message: node.CreateActor) -> None:
        if self._current is not work:
            return
        process = self._process
        plan = self._world.actor_plan(message.actor_id)
        self._current = None
        if message.incarnation < plan.deaths:
            process.die("its constructor killed it")
            return
        if plan.raises:
            process.client.post(
                node.ActorCreationFailed(message.actor_id, message.incarnation, b"", "it raised")
            )
            process.exit("the actor's constructor raised")
            return
        self.actor_id, self.incarnation = message.actor_id, message.incarnation
        process.client.post(node.ActorCreated(message.actor_id, message.incarnation))
        self._go_on()

    def _run_children(self, work: Any, plan: Plan) -> None:
        """Submit tasks and wait for them, as a nested ``get`` does."""
        process, world = self._process, self._world
        self._waits_for = len(plan.children)

        def settled(_: Any) -> None:
            self._waits_for -= 1
            if self._waits_for == 0 and self._current is work:
                process.client.post(node.Unblocked())
                world.agenda.after(plan.duration_s, self._ran, work, plan)

        for child in plan.children:
            world.submit(process, child, settled)
        if self._waits_for:
            process.client.post(node.Blocked())
            self._give_back_queue(work[0])

    def _give_back_queue(self, current: Peer | None) -> None:
        taken: dict[int, tuple[Peer, list[bytes]]] = {}
        if current is not None:
            taken[id(current)] = (current, [])
        for peer, message in self._queue:
            if peer is not None:
                taken.setdefault(id(peer), (peer, []))[1].append(message.task_id)
        self._queue.clear()
        for peer, task_ids in taken.values():
            self._say(peer, peer.stamp(TasksGivenBack(task_ids, is_blocked=True)))

    def _ran(self, work: tuple[Peer | None, Any], plan: Plan) -> None:
        is_current = self._current is work
        if not is_current:
            return
        attempt = work[1].attempt
        if attempt < plan.deaths:
            self._process.die(f"{plan.name} killed it")
        elif attempt < plan.deaths + plan.raises:
            self._finish(_error(work[1]))
        elif plan.exits:
            peer, self._current = work[0], None
            self._process.exit("the task called sys.exit(0)", plan.task_id, peer)
        else:
            self._world.oracle.task_ends(plan, work[1])
            data = b"%s#%d" % (plan.name.encode(), attempt)
            self._finish(TaskDone(plan.task_id, data, int(plan.duration_s * 1e6), attempt))

    def _finish(self, outcome: Any) -> None:
        current, self._current = self._current, None
        self._say(current[0] if current is not None else None, outcome)
        if self._is_exiting:
            self._process.die("it was asked to end")
        else:
            self._go_on()


def _error(message: Any, *, is_cancelled: bool = False) -> TaskReturned:
    data = serialize(SimulatedError("on purpose"), is_error=True).to_bytes()
    returned = [Returned(data, is_error=True)]
    return TaskReturned(
        message.task_id,
        returned,
        is_error=True,
        is_cancelled=is_cancelled,
        attempt=message.attempt,
    )


def _nothing() -> None:
    return None
