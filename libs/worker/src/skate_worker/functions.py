"""The function table: user functions and classes by the hash of their pickle, stored once in the
GCS.

The owner exports a function before the first task that uses it; a worker loads it on first use and
keeps it.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import threading
from typing import Any

import cloudpickle

from skate_core_ids import JobID
from skate_rpc import node_protocol as node
from skate_worker.errors import SkateSystemError
from skate_worker.inspect_pickle import explain_failure
from skate_worker.node_client import NodeClient
from skate_worker.pickler import ValuePickler

NAMESPACE = "fun"
SIZE_WARN_BYTES = 10_000_000  # SURFACE 3.2
SIZE_MAX_BYTES = 100_000_000
ID_BYTES = 20


class FunctionTable:
    """Exports and loads. Thread-safe."""

    def __init__(self, raylet: NodeClient) -> None:
        self._raylet = raylet
        self._loaded: dict[bytes, Any] = {}
        self._exported: set[bytes] = set()
        self._lock = threading.Lock()

    def export(self, value: Any, job_id: JobID) -> tuple[bytes, list[Any]]:
        """Store a function or class; returns its id and the references that it captured.

        Waits for the GCS once per distinct pickle.

        Raises:
            TypeError: it refers to something that can not be pickled; the message names the path.
            ValueError: its pickle is larger than 100 MB.
        """
        kind = "class" if inspect.isclass(value) else "function"
        subject = f"{kind} {getattr(value, '__name__', value)}"
        try:
            file = io.BytesIO()
            pickler = ValuePickler(file)
            pickler.dump(value)
            data = file.getvalue()
        except Exception as error:  # user code runs in __reduce__ and the like
            raise explain_failure(value, error, subject) from error
        if len(data) > SIZE_MAX_BYTES:
            raise ValueError(
                f"The {subject} is too large to send: its pickle has {len(data)} bytes, and the"
                f" limit is {SIZE_MAX_BYTES}; put the large values that it refers to and pass the"
                " references."
            )
        function_id = job_id + hashlib.sha1(data, usedforsecurity=False).digest()[: ID_BYTES - 4]
        with self._lock:
            is_known = function_id in self._exported
        if not is_known:
            self._raylet.call("kv_put", node.KvPut(NAMESPACE, function_id, data, False), bool)
            with self._lock:
                self._exported.add(function_id)
        return function_id, pickler.contained

    def load(self, function_id: bytes) -> Any:
        """The function or class of this id. Raises :class:`SkateSystemError` when it is gone."""
        value = self._loaded.get(function_id)
        if value is not None:
            return value
        data: bytes | None = self._raylet.call(
            "kv_get", node.KvGet(NAMESPACE, function_id), bytes | None
        )
        if data is None:
            raise SkateSystemError(
                f"The function {function_id.hex()} is not in the function table; its job may have"
                " ended."
            )
        value = cloudpickle.loads(data)
        self._loaded[function_id] = value
        return value
