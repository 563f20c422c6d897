"""The worker table: which processes died lately, and why. Cost: O(1) per death."""

from __future__ import annotations

from msgspec.structs import replace

from skate_gcs.machine.clock import Now
from skate_gcs.machine.commands import Command, Persist, Publish, Table
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import WorkerRecord


class WorkerTable:
    """Dead workers, newest last. Invariant: at most ``limits.workers_dead_max``."""

    def __init__(self, limits: GcsLimits) -> None:
        self._limits = limits
        self._dead: dict[bytes, WorkerRecord] = {}

    def __len__(self) -> int:
        return len(self._dead)

    def restore(self, rows: list[WorkerRecord]) -> None:
        """Take the stored rows, in any order."""
        for record in sorted(rows, key=lambda row: row.end_time_s):
            self._dead[record.worker_id] = record

    def get_dead(self, worker_id: bytes) -> WorkerRecord | None:
        """The worker's death, if it is remembered."""
        return self._dead.get(worker_id)

    def add(self, record: WorkerRecord, now: Now, out: list[Command]) -> bool:
        """Note a death. False: it is known already."""
        if record.worker_id in self._dead:
            return False
        record = replace(record, end_time_s=now.unix_s)
        self._dead[record.worker_id] = record
        # Lazy: the row only informs. What follows from the death is stored with the actors and
        # jobs.
        out.append(Persist(Table.WORKERS, record.worker_id, record, is_lazy=True))
        out.append(Publish(record))
        self.trim(out)
        return True

    def trim(self, out: list[Command]) -> None:
        """Forget the oldest deaths beyond the limit; also wanted after :meth:`restore`."""
        while len(self._dead) > self._limits.workers_dead_max:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            out.append(Persist(Table.WORKERS, oldest, None, is_lazy=True))

    def records(self) -> list[WorkerRecord]:
        """Dead workers, newest last."""
        return list(self._dead.values())

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the table is inconsistent."""
        assert len(self._dead) <= self._limits.workers_dead_max
