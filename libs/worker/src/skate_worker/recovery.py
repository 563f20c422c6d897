"""Making lost objects again: keeps the tasks that made them, and submits those a second time.

The decisions are in ``machine.lineage``. Here entries go back to pending, so that whoever asks
waits for the new value, and the arguments of a task that runs again are held as they were the first
time. A return of such a task that still has a copy stays as it is, and the executor leaves it
alone: all readers see one value.

Before it: ``results`` (what is kept) and ``owned_objects`` (what is lost). After it: submission.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from skate_worker.errors import ObjectReconstructionFailedError
from skate_worker.machine.lineage import LIMIT_BYTES, Lineage, Presence, Reason, Refusal
from skate_worker.machine.object_directory import ObjectDirectory
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry
from skate_worker.ownership import Ownership, Waiters, wake
from skate_worker.serialization import serialize
from skate_worker.submission import Submission

if TYPE_CHECKING:
    from skate_worker.deaths import Deaths

TASK_BYTES: Final = 1000  # a kept task beside its arguments, about
LOSSES_KEPT_MAX: Final = 1000

_TEXTS: Final[dict[Reason, str]] = {
    Reason.MAX_ATTEMPTS: "{what} is to be made again by a task that has used up its retries; raise"
    " max_retries (max_task_retries of an actor) for more",
    Reason.LINEAGE_EVICTED: "the task that made {what} is no longer known: lineage is bounded, and"
    " it was among the oldest",
    Reason.PUT: "{what} was put, so there is no task that could make it again",
    Reason.RETRIES_DISABLED: "the task that made {what} must not run twice: its max_retries is 0"
    " (max_task_retries of an actor, 0 by default)",
    Reason.BORROWED: "{what} belonged to another process, which may have freed it since",
    Reason.REF_NOT_FOUND: "no task is known that made {what}",
    Reason.TASK_CANCELLED: "the task that made {what} was cancelled, so it does not run again",
    Reason.LINEAGE_DISABLED: "lineage is disabled, so no task is known that made {what}",
}


def _add_contained(inside: list[Entry], at_top: set[Entry]) -> None:
    # The bytes of a small value outlive the value here, so what they refer to is needed as well.
    known = {*inside, *at_top}
    candidates = [*inside, *at_top]
    while candidates:
        for inner in candidates.pop().contained or ():
            if inner not in known:
                known.add(inner)
                inside.append(inner)
                candidates.append(inner)


class KeptTask:
    """A finished task that may run again."""

    __slots__ = ("arguments", "is_running", "nested", "small", "submission")

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.is_running = False
        in_store = {i.position: i.object_id for i in submission.message.resolved if i.object_id}
        top_level = submission.top_level or ()
        self.arguments = [(at, entry) for at, entry in top_level if at in in_store]
        at_top = {entry for _, entry in top_level}
        copies = set(in_store.values())  # of small arguments, put for this task alone
        inside = [e for e in submission.pinned if e not in at_top and e.object_id not in copies]
        _add_contained(inside, at_top)
        # Owned values in stores are deleted when nobody else needs them: they can be made again.
        self.nested = [e for e in inside if e.owner is None and e.state == STORED]
        # Small ones can not, so their bytes are kept; also those that the copies were made from.
        # (Empty is the mark of an actor's handles: lineage does not keep an actor alive.)
        small = [*inside, *(entry for _, entry in self.arguments)]
        self.small = {e: e.data for e in small if e.owner is None and e.state == INLINE and e.data}

    @property
    def attempts_left(self) -> int:
        """Retries that are left."""
        return self.submission.attempts_left

    @property
    def attempt(self) -> int:
        """How often it ran again."""
        attempt: int = self.submission.message.attempt
        return attempt

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody cancelled it."""
        return self.submission.is_cancelled

    @property
    def size_bytes(self) -> int:
        """What it holds in memory."""
        message = self.submission.message
        inline = sum(len(item.data) for item in message.resolved)
        inline += sum(map(len, self.small.values()))
        return len(message.args) + inline + TASK_BYTES


