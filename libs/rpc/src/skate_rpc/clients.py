"""Typed clients of every control-plane service.

A client turns plain arguments into a request, makes the call with a deadline and the retries that
its row of ``skate_rpc.methods.METHODS`` allows, and returns a plain value or the reply message.
Every method takes ``timeout_s``, a bound on all attempts together (None: the row's deadline), and
raises ``RpcError``, ``RpcTimeoutError``, ``RpcUnavailableError`` or ``RpcAuthenticationError``
(see ``skate_rpc.errors``), never an error of gRPC.
"""

from __future__ import annotations

from skate_rpc.gcs_client import (
    ActorClient,
    EventClient,
    GcsClient,
    JobClient,
    KvClient,
    NodeClient,
    WorkerClient,
)
from skate_rpc.raylet_client import RayletClient

__all__ = [
    "ActorClient",
    "EventClient",
    "GcsClient",
    "JobClient",
    "KvClient",
    "NodeClient",
    "RayletClient",
    "WorkerClient",
]
