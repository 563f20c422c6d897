"""The one loop of a GCS: events in, machine, storage, effects out.

::

    servicers ──ask──►┐
    node calls ─tell─►├─ inbox ─► batch ─► machine ─► commit ─► replies, events, orders
    clock ──── Tick ─►┘                                 │
                                                        └─ failed: as if the batch never came

While a commit is under way the next batch gathers, so that its events share one commit. A batch
whose commit fails is undone by building the machine anew from what is stored, as a restart would:
its changes are refused (UNAVAILABLE, so that clients try again), its questions are answered from
the stored state. When the storage cannot be trusted any more the runner stops for good, and
acknowledges nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, assert_never, cast

from skate_gcs.errors import StorageError, StorageFullError
from skate_gcs.machine import GcsLimits, GcsMachine, Now
from skate_gcs.machine.answers import Answer, Refused
from skate_gcs.machine.commands import (
    Command,
    CommitBundlesOnNode,
    ForgetNode,
    KillActorOnNode,
    Persist,
    PrepareBundlesOnNode,
    ProbeNode,
    Publish,
    Reply,
    ReturnBundlesOnNode,
    StartActorOnNode,
)
from skate_gcs.machine.events import (
    Change,
    Event,
    Fact,
    Query,
    Question,
    Request,
    ResourcesReported,
    Tick,
)
from skate_gcs.machine.gcs_machine import MachineStatistics
from skate_gcs.service.hub import Hub
from skate_gcs.service.node_calls import NodeCalls
from skate_gcs.service.rows import encode_row, load_state
from skate_gcs.storage import Storage, Write

_log = logging.getLogger(__name__)

A = TypeVar("A")

BATCH_MAX: Final = 1_000
"""Events per commit; bounds how long the loop is busy without a pause for I/O."""
LAZY_ROWS_MAX: Final = 1_000
"""Lazy rows that may wait for a commit; more are committed for their own sake."""
FAILURE_PAUSE_S: Final = 0.2
"""After a failed commit, so that a full disk is not asked faster than it can be emptied."""


class RequestRefusedError(Exception):
    """The machine refused the request."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class RequestLostError(Exception):
    """The request was not carried out, through no fault of its own; it may be repeated."""


class RequestFailedError(Exception):
    """The request hit a bug of the GCS, and nothing of it happened."""


