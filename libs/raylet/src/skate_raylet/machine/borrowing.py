"""What this node asks of others for its own holders, and the leases that came of it.

::

    request --> Ask sent --Granted--> lease of the holder --returned, holder gone--> Drop sent
                   |                         |
             Ended "busy", line         Ended, node dead, line
             broken: back here          broken for too long: lost

An ask that is not answered has cost nothing: no task went there, so the request returns to this
node's queue at its old place. A lease whose line broke is kept for ``LINE_GRACE_S``, because a
connection may break while both nodes live; the lender ends it after the same time.
"""

from __future__ import annotations

from typing import Final, assert_never

import msgspec
from msgspec.structs import replace

from skate_raylet.machine import commands as do
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.events import LeaseRequested
from skate_raylet.machine.group_directory import GroupDirectory
from skate_raylet.machine.neighbours import SHUN_S, UNREACHABLE_S, Neighbours
from skate_scheduler import ResourceSet

LINE_GRACE_S: Final = 10.0  # as long as a silent node is not held for dead
ANSWER_S: Final = 30.0  # beyond ``wait_s``: a worker may have to start, on a busy machine

_Back = list[LeaseRequested]
_Commands = list[do.NodeCommand | loan.LoanCommand]


class _Borrowed(msgspec.Struct):
    """One ask, and the lease that it became once ``lease_id`` is set."""

    ask_id: int
    node_id: bytes
    request: LeaseRequested  # its ``since_s`` is set
    due_s: float  # an answer is waited for until then
    lease_id: bytes = b""


