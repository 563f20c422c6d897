"""Bugs to plant one at a time, to see whether the simulation notices: each a plausible slip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from skate_rpc.serials import Received, Serials
from skate_worker.machine.references import Entry, ReferenceTable
from skate_worker.membership import Membership
from skate_worker.object_access import ObjectAccess
from skate_worker.outcome import OutcomeWriter
from skate_worker.ownership import Ownership
from skate_worker.peers import Peers
from skate_worker.results import Completion
from skate_worker.task_messages import WITH_SERIAL
from skate_worker.task_protocol import AskObject, Borrow, BorrowKnown, EndBorrow
from skate_worker.task_submission import TaskSubmission

MUTATIONS: dict[str, Callable[[], Any]] = {}


def mutation(change: Callable[[], Iterator[None]]) -> Callable[[], Any]:
    """Make a generator a planted bug; its docstring says what is wrong."""
    planted = contextmanager(change)
    MUTATIONS[change.__name__] = planted
    return planted


def replaced(owner: type, name: str, replacement: Callable[..., Any]) -> Any:
    """Put ``replacement(original, self, *args)`` in the place of a method."""
    original = getattr(owner, name)

    def call(self: Any, *args: Any, **named: Any) -> Any:
        return replacement(original, self, *args, **named)

    return mock.patch.object(owner, name, call)


def without_serial(kind: type) -> Any:
    """Repetitions of this kind of message are handled like the first."""
    return mock.patch("skate_worker.membership.WITH_SERIAL", WITH_SERIAL - {kind})


def without_messages(kind: type) -> Any:
    """The protocol never sends this kind of message."""

    def tell(original: Any, self: Any, to: Any, message: Any) -> bool:
        return True if type(message) is kind else original(self, to, message)

    return replaced(Ownership, "send", tell)


@mutation
def registration_is_skipped() -> Iterator[None]:
    """A task's end does not register what the task kept."""
    with replaced(Ownership, "tell_untold", lambda _, self, caller, then: then()):
        yield


@mutation
def owner_confirms_without_registering() -> Iterator[None]:
    """The owner answers a Borrow and notes nothing."""

    def on_message(original: Any, self: Any, peer: Any, message: Any) -> None:
        if type(message) is Borrow:
            self.send(peer, BorrowKnown(message.number))
        else:
            original(self, peer, message)

    with replaced(Ownership, "on_message", on_message):
        yield


@mutation
def outcome_does_not_wait_for_confirmation() -> Iterator[None]:
    """The registration is sent, and the outcome at once behind it."""

    def tell(original: Any, self: Any, caller: Any, then: Any) -> None:
        original(self, caller, lambda: None)
        then()

    with replaced(Ownership, "tell_untold", tell):
        yield


@mutation
def get_forgets_that_it_has_not_been_confirmed() -> Iterator[None]:
    """A reference that `get` registered in a task counts as known before the owner says so."""

    def get(original: Any, self: Any, *args: Any) -> Any:
        values = original(self, *args)
        self.ownership.untold.clear()
        return values

    with replaced(ObjectAccess, "get", get):
        yield


@mutation
def pins_are_freed_before_owners_confirmed() -> Iterator[None]:
    """A received value lets its sender's pins go before third parties know."""

    def take(
        original: Any, self: Any, holder: Any, references: Any, sender: Any, then: Any
    ) -> None:
        original(self, holder, references, sender, None)
        if then is not None:
            then()

    with replaced(Ownership, "take_contained", take):
        yield


@mutation
def outcome_pins_nothing() -> Iterator[None]:
    """What a return contains is not pinned until the owner has it."""

    def hold(original: Any, self: Any, peer: Any, value: Any, pinned: Any) -> Any:
        mine: list[Entry] = []
        contained = original(self, peer, value, mine)
        self._ownership.release_later(mine)
        return contained

    with replaced(OutcomeWriter, "_hold", hold):
        yield


@mutation
def arguments_are_not_pinned() -> Iterator[None]:
    """A submitted task does not hold its arguments."""

    def prepare(original: Any, self: Any, submission: Any, *args: Any) -> Any:
        refs = original(self, submission, *args)
        for entry in submission.pinned:
            entry.pins -= 1
        submission.pinned = ()
        return refs

    with replaced(TaskSubmission, "_prepare", prepare):
        yield


