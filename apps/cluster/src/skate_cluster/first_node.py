"""One question that any node can answer for the whole cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from skate_cluster.connections import gcs_at, raylet_at
from skate_rpc.clients import RayletClient
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2

Answer = TypeVar("Answer")


async def ask_first_node(
    gcs_endpoint: str,
    token: str,
    timeout_s: float,
    ask: Callable[[RayletClient], Awaitable[list[Answer]]],
) -> list[Answer]:
    """The answer of the first live node that gives one, the head before others.

    Nothing when no node is alive. Raises ``RpcError`` when the GCS or every node fails to answer.
    """
    async with gcs_at(gcs_endpoint, token) as gcs:
        nodes = await gcs.nodes.list(timeout_s=timeout_s)
    alive = [row for row in nodes if row.state == gcs_pb2.NodeInfo.STATE_ALIVE]
    failure: RpcError | None = None
    for row in sorted(alive, key=lambda row: not row.is_head):
        async with raylet_at(row.raylet_endpoint, token) as raylet:
            try:
                return await ask(raylet)
            except RpcError as error:
                failure = error
    if failure is not None:
        raise failure
    return []
