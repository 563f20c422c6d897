"""``ObjectRef``: a user's hold on a value that may not exist yet.

Each instance counts once in the process's reference table; its end is only *noted* in ``__del__``
(which may run at any moment, in any thread, inside any lock) and counted later by the runtime.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import warnings
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from skate_core_ids import JobID, ObjectID, TaskID
from skate_rpc.wait_report import TIMEOUT_S, Explanation
from skate_worker.current import current_slot, require_core
from skate_worker.machine.references import Entry, Owner
from skate_worker.serialization import register_argument_reference, register_reference_type

if TYPE_CHECKING:
    from skate_worker.object_access import ObjectAccess

T_co = TypeVar("T_co", covariant=True)


class ObjectRef(Generic[T_co]):
    """A reference to a value of type ``T_co``. Made by the runtime only; hashable; awaitable.

    Two references are equal when they name the same object. Pass it to a task to have the value
    resolved there, or inside a container to pass the reference itself (SURFACE T20).
    """

    __slots__ = ("__weakref__", "_core", "_entry")

    def __init__(self, core: ObjectAccess, entry: Entry) -> None:
        # The count was raised by whoever made or found the entry, under the runtime's lock.
        self._core = core
        self._entry = entry

    def __del__(self) -> None:
        self._core.note_dropped(self._entry)

    def binary(self) -> bytes:
        """The 28 bytes of the object's id."""
        return bytes(self._entry.object_id)

    def hex(self) -> str:
        """The object's id in hex."""
        return self._entry.object_id.hex()

    def is_nil(self) -> bool:
        """Always False: a reference names an object."""
        return False

    def object_id(self) -> ObjectID:
        """The object's id."""
        return ObjectID(self._entry.object_id)

    def task_id(self) -> TaskID:
        """The task that returned or put the object."""
        return TaskID(self._entry.object_id[:24])

    def job_id(self) -> JobID:
        """The job that the object belongs to."""
        return JobID(self._entry.object_id[20:24])

    def future(self) -> concurrent.futures.Future[T_co]:
        """A future that gets the value or the error. Cancelling it does not cancel the task."""
        future: concurrent.futures.Future[T_co] = concurrent.futures.Future()

        def resolve(outcome: Any, error: BaseException | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if error is None:
                future.set_result(outcome)
            else:
                future.set_exception(error)

        self._when_loaded(resolve)
        return future

    def as_future(self, _internal: bool = False) -> asyncio.Future[T_co]:
        """Deprecated: await the reference, or wrap :meth:`future` by ``asyncio.wrap_future``."""
        if not _internal:
            warnings.warn(
                "ObjectRef.as_future() is deprecated: await the reference itself, or use"
                " asyncio.wrap_future(ref.future()).",
                DeprecationWarning,
                stacklevel=2,
            )
        return asyncio.wrap_future(self.future())

    def _on_completed(self, callback: Callable[[Any], object]) -> None:
        """Call back once with the value, or with the exception that ``get`` would raise.

        On another thread, or at once on this one when the value is there.
        """
        self._when_loaded(lambda outcome, error: callback(outcome if error is None else error))

    def _when_loaded(self, then: Callable[[Any, BaseException | None], object]) -> None:
        def load(ref: ObjectRef[T_co]) -> None:
            try:
                outcome: Any = ref._core.get([ref], None)[0]
            except BaseException as error:  # noqa: BLE001 - the boundary: it carries the error on
                then(None, error)
            else:
                then(outcome, None)

        # The thread that settles a value must not wait for its bytes, which it may have to receive.
        self._core.when_ready(self, lambda ref: ref._core.where_it_may_wait(ref, load))

    def why(self, timeout: float = TIMEOUT_S) -> Explanation:
        """Why the value is not there yet, or what became of it; ``print`` shows the whole text.

        For a value that is waited for the whole cluster is asked, for at most ``timeout`` seconds
        (who has not answered by then is named): which argument, which resource at which node, held
        by whom, since when, or where its task runs; and the circle when it can never come.

        Raises:
            ControlCallError: the GCS can not be reached.
            LocalRayletDiedError: this process's node has ended.
        """
        return self._core.why_object(self._entry, timeout)

    def call_site(self) -> str:
        """The line that made the object, where it is known (SURFACE O20)."""
        return self._core.ownership.sites.get(self._entry.object_id, "")

    def __copy__(self) -> ObjectRef[T_co]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ObjectRef[T_co]:
        # A reference is a name and does not change; pickling it, as copying would, pins the object.
        return self

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._wait().__await__()

    async def _wait(self) -> T_co:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        def on_ready(_: ObjectRef[T_co]) -> None:
            # The loop may have ended meanwhile: then nobody waits any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        core, entry = self._core, self._entry
        await_number = core.begin_await(entry)
        try:
            if not core.is_ready(self):
                core.when_ready(self, on_ready)
                await ready
            value: T_co
            if core.may_wait_for_bytes(self):
                # Not on the event loop, whose other coroutines run meanwhile.
                value = (await loop.run_in_executor(None, core.get, [self]))[0]
            else:
                value = core.get([self], None)[0]
            return value
        finally:
            if await_number:
                core.end_await(await_number)

    def __eq__(self, other: object) -> bool:
        if type(other) is not ObjectRef:
            return NotImplemented
        return self._entry.object_id == other._entry.object_id

    def __hash__(self) -> int:
        return hash(self._entry.object_id)

    def __repr__(self) -> str:
        return f"ObjectRef({self._entry.object_id.hex()})"

    def __reduce__(self) -> Any:
        # Pickled by something other than the runtime, which can not know when the bytes are gone.
        self._core.pin_out_of_band(self._entry)
        return _reduce(self)


def _reduce(ref: ObjectRef[Any]) -> tuple[Any, ...]:
    core, entry = ref._core, ref._entry
    owner = entry.owner or core.as_owner
    if core.records_sites and (site := core.ownership.sites.get(entry.object_id)):
        args = (entry.object_id, owner.worker_id, owner.endpoint, owner.node_id, site)
        return _rebuild_with_site, args
    return _rebuild, (entry.object_id, owner.worker_id, owner.endpoint, owner.node_id)


def _rebuild_with_site(
    object_id: bytes, owner_id: bytes, endpoint: str, owner_node: bytes, site: str
) -> ObjectRef[Any]:
    """Of a process that notes all lines: then borrowers can say which one made a lost object."""
    ref = _rebuild(object_id, owner_id, endpoint, owner_node)
    ref._core.ownership.sites.setdefault(object_id, site)
    return ref


def _rebuild(
    object_id: bytes, owner_id: bytes, endpoint: str, owner_node: bytes = b""
) -> ObjectRef[Any]:
    core = current_slot[0]
    if core is None:
        core = require_core()
    table = core.ownership.table
    entry = table.entries.get(object_id)
    if entry is not None and (entry.owner is None or entry.is_told):
        # The common case, many thousand times for a list of references: counted later, without the
        # lock. See ReferenceTable.adopted for why nothing is released in between.
        table.adopted.append(entry)
        if not entry.is_released or core.ownership.is_still_held(entry):
            return ObjectRef(core, entry)
    return core.adopt(object_id, Owner(owner_id, endpoint, owner_node))


register_reference_type(ObjectRef, _reduce)
register_argument_reference(ObjectRef)
