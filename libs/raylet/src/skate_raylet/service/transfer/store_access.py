"""The daemon's own client of its node's store, made when the first object travels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import skate_object_store
from skate_rpc.handshake import ClientHandshake

if TYPE_CHECKING:
    from skate_object_store import StoreClient


class StoreAccess:
    """From any thread but the event loop's: the first call connects, and every call may wait."""

    def __init__(self, endpoint: str, token: bytes) -> None:
        self._endpoint = endpoint
        self._token = token
        self._lock = threading.Lock()
        self._client: StoreClient | None = None
        self._is_closed = False

    def client(self) -> StoreClient:
        """The client. Raises ``StoreError`` when the store can not be reached, or is closed."""
        client = self._client
        if client is not None:
            return client
        with self._lock:
            if self._is_closed:
                raise skate_object_store.StoreClosedError(self._endpoint, "the node stops")
            if self._client is None:
                self._client = skate_object_store.StoreClient(
                    self._endpoint, handshake=ClientHandshake(self._token)
                )
            return self._client

    def close(self) -> None:
        """Give up what is being written; no client afterwards."""
        with self._lock:
            self._is_closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()
