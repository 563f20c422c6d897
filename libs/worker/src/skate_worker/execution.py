"""Running what was pushed: plain tasks and the calls of a synchronous actor, one after the other,
on the process's main thread.

The loop's thread queues what arrives and may take it back while it has not started. A result is
written at once when nothing else waits; between short tasks results are kept for at most
``FLUSH_S``, and they are always written before a task that is not known to be short.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from skate_rpc import node_protocol as node
from skate_rpc.stream import StreamClosedError
from skate_worker.context import TaskContext, running_task
from skate_worker.errors import TaskCancelledError
from skate_worker.outcome import OutcomeWriter
from skate_worker.peers import Connection, Peer
from skate_worker.production import Producers
from skate_worker.serialization import ErrorValue, deserialize, deserialize_args
from skate_worker.task_protocol import Leaving, PushCall, PushTask, TasksGivenBack
from skate_worker.thread_limit import ThreadLimit
from skate_worker.visible_devices import ResourceIds, VisibleDevices

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

FLUSH_S: Final = 0.0002
SHORT_TASK_S: Final = 0.001
_EWMA: Final = 0.3

Work = tuple[Peer, Any]


class WorkerExit(BaseException):
    """Ends the worker from inside a task: ``exit_actor``, ``max_calls``. Not the task's error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.running_task = b""  # the task that asked, when it has no outcome


