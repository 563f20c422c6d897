"""The runtime of a driver or worker: what every process that owns objects or runs tasks has.

It composes the parts and holds no decisions of its own: references and values (``ownership``),
plain tasks (``task_submitter``), actor calls (``actor_submitter``), execution (``execution``,
``actor_host``; workers only), and the line to the raylet (``node_client``). One thread carries all
I/O; user code runs on its own threads.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from skate_core_ids import ActorID, JobID, NodeID, TaskIdSource, WorkerID
from skate_object_store import StoreClient
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.handshake import ClientHandshake
from skate_worker.actor_submitter import ActorCall, ActorSubmitter
from skate_worker.context import TaskContext, running_task
from skate_worker.errors import (
    ActorAlreadyExistsError,
    GetTimeoutError,
    LocalRayletDiedError,
    ObjectLostError,
    SkateSystemError,
)
from skate_worker.execution import Executor, WorkerExit
from skate_worker.functions import FunctionTable
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry, Owner
from skate_worker.node_client import ControlCallError, NodeClient
from skate_worker.object_ref import ObjectRef
from skate_worker.outcome import OutcomeWriter
from skate_worker.ownership import INLINE_MAX_BYTES, Ownership, contained_entries
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.serialization import (
    ErrorValue,
    Serialized,
    deserialize,
    serialize,
    serialize_args,
)
from skate_worker.specs import ActorOptions, CallOptions, TaskOptions
from skate_worker.submission import DependencyFailed, Submission, resolve
from skate_worker.task_protocol import (
    Cancel,
    CreationTask,
    FreeReturns,
    LeaseBegins,
    Leaving,
    PushCall,
    PushTask,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)
from skate_worker.task_submitter import TaskSubmitter
from skate_worker.tracing import Tracer
from skate_worker.waiting import ReadyCount

if TYPE_CHECKING:
    from skate_worker.actor_host import ActorHost

BLOCKED_AFTER_S = (
    0.001  # a worker that waits longer lends its CPU; most waits are shorter than the message
)
SEAL_WAIT_S = 10.0
QUEUES_KEPT_MAX = 4096
FEW_POSITIONS = 16  # up to here, deleting from a copied list beats building it anew
FIRST_RETURN = (1).to_bytes(4, "big")


def _nothing_lost(reason: str) -> None:
    return None


class CoreWorker:
    """One process's membership in a cluster. Thread-safe. Made by :meth:`connect`."""

    def __init__(
        self,
        raylet_endpoint: str,
        token: str,
        is_driver: bool,
        on_raylet_lost: Callable[[str], None],
    ) -> None:
        self.pid = os.getpid()
        self.ip = "127.0.0.1"
        self.worker_id = WorkerID.from_random()
        self.is_closed = False
        self.is_driver = is_driver
        self.actor_name = ""
        self.was_restarted = False
        self.stop_async_actor: Callable[[], None] | None = None
        self.cancel_async_call: Callable[[bytes], None] | None = None
        self.executor: Executor | None = None
        self.outcomes: OutcomeWriter | None = None
        self.actor_host: ActorHost | None = None
        self.tracer: Tracer | None = None
        self._on_raylet_lost = on_raylet_lost
        self._lost_reason = ""
        self._queues: dict[int, tuple[TaskOptions, Any]] = {}
        self._token = token.encode()
        self._task_ids = TaskIdSource()
        self._put_numbers = itertools.count()
        self._loop = IoThread()
        self._loop.start()
        self._raylet_endpoint = raylet_endpoint
        self._exit_lock = threading.Lock()
        sockets = os.path.dirname(raylet_endpoint.removeprefix("unix:"))
        self.endpoint = f"unix:{sockets}/p-{self.worker_id[:10].hex()}.sock"
        self.as_owner = Owner(bytes(self.worker_id), self.endpoint)

    @classmethod
    def connect_driver(
        cls,
        *,
        raylet_endpoint: str,
        token: str,
        namespace: str = "",
        entrypoint: str = "",
        metadata: dict[str, str] | None = None,
        sys_path: list[str] | None = None,
        on_raylet_lost: Callable[[str], None] = _nothing_lost,
    ) -> CoreWorker:
        """Join as a driver: a new job. Raises what :meth:`NodeClient.register` raises."""
        core = cls(raylet_endpoint, token, True, on_raylet_lost)
        core._join(
            node.RegisterProcess(
                b"", os.getpid(), "", True, 0, namespace, entrypoint, metadata or {}, sys_path or []
            )
        )
        return core

    @classmethod
    def connect_worker(
        cls,
        *,
        raylet_endpoint: str,
        token: str,
        startup_id: int,
        on_raylet_lost: Callable[[str], None],
    ) -> CoreWorker:
        """Join as a worker that the raylet forked."""
        core = cls(raylet_endpoint, token, False, on_raylet_lost)
        core._join(node.RegisterProcess(b"", os.getpid(), "", False, startup_id))
        return core

    def _join(self, message: node.RegisterProcess) -> None:
        try:
            self.raylet = NodeClient(
                self._raylet_endpoint, self._token, self._loop, self._handlers(), self._raylet_lost
            )
            self._listen()
            message.worker_id = bytes(self.worker_id)
            message.endpoint = self.endpoint
            registered = self.raylet.register(message)
            self.node_id = NodeID(registered.node_id)
            self.job_id = JobID(registered.job_id)
            self.namespace = registered.namespace
            self.session_dir = registered.session_dir
            self.gcs_endpoint = registered.gcs_endpoint
            self.is_tracing = registered.is_tracing
            self._task_suffix = bytes(ActorID.nil_of(self.job_id))
            self._put_prefix = bytes(self._task_ids.of(self._task_suffix))
            self._finish_parts(registered)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        ready = threading.Event()
        failure: list[BaseException] = []
        self.ownership = Ownership(bytes(self.worker_id), b"", self._loop)
        self.peers = Peers(
            bytes(self.worker_id),
            self.endpoint,
            self._token,
            self._loop,
            self._on_peer_messages,
            self._on_peer_lost,
        )
        self.ownership.peers = self.peers

        def listen() -> None:
            try:
                self.peers.listen()
            except OSError as error:
                failure.append(error)
            ready.set()

        self._loop.call_soon_threadsafe(listen)
        ready.wait()
        if failure:
            raise SkateSystemError(f"Could not listen at {self.endpoint}: {failure[0]}")
        self.completion = Completion(self.ownership, self.pid, self.ip)
        self.tasks = TaskSubmitter(
            self.ownership, self.completion, self.peers, self.raylet, self._loop
        )
        self.actor_calls = ActorSubmitter(
            self.ownership, self.completion, self.peers, self.raylet, self._loop
        )
        self.functions = FunctionTable(self.raylet)
        self.ownership.on_actor_unheld = self._release_actor
        if not self.is_driver:
            self._prepare_execution()

    def _finish_parts(self, registered: node.ProcessRegistered) -> None:
        self.ownership.node_id = registered.node_id
        self.ownership.store = StoreClient(
            registered.store_endpoint,
            owner=bytes(self.worker_id),
            handshake=ClientHandshake(self._token),
        )
        if self.is_tracing:
            self.tracer = Tracer(self.raylet)
            self.completion.on_end = self.tracer.ended
            self.tasks.tracer = self.tracer

    def _prepare_execution(self) -> None:
        from skate_worker.actor_host import ActorHost  # noqa: PLC0415 - imports asyncio; drivers never run tasks

        self.outcomes = OutcomeWriter(self.ownership, self.ip)
        self.executor = Executor(self, self.outcomes)
        self.actor_host = ActorHost(self, self.executor, self.outcomes)

    def run(self) -> int:
        """Run what is pushed, on the calling thread, until told to exit; returns the exit code."""
        assert self.executor is not None
        return self.executor.run()

    def announce_exit(self, reason: str) -> None:
        """Tell the raylet that this worker ends on purpose."""
        self.raylet.send(node.Exiting(reason))

    # ---- values ----

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value and own it; raises ``TypeError`` or ``StoreFullError``."""
        serialized = serialize(value)
        object_id = self._put_prefix + (0x8000_0000 | next(self._put_numbers)).to_bytes(4, "big")
        return self._own_value(object_id, serialized)

    def _own_value(self, object_id: bytes, serialized: Serialized) -> ObjectRef[Any]:
        ownership = self.ownership
        if serialized.total_bytes > INLINE_MAX_BYTES:
            ownership.put_parts(object_id, serialized, bytes(self.worker_id))
            state, data = STORED, None
        else:
            state, data = INLINE, serialized.to_bytes()
        with ownership.lock:
            entry = ownership.table.own(object_id)
            entry.state = state
            entry.data = data
            entry.size_bytes = serialized.total_bytes
            if state == STORED:
                entry.node_id = ownership.node_id
            if serialized.contained:
                entry.contained = contained_entries(serialized)
                for inner in entry.contained:
                    inner.pins += 1
        return ObjectRef(self, entry)

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None = None) -> list[Any]:
        """The values, in order. Raises the first error, at once when it is known.

        Raises:
            GetTimeoutError: not all values came within ``timeout_s``.
        """
        entries = [ref._entry for ref in refs]
        pending = [entry for entry in entries if entry.state == PENDING]
        if pending:
            self._wait_for(pending, timeout_s)
        values = [self._load(entry) for entry in entries]
        if self.ownership.untold:
            self.ownership.tell_untold(None, _nothing)
        return values

    def _wait_for(self, pending: list[Entry], timeout_s: float | None) -> None:
        unique = list(dict.fromkeys(pending))
        count = ReadyCount(len(unique), stops_at_failure=True)
        for entry in self.ownership.watch_all(unique, count):
            count(entry)
        if not self._block(count, timeout_s):
            self.ownership.unwatch_all(unique, count)
            left = sum(1 for entry in unique if entry.state == PENDING)
            raise GetTimeoutError(
                f"get() timed out after {timeout_s:g} s: {left} of {len(unique)} objects are not"
                " ready yet."
            )
        for entry in unique:
            if entry.state == FAILED:
                self.ownership.unwatch_all(unique, count)
                self._load(entry)

    def _block(self, count: ReadyCount, timeout_s: float | None) -> bool:
        executor = self.executor
        if executor is None or not executor.is_executing_here():
            return count.wait(timeout_s)
        short_s = BLOCKED_AFTER_S if timeout_s is None else min(BLOCKED_AFTER_S, timeout_s)
        if count.wait(short_s):
            return True
        if timeout_s is not None and timeout_s <= short_s:
            return False
        executor.give_back_queue()
        self.raylet.post(node.Blocked())
        try:
            return count.wait(None if timeout_s is None else timeout_s - short_s)
        finally:
            self.raylet.post(node.Unblocked())

    def _load(self, entry: Entry) -> Any:
        state = entry.state
        if state == INLINE:
            return deserialize(entry.data)
        if state == STORED:
            return deserialize(self._stored(entry))
        value = deserialize(entry.data)
        if isinstance(value, ErrorValue):
            raise value.to_raise()
        raise SkateSystemError(f"Object {entry.object_id.hex()} failed without an error.")

    def _stored(self, entry: Entry) -> memoryview:
        if entry.node_id != self.ownership.node_id:
            raise ObjectLostError(
                entry.object_id.hex(),
                detail="it is larger than 100 KiB and in another node's store, and values of that"
                " size do not travel between nodes yet",
            )
        return self.read_stored(entry.object_id)

    def read_stored(self, object_id: bytes) -> memoryview:
        """A view of an object in this node's store. Raises :class:`ObjectLostError`."""
        store = self.ownership.store
        assert store is not None
        # Whoever wrote it said so on another connection: its seal may still be on the way.
        view: memoryview | None = store.get([object_id], SEAL_WAIT_S)[0]
        if view is None:
            raise ObjectLostError(object_id.hex(), detail="it is not in the store of this node")
        return view

    def wait(
        self,
        refs: Sequence[ObjectRef[Any]],
        num_returns: int,
        timeout_s: float | None,
        fetch_local: bool = True,
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split ``refs`` into at most ``num_returns`` ready ones and the rest, both in the given
        order.
        """
        ready_at = _ready_positions(refs, num_returns)
        if len(ready_at) < num_returns:
            pending = [ref._entry for ref in refs if ref._entry.state == PENDING]
            if timeout_s == 0:
                # Asking the owners of borrowed ones is what makes them ready for a later look.
                self.ownership.watch_all([e for e in pending if e.owner is not None], _ignore)
            else:
                count = ReadyCount(num_returns - len(ready_at))
                for entry in self.ownership.watch_all(pending, count):
                    count(entry)
                self._block(count, timeout_s)
                self.ownership.unwatch_all(pending, count)
            ready_at = _ready_positions(refs, num_returns)
        ready = [refs[position] for position in ready_at]
        rest = list(refs)
        if len(ready_at) == len(rest):
            rest = []
        elif len(ready_at) <= FEW_POSITIONS:
            for position in reversed(ready_at):
                del rest[position]
        else:
            taken = set(ready_at)
            rest = [ref for position, ref in enumerate(refs) if position not in taken]
        return ready, rest

    def is_ready(self, ref: ObjectRef[Any]) -> bool:
        """Whether a value or error is there."""
        return ref._entry.state != PENDING

    def when_ready(self, ref: ObjectRef[Any], callback: Callable[[ObjectRef[Any]], None]) -> None:
        """Call back once the value or error is there; at once on this thread if it is already."""
        if not self.ownership.watch(ref._entry, lambda _: callback(ref)):
            callback(ref)

    # ---- references ----

    def note_dropped(self, entry: Entry) -> None:
        """See :meth:`Ownership.note_dropped`."""
        self.ownership.note_dropped(entry)

    def adopt(self, object_id: bytes, owner: Owner) -> ObjectRef[Any]:
        """A reference that was unpickled in this process."""
        return ObjectRef(self, self.ownership.adopt(object_id, owner))

    def pin_out_of_band(self, entry: Entry) -> None:
        """Someone pickled a reference by other means: keep the object while the process lives."""
        with self.ownership.lock:
            entry.pins += 1

    # ---- tasks ----

    def export(self, value: Any) -> bytes:
        """Store a function or class in the function table; returns its id."""
        data_id, held = self.functions.export(value, self.job_id)
        # References in a closure live as long as the function may be loaded: while the job runs.
        with self.ownership.lock:
            for ref in held:
                if isinstance(ref, ObjectRef):
                    ref._entry.pins += 1
        return data_id

    def submit_task(
        self,
        function_id: bytes,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> list[ObjectRef[Any]]:
        """Submit a plain task; returns the references of its returns."""
        data, nested, top_level = serialize_args(args, kwargs, self._promote, options.name)
        task_id = bytes(self._task_ids.of(self._task_suffix))
        message = PushTask(task_id, function_id, data, options.name, options.num_returns)
        if options.max_calls:
            message.max_calls = options.max_calls
        submission = Submission(task_id, message, [], options.max_retries, options.retry_exceptions)
        known = self._queues.get(id(options))
        if known is None or known[0] is not options:
            known = self._remember_queue(options)
        submission.queue = known[1]
        refs = self._prepare(submission, options.num_returns, nested, top_level)
        if top_level:
            self.tasks.expect(submission)
            resolve(self.ownership, submission, self.tasks.resolved)
        else:
            self.tasks.submit(submission)
        return refs

    def _remember_queue(self, options: TaskOptions) -> tuple[TaskOptions, Any]:
        # By identity: hashing the options of every task would cost more than the look-up saves. The
        # options are kept with the entry, so the identity stays theirs.
        if len(self._queues) >= QUEUES_KEPT_MAX:
            self._queues.clear()
        known = (options, self.tasks.queue_for(options))
        self._queues[id(options)] = known
        return known

    def _prepare(
        self,
        submission: Submission,
        num_returns: int,
        nested: Any,
        top_level: Any,
        keeper_id: bytes = b"",
    ) -> list[ObjectRef[Any]]:
        task_id = submission.task_id
        ownership = self.ownership
        refs: list[ObjectRef[Any]] = []
        with ownership.lock:
            if num_returns == 1:
                entry = ownership.table.own(task_id + FIRST_RETURN)
                entry.task_id = task_id
                submission.entries = [entry]
                refs.append(ObjectRef(self, entry))
            else:
                for index in range(1, num_returns + 1):
                    entry = ownership.table.own(task_id + index.to_bytes(4, "big"))
                    entry.task_id = task_id
                    submission.entries.append(entry)
                    refs.append(ObjectRef(self, entry))
            if nested or top_level:
                pinned = [ref._entry for ref in nested if isinstance(ref, ObjectRef)]
                if top_level:
                    submission.top_level = [(at, ref._entry) for at, ref in top_level]
                    pinned += [ref._entry for _, ref in top_level]
                for entry in pinned:
                    entry.pins += 1
                submission.pinned = tuple(pinned)
            if keeper_id:
                # A call keeps its actor alive, also when the last handle goes right after it.
                keeper = ownership.table.entries.get(keeper_id)
                if keeper is not None:
                    keeper.pins += 1
                    submission.pinned += (keeper,)
        if self.executor is not None:
            submission.parent = running_task.get().task_id
        if self.tracer is not None:
            self.tracer.submitted(submission)
        if self._lost_reason:
            self.ownership.fail(submission.entries, LocalRayletDiedError(self._lost_reason))
        return refs

    def _promote(self, value: Serialized) -> ObjectRef[Any]:
        object_id = self._put_prefix + (0x8000_0000 | next(self._put_numbers)).to_bytes(4, "big")
        return self._own_value(object_id, value)

    # ---- actors ----

    def create_actor(
        self, class_id: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], options: ActorOptions
    ) -> tuple[ActorID, bool, ObjectRef[Any] | None]:
        """Create an actor: its id, whether it is new, and the reference that keeps it alive.

        The last is None for detached actors and for existing ones. A named actor is registered
        before this returns; others in the background.

        Raises:
            ActorAlreadyExistsError: the name is taken and ``get_if_exists`` is not set.
        """
        actor_id = ActorID.of(self.job_id)
        data, nested, top_level = serialize_args(args, kwargs, self._promote, options.class_name)
        task = CreationTask(
            class_id,
            data,
            f"{options.class_name}.__init__",
            [],
            options.max_concurrency,
            options.is_async,
            list(options.concurrency_groups),
            options.name,
            options.namespace or self.namespace,
            self.current.trace_parent,
            options.max_restarts,
            dict(options.running_resources),
        )
        creation = Submission(bytes(actor_id) + b"\0" * 8, task, [], 0, False)  # type: ignore[arg-type]
        keeper: ObjectRef[Any] | None = None
        if not options.is_detached:
            keeper = self._actor_keeper(actor_id)
        pinned = [ref._entry for ref in nested if isinstance(ref, ObjectRef)]
        creation.top_level = [(at, ref._entry) for at, ref in top_level]
        pinned += [entry for _, entry in creation.top_level]
        with self.ownership.lock:
            for entry in pinned:
                entry.pins += 1
            if keeper is not None:
                # A restart sends the arguments again, so they live as long as the actor may.
                keeper._entry.contained = pinned
        if options.name:
            return self._register_named(actor_id, creation, options, keeper)

        def ready(_: Submission, failure: DependencyFailed | None) -> None:
            if failure is not None:
                stored = deserialize(failure.data)
                self.actor_calls.fail_creation(
                    bytes(actor_id), f"an argument of its constructor is an error: {stored.error}"
                )
                return
            body = self._registration(actor_id, task, options)
            self.raylet.call_soon("register_actor", body, registered)

        def registered(reply: node.ControlReply) -> None:
            if reply.error:
                self.actor_calls.fail_creation(bytes(actor_id), reply.error)

        self.actor_calls.calls_of(bytes(actor_id))
        resolve(self.ownership, creation, ready)
        return actor_id, True, keeper

    def _actor_keeper(self, actor_id: ActorID) -> ObjectRef[Any]:
        # An object that stands for the handles: when nobody holds it any more, the actor may end.
        object_id = keeper_id_of(bytes(actor_id))
        with self.ownership.lock:
            entry = self.ownership.table.own(object_id)
            entry.state = INLINE
            entry.data = b""
            self.ownership.actor_keepers[object_id] = bytes(actor_id)
        return ObjectRef(self, entry)

    def _register_named(
        self,
        actor_id: ActorID,
        creation: Submission,
        options: ActorOptions,
        keeper: ObjectRef[Any] | None,
    ) -> tuple[ActorID, bool, ObjectRef[Any] | None]:
        pending = [entry for _, entry in creation.top_level or () if entry.state == PENDING]
        if pending:
            self._wait_for(pending, None)
        failures: list[DependencyFailed] = []
        resolve(
            self.ownership,
            creation,
            lambda _, failure: failures.extend([failure] if failure else []),
        )
        if failures:
            raise deserialize(failures[0].data).to_raise()
        body = self._registration(actor_id, creation.message, options)
        try:
            answer: node.RegisteredActor = self.raylet.call(
                "register_actor", body, node.RegisteredActor
            )
        except ControlCallError as error:
            if error.kind == "already_exists":
                namespace = options.namespace or self.namespace
                raise ActorAlreadyExistsError(options.name, namespace) from None
            raise
        found = ActorID(answer.actor.actor_id)
        self.actor_calls.calls_of(bytes(found))
        return found, answer.is_new, keeper if answer.is_new else None

    def _registration(
        self, actor_id: ActorID, task: CreationTask, options: ActorOptions
    ) -> node.ActorRegistration:
        return node.ActorRegistration(
            bytes(actor_id),
            options.name,
            options.namespace or self.namespace,
            options.is_detached,
            options.class_name,
            options.max_restarts,
            dict(options.placement_resources),
            dict(options.running_resources),
            dict(options.env_vars),
            msgspec.msgpack.encode(task),
            options.handle_state,
            options.get_if_exists,
            task.trace_parent,
        )

    def submit_actor_task(
        self, actor_id: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> list[ObjectRef[Any]]:
        """Call a method of an actor; returns the references of its returns."""
        data, nested, top_level = serialize_args(args, kwargs, self._promote, options.name)
        task_id = bytes(self._task_ids.of(actor_id))
        message = PushCall(task_id, options.method, data, options.name, options.num_returns)
        if options.concurrency_group:
            message.concurrency_group = options.concurrency_group
        if options.max_task_retries:
            message.is_retriable = True
        call = ActorCall(task_id, message, [], options.max_task_retries, options.retry_exceptions)
        calls = self.actor_calls.calls_of(actor_id)
        refs = self._prepare(call, options.num_returns, nested, top_level, calls.keeper_id)
        if top_level:
            call.is_resolved = False
            self.actor_calls.submit(calls, call)
            resolve(
                self.ownership,
                call,
                lambda _, failure: self.actor_calls.resolved(calls, call, failure),
            )
        else:
            self.actor_calls.submit(calls, call)
        return refs

    def named_actor(self, name: str, namespace: str = "") -> node.ActorView | None:
        """The live actor of this name, or None."""
        body = node.ActorName(name, namespace or self.namespace)
        return self.raylet.call("get_named_actor", body, node.ActorView | None)

    def kill_actor(self, actor_id: bytes, no_restart: bool = True) -> bool:
        """Kill an actor at once. False: the cluster does not know it."""
        was_found: bool = self.raylet.call(
            "kill_actor", node.ActorKill(bytes(actor_id), no_restart), bool
        )
        if was_found and no_restart:
            # The news of its death comes by another way; calls made after this must not reach it.
            self.actor_calls.mark_killed(bytes(actor_id))
        return was_found

    def actors(self) -> list[node.ActorView]:
        """All actors that the cluster remembers."""
        return self.raylet.call("list_actors", node.Empty(), list[node.ActorView])

    def exit_actor(self, reason: str) -> None:
        """End this actor's worker after the running call; raises out of the call."""
        raise WorkerExit(reason)

    def actor_repr(self) -> str:
        """The user's own ``repr`` of the actor, when its class defines one."""
        host, executor = self.actor_host, self.executor
        if host is None or executor is None or not host.has_own_repr:
            return ""
        try:
            return repr(executor.actor)
        except Exception:  # noqa: BLE001 - the boundary of user code: a broken __repr__ must not hide the error at hand
            return host.class_name

    # ---- the rest of the API ----

    @property
    def current(self) -> TaskContext:
        """The task that the calling thread or coroutine runs."""
        return running_task.get()

    def nodes(self) -> list[node.NodeView]:
        """The node table, dead nodes included."""
        return self.raylet.call("list_nodes", node.Empty(), list[node.NodeView])

    def cancel(self, ref: ObjectRef[Any], force: bool = False, recursive: bool = True) -> None:
        """Stop the task that makes ``ref``; nothing happens when it has finished."""
        entry = ref._entry
        if entry.state != PENDING:
            return
        self._cancel(entry.object_id[:24], force, recursive)

    def _cancel(self, task_id: bytes, force: bool, recursive: bool) -> None:
        if not self.tasks.cancel(task_id, force=force, is_recursive=recursive):
            self.actor_calls.cancel(task_id, is_recursive=recursive)

    def _cancel_children(self, task_id: bytes) -> None:
        for child in (*self.tasks.children_of(task_id), *self.actor_calls.children_of(task_id)):
            self._cancel(child, False, True)

    # ---- messages; on the loop's thread ----

    def _handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        return {
            node.LeaseGranted: lambda m: self.tasks.on_granted(m),  # noqa: PLW0108 - made later
            node.LeaseRefused: lambda m: self.tasks.on_refused(m),  # noqa: PLW0108
            node.LeaseLost: lambda m: self.tasks.on_lost(m),  # noqa: PLW0108
            node.ReclaimLease: lambda m: self.tasks.on_reclaim(m),  # noqa: PLW0108
            node.ActorUpdate: lambda m: self.actor_calls.on_update(m),  # noqa: PLW0108
            node.CreateActor: lambda m: self._running().create_actor(m),
            node.ExitNow: self._on_exit_now,
            node.WorkerDied: self._on_worker_died,
        }

    def _on_peer_messages(self, peer: Peer, batch: list[Any]) -> None:
        results: list[Any] = []
        work: list[tuple[Peer, Any]] = []
        for message in batch:
            kind = type(message)
            if kind is TaskDone or kind is TaskReturned:
                results.append(message)
            elif kind is PushTask or kind is PushCall:
                work.append((peer, message))
            else:
                if results:
                    self._on_results(peer, results)
                    results = []
                if work:
                    self._running().push(work)
                    work = []
                self._on_other_message(peer, message)
        if results:
            self._on_results(peer, results)
        if work:
            self._running().push(work)
        self.ownership.drain_dropped()

    def _on_results(self, peer: Peer, results: list[Any]) -> None:
        if peer.lease is not None:
            self.tasks.on_results(peer, results)
        elif peer.actor is not None:
            self.actor_calls.on_results(peer, results)

    def _running(self) -> Executor:
        # Only a worker is sent tasks; a driver that is fails here, and the connection's log says
        # so.
        if self.executor is None:
            raise SkateSystemError("A task was pushed to a driver.")
        return self.executor

    def _on_other_message(self, peer: Peer, message: Any) -> None:
        kind = type(message)
        if kind is TasksGivenBack:
            if peer.lease is not None:
                self.tasks.on_given_back(peer, message)
        elif kind is TakeBack:
            self._running().take_back(peer, message.count)
        elif kind is Cancel:
            if message.is_recursive:
                self._cancel_children(message.task_id)
            if self.cancel_async_call is not None:
                self.cancel_async_call(message.task_id)
            else:
                self._running().cancel(peer, message.task_id)
        elif kind is Leaving:
            if peer.lease is not None:
                self.tasks.on_leaving(peer, message)
        elif kind is LeaseBegins:
            self._running().resources = message.resources
        elif kind is FreeReturns and self.outcomes is not None:
            self.outcomes.free(message.task_id)
        else:
            self.ownership.on_message(peer, message)

    def _on_peer_lost(self, peer: Peer, reason: str) -> None:
        if peer.lease is not None:
            self.tasks.on_peer_lost(peer, reason)
        if peer.actor is not None:
            self.actor_calls.on_peer_lost(peer, reason)
        # A closed connection is a dead process: Skate's processes never close one while they live,
        # and a process that only lost this connection could not be told from a dead one by its
        # owner either.
        self._process_lost(peer.worker_id, reason)

    def _on_worker_died(self, message: node.WorkerDied) -> None:
        self._process_lost(message.worker_id, message.cause.message)

    def _process_lost(self, worker_id: bytes, cause: str) -> None:
        self.ownership.on_process_lost(worker_id, cause)
        if self.outcomes is not None:
            self.outcomes.owner_lost(worker_id)

    def _on_exit_now(self, message: node.ExitNow) -> None:
        if math.isinf(message.grace_s):
            # It is asked because it is idle. What it owns would go with it, so that is waited for.
            self.ownership.when_nothing_is_owned(lambda: self._exit(message))
        else:
            self._exit(message)

    def _exit(self, message: node.ExitNow) -> None:
        if self.stop_async_actor is not None:
            self.stop_async_actor()
        if self.executor is not None:
            self.executor.exit_soon(message.reason)

    def _release_actor(self, actor_id: bytes) -> None:
        self.raylet.call_soon("release_actor", node.ActorRelease(actor_id), _nothing_more)

    def _raylet_lost(self, reason: str) -> None:
        # Nothing new can start and no news of a death will come: whoever waits is told now.
        self._lost_reason = f"process {self.pid} lost its raylet: {reason}"
        with self.ownership.lock:
            pending = [e for e in self.ownership.table.entries.values() if e.state == PENDING]
        self.ownership.fail(pending, LocalRayletDiedError(self._lost_reason))
        self._on_raylet_lost(reason)

    # ---- the end ----

    def close(self) -> None:
        """Leave the cluster and release threads, sockets and mappings. Idempotent."""
        with self._exit_lock:
            if self.is_closed:
                return
            self.is_closed = True
        done = threading.Event()
        raylet = getattr(self, "raylet", None)
        peers = getattr(self, "peers", None)

        def hang_up() -> None:
            if raylet is not None:
                raylet.close()
            if peers is not None:
                peers.close()
            # Behind the closing callbacks of every connection.
            self._loop.call_soon_threadsafe(done.set)

        self._loop.call_soon_threadsafe(hang_up)
        done.wait(2.0)
        self._loop.stop()
        ownership = getattr(self, "ownership", None)
        if ownership is not None and ownership.store is not None:
            ownership.store.close()


def _ready_positions(refs: Sequence[ObjectRef[Any]], needed: int) -> list[int]:
    positions: list[int] = []
    for position, ref in enumerate(refs):
        if ref._entry.state != PENDING:
            positions.append(position)
            if len(positions) == needed:
                break
    return positions


def keeper_id_of(actor_id: bytes) -> bytes:
    """The id of the object that stands for the handles of an actor."""
    return actor_id[:8] + actor_id + FIRST_RETURN


def _nothing() -> None:
    return None


def _nothing_more(reply: node.ControlReply) -> None:
    return None


def _ignore(entry: Entry) -> None:
    return None
