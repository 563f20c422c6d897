"""Borrowing from and lending to other nodes, one step at a time. The seeded world is in ``sim``."""

from __future__ import annotations

from typing import Any

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.borrowing import ANSWER_S, LINE_GRACE_S
from skate_raylet.machine.lease_machine import BOUND_GRACE_S, LeaseConfig
from skate_raylet.machine.neighbours import SHUN_S
from skate_raylet.machine.node_machine import ELSEWHERE_WAIT_S, NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import LabelRules, LabelSelector, NodeView, ResourceSet, WaitKind

JOB = b"\0\0\0\1"
HERE = b"here----node"
THERE = b"there---node"
THIRD = b"third---node"
DRIVER = b"driver"
GONE = loans.Cause("node_died", "killed")


def amounts(**values: float) -> ResourceSet:
    return ResourceSet.from_amounts(values)


class Desk:
    """A node's machine; every step checks the invariants."""

    def __init__(self, **total: float) -> None:
        labels = {"zone": "here"}
        config = LeaseConfig(amounts(**(total or {"CPU": 2})), HERE[:8], 10.0, HERE, labels)
        self.machine = NodeMachine(config, PoolConfig(4, 4, 100))
        self.now_s = 100.0

    def tell(self, event: Any, after_s: float = 0.0) -> list[Any]:
        self.now_s += after_s
        said: list[Any] = list(self.machine.handle(event, self.now_s))
        self.machine.check_invariants()
        return said

    def see(
        self, node_id: bytes, free: dict[str, float], zone: str = "", **total: float
    ) -> list[Any]:
        view = NodeView(node_id, amounts(**total), amounts(**free), {"zone": zone} if zone else {})
        return self.tell(loan.NodeSeen(view))

    def request(self, number: int, strategy: on.Strategy | None = None, **needs: float) -> Any:
        event = on.LeaseRequested(
            DRIVER,
            number,
            JOB,
            amounts(**(needs or {"CPU": 1})),
            strategy=strategy or on.DEFAULT_STRATEGY,
        )
        return self.tell(event)

    def start(self, said: list[Any]) -> list[Any]:
        followed: list[Any] = []
        for command in said:
            if isinstance(command, do.StartWorker):
                worker_id = b"w%d" % command.startup_id
                followed += self.tell(on.WorkerRegistered(command.startup_id, worker_id))
        return followed

    def fill(self) -> list[do.GrantLease]:
        """Take every CPU of this node for the driver."""
        grants = []
        for number in (1001, 1002):
            bound = on.Strategy(node_id=HERE)
            grants += only(do.GrantLease, self.start(self.request(number, bound)))
        assert self.machine.available["CPU"] == 0
        return grants

    def borrow(self) -> loans.Granted:
        """Have a lease of the other node."""
        self.fill()
        self.see(THERE, {"CPU": 1}, CPU=1)
        ask = asked(self.request(1))
        granted = loans.Granted(ask.ask_id, b"lease", b"worker", "unix:/w", 7)
        said = self.tell(loan.LenderSaid(THERE, granted))
        assert said == [loan.GrantBorrowed(DRIVER, 1, THERE, granted)]
        return granted

    def wake(self) -> list[Any]:
        due = self.machine.next_wakeup(self.now_s)
        assert due is not None
        self.now_s = max(self.now_s, due[0])
        return self.tell(on.TimePassed())


def only(kind: type[Any], said: list[Any]) -> list[Any]:
    return [command for command in said if isinstance(command, kind)]


def asked(said: list[Any], node_id: bytes = THERE) -> loans.Ask:
    (command,) = only(loan.TellLender, said)
    assert command.node_id == node_id
    assert isinstance(command.message, loans.Ask)
    return command.message


def told(said: list[Any], node_id: bytes = THERE) -> Any:
    (command,) = said
    assert command.node_id == node_id
    return command.message


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- borrowing ----


def test_request_stays_here_until_the_node_is_half_used(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 2}, CPU=2)

    assert only(do.StartWorker, desk.request(1))
    assert asked(desk.request(2)).resources == amounts(CPU=1)


def test_request_that_only_another_node_can_hold_goes_there_and_may_wait(desk: Desk) -> None:
    desk.see(THERE, {}, CPU=1, disk=1)

    ask = asked(desk.request(1, disk=1))

    assert ask.wait_s == ELSEWHERE_WAIT_S


