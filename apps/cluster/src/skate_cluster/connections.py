"""Lines to a cluster's servers, for as long as a command needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skate_rpc.clients import GcsClient, RayletClient
from skate_rpc.grpc_channel import open_channel


@asynccontextmanager
async def gcs_at(endpoint: str, token: str) -> AsyncIterator[GcsClient]:
    """A client of the GCS that listens there."""
    channel = open_channel(endpoint, token)
    try:
        yield GcsClient(channel, endpoint)
    finally:
        await channel.close()


@asynccontextmanager
async def raylet_at(endpoint: str, token: str) -> AsyncIterator[RayletClient]:
    """A client of the node that listens there."""
    channel = open_channel(endpoint, token)
    try:
        yield RayletClient(channel, endpoint)
    finally:
        await channel.close()
