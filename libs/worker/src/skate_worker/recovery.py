"""Making lost objects again: keeps the tasks that made them, and submits those a second time.

The decisions are in ``machine.lineage``. Here entries go back to pending, so that whoever asks
waits for the new value, and the arguments of a task that runs again are held as they were the first
time. A return of such a task that still has a copy stays as it is, and the executor leaves it
alone: all readers see one value.

Before it: ``results`` (what is kept) and ``owned_objects`` (what is lost). After it: submission.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

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


class _Small(NamedTuple):
    """What an entry said whose value does not lie in a store."""

    state: int
    data: bytes
    contained: tuple[Entry, ...]


class KeptTask:
    """A finished task that may run again, and what it needs for that.

    A running task reaches every reference inside its arguments, and those inside the values that
    these stand for, however deep. All of them are held again while it runs again.
    """

    __slots__ = ("arguments", "is_running", "nested", "small", "submission")

    def __init__(self, submission: Submission, is_made_again: Callable[[Entry], bool]) -> None:
        self.submission = submission
        self.is_running = False
        in_store = {i.position: i.object_id for i in submission.message.resolved if i.object_id}
        top_level = submission.top_level or ()
        # Those that lie in a store, under ids of their own or as copies put for this task alone.
        self.arguments = [(at, entry) for at, entry in top_level if at in in_store]
        # Their values can be made again; owned ones are deleted when nobody else needs them.
        self.nested: list[Entry] = []
        # Small ones and errors can not: their bytes are kept, and what these refer to. (Empty is
        # the mark of an actor's handles: lineage does not keep an actor alive.)
        self.small: dict[Entry, _Small] = {}
        for entry in _reached(submission):
            if entry.owner is not None:
                continue
            if entry.state in (INLINE, FAILED) and entry.data:
                self.small[entry] = _Small(entry.state, entry.data, tuple(entry.contained or ()))
            elif entry.state == STORED or (entry.state == PENDING and is_made_again(entry)):
                self.nested.append(entry)

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
        inline += sum(len(known.data) for known in self.small.values())
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
        self.delete: Callable[[dict[bytes, list[bytes]]], None] = _delete_nowhere
        # Whether a task that still runs will make an item of a stream again.
        self.is_made_anyway: Callable[[Entry], bool] = _never

    # ---- keeping ----

    def keep(self, submission: Submission) -> None:
        """A task ended whose returns lie in a store; before its arguments are unpinned. With the
        lock.
        """
        kept = KeptTask(submission, self._is_made_again)
        live = [e.object_id for e in submission.entries if e.state == STORED and not e.is_released]
        self.lineage.keep(
            submission.task_id,
            kept,
            kept.size_bytes,
            live,
            [entry.object_id for _, entry in kept.arguments if entry not in kept.small],
            [entry.object_id for entry in kept.nested],
        )

    def failed(self, submission: Submission) -> None:
        """A task ended without an outcome of its own; it may have been one that ran again. With the
        lock.
        """
        kept = self.lineage.task_of(submission.task_id)
        if kept is not None:
            kept.is_running = False

    def _is_made_again(self, entry: Entry) -> bool:
        if self.lineage.is_streaming(entry.object_id):
            return True
        return self.lineage.task_of(entry.object_id) is not None

    def released(self, entries: list[Entry]) -> None:
        """Nobody refers to these any more, unless they were revived since. Without the lock."""
        with self._ownership.lock:
            for entry in entries:
                if entry.is_released:
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
        strays: list[bytes] = []
        with self._ownership.lock:
            if entry.state != STORED:
                return
            if self._directory.copies(entry.object_id, entry.node_id):
                return
            plan: list[KeptTask] | Refusal = []
            if entry.is_released:
                # It was waited for, and its last reader went before the task came to make it.
                strays = self._directory.forget(entry.object_id, b"")
            elif self.is_made_anyway(entry):
                self._forget_copies(entry)
                entry.waiters = [*(entry.waiters or ()), self._made_again]
            else:
                plan = self.lineage.plan(entry.object_id, self._presence)
            if isinstance(plan, Refusal):
                error = self._error(entry, plan)
                data = serialize(error, is_error=True).to_bytes()
                # What the value referred to stays: a task that has read it may still run.
                callbacks = entry.settle(FAILED, data)
                self._forget_copies(entry)
                strays = self._directory.forget(entry.object_id, b"")
                if callbacks:
                    waiters.append((entry, callbacks))
            else:
                for kept in plan:
                    if kept.is_running:
                        # It was told to leave this return alone; once it has ended it runs again.
                        self._reopen(kept.submission)
                runs = self._prepare([kept for kept in plan if not kept.is_running])
            pullers, self._pullers = self._pullers, []
        self._losses.pop(entry.object_id, None)
        wake(waiters)
        for wanted, worker_id, node_id in pullers:
            self.answer(wanted, worker_id, node_id)
        self._delete_at(strays, entry)
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

    def _prepare(self, plan: list[KeptTask]) -> list[Submission]:
        # First hold all arguments, then look what is missing: an argument may be another's return.
        for kept in plan:
            held = self._hold_again(kept)
            keeper = self._keeper(kept.submission)
            if keeper is not None:
                keeper.pins += 1
                held.append(keeper)
            kept.submission.pinned = tuple(held)
        for kept in plan:
            submission, message = kept.submission, kept.submission.message
            kept.is_running = True
            submission.take_attempt()
            message.resolved = [item for item in message.resolved if not item.object_id]
            message.kept_returns = self._reopen(submission)
        return [kept.submission for kept in plan]

    def _hold_again(self, kept: KeptTask) -> list[Entry]:
        """What a task needs is there again, as far as this process is concerned, and pinned."""
        revived: list[Entry] = []
        for entry, known in kept.small.items():
            if entry.is_released and self._revive(entry) is entry:
                entry.state, entry.data = known.state, known.data
                revived.append(entry)
        kept.submission.top_level = [(at, self._revive(e)) for at, e in kept.arguments]
        held = [entry for _, entry in kept.submission.top_level]
        held += [self._revive(entry) for entry in (*kept.nested, *kept.small)]
        for entry in held:
            entry.pins += 1
        for entry in revived:
            # Its bytes may be passed on: what they refer to lives as long as they do.
            inside = [
                e for e in kept.small[entry].contained if e.owner is None or not e.is_released
            ]
            entry.contained = [self._revive(inner) for inner in inside]
            for inner in entry.contained:
                inner.pins += 1
        return held

    def _revive(self, entry: Entry) -> Entry:
        if entry.is_released and entry.owner is None:
            self.lineage.revived(entry.object_id)
        return self._ownership.table.revive(entry)

    def _reopen(self, submission: Submission) -> list[int]:
        """The lost returns of a task become pending; returns the numbers of the others."""
        kept: list[int] = []
        self._find_revived(submission)
        for index, entry in enumerate(submission.entries, start=1):
            is_lost = (
                not entry.is_released
                and entry.state == STORED
                and not self._directory.copies(entry.object_id, entry.node_id)
            )
            if not is_lost:
                kept.append(index)
                continue
            # What the lost value referred to stays until the new one is here: see `recover`.
            entry.state = PENDING
            entry.node_id = b""
            self._forget_copies(entry)
            entry.waiters = [*(entry.waiters or ()), self._made_again]
        return kept

    def _find_revived(self, submission: Submission) -> None:
        # Of an item that went before its stream had ended, only who depends on it has the entry.
        known = self._ownership.table.entries
        for at, entry in enumerate(submission.entries):
            if entry.is_released:
                object_id = submission.task_id + (at + 1).to_bytes(4, "big")
                submission.entries[at] = known.get(object_id, entry)

    def _forget_copies(self, entry: Entry) -> None:
        # Who waits for a copy is answered when the entry says something new.
        for worker_id, node_id in self._directory.waiting(entry.object_id).items():
            self._pullers.append((entry, worker_id, node_id))
        self._directory.reopened(entry.object_id)

    def _made_again(self, entry: Entry) -> None:
        # A value that lies in a store is kept track of as its task ends; another one needs no more.
        strays: list[bytes] = []
        with self._ownership.lock:
            kept = self.lineage.task_of(entry.object_id)
            if kept is not None and kept.submission.message.num_returns >= 0:
                kept.is_running = False  # returns come with the task's end, items before it
            if entry.state != STORED:
                self.lineage.released(entry.object_id)
            if entry.state != STORED or entry.is_released:
                strays = self._directory.forget(entry.object_id, b"")
        self._delete_at(strays, entry)

    def _delete_at(self, node_ids: list[bytes], entry: Entry) -> None:
        if node_ids:
            self.delete({node_id: [entry.object_id] for node_id in node_ids})

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


def _reached(submission: Submission) -> list[Entry]:
    """What a task can get by a reference; not what is only an argument: it gets that as a value."""
    only_values = Counter(entry for _, entry in submission.top_level or ())
    # Copies of small arguments, put for this task alone: there are no references to them.
    copies = {item.object_id for item in submission.message.resolved}
    copies -= {entry.object_id for entry in only_values}
    inside: dict[Entry, None] = {}
    values: list[Entry] = []
    for entry in submission.pinned:
        if only_values[entry]:
            only_values[entry] -= 1
        elif entry.object_id not in copies:
            inside[entry] = None
        values.append(entry)
    while values:
        for inner in values.pop().contained or ():
            if inner not in inside:
                inside[inner] = None
                values.append(inner)
    return list(inside)


def _answer_nobody(entry: Entry, worker_id: bytes, node_id: bytes) -> None:
    return None


def _delete_nowhere(copies: dict[bytes, list[bytes]]) -> None:
    return None


def _never(entry: Entry) -> bool:
    return False