def test_request_that_waits_here_goes_where_room_appears(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {}, CPU=1)
    assert desk.request(1) == []

    ask = asked(desk.see(THERE, {"CPU": 1}, CPU=1))

    assert (ask.holder_id, ask.wait_s) == (DRIVER, 0.0)
    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.reason.kind is WaitKind.ASKED


def test_two_requests_do_not_claim_the_same_room(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 1}, CPU=1)

    asked(desk.request(1))

    assert desk.request(2) == []


def test_busy_node_is_left_alone_for_a_while_and_the_request_waits_here(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(1))

    said = desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, loans.Cause("busy", "full"))))

    assert said == []
    assert len(desk.machine.waiting(desk.now_s)) == 1
    assert desk.see(THERE, {"CPU": 1}, CPU=1) == []
    desk.now_s += SHUN_S
    assert asked(desk.tell(on.TimePassed())).ask_id > ask.ask_id


def test_request_asked_elsewhere_twice_is_asked_once(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 5}, CPU=5)
    asked(desk.request(1))

    assert desk.request(1) == []


def test_grant_after_a_cancellation_is_dropped(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(1))

    said = desk.tell(on.LeaseRequestCancelled(DRIVER, 1))
    assert told(said) == loans.Drop(ask.ask_id)
    late = loans.Granted(ask.ask_id, b"lease", b"worker", "unix:/w", 7)
    assert told(desk.tell(loan.LenderSaid(THERE, late))) == loans.Drop(ask.ask_id)


def test_lease_of_another_node_is_returned_killed_and_asked_back_there(desk: Desk) -> None:
    granted = desk.borrow()
    ask_id = granted.ask_id

    said = desk.tell(loan.LenderSaid(THERE, loans.Reclaimed(ask_id)))
    assert said == [do.AskLeaseBack(DRIVER, b"lease")]
    said = desk.tell(loan.BorrowedKilled(DRIVER, b"lease", "cancelled"))
    assert told(said) == loans.Kill(ask_id, "cancelled")
    said = desk.tell(on.LeaseReturned(DRIVER, b"lease", True))
    assert told(said) == loans.Drop(ask_id, discard=True)
    assert desk.tell(on.LeaseReturned(DRIVER, b"lease", True)) == []


def test_lease_of_another_node_is_not_a_strangers_to_return_or_kill(desk: Desk) -> None:
    desk.borrow()

    assert desk.tell(on.LeaseReturned(b"stranger", b"lease")) == []
    assert desk.tell(loan.BorrowedKilled(b"stranger", b"lease", "x")) == []


def test_death_of_a_borrowed_worker_is_told_with_its_cause(desk: Desk) -> None:
    granted = desk.borrow()
    cause = loans.Cause("signaled", "killed by SIGSEGV", 7, 0, 11)

    said = desk.tell(loan.LenderSaid(THERE, loans.Ended(granted.ask_id, cause)))

    assert said == [loan.LoseBorrowed(DRIVER, b"lease", cause)]
    assert desk.machine.statistics().borrowed == 0


def test_end_of_a_holder_ends_its_workers_elsewhere(desk: Desk) -> None:
    granted = desk.borrow()

    said = desk.tell(on.HolderGone(DRIVER))

    (drop,) = [c.message for c in only(loan.TellLender, said)]
    assert (drop.ask_id, drop.kind) == (granted.ask_id, "owner_died")


def test_death_of_a_lender_loses_leases_and_moves_requests(desk: Desk) -> None:
    desk.borrow()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    asked(desk.request(2))
    desk.see(THIRD, {"CPU": 1}, CPU=1)

    said = desk.tell(loan.NodeGone(THERE, GONE))

    assert only(loan.LoseBorrowed, said) == [loan.LoseBorrowed(DRIVER, b"lease", GONE)]
    assert asked(said, THIRD).holder_id == DRIVER
    assert only(loan.HangUp, said) == [loan.HangUp(THERE)]


def test_late_report_of_a_dead_node_does_not_revive_it(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 1}, CPU=1)
    desk.tell(loan.NodeGone(THERE, GONE))
    desk.fill()

    desk.see(THERE, {"CPU": 1}, CPU=1)

    assert desk.request(1) == []


def test_broken_line_moves_requests_at_once_and_loses_leases_later(desk: Desk) -> None:
    desk.borrow()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    asked(desk.request(2))

    said = desk.tell(loan.LenderLost(THERE))
    assert said == []
    assert len(desk.machine.waiting(desk.now_s)) == 1

    desk.now_s += LINE_GRACE_S
    (lost,) = only(loan.LoseBorrowed, desk.tell(on.TimePassed()))
    assert (lost.lease_id, lost.cause.kind) == (b"lease", "node_died")


