"""Has copies made primary, on this node and on others, for owners of this node that lost those.

What comes before: owners (``KeepCopies``). What comes after: the store, and the object servers of
other nodes. The owner is told what stays and what is gone (``CopiesKept``); if the node dies first
it is told nothing but that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from skate_raylet.service.transfer.daemon_threads import DaemonThreads
from skate_raylet.service.transfer.peer_connections import PeerConnections
from skate_raylet.service.transfer.peer_orders import PeerOrders
from skate_raylet.service.transfer.store_access import StoreAccess
from skate_raylet.service.transfer.wire import pack_keeping, unpack_ids
from skate_rpc import node_protocol as node


class Keeping(NamedTuple):
    """One copy, and who wants it kept."""

    process_id: bytes
    object_id: bytes


class CopyKeeping(PeerOrders[Keeping]):
    """``answer(process_id, message)`` is called on a thread."""

    def __init__(
        self,
        node_id: bytes,
        store: StoreAccess,
        connections: PeerConnections,
        threads: DaemonThreads,
        answer: Callable[[bytes, node.CopiesKept], None],
    ) -> None:
        super().__init__(node_id, store, connections, threads)
        self._answer = answer

    def keep(self, process_id: bytes, copies: dict[bytes, list[bytes]]) -> None:
        """Have these copies kept, by node. Returns at once."""
        for node_id, object_ids in copies.items():
            self.order(node_id, [Keeping(process_id, object_id) for object_id in object_ids])

    def _carry_out(self, node_id: bytes, endpoint: str, orders: list[Keeping]) -> None:
        wanted = [order.object_id for order in orders]
        if endpoint:
            kept = unpack_ids(self._ask(endpoint, pack_keeping(wanted)))
        else:
            kept = self._store.client().keep(wanted)
        there = dict.fromkeys(kept)
        answers: dict[bytes, node.CopiesKept] = {}
        for process_id, object_id in orders:
            answer = answers.setdefault(process_id, node.CopiesKept(node_id, [], []))
            (answer.object_ids if object_id in there else answer.gone).append(object_id)
        for process_id, answer in answers.items():
            self._answer(process_id, answer)
