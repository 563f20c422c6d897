"""Orders about bundles: gathered for each node, so that many groups share one call.

A node has one such call under way; what is ordered meanwhile goes with the next, in order. An order
that was not answered is told back as such; whether it is repeated is the machine's decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Final

from skate_gcs.machine.commands import (
    BundleOrder,
    CommitBundlesOnNode,
    PrepareBundlesOnNode,
    ReturnBundlesOnNode,
)
from skate_gcs.machine.events import BundlesCommitted, BundlesPrepared, Fact
from skate_gcs.service.convert import bundle_ref_to, resources_to
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import raylet_pb2
from skate_rpc.raylet_client import RayletClient

_log = logging.getLogger(__name__)

ORDERS_PER_CALL_MAX: Final = 500


class BundleCalls:
    """Invariant: a node has a task exactly while it has orders, in ``_waiting`` or under way."""

    def __init__(
        self,
        client_of: Callable[[bytes, str], RayletClient],
        spawn: Callable[[Coroutine[None, None, None]], None],
        tell: Callable[[Fact], None],
        timeout_s: float,
    ) -> None:
        self._client_of = client_of
        self._spawn = spawn
        self._tell = tell
        self._timeout_s = timeout_s
        self._waiting: dict[bytes, deque[BundleOrder]] = {}

    def order(self, order: BundleOrder) -> None:
        """Carry an order out behind those that the node has."""
        waiting = self._waiting.get(order.node_id)
        if waiting is not None:
            waiting.append(order)
            return
        self._waiting[order.node_id] = deque([order])
        self._spawn(self._work_off(order.node_id))

    def forget(self, node_id: bytes) -> None:
        """The node is dead: what it was to be told is moot."""
        waiting = self._waiting.get(node_id)
        if waiting is not None:
            waiting.clear()

    async def _work_off(self, node_id: bytes) -> None:
        waiting = self._waiting[node_id]
        await asyncio.sleep(0)  # what the same batch of events orders goes along
        try:
            while waiting:
                batch = [waiting.popleft()]
                while (
                    waiting
                    and type(waiting[0]) is type(batch[0])
                    and len(batch) < ORDERS_PER_CALL_MAX
                ):
                    batch.append(waiting.popleft())
                await self._call(batch)
        finally:
            del self._waiting[node_id]

    async def _call(self, batch: list[BundleOrder]) -> None:
        refusals: list[str] = []
        problem = ""
        try:
            client = self._client_of(batch[0].node_id, batch[0].endpoint)
            match batch[0]:
                case PrepareBundlesOnNode():
                    refusals = await client.prepare_bundles(
                        [_prepare(o) for o in batch if isinstance(o, PrepareBundlesOnNode)],
                        timeout_s=self._timeout_s,
                    )
                case CommitBundlesOnNode():
                    refusals = await client.commit_bundles(
                        [bundle_ref_to(o.ref) for o in batch if isinstance(o, CommitBundlesOnNode)],
                        timeout_s=self._timeout_s,
                    )
                case ReturnBundlesOnNode():
                    await client.return_bundles(
                        [bundle_ref_to(o.ref) for o in batch if isinstance(o, ReturnBundlesOnNode)],
                        timeout_s=self._timeout_s,
                    )
        except RpcError as error:
            _log.warning("a node did not take bundle orders", extra={"problem": str(error)})
            problem = error.message or "it did not answer"
        except Exception as error:  # noqa: BLE001  the call's boundary: its orders need an outcome
            _log.error("bundle orders failed in an unforeseen way", exc_info=error)
            problem = repr(error)
        for number, order in enumerate(batch):
            refusal = refusals[number] if number < len(refusals) else ""
            match order:
                case PrepareBundlesOnNode(node_id, _, group_id, attempt):
                    self._tell(BundlesPrepared(node_id, group_id, attempt, problem or refusal))
                case CommitBundlesOnNode(node_id, _, ref):
                    is_done = not problem and not refusal
                    is_lost = bool(refusal)
                    self._tell(
                        BundlesCommitted(node_id, ref.group_id, ref.attempt, is_done, is_lost)
                    )
                case ReturnBundlesOnNode():
                    pass  # the node's reports say whether it did


def _prepare(order: PrepareBundlesOnNode) -> raylet_pb2.PrepareBundles:
    return raylet_pb2.PrepareBundles(
        group_id=order.group_id,
        attempt=order.attempt,
        bundles={index: resources_to(amounts) for index, amounts in order.bundles.items()},
        commit=order.commits,
    )