@dataclass(frozen=True, slots=True)
class _Item(Generic[A]):
    """One event of the inbox; facts have nobody who waits."""

    event: Event
    answer: asyncio.Future[A] | None = None
    on_answer: Callable[[], None] | None = None

    def succeed(self, answer: Answer) -> None:
        if self.on_answer is not None:
            self.on_answer()
        if self.answer is None or self.answer.done():
            return
        if isinstance(answer, Refused):
            self.answer.set_exception(RequestRefusedError(answer))
        else:
            self.answer.set_result(cast("A", answer))

    def fail(self, error: Exception) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class Runner:
    """Feeds one machine. Everything but the construction runs on one event loop."""

    def __init__(
        self,
        cluster_id: str,
        limits: GcsLimits,
        storage: Storage,
        hub: Hub,
        make_node_calls: Callable[[Callable[[Fact], None]], NodeCalls],
        *,
        requests_max: int,
    ) -> None:
        """Load the machine from ``storage``. Blocks.

        Raises:
            StorageError: it can not be read.
        """
        self._cluster_id = cluster_id
        self._limits = limits
        self._storage = storage
        self._hub = hub
        self._node_calls = make_node_calls(self.tell)
        self._requests_max = requests_max
        self._random = random.Random()
        self._inbox: deque[_Item[object]] = deque()
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._failure: str = ""
        self._pause_end_s = float("-inf")  # changes are refused until then
        self._pause_why = ""
        self._uncommitted: dict[tuple[str, bytes], bytes | None] = {}
        self._is_commit_due = False
        self._is_committing = False
        self._machine, self._carried = self._load()
        self.events_handled = 0
        """Since the start."""

    # ---- for servicers and node calls ----

    async def ask(self, request: Request[A], on_answer: Callable[[], None] | None = None) -> A:
        """Have a request handled; returns once its outcome is durable.

        ``on_answer`` is called in the loop, at the request's place among all changes.

        Raises:
            RequestRefusedError: it makes no sense; nothing changed.
            RequestLostError: it was not carried out and may be repeated.
            RequestFailedError: it hit a bug; nothing changed.
        """
        if self._failure or self._is_stopping:
            raise RequestLostError(self._failure or "The GCS stops.")
        problem = self._storage.problem()
        # A heartbeat is noted in any case: silence that only the storage causes is no death.
        if (
            problem
            and not isinstance(request, ResourcesReported)
            and (self._is_committing or not isinstance(request, Query))
        ):
            raise RequestLostError(problem)
        if len(self._inbox) >= self._requests_max:
            raise RequestLostError(f"{self._requests_max} requests wait for the GCS already.")
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        event = cast("Question | Change", request)
        self._push(cast("_Item[object]", _Item(event, answer, on_answer)))
        return await answer

    def tell(self, fact: Fact) -> None:
        """Have a fact handled. Orders and subscriptions, which they answer or end, bound them."""
        self._push(_Item(fact))

    def statistics(self) -> MachineStatistics:
        """The machine's counts."""
        return self._machine.statistics()

    @property
    def inbox_length(self) -> int:
        """Events that wait."""
        return len(self._inbox)

    # ---- the loop ----

    def stop(self) -> None:
        """End :meth:`run` after the events that wait have been handled."""
        self._is_stopping = True
        self._woken.set()

    async def run(self) -> str:
        """Handle events until :meth:`stop`, or until the storage fails.

        Returns the failure, or an empty string.
        """
        loop = asyncio.get_running_loop()
        failed = self._storage.failed
        failed.add_done_callback(lambda _: loop.call_soon_threadsafe(self._woken.set))
        try:
            while self._inbox or not self._is_stopping:
                if failed.done():
                    self._fail(failed.result())
                    break
                pause_s = self._pause_end_s - time.monotonic()
                if pause_s > 0.0:
                    self._handle_in_pause()
                    await self._sleep(pause_s)
                elif self._inbox or self._carried or self._until_tick_s() <= 0.0:
                    await self._handle_batch()
                else:
                    await self._sleep(self._until_tick_s())
            if not self._failure:
                self._is_commit_due = bool(self._uncommitted)
                await self._commit()
        except StorageError as error:
            self._fail(str(error))
        except asyncio.CancelledError:
            self._fail("The GCS was cancelled.")
            raise
        except Exception as error:  # noqa: BLE001  the service's boundary
            _log.critical("the GCS can not go on", exc_info=error)
            self._fail(f"The GCS can not go on: {error!r}")
        return self._failure

    def _until_tick_s(self) -> float:
        wakeup = self._machine.next_wakeup()
        return math.inf if wakeup is None else wakeup.at_s - time.monotonic()

    async def _sleep(self, seconds: float) -> None:
        """Sleep until something arrives, or until the time is up."""
        self._woken.clear()
        if math.isinf(seconds):
            await self._woken.wait()
            return
        timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    async def _handle_batch(self) -> None:
        batch: list[_Item[object]] = []
        while self._inbox and len(batch) < BATCH_MAX:
            batch.append(self._inbox.popleft())
        if self._until_tick_s() <= 0.0:
            batch.insert(0, _Item(Tick()))
        now = _read_clock()
        commands, self._carried = self._carried, []
        self._collect(commands)
        work: list[tuple[_Item[object] | None, list[Command]]] = [(None, commands)]
        for item in batch:
            try:
                commands = self._machine.handle(item.event, now)
                self._collect(commands)
            except Exception as error:  # noqa: BLE001  the boundary between events
                kind = type(item.event).__name__  # its contents belong to users
                _log.error("a bug in the GCS", extra={"event": kind}, exc_info=error)
                item.fail(RequestFailedError(f"A bug in the GCS: {error!r}"))
                await self._undo([other for other in batch if other is not item], "a bug")
                return
            work.append((item, commands))
        try:
            await self._commit()
        except StorageFullError as error:
            await self._undo(batch, str(error))
            return
        except StorageError as error:
            for item in batch:
                item.fail(RequestLostError(str(error)))
            raise
        self.events_handled += len(batch)
        for item_or_none, commands in work:
            for command in commands:
                self._perform(command, item_or_none)

    def _collect(self, commands: Sequence[Command]) -> None:
        """Gather what is to be stored; a later row of a key replaces an earlier one."""
        for command in commands:
            if isinstance(command, Persist):
                row = None if command.row is None else encode_row(command.row)
                self._uncommitted[command.table, command.key] = row
                self._is_commit_due = self._is_commit_due or not command.is_lazy

    async def _commit(self) -> None:
        if not self._is_commit_due and len(self._uncommitted) <= LAZY_ROWS_MAX:
            return
        writes = [Write(table, key, row) for (table, key), row in self._uncommitted.items()]
        self._uncommitted = {}
        self._is_commit_due = False
        done: Future[None] = self._storage.commit(writes)
        if done.done():
            done.result()
            return
        self._is_committing = True
        try:
            await asyncio.wrap_future(done)
        finally:
            self._is_committing = False

    async def _undo(self, batch: list[_Item[object]], why: str) -> None:
        """Go back to the stored state; answer the questions, lose the changes, and pause."""
        _log.error("a batch was undone", extra={"events": len(batch), "why": why})
        self._uncommitted = {}
        self._is_commit_due = False
        try:
            loaded = await asyncio.to_thread(self._load)
        except BaseException:
            for item in batch:
                item.fail(RequestLostError(why))
            raise
        self._machine, self._carried = loaded
        now = _read_clock()
        for item in batch:
            if isinstance(item.event, Query):
                for command in self._machine.handle(item.event, now):
                    self._perform(command, item)
            else:
                item.fail(RequestLostError(why))
        self._pause_end_s = now.now_s + FAILURE_PAUSE_S
        self._pause_why = why

    def _handle_in_pause(self) -> None:
        """Answer questions and heartbeats, refuse changes, and leave facts for later."""
        now = _read_clock()
        waiting, self._inbox = self._inbox, deque()
        for item in waiting:
            if item.answer is None:
                self._inbox.append(item)
            elif isinstance(item.event, Query | ResourcesReported):
                for command in self._machine.handle(item.event, now):
                    if isinstance(command, Reply):
                        self._perform(command, item)
                    else:
                        self._carried.append(command)  # what a heartbeat leads to needs a commit
            else:
                item.fail(RequestLostError(self._pause_why))

    def _perform(self, command: Command, item: _Item[object] | None) -> None:
        match command:
            case Persist():
                pass  # committed before
            case Reply(answer):
                assert item is not None
                item.succeed(answer)
            case Publish(record):
                self._hub.publish(record)
            case StartActorOnNode():
                self._node_calls.start_actor(command)
            case KillActorOnNode():
                self._node_calls.kill_actor(command)
            case PrepareBundlesOnNode() | CommitBundlesOnNode() | ReturnBundlesOnNode():
                self._node_calls.order_bundles(command)
            case ProbeNode():
                self._node_calls.probe(command)
            case ForgetNode(node_id):
                self._node_calls.forget(node_id)
            case _:
                assert_never(command)

    def _load(self) -> tuple[GcsMachine, list[Command]]:
        saved = load_state(self._storage)
        now = _read_clock()
        machine = GcsMachine(self._cluster_id, self._limits, self._random, saved, now)
        return machine, machine.resume(now)

    def _push(self, item: _Item[object]) -> None:
        self._inbox.append(item)
        self._woken.set()

    def _fail(self, why: str) -> None:
        self._failure = why
        while self._inbox:
            self._inbox.popleft().fail(RequestLostError(why))


def _read_clock() -> Now:
    return Now(time.monotonic(), time.time())
