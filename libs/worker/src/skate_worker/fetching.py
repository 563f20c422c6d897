"""Bringing objects of other nodes into this node's store: the shell around ``machine.fetches``.

Everything runs on the loop's thread but ``start`` and ``stop``, which hand over to it. Before it:
``object_access`` and ``execution``, which need values. After it: the owner, who says where copies
are, and the raylet, which moves the bytes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from skate_core_ids import SkateError
from skate_object_store.errors import full_error
from skate_object_store.protocol import unpack_fullness
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_worker.errors import (
    ObjectFetchTimedOutError,
    ObjectLostError,
    ReferenceCountingAssertionError,
)
from skate_worker.machine.fetches import (
    ENDED,
    FREED,
    FULL,
    TIMED_OUT,
    VALUE,
    AskOwner,
    Command,
    Fetches,
    Outcome,
    StartPull,
    StopPull,
    TellOwner,
    Waiter,
    WakeWaiters,
)
from skate_worker.machine.references import Owner
from skate_worker.task_protocol import AskCopy, CopyMade, CopySources, PullStopped

if TYPE_CHECKING:
    from skate_worker.deaths import Deaths
    from skate_worker.ownership import Ownership

Tell = Callable[[Owner, Any], bool]
"""Sends a message to an owner, this process included. False: it can not be reached."""


class Fetching:
    """All fetches of this process."""

    def __init__(
        self,
        ownership: Ownership,
        deaths: Deaths,
        loop: IoThread,
        tell: Tell,
        post_to_raylet: Callable[[Any], None],
    ) -> None:
        self._ownership = ownership
        self._deaths = deaths
        self._loop = loop
        self._tell = tell
        self._post_to_raylet = post_to_raylet
        self._fetches = Fetches()
        self._is_timer_set = False
        self._ended: SkateError | None = None  # why nothing can be fetched any more
        self._commands: deque[Command] = deque()
        self._is_performing = False

    # ---- on any thread ----

    def start(
        self,
        object_id: bytes,
        owner: Owner,
        size_bytes: int,
        waiter: Waiter,
        priority: int = node.PULL_FOR_GET,
        lost_at: Iterable[bytes] = (),
        why_lost: str = "",
    ) -> None:
        """Have ``waiter`` called with the outcome, on the loop's thread."""
        if self._ended is not None:
            waiter(Outcome(ENDED))
            return
        self._loop.call_soon_threadsafe(
            self._start, object_id, owner, size_bytes, waiter, priority, tuple(lost_at), why_lost
        )

    def stop(self, object_id: bytes, waiter: Waiter) -> None:
        """The waiter waits no more; it may still be called."""
        if self._ended is None:
            self._loop.call_soon_threadsafe(self._stop, object_id, waiter)

    def released(self, object_ids: list[bytes]) -> None:
        """Nobody in this process refers to these objects any more."""
        if len(self._fetches) and self._ended is None:
            self._loop.call_soon_threadsafe(self._released, object_ids)

    def error_of(self, object_id: bytes, outcome: Outcome, owner: Owner) -> BaseException:
        """What to raise for an outcome that brought nothing."""
        name, text = object_id.hex(), outcome.message
        of = {
            "owner_address": f"worker {owner.worker_id.hex()}",
            "call_site": self._ownership.sites.get(object_id, ""),
        }
        if outcome.kind == FREED:
            return ReferenceCountingAssertionError(name, **of)
        if outcome.kind == FULL:
            if outcome.data:
                return full_error(object_id, unpack_fullness(outcome.data))
            return ObjectLostError(name, detail=f"this node could not store it: {text}", **of)
        if outcome.kind == TIMED_OUT:
            return ObjectFetchTimedOutError(name, detail=f"no copy of it was found: {text}", **of)
        if outcome.kind == ENDED:
            assert self._ended is not None
            return self._ended
        return self._deaths.owner_died(object_id, owner, call_site=of["call_site"])

    # ---- on the loop's thread ----

    def _start(
        self,
        object_id: bytes,
        owner: Owner,
        size_bytes: int,
        waiter: Waiter,
        priority: int,
        lost_at: tuple[bytes, ...],
        why_lost: str,
    ) -> None:
        if self._ended is not None:
            waiter(Outcome(ENDED))
            return
        now_s = time.monotonic()
        self._perform(
            self._fetches.start(
                object_id, owner, size_bytes, priority, waiter, now_s, lost_at, why_lost
            )
        )

    def _stop(self, object_id: bytes, waiter: Waiter) -> None:
        self._fetches.stop(object_id, waiter, time.monotonic())
        self._set_timer()

    def _released(self, object_ids: list[bytes]) -> None:
        self._perform(self._fetches.released(object_ids))

    def on_sources(self, message: CopySources) -> bool:
        """The owner answered. False: nobody here waits for it, so it is to be told."""
        object_id = message.object_id
        if not self._fetches.is_wanted(object_id):
            return not message.node_ids
        if message.failure:
            self._perform(self._fetches.ended(object_id, Outcome(FREED)))
        elif message.data:
            outcome = Outcome(VALUE, message.data, message.is_error)
            self._perform(self._fetches.ended(object_id, outcome))
        else:
            self._perform(
                self._fetches.sources(
                    object_id, message.node_ids, message.size_bytes, message.arriving_at
                )
            )
        return True

    def on_pull_ended(self, message: node.PullEnded) -> None:
        """The raylet answered."""
        self._perform(
            self._fetches.pull_ended(
                message.pull_id,
                message.kind,
                message.message,
                message.lost_at,
                time.monotonic(),
                message.fullness,
            )
        )

    def owners_died(self) -> None:
        """Some process or node died: what is fetched from dead owners fails."""
        if len(self._fetches):
            self._perform(self._fetches.owner_died(self._deaths.is_dead))

    def owner_unreachable(self, worker_id: bytes) -> None:
        """The connection to an owner broke, and nobody told why."""
        self._perform(self._fetches.owner_died(lambda owner: owner.worker_id == worker_id))

    def end(self, error: SkateError) -> None:
        """Nothing comes any more: the raylet is gone, or this process leaves."""
        if self._ended is None:
            self._ended = error
        self._perform(self._fetches.close())

    def _perform(self, commands: list[Command]) -> None:
        # A waiter may start the next fetch, and this process may answer itself: one at a time.
        self._commands.extend(commands)
        if self._is_performing:
            return
        self._is_performing = True
        try:
            while self._commands:
                self._do(self._commands.popleft())
        finally:
            self._is_performing = False
        self._set_timer()

    def _do(self, command: Command) -> None:
        match command:
            case AskOwner(object_id, owner, lost_at, why_lost):
                question = AskCopy(object_id, self._ownership.node_id, list(lost_at), why_lost)
                if self._deaths.is_dead(owner) or not self._tell(owner, question):
                    self._commands.extend(
                        self._fetches.owner_died(lambda o: o.worker_id == owner.worker_id)
                    )
            case StartPull(pull_id, object_id, size_bytes, owner, node_ids, priority, arriving_at):
                self._post_to_raylet(
                    node.PullObject(
                        pull_id,
                        object_id,
                        size_bytes,
                        owner.worker_id,
                        list(node_ids),
                        priority,
                        list(arriving_at),
                    )
                )
            case StopPull(pull_id):
                self._post_to_raylet(node.CancelPull(pull_id))
            case TellOwner(object_id, owner, has_copy):
                news: Any = PullStopped(object_id)
                if has_copy:
                    news = CopyMade(object_id, self._ownership.node_id)
                self._tell(owner, news)  # an owner that is gone needs no news
            case WakeWaiters(waiters, outcome):
                for waiter in waiters:
                    waiter(outcome)

    def _set_timer(self) -> None:
        due_s = self._fetches.next_wakeup()
        if due_s is not None and not self._is_timer_set:
            self._is_timer_set = True
            self._loop.call_later(max(0.01, min(due_s - time.monotonic(), 1.0)), self._on_timer)

    def _on_timer(self) -> None:
        self._is_timer_set = False
        self._perform(self._fetches.time_passed(time.monotonic()))
