"""Where the copies of this process's stored objects are, and who may pull from which of them.

An owner is the directory of its objects. Of most objects one thing is known, the node of the
primary copy, and it stands in the object's entry; this table holds what is known beyond that:
further copies, pulls under way, who waits for a source, nodes that died. An object that no other
node asks for costs nothing here.

At most ``PULLS_PER_COPY`` pulls run from one copy at a time. Who asks while all are taken is sent
to a node to which a copy is on its way, and gets each byte as soon as it is there; so a broadcast
to n nodes fans out as a tree, whose nodes all receive and send at the same time. Of small objects,
for which that is not worth it, and when no such node has a slot left, who asks waits for a slot or
for a new copy. A slot is free again when the puller reports, when its process or node dies, or when
the source's node does. Two pulls of the same object to the same node are one transfer and take one
slot.

Invariants, for each object::

    load of a copy, or of a node under way == pulls whose source it is, <= PULLS_PER_COPY
    somebody waits  =>  every copy has load PULLS_PER_COPY
    a source that is under way gets its own bytes, by however many others, from a copy

Before it: the questions of pullers (``owned_objects``). After it: the raylets, which move the
bytes. All methods are O(copies + pulls of the object), but for deaths: O(objects in the table).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

PULLS_PER_COPY: Final = 2
SOURCES_MAX: Final = 4  # named to a puller; the first is charged, the others stand in for it
RELAY_MIN_BYTES: Final = 8 << 20  # objects from this size on are passed on while they arrive
STRIKES_MAX: Final = 3  # reports that a copy on a live node can not be had, before it is believed
DEAD_NODES_KEPT_MAX: Final = 10_000


class Route(NamedTuple):
    """From where to pull. No ``node_ids``: no copy is left."""

    node_ids: list[bytes]  # they have a copy; best first
    arriving_at: tuple[bytes, ...] = ()  # a copy is on its way there: the others stand in for these


class Sources(NamedTuple):
    """Who may pull now, and from where."""

    object_id: bytes
    worker_id: bytes
    route: Route


class _Pull:
    __slots__ = ("node_id", "source")

    def __init__(self, node_id: bytes, source: bytes) -> None:
        self.node_id = node_id  # where the copy goes
        self.source = source  # the copy that is charged; empty: another pull to this node is


class _Record:
    __slots__ = ("charged", "copies", "is_relayed", "pulls", "relays", "strikes", "waiting")

    def __init__(self) -> None:
        self.copies: dict[bytes, int] = {}  # node -> pulls that are charged to it
        self.relays: dict[bytes, int] = {}  # the same of nodes without a copy that pull one
        self.charged: dict[bytes, int] = {}  # node -> pulls that ever were
        self.is_relayed = False
        self.pulls: dict[bytes, _Pull] = {}  # by the process that asked
        self.waiting: dict[bytes, bytes] = {}  # process -> its node, in the order of asking
        self.strikes: dict[bytes, int] = {}


class ObjectDirectory:
    """The caller serialises the calls."""

    def __init__(self) -> None:
        self._records: dict[bytes, _Record] = {}
        self._dead_nodes: OrderedDict[bytes, None] = OrderedDict()
        # Nodes that may have a copy of which nobody says so: the puller died, a report that it is
        # lost there may mean a bad line. They are told when the object goes.
        self._strays: dict[bytes, dict[bytes, None]] = {}

    # ---- what pullers say; take `turns` after each, and then look at `is_orphan` ----

    def ask(
        self,
        object_id: bytes,
        primary: bytes,
        worker_id: bytes,
        node_id: bytes,
        size_bytes: int = 0,
        avoid: Sequence[bytes] = (),
    ) -> Route | None:
        """Sources for a process on ``node_id``. None: it waits for one.

        ``primary`` is believed for an object that is not in the table; empty: there is none. A
        repeated question replaces the earlier one. ``avoid``: nodes on the way to which the asker
        found no copy.
        """
        record = self._records.get(object_id)
        if record is None:
            record = self._records[object_id] = _Record()
            if primary and primary not in self._dead_nodes:
                record.copies[primary] = 0
        fed = [pull for pull in record.pulls.values() if pull.source == node_id]
        self._end_pull(record, worker_id)
        record.waiting.pop(worker_id, None)
        record.is_relayed = size_bytes >= RELAY_MIN_BYTES
        if node_id in record.copies:
            return Route([node_id])
        if not record.copies and not record.pulls:
            return Route([])
        route = self._take_slot(record, worker_id, node_id, avoid)
        if route is None:
            record.waiting[worker_id] = node_id
        elif node_id in record.relays:
            # It asks again and goes on from another source, and who pulls from it with it.
            for pull in fed:
                if not pull.source:
                    pull.source = node_id
                    record.relays[node_id] += 1
        return route

    def added(self, object_id: bytes, worker_id: bytes, node_id: bytes) -> bool:
        """A pull succeeded: a copy is on ``node_id``. False: the object is not in the table."""
        record = self._records.get(object_id)
        if record is None:
            return False
        if node_id not in self._dead_nodes:
            # Who pulls from it while it arrives goes on with the copy.
            load = record.relays.pop(node_id, 0)
            record.copies.setdefault(node_id, load)
            record.strikes.pop(node_id, None)
        self._end_pull(record, worker_id)
        return True

    def stopped(self, object_id: bytes, worker_id: bytes) -> None:
        """A pull ended without a copy, or the process waits no more."""
        record = self._records.get(object_id)
        if record is not None:
            record.waiting.pop(worker_id, None)
            pull = record.pulls.get(worker_id)
            if pull is not None:
                self._add_stray(object_id, pull.node_id)
            self._end_pull(record, worker_id)

    def lost_at(
        self, object_id: bytes, node_ids: list[bytes], reporter: bytes, *, is_precious: bool
    ) -> None:
        """A puller on the node ``reporter`` could not get these copies; it is to :meth:`ask` again.

        ``is_precious``: nothing can make the object again, so a report that may only mean a bad
        line between two nodes is believed at the ``STRIKES_MAX``-th time.
        """
        record = self._records.get(object_id)
        if record is None:
            return
        for node_id in node_ids:
            if node_id not in record.copies:
                continue
            strikes = record.strikes[node_id] = record.strikes.get(node_id, 0) + 1
            if not is_precious or strikes >= STRIKES_MAX or node_id == reporter:
                self._drop_copy(record, node_id)
                self._add_stray(object_id, node_id)

    def turns(self, object_id: bytes) -> list[Sources]:
        """Takes the processes that waited and may pull now."""
        record = self._records.get(object_id)
        turns: list[Sources] = []
        if record is None or not record.waiting or not record.copies:
            return turns
        for worker_id, node_id in list(record.waiting.items()):
            route: Route | None = Route([node_id])
            if node_id not in record.copies:
                route = self._take_slot(record, worker_id, node_id, ())
            if route is not None:
                del record.waiting[worker_id]
                turns.append(Sources(object_id, worker_id, route))
        return turns

    def is_orphan(self, object_id: bytes) -> bool:
        """Whether somebody waits, no copy is left, and no pull may still make one."""
        record = self._records.get(object_id)
        if record is None or record.copies or record.pulls:
            return False
        return bool(record.waiting)

    # ---- what the owner says ----

    def copies(self, object_id: bytes, primary: bytes) -> list[bytes]:
        """The nodes that are believed to hold the object, the primary first."""
        record = self._records.get(object_id)
        if record is None:
            return [primary] if primary and primary not in self._dead_nodes else []
        return sorted(record.copies, key=lambda node_id: node_id != primary)

    def forget(self, object_id: bytes, primary: bytes) -> list[bytes]:
        """The object was released. Returns the nodes where copies are or may come.

        Who waits is forgotten too: the caller answers them.
        """
        record = self._records.pop(object_id, None)
        nodes = self._strays.pop(object_id, {})
        if record is None:
            nodes[primary] = None
        else:
            nodes.update(dict.fromkeys(record.copies))
            nodes.update(dict.fromkeys(pull.node_id for pull in record.pulls.values()))
        nodes.pop(b"", None)
        return [node_id for node_id in nodes if node_id not in self._dead_nodes]

    def reopened(self, object_id: bytes) -> None:
        """The object has no copy, and is made again; who waits is forgotten, as above."""
        record = self._records.pop(object_id, None)
        if record is not None:
            for pull in record.pulls.values():
                self._add_stray(object_id, pull.node_id)

    def waiting(self, object_id: bytes) -> dict[bytes, bytes]:
        """The processes that wait for a source, with their nodes."""
        record = self._records.get(object_id)
        return {} if record is None else dict(record.waiting)

    # ---- deaths ----

    def is_dead(self, node_id: bytes) -> bool:
        """Whether this node is known to have died."""
        return node_id in self._dead_nodes

    def node_died(self, node_id: bytes) -> list[bytes]:
        """All on the node is gone. Returns the objects of which something changed."""
        self._dead_nodes[node_id] = None
        while len(self._dead_nodes) > DEAD_NODES_KEPT_MAX:
            self._dead_nodes.popitem(last=False)
        changed: list[bytes] = []
        for object_id, record in self._records.items():
            gone = [w for w, pull in record.pulls.items() if pull.node_id == node_id]
            quit_ = [w for w, waits_on in record.waiting.items() if waits_on == node_id]
            if gone or quit_ or node_id in record.copies:
                changed.append(object_id)
            for worker_id in gone:
                self._end_pull(record, worker_id)
            for worker_id in quit_:
                del record.waiting[worker_id]
            self._drop_copy(record, node_id)
        return changed

    def process_died(self, worker_id: bytes) -> list[bytes]:
        """A process pulls and waits no more. Returns the objects of which something changed."""
        changed = [
            object_id
            for object_id, record in self._records.items()
            if worker_id in record.pulls or worker_id in record.waiting
        ]
        for object_id in changed:
            self.stopped(object_id, worker_id)
        return changed

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an invariant of the module's docstring is broken."""
        for record in self._records.values():
            loads = dict.fromkeys([*record.copies, *record.relays], 0)
            for pull in record.pulls.values():
                assert not pull.source or pull.source in loads
                if pull.source:
                    loads[pull.source] += 1
            assert loads == record.copies | record.relays
            assert all(load <= PULLS_PER_COPY for load in loads.values())
            assert not set(record.copies) & set(record.relays)
            assert set(record.relays) <= {pull.node_id for pull in record.pulls.values()}
            assert not set(record.copies) & set(self._dead_nodes)
            assert not set(record.waiting) & set(record.pulls)
            if record.waiting:  # once `turns` was taken
                assert all(load == PULLS_PER_COPY for load in record.copies.values())

    # ---- slots ----

    def _add_stray(self, object_id: bytes, node_id: bytes) -> None:
        if node_id not in self._dead_nodes:
            self._strays.setdefault(object_id, {})[node_id] = None

    def _take_slot(
        self, record: _Record, worker_id: bytes, node_id: bytes, avoid: Sequence[bytes]
    ) -> Route | None:
        loads, charged = record.copies, record.charged
        # Those that served least come first: the tree grows from its leaves.
        ranked = sorted(loads, key=lambda source: (loads[source], charged.get(source, 0)))
        if not ranked:
            return None
        copies = ranked[:SOURCES_MAX]
        if any(pull.node_id == node_id for pull in record.pulls.values()):
            record.pulls[worker_id] = _Pull(node_id, b"")  # the raylet joins it to that one
            return Route(copies)
        source = ranked[0]
        arriving_at: tuple[bytes, ...] = ()
        if loads[source] >= PULLS_PER_COPY:
            loads = record.relays
            relay = self._best_relay(record, avoid) if record.is_relayed else None
            if relay is None:
                return None
            source, arriving_at = relay, (relay,)
        loads[source] += 1
        charged[source] = charged.get(source, 0) + 1
        record.relays.setdefault(node_id, 0)
        record.pulls[worker_id] = _Pull(node_id, source)
        return Route(copies, arriving_at)

    def _best_relay(self, record: _Record, avoid: Sequence[bytes]) -> bytes | None:
        """A node under way with a slot whose bytes come from a copy in the end: close to it, and
        idle.
        """
        feeds = {pull.node_id: pull.source for pull in record.pulls.values() if pull.source}
        best, best_rank = None, 0
        for relay, load in record.relays.items():
            if load >= PULLS_PER_COPY or relay in avoid:
                continue
            source, steps = relay, 0
            while source not in record.copies and source in feeds and steps <= len(feeds):
                source, steps = feeds[source], steps + 1
            if source in record.copies and (best is None or steps + load < best_rank):
                best, best_rank = relay, steps + load
        return best

    def _end_pull(self, record: _Record, worker_id: bytes) -> None:
        pull = record.pulls.pop(worker_id, None)
        if pull is None:
            return
        for other in record.pulls.values():
            if other.node_id == pull.node_id:
                other.source = other.source or pull.source  # the transfer goes on for this one
                return
        if pull.source in record.copies:
            record.copies[pull.source] -= 1
        elif pull.source in record.relays:
            record.relays[pull.source] -= 1
        if record.relays.pop(pull.node_id, None) is not None:
            _lose_source(record, pull.node_id)

    def _drop_copy(self, record: _Record, node_id: bytes) -> None:
        if record.copies.pop(node_id, None) is None:
            return
        record.strikes.pop(node_id, None)
        record.charged.pop(node_id, None)
        _lose_source(record, node_id)


def _lose_source(record: _Record, node_id: bytes) -> None:
    for pull in record.pulls.values():
        if pull.source == node_id:
            pull.source = b""
