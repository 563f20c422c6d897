"""How Skate's processes talk to each other.

Import what you need from its module. Importing this package loads nothing else, because a worker
must never pay for gRPC:

- ``skate_rpc.stream``, ``handshake``, ``node_protocol``: the task plane; msgspec only
- ``skate_rpc.tokens``: the cluster token and its file; standard library only
- ``skate_rpc.errors``: what control-plane calls raise; standard library only
- ``skate_rpc.grpc_server``, ``grpc_channel``, ``clients``: the control plane; gRPC
- ``skate_rpc.gen``: generated messages and services; gRPC
"""

from __future__ import annotations

__all__: list[str] = []
