"""Orders to nodes: carried out in tasks of their own, their outcomes fed back as facts.

An order that a node does not answer in time is reported as such; when it is repeated is the
machine's decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

import grpc.aio

from skate_gcs.config import GcsConfig
from skate_gcs.machine.commands import BundleOrder, KillActorOnNode, ProbeNode, StartActorOnNode
from skate_gcs.machine.events import (
    Fact,
    KillAnswered,
    NodeProbed,
    StartAnswered,
    StartUnanswered,
)
from skate_gcs.machine.records import DrainRecord, NodeRecord
from skate_gcs.service.bundle_calls import BundleCalls
from skate_gcs.service.convert import cause_to, drain_to, spec_to
from skate_rpc.errors import RpcError
from skate_rpc.grpc_channel import open_channel
from skate_rpc.raylet_client import RayletClient

_log = logging.getLogger(__name__)

PROBES = 3
"""Connections tried in one look: a process that is being killed closes its sockets one by one."""
PROBE_PAUSE_S = 0.1
PROBE_TIMEOUT_S = 1.0
ANNOUNCE_PAUSE_S = 0.5


@dataclass(slots=True)
class _Line:
    """The connection to one node."""

    endpoint: str
    channel: grpc.aio.Channel
    client: RayletClient
    turns: asyncio.Semaphore = field(repr=False)


class NodeCalls:
    """Invariant: one line per alive node that was ever called; every task is in ``_tasks``."""

    def __init__(self, config: GcsConfig, tell: Callable[[Fact], None]) -> None:
        self._token = config.token
        self._timeout_s = config.node_call_timeout_s
        self._calls_max = config.node_calls_max
        self._tell = tell
        self._lines: dict[bytes, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_of_gcs: set[bytes] = set()  # nodes that have yet to hear where it is
        self._bundles = BundleCalls(
            lambda node_id, endpoint: self._line(node_id, endpoint).client,
            self._spawn,
            tell,
            self._timeout_s,
        )

    def __len__(self) -> int:
        return len(self._tasks)

    def start_actor(self, order: StartActorOnNode) -> None:
        """Ask a node to start an actor; told back as StartAnswered or StartUnanswered."""
        self._spawn(self._start_actor(order))

    def kill_actor(self, order: KillActorOnNode) -> None:
        """Order a node to end an actor; told back as KillAnswered."""
        self._spawn(self._kill_actor(order))

    def order_bundles(self, order: BundleOrder) -> None:
        """Have a node set aside, open or give back bundles; see the orders for the answers."""
        self._bundles.order(order)

    def probe(self, order: ProbeNode) -> None:
        """See whether a node's endpoint refuses connections; told back as NodeProbed."""
        self._spawn(self._probe(order))

    async def drain(self, node: NodeRecord, drain: DrainRecord) -> str:
        """Ask a node to leave; returns why it will not, or nothing.

        Raises:
            RpcError: it did not answer.
        """
        line = self._line(node.node_id, node.raylet_endpoint)
        async with line.turns:
            reply = await line.client.drain(drain_to(drain), timeout_s=self._timeout_s)
        return "" if reply.accepted else reply.rejection or "it gave no reason"

    def announce_gcs(self, node: NodeRecord, endpoint: str, cluster_id: str, life: int) -> None:
        """Tell a node where the GCS listens now, until it has heard or is dead."""
        self._spawn(self._announce_gcs(node, endpoint, cluster_id, life))

    async def _announce_gcs(
        self, node: NodeRecord, endpoint: str, cluster_id: str, life: int
    ) -> None:
        self._told_of_gcs.add(node.node_id)
        while node.node_id in self._told_of_gcs:
            line = self._line(node.node_id, node.raylet_endpoint)
            try:
                async with line.turns:
                    await line.client.move_gcs(
                        endpoint, cluster_id, life, timeout_s=self._timeout_s
                    )
            except RpcError as error:
                _problem("follow the GCS", error)
                await asyncio.sleep(ANNOUNCE_PAUSE_S)
            else:
                self._told_of_gcs.discard(node.node_id)

    def forget(self, node_id: bytes) -> None:
        """Close the line to a dead node; its open calls end unanswered."""
        self._told_of_gcs.discard(node_id)
        self._bundles.forget(node_id)
        line = self._lines.pop(node_id, None)
        if line is not None:
            self._spawn(line.channel.close())

    async def close(self) -> None:
        """Cancel all calls and close all lines."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.channel.close()

    async def _start_actor(self, order: StartActorOnNode) -> None:
        key = (order.node_id, order.spec.actor_id, order.incarnation)
        try:
            line = self._line(order.node_id, order.endpoint)
            async with line.turns:
                reply = await line.client.start_actor(
                    spec_to(order.spec, with_creation_task=True),
                    order.incarnation,
                    timeout_s=self._timeout_s,
                )
        except Exception as error:  # noqa: BLE001  the task's boundary
            self._tell(StartUnanswered(*key, problem=_problem("start", error)))
        else:
            refusal = None if reply.accepted else reply.refusal or "it gave no reason"
            self._tell(StartAnswered(*key, refusal=refusal))

    async def _kill_actor(self, order: KillActorOnNode) -> None:
        try:
            line = self._line(order.node_id, order.endpoint)
            async with line.turns:
                await line.client.kill_actor(
                    order.actor_id,
                    order.incarnation,
                    cause_to(order.cause),
                    timeout_s=self._timeout_s,
                )
        except Exception as error:  # noqa: BLE001  the task's boundary
            _problem("kill", error)
            is_done = False
        else:
            is_done = True
        self._tell(KillAnswered(order.node_id, order.actor_id, order.incarnation, is_done))

    async def _probe(self, order: ProbeNode) -> None:
        is_refused = False
        for attempt in range(PROBES):
            if attempt:
                await asyncio.sleep(PROBE_PAUSE_S)
            is_refused = await _is_refused(order.endpoint)
            if is_refused:
                break
        self._tell(NodeProbed(order.node_id, order.endpoint, is_refused))

    def _line(self, node_id: bytes, endpoint: str) -> _Line:
        line = self._lines.get(node_id)
        if line is not None and line.endpoint != endpoint:
            self.forget(node_id)
            line = None
        if line is None:
            channel = open_channel(endpoint, self._token)
            line = self._lines[node_id] = _Line(
                endpoint,
                channel,
                RayletClient(channel, endpoint),
                asyncio.Semaphore(self._calls_max),
            )
        return line

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _is_refused(endpoint: str) -> bool:
    """Whether it is certain that nobody listens there; no answer at all proves nothing."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            if endpoint.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(endpoint.removeprefix("unix:"))
            else:
                host, _, port = endpoint.rpartition(":")
                _, writer = await asyncio.open_connection(host.strip("[]"), port)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, TimeoutError) as error:
        _log.warning("a node could not be looked at", extra={"endpoint": endpoint, "why": error})
        return False
    writer.close()
    with contextlib.suppress(OSError):  # that it breaks now is no news
        await writer.wait_closed()
    return False


def _problem(order: str, error: Exception) -> str:
    """Log a failed order and put it in words; without an outcome it would wait for ever."""
    if isinstance(error, RpcError):
        _log.warning("a node did not take an order", extra={"order": order, "problem": str(error)})
        return error.message
    _log.error("an order failed in an unforeseen way", extra={"order": order}, exc_info=error)
    return repr(error)
