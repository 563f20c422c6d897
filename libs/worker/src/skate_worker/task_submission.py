"""Submitting plain tasks.

Before it: ``object_access``. After it: ``actor_management``, whose calls are submitted alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate_worker.context import running_task
from skate_worker.errors import (
    LocalRayletDiedError,
)
from skate_worker.object_access import ObjectAccess
from skate_worker.object_ref import ObjectRef
from skate_worker.serialization import (
    Serialized,
    serialize_args,
)
from skate_worker.specs import TaskOptions
from skate_worker.submission import Submission, resolve
from skate_worker.task_protocol import (
    PushTask,
)

if TYPE_CHECKING:
    pass

QUEUES_KEPT_MAX = 4096
FIRST_RETURN = (1).to_bytes(4, "big")


class TaskSubmission(ObjectAccess):
    """A member that submits tasks. Thread-safe."""

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
            elif num_returns < 0:
                refs = self.streams.begin(submission, num_returns)
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
        return self._own_value(self._new_object_id(), value)
