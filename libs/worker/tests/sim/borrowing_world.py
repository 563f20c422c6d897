"""A seeded session of several processes that pass references to each other, and its oracle.

Real here: ``Ownership``, ``Completion``, ``OutcomeWriter``, ``Executor``, ``Peers``, ``ObjectRef``,
pickling, ``put``, ``get``, ``wait`` and ``submit_task``; so the protocol is the product's own code,
and an ``ObjectRef`` that a simulated process holds is a real one. Simulated: the operating system
(``sim_parts``) and who runs which task (``SimSubmitter``). One step is one call of the API, one
delivered batch, one callback of a loop, or one task, in an order that the seed draws; a task lets
other things happen in its middle. What happens between two threads of one process is not simulated.

The oracle (``oracle.py``) knows who holds what because it made the values; it asks no counts.
"""

from __future__ import annotations

import itertools
import pickle
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from oracle import Oracle, Violation
from sim_parts import SimConnection, SimLoop, SimRaylet, SimStore, open_sim_stream

from skate_core_ids import JobID
from skate_object_store import StoreTimeoutError
from skate_rpc import node_protocol as node
from skate_worker.current import current_slot, set_current_core
from skate_worker.errors import ObjectLostError, WorkerCrashedError
from skate_worker.execution import Executor
from skate_worker.functions import FunctionTable
from skate_worker.machine.references import PENDING, Entry, Owner
from skate_worker.object_plane import ObjectPlane
from skate_worker.object_ref import ObjectRef
from skate_worker.outcome import OutcomeWriter
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.specs import TaskOptions
from skate_worker.streams import Streams
from skate_worker.submission import Submission
from skate_worker.task_protocol import Borrow, TaskReturned
from skate_worker.task_submission import TaskSubmission

NODE_ID = b"n" * 28
JOB_ID = JobID(b"\0\0\0\1")
INLINE_BYTES = 1200  # stands for 100 KiB, so that large values are quick to make
INLINE_TOTAL_BYTES = 2000
PAD = b"x" * 1500
SETTLE_STEPS_MAX = 20_000
DEPTH_MAX = 3


class UserError(Exception):
    """What a simulated task raises on purpose."""


@contextmanager
def small_limits() -> Iterator[None]:
    """Scale the product's size limits down and dial into the simulated network."""
    with (
        mock.patch("skate_worker.object_access.INLINE_MAX_BYTES", INLINE_BYTES),
        mock.patch("skate_worker.outcome.INLINE_MAX_BYTES", INLINE_BYTES),
        mock.patch("skate_worker.outcome.INLINE_TOTAL_MAX_BYTES", INLINE_TOTAL_BYTES),
        mock.patch("skate_worker.submission.INLINE_TOTAL_MAX_BYTES", 150),
        mock.patch("skate_worker.serialization.arguments.INLINE_LIMIT_BYTES", INLINE_BYTES),
        mock.patch(
            "skate_worker.serialization.arguments.INLINE_TOTAL_LIMIT_BYTES", INLINE_TOTAL_BYTES
        ),
        mock.patch("skate_worker.peers.open_stream", open_sim_stream),
    ):
        before = current_slot[0]
        try:
            yield
        finally:
            set_current_core(before)


class TaskBody:
    """A function as it travels: with the references in its closure."""

    def __init__(self, closure: list[Any]) -> None:
        self.closure = closure

    def __call__(self, *args: Any) -> Any:
        process: Any = current_slot[0]
        return process.world.run_body(process, self, args)


