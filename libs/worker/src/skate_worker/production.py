"""Running generators: each item leaves as soon as it is yielded.

Before it: ``execution`` and ``actor_host``, which call the user's function and find that its
returns are those of a generator. After it: ``outcome`` (values) and the owner's ``streams``.

A producer with a bound waits between two items, never on the loop's thread. On the main thread an
interrupt (a cancellation) may come while user code runs and while the producer waits, but not while
an item is on its way: half a message would break the connection for everybody.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from skate_rpc.stream import StreamClosedError
from skate_worker.generator_returns import DYNAMIC, ITEMS_MAX, STATIC, decode_returns
from skate_worker.machine.generator_stream import FIRST_ITEM, item_id
from skate_worker.machine.references import Entry
from skate_worker.outcome import OutcomeWriter
from skate_worker.peers import Peer
from skate_worker.serialization import serialize
from skate_worker.task_protocol import ItemReturned, Returned, TaskReturned
from skate_worker.waiting import ReadyCount

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

FLUSH_S: Final = 0.0002  # items that follow each other faster share a frame
_NOBODY: Final = Entry(b"", None)
_NONE: Final = serialize(None).to_bytes()


class ProductionCancelledError(BaseException):
    """Ends a generator that ``skate.cancel`` stopped at a yield. Never reaches user code."""


class _Production:
    """One generator that runs here, as far as its items go: one by one to the owner."""

    def __init__(self, producers: Producers, peer: Peer, message: Any, limit: int) -> None:
        self.peer = peer
        self.is_stopped = False
        self.is_cancelled = False
        self.produced = 0
        self._producers = producers
        self._message = message
        self._limit = limit
        self._consumed = 0
        self._gates: deque[ReadyCount] = deque()
        self._sent_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the next item has to wait."""
        return bool(self._limit) and self.produced - self._consumed >= self._limit

    def put(self, value: Any) -> bool:
        """Send one item. False: no more are wanted."""
        message = self._message
        if self.produced >= ITEMS_MAX:
            raise ValueError(f"{message.name}() yielded more than {ITEMS_MAX} items.")
        serialized = serialize(value, subject=f"item of {message.name}()")
        index = self.produced + FIRST_ITEM
        returned, holds_pins = self._producers.outcomes.item(
            self.peer, message.task_id, message.attempt, index, serialized, message.name
        )
        self._send(returned, holds_pins)
        if self.is_cancelled:
            raise ProductionCancelledError
        return not self.is_stopped

    def _send(self, value: Returned, holds_pins: bool) -> None:
        message = self._message
        item = self.peer.stamp(
            ItemReturned(message.task_id, self.produced, value, message.attempt, holds_pins)
        )
        self.produced += 1
        connection = self.peer.connection
        now_s = time.monotonic()
        try:
            if now_s - self._sent_s > FLUSH_S:
                connection.send(item)
            else:
                connection.post(item)
        except StreamClosedError:
            self.is_stopped = True  # the owner is gone, and its items with it
            object_id = item_id(message.task_id, item.index)
            self._producers.outcomes.discard(object_id, message.attempt, value)
        self._sent_s = now_s

    def end(self, run_us: int) -> TaskReturned:
        """The outcome of a generator that ended by itself, or was stopped."""
        message = self._message
        return TaskReturned(message.task_id, [Returned(_NONE)], run_us, items=self.produced)

    def fail(self, error: Exception, run_us: int) -> TaskReturned:
        """The outcome of one that raised."""
        if decode_returns(self._message.num_returns)[0] != DYNAMIC:
            raise error
        wrapped = self._producers.failure(self._message, error, 1, run_us)
        self._send(wrapped.returns[0], False)
        return self.end(run_us)

    # ---- waiting ----

    def wait(self) -> None:
        """Wait until the owner has consumed enough, or wants no more."""
        while self._has_to_wait():
            gate = self._producers.new_gate()
            self._gates.append(gate)
            # Looked at again: what opens the gate may have come before there was one.
            if self._has_to_wait():
                self._producers.block(gate)
        if self.is_cancelled:
            raise ProductionCancelledError

    def _has_to_wait(self) -> bool:
        return self.is_full and not self.is_stopped and not self.is_cancelled

    def open(self) -> None:
        """Something changed that the producer may wait for. On the loop's thread."""
        # No lock, which an interrupt could leave locked: a deque hands each gate to one side.
        while self._gates:
            self._gates.popleft()(_NOBODY)

    def note_consumed(self, consumed: int) -> None:
        """The owner has taken so many. On the loop's thread."""
        self._consumed = max(self._consumed, consumed)
        if not self.is_full:
            self.open()


