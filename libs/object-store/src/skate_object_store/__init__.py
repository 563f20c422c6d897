"""A shared-memory object store for the processes of one machine. Needs skate-core-ids only."""

from __future__ import annotations

from skate_object_store.client.store_client import StoreClient
from skate_object_store.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAuthenticationError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    StoreProtocolError,
    StoreTimeoutError,
)
from skate_object_store.handshake import HandshakeFactory, HandshakeLike
from skate_object_store.machine.records import Fullness, FullReason, Holder
from skate_object_store.service.config import StoreConfig
from skate_object_store.service.server import StoreServer, StoreStatistics

__all__ = [
    "FullReason",
    "Fullness",
    "HandshakeFactory",
    "HandshakeLike",
    "Holder",
    "ObjectExistsError",
    "ObjectNotFoundError",
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
