"""A process of a node as the raylet and the store see it, without the runtime on top.

For tests and benchmarks of what lies below tasks: it registers as a driver, puts and reads objects,
pulls them from other nodes, and keeps what the raylet tells it.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from skate_object_store import StoreClient
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.handshake import ClientHandshake
from skate_rpc.node_messages import stamp
from skate_rpc.serials import Serials
from skate_rpc.stream import connect_stream

WAIT_S = 30.0
_T = TypeVar("_T")


class RawProcess:
    """A driver of one node. Close it, or use it as a context manager."""

    def __init__(self, stream_endpoint: str, token: str) -> None:
        self.worker_id = os.urandom(28)
        self._news = threading.Condition()
        self._got: list[Any] = []
        self._pull_ids = itertools.count(1)
        self._loop = IoThread("raw-process")
        self._loop.start()
        self._serials = Serials()
        self._connection = connect_stream(
            stream_endpoint,
            token.encode(),
            self._loop,
            incoming=node.FromRaylet,
            on_messages=lambda _, batch: self._take(batch),
            on_close=lambda _, reason: self._take([reason]),
        )
        self.send(node.RegisterProcess(self.worker_id, os.getpid(), "unix:/none", True))
        self.registered = self.first(node.ProcessRegistered)
        self.store = StoreClient(
            self.registered.store_endpoint,
            owner=self.worker_id,
            handshake=ClientHandshake(token.encode()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.store.close()
        self._connection.close("done")
        self._loop.stop()

    def send(self, message: Any) -> None:
        """Tell the raylet."""
        self._connection.send(stamp(message, self._serials))

    def all(self, kind: type[_T]) -> list[_T]:
        """What the raylet has said of this kind."""
        with self._news:
            return [message for message in self._got if isinstance(message, kind)]

    def first(
        self,
        kind: type[_T],
        matches: Callable[[_T], bool] = lambda message: True,
        timeout_s: float = WAIT_S,
    ) -> _T:
        """Wait for the first message of this kind that ``matches``."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            for message in self.all(kind):
                if matches(message):
                    return message
            with self._news:
                left_s = deadline_s - time.monotonic()
                assert left_s > 0, f"no {kind.__name__} within {timeout_s:g} s"
                self._news.wait(min(left_s, 0.2))

    def put(self, content: Any) -> bytes:
        """A primary copy on this node; returns its id."""
        object_id = os.urandom(28)
        self.store.put(object_id, [content])
        return object_id

    def start_pull(
        self,
        object_id: bytes,
        size_bytes: int,
        node_ids: Sequence[str | bytes],
        priority: int = node.PULL_FOR_GET,
    ) -> int:
        """Ask for a copy here; nodes are named by their ids or those in hexadecimal."""
        pull_id = next(self._pull_ids)
        names = [bytes.fromhex(name) if isinstance(name, str) else name for name in node_ids]
        self.send(node.PullObject(pull_id, object_id, size_bytes, self.worker_id, names, priority))
        return pull_id

    def end_of_pull(self, pull_id: int, timeout_s: float = WAIT_S) -> node.PullEnded:
        """Wait for its outcome."""
        return self.first(node.PullEnded, lambda ended: ended.pull_id == pull_id, timeout_s)

    def pull(
        self, object_id: bytes, size_bytes: int, node_ids: Sequence[str | bytes]
    ) -> node.PullEnded:
        """Ask for a copy and wait for the outcome."""
        return self.end_of_pull(self.start_pull(object_id, size_bytes, node_ids))

    def _take(self, batch: Sequence[Any]) -> None:
        with self._news:
            self._got += batch
            self._news.notify_all()
