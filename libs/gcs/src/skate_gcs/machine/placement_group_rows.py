"""The placement groups' rows: how a change of one is stored and found again.

What a change means is decided in ``placement_group_table``; here is only that every way to change a
row keeps the rows, their indexes and the storage in step.
"""

from __future__ import annotations

from skate_gcs.machine.commands import Command, Persist, Table
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import (
    GroupPhase,
    PlacementGroupRecord,
    PlacementGroupState,
)

_Ids = dict[bytes, None]  # a set that keeps the order in which its members came


class PlacementGroupRows:
    """All groups, live and lately removed.

    Invariants: at most ``limits.groups_removed_max`` are removed; the indexes hold exactly the
    others, each under the values of its present row.
    """

    def __init__(self, limits: GcsLimits) -> None:
        self._limits = limits
        self._records: dict[bytes, PlacementGroupRecord] = {}  # in order of registration
        self._removed: _Ids = {}  # oldest first
        self._holders: dict[tuple[str, str], bytes] = {}
        self._of_job: dict[bytes, _Ids] = {}
        self._of_creator: dict[bytes, _Ids] = {}
        self._on_node: dict[bytes, _Ids] = {}
        self._counts = dict.fromkeys(PlacementGroupState, 0)
        self._number_last = 0

    def __getitem__(self, group_id: bytes) -> PlacementGroupRecord:
        return self._records[group_id]

    def get(self, group_id: bytes) -> PlacementGroupRecord | None:
        """One row."""
        return self._records.get(group_id)

    def all(self) -> list[PlacementGroupRecord]:
        """All rows, in order of registration."""
        return list(self._records.values())

    def count_by_state(self) -> dict[PlacementGroupState, int]:
        """Groups in each state. O(1)."""
        return dict(self._counts)

    def holder_of(self, namespace: str, name: str) -> bytes | None:
        """Who holds the name; nobody holds the empty one."""
        return self._holders.get((namespace, name))

    def of_job(self, job_id: bytes) -> list[bytes]:
        """Live groups of a job."""
        return list(self._of_job.get(job_id, ()))

    def of_creator(self, actor_id: bytes) -> list[bytes]:
        """Live groups that end with this actor."""
        return list(self._of_creator.get(actor_id, ()))

    def creators(self) -> list[bytes]:
        """The actors that live groups end with."""
        return list(self._of_creator)

    def on_node(self, node_id: bytes) -> list[bytes]:
        """Groups with bundles there, or on their way there."""
        return list(self._on_node.get(node_id, ()))

    def restore(self, rows: list[PlacementGroupRecord]) -> None:
        """Take the stored rows."""
        for record in sorted(rows, key=lambda row: row.number):
            self._records[record.spec.group_id] = record
            self._number_last = max(self._number_last, record.number)
            self._counts[record.state] += 1
            if not record.is_removed:
                self._index(record)
        for record in sorted(rows, key=lambda row: row.removed_s):
            if record.is_removed:
                self._removed[record.spec.group_id] = None

    def next_number(self) -> int:
        """The place of a new group in the order of registration."""
        self._number_last += 1
        return self._number_last

    def put(self, record: PlacementGroupRecord, out: list[Command]) -> PlacementGroupRecord:
        """A new row, or a change of one; stored."""
        group_id = record.spec.group_id
        before = self._records.get(group_id)
        if before is not None:
            self._counts[before.state] -= 1
            if not before.is_removed:
                self._unindex(before)
        self._counts[record.state] += 1
        self._records[group_id] = record
        if record.is_removed:
            self._removed[group_id] = None
        else:
            self._index(record)
        out.append(Persist(Table.PLACEMENT_GROUPS, group_id, record))
        self.trim(out)
        return record

    def note(self, record: PlacementGroupRecord) -> None:
        """A change of what is not stored, nor indexed."""
        self._records[record.spec.group_id] = record

    def trim(self, out: list[Command]) -> None:
        """Forget the oldest removed groups beyond the limit; also wanted after :meth:`restore`."""
        while len(self._removed) > self._limits.groups_removed_max:
            oldest = next(iter(self._removed))
            del self._removed[oldest]
            del self._records[oldest]
            self._counts[PlacementGroupState.REMOVED] -= 1
            out.append(Persist(Table.PLACEMENT_GROUPS, oldest, None, is_lazy=True))

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the rows are inconsistent."""
        assert len(self._removed) <= self._limits.groups_removed_max
        fresh = PlacementGroupRows(self._limits)
        fresh.restore(list(self._records.values()))
        assert fresh._counts == self._counts
        assert fresh._holders == self._holders
        assert fresh._removed.keys() == self._removed.keys()
        for mine, wanted in (
            (self._of_job, fresh._of_job),
            (self._of_creator, fresh._of_creator),
            (self._on_node, fresh._on_node),
        ):
            assert {key: set(ids) for key, ids in mine.items()} == {
                key: set(ids) for key, ids in wanted.items()
            }
        for record in self._records.values():
            _check(record)

    def _index(self, record: PlacementGroupRecord) -> None:
        spec = record.spec
        if spec.name:
            self._holders[spec.namespace, spec.name] = spec.group_id
        self._of_job.setdefault(spec.job_id, {})[spec.group_id] = None
        if record.creator_actor_id:
            self._of_creator.setdefault(record.creator_actor_id, {})[spec.group_id] = None
        for node_id in record.node_ids:
            if node_id:
                self._on_node.setdefault(node_id, {})[spec.group_id] = None

    def _unindex(self, record: PlacementGroupRecord) -> None:
        spec = record.spec
        if spec.name:
            del self._holders[spec.namespace, spec.name]
        _drop(self._of_job, spec.job_id, spec.group_id)
        if record.creator_actor_id:
            _drop(self._of_creator, record.creator_actor_id, spec.group_id)
        for node_id in dict.fromkeys(record.node_ids):
            if node_id:
                _drop(self._on_node, node_id, spec.group_id)


def _drop(index: dict[bytes, _Ids], key: bytes, group_id: bytes) -> None:
    ids = index[key]
    del ids[group_id]
    if not ids:
        del index[key]


def _check(record: PlacementGroupRecord) -> None:
    """What ``PlacementGroupRecord`` says is legal in which state."""
    state, phase = record.state, record.phase
    assert len(record.node_ids) == len(record.attempts) == len(record.spec.bundles)
    placed = [bool(node_id) for node_id in record.node_ids]
    assert all(attempt <= record.attempt for attempt in record.attempts)
    if state is PlacementGroupState.PENDING:
        assert phase is GroupPhase.IDLE or phase is GroupPhase.PREPARING
        assert all(placed) if phase is GroupPhase.PREPARING else not any(placed)
    elif state is PlacementGroupState.PREPARED:
        assert phase is GroupPhase.COMMITTING
    elif state is PlacementGroupState.CREATED:
        assert phase is GroupPhase.IDLE
        assert all(placed)
    elif state is PlacementGroupState.REMOVED:
        assert phase is GroupPhase.IDLE
        assert not any(placed)
    elif phase is GroupPhase.IDLE:
        assert not all(placed)
