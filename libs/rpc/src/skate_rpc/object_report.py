"""What a cluster knows of its objects: the records that travel.

A process reports its references, a node adds what its store holds, and ``skate_rpc.object_rows``
joins both. Every struct is an array on the wire; fields may only be appended, each with a default.
Source: SURFACE O20.
"""

from __future__ import annotations

from typing import Final

import msgspec

ROWS_MAX: Final = 10_000  # of one process, and of one store, in one report
ANSWER_S: Final = 2.0  # a process that takes longer is named in the report, not waited for

LOCAL_REFERENCE: Final = "LOCAL_REFERENCE"
USED_BY_PENDING_TASK: Final = "USED_BY_PENDING_TASK"
CAPTURED_IN_OBJECT: Final = "CAPTURED_IN_OBJECT"
PINNED_IN_MEMORY: Final = "PINNED_IN_MEMORY"
ACTOR_HANDLE: Final = "ACTOR_HANDLE"
BORROWED: Final = "BORROWED"
UNREAD_ITEM: Final = "UNREAD_GENERATOR_ITEM"
OUT_OF_BAND: Final = "PICKLED_OUT_OF_BAND"
PINNED_BY_RUNTIME: Final = "PINNED_BY_RUNTIME"
UNEXPLAINED: Final = "UNEXPLAINED"


class ObjectRow(msgspec.Struct, array_like=True, gc=False):
    """One object as one process knows it."""

    object_id: bytes
    state: str  # "PENDING", "INLINE", "STORED" or "FAILED"
    size_bytes: int
    owner_id: bytes
    reasons: dict[str, int]  # why it is held, and how many times each
    node_ids: list[bytes] = []  # whose stores hold it, as far as this process knows
    site: str = ""  # the line that made it
    task_name: str = ""
    task_status: str = ""  # of an unfinished task
    attempt: int = 0


class ProcessObjects(msgspec.Struct, array_like=True, gc=False):
    """The references of one process, the largest objects first."""

    worker_id: bytes
    pid: int
    is_driver: bool
    job_id: bytes
    rows: list[ObjectRow] = []
    left_out: int = 0
    left_out_bytes: int = 0
    problem: str = ""  # why it did not report


class StoredObject(msgspec.Struct, array_like=True, gc=False):
    """One object in a node's store."""

    object_id: bytes
    owner_id: bytes
    size_bytes: int
    age_s: float
    pins: int  # views that processes of the node have
    is_sealed: bool
    is_deleted: bool  # and kept only by views
    note: str = ""  # the line that made it
    is_copy: bool = False  # a secondary copy, which may be dropped
    is_spilled: bool = False
    place: str = ""  # where it is spilled to


class NodeObjects(msgspec.Struct, array_like=True, gc=False):
    """One node's store and processes."""

    node_id: bytes
    node_name: str = ""
    ip: str = ""
    capacity_bytes: int = 0
    used_bytes: int = 0  # ranges that hold an object, with the allocator's rounding
    copies_bytes: int = 0  # secondary copies, which may be dropped at any time
    stored: list[StoredObject] = []
    stored_left_out: int = 0
    stored_left_out_bytes: int = 0
    processes: list[ProcessObjects] = []
    problem: str = ""  # why it did not report

    def listed_bytes(self) -> int:
        """The content of the objects that are listed and in memory, but for copies."""
        return sum(i.size_bytes for i in self.stored if not i.is_spilled and not i.is_copy)

    def rounding_bytes(self) -> int:
        """What the store uses beyond the content of its objects."""
        explained = self.listed_bytes() + self.copies_bytes + self.stored_left_out_bytes
        return self.used_bytes - explained
