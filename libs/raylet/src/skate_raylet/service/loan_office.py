"""This node's dealings with other nodes: knows where they are, and carries out loan commands.

What comes before: the GCS's news of nodes, and the node's machine. What comes after: ``loan_lines``
to the other nodes, and this node's holders.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, assert_never

from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.service.convert import death_from_proto
from skate_raylet.service.loan_convert import cause_of, death_of
from skate_raylet.service.loan_lines import BorrowerLines, LenderLine
from skate_raylet.service.local_process import LocalProcesses
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2
from skate_scheduler import NodeView, ResourceSet


class LoanOffice:
    """Runs on the event loop's thread alone."""

    def __init__(
        self,
        node_id: bytes,
        token: str,
        *,
        tell: Callable[[loan.LoanEvent], None],
        send: Callable[[bytes, Any], None],
        processes: LocalProcesses,
        deaths: Mapping[bytes, node.Death],
    ) -> None:
        """``send`` reaches this node's processes; ``deaths`` are those being handled now."""
        self._node_id = node_id
        self._token = token
        self._tell = tell
        self._send = send
        self._processes = processes
        self._deaths = deaths
        self._endpoints: dict[bytes, str] = {}
        self._lenders: dict[bytes, LenderLine] = {}
        self._borrowers = BorrowerLines(node_id, tell)
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def take_news(self, info: gcs_pb2.NodeInfo) -> None:
        """A row of the node table, of a node that is not this one."""
        if info.state == gcs_pb2.NodeInfo.STATE_DEAD:
            self._endpoints.pop(info.node_id, None)
            cause = cause_of(death_from_proto(info.death_cause))
            self._tell(loan.NodeGone(info.node_id, cause))
            return
        self._endpoints[info.node_id] = info.raylet_endpoint
        view = NodeView(
            info.node_id,
            ResourceSet(info.total.amounts),
            ResourceSet(info.available.amounts),
            dict(info.labels),
            is_draining=info.HasField("drain"),
        )
        self._tell(loan.NodeSeen(view))

    def serve(
        self, orders: AsyncIterator[raylet_pb2.LoanOrders]
    ) -> AsyncGenerator[raylet_pb2.LoanNews, None]:
        """One borrower's line."""
        return self._borrowers.serve(orders)

    def perform(self, command: loan.LoanCommand) -> None:
        """Carry a command of the machine out."""
        match command:
            case loan.TellLender(node_id, message):
                self._tell_lender(node_id, message)
            case loan.HangUp(node_id):
                self._borrowers.hang_up(node_id)
                line = self._lenders.pop(node_id, None)
                if line is not None:
                    task = asyncio.create_task(line.close())
                    self._closing.add(task)
                    task.add_done_callback(self._closing.discard)
            case loan.Lend():
                self._lend(command)
            case loan.TellBorrower(node_id, message):
                self._borrowers.say(node_id, message)
            case loan.ReportLoss(node_id, ask_id, worker_id):
                cause = cause_of(self._deaths[worker_id])
                self._borrowers.say(node_id, loans.Ended(ask_id, cause))
            case loan.GrantBorrowed():
                self._grant(command)
            case loan.LoseBorrowed(holder_id, lease_id, cause):
                self._send(holder_id, node.LeaseLost(lease_id, death_of(cause)))
            case _:
                assert_never(command)

    async def close(self) -> None:
        """Hang up on everybody."""
        self._is_closed = True
        self._borrowers.close()
        lines = [line.close() for line in self._lenders.values()]
        self._lenders.clear()
        await asyncio.gather(*lines, *self._closing, return_exceptions=True)

    def _tell_lender(self, node_id: bytes, message: loans.ToLender) -> None:
        line = self._lenders.get(node_id)
        if line is not None:
            line.say(message)
            return
        endpoint = self._endpoints.get(node_id)
        if endpoint is not None and not self._is_closed:
            # The machine is told when the line is open, and says it again.
            self._lenders[node_id] = LenderLine(
                self._node_id, node_id, endpoint, self._token, self._tell
            )

    def _grant(self, command: loan.GrantBorrowed) -> None:
        granted = command.granted
        message = node.LeaseGranted(
            command.request_id,
            granted.lease_id,
            granted.worker_id,
            command.node_id,
            granted.endpoint,
            granted.pid,
            {name: list(parts) for name, parts in granted.device_ids.items()},
        )
        self._send(command.holder_id, message)

    def _lend(self, command: loan.Lend) -> None:
        worker = self._processes.get(command.worker_id)
        granted = loans.Granted(
            command.ask_id,
            command.lease_id,
            command.worker_id,
            worker.endpoint if worker is not None else "",
            worker.pid if worker is not None else 0,
            command.device_ids,
        )
        self._borrowers.say(command.node_id, granted)
