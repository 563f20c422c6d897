"""The lines on which raylets lend each other workers: one stream a pair and direction.

::

    borrower                                    lender
    LenderLine  --- LoanHello, orders --->  BorrowerLine
                <------- welcome, news ---

A borrower opens its line at the first ask and keeps it, opening it again whenever it breaks, until
the node is dead. What is said while it is closed is dropped: the machine says it again when it is
told that the line is open. What comes before: the node's machine. What comes after: the other
node's machine.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.service.loan_convert import (
    news_from_proto,
    news_to_proto,
    order_from_proto,
    order_to_proto,
)
from skate_raylet.service.outbox import Outbox
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import raylet_pb2
from skate_rpc.grpc_channel import open_channel
from skate_rpc.raylet_client import RayletClient

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0

Tell = Callable[[loan.LoanEvent], None]


class LenderLine:
    """This node's line to a node that it asks."""

    def __init__(
        self, own_id: bytes, node_id: bytes, endpoint: str, token: str, tell: Tell
    ) -> None:
        self._own_id = own_id
        self._node_id = node_id
        self._endpoint = endpoint
        self._token = token
        self._tell = tell
        self._outbox: Outbox[raylet_pb2.LoanOrder] | None = None
        self._is_open = False
        self._task = asyncio.create_task(self._keep_open())

    def say(self, message: loans.ToLender) -> None:
        """Send an order, if the line is open."""
        if self._is_open and self._outbox is not None:
            self._outbox.put(order_to_proto(message))

    async def close(self) -> None:
        """End the line; nothing more is told."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_open(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            channel = open_channel(self._endpoint, self._token)
            try:
                await self._talk(RayletClient(channel, self._endpoint))
                reason = "too much was unsent"
            except RpcError as error:
                reason = str(error)
            finally:
                was_open, self._is_open = self._is_open, False
                await channel.close()
            _log.warning("event=lender_lost node_id=%s reason=%r", self._node_id.hex(), reason)
            self._tell(loan.LenderLost(self._node_id))
            if was_open:
                pause_s = RETRY_FIRST_S
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    async def _talk(self, client: RayletClient) -> None:
        outbox = self._outbox = Outbox[raylet_pb2.LoanOrder]()
        hello = raylet_pb2.LoanHello(borrower_id=self._own_id, lender_id=self._node_id)
        outbox.put(raylet_pb2.LoanOrder(hello=hello))
        try:
            async with aclosing(client.borrow(_orders(outbox))) as news:
                async for batch in news:
                    if outbox.is_closed:
                        return
                    if not self._is_open:
                        self._is_open = True
                        self._tell(loan.LenderConnected(self._node_id))
                    for item in batch.items:
                        message = news_from_proto(item)
                        if message is not None:
                            self._tell(loan.LenderSaid(self._node_id, message))
        finally:
            # gRPC's task that takes the orders would wait for one for ever: of a call that the
            # other side ended it is not told.
            outbox.close()


async def _orders(
    outbox: Outbox[raylet_pb2.LoanOrder],
) -> AsyncIterator[raylet_pb2.LoanOrders]:
    async for batch in outbox.batches():
        yield raylet_pb2.LoanOrders(orders=batch)


class BorrowerLines:
    """The lines of the nodes that ask this one; a new line of a node replaces its old one."""

    def __init__(self, own_id: bytes, tell: Tell) -> None:
        self._own_id = own_id
        self._tell = tell
        self._lines: dict[bytes, Outbox[raylet_pb2.LoanNewsItem]] = {}

    def say(self, node_id: bytes, message: loans.ToBorrower) -> None:
        """Send news, if the line is open."""
        line = self._lines.get(node_id)
        if line is not None:
            line.put(news_to_proto(message, self._own_id))

    def hang_up(self, node_id: bytes) -> None:
        """The node is dead."""
        line = self._lines.pop(node_id, None)
        if line is not None:
            line.close()

    def close(self) -> None:
        """End all lines."""
        for node_id in list(self._lines):
            self.hang_up(node_id)

    async def serve(
        self, orders: AsyncIterator[raylet_pb2.LoanOrders]
    ) -> AsyncGenerator[raylet_pb2.LoanNews, None]:
        """One line, from its first order to its end. Ends at once when it is not meant for us."""
        first = await anext(orders, None)
        hello = first.orders[0].hello if first is not None and first.orders else None
        if first is None or hello is None or hello.lender_id != self._own_id:
            return
        node_id = hello.borrower_id
        self.hang_up(node_id)
        outbox = self._lines[node_id] = Outbox[raylet_pb2.LoanNewsItem]()
        reader = asyncio.create_task(self._read(node_id, first, orders, outbox))
        try:
            yield raylet_pb2.LoanNews()
            async for batch in outbox.batches():
                yield raylet_pb2.LoanNews(items=batch)
        finally:
            outbox.close()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if self._lines.get(node_id) is outbox:
                del self._lines[node_id]
                self._tell(loan.BorrowerLost(node_id))

    async def _read(
        self,
        node_id: bytes,
        first: raylet_pb2.LoanOrders,
        orders: AsyncIterator[raylet_pb2.LoanOrders],
        outbox: Outbox[raylet_pb2.LoanNewsItem],
    ) -> None:
        try:
            self._take(node_id, first)
            async for batch in orders:
                if outbox.is_closed:
                    return
                self._take(node_id, batch)
        finally:
            outbox.close()  # the borrower hung up

    def _take(self, node_id: bytes, batch: raylet_pb2.LoanOrders) -> None:
        for order in batch.orders:
            message = order_from_proto(order)
            if message is not None:
                self._tell(loan.BorrowerSaid(node_id, message))
