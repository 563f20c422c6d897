"""One question that any node can answer for the whole cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from skate_rpc.clients import GcsClient, RayletClient
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.grpc_channel import open_channel

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
    channel = open_channel(gcs_endpoint, token)
    try:
        nodes = await GcsClient(channel, gcs_endpoint).nodes.list(timeout_s=timeout_s)
    finally:
        await channel.close()
    alive = [row for row in nodes if row.state == gcs_pb2.NodeInfo.STATE_ALIVE]
    failure: RpcError | None = None
    for row in sorted(alive, key=lambda row: not row.is_head):
        line = open_channel(row.raylet_endpoint, token)
        try:
            return await ask(RayletClient(line, row.raylet_endpoint))
        except RpcError as error:
            failure = error
        finally:
            await line.close()
    if failure is not None:
        raise failure
    return []
