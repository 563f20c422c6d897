"""``put``, ``get``, ``wait`` and ``cancel``: a program's dealings with objects."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

from skate.actor_handle import ActorHandle
from skate.session import require_session
from skate_worker.current import current_core, is_first_core
from skate_worker.errors import UnknownOwnerError
from skate_worker.object_ref import ObjectRef
from skate_worker.object_ref_generator import ObjectRefGenerator

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

# ruff: noqa: SLF001 - a reference hides its runtime from users; its session is checked.

T = TypeVar("T")

# Lists of references are long: C loops check them, and Python ones only name a culprit.
_ONLY_REFS = {ObjectRef}
_WAITABLE = (ObjectRef, ObjectRefGenerator)
_ENTRY = operator.attrgetter("_entry")
_CORE = operator.attrgetter("_core")


def put(
    value: T, *, _owner: ActorHandle[Any] | None = None, _tensor_transport: None = None
) -> ObjectRef[T]:
    """Store a value; returns a reference that this process owns.

    ``_owner``: an actor that owns the object in this process's place. The object outlives this
    process then, and ends with the actor's.

    Raises:
        TypeError: the value is a reference, or has a part that can not be pickled (it is named);
            ``_owner`` is no actor handle.
        RuntimeError: the actor ``_owner`` is dead.
        ObjectStoreFullError: the store has no room.
        ValueError: an option that is not supported yet.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "put() takes a value, not a reference; put a list that contains the reference instead."
        )
    if _tensor_transport is not None:
        raise ValueError("put() does not support _tensor_transport yet; leave it out.")
    core = current_core() or require_session()
    if _owner is None:
        return core.put(value)
    if not isinstance(_owner, ActorHandle):
        raise TypeError(f"put() takes an actor handle as _owner, got {type(_owner).__name__}.")
    return core.put_for(value, bytes(_owner._actor_id))


@overload
def get(object_refs: ObjectRef[T], *, timeout: float | None = None, copy: bool = False) -> T: ...
@overload
def get(
    object_refs: ObjectRefGenerator[T], *, timeout: float | None = None, copy: bool = False
) -> ObjectRefGenerator[T]: ...
@overload
def get(
    object_refs: list[ObjectRef[T]], *, timeout: float | None = None, copy: bool = False
) -> list[T]: ...
@overload
def get(
    object_refs: list[Any], *, timeout: float | None = None, copy: bool = False
) -> list[Any]: ...
def get(object_refs: Any, *, timeout: float | None = None, copy: bool = False) -> Any:
    """The value of a reference, or the values of a list in its order; waits for them.

    A generator is returned as it is: its references are what has values.

    ``timeout`` in seconds; None and -1 wait without end, 0 looks once. The first error among them
    is raised as soon as it is known, also as an instance of the class that the task raised.

    Arrays in a value are read-only views of shared memory: nothing is copied, and numpy refuses a
    write with "assignment destination is read-only". With ``copy=True`` they lie in private memory
    and can be written to.

    Raises:
        GetTimeoutError: not all values came in time (also a ``TimeoutError``).
        ValueError: neither a reference nor a list, or a negative timeout.
        TypeError: a list with something else than references.
    """
    if timeout is not None:
        timeout = _timeout_s("get", timeout, allows_minus_one=True)
    core = current_core()
    if type(object_refs) is ObjectRef:
        if object_refs._core is not core:
            core = live_core([object_refs])
        if copy:
            return core.get_copies((object_refs,), timeout)[0]
        return core.get((object_refs,), timeout)[0]
    if isinstance(object_refs, ObjectRefGenerator):
        return object_refs
    if not isinstance(object_refs, list):
        raise ValueError(
            f"get() takes an ObjectRef or a list of them, got {type(object_refs).__name__}."
            f"{_hint(object_refs)}"
        )
    for item in object_refs if set(map(type, object_refs)) != _ONLY_REFS else ():
        if type(item) is not ObjectRef:
            raise TypeError(
                f"get() takes a list of ObjectRefs, but the list has {type(item).__name__}."
                f"{_hint(item)}"
            )
    if not object_refs:
        return []
    core = live_core(object_refs)
    return core.get_copies(object_refs, timeout) if copy else core.get(object_refs, timeout)


