"""From what user code returned or raised to the message that goes to the owner."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from skate_object_store import StoreClosedError
from skate_worker.call_site import clipped
from skate_worker.errors import LocalRayletDiedError, make_task_error
from skate_worker.generator_returns import references_of
from skate_worker.machine.references import Entry
from skate_worker.ownership import (
    INLINE_MAX_BYTES,
    INLINE_TOTAL_MAX_BYTES,
    Ownership,
    contained_entries,
)
from skate_worker.peers import Peer
from skate_worker.serialization import Serialized, serialize
from skate_worker.task_protocol import Reference, Returned, TaskDone, TaskReturned

_OF_A_DEAD_NODE = (StoreClosedError, LocalRayletDiedError)


def _no_node_to_lose(reason: str) -> None:
    return None


class OutcomeWriter:
    """Serialises returns; pins what they contain until the owner holds it."""

    def __init__(
        self,
        ownership: Ownership,
        ip: str,
        on_node_lost: Callable[[str], None] = _no_node_to_lose,
    ) -> None:
        """``on_node_lost``: a call failed because this node's daemon is gone; ends the worker."""
        self._on_node_lost = on_node_lost
        self._ownership = ownership
        self._ip = ip
        # (task id, attempt) -> (owner's id, entries)
        self._pins: dict[tuple[bytes, int], tuple[bytes, list[Entry]]] = {}
        # task id -> returns that exist already, of a task that runs again for the others
        self.kept_returns: dict[bytes, list[int]] = {}

    def success(
        self,
        peer: Peer,
        task_id: bytes,
        name: str,
        value: Any,
        num_returns: int,
        run_us: int,
        attempt: int,
    ) -> TaskDone | TaskReturned:
        """The outcome of a call that returned. Raises what serialising the value raises."""
        if num_returns == 1:
            serialized = serialize(value, subject=f"return value of {name}()")
            if not serialized.contained and serialized.total_bytes <= INLINE_MAX_BYTES:
                return TaskDone(task_id, serialized.to_bytes(), run_us)
            values: Sequence[Serialized] = (serialized,)
        elif num_returns == 0:
            return TaskReturned(task_id, [], run_us)
        else:
            values = [
                serialize(item, subject=f"return value of {name}()")
                for item in _exactly(value, num_returns, name)
            ]
        returns: list[Returned] = []
        inline_bytes = 0
        try:
            for index, item in enumerate(values, start=1):
                fits = inline_bytes + item.total_bytes <= INLINE_TOTAL_MAX_BYTES
                is_inline = fits and item.total_bytes <= INLINE_MAX_BYTES
                if is_inline:
                    inline_bytes += item.total_bytes
                returns.append(self._written(peer, task_id, index, item, is_inline, f"{name}()"))
        except BaseException:
            self._delete_written(task_id, returns)  # the outcome will be an error
            raise
        # Only what can no longer fail is held for the owner.
        pinned: list[Entry] = []
        for item, returned in zip(values, returns, strict=True):
            if item.contained and (returned.data or returned.node_id):
                returned.contained = self._hold(peer, item, pinned)
        if pinned:
            self._pins[task_id, attempt] = (peer.worker_id, pinned)
        if self.kept_returns:
            self.kept_returns.pop(task_id, None)
        if peer.connection.is_closed:
            # Its end was noticed before there was anything to free, and nobody else frees it now.
            self._delete_written(task_id, returns)
            self._ownership.end_borrows(pinned, peer.worker_id)
            self.free(task_id, attempt)
        return TaskReturned(task_id, returns, run_us, holds_pins=bool(pinned))

    def item(
        self, peer: Peer, task_id: bytes, attempt: int, index: int, value: Serialized, name: str
    ) -> tuple[Returned, bool]:
        """One return of a task that yields, and whether pins are held for it: under its id.

        Who sends it is told if the connection has ended by then, and calls :meth:`discard`.
        """
        pinned: list[Entry] = []
        is_inline = value.total_bytes <= INLINE_MAX_BYTES
        note = f"an item of {name}()"
        returned = self._written(peer, task_id, index, value, is_inline, note)
        if value.contained and (returned.data or returned.node_id):
            returned.contained = self._hold(peer, value, pinned)
        if pinned:
            object_id = task_id + index.to_bytes(4, "big")
            self._pins[object_id, attempt] = (peer.worker_id, pinned)
        return returned, bool(pinned)

    def discard(self, object_id: bytes, attempt: int, returned: Returned) -> None:
        """An item's owner is gone: nobody else will free it."""
        held = self._pins.get((object_id, attempt))
        if held is not None:
            self._ownership.end_borrows(held[1], held[0])
            self.free(object_id, attempt)
        store = self._ownership.store
        if returned.node_id and store is not None:
            store.delete([object_id])

    def join(self, task_id: bytes, attempt: int, item_ids: list[bytes]) -> bool:
        """Hold the pins of items under their task's id. Returns whether there are any."""
        held = [pins for key in item_ids if (pins := self._pins.pop((key, attempt), None))]
        if held:
            entries = [entry for pins in held for entry in pins[1]]
            self._pins[task_id, attempt] = (held[0][0], entries)
        return bool(held)

    def failure(
        self,
        task_id: bytes,
        name: str,
        error: BaseException,
        num_returns: int,
        run_us: int,
        *,
        actor_id: bytes = b"",
        actor_repr: str = "",
    ) -> TaskReturned:
        """The outcome of a call that raised: every return is the error.

        Not if it raised because the node's daemon died a moment ago: that is no outcome of the
        user's code, and the worker ends with its node, so that the owner hears of a death.
        """
        if type(error) in _OF_A_DEAD_NODE:  # exactly: a task's error may have it as its cause
            self._on_node_lost(f"{name}() found the node's daemon gone: {error}")
        wrapped = make_task_error(
            error,
            function_name=name,
            pid=os.getpid(),
            ip=self._ip,
            actor_id=actor_id.hex(),
            actor_repr=actor_repr,
        )
        return self.error(task_id, wrapped, num_returns, run_us, is_user_error=True)

    def error(
        self,
        task_id: bytes,
        error: BaseException,
        num_returns: int,
        run_us: int = 0,
        *,
        is_user_error: bool = False,
        is_cancelled: bool = False,
    ) -> TaskReturned:
        """The outcome of a call that ended with an error that is sent as it is."""
        if self.kept_returns:
            self.kept_returns.pop(task_id, None)
        data = serialize(error, is_error=True).to_bytes()
        returns = [Returned(data, is_error=True) for _ in range(references_of(num_returns))]
        return TaskReturned(
            task_id, returns, run_us, is_error=is_user_error, is_cancelled=is_cancelled
        )

    def free(self, task_id: bytes, attempt: int) -> None:
        """The owner holds what the returns of this attempt of a task contain."""
        held = self._pins.pop((task_id, attempt), None)
        if held is not None:
            self._ownership.release_later(held[1])

    def owner_lost(self, worker_id: bytes) -> None:
        """An owner is gone: what was pinned for it goes, after those to whom it passed that on had
        the time to register.
        """
        self._ownership.after_grace(self._free_for, worker_id)

    def _free_for(self, worker_id: bytes) -> None:
        for key, (owner_id, _) in list(self._pins.items()):
            if owner_id == worker_id:
                self.free(*key)

    def _written(
        self, peer: Peer, task_id: bytes, index: int, value: Serialized, is_inline: bool, note: str
    ) -> Returned:
        if self.kept_returns and index in self.kept_returns.get(task_id, ()):
            return Returned(b"")
        if is_inline:
            return Returned(value.to_bytes())
        object_id = task_id + index.to_bytes(4, "big")
        self._ownership.put_parts(object_id, value, peer.worker_id, clipped(note))
        return Returned(b"", value.total_bytes, node_id=self._ownership.node_id)

    def _delete_written(self, task_id: bytes, returns: list[Returned]) -> None:
        stored = [
            task_id + index.to_bytes(4, "big")
            for index, returned in enumerate(returns, start=1)
            if returned.node_id
        ]
        store = self._ownership.store
        if stored and store is not None:
            store.delete(stored)

    def _hold(self, peer: Peer, value: Serialized, pinned: list[Entry]) -> list[Reference]:
        """Pin what the value contains, and register the owner of the value for what is ours."""
        contained: list[Reference] = []
        ownership = self._ownership
        with ownership.lock:
            for entry in contained_entries(value):
                entry.pins += 1
                pinned.append(entry)
                contained.append(ownership.reference_of(entry))
                if entry.owner is None:
                    ownership.table.add_borrower(entry.object_id, peer.worker_id)
        return contained


def _exactly(value: Any, count: int, name: str) -> list[Any]:
    try:
        items = list(value)
    except TypeError:
        raise ValueError(
            f"{name}() has num_returns={count} and must return an iterable of {count} values,"
            f" but it returned {type(value).__name__}."
        ) from None
    if len(items) != count:
        raise ValueError(
            f"{name}() has num_returns={count} but returned {len(items)} values; return exactly"
            f" {count}."
        )
    return items