@mutation
def arguments_are_never_unpinned() -> Iterator[None]:
    """A finished task keeps its arguments."""
    with replaced(ReferenceTable, "unpin_all", lambda *_: None):
        yield


@mutation
def failed_task_keeps_its_arguments() -> Iterator[None]:
    """Only a task that ends well lets its arguments go."""

    def end(original: Any, self: Any, submission: Any, data: bytes) -> None:
        submission.pinned = ()
        original(self, submission, data)

    with replaced(Completion, "_end", end):
        yield


@mutation
def contents_are_not_pinned() -> Iterator[None]:
    """A value that was put does not hold what is inside it."""

    def own(original: Any, self: Any, *args: Any) -> Any:
        ref = original(self, *args)
        for inner in ref._entry.contained or ():
            inner.pins -= 1
        ref._entry.contained = None
        return ref

    with replaced(ObjectAccess, "_own_value", own):
        yield


@mutation
def contents_are_never_unpinned() -> Iterator[None]:
    """A freed value keeps what was inside it."""

    def release(original: Any, self: Any, entry: Entry, released: list[Entry]) -> None:
        contained, entry.contained = entry.contained, None
        original(self, entry, released)
        if not entry.is_released:
            entry.contained = contained

    with replaced(ReferenceTable, "_release_if_unheld", release):
        yield


@mutation
def end_of_borrow_counts_twice() -> Iterator[None]:
    """One EndBorrow ends two registrations."""

    def remove(original: Any, self: Any, *args: Any) -> None:
        original(self, *args)
        original(self, *args)

    with replaced(ReferenceTable, "remove_borrower", remove):
        yield


@mutation
def dropped_instance_counts_twice() -> Iterator[None]:
    """Dropping one of several instances drops two."""

    def drop(original: Any, self: Any, entry: Entry, released: list[Entry]) -> None:
        if entry.local > 1:
            entry.local -= 1
        original(self, entry, released)

    with replaced(ReferenceTable, "drop_local", drop):
        yield


@mutation
def end_of_borrow_is_not_sent() -> Iterator[None]:
    """A borrower never says that it is done."""
    with without_messages(EndBorrow):
        yield


@mutation
def value_is_not_asked_for() -> Iterator[None]:
    """Waiting for a borrowed object asks nobody."""
    with without_messages(AskObject):
        yield


@mutation
def borrows_of_the_dead_stay() -> Iterator[None]:
    """A death ends no registration."""
    with replaced(Ownership, "_end_borrows_of", lambda *_: None):
        yield


@mutation
def borrows_of_the_dead_end_at_once() -> Iterator[None]:
    """No grace for those to whom the dead process had passed a reference."""

    def lost(original: Any, self: Any, worker_id: bytes, cause: str) -> None:
        self._end_borrows_of(worker_id)
        original(self, worker_id, cause)

    with replaced(Ownership, "on_process_lost", lost):
        yield


@mutation
def death_of_the_caller_registers_nothing() -> Iterator[None]:
    """A task whose caller died waits with its registrations to its end."""

    inside: list[bool] = []

    def lost(original: Any, self: Any, *args: Any) -> None:
        inside.append(True)
        original(self, *args)
        inside.pop()

    def tell(original: Any, self: Any, *args: Any) -> None:
        if not inside:
            original(self, *args)

    with (
        replaced(Ownership, "on_process_lost", lost),
        replaced(Ownership, "tell_untold", tell),
    ):
        yield


@mutation
def pins_for_a_dead_owner_stay() -> Iterator[None]:
    """What was pinned until a dead owner would have it is pinned for ever."""
    with replaced(OutcomeWriter, "owner_lost", lambda *_: None):
        yield


@mutation
def pins_for_a_dead_owner_end_at_once() -> Iterator[None]:
    """No grace for those to whom the dead owner of a return had passed its contents."""
    with replaced(
        OutcomeWriter, "owner_lost", lambda _, self, worker_id: self._free_for(worker_id)
    ):
        yield


@mutation
def arguments_of_a_dead_executor_end_at_once() -> Iterator[None]:
    """No grace for those to whom a dead executor had passed its arguments."""
    with replaced(Ownership, "hold_for_grace", lambda *_: None):
        yield