class Borrowing:
    """Every ask that is not over. Messages may be lost, repeated, or overtake each other."""

    def __init__(self, neighbours: Neighbours, groups: GroupDirectory) -> None:
        self._neighbours = neighbours
        self._groups = groups
        self._asks: dict[int, _Borrowed] = {}
        self._unanswered: dict[int, None] = {}
        self._by_request: dict[tuple[bytes, int], int] = {}
        self._by_lease: dict[bytes, int] = {}
        self._by_holder: dict[bytes, dict[int, None]] = {}
        self._by_node: dict[bytes, dict[int, None]] = {}
        self._broken_since_s: dict[bytes, float] = {}  # lines to nodes that still have leases of us
        self._next_ask = 1

    def __len__(self) -> int:
        return len(self._asks)

    def is_holder(self, worker_id: bytes) -> bool:
        """Whether this process waits for or has a worker of another node."""
        return worker_id in self._by_holder

    def knows(self, holder_id: bytes, request_id: int) -> bool:
        """Whether this request is or was served elsewhere, and is not over."""
        return (holder_id, request_id) in self._by_request

    def unanswered(self) -> list[tuple[bytes, LeaseRequested]]:
        """The nodes that were asked and have not answered, each with the request."""
        asks = [self._asks[ask_id] for ask_id in self._unanswered]
        return [(borrowed.node_id, borrowed.request) for borrowed in asks]

    def count(self) -> tuple[int, int]:
        """Asks without an answer; leases."""
        return len(self._unanswered), len(self._by_lease)

    def ask(
        self, node_id: bytes, request: LeaseRequested, wait_s: float, now_s: float
    ) -> loan.TellLender:
        """Ask a live node for a worker. ``request.since_s`` is set."""
        assert request.since_s is not None
        ask_id = self._next_ask
        self._next_ask += 1
        self._asks[ask_id] = _Borrowed(ask_id, node_id, request, now_s + wait_s + ANSWER_S)
        self._unanswered[ask_id] = None
        self._by_request[request.holder_id, request.request_id] = ask_id
        self._by_holder.setdefault(request.holder_id, {})[ask_id] = None
        self._by_node.setdefault(node_id, {})[ask_id] = None
        # What is free there does not count what is free in a bundle.
        needs = ResourceSet() if request.strategy.group_id else request.resources
        self._neighbours.claim(node_id, ask_id, needs)
        return self._say_ask(self._asks[ask_id], now_s)

    def _say_ask(self, borrowed: _Borrowed, now_s: float) -> loan.TellLender:
        request = borrowed.request
        since_s = now_s if request.since_s is None else request.since_s
        message = loans.Ask(
            borrowed.ask_id,
            request.holder_id,
            request.job_id,
            request.resources,
            request.env_vars,
            request.backlog,
            max(0.0, now_s - since_s),
            max(0.0, borrowed.due_s - ANSWER_S - now_s),
            request.strategy.group_id,
            request.strategy.bundle_index,
        )
        return loan.TellLender(borrowed.node_id, message)

    # ---- what holders say ----

    def cancel(self, holder_id: bytes, request_id: int) -> _Commands:
        """A holder no longer wants a request; a lease that it became is returned by the holder."""
        borrowed = self._asks.get(self._by_request.get((holder_id, request_id), 0))
        if borrowed is None or borrowed.lease_id:
            return []
        return [self._drop(borrowed)]

    def set_backlog(self, holder_id: bytes, request_id: int, backlog: int) -> None:
        """What is behind a request now."""
        borrowed = self._asks.get(self._by_request.get((holder_id, request_id), 0))
        if borrowed is not None:
            borrowed.request = replace(borrowed.request, backlog=backlog)

    def give_back(self, holder_id: bytes, lease_id: bytes, discard: bool) -> _Commands:
        """A holder returns its lease."""
        borrowed = self._asks.get(self._by_lease.get(lease_id, 0))
        if borrowed is None or borrowed.request.holder_id != holder_id:
            return []
        return [self._drop(borrowed, discard=discard)]

    def kill(self, holder_id: bytes, lease_id: bytes, message: str) -> _Commands:
        """A holder wants its worker killed."""
        borrowed = self._asks.get(self._by_lease.get(lease_id, 0))
        if borrowed is None or borrowed.request.holder_id != holder_id:
            return []
        return [loan.TellLender(borrowed.node_id, loans.Kill(borrowed.ask_id, message))]

    def lose_holder(self, holder_id: bytes, kind: str, message: str) -> _Commands:
        """A holder ended: its workers elsewhere are ended too."""
        asks = [self._asks[ask_id] for ask_id in self._by_holder.get(holder_id, ())]
        return [self._drop(borrowed, kind, message) for borrowed in asks]

    # ---- what lenders say ----

    def heard(
        self, node_id: bytes, message: loans.ToBorrower, now_s: float
    ) -> tuple[_Commands, _Back]:
        """An answer; returns what follows, and the request that is to be placed anew."""
        borrowed = self._asks.get(message.ask_id)
        if borrowed is None or borrowed.node_id != node_id:
            if isinstance(message, loans.Granted):
                # It was dropped while this was on its way, or the drop was lost.
                return [loan.TellLender(node_id, loans.Drop(message.ask_id))], []
            return [], []
        match message:
            case loans.Granted():
                return self._granted(borrowed, message), []
            case loans.Ended():
                return self._ended(borrowed, message, now_s)
            case loans.Reclaimed():
                if not borrowed.lease_id:
                    return [], []
                holder_id = borrowed.request.holder_id
                if message.when_idle:
                    return [do.TellOthersWait(holder_id, borrowed.lease_id)], []
                return [do.AskLeaseBack(holder_id, borrowed.lease_id)], []
            case _:
                assert_never(message)

    def connected(self, node_id: bytes, now_s: float) -> _Commands:
        """The line is open: say what was asked meanwhile, and then which asks are not over."""
        self._broken_since_s.pop(node_id, None)
        live = tuple(self._by_node.get(node_id, ()))
        commands: _Commands = [
            self._say_ask(self._asks[ask_id], now_s)
            for ask_id in live
            if ask_id in self._unanswered
        ]
        return [*commands, loan.TellLender(node_id, loans.Sync(self._next_ask, live))]

    def disconnected(self, node_id: bytes, now_s: float) -> _Back:
        """The line broke. Returns the requests that were not answered."""
        self._neighbours.shun(node_id, now_s, UNREACHABLE_S)
        back: _Back = []
        for ask_id in list(self._by_node.get(node_id, ())):
            borrowed = self._asks[ask_id]
            if not borrowed.lease_id:
                self._remove(borrowed)
                back.append(borrowed.request)
        if node_id in self._by_node:
            self._broken_since_s.setdefault(node_id, now_s)
        return back

    def lose_node(self, node_id: bytes, cause: loans.Cause) -> tuple[_Commands, _Back]:
        """The node is dead, or as good as dead to us."""
        commands: _Commands = []
        back: _Back = []
        for ask_id in list(self._by_node.get(node_id, ())):
            borrowed = self._asks[ask_id]
            self._remove(borrowed)
            if borrowed.lease_id:
                holder_id = borrowed.request.holder_id
                commands.append(loan.LoseBorrowed(holder_id, borrowed.lease_id, cause))
            else:
                back.append(borrowed.request)
        self._broken_since_s.pop(node_id, None)
        return commands, back

    def tick(self, now_s: float) -> tuple[_Commands, _Back]:
        """Give up on lines that stay broken, and on answers that do not come."""
        commands: _Commands = []
        back: _Back = []
        for node_id, since_s in list(self._broken_since_s.items()):
            if now_s >= since_s + LINE_GRACE_S:
                message = f"Node {node_id.hex()} could not be reached for {LINE_GRACE_S:g} s."
                lost = self.lose_node(node_id, loans.Cause("node_died", message))
                commands += lost[0]
                back += lost[1]
        for borrowed in self._overdue(now_s):
            self._neighbours.shun(borrowed.node_id, now_s, LINE_GRACE_S)
            commands.append(self._drop(borrowed))
            back.append(borrowed.request)
        return commands, back

    def next_wakeup(self) -> tuple[float, str] | None:
        """When :meth:`tick` is due. O(asks without an answer)."""
        times = [
            (since_s + LINE_GRACE_S, "a node can not be reached")
            for since_s in self._broken_since_s.values()
        ]
        times += [
            (self._asks[ask_id].due_s, "a node does not answer") for ask_id in self._unanswered
        ]
        return min(times, default=None)

    def _overdue(self, now_s: float) -> list[_Borrowed]:
        late = [self._asks[ask_id] for ask_id in self._unanswered]
        return [borrowed for borrowed in late if now_s >= borrowed.due_s]

    def _granted(self, borrowed: _Borrowed, message: loans.Granted) -> _Commands:
        if borrowed.lease_id:
            return []  # said twice
        del self._unanswered[borrowed.ask_id]
        borrowed.lease_id = message.lease_id
        self._by_lease[message.lease_id] = borrowed.ask_id
        self._neighbours.settle(borrowed.node_id, borrowed.ask_id)
        request = borrowed.request
        return [
            loan.GrantBorrowed(request.holder_id, request.request_id, borrowed.node_id, message)
        ]

    def _ended(
        self, borrowed: _Borrowed, message: loans.Ended, now_s: float
    ) -> tuple[_Commands, _Back]:
        self._remove(borrowed)
        request, cause = borrowed.request, message.cause
        if borrowed.lease_id:
            if cause.kind == "unknown":
                cause = replace(cause, kind="node_died")
            return [loan.LoseBorrowed(request.holder_id, borrowed.lease_id, cause)], []
        if cause.kind in ("worker_start_failed", "invalid", "placement_group_removed"):
            refusal = do.RefuseLease(
                request.holder_id, request.request_id, cause.kind, cause.message
            )
            return [refusal], []
        if request.strategy.group_id:
            self._groups.shun(request.strategy.group_id, borrowed.node_id, now_s + SHUN_S)
        else:
            self._neighbours.shun(borrowed.node_id, now_s, SHUN_S)
        return [], [request]

    def _drop(
        self, borrowed: _Borrowed, kind: str = "", message: str = "", *, discard: bool = False
    ) -> loan.TellLender:
        self._remove(borrowed)
        drop = loans.Drop(borrowed.ask_id, kind, message, discard)
        return loan.TellLender(borrowed.node_id, drop)

    def _remove(self, borrowed: _Borrowed) -> None:
        ask_id, request = borrowed.ask_id, borrowed.request
        del self._asks[ask_id]
        self._unanswered.pop(ask_id, None)
        del self._by_request[request.holder_id, request.request_id]
        if borrowed.lease_id:
            del self._by_lease[borrowed.lease_id]
        self._neighbours.settle(borrowed.node_id, ask_id)
        for index, key in ((self._by_holder, request.holder_id), (self._by_node, borrowed.node_id)):
            del index[key][ask_id]
            if not index[key]:
                del index[key]
        if borrowed.node_id not in self._by_node:
            self._broken_since_s.pop(borrowed.node_id, None)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the indexes disagree. O(asks). For tests."""
        for index in (self._by_holder, self._by_node):
            assert sorted(ask_id for asks in index.values() for ask_id in asks) == sorted(
                self._asks
            )
            assert all(index.values())
        assert sorted(self._by_request.values()) == sorted(self._asks)
        for borrowed in self._asks.values():
            assert borrowed.ask_id < self._next_ask
            assert self._by_lease.get(borrowed.lease_id, 0) == (
                borrowed.ask_id if borrowed.lease_id else 0
            )
            assert (borrowed.ask_id in self._unanswered) is not bool(borrowed.lease_id)
            assert borrowed.ask_id in self._by_node[borrowed.node_id]
            assert not self._neighbours.is_dead(borrowed.node_id), "asked of a dead node"
        assert len(self._by_lease) == sum(bool(one.lease_id) for one in self._asks.values())
        assert set(self._unanswered) <= set(self._asks)
        assert set(self._broken_since_s) <= set(self._by_node)
