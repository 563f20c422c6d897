"""Memory and disk together: the counts and the list that people see.

Before it: the inventory knows memory, the book knows the disk. After it: the server hands this out.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

from skate_object_store.machine.facts import ObjectRecord, ObjectState
from skate_object_store.machine.inventory import Inventory
from skate_object_store.machine.restorer import Restorer
from skate_object_store.machine.spill_book import SpillBook, SpilledObject
from skate_object_store.machine.spill_planner import SpillPlanner


def object_records(
    inventory: Inventory, book: SpillBook, restorer: Restorer, now_s: float, limit: int
) -> list[ObjectRecord]:
    """Every object once, wherever it is, the biggest first. O(objects)."""
    records = inventory.records(now_s, limit)
    if book.by_id:
        records = [
            record
            if record.state is ObjectState.DELETED or book.find(record.object_id) is None
            else replace(record, is_on_disk=True)
            for record in records
        ]
        records += (
            _record(spilled, restorer, now_s)
            for spilled in book.by_id.values()
            if inventory.find(spilled.object_id) is None
        )
    return heapq.nlargest(limit, records, key=lambda record: record.size_bytes)


def disk_counts(
    inventory: Inventory, book: SpillBook, restorer: Restorer, planner: SpillPlanner | None
) -> dict[str, int]:
    """The fields of ``TableStatistics`` that are about the disk. O(objects on disk)."""
    on_disk = [spilled for spilled in book.by_id.values() if spilled.place is not None]
    only = [spilled for spilled in on_disk if inventory.find(spilled.object_id) is None]
    return {
        "spilled_objects": len(only),
        "spilled_bytes": sum(spilled.size_bytes for spilled in only),
        "disk_objects": len(on_disk),
        "disk_bytes": sum(spilled.size_bytes for spilled in on_disk),
        "disk_files": len(book.files),
        "disk_files_bytes": book.files_bytes,
        "spilling_objects": 0 if planner is None else planner.spilling_objects,
        "restoring_objects": len(restorer) + inventory.restoring_count,
        "lost_objects": len(book) - len(on_disk),
        "spilled_total": 0 if planner is None else planner.spilled_total,
        "spilled_bytes_total": 0 if planner is None else planner.spilled_bytes_total,
        "restored_total": restorer.restored_total,
        "restored_bytes_total": restorer.restored_bytes_total,
        "spill_failures_total": 0 if planner is None else planner.failures_total,
        "restore_failures_total": restorer.failures_total,
    }


def _record(spilled: SpilledObject, restorer: Restorer, now_s: float) -> ObjectRecord:
    if spilled.place is None:
        state = ObjectState.LOST
    elif spilled.object_id in restorer.parked:
        state = ObjectState.RESTORING
    else:
        state = ObjectState.SPILLED
    return ObjectRecord(
        object_id=spilled.object_id,
        size_bytes=spilled.size_bytes,
        owner=spilled.owner,
        state=state,
        pins=0,
        age_s=now_s - spilled.created_s,
        note=spilled.note,
        is_on_disk=spilled.place is not None,
    )