class SimSubmitter:
    """Stands for ``TaskSubmitter``: sends each task to some process, again when that one died."""

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        self.pending: dict[bytes, tuple[Submission, list[bytes], bytes]] = {}
        self.next_args: list[bytes] = []

    def queue_for(self, options: TaskOptions) -> None:
        return None

    def expect(self, submission: Submission) -> None:
        self.pending[submission.task_id] = (submission, self.next_args, b"")

    def resolved(self, submission: Submission, failure: Any) -> None:
        if failure is None:
            self.submit(submission)
            return
        self.pending.pop(submission.task_id)
        self.process.completion.fail_dependency(submission, failure.data)

    def submit(self, submission: Submission) -> None:
        process = self.process
        known = self.pending.get(submission.task_id)
        args = self.next_args if known is None else known[1]
        targets = [
            p for p in process.world.processes if p is not process and p.is_believed(process)
        ]
        if not targets:
            self._fail(submission)
            return
        target = process.world.choose_target(targets)
        peer = process.peers.get(target.worker_id, target.endpoint)
        peer.lease = True
        self.pending[submission.task_id] = (submission, args, target.worker_id)
        peer.connection.queue(peer.stamp(submission.message))

    def on_results(self, peer: Peer, results: list[Any]) -> None:
        process = self.process
        finished: list[tuple[Submission, Any]] = []
        args_of: dict[bytes, list[bytes]] = {}
        for result in results:
            known = self.pending.get(result.task_id)
            if known is not None and known[0].attempt == result.attempt:
                del self.pending[result.task_id]
                finished.append((known[0], result))
                args_of[result.task_id] = known[1]
        with process.ownership.lock:
            process.completion.settle(finished)
        for again in process.completion.finish(peer, finished):
            self.pending[again.task_id] = (again, args_of[again.task_id], b"")
            self.submit(again)
        process.completion.wake()

    def on_peer_lost(self, peer: Peer, reason: str) -> None:
        for submission, _, target in self.pending.values():
            if target == peer.worker_id:
                self.process.ownership.hold_for_grace(submission.pinned)
        for submission, _, target in list(self.pending.values()):
            if target != peer.worker_id:
                continue
            self.process.completion.attempt_lost(submission, self.process.ownership.node_id)
            if submission.take_attempt():
                self.submit(submission)
            else:
                self._fail(submission)

    def _fail(self, submission: Submission) -> None:
        self.pending.pop(submission.task_id, None)
        self.process.world.oracle.forget_returns(submission)
        self.process.completion.fail(submission, WorkerCrashedError("its process died"))


class SimProcess(TaskSubmission):
    """A member without sockets and threads, and what its user's program holds."""

    def __init__(self, world: World, number: int) -> None:
        # Not `super().__init__`: that one starts a thread and dials a raylet.
        self.world = world
        self.name = f"p{number}"
        self.worker_id = number.to_bytes(28, "big")  # type: ignore[assignment]
        self.node_id = NODE_ID  # type: ignore[assignment]
        self.job_id = JOB_ID
        self.endpoint = f"unix:/{self.name}"
        self.as_owner = Owner(self.worker_id, self.endpoint)
        self.pid, self.ip = number, "127.0.0.1"
        self.is_closed = False
        self.is_driver = False
        self.tracer = None
        self.actor_host = None
        self.stop_async_actor = self.cancel_async_call = None
        self._lost_reason = ""
        self._queues = {}
        self._task_ids = world  # type: ignore[assignment]
        self._put_numbers = itertools.count()
        self._put_prefix = bytes([number]) * 20 + JOB_ID
        self._task_suffix = bytes(12) + JOB_ID
        loop: Any = SimLoop(world)
        loop.process = self
        self._loop = loop
        self.ownership = Ownership(self.worker_id, NODE_ID, loop)
        self.ownership.new_object_id = self._new_object_id
        self.ownership.store = SimStore(self)  # type: ignore[assignment]
        self.peers = Peers(
            self.worker_id, self.endpoint, "", loop, self._on_peer_messages, self._on_peer_lost
        )
        self.ownership.peers = self.peers
        self.raylet = self._make_raylet()  # type: ignore[assignment]
        self.ownership.as_owner = self.as_owner
        self.completion = Completion(self.ownership, self.pid, self.ip)
        self.streams = self._make_streams()
        self.completion.streams = self.streams
        self.plane = ObjectPlane(self.ownership, self.peers, self.raylet, loop, self._submit_again)
        self.completion.recovery = self.plane.recovery
        self.completion.delete_stray = self.plane.owned.delete_at
        self.tasks: Any = SimSubmitter(self)
        self.functions = FunctionTable(self.raylet)
        self._prepare_execution()

        self.is_alive = True
        self.busy = 0  # tasks that run; more than one only in a threaded process
        self.is_threaded = False
        self.held: list[ObjectRef[Any]] = []
        self.running: list[list[ObjectRef[Any]]] = []  # of the bodies that run
        self.out_of_band: list[bytes] = []  # ids pickled by other means, once each time
        self.exported: list[bytes] = []  # ids in the closures of exported functions
        self.noticed: set[bytes] = set()  # dead processes that it knows of
        self.function_ids = [self.export(TaskBody([]))]

    def _make_raylet(self) -> SimRaylet:
        return SimRaylet(self.world)

    def _make_streams(self) -> Streams:
        return Streams(self, self.ownership)  # type: ignore[arg-type]

    def _prepare_execution(self) -> None:
        self.outcomes = OutcomeWriter(self.ownership, self.ip)
        self.executor = Executor(self, self.outcomes)  # type: ignore[arg-type]
        self.executor._main_thread = 0  # `get` in a task never waits here

    def _bring_once(self, missing: list[Entry], ends_s: float | None, priority: int) -> None:
        # There is one node, so what is not in its store is gone; nothing can be waited for here.
        raise ObjectLostError(missing[0].object_id.hex())

    def __repr__(self) -> str:
        return self.name

    @property
    def bodies(self) -> list[TaskBody]:
        """The functions that it has loaded."""
        return list(self.functions._loaded.values())

    def is_believed(self, asker: SimProcess) -> bool:
        """Whether ``asker`` still takes this process for alive."""
        return self.worker_id not in asker.noticed

    def actor_repr(self) -> str:
        return ""

    def _on_peer_lost(self, peer: Peer, reason: str) -> None:
        self.noticed.add(peer.worker_id)
        super()._on_peer_lost(peer, reason)