class _Collection:
    """The first items of a generator with a number of returns, stored as they come."""

    is_full = False
    is_stopped = False
    is_cancelled = False

    def __init__(self, producers: Producers, peer: Peer, message: Any, count: int) -> None:
        self.peer = peer
        self._producers = producers
        self._message = message
        self._count = count
        self._returns: list[Returned] = []
        self._keys: list[bytes] = []

    def put(self, value: Any) -> bool:
        """Store one item. False: it was the last one."""
        message = self._message
        serialized = serialize(value, subject=f"item of {message.name}()")
        index = len(self._returns) + 1
        returned, holds_pins = self._producers.outcomes.item(
            self.peer, message.task_id, message.attempt, index, serialized, message.name
        )
        self._returns.append(returned)
        if holds_pins:
            self._keys.append(message.task_id + index.to_bytes(4, "big"))
        return len(self._returns) < self._count

    def end(self, run_us: int) -> TaskReturned:
        """The outcome; too few items are an error in the place of those that are missing."""
        missing = self._count - len(self._returns)
        if missing:
            error = ValueError(
                f"{self._message.name}() has num_returns={self._count} but yielded"
                f" {len(self._returns)} values; yield at least {self._count}."
            )
            return self.fail(error, run_us)
        return self._outcome(TaskReturned(self._message.task_id, [], run_us))

    def fail(self, error: Exception, run_us: int) -> TaskReturned:
        """The error in the place of what was not yielded."""
        missing = self._count - len(self._returns)
        return self._outcome(self._producers.failure(self._message, error, missing, run_us))

    def _outcome(self, outcome: TaskReturned) -> TaskReturned:
        task_id, attempt = self._message.task_id, self._message.attempt
        if self.peer.connection.is_closed:
            # Its end was noticed before there was anything to free, and nobody else frees it now.
            for index, returned in enumerate(self._returns, start=1):
                object_id = task_id + index.to_bytes(4, "big")
                self._producers.outcomes.discard(object_id, attempt, returned)
        outcome.returns = self._returns + outcome.returns
        outcome.holds_pins = self._producers.outcomes.join(task_id, attempt, self._keys)
        return outcome

    def wait(self) -> None:
        """Nothing ever waits here."""

    def open(self) -> None:
        """Nothing ever waits here."""

    def note_consumed(self, consumed: int) -> None:
        """Nothing ever waits here."""


class Producers:
    """The generators that run in this process."""

    def __init__(self, core: CoreWorker, outcomes: OutcomeWriter) -> None:
        self._core = core
        self.outcomes = outcomes
        self._running: dict[bytes, _Production | _Collection] = {}

    def run(
        self,
        peer: Peer,
        message: Any,
        value: Any,
        started_s: float,
        *,
        hold: Callable[[], None],
        allow: Callable[[], None],
    ) -> TaskReturned:
        """Run a generator on this thread; its outcome. Raises what user code raises.

        ``hold`` and ``allow`` keep interrupts away and let them come; ``allow`` raises the one that
        came meanwhile.
        """
        production = self._begin(peer, message, value)
        try:
            for item in value:
                hold()
                try:
                    goes_on = production.put(item)
                finally:
                    allow()
                if not goes_on:
                    break
                if production.is_full:
                    production.wait()
                    if production.is_stopped:
                        break
            return production.end(_run_us(started_s))
        except Exception as error:  # noqa: BLE001 - the boundary of user code: a generator raised
            hold()
            try:
                return production.fail(error, _run_us(started_s))
            finally:
                allow()
        finally:
            self._end(message.task_id)
            value.close()

    async def run_async(
        self, peer: Peer, message: Any, value: Any, started_s: float
    ) -> TaskReturned:
        """Run a generator, usually an asynchronous one, on this thread's event loop."""
        production = self._begin(peer, message, value)
        items = _as_async(value) if inspect.isgenerator(value) else value
        try:
            async for item in items:
                if not production.put(item):
                    break
                await asyncio.sleep(0)  # a generator that never waits leaves others their turn
            return production.end(_run_us(started_s))
        except Exception as error:  # noqa: BLE001 - the boundary of user code: a generator raised
            return production.fail(error, _run_us(started_s))
        finally:
            self._end(message.task_id)
            await items.aclose()

    # ---- on the loop's thread ----

    def on_taken(self, task_id: bytes, consumed: int) -> None:
        """The owner consumed items."""
        production = self._running.get(task_id)
        if production is not None:
            production.note_consumed(consumed)

    def stop(self, task_id: bytes) -> None:
        """The owner wants no more items."""
        production = self._running.get(task_id)
        if production is not None:
            production.is_stopped = True
            production.open()

    def cancel(self, task_id: bytes) -> None:
        """Cancel a generator that runs on a thread that can not be interrupted."""
        production = self._running.get(task_id)
        if production is not None:
            production.is_cancelled = True
            production.open()

    def owner_lost(self, worker_id: bytes) -> None:
        """An owner is gone: nobody reads its streams."""
        for task_id, production in list(self._running.items()):
            if production.peer.worker_id == worker_id:
                self.stop(task_id)

    # ---- for productions ----

    def new_gate(self) -> ReadyCount:
        """What a producer waits at; whoever calls it opens it."""
        return self._core.new_count()

    def block(self, gate: ReadyCount) -> None:
        """Wait at a gate; a worker that waits long lends its CPU."""
        self._core.wait_at(gate)

    def failure(
        self, message: Any, error: Exception, num_returns: int, run_us: int
    ) -> TaskReturned:
        """The outcome of an error of user code."""
        assert self._core.executor is not None
        return self.outcomes.failure(
            message.task_id,
            message.name,
            error,
            num_returns,
            run_us,
            actor_id=self._core.executor.actor_id,
            actor_repr=self._core.actor_repr(),
        )

    def _end(self, task_id: bytes) -> None:
        self._running.pop(task_id, None)
        if self.outcomes.kept_returns:
            self.outcomes.kept_returns.pop(task_id, None)

    def _begin(self, peer: Peer, message: Any, value: Any) -> _Production | _Collection:
        kind, count = decode_returns(message.num_returns)
        if not inspect.isgenerator(value) and not inspect.isasyncgen(value):
            raise TypeError(
                f"{message.name}() returns what a generator yields, so it has to yield or to return"
                f" a generator, but it returned {type(value).__name__}."
            )
        production: _Production | _Collection
        if kind == STATIC:
            production = _Collection(self, peer, message, count)
        else:
            # One that runs again for lost items has nobody who takes the others.
            production = _Production(self, peer, message, 0 if message.kept_returns else count)
        self._running[message.task_id] = production
        return production


async def _as_async(items: Generator[Any, Any, Any]) -> Any:
    try:
        for item in items:
            yield item
    finally:
        items.close()


def _run_us(started_s: float) -> int:
    return int((time.perf_counter() - started_s) * 1e6)
