"""What becomes of a task's outcome: values for its returns, a retry, or an error.

Shared by plain tasks and actor calls. ``settle`` runs with the runtime's lock held and only writes
values; ``finish`` runs after it without the lock, wakes who waits and sends what is owed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from skate_rpc.stream import StreamClosedError
from skate_worker.errors import make_dependency_error
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry
from skate_worker.ownership import Ownership, Waiters, wake
from skate_worker.peers import Peer
from skate_worker.serialization import ErrorValue, deserialize, serialize
from skate_worker.submission import Submission
from skate_worker.task_protocol import FreeReturns, TaskDone, TaskReturned

if TYPE_CHECKING:
    from skate_worker.recovery import Recovery
    from skate_worker.streams import Streams


class Completion:
    """Ends submissions. ``on_end`` (when set) hears of each, for tracing."""

    def __init__(self, ownership: Ownership, pid: int, ip: str) -> None:
        self._ownership = ownership
        self._pid = pid
        self._ip = ip
        self._waiters: Waiters = []
        self._released: list[Entry] = []
        self.on_end: Callable[[Submission, str], None] | None = None
        self.streams: Streams | None = None
        self.recovery: Recovery | None = None
        self.delete_stray: Callable[[bytes, list[bytes]], None] = _delete_nowhere
        # Where attempts of unsettled tasks died, by task: they may have written returns there.
        self._lost_at: dict[bytes, list[bytes]] = {}

    def settle(self, finished: Sequence[tuple[Submission, Any]]) -> None:
        """Write the values of the common outcomes. With the lock."""
        waiters = self._waiters
        table = self._ownership.table
        for submission, result in finished:
            if type(result) is TaskDone:
                entry = submission.entries[0]
                # Entry.settle, written out: this line is paid by every task.
                entry.state = INLINE
                entry.data = result.data
                if entry.waiters is not None:
                    waiters.append((entry, entry.waiters))
                    entry.waiters = None
                if submission.pinned:
                    table.unpin_all(submission.pinned, self._released)
                    submission.pinned = ()

    def finish(self, peer: Peer, finished: Sequence[tuple[Submission, Any]]) -> list[Submission]:
        """Release, and handle the less common outcomes. Returns what is to be retried.

        :meth:`wake` is to be called last of all: whoever wakes needs the interpreter lock, which
        this thread has until it is done.
        """
        retries: list[Submission] = []
        for submission, result in finished:
            if type(result) is TaskReturned:
                if result.is_error and self._retries(submission, result):
                    retries.append(submission)
                else:
                    self._take_returns(peer, submission, result)
            else:
                if self._lost_at:
                    self._delete_unreported(submission)
                if self.on_end is not None:
                    self.on_end(submission, "")
        if self._released:
            released, self._released = self._released, []
            self._ownership.finish_released(released)
        return retries

    def wake(self) -> None:
        """Wake who waits for what was settled."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            wake(waiters)

    def fail(self, submission: Submission, error: BaseException) -> None:
        """End a task with an error of the runtime."""
        self._end(submission, serialize(error, is_error=True).to_bytes())

    def attempt_lost(self, submission: Submission, node_id: bytes) -> None:
        """Its worker is gone, and may have written returns there that it did not live to report.

        They are deleted once it is certain where the task's returns are: until then another attempt
        may write the same objects on the same node. On the loop's thread, before the attempt is
        counted.
        """
        if node_id:
            nodes = self._lost_at.setdefault(submission.task_id, [])
            if node_id not in nodes:
                nodes.append(node_id)
        if submission.message.num_returns < 0 and self.streams is not None:
            self.streams.attempt_lost(submission, node_id)

    def refuse(self, peer: Peer, outcomes: list[Any]) -> None:
        """Outcomes of attempts that were given up before: nobody needs what they made."""
        for outcome in outcomes:
            if type(outcome) is TaskReturned:
                self._refuse(peer, outcome)

    def _refuse(self, peer: Peer, outcome: TaskReturned) -> None:
        task_id = outcome.task_id
        held = [reference for returned in outcome.returns for reference in returned.contained]
        nobody = Entry(task_id, None)
        nobody.is_released = True

        def let_go() -> None:
            if outcome.holds_pins:
                self._ownership.send(peer, FreeReturns(task_id, outcome.attempt))

        self._ownership.take_contained(nobody, held, peer, let_go)
        if task_id in self._lost_at:
            return  # another attempt may be writing there: deleted when the task is settled
        stray: dict[bytes, list[bytes]] = {}
        with self._ownership.lock:
            for index, returned in enumerate(outcome.returns, start=1):
                object_id = task_id + index.to_bytes(4, "big")
                entry = self._ownership.table.entries.get(object_id)
                is_there = (
                    entry is not None
                    and entry.state == STORED
                    and entry.node_id == returned.node_id
                )
                if returned.node_id and not is_there:
                    stray.setdefault(returned.node_id, []).append(object_id)
        for node_id, object_ids in stray.items():
            self.delete_stray(node_id, object_ids)

    def _delete_unreported(self, submission: Submission) -> None:
        """The task is settled: what earlier attempts left on other nodes is nobody's."""
        untouched = submission.message.kept_returns
        known = self._ownership.table.entries
        written = [
            submission.task_id + number.to_bytes(4, "big")
            for number in range(1, len(submission.entries) + 1)
            if number not in untouched
        ]
        for node_id in self._lost_at.pop(submission.task_id, ()):
            stray: list[bytes] = []
            with self._ownership.lock:
                for object_id in written:
                    entry = known.get(object_id)
                    if entry is None or entry.state != STORED or entry.node_id != node_id:
                        stray.append(object_id)
            if stray:
                self.delete_stray(node_id, stray)

    def fail_dependency(self, submission: Submission, data: bytes) -> None:
        """End a task that did not run because an argument is an error."""
        cause = deserialize(data)
        assert isinstance(cause, ErrorValue)
        error = make_dependency_error(
            cause.error, function_name=submission.message.name, pid=self._pid, ip=self._ip
        )
        self._end(submission, serialize(error, is_error=True).to_bytes())

    def _end(self, submission: Submission, data: bytes) -> None:
        waiters: Waiters = []
        released: list[Entry] = []
        with self._ownership.lock:
            for entry in submission.entries:
                if entry.state != PENDING:
                    continue  # it has its value from an earlier attempt
                callbacks = entry.settle(FAILED, data)
                if callbacks:
                    waiters.append((entry, callbacks))
            if submission.message.attempt and self.recovery is not None:
                self.recovery.failed(submission)
            self._ownership.table.unpin_all(submission.pinned, released)
            submission.pinned = ()
        if self._lost_at:
            self._delete_unreported(submission)
        wake(waiters)
        if released:
            self._ownership.finish_released(released)
        if self.on_end is not None:
            self.on_end(submission, "failed")

    def _retries(self, submission: Submission, result: TaskReturned) -> bool:
        rule = submission.retry_exceptions
        if not rule or result.is_cancelled or submission.is_cancelled:
            return False
        if not isinstance(rule, bool):
            if not result.returns:
                return False  # a task without returns does not say what it raised
            stored = deserialize(result.returns[-1].data)  # earlier ones may have succeeded
            if not isinstance(stored, ErrorValue) or not isinstance(stored.to_raise(), rule):
                return False
        return submission.take_attempt()

    def _take_returns(self, peer: Peer, submission: Submission, result: TaskReturned) -> None:
        is_stored = False
        is_generator = submission.message.num_returns < 0
        if is_generator and self.streams is not None:
            is_stored = self.streams.on_outcome(submission, result)
        ownership = self._ownership
        waiters: Waiters = []
        released: list[Entry] = []
        owed = 1

        def one_held() -> None:
            nonlocal owed
            owed -= 1
            if owed == 0 and result.holds_pins:
                try:
                    peer.connection.post(FreeReturns(submission.task_id, result.attempt))
                except StreamClosedError:
                    return  # the pins went with the worker

        stray: dict[bytes, list[bytes]] = {}  # stored where nobody needs it, by node
        again: list[Entry] = []
        for entry, returned in zip(submission.entries, result.returns, strict=True):
            if entry.state != PENDING:
                # It has its value from another attempt, which all readers see for ever.
                if returned.node_id and returned.node_id != entry.node_id:
                    stray.setdefault(returned.node_id, []).append(entry.object_id)
                continue
            if not returned.data and not returned.node_id:
                # Left alone because it had its value, and that was lost since: run once more.
                with ownership.lock:
                    entry.state = STORED
                    entry.node_id = b""
                again.append(entry)
                continue
            if returned.contained:
                owed += 1
                ownership.take_contained(entry, returned.contained, peer, one_held)
            elif entry.contained and not returned.is_error and not is_generator:
                ownership.let_go_of_contained(entry)
            with ownership.lock:
                if returned.data:
                    state = FAILED if returned.is_error else INLINE
                    callbacks = entry.settle(state, returned.data)
                else:
                    entry.node_id = returned.node_id
                    entry.size_bytes = returned.size_bytes
                    ownership.sites.setdefault(entry.object_id, f"{submission.message.name}()")
                    callbacks = entry.settle(STORED, None)
                    is_stored = True
                    if entry.is_released:
                        ownership.sites.pop(entry.object_id, None)
                        stray.setdefault(returned.node_id, []).append(entry.object_id)
                    elif returned.node_id != ownership.node_id:
                        ownership.has_remote = True
            if callbacks:
                waiters.append((entry, callbacks))
        one_held()
        with ownership.lock:
            if (is_stored or submission.message.attempt) and self.recovery is not None:
                self.recovery.keep(submission)
            ownership.table.unpin_all(submission.pinned, released)
            submission.pinned = ()
        for node_id, object_ids in stray.items():
            self.delete_stray(node_id, object_ids)
        if self._lost_at:
            self._delete_unreported(submission)
        wake(waiters)
        if again and self.recovery is not None:
            for entry in again:
                self.recovery.recover(entry)
        if released:
            ownership.finish_released(released)
        if self.on_end is not None:
            self.on_end(submission, "failed" if result.is_error else "")


def _delete_nowhere(node_id: bytes, object_ids: list[bytes]) -> None:
    return None
