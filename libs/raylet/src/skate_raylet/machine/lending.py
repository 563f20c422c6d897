"""What other nodes ask of this one for their holders: workers of ours, as long as they are wanted.

To the leases such a request is like any other, under its holder's name and with the ask's number as
the request's, but it is never passed on to a third node, and it does not wait long: the borrower
has other choices. A loan ends with the borrower: when that node dies, when its line stays broken
for ``LINE_GRACE_S``, or when it no longer lists the ask.
"""

from __future__ import annotations

from typing import Final, assert_never

import msgspec

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.lease_machine import LeaseMachine
from skate_raylet.machine.lease_table import Granted, Lease, TaskRequest

LINE_GRACE_S: Final = 10.0  # as long as the borrower keeps a lease whose line broke
WAIT_MAX_S: Final = 10.0

_Commands = list[do.NodeCommand | loan.LoanCommand]
_Events = list[on.NodeEvent]


class _Loan(msgspec.Struct):
    """One ask of one borrower."""

    holder_id: bytes
    due_s: float  # without resources by then it is ended
    lease_id: bytes = b""  # once it was said to be granted


class LoanOver(msgspec.Struct, frozen=True):
    """A loan that is to end, by :meth:`Lending.finish`. ``kind`` not empty: its worker too."""

    node_id: bytes
    ask_id: int
    kind: str = ""
    message: str = ""
    discard: bool = False


class _Borrower(msgspec.Struct):
    """``floor``: asks below it that are not in ``loans`` are over."""

    loans: dict[int, _Loan] = msgspec.field(default_factory=dict)
    floor: int = 0
    broken_since_s: float | None = None


