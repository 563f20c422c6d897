"""The lines on which nodes lend each other workers, over real gRPC."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc

from skate_raylet.machine import loan_events as loan
from skate_raylet.service.loan_lines import LenderLine
from skate_rpc.gen.skate.v1 import raylet_pb2, raylet_pb2_grpc
from skate_rpc.grpc_server import SecureServer

NODE_ID = b"n" * 28
TOKEN = "ab" * 32
WAIT_S = 10.0


class Lender(raylet_pb2_grpc.RayletServiceServicer):
    """Welcomes each line, and ends it at once."""

    async def Borrow(  # type: ignore[override]  # noqa: N802
        self, request_iterator: AsyncIterator[raylet_pb2.LoanOrders], context: Any
    ) -> AsyncIterator[raylet_pb2.LoanNews]:
        await anext(aiter(request_iterator))
        yield raylet_pb2.LoanNews()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


def test_line_that_the_lender_ends_leaves_nothing_behind() -> None:
    complaints: list[str] = []
    told: list[loan.LoanEvent] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        was_lost_twice = asyncio.Event()

        def tell(event: loan.LoanEvent) -> None:
            told.append(event)
            if told.count(loan.LenderLost(NODE_ID)) == 2:
                was_lost_twice.set()

        server = SecureServer(TOKEN)
        server.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, Lender())
        endpoint = await server.start("127.0.0.1:0")
        before = asyncio.all_tasks()
        line = LenderLine(b"b" * 28, NODE_ID, endpoint, TOKEN, tell)
        await asyncio.wait_for(was_lost_twice.wait(), WAIT_S)
        await line.close()
        await server.stop(0.0)
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=WAIT_S)
        del left
        gc.collect()  # what waits for ever is found by the collector, and complains
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(run())
    assert told[:2] == [loan.LenderConnected(NODE_ID), loan.LenderLost(NODE_ID)]
    assert complaints == []
