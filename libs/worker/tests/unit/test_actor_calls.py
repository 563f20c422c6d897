"""The order of an actor's calls, and what a broken line, a restart and a death do to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from skate_worker.machine.actor_calls import DEAD, ActorCalls


@dataclass
class Call:
    number: int
    is_resolved: bool = True
    attempts_left: int = 0
    attempt: int = 0
    task_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.task_id = self.number.to_bytes(4, "big")

    def take_attempt(self) -> bool:
        if self.attempts_left == 0:
            return False
        self.attempts_left -= 1
        self.attempt += 1
        return True


def end(actor: ActorCalls[Call], task_id: bytes, attempt: int) -> Call | None:
    """One outcome comes; gives the call whose end it is."""
    outcome = SimpleNamespace(task_id=task_id, attempt=attempt)
    finished, given_up = actor.done_all([outcome])
    assert len(finished) + len(given_up) == 1
    return finished[0][0] if finished else None


def calls_with(*calls: Call) -> ActorCalls[Call]:
    actor: ActorCalls[Call] = ActorCalls(b"a" * 16)
    for call in calls:
        actor.submit(call)
    return actor


def test_calls_before_the_actor_lives_go_in_order_once_it_does() -> None:
    actor = calls_with(Call(1), Call(2))
    assert actor.sendable() == []
    actor.connected("line", 0, iter(()))
    assert [c.number for c in actor.sendable()] == [1, 2]
    assert actor.submit(Call(3))


def test_unresolved_call_holds_back_those_behind_it() -> None:
    slow = Call(2, is_resolved=False)
    actor = calls_with(Call(1), slow, Call(3))
    actor.connected("line", 0, iter(()))
    assert [c.number for c in actor.sendable()] == [1]
    assert not actor.submit(Call(4))
    slow.is_resolved = True
    assert [c.number for c in actor.sendable()] == [2, 3, 4]


def test_broken_line_fails_calls_without_retries_and_keeps_the_others_first() -> None:
    actor = calls_with(Call(1), Call(2, attempts_left=1), Call(3), Call(4, attempts_left=1))
    actor.connected("line", 0, iter(()))
    actor.sendable()
    actor.submit(Call(5))
    failed = actor.disconnected()
    actor.submit(Call(6))
    assert [c.number for c in failed] == [1, 3, 5]
    actor.connected("line", 1, iter(()))
    assert [c.number for c in actor.sendable()] == [2, 4, 6]


def test_dead_actor_fails_sent_and_waiting_calls() -> None:
    actor = calls_with(Call(1))
    actor.connected("line", 0, iter(()))
    actor.sendable()
    actor.submit(Call(2, is_resolved=False))
    assert [c.number for c in actor.died()] == [1, 2]
    assert actor.state == DEAD


def test_late_result_of_a_given_up_call_is_ignored() -> None:
    actor = calls_with(Call(1))
    actor.connected("line", 0, iter(()))
    actor.sendable()
    actor.disconnected()
    assert end(actor, Call(1).task_id, 0) is None


def test_end_that_is_told_twice_does_not_end_the_retry() -> None:
    call = Call(1, attempts_left=1)
    actor = calls_with(call)
    actor.connected("line", 0, iter(()))
    actor.sendable()
    assert end(actor, call.task_id, 0) is call
    assert call.take_attempt()
    assert actor.submit(call)

    assert end(actor, call.task_id, 0) is None

    assert end(actor, call.task_id, 1) is call
