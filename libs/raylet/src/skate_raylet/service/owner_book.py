"""Which owners of other nodes may have objects in this node's store, so that those go with them.

An owner's death is told by its own node; when that node dies with it, nobody names the processes
that it took along. What comes before: processes of this node, which deal with such owners
(``KnowOwner``). What comes after: the store, which frees by owner.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

OWNERS_PER_NODE_MAX: Final = 100_000
DEAD_REMEMBERED_MAX: Final = 10_000


class OwnerBook:
    """Owners by node. On the event loop. ``release(owner_id)`` frees what an owner had here."""

    def __init__(self, release: Callable[[bytes], None]) -> None:
        self._release = release
        self._by_node: dict[bytes, OrderedDict[bytes, None]] = {}
        self._node_of: dict[bytes, bytes] = {}
        self._dead_nodes: OrderedDict[bytes, None] = OrderedDict()

    def know(self, owner_id: bytes, node_id: bytes) -> None:
        """An owner lives on another node; repeating it changes nothing."""
        if node_id in self._dead_nodes:
            self._release(owner_id)
            return
        owners = self._by_node.setdefault(node_id, OrderedDict())
        owners[owner_id] = None
        self._node_of[owner_id] = node_id
        if len(owners) > OWNERS_PER_NODE_MAX:
            oldest, _ = owners.popitem(last=False)
            self._node_of.pop(oldest, None)

    def forget(self, owner_id: bytes) -> None:
        """An owner is gone by itself, and what it had is freed."""
        node_id = self._node_of.pop(owner_id, None)
        if node_id is None:
            return
        owners = self._by_node[node_id]
        del owners[owner_id]
        if not owners:
            del self._by_node[node_id]

    def node_died(self, node_id: bytes) -> None:
        """A node is gone, with the owners on it."""
        self._dead_nodes[node_id] = None
        while len(self._dead_nodes) > DEAD_REMEMBERED_MAX:
            self._dead_nodes.popitem(last=False)
        for owner_id in self._by_node.pop(node_id, ()):
            self._node_of.pop(owner_id, None)
            self._release(owner_id)
