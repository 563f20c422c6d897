"""An actor's worker: making the instance, and running calls of async and threaded actors.

A synchronous actor's calls run on the main thread through ``execution``. An async actor (a class
with at least one ``async def``) runs everything on one event loop on the main thread, at most
``max_concurrency`` calls at a time; a threaded actor runs calls on a pool of ``max_concurrency``
threads (SURFACE A5, A8, A9, A10).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from skate_rpc import node_protocol as node
from skate_rpc.stream import StreamClosedError
from skate_worker.context import TaskContext, running_task
from skate_worker.errors import TaskCancelledError, make_task_error
from skate_worker.execution import Executor, Work, WorkerExit, exit_request, load_arguments
from skate_worker.outcome import OutcomeWriter
from skate_worker.peers import Peer
from skate_worker.production import ProductionCancelledError
from skate_worker.serialization import serialize
from skate_worker.task_protocol import CreationTask, PushCall

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

DEFAULT_GROUP = ""


class ActorHost:
    """What turns an idle worker into an actor."""

    def __init__(self, core: CoreWorker, executor: Executor, outcomes: OutcomeWriter) -> None:
        self._core = core
        self._executor = executor
        self._outcomes = outcomes
        self.has_own_repr: bool = False
        self.class_name: str = ""
        executor.run_creation = self.create

    def create(self, message: node.CreateActor) -> None:
        """Run the constructor on the main thread and report the outcome to the raylet."""
        core, executor = self._core, self._executor
        task = msgspec.msgpack.decode(message.creation_task, type=CreationTask)
        executor.actor_id = message.actor_id
        executor.hold(task.resources, message.resource_ids)
        core.enter_group(task.placement_group_id, task.captures)
        core.was_restarted = message.incarnation > 0
        core.actor_name = task.actor_name
        core.namespace = task.namespace or core.namespace
        tracer = core.tracer
        context = "" if tracer is None else tracer.begin_run(task.trace_parent)
        wall_s = time.time()
        token = running_task.set(
            TaskContext(
                name=task.name,
                function_name=task.name,
                actor_id=message.actor_id,
                attempt=message.incarnation,
                resources=task.resources,
                trace_parent=context,
            )
        )
        try:
            cls = core.functions.load(task.class_id)
            args, kwargs = load_arguments(core, task)
            executor.actor = cls(*args, **kwargs)
        except WorkerExit:
            raise
        except SystemExit as request:
            raise exit_request(request) from None
        except BaseException as error:  # noqa: BLE001 - the boundary of user code: the constructor's error is the outcome
            self._report_failure(message, task, error)
            raise WorkerExit("the actor's constructor raised") from None
        finally:
            running_task.reset(token)
        if tracer is not None:
            tracer.ended_run(task, context, wall_s, "")
        self.class_name = type(executor.actor).__name__
        self.has_own_repr = "__repr__" in _own_names(type(executor.actor))
        if task.is_async:
            AsyncCalls(core, executor, self._outcomes, task).take_over(message)
        elif task.max_concurrency > 1 or task.concurrency_groups:
            ThreadedCalls(core, executor, self._outcomes, task)
            core.raylet.send(node.ActorCreated(message.actor_id, message.incarnation))
        else:
            core.raylet.send(node.ActorCreated(message.actor_id, message.incarnation))

    def _report_failure(
        self, message: node.CreateActor, task: CreationTask, error: BaseException
    ) -> None:
        wrapped = make_task_error(
            error,
            function_name=task.name,
            pid=self._core.pid,
            ip=self._core.ip,
            actor_id=message.actor_id.hex(),
        )
        self._core.raylet.send(
            node.ActorCreationFailed(
                message.actor_id,
                message.incarnation,
                serialize(wrapped, is_error=True).to_bytes(),
                f"{type(error).__name__}: {error}",
            )
        )


def _own_names(cls: type) -> set[str]:
    """What the class and its bases define, but for what every object has."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


class _ConcurrentCalls:
    """What async and threaded actors share: the outcome of one call, sent by whoever ran it."""

    def __init__(
        self, core: CoreWorker, executor: Executor, outcomes: OutcomeWriter, task: CreationTask
    ) -> None:
        self.core = core
        self.executor = executor
        self.outcomes = outcomes
        self.limits = {DEFAULT_GROUP: task.max_concurrency, **dict(task.concurrency_groups)}
        executor.slots = sum(self.limits.values())
        self.running = executor.running_elsewhere

    def context(self, message: PushCall) -> TaskContext:
        tracer = self.core.tracer
        return TaskContext(
            message.task_id,
            message.name,
            message.name,
            self.executor.actor_id,
            message.attempt,
            self.executor.resources,
            "" if tracer is None else tracer.begin_run(message.trace_parent),
        )

    def success(self, peer: Peer, message: PushCall, value: Any, started_s: float) -> Any:
        run_us = int((time.perf_counter() - started_s) * 1e6)
        return self.outcomes.success(
            peer,
            message.task_id,
            message.name,
            value,
            message.num_returns,
            run_us,
            message.attempt,
        )

    def failure(self, message: PushCall, error: BaseException, started_s: float) -> Any:
        run_us = int((time.perf_counter() - started_s) * 1e6)
        return self.outcomes.failure(
            message.task_id,
            message.name,
            error,
            message.num_returns,
            run_us,
            actor_id=self.executor.actor_id,
            actor_repr=self.core.actor_repr(),
        )

    def cancelled(self, message: PushCall) -> Any:
        error = TaskCancelledError(message.task_id.hex())
        return self.outcomes.error(message.task_id, error, message.num_returns, is_cancelled=True)

    def reply(self, peer: Peer, message: PushCall, outcome: Any, started_s: float) -> None:
        tracer = self.core.tracer
        if tracer is not None:
            wall_s = time.time() - (time.perf_counter() - started_s)
            error = "failed" if getattr(outcome, "is_error", False) else ""
            tracer.ended_run(message, running_task.get().trace_parent, wall_s, error)
        outcome.attempt = message.attempt
        send: Callable[[Any], None] = peer.connection.post
        ownership = self.core.ownership
        if ownership.untold:
            ownership.tell_untold(peer, lambda: _send(send, outcome))
        else:
            _send(send, outcome)