class Executor:
    """The main thread's work of a worker process."""

    def __init__(self, core: CoreWorker, outcomes: OutcomeWriter) -> None:
        self._core = core
        self._outcomes = outcomes
        self.producers: Producers = Producers(core, outcomes)
        self._queue: deque[Work] = deque()
        self._wake = threading.Lock()
        self._wake.acquire()
        self._is_waiting = False
        self._exit_reason: str | None = None
        self._exit_code = 0
        self._dirty: Connection | None = None
        self._flushed_s = 0.0
        self._run_s: dict[bytes | str, float] = {}
        self._calls_of: dict[bytes, int] = {}
        self._current: Work | None = None
        self._current_s = 0.0  # when it started, as ``time.perf_counter``
        # What async and threaded actors run: task id -> name, start.
        self.running_elsewhere: dict[bytes, tuple[str, float]] = {}
        self._cancelling: bytes | None = None
        self._holds_interrupt = False
        self._was_interrupted = False
        self._main_thread = threading.get_ident()
        self.actor: Any = None  # the actor's instance, in an actor's worker
        self.actor_id = b""
        self.slots = 1  # calls that run at a time
        self.resources: dict[str, int] = {}  # of the lease, or of the actor; see `hold`
        self._thread_limit = ThreadLimit(os.environ)
        self._visible_devices = VisibleDevices(os.environ)
        self.device_names: dict[str, list[str]] = {}  # of the lease, or of the actor; by resource
        self.handle_elsewhere: Callable[[Work], None] | None = None  # async and threaded actors
        self.run_creation: Callable[[node.CreateActor], None] | None = None

    # ---- on the loop's thread ----

    def push(self, work: list[Work]) -> None:
        """Queue what arrived."""
        for _, message in work:
            if message.resolved:
                self._core.plane.prefetch(message.resolved)
            if message.attempt and message.kept_returns:
                self._outcomes.kept_returns[message.task_id] = message.kept_returns
        elsewhere = self.handle_elsewhere
        if elsewhere is not None:
            for item in work:
                elsewhere(item)
            return
        self._queue.extend(work)
        if self._is_waiting:
            self._is_waiting = False
            self._release()

    def take_back(self, peer: Peer, count: int) -> None:
        """The owner wants up to ``count`` tasks that have not started: the youngest."""
        taken: list[bytes] = []
        kept: list[Work] = []
        while len(taken) < count:
            try:
                work = self._queue.pop()
            except IndexError:
                break
            if work[0] is peer and type(work[1]) is PushTask:
                taken.append(work[1].task_id)
            else:
                kept.append(work)
        self._queue.extend(reversed(kept))
        taken.reverse()
        peer.connection.post(peer.stamp(TasksGivenBack(taken)))

    def caller_lost(self, peer: Peer) -> None:
        """The connection to an owner is gone: its tasks that have not started may run elsewhere."""
        for work in list(self._queue):
            if work[0] is peer and type(work[1]) is PushTask:
                with contextlib.suppress(ValueError):  # it started this very moment
                    self._queue.remove(work)

    def cancel(self, peer: Peer, task_id: bytes) -> None:
        """Drop the task if it has not started, interrupt it if it runs; else it is over."""
        for work in list(self._queue):
            if work[1].task_id == task_id:
                try:
                    self._queue.remove(work)
                except ValueError:
                    break  # it started this very moment
                message = work[1]
                error = TaskCancelledError(task_id.hex())
                outcome = self._outcomes.error(
                    task_id, error, message.num_returns, is_cancelled=True
                )
                outcome.attempt = message.attempt
                peer.connection.post(outcome)
                return
        current = self._current
        if current is not None and current[1].task_id == task_id:
            self._cancelling = task_id
            signal.pthread_kill(self._main_thread, signal.SIGINT)
        else:
            self.producers.cancel(task_id)

    def hold(self, resources: dict[str, int], resource_ids: ResourceIds) -> None:
        """What runs next has these, in units: a lease begins, or this becomes an actor."""
        self.resources = resources
        self._thread_limit.follow(resources)
        self.device_names = self._visible_devices.follow(resource_ids)

    def exit_soon(self, reason: str, code: int = 0) -> None:
        """End the main loop after the task that runs now."""
        self._exit_reason = reason
        self._exit_code = code
        self._release()

    def create_actor(self, message: node.CreateActor) -> None:
        """Become an actor; queued like a task."""
        self._queue.append((None, message))  # type: ignore[arg-type]
        self._release()

    # ---- on the main thread ----

    def give_back_queue(self) -> None:
        """The running task is about to wait: other workers may run what stands behind it."""
        current = self._current
        if current is None or self.actor is not None:
            return
        taken: dict[Peer, list[bytes]] = {current[0]: []}
        while True:
            try:
                peer, message = self._queue.popleft()
            except IndexError:
                break
            taken.setdefault(peer, []).append(message.task_id)
        self._flush()
        for peer, task_ids in taken.items():
            if not peer.connection.is_closed:
                peer.connection.post(peer.stamp(TasksGivenBack(task_ids, is_blocked=True)))

    def is_executing_here(self) -> bool:
        """Whether the calling thread is the one that runs tasks, and one is running."""
        return self._current is not None and threading.get_ident() == self._main_thread

    def running(self) -> list[tuple[bytes, str, float]]:
        """The tasks or calls that run: id, name, seconds since the start. Any thread."""
        now_s = time.perf_counter()
        current = self._current
        found = [(task_id, *rest) for task_id, rest in list(self.running_elsewhere.items())]
        if current is not None:
            found.append((current[1].task_id, current[1].name, self._current_s))
        return [(task_id, name, max(0.0, now_s - at_s)) for task_id, name, at_s in found]

    def run(self) -> int:
        """Run until told to exit; returns the exit code."""
        self._main_thread = threading.get_ident()
        signal.signal(signal.SIGINT, self._on_interrupt)
        queue = self._queue
        while self._exit_reason is None:
            try:
                work = queue.popleft()
            except IndexError:
                self._flush()
                if self._core.tracer is not None:
                    self._core.tracer.flush()
                self._sleep()
                continue
            try:
                if type(work[1]) is node.CreateActor:
                    assert self.run_creation is not None
                    self.run_creation(work[1])
                else:
                    self._execute(*work)
            except WorkerExit as request:
                self._flush()
                self._leave(work[0], request)
            except KeyboardInterrupt:
                continue  # a cancellation that came a moment after its task had ended
        self._flush()
        return self._exit_code

    def _leave(self, peer: Peer | None, request: WorkerExit) -> None:
        # The owner hears it first: once the raylet knows, it may report the lease as lost.
        if peer is not None and self.actor is None:
            with contextlib.suppress(StreamClosedError):  # the owner is gone
                peer.connection.send(Leaving(request.reason, request.running_task))
        self._core.announce_exit(request.reason)
        self._exit_reason = request.reason

    def _sleep(self) -> None:
        self._is_waiting = True
        if self._queue or self._exit_reason is not None:
            self._is_waiting = False
            return
        self._wake.acquire()

    def _release(self) -> None:
        try:
            self._wake.release()
        except RuntimeError:
            return  # it is awake already

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        current = self._current
        if (
            current is not None
            and self._cancelling is not None
            and current[1].task_id == self._cancelling
        ):
            self._cancelling = None
            running_task.get().is_cancelled = True
            if self._holds_interrupt:
                self._was_interrupted = True
                return
            raise KeyboardInterrupt

    def _hold_interrupt(self) -> None:
        self._holds_interrupt = True

    def _allow_interrupt(self) -> None:
        self._holds_interrupt = False
        if self._was_interrupted:
            self._was_interrupted = False
            raise KeyboardInterrupt

    def _flush(self) -> None:
        dirty = self._dirty
        if dirty is not None:
            self._dirty = None
            self._flushed_s = time.monotonic()
            try:
                dirty.flush()
            except StreamClosedError:
                return  # the owner is gone, and its results with it

    def _execute(self, peer: Peer, message: Any) -> None:
        is_call = type(message) is PushCall
        key: bytes | str = message.method if is_call else message.function_id
        if self._dirty is not None and self._run_s.get(key, 1.0) > SHORT_TASK_S:
            self._flush()
        self._current = (peer, message)
        tracer = self._core.tracer
        context = "" if tracer is None else tracer.begin_run(message.trace_parent)
        wall_s = time.time() if context else 0.0
        token = running_task.set(
            TaskContext(
                message.task_id,
                message.name,
                message.name,
                self.actor_id,
                message.attempt,
                self.resources,
                context,
            )
        )
        started_s = self._current_s = time.perf_counter()
        exit_after: WorkerExit | None = None
        try:
            try:
                outcome = self._run(peer, message, is_call, started_s)
            except KeyboardInterrupt:
                error = TaskCancelledError(message.task_id.hex())
                outcome = self._outcomes.error(
                    message.task_id, error, message.num_returns, is_cancelled=True
                )
        except WorkerExit as request:
            exit_after = request
            outcome = None
        finally:
            self._current = None
            running_task.reset(token)
        ended_s = time.perf_counter()
        run_s = ended_s - started_s
        mean_s = self._run_s.get(key)
        self._run_s[key] = run_s if mean_s is None else mean_s + _EWMA * (run_s - mean_s)
        if outcome is not None:
            outcome.attempt = message.attempt
            self._reply(peer, outcome)
            if is_call and message.is_retriable:
                self._flush()
        if tracer is not None and context:
            failed = outcome is not None and getattr(outcome, "is_error", False)
            tracer.ended_run(message, context, wall_s, "failed" if failed else "")
        if exit_after is not None:
            exit_after.running_task = message.task_id
            raise exit_after
        if not is_call and message.max_calls:
            count = self._calls_of[key] = self._calls_of.get(key, 0) + 1  # type: ignore[index, arg-type]
            if count >= message.max_calls:
                raise WorkerExit(f"{message.name} ran {count} times, its max_calls")

    def _run(self, peer: Peer, message: Any, is_call: bool, started_s: float) -> Any:
        core = self._core
        try:
            if is_call:
                function = getattr(self.actor, message.method)
            else:
                function = core.functions.load(message.function_id)
            args, kwargs = load_arguments(core, message)
            value = function(*args, **kwargs)
            if message.num_returns < 0:
                return self.producers.run(
                    peer,
                    message,
                    value,
                    started_s,
                    hold=self._hold_interrupt,
                    allow=self._allow_interrupt,
                )
            run_us = int((time.perf_counter() - started_s) * 1e6)
            del args, kwargs
            return self._outcomes.success(
                peer,
                message.task_id,
                message.name,
                value,
                message.num_returns,
                run_us,
                message.attempt,
            )
        except (WorkerExit, KeyboardInterrupt):
            raise
        except SystemExit as request:
            raise exit_request(request) from None
        except BaseException as error:  # noqa: BLE001 - the boundary of user code: whatever it raises is its outcome
            run_us = int((time.perf_counter() - started_s) * 1e6)
            return self._outcomes.failure(
                message.task_id,
                message.name,
                error,
                message.num_returns,
                run_us,
                actor_id=self.actor_id,
                actor_repr=core.actor_repr(),
            )

    def _reply(self, peer: Peer, outcome: Any) -> None:
        ownership = self._core.ownership
        if ownership.untold:
            # The registration travels before the outcome, or the outcome waits for it.
            ownership.tell_untold(peer, lambda: self._reply_now(peer, outcome))
            return
        connection = peer.connection
        if self._dirty is not None and self._dirty is not connection:
            self._flush()
        try:
            connection.queue(outcome)
        except StreamClosedError:
            return  # the owner is gone, and its results with it
        self._dirty = connection
        if not self._queue or time.monotonic() - self._flushed_s > FLUSH_S:
            self._flush()

    def _reply_now(self, peer: Peer, outcome: Any) -> None:
        try:
            peer.connection.send(outcome)
        except StreamClosedError:
            return  # the owner is gone, and its results with it


def exit_request(request: SystemExit) -> BaseException:
    """What ``sys.exit`` in user code means: 0 is a wish, anything else a crash (SURFACE E4)."""
    code = request.code
    if code is None or code == 0:
        return WorkerExit("the task called sys.exit(0)")
    raise SystemExit(code)


def load_arguments(core: CoreWorker, message: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a task or call, with the values of its top-level references in place."""
    resolved = message.resolved
    if not resolved:
        return deserialize_args(message.args)
    values: list[tuple[int | str, Any]] = []
    stored: dict[int | str, Any] | None = None
    for item in resolved:
        data = item.data
        if not data:
            if stored is None:
                stored = core.stored_arguments(resolved)
            data = stored[item.position]
        value = deserialize(data)
        if isinstance(value, ErrorValue):
            try:
                raise value.to_raise()
            finally:
                del value  # or the error and this frame would hold each other
        values.append((item.position, value))
    return deserialize_args(message.args, values)
