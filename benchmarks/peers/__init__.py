"""The adapters: one module per peer, loaded by name so that no peer's import costs another's."""

from __future__ import annotations

import importlib
from typing import Any, cast

from benchmarks.peers.peer import Lacking, Peer, Reference, Send

_MODULES = {
    "skate": ("benchmarks.peers.ray_like", "SkatePeer"),
    "ray": ("benchmarks.peers.ray_like", "RayPeer"),
    "xoscar": ("benchmarks.peers.xoscar_peer", "XoscarPeer"),
    "dask": ("benchmarks.peers.dask_peer", "DaskPeer"),
    "pool": ("benchmarks.peers.process_pools", "PoolPeer"),
    "executor": ("benchmarks.peers.process_pools", "ExecutorPeer"),
    "pickling": ("benchmarks.peers.pickling_peer", "PicklingPeer"),
    "memcpy": ("benchmarks.peers.memcpy_peer", "MemcpyPeer"),
}
PEER_NAMES = tuple(_MODULES)


def peer_class(name: str) -> type[Peer]:
    """The adapter class called `name`; importing it does not import the peer. Raises KeyError."""
    module_name, class_name = _MODULES[name]
    found: Any = getattr(importlib.import_module(module_name), class_name)
    return cast("type[Peer]", found)


def load_peer(name: str) -> Peer:
    """A new adapter called `name`, its peer imported. Raises KeyError, ImportError."""
    return peer_class(name)()


__all__ = ["PEER_NAMES", "Lacking", "Peer", "Reference", "Send", "load_peer", "peer_class"]
