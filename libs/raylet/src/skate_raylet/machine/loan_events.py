"""What a node's machine hears of other nodes, and what it wants said to them.

Borrowing and lending are two sides of one exchange (``loans``): a node borrows workers of others
for its own holders, and lends its own to theirs.
"""

from __future__ import annotations

import msgspec

from skate_raylet.machine.commands import DeviceIds
from skate_raylet.machine.loans import Cause, Granted, ToBorrower, ToLender
from skate_scheduler import NodeView

# ---- events ----


class NodeSeen(msgspec.Struct, frozen=True):
    """Another node is alive, and this is what it last reported."""

    view: NodeView


class NodeGone(msgspec.Struct, frozen=True):
    """The cluster holds another node for dead."""

    node_id: bytes
    cause: Cause


class LenderConnected(msgspec.Struct, frozen=True):
    """The line to a node that we ask is open (again). Answered by ``TellLender`` with ``Sync``."""

    node_id: bytes


class LenderLost(msgspec.Struct, frozen=True):
    """The line to a node that we ask broke, or can not be opened."""

    node_id: bytes


class LenderSaid(msgspec.Struct, frozen=True):
    """An answer of a node that we asked."""

    node_id: bytes
    message: ToBorrower


class BorrowerSaid(msgspec.Struct, frozen=True):
    """An order of a node that asks us; the first of a line is a ``Sync``."""

    node_id: bytes
    message: ToLender


class BorrowerLost(msgspec.Struct, frozen=True):
    """The line from a node that asks us broke."""

    node_id: bytes


class BorrowedKilled(msgspec.Struct, frozen=True):
    """A holder wants the worker of a lease that is not this node's killed."""

    holder_id: bytes
    lease_id: bytes
    message: str


# ---- commands ----


class TellLender(msgspec.Struct, frozen=True):
    """Say this to a node that we ask, opening the line if there is none.

    What can not be said is dropped; ``LenderLost`` follows then.
    """

    node_id: bytes
    message: ToLender


class HangUp(msgspec.Struct, frozen=True):
    """The node is dead: its lines are closed and not opened again."""

    node_id: bytes


class Lend(msgspec.Struct, frozen=True):
    """Tell the borrower which worker its holder has. The shell knows the worker's endpoint."""

    node_id: bytes
    ask_id: int
    lease_id: bytes
    worker_id: bytes
    device_ids: DeviceIds = msgspec.field(default_factory=dict)


class TellBorrower(msgspec.Struct, frozen=True):
    """Say this to a node that asks us; dropped when its line is broken."""

    node_id: bytes
    message: ToBorrower


class ReportLoss(msgspec.Struct, frozen=True):
    """Tell the borrower that the worker of its lease died. The shell knows the cause."""

    node_id: bytes
    ask_id: int
    worker_id: bytes


class GrantBorrowed(msgspec.Struct, frozen=True):
    """Tell the holder which worker of another node is its own."""

    holder_id: bytes
    request_id: int
    node_id: bytes
    granted: Granted


class LoseBorrowed(msgspec.Struct, frozen=True):
    """Tell the holder that its worker at another node is lost, and why."""

    holder_id: bytes
    lease_id: bytes
    cause: Cause


LoanEvent = (
    NodeSeen
    | NodeGone
    | LenderConnected
    | LenderLost
    | LenderSaid
    | BorrowerSaid
    | BorrowerLost
    | BorrowedKilled
)
LoanCommand = TellLender | HangUp | Lend | TellBorrower | ReportLoss | GrantBorrowed | LoseBorrowed
