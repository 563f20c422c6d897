"""The actors' rows: how a change of one is stored, announced and found again.

What a change means is decided in ``actor_table``; here is only that every way to change a row keeps
the rows, their indexes and the storage in step.
"""

from __future__ import annotations

from msgspec.structs import replace

from skate_gcs.machine.actor_indexes import ActorIndexes
from skate_gcs.machine.actor_states import Trigger, next_state
from skate_gcs.machine.clock import Now
from skate_gcs.machine.commands import Command, Persist, Publish, Table
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import (
    ActorLife,
    ActorRecord,
    ActorSpec,
    ActorState,
    Address,
    DeathCause,
)


class ActorRows:
    """All actors, live and lately dead.

    Invariants: at most ``limits.actors_dead_max`` are dead; ``index`` holds exactly the others.
    """

    def __init__(self, limits: GcsLimits) -> None:
        self.index = ActorIndexes()
        self._limits = limits
        self._records: dict[bytes, ActorRecord] = {}  # in order of registration
        self._dead: dict[bytes, None] = {}  # oldest first
        self._number_last = 0

    def __getitem__(self, actor_id: bytes) -> ActorRecord:
        return self._records[actor_id]

    def get(self, actor_id: bytes) -> ActorRecord | None:
        """One row."""
        return self._records.get(actor_id)

    def all(self) -> list[ActorRecord]:
        """All rows, in order of registration."""
        return list(self._records.values())

    def live(self) -> list[ActorRecord]:
        """The rows of actors that are not dead, in order of registration."""
        return [self._records[actor_id] for actor_id in self.index.all_live()]

    def count_by_state(self) -> dict[ActorState, int]:
        """Actors in each state. O(live actors)."""
        counts = dict.fromkeys(ActorState, 0)
        for record in self.live():
            counts[record.life.state] += 1
        counts[ActorState.DEAD] = len(self._dead)
        return counts

    def restore(self, specs: dict[bytes, ActorSpec], lives: dict[bytes, ActorLife]) -> None:
        """Take the stored rows."""
        for actor_id in sorted(lives, key=lambda key: lives[key].number):
            record = ActorRecord(specs[actor_id], lives[actor_id])
            self._records[actor_id] = record
            self._number_last = record.life.number
            if not record.is_dead:
                self.index.add(record)
        for record in sorted(self._records.values(), key=lambda row: row.life.end_time_s):
            if record.is_dead:
                self._dead[record.spec.actor_id] = None

    def add(self, spec: ActorSpec, life: ActorLife, out: list[Command]) -> ActorRecord:
        """A new actor. Stored, not announced: its registrar gets it as the answer."""
        self._number_last += 1
        record = ActorRecord(spec, replace(life, number=self._number_last))
        self._records[spec.actor_id] = record
        self.index.add(record)
        out.append(Persist(Table.ACTOR_SPECS, spec.actor_id, spec))
        self._store(record, out)
        return record

    def change(self, record: ActorRecord, life: ActorLife, out: list[Command]) -> None:
        """The actor's life took a turn that others are to know."""
        changed = ActorRecord(record.spec, life)
        self._put(record, changed)
        self._store(changed, out)
        out.append(Publish(changed))

    def place(self, record: ActorRecord, node_id: bytes, out: list[Command]) -> ActorRecord:
        """A node was chosen to start the actor. Stored, not announced: it may still refuse."""
        placed = replace(record, life=replace(record.life, node_id=node_id))
        self._put(record, placed)
        self._store(placed, out)
        return placed

    def unplace(self, record: ActorRecord) -> ActorRecord:
        """The chosen node refused. The next start has a new number, at the same node too.

        A doubled order may be refused once and taken once; what that one reports, and that the node
        then takes the old number for done, must not be mistaken for news of the next start.

        Not stored: a GCS that restarts now asks the same node again, which is as good a try as any.
        """
        life = replace(record.life, node_id=b"", incarnation=record.life.incarnation + 1)
        unplaced = replace(record, life=life)
        self._put(record, unplaced)
        return unplaced

    def postpone(self, record: ActorRecord, reason: str, out: list[Command]) -> None:
        """Tell why the actor waits, or (empty) that it no longer does. Not stored."""
        postponed = replace(record, pending_reason=reason)
        self._records[record.spec.actor_id] = postponed
        out.append(Publish(postponed))

    def end(
        self,
        record: ActorRecord,
        cause: DeathCause,
        creation_error: bytes,
        now: Now,
        out: list[Command],
    ) -> None:
        """The actor is dead: its name is free, its creation task is dropped, its row stays."""
        actor_id = record.spec.actor_id
        self.index.remove(record)
        ended = ActorRecord(
            replace(record.spec, creation_task=b""),
            replace(
                record.life,
                state=next_state(record.life.state, Trigger.ENDED),
                node_id=b"",
                address=Address(),
                death_cause=cause,
                creation_error=creation_error,
                end_time_s=now.unix_s,
            ),
        )
        self._records[actor_id] = ended
        self._dead[actor_id] = None
        out.append(Persist(Table.ACTOR_SPECS, actor_id, ended.spec))
        self._store(ended, out)
        out.append(Publish(ended))
        self.trim(out)

    def trim(self, out: list[Command]) -> None:
        """Forget the oldest dead actors beyond the limit; also wanted after :meth:`restore`."""
        while len(self._dead) > self._limits.actors_dead_max:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            del self._records[oldest]
            out.append(Persist(Table.ACTOR_SPECS, oldest, None, is_lazy=True))
            out.append(Persist(Table.ACTORS, oldest, None, is_lazy=True))

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the rows are inconsistent."""
        assert len(self._dead) <= self._limits.actors_dead_max
        self.index.check_invariants(
            record for record in self._records.values() if not record.is_dead
        )
        for actor_id, record in self._records.items():
            life = record.life
            limit = record.spec.max_restarts
            assert record.spec.actor_id == actor_id
            assert limit < 0 or life.restarts_used <= limit
            assert life.restarts_used <= life.incarnation
            assert (life.death_cause is not None) == record.is_dead == (actor_id in self._dead)
            if record.is_dead:
                assert not life.node_id
                assert not record.spec.creation_task
            if life.state is ActorState.ALIVE:
                assert life.node_id == life.address.node_id != b""

    def _put(self, before: ActorRecord, after: ActorRecord) -> None:
        self.index.move(before, after)
        self._records[after.spec.actor_id] = after

    def _store(self, record: ActorRecord, out: list[Command]) -> None:
        out.append(Persist(Table.ACTORS, record.spec.actor_id, record.life))