@overload
def wait(
    object_refs: list[ObjectRef[T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[T]], list[ObjectRef[T]]]: ...
@overload
def wait(
    object_refs: list[ObjectRefGenerator[T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRefGenerator[T]], list[ObjectRefGenerator[T]]]: ...
@overload
def wait(
    object_refs: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]: ...
def wait(
    object_refs: list[Any],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]:
    """Split references into ready ones and the rest, each in the given order.

    A generator among them is ready when its next reference is, or its end.

    Returns as soon as ``num_returns`` are ready (and then exactly so many as ready), or after
    ``timeout`` seconds (0 looks once, None waits without end). A failed task counts as ready.

    Raises:
        TypeError: not a list of references.
        ValueError: a reference stands twice, ``num_returns`` is not in 1..len, or a negative
            timeout.
    """
    given_refs: Any = object_refs
    if not isinstance(given_refs, list):
        given = type(object_refs).__name__
        hint = " Write wait([ref])." if given == "ObjectRef" else ""
        raise TypeError(f"wait() takes a list of ObjectRefs, got {given}.{hint}")
    try:
        # References to one object share what the runtime knows of it, which hashes in C.
        entries = set(map(_ENTRY, object_refs))
    except AttributeError:
        item = next(item for item in given_refs if not isinstance(item, _WAITABLE))
        raise TypeError(
            f"wait() takes a list of ObjectRefs, but the list has {type(item).__name__}."
            f"{_hint(item)}"
        ) from None
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be a whole number, got {num_returns!r}.")
    if timeout is not None:
        timeout = _timeout_s("wait", timeout, allows_minus_one=False)
    if not object_refs:
        return [], []
    if len(entries) != len(object_refs):
        raise ValueError("wait() takes each ObjectRef once, but the list has the same one twice.")
    if not 1 <= num_returns <= len(object_refs):
        raise ValueError(
            f"num_returns must lie between 1 and the number of references ({len(object_refs)}),"
            f" got {num_returns}."
        )
    return live_core(object_refs).wait(object_refs, num_returns, timeout, fetch_local)


def cancel(
    ref: ObjectRef[Any] | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None:
    """Stop the task that makes ``ref``, as far as possible; it is never retried afterwards.

    A task that waits does not start; one that runs gets ``KeyboardInterrupt``, or its worker is
    killed with ``force``. Nothing happens when it has finished. ``recursive`` also stops what it
    started. A cancelled generator has the error as the value of its next reference, and then ends.

    Raises:
        TypeError: not a reference.
        ValueError: ``force`` for an actor's call, which would kill the actor.
    """
    if not isinstance(ref, _WAITABLE):
        raise TypeError(f"cancel() takes an ObjectRef, got {type(ref).__name__}.{_hint(ref)}")
    if force and ref.task_id().is_actor_task():
        raise ValueError(
            "force=True can not cancel a call of an actor; use skate.kill() to end the actor."
        )
    live_core([ref]).cancel(ref, force, recursive)


def live_core(refs: list[Any]) -> CoreWorker:
    """The session, which has to be that of all these references.

    Raises:
        UnknownOwnerError: one of them belongs to a session that has ended.
    """
    core = current_core() or require_session()
    if is_first_core() or set(map(_CORE, refs)) == {core}:
        return core
    for ref in refs:
        if ref._core is not core:
            raise UnknownOwnerError(
                f"{ref!r} belongs to a session that has ended: its owner is unknown in this one."
            )
    return core


def _timeout_s(function: str, timeout: Any, *, allows_minus_one: bool) -> float | None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"The timeout of {function}() is a number of seconds, got {timeout!r}.")
    if allows_minus_one and timeout == -1:
        return None
    if timeout < 0 or math.isnan(timeout):
        raise ValueError(f"The timeout of {function}() must not be negative, got {timeout}.")
    return None if math.isinf(timeout) else float(timeout)


def _hint(value: Any) -> str:
    if isinstance(value, ActorHandle):
        return " Call a method of the actor with .remote() to have a reference."
    if isinstance(value, ObjectRef):
        return ""
    if callable(value):
        return " Call it with .remote() to have a reference."
    if isinstance(value, tuple | set | frozenset | Sequence) and any(
        isinstance(item, ObjectRef) for item in value
    ):
        return " Make it one flat list."
    return ""
