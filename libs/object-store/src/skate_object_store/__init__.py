"""A shared-memory object store for the processes of one machine. Needs skate-core-ids only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from skate_object_store.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    OutOfDiskError,
    SpilledObjectLostError,
    SpillReadError,
    StoreAuthenticationError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreProtocolError,
    StoreTimeoutError,
)
from skate_object_store.handshake import HandshakeFactory, HandshakeLike
from skate_object_store.machine.facts import (
    Fullness,
    FullReason,
    Holder,
    ObjectRecord,
    ObjectState,
)

if TYPE_CHECKING:
    from skate_object_store.client.store_client import StoreClient
    from skate_object_store.service.config import StoreConfig
    from skate_object_store.service.server import StoreServer, StoreStatistics
    from skate_object_store.service.spill_backends import SpillBackend
    from skate_object_store.spill_config import SpillConfig

__all__ = [
    "FullReason",
    "Fullness",
    "HandshakeFactory",
    "HandshakeLike",
    "Holder",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "ObjectRecord",
    "ObjectState",
    "OutOfDiskError",
    "SpillBackend",
    "SpillConfig",
    "SpillReadError",
    "SpilledObjectLostError",
    "StoreAuthenticationError",
    "StoreClient",
    "StoreClosedError",
    "StoreConfig",
    "StoreError",
    "StoreFullError",
    "StoreProtocolError",
    "StoreServer",
    "StoreStatistics",
    "StoreTimeoutError",
]


# Each side is imported by who uses it: workers do without the server, daemons without the client.
_MODULES = {
    "SpillBackend": "service.spill_backends",
    "SpillConfig": "spill_config",
    "StoreClient": "client.store_client",
    "StoreConfig": "service.config",
    "StoreServer": "service.server",
    "StoreStatistics": "service.server",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