class Lending:
    """The loans of one node. ``leases`` is asked, never told: what to tell it is returned.

    Loans that are to end are ended one by one, each when the leases have done with the last: what
    one gives back may be granted to the next, which is then no request any more but a lease.
    """

    def __init__(self, leases: LeaseMachine) -> None:
        self._leases = leases
        self.is_closing = False  # the node stops: no ask is granted, and none is failed
        self._borrowers: dict[bytes, _Borrower] = {}
        self._by_request: dict[tuple[bytes, int], bytes] = {}  # holder, ask -> borrower
        self._by_lease: dict[bytes, tuple[bytes, int]] = {}
        self._waiting: dict[tuple[bytes, int], None] = {}  # borrower, ask: no resources yet

    def __bool__(self) -> bool:
        return bool(self._borrowers)

    def count(self) -> int:
        """Asks and leases of other nodes."""
        return len(self._by_request)

    def heard(
        self, node_id: bytes, message: loans.ToLender, now_s: float
    ) -> tuple[list[LoanOver], _Events, _Commands]:
        """An order; returns what ends, what the leases are to be told, and what is answered."""
        borrower = self._borrowers.setdefault(node_id, _Borrower())
        match message:
            case loans.Sync():
                over, answers = self._sync(node_id, borrower, message)
                return over, [], answers
            case loans.Ask():
                return [], *self._ask(node_id, borrower, message, now_s)
            case loans.Drop(ask_id, kind, text, discard):
                borrower.floor = max(borrower.floor, ask_id + 1)
                return [LoanOver(node_id, ask_id, kind, text, discard)], [], []
            case loans.Kill(ask_id, text):
                lease = self._lease(borrower, ask_id)
                if lease is None or not isinstance(lease.state, Granted):
                    return [], [], []
                return [], [on.WorkerUnfit(lease.state.startup_id, "killed_by_user", text)], []
            case _:
                assert_never(message)

    def disconnected(self, node_id: bytes, now_s: float) -> None:
        """The borrower's line broke."""
        borrower = self._borrowers.get(node_id)
        if borrower is not None and borrower.broken_since_s is None:
            borrower.broken_since_s = now_s

    def lose_node(self, node_id: bytes, message: str) -> list[LoanOver]:
        """The borrower is dead, or as good as dead: its loans are over."""
        borrower = self._borrowers.get(node_id)
        asks = [] if borrower is None else list(borrower.loans)
        return [LoanOver(node_id, ask_id, "owner_died", message) for ask_id in asks]

    def forget_node(self, node_id: bytes) -> None:
        """The borrower will not come back under this id, and its loans have ended."""
        self._borrowers.pop(node_id, None)

    def tick(self, now_s: float) -> list[LoanOver]:
        """The loans of borrowers whose line stays broken are over."""
        over: list[LoanOver] = []
        for node_id, borrower in list(self._borrowers.items()):
            since_s = borrower.broken_since_s
            if since_s is not None and now_s >= since_s + LINE_GRACE_S:
                borrower.broken_since_s = None
                text = f"its owner's node {node_id.hex()} was not heard of for {LINE_GRACE_S:g} s"
                over += self.lose_node(node_id, f"Given up: {text}.")
        return over

    def first_late(self, now_s: float) -> LoanOver | None:
        """An ask that has no resources and has waited as long as it may."""
        for node_id, ask_id in list(self._waiting):
            one = self._borrowers[node_id].loans[ask_id]
            if not self._leases.is_waiting(TaskRequest(one.holder_id, ask_id)):
                del self._waiting[node_id, ask_id]
            elif now_s >= one.due_s:
                return LoanOver(node_id, ask_id)
        return None

    def finish(self, over: LoanOver) -> _Events:
        """End a loan; returns what the leases are to be told. Nothing when it has ended."""
        borrower = self._borrowers.get(over.node_id)
        one = None if borrower is None else borrower.loans.get(over.ask_id)
        if one is None:
            return []
        self._forget(over.node_id, over.ask_id)
        if over.kind:
            return [on.LeaseRevoked(one.holder_id, over.ask_id, over.kind, over.message)]
        events: _Events = [on.LeaseRequestCancelled(one.holder_id, over.ask_id)]
        if one.lease_id:
            events.append(on.LeaseReturned(one.holder_id, one.lease_id, over.discard))
        return events

    def refuse(self, over: LoanOver) -> loan.TellBorrower:
        """The answer to an ask that ended because nothing is free."""
        return _answer(over.node_id, over.ask_id, loans.Cause("busy", "Nothing is free here."))

    def next_wakeup(self) -> tuple[float, str] | None:
        """When :meth:`tick` is due. O(borrowers + waiting asks)."""
        times = [
            (borrower.broken_since_s + LINE_GRACE_S, "a borrower is not heard of")
            for borrower in self._borrowers.values()
            if borrower.broken_since_s is not None
        ]
        for node_id, ask_id in self._waiting:
            times.append((self._borrowers[node_id].loans[ask_id].due_s, "an ask waited too long"))
        return min(times, default=None)

    def route(self, command: do.NodeCommand) -> do.NodeCommand | loan.LoanCommand:
        """What the leases say to a holder of another node goes to that node."""
        match command:
            case do.GrantLease(holder_id, request_id, lease_id, _, worker_id, device_ids):
                node_id = self._by_request.get((holder_id, request_id))
                if node_id is not None:
                    self._borrowers[node_id].loans[request_id].lease_id = lease_id
                    self._by_lease[lease_id] = (node_id, request_id)
                    return loan.Lend(node_id, request_id, lease_id, worker_id, device_ids)
            case do.RefuseLease(holder_id, request_id, kind, message):
                node_id = self._by_request.get((holder_id, request_id))
                if node_id is not None:
                    self._forget(node_id, request_id)
                    is_elsewhere = kind == "unschedulable" or self.is_closing
                    cause = loans.Cause("busy" if is_elsewhere else kind, message)
                    return _answer(node_id, request_id, cause)
            case do.LoseLease(_, lease_id, worker_id):
                place = self._by_lease.get(lease_id)
                if place is not None:
                    self._forget(*place)
                    return loan.ReportLoss(*place, worker_id)
            case do.AskLeaseBack(_, lease_id) | do.TellOthersWait(_, lease_id):
                place = self._by_lease.get(lease_id)
                if place is not None:
                    when_idle = isinstance(command, do.TellOthersWait)
                    return loan.TellBorrower(place[0], loans.Reclaimed(place[1], when_idle))
            case _:
                pass
        return command

    def _ask(
        self, node_id: bytes, borrower: _Borrower, ask: loans.Ask, now_s: float
    ) -> tuple[_Events, _Commands]:
        if ask.ask_id in borrower.loans:
            return [], self._repeat(node_id, borrower, ask.ask_id)
        if ask.ask_id < borrower.floor:
            return [], [_answer(node_id, ask.ask_id, _UNKNOWN)]
        is_hurried = ask.wait_s <= 0
        if self.is_closing or (is_hurried and not self._has_room(ask)):
            # Not even for a moment is it one of those that wait: others would make room for it.
            borrower.floor = max(borrower.floor, ask.ask_id + 1)
            return [], [self.refuse(LoanOver(node_id, ask.ask_id))]
        due_s = now_s + min(ask.wait_s, WAIT_MAX_S)
        borrower.loans[ask.ask_id] = _Loan(ask.holder_id, due_s)
        self._by_request[ask.holder_id, ask.ask_id] = node_id
        self._waiting[node_id, ask.ask_id] = None
        request = on.LeaseRequested(
            ask.holder_id,
            ask.ask_id,
            ask.job_id,
            ask.resources,
            ask.env_vars,
            ask.backlog,
            on.Strategy(group_id=ask.group_id, bundle_index=ask.bundle_index)
            if ask.group_id
            else on.DEFAULT_STRATEGY,
            since_s=now_s - ask.waited_s,
            is_foreign=True,
        )
        return [request], []

    def _has_room(self, ask: loans.Ask) -> bool:
        if ask.group_id:
            bundles = self._leases.table.bundles
            return bundles.with_room(ask.group_id, ask.bundle_index, ask.resources) is not None
        return self._leases.supply().fits(ask.resources)

    def _sync(
        self, node_id: bytes, borrower: _Borrower, sync: loans.Sync
    ) -> tuple[list[LoanOver], _Commands]:
        borrower.broken_since_s = None
        borrower.floor = max(borrower.floor, sync.next_ask_id)
        live = dict.fromkeys(sync.live)
        text = "Its owner's node no longer knows the lease."
        over = [
            LoanOver(node_id, ask_id, "owner_died", text)
            for ask_id in borrower.loans
            if ask_id < sync.next_ask_id and ask_id not in live
        ]
        commands: _Commands = []
        for ask_id in live:
            if ask_id in borrower.loans:
                commands += self._repeat(node_id, borrower, ask_id)
            else:
                commands.append(_answer(node_id, ask_id, _UNKNOWN))
        return over, commands

    def _repeat(self, node_id: bytes, borrower: _Borrower, ask_id: int) -> _Commands:
        """Say again what was said of an ask."""
        lease = self._lease(borrower, ask_id)
        if lease is None or not isinstance(lease.state, Granted):
            return []
        state = lease.state
        commands: _Commands = [
            loan.Lend(node_id, ask_id, lease.lease_id, state.worker_id, lease.device_ids)
        ]
        if state.is_asked_back:
            commands.append(loan.TellBorrower(node_id, loans.Reclaimed(ask_id)))
        return commands

    def _lease(self, borrower: _Borrower, ask_id: int) -> Lease | None:
        one = borrower.loans.get(ask_id)
        return None if one is None else self._leases.table.get(one.lease_id)

    def _forget(self, node_id: bytes, ask_id: int) -> None:
        borrower = self._borrowers[node_id]
        one = borrower.loans.pop(ask_id)
        del self._by_request[one.holder_id, ask_id]
        self._waiting.pop((node_id, ask_id), None)
        self._by_lease.pop(one.lease_id, None)
        borrower.floor = max(borrower.floor, ask_id + 1)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the books disagree with the leases. O(loans). For tests."""
        count = 0
        for node_id, borrower in self._borrowers.items():
            for ask_id, one in borrower.loans.items():
                count += 1
                request = TaskRequest(one.holder_id, ask_id)
                assert self._by_request[one.holder_id, ask_id] == node_id
                is_there = self._leases.table.of_request(request) is not None
                assert is_there or self._leases.is_waiting(request), "a loan without a lease"
                assert not one.lease_id or self._by_lease[one.lease_id] == (node_id, ask_id)
        assert count == len(self._by_request)
        assert len(self._by_lease) <= count
        for node_id, ask_id in self._waiting:
            assert ask_id in self._borrowers[node_id].loans


def _answer(node_id: bytes, ask_id: int, cause: loans.Cause) -> loan.TellBorrower:
    return loan.TellBorrower(node_id, loans.Ended(ask_id, cause))


_UNKNOWN: Final = loans.Cause("unknown", "The node does not know the lease; its line broke.")