def test_line_that_comes_back_repeats_what_was_asked_and_then_lists_what_lives(desk: Desk) -> None:
    granted = desk.borrow()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(2))
    said = desk.tell(loan.LenderConnected(THERE))

    again, sync = [command.message for command in said]
    assert again.ask_id == ask.ask_id
    assert sync == loans.Sync(ask.ask_id + 1, (granted.ask_id, ask.ask_id))


def test_node_that_never_answers_is_given_up(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(1))

    desk.now_s += ANSWER_S
    said = desk.tell(on.TimePassed())

    assert told(said) == loans.Drop(ask.ask_id)
    assert len(desk.machine.waiting(desk.now_s)) == 1


def test_worker_that_can_not_start_elsewhere_refuses_the_request(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(1))
    cause = loans.Cause("worker_start_failed", "no such interpreter")

    said = desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, cause)))

    assert said == [do.RefuseLease(DRIVER, 1, "worker_start_failed", "no such interpreter")]


# ---- where a request may go ----


def test_request_bound_to_another_node_waits_for_it_although_there_is_room_here(desk: Desk) -> None:
    bound = on.Strategy(node_id=THERE)
    desk.see(THERE, {}, CPU=1)

    ask = asked(desk.request(1, bound))
    desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, loans.Cause("busy", "full"))))

    (waiting,) = desk.machine.waiting(desk.now_s)
    assert waiting.needs == amounts(CPU=1)
    desk.now_s += SHUN_S
    asked(desk.tell(on.TimePassed()))


@pytest.mark.parametrize("is_soft", [False, True])
def test_request_bound_to_a_node_that_dies_is_refused_or_served_here(
    desk: Desk, is_soft: bool
) -> None:
    desk.see(THERE, {}, CPU=1)
    asked(desk.request(1, on.Strategy(node_id=THERE, is_soft=is_soft)))

    said = desk.tell(loan.NodeGone(THERE, GONE))

    if is_soft:
        assert only(do.StartWorker, said)
    else:
        (refusal,) = only(do.RefuseLease, said)
        assert (refusal.kind, refusal.request_id) == ("unschedulable", 1)


def test_request_bound_to_an_unknown_node_is_refused_after_the_grace(desk: Desk) -> None:
    assert desk.request(1, on.Strategy(node_id=THERE)) == []

    (refusal,) = desk.wake()

    assert refusal.kind == "unschedulable"
    assert THERE.hex() in refusal.message


def test_request_bound_to_this_node_never_leaves_it(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {"CPU": 9}, CPU=9)

    assert desk.request(1, on.Strategy(node_id=HERE)) == []
    assert desk.see(THERE, {"CPU": 9}, CPU=9) == []


def test_spread_requests_take_turns_over_all_nodes() -> None:
    desk = Desk(CPU=8)
    desk.see(THERE, {"CPU": 8}, CPU=8)
    desk.see(THIRD, {"CPU": 8}, CPU=8)

    places = []
    for number in range(6):
        said = desk.request(number, on.Strategy(is_spread=True))
        lenders = [command.node_id for command in only(loan.TellLender, said)]
        places += lenders or [HERE]

    assert sorted(places) == sorted([HERE, THERE, THIRD] * 2)


def test_request_that_no_node_can_hold_is_refused_with_the_most_there_is(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 3}, CPU=3)
    assert desk.request(1, CPU=4) == []

    (refusal,) = desk.wake()

    assert refusal.kind == "unschedulable"
    assert refusal.message.endswith("the most that any has is CPU 3.")


def test_request_that_a_new_node_can_hold_is_served_and_its_grace_starts_anew(desk: Desk) -> None:
    assert desk.request(1, disk=1) == []
    desk.now_s += 9.0
    ask = asked(desk.see(THERE, {"disk": 1}, CPU=1, disk=1))
    desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, loans.Cause("busy", "full"))))
    desk.tell(loan.NodeGone(THERE, GONE))

    assert desk.tell(on.TimePassed(), after_s=9.0) == []
    (refusal,) = only(do.RefuseLease, desk.tell(on.TimePassed(), after_s=1.1))
    assert refusal.kind == "unschedulable"


def zones(*conditions: str, preferred: str = "") -> on.Strategy:
    selectors = tuple(LabelSelector.parse({"zone": condition}) for condition in conditions)
    return on.Strategy(
        labels=LabelRules(selectors, LabelSelector.parse({"zone": preferred} if preferred else {}))
    )


