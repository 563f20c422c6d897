"""What a generator task gives its caller: an iterator over the references of its items.

``ObjectRefGenerator`` hands out each reference when its item is ready, while the task runs on.
``DynamicObjectRefGenerator`` is the value of a task with ``num_returns="dynamic"``: all references
at once, when the task has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from skate_core_ids import TaskID
from skate_worker.errors import UnknownOwnerError
from skate_worker.machine.generator_stream import GeneratorStream
from skate_worker.machine.references import PENDING, Entry
from skate_worker.object_ref import ObjectRef

if TYPE_CHECKING:
    from skate_worker.object_access import ObjectAccess

T_co = TypeVar("T_co", covariant=True)


class ObjectRefGenerator(Generic[T_co]):
    """The items of a running generator task, as references, in the order in which it yields them.

    Iterate over it, also with ``async for``. When the task fails, the error is the value of the
    next reference, and the iteration ends after it. Dropping the generator closes the task's
    generator at its next ``yield`` and frees what was not read.

    It belongs to the process that called the task: pass the references on, not the generator.
    """

    __slots__ = ("__weakref__", "_completion", "_core", "_stream")

    def __init__(
        self, core: ObjectAccess, stream: GeneratorStream, completion: ObjectRef[Any]
    ) -> None:
        self._core = core
        self._stream = stream
        self._completion = completion

    def __del__(self) -> None:
        # May run at any moment, inside any lock.
        if not self._stream.is_finished:
            self._core.note_stream_dropped(self._stream)

    def __iter__(self) -> ObjectRefGenerator[T_co]:
        return self

    def __next__(self) -> ObjectRef[T_co]:
        """The reference of the next item, once that is ready. ``StopIteration`` after the last."""
        entry = self._take()
        while entry is None:
            self._core.wait_for_entry(self._stream.head)
            entry = self._take()
            if entry is None and self._stream.is_finished:
                raise StopIteration
        return ObjectRef(self._core, entry)

    def __aiter__(self) -> ObjectRefGenerator[T_co]:
        return self

    async def __anext__(self) -> ObjectRef[T_co]:
        """As ``next``, without blocking the event loop."""
        entry = self._take()
        while entry is None:
            await self._head_settled()
            entry = self._take()
            if entry is None and self._stream.is_finished:
                raise StopAsyncIteration
        return ObjectRef(self._core, entry)

    def completed(self) -> ObjectRef[None]:
        """A reference that is ready when the task has ended; ``get`` of it raises its error."""
        return self._completion

    def next_ready(self) -> bool:
        """Whether ``next`` gives a reference at once. False at the end."""
        return self._stream.is_ready

    def is_finished(self) -> bool:
        """Whether everything was taken, an error included, and ``next`` raises
        ``StopIteration``.
        """
        return self._stream.is_finished

    def task_id(self) -> TaskID:
        """The task that yields the items."""
        return TaskID(self._stream.task_id)

    @property
    def _entry(self) -> Entry:
        # What `wait` looks at: the next item, or what stands for the end.
        return self._stream.head

    def _take(self) -> Entry | None:
        entry = self._core.streams.take(self._stream)
        if entry is None and self._core.is_closed and not self._stream.is_finished:
            raise UnknownOwnerError(
                f"{self!r} belongs to a session that has ended; call the task again."
            )
        return entry

    async def _head_settled(self) -> None:
        loop = asyncio.get_running_loop()
        settled: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not settled.done():
                settled.set_result(None)

        def on_settled(_: Entry) -> None:
            # The loop may have ended meanwhile: then nobody waits any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        head = self._stream.head
        if head.state == PENDING and self._core.ownership.watch(head, on_settled):
            try:
                await settled
            finally:
                self._core.ownership.unwatch_all([head], on_settled)

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.task_id.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "An ObjectRefGenerator can not be pickled or passed to a task; pass the references"
            " that it yields, or list(generator), instead."
        )

    def send(self, value: Any) -> NoReturn:
        """Not supported: nothing can be sent into a generator that runs elsewhere."""
        raise NotImplementedError("gen.send is not supported.")

    def throw(self, *error: Any) -> NoReturn:
        """Not supported: use ``skate.cancel`` to stop the task."""
        raise NotImplementedError("gen.throw is not supported; use skate.cancel().")

    def close(self) -> NoReturn:
        """Not supported: drop the generator, or use ``skate.cancel``."""
        raise NotImplementedError("gen.close is not supported; drop it, or use skate.cancel().")

    async def asend(self, value: Any) -> NoReturn:
        """Not supported, as ``send``."""
        raise NotImplementedError("gen.asend is not supported.")

    async def athrow(self, *error: Any) -> NoReturn:
        """Not supported, as ``throw``."""
        raise NotImplementedError("gen.athrow is not supported; use skate.cancel().")

    async def aclose(self) -> NoReturn:
        """Not supported, as ``close``."""
        raise NotImplementedError("gen.aclose is not supported; drop it, or use skate.cancel().")


class DynamicObjectRefGenerator(Generic[T_co]):
    """The references of all items of a task with ``num_returns="dynamic"``. May be passed on."""

    __slots__ = ("_refs",)

    def __init__(self, refs: Sequence[ObjectRef[T_co]]) -> None:
        self._refs = tuple(refs)

    def __iter__(self) -> Iterator[ObjectRef[T_co]]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __repr__(self) -> str:
        return f"DynamicObjectRefGenerator({len(self._refs)} references)"

    def __reduce__(self) -> tuple[Any, ...]:
        return DynamicObjectRefGenerator, (self._refs,)
