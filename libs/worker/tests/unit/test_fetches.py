"""The steps of bringing an object to this node."""

from __future__ import annotations

from skate_worker.machine.fetches import (
    ASK_AGAIN_S,
    FREED,
    FULL,
    LINGER_S,
    NO_LOCATION_S,
    OWNER_DIED,
    TIMED_OUT,
    VALUE,
    AskOwner,
    Command,
    Fetches,
    Outcome,
    StartPull,
    StopPull,
    TellOwner,
    WakeWaiters,
)
from skate_worker.machine.references import Owner

OWNER = Owner(b"owner", "unix:/o", b"home")
OBJECT = b"object"


def ignore(outcome: Outcome) -> None:
    pass


def also(outcome: Outcome) -> None:
    pass


def started(fetches: Fetches) -> list[Command]:
    return fetches.start(OBJECT, OWNER, 9, 0, ignore, 0.0)


def pulling(fetches: Fetches) -> StartPull:
    started(fetches)
    (pull,) = fetches.sources(OBJECT, [b"home"], 9)
    assert isinstance(pull, StartPull)
    return pull


def outcome_of(commands: list[Command]) -> Outcome:
    last = commands[-1]
    assert isinstance(last, WakeWaiters)
    return last.outcome


def test_fetch_asks_pulls_and_tells_the_owner() -> None:
    fetches = Fetches()
    assert started(fetches) == [AskOwner(OBJECT, OWNER, (), "")]
    pull = fetches.sources(OBJECT, [b"home"], 9)
    assert pull == [StartPull(1, OBJECT, 9, OWNER, (b"home",), 0)]
    fetches.check_invariants()
    assert fetches.pull_ended(1, "", "", [], 1.0) == [
        TellOwner(OBJECT, OWNER, has_copy=True),
        WakeWaiters((ignore,), Outcome()),
    ]
    assert len(fetches) == 0


def test_second_waiter_joins_the_fetch() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    assert fetches.start(OBJECT, OWNER, 9, 0, also, 0.0) == []
    fetches.stop(OBJECT, ignore, 0.0)
    assert fetches.next_wakeup() is None
    ended = fetches.pull_ended(pull.pull_id, "", "", [], 1.0)
    assert ended[-1] == WakeWaiters((also,), Outcome())


def test_more_urgent_waiter_raises_the_priority_of_the_pull() -> None:
    fetches = Fetches()
    fetches.start(OBJECT, OWNER, 9, 2, ignore, 0.0)
    fetches.sources(OBJECT, [b"home"], 9)
    again = fetches.start(OBJECT, OWNER, 9, 0, also, 0.0)
    assert again == [StartPull(2, OBJECT, 9, OWNER, (b"home",), 0), StopPull(1)]
    assert fetches.pull_ended(1, "cancelled", "", [], 0.0) == []
    fetches.check_invariants()


def test_pull_without_waiters_goes_on_for_a_while_and_then_frees_the_source() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    fetches.stop(OBJECT, ignore, 1.0)
    fetches.check_invariants()
    assert fetches.next_wakeup() == 1.0 + LINGER_S
    assert fetches.time_passed(0.9 + LINGER_S) == []
    assert fetches.time_passed(1.0 + LINGER_S) == [
        StopPull(pull.pull_id),
        TellOwner(OBJECT, OWNER, has_copy=False),
    ]
    assert fetches.pull_ended(pull.pull_id, "", "", [], 1.0) == []


def test_value_that_is_asked_for_again_and_again_comes_by_one_pull() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    for round_ in range(9):
        fetches.stop(OBJECT, ignore, float(round_))
        assert fetches.start(OBJECT, OWNER, 9, 0, ignore, float(round_)) == []
        fetches.check_invariants()
    fetches.stop(OBJECT, ignore, 9.0)
    # It comes between two looks: who looked last is told, so that the next look finds it.
    ended = fetches.pull_ended(pull.pull_id, "", "", [], 9.5)
    assert ended == [
        TellOwner(OBJECT, OWNER, has_copy=True),
        WakeWaiters((ignore,), Outcome()),
    ]


