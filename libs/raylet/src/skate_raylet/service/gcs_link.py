"""The line to the GCS: registration, the heartbeat, what must be reported, and what is published.

A GCS that is away changes nothing here but what can not be known without it: leases and running
actors go on. The heartbeat and the subscription are taken up again when it answers; what must be
reported waits for it, in order for each subject, however long that takes (a report that is given up
is a leak). One that stays away for ``reconnect_s`` is given up, and the node with it: nobody else
would ever hear of this node. One that has moved says so itself (``move``).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

from skate_raylet.config import GCS_RECONNECT_S
from skate_raylet.service.demand_report import DemandReport
from skate_rpc.errors import RpcError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

_log = logging.getLogger(__name__)

REPORT_INTERVAL_S = 0.1  # of a changing node
HEARTBEAT_S = 1.0  # of an unchanged one
REPORT_TIMEOUT_S = 2.0
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
SUBJECTS_UNDER_WAY_MAX = 64  # reports under way at a time, one a subject
CHANNELS = ("actor", "node", "job", "worker", "placement_group")
PERMANENT_CODES = frozenset(
    {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
)

assert REPORT_INTERVAL_S < HEARTBEAT_S

Report = Callable[[], Awaitable[None]]


class GcsLink:
    """Invariant: an accepted report is under way or queued until the GCS has answered it."""

    def __init__(
        self,
        client: GcsClient,
        node_id: bytes,
        make_report: Callable[[], gcs_pb2.ReportResourcesRequest],
        on_event: Callable[[gcs_pb2.Event], None],
        on_fenced: Callable[[str], None],
        demand: DemandReport,
        reconnect_s: float = GCS_RECONNECT_S,
    ) -> None:
        """``make_report`` leaves the version to this class; ``on_fenced``: this node must stop."""
        self._reconnect_s = reconnect_s
        self._life = 0
        self._following: asyncio.Task[None] | None = None
        self.client = client
        self._node_id = node_id
        self._make_report = make_report
        self._on_event = on_event
        self._on_fenced = on_fenced
        self._version = 0
        self._changed = asyncio.Event()
        self._turns = asyncio.Semaphore(SUBJECTS_UNDER_WAY_MAX)
        self._reports: dict[object, deque[tuple[str, Report]]] = {}
        self.held_bundles: Callable[[], list[gcs_pb2.BundleRef]] = list
        """All that this node holds of placement groups; told with a report each second."""
        self.on_stale_bundles: Callable[[Sequence[gcs_pb2.BundleRef]], None] = _ignore
        """Hears which of those it must give back."""
        self._demand = demand
        self._tasks: set[asyncio.Task[None]] = set()
        self._delivering: dict[object, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin the heartbeat and the subscription; the node is registered."""
        self._tasks.add(asyncio.create_task(self._heartbeat()))
        self._following = asyncio.create_task(self._follow())
        self._tasks.add(self._following)

    def knows(self, life: int) -> bool:
        """Whether this node has heard of this GCS, or of one that was started after it."""
        return life <= self._life

    def note_life(self, life: int) -> None:
        """A GCS with this number has answered."""
        self._life = max(self._life, life)

    def moved(self, life: int) -> None:
        """The client calls another place now: subscribe there, whatever becomes of the old line."""
        self.note_life(life)
        if self._following is not None:
            self._following.cancel()
            self._tasks.discard(self._following)
            self._following = asyncio.create_task(self._follow())
            self._tasks.add(self._following)

    async def close(self, flush_timeout_s: float) -> None:
        """Give open reports a last chance, then stop."""
        for task in self._tasks:
            task.cancel()
        open_reports = list(self._delivering.values())
        if open_reports and flush_timeout_s > 0:
            await asyncio.wait(open_reports, timeout=flush_timeout_s)
        for task in self._delivering.values():
            task.cancel()
        await asyncio.gather(*self._tasks, *self._delivering.values(), return_exceptions=True)

    def changed(self) -> None:
        """What the node has free, or what waits, may have changed."""
        self._changed.set()

    def report(self, subject: object, what: str, send: Report) -> None:
        """Have ``send`` succeed some day; after all earlier reports about the same subject."""
        self._reports.setdefault(subject, deque()).append((what, send))
        if subject not in self._delivering:
            self._delivering[subject] = asyncio.create_task(self._deliver(subject))

    def unsent_reports(self) -> int:
        """Reports that the GCS has not answered."""
        return sum(map(len, self._reports.values()))

    async def _deliver(self, subject: object) -> None:
        queue = self._reports[subject]
        try:
            async with self._turns:
                while queue:
                    what, send = queue[0]
                    await self._send_until_answered(what, send)
                    queue.popleft()
        finally:
            del self._reports[subject]
            del self._delivering[subject]

    async def _send_until_answered(self, what: str, send: Report) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await send()
                return
            except RpcError as error:
                if error.code in PERMANENT_CODES:
                    _log.error("event=report_refused what=%s error=%s", what, error)
                    return
                _log.warning("event=report_failed what=%s error=%s", what, error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    async def _heartbeat(self) -> None:
        last: gcs_pb2.ReportResourcesRequest | None = None
        sent_at_s = bundles_at_s = float("-inf")
        away_since_s: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            report = self._make_report()
            is_demand_new = self._demand.is_new()
            if report != last or is_demand_new or loop.time() - sent_at_s >= HEARTBEAT_S:
                self._version += 1
                message = gcs_pb2.ReportResourcesRequest()
                message.CopyFrom(report)
                message.version = self._version
                if loop.time() - bundles_at_s >= HEARTBEAT_S:
                    # Not with each: a node may hold thousands, and nothing waits for it.
                    message.has_bundles = True
                    message.bundles.extend(self.held_bundles())
                if is_demand_new:
                    self._demand.fill(message)
                asked_at_s = loop.time()
                try:
                    reply = await self.client.nodes.report_resources(
                        message, timeout_s=REPORT_TIMEOUT_S
                    )
                except RpcError as error:
                    _log.warning("event=heartbeat_failed error=%s", error)
                    last = None
                    self._demand.unanswered()
                    # From the first failed attempt on: a node that was stopped asks first.
                    away_since_s = asked_at_s if away_since_s is None else away_since_s
                    if loop.time() - away_since_s >= self._reconnect_s:
                        self._on_fenced(
                            f"The GCS has not answered for {self._reconnect_s:g} s"
                            f" ({error.message}); start its head again, then this node."
                        )
                        return
                else:
                    last, sent_at_s, away_since_s = report, loop.time(), None
                    self.note_life(reply.gcs_life)
                    self._demand.answered(reply.gcs_life)
                    if message.has_bundles:
                        bundles_at_s = sent_at_s
                    if not reply.known:
                        self._on_fenced("The GCS holds this node for dead.")
                        return
                    if reply.stale_bundles:
                        self.on_stale_bundles(reply.stale_bundles)
            await asyncio.sleep(REPORT_INTERVAL_S)
            self._changed.clear()
            if report == last == self._make_report() and not self._demand.is_new():
                # Not wait_for: in Python 3.11 it can take a cancellation for its own time-out.
                try:
                    async with asyncio.timeout_at(sent_at_s + HEARTBEAT_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    async def _follow(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                subscription = self.client.events.subscribe(CHANNELS, self._node_id)
                async with aclosing(subscription) as events:
                    async for event in events:
                        pause_s = RETRY_FIRST_S
                        self._on_event(event)
            except RpcError as error:
                _log.warning("event=subscription_ended error=%s", error)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(RETRY_MAX_S, 2 * pause_s)

    async def unregister(self, cause: common_pb2.DeathCause, timeout_s: float) -> None:
        """Tell the GCS that this node ends. Not worth waiting for when it is away."""
        try:
            await self.client.nodes.unregister(self._node_id, cause, timeout_s=timeout_s)
        except RpcError as error:
            _log.warning("event=unregister_failed error=%s", error)


def _ignore(_refs: Sequence[gcs_pb2.BundleRef]) -> None:
    return None
