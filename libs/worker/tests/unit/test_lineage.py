"""Which tasks are kept, and what is run to make an object again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from skate_worker.machine.generator_stream import FIRST_ITEM
from skate_worker.machine.lineage import Lineage, Presence, Reason, Refusal


@dataclass
class Task:
    name: str
    attempts_left: int = 3
    attempt: int = 0
    is_cancelled: bool = False
    is_running: bool = False


def task_id(number: int) -> bytes:
    return number.to_bytes(24, "big")


def return_of(number: int, index: int = 1) -> bytes:
    return task_id(number) + index.to_bytes(4, "big")


def put(number: int) -> bytes:
    return task_id(number) + (0x8000_0001).to_bytes(4, "big")


def keep(lineage: Lineage[Task], number: int, *arguments: bytes, size: int = 10) -> Task:
    task = Task(f"t{number}")
    dropped = lineage.keep(task_id(number), task, size, [return_of(number)], arguments)
    assert dropped == []
    lineage.check_invariants()
    return task


def all_lost(task: Task, object_id: bytes) -> Presence:
    return Presence.LOST


def all_there(task: Task, object_id: bytes) -> Presence:
    return Presence.THERE


def test_lost_return_is_made_by_its_task() -> None:
    lineage: Lineage[Task] = Lineage()
    task = keep(lineage, 1)
    assert lineage.plan(return_of(1), all_lost) == [task]


def test_lost_arguments_are_made_first_and_each_once() -> None:
    lineage: Lineage[Task] = Lineage()
    root = keep(lineage, 1)
    left = keep(lineage, 2, return_of(1))
    right = keep(lineage, 3, return_of(1))
    top = keep(lineage, 4, return_of(2), return_of(3))
    plan = lineage.plan(return_of(4), all_lost)
    assert isinstance(plan, list)
    assert sorted(task.name for task in plan) == ["t1", "t2", "t3", "t4"]
    assert plan.index(root) < min(plan.index(left), plan.index(right))
    assert plan[-1] is top
    assert lineage.plan(return_of(4), all_there) == [top]


def test_task_is_kept_for_its_dependents_after_its_return_went() -> None:
    lineage: Lineage[Task] = Lineage()
    first = keep(lineage, 1)
    second = keep(lineage, 2, return_of(1))
    assert lineage.released(return_of(1)) == []
    assert lineage.plan(return_of(2), all_lost) == [first, second]
    assert lineage.released(return_of(2)) == [second, first]
    assert len(lineage) == 0
    assert lineage.size_bytes == 0


def test_task_with_two_returns_is_kept_until_both_are_gone() -> None:
    lineage: Lineage[Task] = Lineage()
    task = Task("two")
    lineage.keep(task_id(1), task, 10, [return_of(1, 1), return_of(1, 2)], ())
    assert lineage.released(return_of(1, 1)) == []
    assert lineage.released(return_of(1, 2)) == [task]


def test_task_without_live_returns_is_not_kept() -> None:
    lineage: Lineage[Task] = Lineage()
    task = Task("unneeded")
    assert lineage.keep(task_id(1), task, 10, [], ()) == [task]
    assert len(lineage) == 0


def test_task_kept_again_still_holds_its_arguments_makers() -> None:
    lineage: Lineage[Task] = Lineage()
    first = keep(lineage, 1)
    second = keep(lineage, 2, return_of(1))
    lineage.released(return_of(1))
    again = Task("again", attempt=1)
    assert lineage.keep(task_id(2), again, 10, [return_of(2)], [return_of(1)]) == [second]
    lineage.check_invariants()
    assert lineage.plan(return_of(2), all_lost) == [first, again]


def test_oldest_tasks_are_given_up_first_when_the_bound_is_passed() -> None:
    lineage: Lineage[Task] = Lineage(limit_bytes=25)
    first = keep(lineage, 1)
    keep(lineage, 2)
    third = Task("t3")
    assert lineage.keep(task_id(3), third, 10, [return_of(3)], ()) == [first]
    lineage.check_invariants()
    refusal = lineage.plan(return_of(1), all_lost)
    assert refusal == Refusal(Reason.LINEAGE_EVICTED, return_of(1))
    assert lineage.plan(return_of(3), all_lost) == [third]
    for number in (1, 2, 3):
        lineage.released(return_of(number))
    assert len(lineage) == 0


def test_refusal_names_the_argument_at_fault() -> None:
    lineage: Lineage[Task] = Lineage()
    keep(lineage, 2, put(1))
    assert lineage.plan(return_of(2), all_lost) == Refusal(Reason.PUT, put(1))


def test_argument_of_another_owner_that_went_is_a_reason() -> None:
    lineage: Lineage[Task] = Lineage()
    keep(lineage, 2, return_of(1))
    refusal = lineage.plan(return_of(2), lambda task, object_id: Presence.ELSEWHERE)
    assert refusal == Refusal(Reason.BORROWED, return_of(1))


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task("a", attempts_left=0), Reason.RETRIES_DISABLED),
        (Task("b", attempts_left=0, attempt=3), Reason.MAX_ATTEMPTS),
        (Task("c", is_cancelled=True), Reason.TASK_CANCELLED),
    ],
)
def test_task_that_may_not_run_again_costs_nothing_and_says_why(task: Task, reason: Reason) -> None:
    lineage: Lineage[Task] = Lineage()
    assert lineage.keep(task_id(1), task, 10, [return_of(1)], ()) == [task]
    assert lineage.size_bytes == 0
    assert lineage.plan(return_of(1), all_lost) == Refusal(reason, return_of(1))
    lineage.released(return_of(1))
    assert len(lineage) == 0


def test_attempts_that_ran_out_since_are_seen() -> None:
    lineage: Lineage[Task] = Lineage()
    task = keep(lineage, 1)
    task.attempts_left, task.attempt = 0, 3
    assert lineage.plan(return_of(1), all_lost) == Refusal(Reason.MAX_ATTEMPTS, return_of(1))
    assert lineage.is_precious(return_of(1))


def test_disabled_lineage_keeps_nothing() -> None:
    lineage: Lineage[Task] = Lineage(limit_bytes=0)
    lineage.keep(task_id(1), Task("t"), 10, [return_of(1)], ())
    assert lineage.plan(return_of(1), all_lost) == Refusal(Reason.LINEAGE_DISABLED, return_of(1))


def test_object_of_no_known_task_is_not_found() -> None:
    lineage: Lineage[Task] = Lineage()
    assert lineage.plan(return_of(1), all_lost) == Refusal(Reason.REF_NOT_FOUND, return_of(1))
    assert lineage.plan(put(1), all_lost) == Refusal(Reason.PUT, put(1))


def test_long_chain_is_planned_and_dropped_without_recursion() -> None:
    lineage: Lineage[Task] = Lineage()
    keep(lineage, 0)
    for number in range(1, 5000):
        lineage.keep(
            task_id(number),
            Task(str(number)),
            1,
            [return_of(number)],
            [return_of(number - 1)],
        )
        lineage.released(return_of(number - 1))
    plan = lineage.plan(return_of(4999), all_lost)
    assert isinstance(plan, list)
    assert len(plan) == 5000
    assert len(lineage.released(return_of(4999))) == 5000
    assert lineage.size_bytes == 0


def item(number: int, index: int = 0) -> bytes:
    return return_of(number, index + FIRST_ITEM)


def test_item_that_a_kept_task_took_before_its_stream_ended_can_be_made_again() -> None:
    lineage: Lineage[Task] = Lineage()
    lineage.stream_began(task_id(1))
    taker = keep(lineage, 2, item(1))
    assert lineage.has_dependents(task_id(1))
    stream = Task("stream")
    lineage.keep(task_id(1), stream, 10, [], ())
    lineage.stream_ended(task_id(1))
    lineage.check_invariants()
    assert lineage.plan(return_of(2), all_lost) == [stream, taker]
    assert lineage.released(return_of(2)) == [taker, stream]
    assert len(lineage) == 0


def test_lost_item_of_a_stream_that_runs_is_left_to_it() -> None:
    lineage: Lineage[Task] = Lineage()
    lineage.stream_began(task_id(1))
    taker = keep(lineage, 2, item(1))
    assert lineage.plan(return_of(2), all_lost) == [taker]
    assert lineage.is_streaming(item(1))
    assert lineage.is_precious(item(1))


def test_completion_of_a_stream_and_what_its_task_put_are_no_items() -> None:
    lineage: Lineage[Task] = Lineage()
    lineage.stream_began(task_id(1))
    keep(lineage, 2, return_of(1), put(1))
    assert not lineage.is_streaming(return_of(1))
    assert not lineage.is_streaming(put(1))
    assert not lineage.has_dependents(task_id(1))


def test_item_of_a_stream_that_is_not_kept_is_lost_for_good() -> None:
    lineage: Lineage[Task] = Lineage()
    lineage.stream_began(task_id(1))
    keep(lineage, 2, item(1))
    lineage.stream_ended(task_id(1))
    lineage.check_invariants()
    refusal = lineage.plan(return_of(2), all_lost)
    assert refusal == Refusal(Reason.REF_NOT_FOUND, item(1))
    lineage.released(return_of(2))
    assert len(lineage) == 0


def test_stream_that_nobody_needs_leaves_nothing_behind() -> None:
    lineage: Lineage[Task] = Lineage()
    lineage.stream_began(task_id(1))
    keep(lineage, 2, item(1))
    lineage.released(return_of(2))
    assert len(lineage) == 0
    stream = Task("stream")
    assert lineage.keep(task_id(1), stream, 10, [], ()) == [stream]
    assert len(lineage) == 0