def test_labelled_request_goes_where_it_matches_and_waits_there(desk: Desk) -> None:
    desk.see(THERE, {}, "there", CPU=1)
    desk.see(THIRD, {"CPU": 9}, "third", CPU=9)

    ask = asked(desk.request(1, zones("there")))

    assert ask.wait_s == ELSEWHERE_WAIT_S
    assert only(do.StartWorker, desk.request(2, zones("!there", "there")))


def test_labelled_request_that_matches_nothing_waits_for_a_node_that_does(desk: Desk) -> None:
    desk.see(THIRD, {"CPU": 9}, "third", CPU=9)
    assert desk.request(1, zones("there")) == []
    assert desk.machine.available == amounts(CPU=2)

    asked(desk.see(THERE, {"CPU": 1}, "there", CPU=1))


def test_labelled_request_without_any_match_is_refused_with_its_labels(desk: Desk) -> None:
    assert desk.request(1, zones("there", "in(a,b)")) == []

    (refusal,) = desk.wake()

    assert refusal.kind == "unschedulable"
    assert "zone is there, or else zone is a or b" in refusal.message


def test_fallback_is_served_here_while_the_first_choice_is_busy(desk: Desk) -> None:
    desk.see(THERE, {}, "there", CPU=1)

    assert only(do.StartWorker, desk.request(1, zones("there", "here")))


def test_waiting_fallback_moves_to_the_first_choice_once_that_has_room(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {}, "there", CPU=1)
    assert desk.request(1, zones("there", "here")) == []

    asked(desk.see(THERE, {"CPU": 1}, "there", CPU=1))


def test_preferred_node_is_taken_before_this_one(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 1}, "there", CPU=1)

    asked(desk.request(1, zones(preferred="there")))
    assert only(do.StartWorker, desk.request(2, zones(preferred="there")))


def test_spread_requests_keep_to_the_nodes_with_their_labels(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 8}, "there", CPU=8)
    desk.see(THIRD, {"CPU": 8}, "third", CPU=8)
    strategy = on.Strategy(is_spread=True, labels=zones("!here").labels)

    places = []
    for number in range(4):
        (command,) = only(loan.TellLender, desk.request(number, strategy))
        places.append(command.node_id)

    assert sorted(places) == sorted([THERE, THIRD] * 2)


@pytest.mark.parametrize("is_soft", [False, True])
def test_impatient_request_does_not_wait_for_a_busy_node(desk: Desk, is_soft: bool) -> None:
    desk.see(THERE, {}, CPU=1)

    said = desk.request(1, on.Strategy(node_id=THERE, is_soft=is_soft, is_impatient=True))

    if is_soft:
        assert only(do.StartWorker, said)
    else:
        (refusal,) = said
        assert (refusal.kind, refusal.request_id) == ("unschedulable", 1)
        assert "no room now" in refusal.message


def test_impatient_request_fails_when_the_node_says_that_it_is_busy(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 1}, CPU=1)
    ask = asked(desk.request(1, on.Strategy(node_id=THERE, is_impatient=True)))

    said = desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, loans.Cause("busy", "full"))))

    (refusal,) = only(do.RefuseLease, said)
    assert refusal.kind == "unschedulable"


def near(*places: tuple[bytes, int], strategy: on.Strategy = on.DEFAULT_STRATEGY) -> Any:
    return on.LeaseRequested(DRIVER, 1, JOB, amounts(CPU=1), strategy=strategy, near=places)


def test_request_goes_to_the_node_with_most_bytes_of_its_arguments(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 1}, CPU=1)
    desk.see(THIRD, {"CPU": 9}, CPU=9)

    asked(desk.tell(near((THERE, 9), (THIRD, 5))))


def test_request_goes_to_the_next_near_node_while_the_nearest_is_full(desk: Desk) -> None:
    desk.see(THERE, {}, CPU=1)
    desk.see(THIRD, {"CPU": 9}, CPU=9)

    asked(desk.tell(near((THERE, 9), (THIRD, 5))), THIRD)


def test_request_whose_near_nodes_are_full_or_gone_is_placed_as_any_other(desk: Desk) -> None:
    desk.see(THERE, {}, CPU=1)
    desk.tell(loan.NodeGone(THIRD, GONE))

    assert only(do.StartWorker, desk.tell(near((THIRD, 9), (THERE, 5))))


