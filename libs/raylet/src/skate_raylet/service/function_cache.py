"""Exported functions, kept at the node so that a hundred workers fetch each once from the GCS.

A key of the namespace ``"fun"`` names its content, so a value never changes and needs no
invalidation.
"""

from __future__ import annotations

NAMESPACE = "fun"


class FunctionCache:
    """Least recently used out first. Invariant: the values take at most ``bytes_max``."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._values: dict[bytes, bytes] = {}  # least recently used first

    def get(self, key: bytes) -> bytes | None:
        """The value, or None when it is not kept here."""
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value
        return value

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value, unless it alone is too large."""
        self.discard(key)
        if len(value) > self._bytes_max:
            return
        self._values[key] = value
        self._bytes += len(value)
        while self._bytes > self._bytes_max:
            oldest = next(iter(self._values))
            self._bytes -= len(self._values.pop(oldest))

    def discard(self, prefix: bytes) -> None:
        """Forget the keys that begin with ``prefix``."""
        for key in [key for key in self._values if key.startswith(prefix)]:
            self._bytes -= len(self._values.pop(key))
