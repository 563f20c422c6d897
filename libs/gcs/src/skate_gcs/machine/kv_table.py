"""The key-value table: values by namespace and key. The namespace ``fun`` is the function table.

Cost: O(1) for one key; O(keys in the namespace) for a prefix.
"""

from __future__ import annotations

from skate_gcs.machine.answers import Accepted, KvCount, KvKeys, KvValue, RefusalKind, Refused
from skate_gcs.machine.commands import Command, Persist, Reply, Table
from skate_gcs.machine.events import KvDelete, KvGet, KvList, KvPut


class KvTable:
    """Invariant: no namespace is empty; ``size_bytes`` is the sum of the values' lengths."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[bytes, bytes]] = {}
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of all values."""
        return self._size_bytes

    def __len__(self) -> int:
        return sum(len(values) for values in self._namespaces.values())

    def restore(self, stored_key: bytes, value: bytes) -> None:
        """Take a stored row."""
        namespace, key = split_stored_key(stored_key)
        self._store(namespace, key, value)

    def put(self, event: KvPut, out: list[Command]) -> None:
        """Store a value; answered with whether it was stored."""
        if not event.key:
            out.append(Reply(Refused(RefusalKind.INVALID, "A key must not be empty.")))
            return
        exists = event.key in self._namespaces.get(event.namespace, ())
        if exists and not event.overwrite:
            out.append(Reply(Accepted(False)))
            return
        self._store(event.namespace, event.key, event.value)
        out.append(Persist(Table.KV, stored_key(event.namespace, event.key), event.value))
        out.append(Reply(Accepted(True)))

    def delete(self, event: KvDelete, out: list[Command]) -> None:
        """Delete a key or a prefix; answered with the number of keys deleted."""
        values = self._namespaces.get(event.namespace, {})
        if event.is_prefix:
            doomed = [key for key in values if key.startswith(event.key)]
        else:
            doomed = [event.key] if event.key in values else []
        for key in doomed:
            self._size_bytes -= len(values.pop(key))
            out.append(Persist(Table.KV, stored_key(event.namespace, key), None))
        if not values:
            self._namespaces.pop(event.namespace, None)
        out.append(Reply(KvCount(len(doomed))))

    def get(self, event: KvGet) -> KvValue:
        """One value."""
        return KvValue(self._namespaces.get(event.namespace, {}).get(event.key))

    def keys(self, event: KvList) -> KvKeys:
        """Keys with a prefix, sorted."""
        values = self._namespaces.get(event.namespace, {})
        return KvKeys(sorted(key for key in values if key.startswith(event.prefix)))

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        size = 0
        for values in self._namespaces.values():
            assert values
            size += sum(map(len, values.values()))
        assert size == self._size_bytes

    def _store(self, namespace: str, key: bytes, value: bytes) -> None:
        values = self._namespaces.setdefault(namespace, {})
        self._size_bytes += len(value) - len(values.get(key, b""))
        values[key] = value


def stored_key(namespace: str, key: bytes) -> bytes:
    """The key of a row: the namespace's length in 4 bytes, the namespace, the key."""
    name = namespace.encode()
    return len(name).to_bytes(4, "big") + name + key


def split_stored_key(row_key: bytes) -> tuple[str, bytes]:
    """The inverse of :func:`stored_key`."""
    end = 4 + int.from_bytes(row_key[:4], "big")
    return row_key[4:end].decode(), row_key[end:]