def test_strategy_comes_before_the_place_of_the_arguments(desk: Desk) -> None:
    desk.see(THERE, {"CPU": 1}, CPU=1)

    said = desk.tell(near((THERE, 9), strategy=on.Strategy(node_id=HERE)))

    assert only(do.StartWorker, said)


def test_waiting_request_moves_to_a_near_node_that_gets_room(desk: Desk) -> None:
    desk.fill()
    desk.see(THERE, {}, CPU=1)
    assert desk.tell(near((THERE, 9))) == []
    desk.see(THIRD, {"CPU": 0.5}, CPU=1)

    asked(desk.see(THERE, {"CPU": 1}, CPU=1))


def test_request_bound_to_an_unknown_node_is_refused_even_where_others_wait() -> None:
    config = LeaseConfig(amounts(CPU=2), HERE[:8], node_id=HERE)
    machine = NodeMachine(config, PoolConfig(4, 4, 100))
    bound = on.Strategy(node_id=THERE)
    machine.handle(on.LeaseRequested(DRIVER, 1, JOB, amounts(CPU=1), strategy=bound), 0.0)

    (refusal,) = machine.handle(on.TimePassed(), BOUND_GRACE_S)

    assert refusal.kind == "unschedulable"


def reason_of(desk: Desk) -> Any:
    (waiting,) = [one for one in desk.machine.waiting(desk.now_s) if one.holder_id == DRIVER]
    return waiting.reason


def test_reason_names_the_node_that_is_asked_and_those_that_are_busy(desk: Desk) -> None:
    desk.see(THERE, {"disk": 0.5}, disk=1)
    ask = asked(desk.request(1, disk=1))
    assert reason_of(desk).kind is WaitKind.ASKED
    assert THERE.hex() in reason_of(desk).sentence()

    desk.tell(loan.LenderSaid(THERE, loans.Ended(ask.ask_id, loans.Cause("busy", "full"))))

    assert reason_of(desk).kind is WaitKind.ELSEWHERE
    assert f"node {THERE.hex()[:12]} (free: disk 0.5)" in reason_of(desk).sentence()


def test_reason_of_what_no_node_can_hold_names_the_most_there_is(desk: Desk) -> None:
    desk.see(THERE, {"disk": 2}, CPU=1, disk=2)
    assert desk.request(1, disk=3) == []

    reason = reason_of(desk)
    assert reason.kind is WaitKind.NOWHERE
    assert reason.sentence().endswith("it needs disk 3; the most that any has is disk 2.")
    assert reason.most == amounts(CPU=2, disk=2)


# ---- lending ----


def ask_of(number: int, *, wait_s: float = 0.0, **needs: float) -> loan.BorrowerSaid:
    message = loans.Ask(
        number, b"far driver", JOB, amounts(**(needs or {"CPU": 1})), (), 0, 0.0, wait_s
    )
    return loan.BorrowerSaid(THERE, message)


def test_ask_is_granted_to_the_borrower_and_repeated_when_asked_again(desk: Desk) -> None:
    said = desk.start(desk.tell(ask_of(1)))

    (lend,) = said
    assert (lend.node_id, lend.ask_id, lend.worker_id) == (THERE, 1, b"w1")
    assert desk.tell(ask_of(1)) == [lend]
    assert desk.machine.available == amounts(CPU=1)


def test_ask_without_room_ends_at_once_and_disturbs_nobody(desk: Desk) -> None:
    desk.fill()
    desk.see(THIRD, {"CPU": 9}, CPU=9)

    ended = told(desk.tell(ask_of(1)))

    assert (ended.ask_id, ended.cause.kind) == (1, "busy")
    assert desk.machine.statistics().lent == 0


def test_ask_that_may_wait_is_granted_when_room_comes_or_ends_in_time(desk: Desk) -> None:
    grants = desk.fill()
    said = desk.tell(ask_of(1, wait_s=2.0)) + desk.tell(ask_of(2, wait_s=2.0))
    assert said == [do.TellOthersWait(DRIVER, grant.lease_id) for grant in grants]

    said = desk.tell(on.LeaseReturned(DRIVER, grants[0].lease_id), after_s=1.0)
    (lend,) = only(loan.Lend, said)
    assert lend.ask_id == 1
    said = desk.tell(on.TimePassed(), after_s=1.0)
    (ended,) = [c.message for c in only(loan.TellBorrower, said) if c.node_id == THERE][-1:]
    assert (ended.ask_id, ended.cause.kind) == (2, "busy")


