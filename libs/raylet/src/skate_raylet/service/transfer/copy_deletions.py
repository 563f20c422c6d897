"""Deletes released objects on this node and on others, for owners of this node.

What comes before: owners (``DeleteCopies``). What comes after: the store, and the object servers of
other nodes. A deletion that is given up is a leak.
"""

from __future__ import annotations

from skate_raylet.service.transfer.peer_orders import PeerOrders
from skate_raylet.service.transfer.wire import pack_deletion


class CopyDeletions(PeerOrders[bytes]):
    """An order is the id of an object."""

    def delete(self, copies: dict[bytes, list[bytes]]) -> None:
        """Have these objects deleted, by node. Returns at once."""
        for node_id, object_ids in copies.items():
            self.order(node_id, object_ids)

    def _carry_out(self, node_id: bytes, endpoint: str, orders: list[bytes]) -> None:
        if endpoint:
            self._ask(endpoint, pack_deletion(orders))
        else:
            self._store.client().delete(orders)
