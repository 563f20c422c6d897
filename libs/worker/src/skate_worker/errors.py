"""Every error that a user of Skate may catch. ``skate.exceptions`` exports this module.

Each class holds fields, builds its own message from them, and pickles by its fields. Names that
start with ``Ray`` and other older names are aliases of the same classes.

    SkateError
      TaskError                      user code raised (see ``task_error``)
      ActorError: ActorDiedError, ActorUnavailableError, ActorExitError
      WorkerCrashedError, NodeDiedError, LocalRayletDiedError, OutOfMemoryError
      ObjectLostError: OwnerDiedError, ObjectReconstructionFailedError, ObjectFreedError, ...
      GetTimeoutError (TimeoutError), TaskCancelledError
      SkateSystemError: DeserializationError, NotInitializedError
      RuntimeEnvSetupError, TaskUnschedulableError, ActorUnschedulableError, ...
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from skate_core_ids import SkateError
from skate_object_store import OutOfDiskError
from skate_object_store import StoreFullError as ObjectStoreFullError
from skate_worker.task_error import (
    TaskError,
    UnserializableError,
    make_dependency_error,
    make_task_error,
    public_error,
)


class DeathLike(Protocol):
    """Why a process ended; ``skate_rpc.node_protocol.Death`` satisfies it."""

    kind: str
    message: str
    pid: int
    exit_code: int
    signal: int
    log_tail: str


class ActorLike(Protocol):
    """What is known of an actor; ``skate_rpc.node_protocol.ActorView`` satisfies it."""

    actor_id: bytes
    class_name: str
    name: str
    namespace: str
    pid: int
    node_id: bytes


class RecordError(SkateError):
    """Base of the errors that pickle as their class and fields, all keywords of ``__init__``."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {name: getattr(self, name) for name in self.FIELDS}
        return _rebuild, (type(self), fields, self.__dict__.get("__notes__"))


# ---- tasks ----


class TaskCancelledError(RecordError):
    """The task was cancelled before or while it ran. ``task_id`` is hex."""

    FIELDS: ClassVar[tuple[str, ...]] = ("task_id", "error_message")

    def __init__(self, task_id: str = "", error_message: str = "") -> None:
        self.task_id = task_id
        self.error_message = error_message
        super().__init__(error_message or f"Task {task_id or '(unknown)'} was cancelled.")


class WorkerCrashedError(RecordError):
    """The process of a plain task died, and the task has no retries left."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "task_name",
        "kind",
        "message",
        "pid",
        "exit_code",
        "signal",
        "log_tail",
        "ip",
    )

    def __init__(
        self,
        message: str = "",
        *,
        task_name: str = "",
        kind: str = "",
        pid: int = 0,
        exit_code: int = 0,
        signal: int = 0,
        log_tail: str = "",
        ip: str = "",
    ) -> None:
        self.message = message
        self.task_name = task_name
        self.kind = kind
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal
        self.log_tail = log_tail
        self.ip = ip
        subject = f"The worker of task {task_name}" if task_name else "A worker"
        process = f" (pid={pid}{f', ip={ip}' if ip else ''})" if pid else ""
        text = f"{subject}{process} died: {message or ending(kind, exit_code, signal)}"
        super().__init__(text + _tail(log_tail))

    @classmethod
    def of(cls, death: DeathLike, task_name: str = "", ip: str = "") -> WorkerCrashedError:
        """From the cause of death that the raylet reported."""
        return cls(
            death.message,
            task_name=task_name,
            kind=death.kind,
            pid=death.pid,
            exit_code=death.exit_code,
            signal=death.signal,
            log_tail=death.log_tail,
            ip=ip,
        )


class OutOfMemoryError(WorkerCrashedError):
    """The worker was killed because its node ran out of memory."""


class LocalRayletDiedError(RecordError):
    """The raylet of the task's own node died, and the task with it."""

    FIELDS: ClassVar[tuple[str, ...]] = ("message",)

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message or "The raylet of the task's node died while the task ran.")


class NodeDiedError(RecordError):
    """The node died, and retries are used up. ``node_id`` is hex."""

    FIELDS: ClassVar[tuple[str, ...]] = ("message", "node_id", "ip")

    def __init__(self, message: str = "", *, node_id: str = "", ip: str = "") -> None:
        self.message = message
        self.node_id = node_id
        self.ip = ip
        node = ", ".join(filter(None, (f"ip={ip}" if ip else "", node_id)))
        super().__init__(message or f"The task's node{f' ({node})' if node else ''} died.")


class RuntimeEnvSetupError(RecordError):
    """The environment that the task or actor asked for could not be prepared."""

    FIELDS: ClassVar[tuple[str, ...]] = ("error_message",)

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(f"Failed to set up the runtime environment: {error_message or 'unknown'}")


class _UnschedulableError(RecordError):
    FIELDS: ClassVar[tuple[str, ...]] = ("error_message",)
    SUBJECT: ClassVar[str] = ""

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(f"The {self.SUBJECT} can not be scheduled: {error_message or 'unknown'}")


