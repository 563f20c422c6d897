"""How Skate's processes talk to each other.

Import what you need from its module; importing this package loads nothing else, because a worker must
never pay for gRPC:

- ``skate_rpc.stream``, ``skate_rpc.handshake``, ``skate_rpc.node_protocol``: the task plane, msgspec only
- ``skate_rpc.tokens``: the cluster token and its file, standard library only
- ``skate_rpc.grpc_server``, ``skate_rpc.grpc_channel``, ``skate_rpc.clients``: the control plane, gRPC
- ``skate_rpc.gen``: generated messages and services
"""

from __future__ import annotations

__all__: list[str] = []