def test_returned_loan_frees_its_worker_for_others(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))

    assert desk.tell(loan.BorrowerSaid(THERE, loans.Drop(1))) == []

    assert desk.machine.available == amounts(CPU=2)
    (grant,) = only(do.GrantLease, desk.request(5))
    assert grant.worker_id == b"w1"


def test_loan_whose_owner_ended_ends_its_worker(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))

    (end,) = desk.tell(loan.BorrowerSaid(THERE, loans.Drop(1, "owner_died", "gone")))

    assert (end.startup_id, end.kind) == (1, "owner_died")
    desk.tell(on.WorkerGone(1, b"w1"))
    assert desk.machine.available == amounts(CPU=2)


def test_drop_that_overtakes_its_ask_is_not_lent_to(desk: Desk) -> None:
    desk.tell(loan.BorrowerSaid(THERE, loans.Drop(1)))

    ended = told(desk.tell(ask_of(1)))

    assert ended.cause.kind == "unknown"
    assert desk.machine.available == amounts(CPU=2)


def test_killed_loan_is_reported_lost(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))

    (end,) = desk.tell(loan.BorrowerSaid(THERE, loans.Kill(1, "cancelled")))
    assert (end.kind, end.message) == ("killed_by_user", "cancelled")
    said = desk.tell(on.WorkerGone(1, b"w1"))

    assert said == [loan.ReportLoss(THERE, 1, b"w1")]


def test_worker_that_can_not_start_ends_the_ask(desk: Desk) -> None:
    desk.tell(ask_of(1))

    ended = told(desk.tell(on.WorkerStartFailed(1, "no room", False)))

    assert ended.cause == loans.Cause("worker_start_failed", "no room")


def test_borrower_that_dies_leaves_nothing(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))
    desk.tell(ask_of(2))

    said = desk.tell(loan.NodeGone(THERE, GONE))

    assert [end.startup_id for end in only(do.EndWorker, said)] == [1]
    desk.tell(on.WorkerGone(1, b"w1"))
    assert desk.machine.available == amounts(CPU=2)
    assert desk.tell(ask_of(3)) == [], "an order of a dead node is late"


def test_borrower_whose_line_stays_broken_loses_its_loans(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))
    desk.tell(loan.BorrowerLost(THERE))

    assert only(do.EndWorker, desk.tell(on.TimePassed(), after_s=LINE_GRACE_S - 1)) == []
    assert only(do.EndWorker, desk.tell(on.TimePassed(), after_s=1.0))


def test_sync_keeps_what_is_listed_ends_what_is_not_and_names_what_is_unknown(desk: Desk) -> None:
    (kept,) = desk.start(desk.tell(ask_of(1)))
    desk.start(desk.tell(ask_of(2)))
    desk.tell(loan.BorrowerLost(THERE))

    said = desk.tell(loan.BorrowerSaid(THERE, loans.Sync(4, (1, 3))))

    assert only(loan.Lend, said) == [kept]
    assert [end.startup_id for end in only(do.EndWorker, said)] == [2]
    (unknown,) = [command.message for command in only(loan.TellBorrower, said)]
    assert (unknown.ask_id, unknown.cause.kind) == (3, "unknown")
    assert only(do.EndWorker, desk.tell(on.TimePassed(), after_s=LINE_GRACE_S)) == []


def test_borrower_is_told_when_others_wait_and_later_asked_back(desk: Desk) -> None:
    desk.start(desk.tell(ask_of(1)))
    desk.start(desk.tell(ask_of(2)))

    said = only(loan.TellBorrower, desk.request(1))
    assert [command.message for command in said] == [
        loans.Reclaimed(1, when_idle=True),
        loans.Reclaimed(2, when_idle=True),
    ]
    said = desk.wake()
    while not said:
        said = desk.wake()
    assert not told(said).when_idle


def test_holder_is_told_that_others_wait_at_the_lender(desk: Desk) -> None:
    granted = desk.borrow()

    said = desk.tell(loan.LenderSaid(THERE, loans.Reclaimed(granted.ask_id, when_idle=True)))

    assert said == [do.TellOthersWait(DRIVER, b"lease")]


def test_node_that_stops_fails_no_ask_and_takes_none(desk: Desk) -> None:
    desk.tell(ask_of(1))

    said = desk.machine.close(desk.now_s)
    assert told(said).cause.kind == "busy"

    assert told(desk.tell(ask_of(2, wait_s=2.0))).cause.kind == "busy"