class TaskUnschedulableError(_UnschedulableError):
    """No node can ever run the task as it was asked for."""

    SUBJECT: ClassVar[str] = "task"


class ActorUnschedulableError(_UnschedulableError):
    """No node can ever run the actor as it was asked for."""

    SUBJECT: ClassVar[str] = "actor"


class TaskPlacementGroupRemovedError(SkateError):
    """The placement group was removed before the task was scheduled."""


class ActorPlacementGroupRemovedError(SkateError):
    """The placement group was removed before the actor was scheduled."""


class PendingCallsLimitExceededError(SkateError):
    """The actor has ``max_pending_calls`` unfinished calls of this process."""


# ---- actors ----


class ActorError(RecordError):
    """An actor can not answer.

    Fields: ``actor_id`` (hex), ``error_msg``, ``actor_init_failed``, ``preempted``, and what is
    known of the actor.
    """

    FIELDS: ClassVar[tuple[str, ...]] = (
        "error_msg",
        "actor_id",
        "class_name",
        "name",
        "namespace",
        "pid",
        "node_id",
        "actor_init_failed",
        "preempted",
        "never_ran",
        "kind",
        "exit_code",
        "signal",
        "log_tail",
    )
    HEADLINE: ClassVar[str] = "The actor failed"

    def __init__(
        self,
        error_msg: str = "",
        *,
        actor_id: str = "",
        class_name: str = "",
        name: str = "",
        namespace: str = "",
        pid: int = 0,
        node_id: str = "",
        actor_init_failed: bool = False,
        preempted: bool = False,
        never_ran: bool = False,
        kind: str = "",
        exit_code: int = 0,
        signal: int = 0,
        log_tail: str = "",
    ) -> None:
        self.error_msg = error_msg
        self.actor_id = actor_id
        self.class_name = class_name
        self.name = name
        self.namespace = namespace
        self.pid = pid
        self.node_id = node_id
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted
        self.never_ran = never_ran
        self.kind = kind
        self.exit_code = exit_code
        self.signal = signal
        self.log_tail = log_tail
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [
            f"{self.HEADLINE}: {self.error_msg or ending(self.kind, self.exit_code, self.signal)}"
        ]
        known = {
            "class_name": self.class_name,
            "actor_id": self.actor_id,
            "pid": self.pid,
            "name": self.name,
            "namespace": self.namespace,
            "node_id": self.node_id,
        }
        lines += [f"\t{key}: {value}" for key, value in known.items() if value]
        if self.never_ran:
            lines.append("The actor never ran: it ended before its worker was ready.")
        return "\n".join(lines) + _tail(self.log_tail)

    @classmethod
    def of(
        cls,
        actor: ActorLike,
        death: DeathLike | None = None,
        error_msg: str = "",
        *,
        actor_init_failed: bool = False,
    ) -> ActorError:
        """From the actor's row and, if it is dead, the cause of death."""
        fields: dict[str, Any] = {
            "actor_id": actor.actor_id.hex(),
            "class_name": actor.class_name,
            "name": actor.name,
            "namespace": actor.namespace if actor.name else "",
            "pid": actor.pid,
            "node_id": actor.node_id.hex(),
            "actor_init_failed": actor_init_failed,
        }
        if death is not None:
            error_msg = error_msg or death.message
            fields |= {
                "kind": death.kind,
                "pid": actor.pid or death.pid,
                "exit_code": death.exit_code,
                "signal": death.signal,
                "log_tail": death.log_tail,
                "never_ran": not actor.pid and not death.pid,
            }
        return cls(error_msg, **fields)


class ActorDiedError(ActorError):
    """The actor is dead for good, or its constructor raised (``actor_init_failed``)."""

    HEADLINE: ClassVar[str] = "The actor died"


class ActorUnavailableError(ActorError):
    """The actor can not be reached for now; the call may or may not have been executed."""

    HEADLINE: ClassVar[str] = (
        "The actor is unavailable, and the call may or may not have been executed"
    )


class ActorExitError(SkateError):
    """Raised by ``exit_actor`` to unwind an async call; catching it stops nothing."""


class ActorAlreadyExistsError(RecordError, ValueError):
    """The name is taken in that namespace."""

    FIELDS: ClassVar[tuple[str, ...]] = ("name", "namespace")

    def __init__(self, name: str = "", namespace: str = "") -> None:
        self.name = name
        self.namespace = namespace
        super().__init__(
            f"An actor named {name!r} already exists in namespace {namespace!r}: take another name,"
            " or pass get_if_exists=True to use the existing one."
        )


class ActorHandleNotFoundError(SkateError, ValueError):
    """The handle belongs to a session that has ended."""


# ---- objects ----


