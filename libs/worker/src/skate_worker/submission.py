"""One submitted task or call, from its arguments to its result.

Before it: the API's ``.remote()``. This module resolves the arguments that are references; after
it, ``task_submitter`` sends plain tasks to leased workers and ``actor_submitter`` sends calls to
actors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skate_object_store import StoreError
from skate_worker.machine.references import FAILED, INLINE, PENDING, Entry
from skate_worker.ownership import INLINE_TOTAL_MAX_BYTES, Ownership
from skate_worker.serialization import serialize
from skate_worker.specs import RetryRule
from skate_worker.task_protocol import PushCall, PushTask, Resolved, StoredAt


class Submission:
    """A task on its way. ``message`` is what will be sent; its ``resolved`` fills up first."""

    __slots__ = (
        "attempt",
        "attempts_left",
        "entries",
        "is_cancelled",
        "is_solo",
        "message",
        "parent",
        "pinned",
        "queue",
        "retry_exceptions",
        "span",
        "task_id",
        "top_level",
    )

    def __init__(
        self,
        task_id: bytes,
        message: PushTask | PushCall,
        entries: list[Entry],
        attempts_left: int,
        retry_exceptions: RetryRule,
    ) -> None:
        self.task_id: bytes = task_id
        self.message: Any = message
        self.entries: list[Entry] = entries  # the entries of its returns
        self.attempt: int = 0  # tries before this one: an outcome has to name it to be this one's
        self.attempts_left: int = attempts_left  # -1: without end
        self.retry_exceptions: RetryRule = retry_exceptions
        # Without retries left it must be certain which task a dying worker had started.
        self.is_solo: bool = attempts_left == 0
        self.is_cancelled: bool = False
        self.pinned: tuple[Entry, ...] = ()  # arguments, pinned until the task ends
        self.top_level: list[tuple[int | str, Entry]] | None = None
        self.queue: Any = None
        self.parent: bytes = b""  # the task that submitted it
        self.span: Any = None  # set while tracing is on

    def take_attempt(self, *, is_counted: bool = True) -> bool:
        """Use up one retry. False: none is left. Not counted: it may run again, and keeps them."""
        if self.attempts_left == 0:
            return False
        if self.attempts_left > 0 and is_counted:
            self.attempts_left -= 1
        self.attempt += 1
        self.message.attempt = self.attempt
        self.is_solo = True
        return True


class DependencyFailed:
    """An argument is an error: the task must not run. ``data`` is that serialised error."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data


def resolve(
    ownership: Ownership,
    submission: Submission,
    then: Callable[[Submission, DependencyFailed | None], None],
) -> None:
    """Fill in the values of the top-level references; ``then`` runs when all are there.

    At once on this thread when they are, else on the thread that settles the last one.
    """
    top_level = submission.top_level
    if not top_level:
        then(submission, None)
        return
    pending = [entry for _, entry in top_level if entry.state == PENDING]
    if pending:
        left = _Countdown(len(pending), lambda: _fill(ownership, submission, then))
        for entry in pending:
            if not ownership.watch(entry, left):
                left(entry)
        return
    _fill(ownership, submission, then)


class _Countdown:
    __slots__ = ("_left", "_then")

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        # A list's pop is atomic, and exactly one caller empties it.
        self._left = [None] * (count - 1)
        self._then = then

    def __call__(self, entry: Entry) -> None:
        try:
            self._left.pop()
        except IndexError:
            self._then()


def _fill(
    ownership: Ownership,
    submission: Submission,
    then: Callable[[Submission, DependencyFailed | None], None],
) -> None:
    # What runs again has its small arguments already.
    resolved: list[Resolved] = list(submission.message.resolved)
    inline_bytes = 0
    for position, entry in submission.top_level or ():
        if entry.state == FAILED:
            ownership.errors.seen.add(entry.object_id)  # the dependent task tells it
            then(submission, DependencyFailed(entry.data))
            return
        if entry.state == INLINE:
            data = entry.data
            inline_bytes += len(data)
            if inline_bytes <= INLINE_TOTAL_MAX_BYTES:
                resolved.append(Resolved(position, data))
                continue
            try:
                copy = ownership.promote(entry)
            except StoreError as error:
                then(submission, DependencyFailed(serialize(error, is_error=True).to_bytes()))
                return
            submission.pinned += (copy,)
            resolved.append(_stored(ownership, position, copy))
        elif entry.state == PENDING:
            # It was there when the others were waited for, and lost since: it is made again.
            resolve(ownership, submission, then)
            return
        else:
            resolved.append(_stored(ownership, position, entry))
    submission.message.resolved = resolved
    then(submission, None)


def _stored(ownership: Ownership, position: int | str, entry: Entry) -> Resolved:
    owner = entry.owner or ownership.as_owner
    at = StoredAt(entry.node_id, entry.size_bytes, owner.worker_id, owner.endpoint, owner.node_id)
    return Resolved(position, b"", entry.object_id, at)
