"""What an owner says of an object whose copies are lost, and what a borrower makes of it."""

from __future__ import annotations

from typing import Any

from skate_rpc.serials import Serials
from skate_worker.errors import LocalRayletDiedError
from skate_worker.machine.references import INLINE, PENDING, STORED, Entry, Owner
from skate_worker.outcome import OutcomeWriter
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer
from skate_worker.serialization import serialize
from skate_worker.task_protocol import AskObject, ObjectValue

OBJECT = b"o" * 28


class Loop:
    def call_soon_threadsafe(self, callback: Any, *args: Any) -> None:
        callback(*args)


class Connection:
    def __init__(self) -> None:
        self.posted: list[Any] = []

    def post(self, message: Any) -> None:
        self.posted.append(message)


def make_ownership(name: bytes) -> Ownership:
    return Ownership(name * 28, b"node", Loop())  # type: ignore[arg-type]


def make_peer() -> tuple[Peer, list[Any]]:
    connection = Connection()
    return Peer(b"p" * 28, "unix:/p", connection, Serials()), connection.posted  # type: ignore[arg-type]


def owned(ownership: Ownership, state: int) -> Entry:
    entry = ownership.table.own(OBJECT)
    entry.state = state
    return entry


def test_owner_of_a_stored_object_without_a_copy_says_that_it_is_stored() -> None:
    owner, (peer, posted) = make_ownership(b"o"), make_peer()
    owned(owner, STORED)

    owner.on_message(peer, AskObject(OBJECT, 7))

    assert posted == [ObjectValue(OBJECT, is_stored=True, asked=7)]


def test_borrower_of_a_stored_object_without_a_copy_does_not_take_it_for_an_empty_value() -> None:
    borrower, (peer, _) = make_ownership(b"b"), make_peer()
    entry = borrower.table.borrow(OBJECT, Owner(b"o" * 28, "unix:/o"))
    entry.local = 1
    borrower._asks[peer.worker_id, 7] = OBJECT

    borrower.on_message(peer, ObjectValue(OBJECT, is_stored=True, asked=7))

    assert (entry.state, entry.node_id) == (STORED, b"")


def test_owner_whose_object_became_pending_again_answers_when_it_is_made() -> None:
    owner, (peer, posted) = make_ownership(b"o"), make_peer()
    entry = owned(owner, PENDING)
    owner._answer(peer, entry, 7)
    assert posted == []
    data = serialize(7).to_bytes()

    owner.settle(entry, INLINE, data)

    assert posted == [ObjectValue(OBJECT, data, asked=7)]


def test_error_of_a_dead_node_is_no_outcome_of_a_task_but_its_copy_from_elsewhere_is() -> None:
    told: list[str] = []
    outcomes = OutcomeWriter(make_ownership(b"w"), "127.0.0.1", told.append)

    outcomes.failure(b"t", "f", ValueError("theirs"), 1, 0)
    assert told == []

    outcomes.failure(b"t", "f", LocalRayletDiedError("the daemon hung up"), 1, 0)
    assert len(told) == 1