@mutation
def receiver_is_not_registered_by_the_sender() -> Iterator[None]:
    """A value is sent without registering its receiver for what the sender owns."""
    inside: list[bool] = []

    def answer(original: Any, self: Any, *args: Any) -> Any:
        inside.append(True)
        try:
            return original(self, *args)
        finally:
            inside.pop()

    def add(original: Any, self: Any, *args: Any) -> bool:
        return True if inside else original(self, *args)

    with (
        replaced(Ownership, "_answer", answer),
        replaced(OutcomeWriter, "_hold", answer),
        replaced(ReferenceTable, "add_borrower", add),
    ):
        yield


@mutation
def unused_answer_is_ignored() -> Iterator[None]:
    """What an owner registered for an answer that came too late is not ended."""

    def on_value(original: Any, self: Any, peer: Any, message: Any) -> None:
        if message.object_id not in self.table.entries:
            message.contained = []
        original(self, peer, message)

    with replaced(Ownership, "_on_value", on_value):
        yield


@mutation
def second_registration_is_kept() -> Iterator[None]:
    """A reference that arrives again is registered again, and only one of the two ends."""

    def take(
        original: Any, self: Any, holder: Any, references: Any, sender: Any, then: Any
    ) -> None:
        entries = self.table.entries
        told = [
            entries[r.object_id]
            for r in references
            if r.object_id in entries and entries[r.object_id].is_told
        ]
        for entry in told:
            entry.is_told = False
        original(self, holder, references, sender, then)
        for entry in told:
            entry.is_told = True

    with replaced(Ownership, "take_contained", take):
        yield


@mutation
def repeated_borrow_registers_again() -> Iterator[None]:
    """A Borrow that comes twice makes two registrations, of which one ends."""
    with without_serial(Borrow):
        yield


@mutation
def repeated_end_of_borrow_ends_another_registration() -> Iterator[None]:
    """An EndBorrow that comes twice ends two registrations."""
    with without_serial(EndBorrow):
        yield


@mutation
def repeated_question_is_answered_again() -> Iterator[None]:
    """An AskObject that comes twice registers the asker twice for what the value holds."""
    with without_serial(AskObject):
        yield


@mutation
def repeated_answer_ends_registrations() -> Iterator[None]:
    """An ObjectValue that comes twice is taken for one that came too late."""

    def on_value(original: Any, self: Any, peer: Any, message: Any) -> None:
        self._asks[peer.worker_id, message.asked] = message.object_id
        original(self, peer, message)

    with replaced(Ownership, "_on_value", on_value):
        yield


@mutation
def repeated_task_runs_again() -> Iterator[None]:
    """A PushTask that comes twice is run twice."""
    with replaced(Received, "new_of", lambda _, self, work: work):
        yield


@mutation
def outcome_of_an_earlier_attempt_is_taken() -> Iterator[None]:
    """A failure that comes twice ends the retry as well."""

    def on_results(original: Any, self: Any, peer: Any, results: list[Any]) -> None:
        for result in results:
            known = self.tasks.pending.get(result.task_id)
            if known is not None:
                result.attempt = known[0].attempt
        original(self, peer, results)

    with replaced(Membership, "_on_results", on_results):
        yield


@mutation
def serials_are_kept_for_each_connection() -> Iterator[None]:
    """What came by one connection is not known as a repetition on another."""

    def one_more(original: Any, self: Any, worker_id: bytes) -> Serials:
        original(self, worker_id)
        return Serials()

    with (
        replaced(Peers, "_one_more_line", one_more),
        replaced(Peers, "_one_line_less", lambda *_: None),
    ):
        yield


@mutation
def order_of_another_connection_is_trusted() -> Iterator[None]:
    """With two connections to a peer, the order on one is taken for the order on both."""
    with replaced(Peers, "find", lambda original, self, worker_id: _caller_of(self, worker_id)):
        yield


def _caller_of(peers: Any, worker_id: bytes) -> Any:
    # Whatever connection the question is about: the one that the message being handled came on.
    for connection in reversed(list(peers._connections)):
        peer = connection.context
        if peer is not None and peer.worker_id == worker_id:
            return peer
    return None
