"""A process's membership in a cluster: joining, the messages that come, and leaving.

It composes the parts and holds no decisions of its own: references and values (``ownership``),
plain tasks (``task_submitter``), actor calls (``actor_submitter``), execution (``execution``,
``actor_host``; workers only), and the line to the raylet (``node_client``). One thread carries all
I/O; user code runs on its own threads. What the process can do as a member is built on it, layer by
layer: ``object_access``, ``task_submission``, ``actor_management``, and ``core`` on top.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from skate_core_ids import ActorID, JobID, NodeID, TaskIdSource, WorkerID
from skate_object_store import StoreClient
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.handshake import ClientHandshake
from skate_rpc.process_endpoints import LOOPBACK
from skate_worker.actor_submitter import ActorCall, ActorSubmitter
from skate_worker.context import TaskContext, running_task
from skate_worker.errors import (
    LocalRayletDiedError,
    SkateSystemError,
)
from skate_worker.execution import Executor
from skate_worker.functions import FunctionTable
from skate_worker.kept_interrupts import keep_interrupts
from skate_worker.log_printer import LogPrinter
from skate_worker.machine.generator_stream import GeneratorStream
from skate_worker.machine.references import PENDING, Owner
from skate_worker.node_client import NodeClient
from skate_worker.object_plane import ObjectPlane
from skate_worker.object_ref import ObjectRef
from skate_worker.outcome import OutcomeWriter
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.specs import TaskOptions
from skate_worker.submission import Submission, resolve
from skate_worker.task_messages import WITH_SERIAL
from skate_worker.task_protocol import (
    Cancel,
    FreeReturns,
    ItemReturned,
    ItemsTaken,
    LeaseBegins,
    Leaving,
    PushCall,
    PushTask,
    StopStream,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)
from skate_worker.task_submitter import TaskSubmitter
from skate_worker.tracing import Tracer

if TYPE_CHECKING:
    from skate_worker.actor_host import ActorHost
    from skate_worker.object_ref_generator import ObjectRefGenerator
    from skate_worker.streams import Streams

LOGS_END_S = 0.5  # for lines that came and are not printed when the process leaves


def _nothing_lost(reason: str) -> None:
    return None


class Membership(ABC):
    """One process's membership in a cluster. Thread-safe."""

    def __init__(
        self,
        raylet_endpoint: str,
        token: str,
        is_driver: bool,
        on_raylet_lost: Callable[[str], None],
        ip_address: str = LOOPBACK,
    ) -> None:
        self.pid: int = os.getpid()
        self.ip = ip_address
        self.worker_id: WorkerID = WorkerID.from_random()
        self.is_closed: bool = False
        self.is_driver = is_driver
        self.actor_name = ""
        self.was_restarted = False
        self.group_id: bytes = b""  # the placement group that the running code is in
        self.captured_group: bytes = b""  # the same, if what it starts goes there too
        # Another object whenever the defaults of what is submitted change.
        self.binding: object = self.worker_id
        self.stop_async_actor: Callable[[], None] | None = None
        self.cancel_async_call: Callable[[bytes], None] | None = None
        self.executor: Executor | None = None
        self.outcomes: OutcomeWriter | None = None
        self.actor_host: ActorHost | None = None
        self.tracer: Tracer | None = None
        self.awaited: dict[int, Any] = {}  # entries that a task's coroutines wait for
        self._await_numbers = itertools.count(1)
        self.blocked: dict[int, Any] = {}  # threads that wait; see object_access
        self._told_circles: dict[tuple[str, ...], None] = {}
        self.log_printer: LogPrinter = LogPrinter(lambda taken: self.raylet.post(taken))  # noqa: PLW0108 - made later
        self._on_raylet_lost = on_raylet_lost
        self._lost_reason = ""
        self._has_parts = False  # what a loss of the raylet is told to
        self._queues: dict[int, tuple[TaskOptions, Any]] = {}
        self._token = token.encode()
        self._task_ids = TaskIdSource()
        self._put_numbers = itertools.count()
        self._loop = IoThread()
        self._loop.start()
        self._raylet_endpoint = raylet_endpoint
        self._exit_lock = threading.Lock()
        sockets = os.path.dirname(raylet_endpoint.removeprefix("unix:"))
        self.endpoint: str = f"unix:{sockets}/p-{self.worker_id[:10].hex()}.sock"
        self.as_owner: Owner = Owner(bytes(self.worker_id), self.endpoint)

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
        ip_address: str = LOOPBACK,
        shows_logs: bool = False,
    ) -> Self:
        """Join as a driver: a new job. Raises what :meth:`NodeClient.register` raises.

        ``ip_address``: the node's. Unless it is loopback, this process listens on TCP there too.
        ``shows_logs``: print what the job's workers print.
        """
        core = cls(raylet_endpoint, token, True, on_raylet_lost, ip_address)
        core._join(
            node.RegisterProcess(
                b"",
                os.getpid(),
                "",
                True,
                0,
                namespace,
                entrypoint,
                metadata or {},
                sys_path or [],
                shows_logs,
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
        ip_address: str = LOOPBACK,
    ) -> Self:
        """Join as a worker that the raylet forked. ``ip_address``: the node's."""
        core = cls(raylet_endpoint, token, False, on_raylet_lost, ip_address)
        core._join(node.RegisterProcess(b"", os.getpid(), "", False, startup_id))
        return core

    def _join(self, message: node.RegisterProcess) -> None:
        try:
            self.raylet: NodeClient = NodeClient(
                self._raylet_endpoint, self._token, self._loop, self._handlers(), self._raylet_lost
            )
            self._listen()
            message.worker_id = bytes(self.worker_id)
            message.endpoint = self.endpoint
            registered = self.raylet.register(message)
            self.node_id: NodeID = NodeID(registered.node_id)
            self.job_id: JobID = JobID(registered.job_id)
            self.namespace: str = registered.namespace
            self.session_dir: str = registered.session_dir
            self.gcs_endpoint: str = registered.gcs_endpoint
            self.is_tracing: bool = registered.is_tracing
            self._task_suffix = bytes(ActorID.nil_of(self.job_id))
            self._put_prefix = bytes(self._task_ids.of(self._task_suffix))
            self._finish_parts(registered)
            keep_interrupts(self._loop.call_soon_threadsafe)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        ready = threading.Event()
        failure: list[BaseException] = []
        self.ownership: Ownership = Ownership(bytes(self.worker_id), b"", self._loop)
        self.peers: Peers = Peers(
            bytes(self.worker_id),
            self.endpoint,
            self._token,
            self._loop,
            self._on_peer_messages,
            self._on_peer_lost,
            self.ip,
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
            where = f"{self.endpoint} and {self.ip}"
            raise SkateSystemError(f"Could not listen at {where}: {failure[0]}")
        self.endpoint = self.peers.endpoint
        self.as_owner = Owner(bytes(self.worker_id), self.endpoint)
        self.completion: Completion = Completion(self.ownership, self.pid, self.ip)
        self.streams: Streams = self._make_streams()
        self.completion.streams = self.streams
        self.tasks: TaskSubmitter = TaskSubmitter(
            self.ownership, self.completion, self.peers, self.raylet, self._loop
        )
        self.actor_calls: ActorSubmitter = ActorSubmitter(
            self.ownership, self.completion, self.peers, self.raylet, self._loop
        )
        self.functions: FunctionTable = FunctionTable(self.raylet)
        self.ownership.on_actor_unheld = self._release_actor
        self.plane: ObjectPlane = ObjectPlane(
            self.ownership, self.peers, self.raylet, self._loop, self._submit_again
        )
        self.peers.on_known = self.plane.peer_known
        self.tasks.near = self.plane.nodes_near
        self.completion.recovery = self.plane.recovery
        self.plane.recovery.is_made_anyway = self.streams.will_yield_again
        self.streams.lineage = self.plane.recovery.lineage
        self.completion.delete_stray = self.plane.owned.delete_at
        self.streams.delete_stray = self.plane.owned.delete_at
        self.streams.offer_copy = self.plane.owned.offered
        if not self.is_driver:
            self._prepare_execution()
        self._has_parts = True

    def _new_object_id(self) -> bytes:
        return self._put_prefix + (0x8000_0000 | next(self._put_numbers)).to_bytes(4, "big")

    def _finish_parts(self, registered: node.ProcessRegistered) -> None:
        self.ownership.node_id = registered.node_id
        self.ownership.new_object_id = self._new_object_id
        self.peers.node_id = registered.node_id
        self.as_owner = Owner(bytes(self.worker_id), self.peers.endpoint, registered.node_id)
        self.ownership.as_owner = self.as_owner
        self.ownership.store = StoreClient(
            registered.store_endpoint,
            owner=bytes(self.worker_id),
            handshake=ClientHandshake(self._token),
        )
        if self.is_tracing:
            self.tracer = Tracer(self.raylet)
            self.completion.on_end = self.tracer.ended
            self.tasks.tracer = self.tracer

    @abstractmethod
    def _prepare_execution(self) -> None:
        """Make what runs tasks; called in workers only, before anything can arrive."""

    @abstractmethod
    def _make_streams(self) -> Streams:
        """Make what owns the streams of this process."""

    def note_stream_dropped(self, stream: GeneratorStream) -> None:
        """A generator is gone. Runs inside ``__del__``: no lock, no I/O but a wake-up."""
        self._loop.call_soon_threadsafe(self.streams.drop, stream)

    def enter_group(self, group_id: bytes, captures: bool) -> None:
        """What runs from now on is inside this placement group (empty: in none)."""
        self.group_id = group_id
        captured = group_id if captures else b""
        if captured != self.captured_group:
            self.captured_group = captured
            self.binding = object()

    def new_object_id(self) -> bytes:
        """The id of an object that no task makes."""
        return self._new_object_id()

    def call_later(self, delay_s: float, function: Callable[..., None], *args: Any) -> None:
        """Call something on the loop's thread after a while. From that thread."""
        self._loop.call_later(delay_s, function, *args)

    @property
    def current(self) -> TaskContext:
        """The task that the calling thread or coroutine runs."""
        return running_task.get()

    def run(self) -> int:
        """Run what is pushed, on the calling thread, until told to exit; returns the exit code."""
        assert self.executor is not None
        return self.executor.run()

    def announce_exit(self, reason: str) -> None:
        """Tell the raylet that this worker ends on purpose."""
        self.raylet.send(node.Exiting(reason))

    def cancel(
        self,
        ref: ObjectRef[Any] | ObjectRefGenerator[Any],
        force: bool = False,
        recursive: bool = True,
    ) -> None:
        """Stop the task that makes ``ref``; nothing happens when it has finished."""
        entry = (ref if isinstance(ref, ObjectRef) else ref.completed())._entry
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
            node.LeaseWarning: lambda m: self.tasks.on_warning(m),  # noqa: PLW0108
            node.LeaseLost: lambda m: self.tasks.on_lost(m),  # noqa: PLW0108
            node.ReclaimLease: lambda m: self.tasks.on_reclaim(m),  # noqa: PLW0108
            node.ActorUpdate: lambda m: self.actor_calls.on_update(m),  # noqa: PLW0108
            node.CreateActor: lambda m: self._running().create_actor(m),
            node.ExitNow: self._on_exit_now,
            node.WorkerDied: self._on_worker_died,
            node.NodeDied: lambda m: self.plane.node_died(m),  # noqa: PLW0108
            node.CopiesKept: lambda m: self.plane.owned.copies_kept(m),  # noqa: PLW0108
            node.PullEnded: lambda m: self.plane.fetching.on_pull_ended(m),  # noqa: PLW0108
            node.LogLines: self.log_printer.take,
            node.LogsFlushed: self.log_printer.take,
        }

    def _on_peer_messages(self, peer: Peer, batch: list[Any]) -> None:
        # First, because what follows may wake a thread that needs the interpreter lock.
        self.ownership.drain_dropped()
        received = peer.serials.received
        results: list[Any] = []
        work: list[tuple[Peer, Any]] = []
        for message in batch:
            kind = type(message)
            if kind is TaskDone or kind is TaskReturned:
                results.append(message)
            elif kind is PushTask or kind is PushCall:
                work.append((peer, message))
            elif kind not in WITH_SERIAL or received.is_new(message.serial):
                if results:
                    self._on_results(peer, results)
                    results = []
                if work:
                    self._running().push(received.new_of(work))
                    work = []
                self._on_other_message(peer, message)
        if results:
            self._on_results(peer, results)
        if work:
            self._running().push(received.new_of(work))

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
            self._running().hold(message.resources, message.resource_ids)
            self.enter_group(message.placement_group_id, message.captures)
        elif kind is FreeReturns and self.outcomes is not None:
            self.outcomes.free(message.task_id, message.attempt)
        elif kind is ItemReturned:
            self.streams.on_item(peer, message)
        elif kind is ItemsTaken:
            self._running().producers.on_taken(message.task_id, message.consumed)
        elif kind is StopStream:
            self._running().producers.stop(message.task_id)
        elif not self.plane.on_message(peer, message):
            self.ownership.on_message(peer, message)

    def _on_peer_lost(self, peer: Peer, reason: str) -> None:
        if peer.lease is not None:
            self.tasks.on_peer_lost(peer, reason)
        if peer.actor is not None:
            self.actor_calls.on_peer_lost(peer, reason)
        if self.executor is not None:
            self.executor.caller_lost(peer)
        # A closed connection is a dead process: Skate's processes never close one while they live,
        # and a process that only lost this connection could not be told from a dead one by its
        # owner either.
        self._process_lost(peer.worker_id, reason)
        self.plane.peer_lost(peer.worker_id, reason)

    def _on_worker_died(self, message: node.WorkerDied) -> None:
        self._process_lost(message.worker_id, message.cause.message)
        self.plane.worker_died(message.worker_id, message.cause)

    def _submit_again(self, submission: Submission) -> None:
        """Run a finished task once more; its arguments may still have to be made."""
        if isinstance(submission, ActorCall):
            calls = self.actor_calls.calls_of(submission.task_id[8:])
            submission.is_resolved = False
            self.actor_calls.submit(calls, submission)
            resolve(
                self.ownership,
                submission,
                lambda _, failure: self.actor_calls.resolved(calls, submission, failure),
            )
        else:
            self.tasks.expect(submission)
            resolve(self.ownership, submission, self.tasks.resolved)

    def _process_lost(self, worker_id: bytes, cause: str) -> None:
        self.ownership.on_process_lost(worker_id, cause)
        if self.outcomes is not None:
            self.outcomes.owner_lost(worker_id)
            self._running().producers.owner_lost(worker_id)

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
        if not self._has_parts:
            return  # nothing waits yet, and the registration, which is still to come, fails
        # Nothing new can start and no news of a death will come: whoever waits is told now.
        self._lost_reason = f"process {self.pid} lost its raylet: {reason}"
        with self.ownership.lock:
            pending = [e for e in self.ownership.table.entries.values() if e.state == PENDING]
        self.tasks.abandon()
        self.actor_calls.abandon()
        self.ownership.fail(pending, LocalRayletDiedError(self._lost_reason))
        self.plane.end(LocalRayletDiedError(self._lost_reason))
        self._on_raylet_lost(reason)

    # ---- the end ----

    def flush_logs(self, timeout_s: float) -> bool:
        """Print what the job's workers have printed by now; whether it took no longer than this."""
        number, flushed = self.log_printer.begin_flush()
        try:
            self.raylet.send(node.FlushLogs(number))
        except LocalRayletDiedError:
            return False
        return flushed.wait(timeout_s)

    def close(self) -> None:
        """Leave the cluster and release threads, sockets and mappings. Idempotent."""
        with self._exit_lock:
            if self.is_closed:
                return
            self.is_closed = True
        done = threading.Event()
        raylet = getattr(self, "raylet", None)
        peers = getattr(self, "peers", None)

        plane = getattr(self, "plane", None)

        def hang_up() -> None:
            if plane is not None:
                plane.end(SkateSystemError(f"Process {self.pid} left the cluster."))
            if raylet is not None:
                raylet.close()
            if peers is not None:
                peers.close()
            # Behind the closing callbacks of every connection.
            self._loop.call_soon_threadsafe(done.set)

        self._loop.call_soon_threadsafe(hang_up)
        done.wait(2.0)
        self._loop.stop()
        self.log_printer.close(LOGS_END_S)
        ownership = getattr(self, "ownership", None)
        if ownership is not None and ownership.store is not None:
            ownership.store.close()


def _nothing_more(reply: node.ControlReply) -> None:
    return None