class World:
    """One seed's session."""

    def __init__(
        self,
        seed: int,
        *,
        steps: int = 60,
        trace: bool = False,
        count: int = 0,
        repeats: bool = True,
    ) -> None:
        """``repeats``: messages may be delivered again."""
        self.seed = seed
        self.random = random.Random(seed)
        # Its own draws: without repetitions a session is the same as if they were not thought of.
        self.repetition = random.Random(f"repetitions of {seed}")
        self.repeat_rate = self.repetition.choice((0, 0.05, 0.3)) if repeats else 0
        self.late_rate = self.repetition.choice((0.02, 0.2))
        self.late: list[tuple[SimConnection, bytes]] = []  # where it came first, and what
        self.steps = steps
        self.trace: list[str] | None = [] if trace else None
        self.events: list[str] = []
        self.stored: dict[bytes, tuple[bytes, bytes]] = {}  # object id -> data, owner
        self.functions: dict[bytes, bytes] = {}
        self.connections: list[SimConnection] = []
        self.notices: list[tuple[SimProcess, SimProcess]] = []  # (to whom, about whom)
        self.store_notices: list[bytes] = []  # owners whose objects the store is to delete
        self.pickles: list[tuple[SimProcess, bytes, bytes]] = []
        self._task_numbers = itertools.count(1)
        self.depth = 0
        self.is_settling = False
        draw = self.random
        # In a chain everything is passed on at once, and who passes on may die of it.
        self.is_chain = draw.random() < 0.3
        count = count or (5 if self.is_chain else draw.choice((3, 3, 4, 5)))
        self.processes = [SimProcess(self, n + 1) for n in range(count)]
        self.by_id = {p.worker_id: p for p in self.processes}
        self.oracle = Oracle(self)
        for process in self.processes:
            self.oracle.watch(process)
            process.is_threaded = draw.random() < 0.3
        # Swarm: each seed has its own habits, so that rare things also happen often somewhere.
        self.crash_rate = draw.choice((0, 0, 0.01, 0.04))
        self.net_rate = draw.choice((0.4, 0.6, 0.75))
        self.slow_rate = draw.choice((0, 0.8, 0.97))  # how often slow connections are passed over
        # Passing a reference on and forgetting it is what leaves objects to the protocol alone.
        self.forget_rate = draw.choice((0, 0.5, 0.9))
        if self.is_chain:
            self.crash_rate, self.forget_rate = 0.01, 0.95
        self.store_failure_rate = draw.choice((0, 0, 0.05))
        rates = {
            self.do_put: 3,
            self.do_submit: draw.choice((3, 6)),
            self.do_get: draw.choice((2, 5)),
            self.do_wait: draw.choice((0, 2, 5)),
            self.do_drop: draw.choice((1, 3, 6)),
            self.do_pickle: draw.choice((0, 0, 0, 1)),
            self.do_export: draw.choice((0, 0, 0.5)),
        }
        self.actions = list(rates)
        self.action_weights = list(itertools.accumulate(rates.values()))

    # ---- the world's clockwork ----

    def run(self) -> None:
        """The whole session. Raises :class:`Violation`."""
        for _ in range(self.steps):
            if self.random.random() < self.net_rate:
                self.step_machinery()
            else:
                self.step_user()
        self.settle("settled")
        # Now every program lets go of everything, and nothing may be left but what is pinned on
        # purpose.
        for process in self.alive():
            self.enter(process, "drops everything")
            process.held.clear()
        self.settle("empty")
        current_slot[0] = None

    def alive(self) -> list[SimProcess]:
        return [p for p in self.processes if p.is_alive]

    def settle(self, when: str) -> None:
        """Let everything that is under way end, then compare the tables with the oracle."""
        self.is_settling = True
        for _ in range(SETTLE_STEPS_MAX):
            if not self.step_machinery() and not self._drain_all():
                break
        else:
            raise Violation(f"{when}: it never comes to rest")
        self.oracle.check_rest(when)
        self.is_settling = False

    def _drain_all(self) -> bool:
        # What a process does with its next message or call: small things may wait for that.
        is_any = False
        for process in self.alive():
            ownership = process.ownership
            if ownership._dropped or any(not e.is_told for e in ownership.untold):
                is_any = True
                self.enter(process, "drains")
                ownership.drain_dropped()
                ownership.tell_untold(None, _nothing)
        return is_any

    def enter(self, process: SimProcess, what: str) -> None:
        current_slot[0] = process  # type: ignore[call-overload]
        line = f"{process} {what}"
        self.events.append(line)
        if self.trace is not None:
            self.trace.append(line)

    def step_user(self) -> None:
        living = self.alive()
        process = self.random.choice(living)
        if len(living) > 1 and self.random.random() < self.crash_rate:
            self.crash(process)
            return
        if process.busy:
            return
        action = self.random.choices(self.actions, cum_weights=self.action_weights)[0]
        self.enter(process, action.__name__[3:])
        action(process)
        self.oracle.check_step()

    def step_machinery(self) -> bool:
        """One delivery, callback, task or notice. False: there is none."""
        if self.late and self.repetition.random() < self.late_rate:
            return self._repeat_late()
        options: list[Any] = [c for c in self.connections if c.inbox or c.is_broken]
        if self.slow_rate and self.random.random() < self.slow_rate:
            options = [c for c in options if not c.is_slow] or options
        for process in self.processes:
            if process.is_alive:
                if process._loop.ready:  # type: ignore[attr-defined]
                    options.append(process._loop)
                is_free = process.is_threaded or not process.busy
                if process.executor._queue and is_free and self.depth < DEPTH_MAX:  # type: ignore[union-attr]
                    options.append(process.executor)
        if self.notices:
            options.append(self.notices)
        if self.store_notices:
            options.append(self.store_notices)
        if not options and self.late:
            return self._repeat_late()
        if not options or (self.random.random() < 0.1 and self._may_run_timers()):
            return self._run_timers()
        chosen = options[self.random.randrange(len(options))]
        if type(chosen) is SimConnection:
            self.enter(chosen.process, f"hears from {chosen.other.process}")
            is_break = not chosen.inbox
            chosen.deliver(self.random.choice((1, 1, 2, 5)))
            if is_break:
                self.connections.remove(chosen)
        elif type(chosen) is SimLoop:
            self.enter(chosen.process, "runs a callback")  # type: ignore[attr-defined]
            callback, args = chosen.ready.popleft()
            callback(*args)
        elif chosen is self.notices:
            to_whom, about = self.notices.pop(self.random.randrange(len(self.notices)))
            if to_whom.is_alive:
                self.enter(to_whom, f"is told that {about} died")
                to_whom.noticed.add(about.worker_id)
                death = node.Death("signaled", "the raylet says so")
                to_whom._on_worker_died(node.WorkerDied(about.worker_id, death))
        elif chosen is self.store_notices:
            self._release_owner(self.store_notices.pop())
        else:
            self._execute(chosen._core)
        self.oracle.check_step()
        return True

    def repeat(self, end: SimConnection, data: bytes) -> int:
        """A message is delivered: how many more times it is at once. It may come later too."""
        draw = self.repetition
        if draw.random() >= self.repeat_rate:
            return 0
        if draw.random() < 0.25:
            return 1
        self.late.append((end, data))
        return 0

    def _repeat_late(self) -> bool:
        draw = self.repetition
        first, data = self.late.pop(draw.randrange(len(self.late)))
        ends = [
            end
            for end in self.connections
            if end.process is first.process
            and end.other.process is first.other.process
            and end.context is not None  # it is known who speaks
        ]
        if ends:
            self.enter(first.process, f"hears again from {first.other.process}")
            draw.choice(ends).deliver_again(data)
            self.oracle.check_step()
        return True

    def _release_owner(self, owner_id: bytes) -> None:
        self.events.append("the store forgets an owner")
        for object_id in [k for k, (_, o) in self.stored.items() if o == owner_id]:
            del self.stored[object_id]

    def _may_run_timers(self) -> bool:
        # The one assumption on time: a grace is longer than the news of a death takes to all
        # others, and what they send on hearing it.
        if self.notices or any(p._loop.ready for p in self.alive()):  # type: ignore[attr-defined]
            return False
        return any(p._loop.timers for p in self.alive()) and not any(  # type: ignore[attr-defined]
            c.is_broken or any(type(message) is Borrow for message in c.waiting())
            for c in self.connections
        )

    def _run_timers(self) -> bool:
        for process in self.processes:
            if process.is_alive and process._loop.timers and not process.busy:  # type: ignore[attr-defined]
                self.enter(process, "runs a timer")
                callback, args = process._loop.timers.popleft()  # type: ignore[attr-defined]
                callback(*args)
                self.oracle.check_step()
                return True
        # The raylet does it a second time, for what was written when the first was under way.
        for process in self.processes:
            if not process.is_alive:
                self._release_owner(process.worker_id)
        return False

    def _execute(self, process: SimProcess) -> None:
        executor = process.executor
        assert executor is not None
        work = executor._queue.popleft()
        self.enter(process, f"runs {self.name_of(work[1].task_id)}")
        process.busy += 1
        self.depth += 1
        try:
            executor._execute(*work)
            if self.oracle.violation is not None:
                raise self.oracle.violation  # the executor took it for the task's own error
        finally:
            self.depth -= 1
            process.busy -= 1

    def dial(self, endpoint: str, loop: Any) -> SimConnection:
        target = next(p for p in self.processes if p.endpoint == endpoint)
        near, far = SimConnection(loop.process), SimConnection(target)
        near.other, far.other = far, near
        near.is_slow, far.is_slow = self.random.random() < 0.3, self.random.random() < 0.3
        if loop.is_dead:
            return near  # what a dead process still does has no effect
        far.is_accepted = False
        near.is_broken = not target.is_alive
        self.connections += [near] if near.is_broken else [near, far]
        return near

    def crash(self, process: SimProcess) -> None:
        self.enter(process, "dies")
        process.is_alive = False
        process._loop.is_dead = True  # type: ignore[attr-defined]
        for end in [c for c in self.connections if c.process is process]:
            self.connections.remove(end)
            other = end.other
            other.is_broken = True
            lost = self.random.choice((0, 0, 1, 3, 10))
            for _ in range(min(lost, len(other.inbox))):
                other.inbox.pop()
            if not other.is_accepted and not other.inbox and other in self.connections:
                self.connections.remove(other)  # it never said who it was
        self._forget_lost_outcomes(process)
        self.notices += [(p, process) for p in self.alive()]
        self.store_notices.append(process.worker_id)
        process.held.clear()
        process.out_of_band.clear()
        process.exported.clear()
        process.functions._loaded.clear()

    def _forget_lost_outcomes(self, dead: SimProcess) -> None:
        arriving = {
            message.task_id
            for end in self.connections
            if end.other.process is dead
            for message in end.waiting()
            if type(message) is TaskReturned
        }
        for process in self.alive():
            for submission, _, target in process.tasks.pending.values():
                if target == dead.worker_id and submission.task_id not in arriving:
                    self.oracle.forget_returns(submission)

    def choose_target(self, targets: list[SimProcess]) -> SimProcess:
        """Which process runs the next task."""
        return self.random.choice(targets)

    def of(self, suffix: bytes) -> bytes:
        """The next task id; stands for ``TaskIdSource``."""
        return next(self._task_numbers).to_bytes(8, "big") + suffix

    def name_of(self, object_id: bytes) -> str:
        """Short: ``t7`` a task, ``t7.1`` what it returns, ``p2:3`` the third put of p2."""
        if object_id[0]:
            return f"p{object_id[0]}:{int.from_bytes(object_id[24:], 'big') & 0x7FFFFFFF}"
        number = int.from_bytes(object_id[:8], "big")
        return f"t{number}" + (f".{object_id[-1]}" if len(object_id) == 28 else "")

    def describe(self, message: Any) -> str:
        ids = [getattr(message, "object_id", b""), getattr(message, "task_id", b"")]
        ids += getattr(message, "object_ids", [])
        inner = [*getattr(message, "contained", [])]
        for returned in getattr(message, "returns", []):
            inner += returned.contained
        text = " ".join(self.name_of(i) for i in ids if i)
        if inner:
            text += f" holding {' '.join(self.name_of(r.object_id) for r in inner)}"
        number = getattr(message, "number", 0)
        return f"{type(message).__name__} {text}" + (f" #{number}" if number else "")

    # ---- what programs do ----

    def make_value(self, refs: list[ObjectRef[Any]]) -> Any:
        """A value with these references somewhere inside, small or large."""
        value: list[Any] = [PAD] if self.random.random() < 0.3 else []
        value.extend(ref if self.random.random() < 0.6 else [[ref]] for ref in refs)
        return value

    def some(self, refs: list[ObjectRef[Any]], most: int = 2) -> list[ObjectRef[Any]]:
        count = min(len(refs), self.random.randrange(most + 1))
        return self.random.sample(refs, count)

    def do_put(self, process: SimProcess, more: list[ObjectRef[Any]] | None = None) -> None:
        inner = self.some(process.held + (more or []))
        value = self.make_value(inner)
        store: Any = process.ownership.store
        store.is_failing = self.random.random() < self.store_failure_rate
        try:
            ref = process.put(value)
        except StoreTimeoutError:
            return
        finally:
            store.is_failing = False
        self.oracle.contents[ref.binary()] = [r.binary() for r in inner]
        process.held.append(ref)
        self.forget(process, inner)

    def do_submit(self, process: SimProcess, more: list[ObjectRef[Any]] | None = None) -> None:
        mine = process.held + (more or [])
        top_level = [] if self.is_chain else self.some(mine)
        nested = self.some(mine) or (mine[-1:] if self.is_chain else [])
        args: tuple[Any, ...] = tuple(top_level)
        if nested:
            args += (self.make_value(nested),)
        function_id = self.random.choice(process.function_ids)
        process.tasks.next_args = [r.binary() for r in (*top_level, *nested)]
        options = TaskOptions(
            "task",
            self.random.choice((1, 1, 1, 2)),
            (),
            self.random.choice((0, 0, 2)),
            # Two attempts of one task, both with an outcome, matter only where one comes twice.
            retry_exceptions=bool(self.repeat_rate) and self.repetition.random() < 0.5,
        )
        refs = process.submit_task(function_id, args, {}, options)
        process.held += refs
        self.forget(process, top_level + nested)

    def do_get(self, process: SimProcess, more: list[ObjectRef[Any]] | None = None) -> None:
        settled = [r for r in process.held + (more or []) if r._entry.state != PENDING]
        if not settled:
            return
        ref = self.random.choice(settled)
        try:
            value = process.get([ref])[0]
        except BaseException as error:  # noqa: BLE001 - judged by the oracle
            self.oracle.check_error(process, ref, error)
            return
        inner = collect(value)
        self.oracle.check_value(ref, inner)
        process.held += self.some(inner)

    def do_wait(self, process: SimProcess) -> None:
        # Waiting for a borrowed object is what asks its owner for the value.
        unknown = [r for r in process.held if r._entry.owner and r._entry.state == PENDING]
        if unknown:
            ref = self.random.choice(unknown)
            process.wait([ref], 1, 0)
            self.forget(process, [ref])

    def do_drop(self, process: SimProcess) -> None:
        for _ in range(self.random.randrange(1, 5)):
            if process.held:
                process.held.pop(self.random.randrange(len(process.held)))

    def forget(self, process: SimProcess, passed_on: list[ObjectRef[Any]]) -> None:
        """The program may let go of what it has just passed on."""
        if passed_on and self.random.random() < self.forget_rate:
            process.held = [ref for ref in process.held if ref not in passed_on]

    def do_pickle(self, process: SimProcess) -> None:
        if self.pickles and self.random.random() < 0.5:
            pickler, data, _ = self.random.choice(self.pickles)
            if pickler.is_alive and pickler is not process:
                ref = pickle.loads(data)
                process.held.append(ref)
                if self.random.random() < 0.7:
                    process.wait([ref], 1, 0)
                    process.ownership.tell_untold(None, _nothing)
        elif process.held:
            ref = self.random.choice(process.held)
            process.out_of_band.append(ref.binary())
            with warnings.catch_warnings(action="ignore"):
                self.pickles.append((process, pickle.dumps(ref), ref.binary()))

    def do_export(self, process: SimProcess) -> None:
        closure = self.some(process.held)
        process.exported += [r.binary() for r in closure]
        process.function_ids.append(process.export(TaskBody(closure)))

    def run_body(self, process: SimProcess, body: TaskBody, args: tuple[Any, ...]) -> Any:
        """What a task does; runs inside the real ``Executor``."""
        executor = process.executor
        assert executor is not None
        assert executor._current is not None
        peer, message = executor._current
        if peer.worker_id in process.noticed:
            # Nobody covers its arguments any more, and nobody waits for its outcome.
            process.functions._loaded.pop(message.function_id, None)
            return [None] * message.num_returns
        refs = collect(args) + body.closure
        process.running.append(refs)
        try:
            draw = self.random
            for _ in range(draw.choice((0, 1, 3, 6, 25))):
                what = 1.0 if self.is_settling else draw.random()
                if what < 0.4:
                    act = draw.choice((self.do_get, self.do_submit, self.do_put))
                    if self.is_chain and not draw.randrange(3):
                        act = self.do_submit
                    act(process, refs)
                elif what < 0.6:
                    self.step_user()
                elif what < (0.75 if self.is_chain else 0.65) and self.crash_rate:
                    victim = draw.choice((process, self.by_id[peer.worker_id]))
                    if victim.is_alive and len(self.alive()) > 1:
                        self.crash(victim)
                    for _ in range(draw.choice((0, 40))):  # long enough for the news to be old
                        self.step_machinery()
                else:
                    self.step_machinery()
                current_slot[0] = process  # type: ignore[call-overload]
                if not process.is_alive:
                    return [None] * message.num_returns
            if draw.random() < 0.5 and not self.is_settling:
                process.held += self.some(refs)
            if draw.random() < 0.1:
                raise UserError
            choice = [
                ref
                for ref in refs + process.held
                if not self.oracle.leads_to(ref.binary(), message.task_id)
            ]
            returned = [self.some(choice) for _ in range(message.num_returns)]
            for inner in returned:
                self.forget(process, inner)
            values = [self.make_value(inner) for inner in returned]
            store: Any = process.ownership.store
            store.is_failing = draw.random() < self.store_failure_rate
            self.oracle.returning(message.task_id, returned)
            return values if message.num_returns > 1 else values[0]
        finally:
            process.running.pop()


def collect(value: Any) -> list[ObjectRef[Any]]:
    """The references in a value, in order."""
    if isinstance(value, ObjectRef):
        return [value]
    if isinstance(value, list | tuple):
        return [ref for item in value for ref in collect(item)]
    return []


def _nothing() -> None:
    return None
