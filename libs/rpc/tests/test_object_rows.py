"""The reports of nodes and processes, joined."""

from __future__ import annotations

from typing import Any

from skate_rpc.object_report import NodeObjects, ObjectRow, ProcessObjects, StoredObject
from skate_rpc.object_rows import most_telling, rows_of

DRIVER, WORKER = b"d" * 28, b"w" * 28
PUT = b"\x01" * 24 + b"\x80\x00\x00\x01"
RETURN = b"\x01" * 24 + b"\x00\x00\x00\x01"


def node(name: bytes, *processes: ProcessObjects, **more: Any) -> NodeObjects:
    return NodeObjects(name * 28, "box", "10.0.0.1", processes=list(processes), **more)


def process(worker_id: bytes, pid: int, *rows: ObjectRow) -> ProcessObjects:
    return ProcessObjects(worker_id, pid, worker_id == DRIVER, b"\0\0\0\1", list(rows))


def held(object_id: bytes, state: str = "STORED", **more: Any) -> ObjectRow:
    return ObjectRow(object_id, state, 100, DRIVER, {"LOCAL_REFERENCE": 1}, **more)


def stored(object_id: bytes, **more: Any) -> StoredObject:
    fields: dict[str, Any] = {"pins": 0, "is_sealed": True, "is_deleted": False, **more}
    return StoredObject(object_id, DRIVER, 100, 1.0, **fields)


def test_rows_of_a_borrower_name_the_owners_process_and_line() -> None:
    owner = process(DRIVER, 1, held(PUT, site="a.py:3 in f"))
    borrower = process(WORKER, 2, held(PUT))
    first, second = rows_of([node(b"a", owner), node(b"b", borrower)])

    assert (first.type, first.pid, first.owner_pid) == ("DRIVER", 1, 1)
    assert (second.type, second.pid, second.owner_pid) == ("WORKER", 2, 1)
    assert first.call_site == second.call_site == "a.py:3 in f"


def test_rows_say_where_the_object_is_and_who_views_it() -> None:
    (row,) = rows_of(
        [
            node(b"a", process(DRIVER, 1, held(PUT, node_ids=[b"c" * 28]))),
            node(b"b", stored=[stored(PUT, pins=2, is_spilled=True, note="n.py:1")]),
        ]
    )
    assert row.stored_on == [(b"b" * 28).hex(), (b"c" * 28).hex()]
    assert row.reasons == {"LOCAL_REFERENCE": 1, "PINNED_IN_MEMORY": 2}
    assert (row.view_count, row.is_spilled, row.call_site) == (2, True, "n.py:1")


def test_stored_object_that_nobody_refers_to_has_a_row_of_its_own() -> None:
    unexplained, viewed, written = rows_of(
        [
            node(
                b"a",
                stored=[
                    stored(b"x" * 28),
                    stored(b"y" * 28, pins=1, is_deleted=True),
                    stored(b"z" * 28, is_sealed=False),
                ],
            )
        ]
    )
    assert (unexplained.reference_type, unexplained.pid, unexplained.type) == ("UNEXPLAINED", 0, "")
    assert unexplained.owner_id == DRIVER.hex()
    assert viewed.reference_type == "PINNED_IN_MEMORY"
    assert written.state == "BEING_WRITTEN"


def test_status_of_a_task_is_told_from_its_object() -> None:
    rows = rows_of(
        [
            node(
                b"a",
                process(
                    DRIVER,
                    1,
                    held(PUT),
                    held(RETURN),
                    held(RETURN, "FAILED"),
                    held(RETURN, "PENDING", task_status="SUBMITTED_TO_WORKER"),
                    held(RETURN, "PENDING"),
                ),
            )
        ]
    )
    assert [row.task_status for row in rows] == [
        "NIL",
        "FINISHED",
        "FAILED",
        "SUBMITTED_TO_WORKER",
        "NIL",
    ]
    assert [row.object_size for row in rows] == [100, 100, 100, -1, -1]


def test_bytes_of_a_store_add_up_to_what_is_used() -> None:
    report = node(
        b"a",
        stored=[stored(PUT), stored(RETURN), stored(b"s" * 28, is_spilled=True)],
        used_bytes=1000,
        copies_bytes=300,
        stored_left_out_bytes=200,
    )
    assert report.listed_bytes() == 200
    assert report.rounding_bytes() == 300


def test_most_telling_reason_prefers_handles_and_tasks() -> None:
    assert most_telling({"LOCAL_REFERENCE": 1, "ACTOR_HANDLE": 1}) == "ACTOR_HANDLE"
    assert most_telling({"LOCAL_REFERENCE": 1, "USED_BY_PENDING_TASK": 2}) == "USED_BY_PENDING_TASK"
    assert most_telling({}) == "UNEXPLAINED"
