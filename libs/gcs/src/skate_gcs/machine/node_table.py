"""The node table: who belongs to the cluster, who is silent, who is dead.

A node that *drains* has agreed to leave: it gets no new actors, and its row says why, and until
when.

A node is *alive* until it unregisters, is silent for ``node_dead_s``, another process registers at
its endpoint, or its endpoint refuses connections (which is looked at when it falls silent, and when
its subscription breaks); *suspect* while silent for ``node_suspect_s`` (it gets no new actors);
then *dead* for ever: a node that returns is fenced (its heartbeats are answered "unknown", so that
it exits) and comes back under a new id.

Cost: O(1) per heartbeat; O(alive nodes) to list candidates.

Source: SURFACE rows S1, Z13, F2; RELIABILITY I10, I22.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec
from msgspec.structs import replace

from skate_core_ids import NodeID
from skate_gcs.machine.answers import NodeAccepted, RefusalKind, Refused
from skate_gcs.machine.clock import Now, Timers, Wakeup
from skate_gcs.machine.commands import (
    Command,
    ForgetNode,
    Persist,
    ProbeNode,
    Publish,
    Reply,
    Table,
)
from skate_gcs.machine.events import NodeRegistered, ResourcesReported
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import DeathCause, DeathKind, DrainRecord, NodeRecord
from skate_scheduler import NodeView, ResourceSet


class ReportEffect(Enum):
    """What a heartbeat means for those who wait for a node."""

    FENCED = "fenced"  # the node is dead to the cluster
    NOTHING = "nothing"
    FREED = "freed"  # more is free there than was thought
    CHANGED = "changed"  # it may get actors again, or its totals differ


class _LiveNode(msgspec.Struct):
    """What is known of an alive node beyond its row; not stored."""

    heard_s: float  # monotonic
    view: NodeView  # ``available`` less ``claimed``
    # Placed there since the last report.
    claimed: ResourceSet = msgspec.field(default_factory=ResourceSet)
    version: int = 0  # of the last report
    is_suspect: bool = False
    announced_s: float = float("-inf")
    probed_s: float = float("-inf")  # when it was last looked whether its endpoint still listens

    @property
    def is_probed(self) -> bool:
        """Whether that was since it was heard."""
        return self.probed_s >= self.heard_s

    def probe_due_s(self, node_probe_s: float) -> float:
        """When to look, or to look again."""
        return max(self.heard_s, self.probed_s) + node_probe_s


class NodeTable:
    """Invariant: each row is alive and in ``_live``, or dead and in ``_dead``, never both."""

    def __init__(self, cluster_id: str, limits: GcsLimits) -> None:
        self._cluster_id = cluster_id
        self._limits = limits
        self._records: dict[bytes, NodeRecord] = {}
        self._live: dict[
            bytes, _LiveNode
        ] = {}  # longest silent first: a heartbeat moves to the end
        self._dead: dict[bytes, None] = {}  # oldest first
        self._at_endpoint: dict[str, bytes] = {}  # alive nodes by where their raylet listens
        self._announcements: Timers[bytes] = Timers()
        self._promised_s: float | None = None  # the wakeup that was asked for last
        self._moved: dict[bytes, None] = {}  # whose ``candidate`` may differ since it was asked

    def restore(self, rows: list[NodeRecord], now: Now) -> None:
        """Take the stored rows, in any order. Alive nodes get the full time to report."""
        for stored in sorted(rows, key=lambda row: (row.start_time_s, row.node_id)):
            record = replace(stored, is_suspect=False)
            self._records[record.node_id] = record
            if record.is_alive:
                self._live[record.node_id] = _LiveNode(now.now_s, _view(record))
                self._moved[record.node_id] = None
                self._settle_at(record)
        for record in sorted(rows, key=lambda row: row.end_time_s):
            if not record.is_alive:
                self._dead[record.node_id] = None

    def register(self, event: NodeRegistered, now: Now, out: list[Command]) -> bytes | None:
        """Take a node in, or refresh its row. Returns the node that it replaces: it is dead."""
        node = event.node
        if len(node.node_id) != NodeID.SIZE:
            out.append(Reply(Refused(RefusalKind.INVALID, "A node_id has 28 bytes.")))
            return None
        known = self._records.get(node.node_id)
        if known is not None and not known.is_alive:
            problem = "This node was declared dead; it must exit and come back under a new id."
            out.append(Reply(Refused(RefusalKind.FENCED, problem)))
            return None
        available, view = node.available or node.total, None
        if known is not None and (known.total, known.labels) == (node.total, node.labels):
            # It is said again, perhaps late: its reports, and what was placed there since, hold.
            available, view = known.available, self._live[node.node_id].view
        record = replace(
            node,
            available=available,
            death_cause=None,
            start_time_s=known.start_time_s if known is not None else now.unix_s,
            end_time_s=0.0,
            drain=known.drain if known is not None else None,
        )
        self._heard(node.node_id, now, view or _view(record))
        if known is not None:
            self._leave(known)
        replaced = self._settle_at(record)
        if known != record:
            self._records[node.node_id] = record
            out.append(Persist(Table.NODES, node.node_id, record))
            out.append(Publish(record))
        out.append(Reply(NodeAccepted(self._cluster_id)))
        return replaced

    def report(self, event: ResourcesReported, now: Now, out: list[Command]) -> ReportEffect:
        """Take a heartbeat."""
        live = self._live.get(event.node_id)
        if live is None:
            return ReportEffect.FENCED
        if event.version < live.version:
            return (
                ReportEffect.NOTHING
            )  # overtaken by a newer one on the way: proves nothing about now
        record = self._records[event.node_id]
        total = dict(event.total) or record.total
        available = dict(event.available)
        before = live.view
        view = before
        if event.version > live.version or live.version == 0:
            view = NodeView(
                event.node_id, ResourceSet(total), ResourceSet(available), record.labels
            )
        was_suspect = live.is_suspect
        live = self._heard(event.node_id, now, view)
        live.version = event.version
        if was_suspect:
            record = self._records[event.node_id] = replace(record, is_suspect=False)
            out.append(Publish(record))
        if event.drain is not None and record.drain is None:
            record = self._set_drain(record, event.drain, out)
        if record.total != total or record.available != available:
            changed = replace(record, total=total, available=available)
            self._records[event.node_id] = changed
            if record.total != total:
                out.append(Persist(Table.NODES, event.node_id, changed))
                self._announce(event.node_id, now, out)
            else:
                self._announce_soon(event.node_id, live, now, out)
        if was_suspect or record.total != total:
            return ReportEffect.CHANGED
        if view.available.fits_in(before.available):
            return ReportEffect.NOTHING
        return ReportEffect.FREED

    def drain(self, node_id: bytes, drain: DrainRecord, out: list[Command]) -> bool:
        """Note that a node has agreed to leave. False: it is unknown or dead."""
        if node_id not in self._live:
            return False
        record = self._records[node_id]
        if record.drain != drain:
            self._set_drain(record, drain, out)
        return True

    def bury(self, node_id: bytes, cause: DeathCause, now: Now, out: list[Command]) -> bool:
        """Declare a node dead. False: it is unknown or dead already."""
        if self._live.pop(node_id, None) is None:
            return False
        self._moved[node_id] = None
        self._announcements.cancel(node_id)
        record = self._records[node_id]
        self._leave(record)
        record = replace(
            record, death_cause=cause, end_time_s=now.unix_s, available={}, is_suspect=False
        )
        self._records[node_id] = record
        self._dead[node_id] = None
        out.append(Persist(Table.NODES, node_id, record))
        out.append(Publish(record))
        out.append(ForgetNode(node_id))
        self.trim(out)
        return True

    def trim(self, out: list[Command]) -> None:
        """Forget the oldest dead nodes beyond the limit; also wanted after :meth:`restore`."""
        while len(self._dead) > self._limits.nodes_dead_max:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            del self._records[oldest]
            out.append(Persist(Table.NODES, oldest, None, is_lazy=True))

    def tick(self, now: Now, out: list[Command]) -> list[tuple[bytes, DeathCause]]:
        """Note silence and make due announcements. Returns the nodes to be declared dead."""
        self._forgive_own_sleep(now)
        silent: list[tuple[bytes, DeathCause]] = []
        for node_id, live in self._live.items():
            # The same sums as in next_wakeup: a difference could round to just below the limit.
            if now.now_s < live.heard_s + self._limits.node_probe_s:
                break  # as below
            if now.now_s >= live.probe_due_s(self._limits.node_probe_s):
                self.probe(node_id, now, out)
        for node_id, live in self._live.items():
            if now.now_s < live.heard_s + self._limits.node_suspect_s:
                break  # the others were heard later
            if not live.is_suspect:
                live.is_suspect = True
                record = self._records[node_id] = replace(self._records[node_id], is_suspect=True)
                out.append(Publish(record))
                self._moved[node_id] = None
            if now.now_s >= live.heard_s + self._limits.node_dead_s:
                message = f"The node was silent for {now.now_s - live.heard_s:.1f} s."
                silent.append((node_id, DeathCause(DeathKind.NODE_DIED, message)))
        while (due_id := self._announcements.pop_due(now.now_s)) is not None:
            self._announce(due_id, now, out)
        return silent

    def probe(self, node_id: bytes, now: Now, out: list[Command]) -> None:
        """Have it looked whether an alive node's endpoint still listens."""
        live = self._live.get(node_id)
        if live is not None:
            live.probed_s = now.now_s
            endpoint = self._records[node_id].raylet_endpoint
            if endpoint:
                out.append(ProbeNode(node_id, endpoint))

    def listens_at(self, node_id: bytes, endpoint: str) -> bool:
        """Whether this is an alive node's endpoint."""
        return node_id in self._live and self._records[node_id].raylet_endpoint == endpoint

    def next_wakeup(self) -> Wakeup | None:
        """When a node becomes suspect or dead, or a look or an announcement is due.

        O(silent nodes).
        """
        wakeup: Wakeup | None = None
        for live in self._live.values():
            limit_s = self._limits.node_dead_s if live.is_suspect else self._limits.node_suspect_s
            probe_s = live.probe_due_s(self._limits.node_probe_s)
            at_s = min(live.heard_s + limit_s, probe_s)
            if wakeup is None or at_s < wakeup.at_s:
                wakeup = Wakeup(at_s, "a node is silent")
            if not live.is_suspect and not live.is_probed:
                break
        announcement_s = self._announcements.next_s()
        if announcement_s is not None and (wakeup is None or announcement_s < wakeup.at_s):
            wakeup = Wakeup(announcement_s, "free resources are to be announced")
        self._promised_s = wakeup.at_s if wakeup is not None else None
        return wakeup

    def candidates(self) -> Iterator[NodeView]:
        """Nodes that may get actors, in order of their heartbeats: the order turns with time."""
        return (
            live.view
            for node_id, live in self._live.items()
            if not live.is_suspect and self._records[node_id].drain is None
        )

    def candidate(self, node_id: bytes) -> NodeView | None:
        """One node that may get actors."""
        live = self._live.get(node_id)
        if live is None or live.is_suspect or self._records[node_id].drain is not None:
            return None
        return live.view

    def take_moved(self) -> list[bytes]:
        """The nodes whose :meth:`candidate` may be another than at the last question."""
        moved, self._moved = list(self._moved), {}
        return moved

    def claim(self, node_id: bytes, request: ResourceSet) -> None:
        """Count a placement that the node has not reported yet."""
        live = self._live[node_id]
        live.view = live.view.with_claimed(request)
        live.claimed = live.claimed.plus(request)
        self._moved[node_id] = None

    def unclaim(self, node_id: bytes, request: ResourceSet) -> None:
        """The node refused the placement. A report in between has forgotten the claim already."""
        live = self._live.get(node_id)
        if live is not None and request.fits_in(live.claimed):
            live.claimed = live.claimed.minus(request)
            view = live.view
            live.view = dataclasses.replace(view, available=view.available.plus(request))
            self._moved[node_id] = None

    def get_alive(self, node_id: bytes) -> NodeRecord | None:
        """The row of an alive node."""
        return self._records[node_id] if node_id in self._live else None

    def is_dead(self, node_id: bytes) -> bool:
        """Whether the node is known to be dead."""
        return node_id in self._dead

    def records(self) -> list[NodeRecord]:
        """All nodes, in order of registration."""
        return list(self._records.values())

    def count(self) -> tuple[int, int]:
        """Alive nodes, dead nodes."""
        return len(self._live), len(self._dead)

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        assert len(self._dead) <= self._limits.nodes_dead_max
        assert len(self._records) == len(self._live) + len(self._dead)
        heard_s = float("-inf")
        for node_id, live in self._live.items():
            assert self._records[node_id].is_alive
            assert self._records[node_id].is_suspect == live.is_suspect
            assert heard_s <= live.heard_s, "_live must be ordered by silence"
            heard_s = live.heard_s
        for endpoint, node_id in self._at_endpoint.items():
            assert self._records[node_id].raylet_endpoint == endpoint
            assert node_id in self._live
        for node_id in self._dead:
            assert not self._records[node_id].is_alive

    def _set_drain(self, record: NodeRecord, drain: DrainRecord, out: list[Command]) -> NodeRecord:
        changed = self._records[record.node_id] = replace(record, drain=drain)
        self._moved[record.node_id] = None
        out.append(Persist(Table.NODES, record.node_id, changed))
        out.append(Publish(changed))
        return changed

    def _heard(self, node_id: bytes, now: Now, view: NodeView) -> _LiveNode:
        live = self._live.pop(node_id, None) or _LiveNode(now.now_s, view)
        live.heard_s = max(now.now_s, live.heard_s)
        if live.view is not view:
            live.view = view
            live.claimed = ResourceSet()
        live.is_suspect = False
        self._moved[node_id] = None
        self._live[node_id] = live
        return live

    def _settle_at(self, record: NodeRecord) -> bytes | None:
        """Note where the node listens; returns who listened there before."""
        if not record.raylet_endpoint:
            return None
        before = self._at_endpoint.get(record.raylet_endpoint)
        self._at_endpoint[record.raylet_endpoint] = record.node_id
        return before

    def _leave(self, record: NodeRecord) -> None:
        if self._at_endpoint.get(record.raylet_endpoint) == record.node_id:
            del self._at_endpoint[record.raylet_endpoint]

    def _announce_soon(self, node_id: bytes, live: _LiveNode, now: Now, out: list[Command]) -> None:
        """Others need to know what is free here, but not at once, and a lone node has no others."""
        if len(self._live) < 2 or node_id in self._announcements:
            return
        due_s = live.announced_s + self._limits.resource_broadcast_s
        if due_s <= now.now_s:
            self._announce(node_id, now, out)
        else:
            self._announcements.set(node_id, due_s)

    def _announce(self, node_id: bytes, now: Now, out: list[Command]) -> None:
        self._announcements.cancel(node_id)
        self._live[node_id].announced_s = now.now_s
        out.append(Publish(self._records[node_id]))

    def _forgive_own_sleep(self, now: Now) -> None:
        promised_s, self._promised_s = self._promised_s, None
        if promised_s is None:
            return
        overslept_s = now.now_s - promised_s
        if overslept_s > self._limits.node_oversleep_s:
            for live in self._live.values():
                live.heard_s = min(live.heard_s + overslept_s, now.now_s)


def _view(record: NodeRecord) -> NodeView:
    available: Mapping[str, int] = record.available or record.total
    return NodeView(
        record.node_id, ResourceSet(record.total), ResourceSet(available), record.labels
    )
