"""The line on which one raylet borrows from another; stands for ``loan_lines`` of the product.

Opened at the first order, opened again whenever it breaks, until its node is dead. What is said
while it is closed is dropped: the machine says it again when it hears that the line is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.service.loan_lines import RETRY_FIRST_S, RETRY_MAX_S
from skate_sim.network import Pipe

if TYPE_CHECKING:
    from skate_sim.raylet import SimRaylet

OPEN_TIMEOUT_S = 10.0
_BROKEN = object()
_WELCOME = object()


class LenderLine:
    """Both ends of one line, in this direction of borrowing."""

    def __init__(self, borrower: SimRaylet, lender: SimRaylet) -> None:
        self.borrower = borrower
        self.lender = lender
        self.is_open = False
        self._is_closed = False
        self._number = 0  # of the connection
        self._lender_number = 0  # of the one that the lender knows
        self._orders: Pipe | None = None
        self._news: Pipe | None = None
        self._pause_s = RETRY_FIRST_S
        self._open()

    # ---- the borrower's end ----

    def say(self, message: loans.ToLender) -> None:
        """Send an order, if the line is open."""
        if self.is_open and self._orders is not None:
            self._orders.send(message)

    def close(self) -> None:
        """The lender is dead: the line is not opened again."""
        self._is_closed = True
        self.is_open = False
        for pipe in (self._orders, self._news):
            if pipe is not None:
                pipe.is_closed = True

    def _open(self) -> None:
        borrower, lender = self.borrower, self.lender
        if self._is_closed or not borrower.is_up:
            return
        network = borrower.world.network
        self._number += 1
        number = self._number
        orders = Pipe(
            network, borrower.host, lender.host, lambda batch: self._take_orders(number, batch)
        )
        news = Pipe(
            network, lender.host, borrower.host, lambda batch: self._take_news(number, batch)
        )

        def handle(reply: Any) -> None:
            if number != self._number or self._is_closed:
                return
            before = lender.borrowers.get(borrower.node_id)
            if before is not None and before is not self:
                before.snap()
            lender.borrowers[borrower.node_id] = self
            self._lender_number = number
            self._news = news
            news.send(_WELCOME)
            reply(True)

        def done(_: Any, problem: str) -> None:
            if problem and number == self._number and not self._is_closed and not self.is_open:
                self._lost()

        self._orders = orders
        network.call(borrower, lender, handle, done, OPEN_TIMEOUT_S)

    def _take_news(self, number: int, batch: list[Any]) -> None:
        for message in batch:
            if number != self._number or self._is_closed or not self.borrower.is_up:
                return
            if message is _WELCOME:
                self.is_open = True
                self._pause_s = RETRY_FIRST_S
                self.borrower.tell(loan.LenderConnected(self.lender.node_id))
                continue
            if message is _BROKEN:
                self._lost()
                return
            self.borrower.tell(loan.LenderSaid(self.lender.node_id, message))

    def _lost(self) -> None:
        self.is_open = False
        self._number += 1
        world = self.borrower.world
        self.borrower.tell(loan.LenderLost(self.lender.node_id))
        world.agenda.after(self._pause_s * world.network.random.uniform(0.5, 1.0), self._open)
        self._pause_s = min(RETRY_MAX_S, 2 * self._pause_s)

    # ---- the lender's end ----

    def answer(self, message: loans.ToBorrower) -> None:
        """Send news, if the line is open."""
        if self._news is not None:
            self._news.send(message)

    def _take_orders(self, number: int, batch: list[Any]) -> None:
        lender, borrower = self.lender, self.borrower
        for message in batch:
            if number != self._number:
                return
            if not lender.is_up or lender.borrowers.get(borrower.node_id) is not self:
                return
            if message is _BROKEN:
                del lender.borrowers[borrower.node_id]
                lender.tell(loan.BorrowerLost(borrower.node_id))
                return
            lender.tell(loan.BorrowerSaid(borrower.node_id, message))

    # ---- breaks ----

    def end_of(self, dead: SimRaylet) -> None:
        """One end's process ended; the other hears of it after what was said."""
        if dead is self.borrower:
            if self._orders is not None:
                self._orders.send(_BROKEN)
        elif self._news is not None and self.lender.borrowers.get(self.borrower.node_id) is self:
            self._news.send(_BROKEN)

    def snap(self) -> None:
        """The connection breaks while both ends live; each finds out by itself."""
        if not self.is_open:
            return
        borrower = self.borrower
        random, agenda = borrower.world.network.random, borrower.world.agenda
        number = self._number
        for pipe in (self._orders, self._news):
            if pipe is not None:
                pipe.is_closed = True
        agenda.after(random.uniform(0.0, 0.2), self._take_news, number, [_BROKEN])
        agenda.after(random.uniform(0.0, 0.2), self._lender_lost, number)

    def _lender_lost(self, number: int) -> None:
        lender, borrower = self.lender, self.borrower
        is_same = lender.borrowers.get(borrower.node_id) is self and self._lender_number == number
        if lender.is_up and is_same:
            del lender.borrowers[borrower.node_id]
            lender.tell(loan.BorrowerLost(borrower.node_id))
