"""Creating, calling, finding and killing actors.

Before it: ``task_submission``. After it: ``core``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from skate_core_ids import ActorID
from skate_rpc import node_protocol as node
from skate_worker.actor_submitter import ActorCall
from skate_worker.errors import (
    ActorAlreadyExistsError,
    PendingCallsLimitExceededError,
)
from skate_worker.execution import WorkerExit
from skate_worker.machine.references import INLINE, PENDING, Entry
from skate_worker.node_client import ControlCallError
from skate_worker.object_ref import ObjectRef
from skate_worker.serialization import (
    deserialize,
    serialize_args,
)
from skate_worker.specs import ActorOptions, CallOptions, Strategy
from skate_worker.submission import DependencyFailed, Submission, resolve
from skate_worker.task_protocol import (
    CreationTask,
    PushCall,
)
from skate_worker.task_submission import FIRST_RETURN, TaskSubmission

if TYPE_CHECKING:
    pass


class ActorManagement(TaskSubmission):
    """A member that has actors. Thread-safe."""

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
        if options.strategy is not None and options.strategy.group_id:
            task.placement_group_id = options.strategy.group_id
            task.captures = options.strategy.captures
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

        keeper_entry = None if keeper is None else keeper._entry

        def ready(_: Submission, failure: DependencyFailed | None) -> None:
            self._keep_copies(creation, keeper_entry)
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

    def _keep_copies(self, creation: Submission, keeper: Entry | None) -> None:
        """Arguments that were copied into the store live as long as the actor's handles."""
        copies, creation.pinned = creation.pinned, ()
        if not copies or keeper is None:  # a detached actor's stay: nobody says when it ends
            return
        with self.ownership.lock:
            is_released = keeper.is_released
            if not is_released:
                keeper.contained = [*(keeper.contained or ()), *copies]
        if is_released:
            self.ownership.release_later(copies)

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
        self._keep_copies(creation, None if keeper is None else keeper._entry)
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
        strategy = options.strategy or Strategy()
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
            strategy.is_spread,
            strategy.node_id,
            strategy.is_soft,
            strategy.is_impatient,
            strategy.labels,
            strategy.group_id,
            strategy.bundle_index,
            strategy.captures,
        )

    def submit_actor_task(
        self, actor_id: bytes, args: tuple[Any, ...], kwargs: dict[str, Any], options: CallOptions
    ) -> list[ObjectRef[Any]]:
        """Call a method of an actor; returns the references of its returns.

        Raises ``PendingCallsLimitExceededError`` when too many calls of this process wait.
        """
        calls = self.actor_calls.calls_of(actor_id)
        if 0 <= options.pending_calls_max <= calls.unfinished_count():
            raise PendingCallsLimitExceededError(
                f"{options.name}: {options.pending_calls_max} calls of this process to the actor"
                " have not ended, which is its max_pending_calls; wait for some of them."
            )
        data, nested, top_level = serialize_args(args, kwargs, self._promote, options.name)
        task_id = bytes(self._task_ids.of(actor_id))
        message = PushCall(task_id, options.method, data, options.name, options.num_returns)
        if options.concurrency_group:
            message.concurrency_group = options.concurrency_group
        if options.max_task_retries:
            message.is_retriable = True
        call = ActorCall(task_id, message, [], options.max_task_retries, options.retry_exceptions)
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


def keeper_id_of(actor_id: bytes) -> bytes:
    """The id of the object that stands for the handles of an actor."""
    return actor_id[:8] + actor_id + FIRST_RETURN