class Recovery:
    """Guarded by the runtime's lock where said."""

    def __init__(
        self,
        ownership: Ownership,
        directory: ObjectDirectory,
        deaths: Deaths,
        resubmit: Callable[[Submission], None],
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._ownership = ownership
        self._directory = directory
        self._deaths = deaths
        self._resubmit = resubmit
        self._losses: OrderedDict[bytes, str] = OrderedDict()  # why a copy could not be had
        self.lineage: Lineage[KeptTask] = Lineage(limit_bytes)
        self._pullers: list[tuple[Entry, bytes, bytes]] = []
        self.answer: Callable[[Entry, bytes, bytes], None] = _answer_nobody
        # Whether a task that still runs will make an item of a stream again.
        self.is_made_anyway: Callable[[Entry], bool] = _never

    # ---- keeping ----

    def keep(self, submission: Submission) -> None:
        """A task ended whose returns lie in a store; before its arguments are unpinned. With the
        lock.
        """
        kept = KeptTask(submission)
        live = [e.object_id for e in submission.entries if e.state == STORED and not e.is_released]
        self.lineage.keep(
            submission.task_id,
            kept,
            kept.size_bytes,
            live,
            [entry.object_id for _, entry in kept.arguments if entry not in kept.small],
            [entry.object_id for entry in kept.nested],
        )

    def released(self, entries: list[Entry]) -> None:
        """Nobody refers to these any more. Without the lock."""
        with self._ownership.lock:
            for entry in entries:
                self.lineage.released(entry.object_id)

    # ---- recovering ----

    def note_loss(self, object_id: bytes, why: str) -> None:
        """A puller said why it could not get a copy; told if the object can not be made again."""
        self._losses[object_id] = why
        while len(self._losses) > LOSSES_KEPT_MAX:
            self._losses.popitem(last=False)

    def recover(self, entry: Entry) -> None:
        """No copy is left: the entry becomes pending, and is made again, or fails. Without the
        lock.

        Nothing happens if it is not so, or another thread has seen to it.
        """
        runs: list[Submission] = []
        waiters: Waiters = []
        released: list[Entry] = []
        with self._ownership.lock:
            if entry.state != STORED:
                return
            if self._directory.copies(entry.object_id, entry.node_id):
                return
            plan: list[KeptTask] | Refusal = []
            if self.is_made_anyway(entry):
                self._forget_copies(entry)
            else:
                plan = self.lineage.plan(entry.object_id, self._presence)
            if isinstance(plan, Refusal):
                error = self._error(entry, plan)
                data = serialize(error, is_error=True).to_bytes()
                callbacks = entry.settle(FAILED, data)
                inner, entry.contained = entry.contained, None
                self._ownership.table.unpin_all(inner or (), released)
                self._forget_copies(entry)
                if callbacks:
                    waiters.append((entry, callbacks))
            else:
                for kept in plan:
                    if kept.is_running:
                        # It was told to leave this return alone; once it has ended it runs again.
                        self._reopen(kept.submission, released)
                runs = self._prepare([kept for kept in plan if not kept.is_running], released)
            pullers, self._pullers = self._pullers, []
        self._losses.pop(entry.object_id, None)
        wake(waiters)
        for wanted, worker_id, node_id in pullers:
            self.answer(wanted, worker_id, node_id)
        if released:
            self._ownership.finish_released(released)
        for submission in runs:
            self._resubmit(submission)

    def _presence(self, kept: KeptTask, object_id: bytes) -> Presence:
        entry = self._ownership.table.entries.get(object_id)
        if entry is None:
            held = next(e for _, e in kept.arguments if e.object_id == object_id)
            return Presence.LOST if held.owner is None else Presence.ELSEWHERE
        if entry.owner is not None or entry.state != STORED:
            return Presence.THERE
        is_lost = not self._directory.copies(object_id, entry.node_id)
        return Presence.LOST if is_lost else Presence.THERE

    def _prepare(self, plan: list[KeptTask], released: list[Entry]) -> list[Submission]:
        # First hold all arguments, then look what is missing: an argument may be another's return.
        table = self._ownership.table
        for kept in plan:
            submission = kept.submission
            for entry, data in kept.small.items():
                if entry.is_released and table.revive(entry) is entry:
                    entry.state, entry.data = INLINE, data
            submission.top_level = [(at, table.revive(e)) for at, e in kept.arguments]
            held = [e for _, e in submission.top_level]
            held += [table.revive(e) for e in (*kept.nested, *kept.small)]
            keeper = self._keeper(submission)
            if keeper is not None:
                held.append(keeper)
            for entry in held:
                entry.pins += 1
            submission.pinned = tuple(held)
        for kept in plan:
            submission, message = kept.submission, kept.submission.message
            kept.is_running = True
            submission.take_attempt()
            message.resolved = [item for item in message.resolved if not item.object_id]
            message.kept_returns = self._reopen(submission, released)
        return [kept.submission for kept in plan]

    def _reopen(self, submission: Submission, released: list[Entry]) -> list[int]:
        """The lost returns of a task become pending; returns the numbers of the others."""
        kept: list[int] = []
        for index, entry in enumerate(submission.entries, start=1):
            is_lost = (
                not entry.is_released
                and entry.state == STORED
                and not self._directory.copies(entry.object_id, entry.node_id)
            )
            if not is_lost:
                kept.append(index)
                continue
            entry.state = PENDING
            entry.node_id = b""
            inner, entry.contained = entry.contained, None
            self._ownership.table.unpin_all(inner or (), released)
            self._forget_copies(entry)
            entry.waiters = [*(entry.waiters or ()), self._made_again]
        return kept

    def _forget_copies(self, entry: Entry) -> None:
        # Who waits for a copy is answered when the entry says something new.
        for worker_id, node_id in self._directory.waiting(entry.object_id).items():
            self._pullers.append((entry, worker_id, node_id))
        self._directory.forget(entry.object_id, b"")

    def _made_again(self, entry: Entry) -> None:
        # A value that lies in a store is kept track of as its task ends; another one needs no more.
        with self._ownership.lock:
            kept = self.lineage.task_of(entry.object_id)
            if kept is not None:
                kept.is_running = False
        if entry.state != STORED:
            self.released([entry])

    def _keeper(self, submission: Submission) -> Entry | None:
        # A call keeps its actor alive while it runs.
        actor_id = submission.task_id[8:24]
        return self._ownership.table.entries.get(actor_id[:8] + actor_id + b"\0\0\0\1")

    # ---- failing ----

    def _error(self, entry: Entry, refusal: Refusal) -> ObjectReconstructionFailedError:
        is_argument = refusal.object_id != entry.object_id
        what = f"the argument {refusal.object_id.hex()} of its task" if is_argument else "it"
        where = f"node {entry.node_id.hex()}" if entry.node_id else "a node that is gone"
        why = self._deaths.of_node(entry.node_id)
        loss = f"its last copy was on {where}"
        if why:
            loss += f", which died ({why})"
        elif told := self._losses.get(entry.object_id):
            loss += f" ({told.rstrip('.')})"
        detail = f"{loss}, and {_TEXTS[refusal.reason].format(what=what)}"
        return ObjectReconstructionFailedError(
            entry.object_id.hex(),
            call_site=self._ownership.sites.get(entry.object_id, ""),
            detail=detail,
            reason=refusal.reason.value,
        )


def _answer_nobody(entry: Entry, worker_id: bytes, node_id: bytes) -> None:
    return None


def _never(entry: Entry) -> bool:
    return False