class ObjectLostError(RecordError):
    """Every copy of the object is gone. ``object_ref_hex`` names it."""

    FIELDS: ClassVar[tuple[str, ...]] = ("object_ref_hex", "owner_address", "call_site", "detail")
    REASON: ClassVar[str] = "all copies of it are gone, and it can not be computed again"

    def __init__(
        self,
        object_ref_hex: str = "",
        owner_address: str = "",
        call_site: str = "",
        detail: str = "",
    ) -> None:
        self.object_ref_hex = object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.detail = detail
        text = f"Failed to retrieve object {object_ref_hex}: {detail or self.REASON}."
        if owner_address:
            text += f" Its owner is {owner_address}."
        if call_site:
            text += f" It was created at: {call_site}"
        super().__init__(text)


class OwnerDiedError(ObjectLostError):
    """The process that owns the object died; the object goes with it, even where a copy exists."""

    REASON: ClassVar[str] = "the process that owns it (by creating its reference) died"


class UnknownOwnerError(SkateError, ValueError):
    """The reference belongs to a session that has ended; nobody in this one knows its owner."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and computing it again failed. ``reason`` is the enum name."""

    FIELDS: ClassVar[tuple[str, ...]] = (*ObjectLostError.FIELDS, "reason")

    def __init__(
        self,
        object_ref_hex: str = "",
        owner_address: str = "",
        call_site: str = "",
        detail: str = "",
        reason: str = "UNKNOWN",
    ) -> None:
        self.reason = reason
        detail = detail or "it was lost and could not be computed again"
        super().__init__(object_ref_hex, owner_address, call_site, detail)
        self.args: tuple[Any, ...] = (f"[{reason}] {self.args[0]}",)


class ObjectFetchTimedOutError(ObjectLostError):
    """No copy of the object could be found in time."""

    REASON: ClassVar[str] = "no copy of it was found in time"


class ObjectFreedError(ObjectLostError):
    """The object was freed on request."""

    REASON: ClassVar[str] = "it was freed; use its reference no more after `free`"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was deleted while a reference to it existed: its owner does not know it any more.

    A reference that was pickled by other means than Skate's counts no longer than the process that
    pickled it lives. With any other reference it is a fault of Skate.
    """

    REASON: ClassVar[str] = (
        "it was deleted although this reference to it exists: either the process that pickled the"
        " reference by other means than Skate's has ended, or it is a fault of Skate"
    )


class GetTimeoutError(RecordError, TimeoutError):
    """``get`` gave up after its timeout."""

    FIELDS: ClassVar[tuple[str, ...]] = ("message",)

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message or "get() timed out: the objects are not ready yet.")


# ---- the system ----


class SkateSystemError(SkateError):
    """The system failed: a lost connection, an unreadable object, a fault of Skate."""


class GcsUnavailableError(RecordError, SkateSystemError):
    """The cluster's control service did not answer in time. What was asked may have been done.

    Tasks, actor calls and objects do not need it and go on.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("message",)

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(f"The GCS did not answer: {message} Look at the cluster's head.")


class NotInitializedError(SkateSystemError):
    """A call needs a session and there is none."""


class DeserializationError(SkateSystemError):
    """A stored value can not be turned back into an object here; the cause is chained."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"The value could not be deserialized in this process: {self.detail}"


class OutOfBandReferenceError(SkateError):
    """A reference was pickled outside Skate while that is forbidden."""


# ---- older names ----

RayError = SkateError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = SkateSystemError
AsyncioActorExit = ActorExitError
PendingCallsLimitExceeded = PendingCallsLimitExceededError
TaskPlacementGroupRemoved = TaskPlacementGroupRemovedError
ActorPlacementGroupRemoved = ActorPlacementGroupRemovedError
UnserializableException = UnserializableError
OufOfBandObjectRefSerializationException = OutOfBandReferenceError


def ending(kind: str, exit_code: int, signal: int) -> str:
    """One phrase for how a process ended."""
    if signal:
        return f"it was killed by signal {signal}" + (
            " (SIGKILL; perhaps the system ran out of memory)" if signal == 9 else ""
        )
    if kind == "exited" or exit_code:
        return f"it exited with status {exit_code}"
    return kind.replace("_", " ") or "the cause is unknown"


def _tail(log_tail: str) -> str:
    return f"\nThe last lines that it printed:\n{log_tail}" if log_tail else ""


def _rebuild(
    cls: type[RecordError], fields: dict[str, Any], notes: list[str] | None
) -> RecordError:
    error = cls(**fields)
    for note in notes or ():
        error.add_note(note)
    return error


__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorExitError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorPlacementGroupRemovedError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "DeserializationError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "GcsUnavailableError",
    "NodeDiedError",
    "NotInitializedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfBandReferenceError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "PendingCallsLimitExceededError",
    "RayActorError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "ReferenceCountingAssertionError",
    "RuntimeEnvSetupError",
    "SkateError",
    "SkateSystemError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskPlacementGroupRemovedError",
    "TaskUnschedulableError",
    "UnknownOwnerError",
    "UnserializableError",
    "UnserializableException",
    "WorkerCrashedError",
    "make_dependency_error",
    "make_task_error",
    "public_error",
]