def _nothing() -> None:
    # No interrupt reaches a thread of a pool.
    return None


def _send(send: Callable[[Any], None], outcome: Any) -> None:
    try:
        send(outcome)
    except StreamClosedError:
        return  # the caller is gone, and its results with it


class ThreadedCalls(_ConcurrentCalls):
    """Calls on pools of threads, one pool a concurrency group."""

    def __init__(
        self, core: CoreWorker, executor: Executor, outcomes: OutcomeWriter, task: CreationTask
    ) -> None:
        super().__init__(core, executor, outcomes, task)
        self._pools = {
            name: ThreadPoolExecutor(limit, thread_name_prefix=f"skate-{name or 'actor'}")
            for name, limit in self.limits.items()
        }
        executor.handle_elsewhere = self._handle

    def _handle(self, work: Work) -> None:
        peer, message = work
        pool = self._pools.get(message.concurrency_group) or self._pools[DEFAULT_GROUP]
        pool.submit(self._run, peer, message)

    def _run(self, peer: Peer, message: PushCall) -> None:
        started_s = time.perf_counter()
        self.running[message.task_id] = (message.name, started_s)
        running_task.set(self.context(message))
        try:
            method = getattr(self.executor.actor, message.method)
            args, kwargs = load_arguments(self.core, message)
            value = method(*args, **kwargs)
            if message.num_returns < 0:
                outcome = self.executor.producers.run(
                    peer, message, value, started_s, hold=_nothing, allow=_nothing
                )
            else:
                outcome = self.success(peer, message, value, started_s)
        except ProductionCancelledError:
            outcome = self.cancelled(message)
        except WorkerExit as request:
            self.executor.exit_soon(request.reason)
            return
        except SystemExit as request:
            self.executor.exit_soon(
                "sys.exit", request.code if isinstance(request.code, int) else 1
            )
            return
        except BaseException as error:  # noqa: BLE001 - the boundary of user code
            outcome = self.failure(message, error, started_s)
        finally:
            self.running.pop(message.task_id, None)
        self.reply(peer, message, outcome, started_s)


class AsyncCalls(_ConcurrentCalls):
    """Calls as tasks of one event loop on the main thread."""

    def __init__(
        self, core: CoreWorker, executor: Executor, outcomes: OutcomeWriter, task: CreationTask
    ) -> None:
        super().__init__(core, executor, outcomes, task)
        self._loop = asyncio.new_event_loop()
        self._limits = {name: asyncio.Semaphore(n) for name, n in self.limits.items()}
        self._tasks: dict[bytes, asyncio.Task[None]] = {}
        self._inbox: list[Work] = []
        self._inbox_lock = threading.Lock()
        self._exit: WorkerExit | SystemExit | None = None

    def take_over(self, message: node.CreateActor) -> None:
        """Run the event loop on this thread until the actor ends."""
        asyncio.set_event_loop(self._loop)
        self.executor.handle_elsewhere = self._handle
        self.core.stop_async_actor = self._stop
        self.core.cancel_async_call = self._cancel
        self.core.raylet.send(node.ActorCreated(message.actor_id, message.incarnation))
        self._loop.run_forever()
        if self._exit is not None:
            raise self._exit

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _handle(self, work: Work) -> None:
        with self._inbox_lock:
            self._inbox.append(work)
            is_first = len(self._inbox) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._start_calls)

    def _start_calls(self) -> None:
        with self._inbox_lock:
            inbox, self._inbox = self._inbox, []
        for peer, message in inbox:
            task = self._loop.create_task(self._run(peer, message))
            self._tasks[message.task_id] = task

    async def _run(self, peer: Peer, message: PushCall) -> None:
        limit = self._limits.get(message.concurrency_group) or self._limits[DEFAULT_GROUP]
        started_s = time.perf_counter()
        try:
            async with limit:
                started_s = time.perf_counter()
                self.running[message.task_id] = (message.name, started_s)
                running_task.set(self.context(message))
                method = getattr(self.executor.actor, message.method)
                if message.resolved and not self.core.has_here(message.resolved):
                    # Not on the loop, whose other calls go on meanwhile.
                    await self._loop.run_in_executor(
                        None, self.core.stored_arguments, message.resolved
                    )
                args, kwargs = load_arguments(self.core, message)
                value = method(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = await value
                if message.num_returns < 0:
                    producers = self.executor.producers
                    outcome = await producers.run_async(peer, message, value, started_s)
                else:
                    outcome = self.success(peer, message, value, started_s)
        except asyncio.CancelledError:
            outcome = self.cancelled(message)
        except (WorkerExit, SystemExit) as request:
            self._exit = request
            self._loop.stop()
            return
        except BaseException as error:  # noqa: BLE001 - the boundary of user code
            outcome = self.failure(message, error, started_s)
        finally:
            self._tasks.pop(message.task_id, None)
            self.running.pop(message.task_id, None)
        self.reply(peer, message, outcome, started_s)

    def _cancel(self, task_id: bytes) -> None:
        def cancel() -> None:
            task = self._tasks.get(task_id)
            if task is not None:
                task.cancel()

        self._loop.call_soon_threadsafe(cancel)
