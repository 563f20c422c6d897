"""Stored rows: msgpack maps of the machine's records, by field name.

By name, so that a field may be added: rows without it get its default, and an older release ignores
it. What cannot be decoded is reported with its table and key, and nothing of it is used.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from skate_gcs.errors import StorageCorruptError
from skate_gcs.machine.commands import Table
from skate_gcs.machine.gcs_machine import SavedState
from skate_gcs.machine.job_table import JOB_COUNTER_KEY
from skate_gcs.machine.records import (
    ActorLife,
    ActorSpec,
    CounterRecord,
    JobRecord,
    KillRecord,
    NodeRecord,
    PlacementGroupRecord,
    Row,
    WorkerRecord,
)
from skate_gcs.storage import Storage

_R = TypeVar("_R")
_encode: Final = msgspec.msgpack.Encoder().encode


def encode_row(row: Row) -> bytes:
    """The bytes to store; those of the key-value table as they are."""
    return row if isinstance(row, bytes) else _encode(row)


def load_state(storage: Storage) -> SavedState:
    """All tables. Blocks.

    Raises:
        StorageCorruptError: a row can not be read.
        StorageError: the storage can not be read.
    """
    specs = _load(storage, Table.ACTOR_SPECS, ActorSpec)
    lives = _load(storage, Table.ACTORS, ActorLife)
    for actor_id in lives:
        if actor_id not in specs:
            problem = f"the actor {actor_id.hex()} has no row in {Table.ACTOR_SPECS}."
            raise StorageCorruptError("tables", problem)
    return SavedState(
        nodes=list(_load(storage, Table.NODES, NodeRecord).values()),
        jobs=list(_load(storage, Table.JOBS, JobRecord).values()),
        job_counter=_load(storage, Table.COUNTERS, CounterRecord).get(JOB_COUNTER_KEY),
        actor_specs=specs,
        actors=lives,
        workers=list(_load(storage, Table.WORKERS, WorkerRecord).values()),
        kills=list(_load(storage, Table.KILLS, KillRecord).values()),
        kv=storage.scan(Table.KV),
        groups=list(_load(storage, Table.PLACEMENT_GROUPS, PlacementGroupRecord).values()),
    )


def _load(storage: Storage, table: Table, kind: type[_R]) -> dict[bytes, _R]:
    decode = msgspec.msgpack.Decoder(kind).decode
    rows: dict[bytes, _R] = {}
    for key, value in storage.scan(table):
        try:
            rows[key] = decode(value)
        except msgspec.DecodeError as error:
            problem = f"the row {key.hex()} of table {table} can not be read ({error})."
            raise StorageCorruptError("tables", problem) from error
    return rows
