"""The nodes' outstanding duties to end actors: each is repeated until the node obeyed or died.

An actor is DEAD for the cluster as soon as that is decided; its process is then a debt, and a debt
that a GCS crash would cancel is a leaked process. So orders are stored before they are sent, and
forgotten, lazily, when they are fulfilled: a crash in between repeats an order, which is harmless.

Cost: O(log n) per order.

Source: USERS P38 (clean-up obligations are reconciled until true, not given up after some retries).
"""

from __future__ import annotations

from skate_gcs.machine.clock import Now, Timers, Wakeup
from skate_gcs.machine.commands import Command, KillActorOnNode, Persist, Table
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.node_table import NodeTable
from skate_gcs.machine.records import DeathCause, KillRecord

_Key = tuple[bytes, bytes, int]  # node, actor, incarnation


class KillOrders:
    """Invariant: every order is for an alive node; it is under way or has a timer, not both."""

    def __init__(self, nodes: NodeTable, limits: GcsLimits) -> None:
        self._nodes = nodes
        self._limits = limits
        self._orders: dict[_Key, KillRecord] = {}
        self._failures: dict[_Key, int] = {}
        self._retries: Timers[_Key] = Timers()

    def __len__(self) -> int:
        return len(self._orders)

    def restore(self, rows: list[KillRecord]) -> None:
        """Take the stored rows; :meth:`resume` sends them."""
        for order in rows:
            if self._nodes.get_alive(order.node_id) is not None:
                self._orders[_key(order)] = order

    def resume(self, out: list[Command]) -> None:
        """Send all restored orders."""
        for order in self._orders.values():
            self._send(order, out)

    def give(
        self,
        node_id: bytes,
        actor_id: bytes,
        incarnation: int,
        cause: DeathCause,
        out: list[Command],
    ) -> None:
        """Order an alive node to end an incarnation. A dead node's processes are dead or fenced."""
        if self._nodes.get_alive(node_id) is None:
            return
        order = KillRecord(node_id, actor_id, incarnation, cause)
        key = _key(order)
        self._retries.cancel(key)
        self._orders[key] = order
        out.append(Persist(Table.KILLS, stored_key(key), order))
        self._send(order, out)

    def answered(self, key: _Key, is_done: bool, now: Now, out: list[Command]) -> None:
        """Strike a fulfilled order off, or plan to repeat it."""
        if key not in self._orders:
            return
        if is_done:
            self._forget(key, out)
            return
        failures = self._failures.get(key, 0) + 1
        self._failures[key] = failures
        self._retries.set(key, now.now_s + self._limits.retry_pause_s(failures))

    def tick(self, now: Now, out: list[Command]) -> None:
        """Repeat what is due."""
        while (key := self._retries.pop_due(now.now_s)) is not None:
            self._send(self._orders[key], out)

    def node_died(self, node_id: bytes, out: list[Command]) -> None:
        """Its processes die with it. O(orders)."""
        for key in [key for key in self._orders if key[0] == node_id]:
            self._forget(key, out)

    def next_wakeup(self) -> Wakeup | None:
        """When the next order is repeated."""
        at_s = self._retries.next_s()
        return Wakeup(at_s, "a kill order is repeated") if at_s is not None else None

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the orders are inconsistent."""
        assert self._failures.keys() <= self._orders.keys()
        for key, order in self._orders.items():
            assert key == _key(order)
            assert self._nodes.get_alive(order.node_id) is not None

    def _send(self, order: KillRecord, out: list[Command]) -> None:
        node = self._nodes.get_alive(order.node_id)
        assert node is not None, "orders of a dead node are forgotten with it"
        out.append(
            KillActorOnNode(
                order.node_id, node.raylet_endpoint, order.actor_id, order.incarnation, order.cause
            )
        )

    def _forget(self, key: _Key, out: list[Command]) -> None:
        del self._orders[key]
        self._failures.pop(key, None)
        self._retries.cancel(key)
        out.append(Persist(Table.KILLS, stored_key(key), None, is_lazy=True))


def stored_key(key: _Key) -> bytes:
    """The key of an order's row."""
    return key[0] + key[1] + key[2].to_bytes(4, "big")


def _key(order: KillRecord) -> _Key:
    return order.node_id, order.actor_id, order.incarnation