def test_pull_that_goes_on_without_waiters_ends_with_the_last_reference() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    assert fetches.released([OBJECT, b"unknown"]) == [], "somebody waits: it is not for us to end"
    fetches.stop(OBJECT, ignore, 1.0)
    assert fetches.released([OBJECT])[0] == StopPull(pull.pull_id)
    assert len(fetches) == 0


def test_copy_that_proved_damaged_is_reported_with_the_reason() -> None:
    fetches = Fetches()
    ask = fetches.start(OBJECT, OWNER, 9, 0, ignore, 0.0, [b"here"], "a torn file")
    assert ask == [AskOwner(OBJECT, OWNER, (b"here",), "a torn file")]


def test_lost_copies_are_reported_and_others_asked_for() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    ended = fetches.pull_ended(pull.pull_id, "lost", "no route", [b"home"], 1.0)
    assert ended == [AskOwner(OBJECT, OWNER, (b"home",), "no route")]


def test_same_loss_again_is_reported_after_a_pause() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    fetches.pull_ended(pull.pull_id, "lost", "", [b"home"], 1.0)
    (pull_again,) = fetches.sources(OBJECT, [b"home"], 9)
    assert isinstance(pull_again, StartPull)
    assert fetches.pull_ended(pull_again.pull_id, "lost", "", [b"home"], 2.0) == []
    assert fetches.next_wakeup() == 2.0 + ASK_AGAIN_S
    assert fetches.time_passed(2.0) == []
    assert fetches.time_passed(2.0 + ASK_AGAIN_S) == [AskOwner(OBJECT, OWNER, (b"home",), "")]


def test_value_that_became_small_ends_the_fetch() -> None:
    fetches = Fetches()
    started(fetches)
    outcome = outcome_of(fetches.ended(OBJECT, Outcome(VALUE, b"data")))
    assert outcome.data == b"data"
    assert not fetches.is_wanted(OBJECT)


def test_freed_object_ends_the_fetch_and_the_pull() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    commands = fetches.ended(OBJECT, Outcome(FREED))
    assert commands[0] == StopPull(pull.pull_id)


def test_node_without_room_fails_the_fetch_with_the_reason() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    commands = fetches.pull_ended(pull.pull_id, "full", "9 of 9 bytes used", [], 1.0, b"account")
    assert commands[0] == TellOwner(OBJECT, OWNER, has_copy=False)
    assert outcome_of(commands) == Outcome(FULL, b"account", message="9 of 9 bytes used")


def test_owner_that_died_fails_the_fetch_and_ends_the_pull() -> None:
    fetches = Fetches()
    pull = pulling(fetches)
    commands = fetches.owner_died(lambda owner: owner.node_id == b"home")
    assert commands[0] == StopPull(pull.pull_id)
    assert outcome_of(commands).kind == OWNER_DIED


def test_owner_that_says_nothing_is_given_up() -> None:
    fetches = Fetches()
    started(fetches)
    assert fetches.time_passed(NO_LOCATION_S - 1) == []
    commands = fetches.time_passed(NO_LOCATION_S)
    assert outcome_of(commands).kind == TIMED_OUT
    assert len(fetches) == 0


def test_owner_that_works_on_it_is_waited_for() -> None:
    fetches = Fetches()
    started(fetches)
    fetches.sources(OBJECT, [], 0)
    assert fetches.next_wakeup() is None
    assert fetches.time_passed(10 * NO_LOCATION_S) == []


def test_process_that_leaves_tells_all_who_wait() -> None:
    fetches = Fetches()
    pulling(fetches)
    fetches.start(b"other", OWNER, 9, 0, also, 0.0)
    commands = fetches.close()
    last = commands[-1]
    assert isinstance(last, WakeWaiters)
    assert set(last.waiters) == {ignore, also}
    assert len(fetches) == 0
