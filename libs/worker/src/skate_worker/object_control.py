"""What a program may ask about its objects beside their values: free them, find them, copy them.

Before it: ``object_access``. After it: ``core``. The messages go to the owner of an object, as
those of the borrowing protocol do; none of them is on the path of a task.
"""

from __future__ import annotations

import itertools
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from skate_rpc import node_protocol as node
from skate_worker.call_site import call_site
from skate_worker.errors import ObjectFreedError, OutOfBandReferenceError
from skate_worker.machine.references import FAILED, INLINE, PENDING, STORED, Entry, Owner
from skate_worker.object_access import ObjectAccess
from skate_worker.object_ref import ObjectRef
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer
from skate_worker.serialization import deserialize, serialize
from skate_worker.task_protocol import (
    AskLocations,
    FreeObjects,
    Location,
    Locations,
    ObjectsFreed,
)

OUT_OF_BAND_VARIABLE: Final = "SKATE_ALLOW_OUT_OF_BAND_REFERENCES"
OUT_OF_BAND_WARNINGS_MAX: Final = 20  # lines of code; after that a program does it on purpose

_ABSENT: Final = object()


class FoundObject(NamedTuple):
    """Where an object is."""

    node_ids: list[bytes]
    """Whose stores hold it; empty for a small value, which is with its owner."""
    size_bytes: int | None
    """None: it is not there yet."""
    did_spill: bool = False
    """Whether a copy is on disk rather than in memory."""


class Question:
    """Answers of several owners, awaited together."""

    def __init__(self, owners: int) -> None:
        self.left: int = owners
        self.rows: list[Location] = []
        self.done: threading.Event = threading.Event()

    def answered(self, rows: Iterable[Location]) -> None:
        """One of the owners has said what it will ever say."""
        self.rows.extend(rows)
        self.left -= 1
        if self.left == 0:
            self.done.set()


class ObjectControl(ObjectAccess):
    """A member that frees and finds objects. Thread-safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.out_of_band: dict[bytes, str] = {}  # object id -> the line that pickled it
        self._out_of_band_lines: set[str] = set()
        self._questions: dict[int, tuple[bytes, Question]] = {}  # number -> (owner's id, question)
        self._question_numbers = itertools.count(1)
        super().__init__(*args, **kwargs)
        self._control_handlers: dict[type[Any], Callable[[Peer, Any], None]] = {
            FreeObjects: self._on_free,
            ObjectsFreed: self._on_freed,
            AskLocations: self._on_ask_locations,
            Locations: self._on_locations,
        }

    # ---- values ----

    def get_copies(
        self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None = None
    ) -> list[Any]:
        """As :meth:`get`, but over private memory: arrays in the values are writable."""
        self.get(refs, timeout_s)  # waits, fetches, and raises the first error
        entries = [ref._entry for ref in refs]
        views = self.bring(entries, None, node.PULL_FOR_GET)
        copies = [bytearray(views.get(entry, entry.data)) for entry in entries]
        return [deserialize(memoryview(copy), is_writable=True) for copy in copies]

    # ---- free ----

    def free(self, refs: Sequence[ObjectRef[Any]], *, is_local_only: bool = False) -> None:
        """Delete the values, wherever they are; a later ``get`` raises ``ObjectFreedError``.

        What is not ready yet is left alone. ``is_local_only``: delete copies in this node's store
        only, which loses those values that have no other copy.
        """
        owned: list[Entry] = []
        by_owner: dict[Owner, list[bytes]] = {}
        for entry in dict.fromkeys(ref._entry for ref in refs):
            if is_local_only and entry.state == INLINE:
                continue
            if is_local_only and entry.node_id != self.ownership.node_id:
                self._drop_copy(entry)
                continue
            if entry.owner is None:
                owned.append(entry)
            else:
                by_owner.setdefault(entry.owner, []).append(entry.object_id)
        if owned:
            self._free_owned(owned)
        for owner, object_ids in by_owner.items():
            self._mark_freed(object_ids)
            self.ownership.tell(owner, FreeObjects(object_ids))

    def _free_owned(self, entries: Iterable[Entry]) -> None:
        ownership = self.ownership
        told: dict[bytes, list[bytes]] = {}
        stored: list[Entry] = []
        released: list[Entry] = []
        for entry in entries:
            data = _freed_error(ownership, entry.object_id)
            with ownership.lock:
                if entry.state not in (INLINE, STORED) or entry.data == b"":
                    continue  # pending, failed, or the keeper of an actor
                if entry.state == STORED:
                    stored.append(entry)
                _fail_freed(entry, data)
                for worker_id in entry.borrowers or ():
                    told.setdefault(worker_id, []).append(entry.object_id)
                inner, entry.contained = entry.contained, None
                ownership.table.unpin_all(inner or (), released)
        if stored:
            self.plane.owned.freed(stored)
        for worker_id, object_ids in told.items():
            peer = self.peers.find(worker_id)
            if peer is not None:
                ownership.send(peer, ObjectsFreed(object_ids))
        if released:
            ownership.finish_released(released)

    def _drop_copy(self, entry: Entry) -> None:
        # A copy of what lies on another node: it may be brought again.
        if self.plane.here.pop(entry.object_id, _ABSENT) is None and self.ownership.store:
            self.ownership.store.delete([entry.object_id])

    def _mark_freed(self, object_ids: Iterable[bytes]) -> None:
        # In a borrower: what it knows of the value is no longer so.
        ownership = self.ownership
        for object_id in object_ids:
            data = _freed_error(ownership, object_id)
            with ownership.lock:
                entry = ownership.table.entries.get(object_id)
                if entry is None or entry.owner is None or entry.state in (PENDING, FAILED):
                    continue
                _fail_freed(entry, data)
            self.plane.here.pop(object_id, None)

    # ---- locations ----

    def locations(
        self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None
    ) -> dict[bytes, FoundObject]:
        """Where objects are, by id. Asks the owners of borrowed ones, all at once.

        Those whose owner did not answer in time, or no longer knows them, are left out.
        """
        found: dict[bytes, FoundObject] = {}
        by_owner: dict[Owner, list[bytes]] = {}
        for entry in dict.fromkeys(ref._entry for ref in refs):
            if entry.owner is None:
                with self.ownership.lock:
                    found[entry.object_id] = _found(self._location(entry))
            else:
                by_owner.setdefault(entry.owner, []).append(entry.object_id)
        if by_owner:
            for row in self._ask_owners(by_owner, timeout_s):
                found[row.object_id] = _found(row)
        return found

    def _location(self, entry: Entry) -> Location:
        # With the lock.
        if entry.state == STORED:
            node_ids = self.plane.directory.copies(entry.object_id, entry.node_id)
            return Location(entry.object_id, node_ids, entry.size_bytes)
        if entry.state == PENDING:
            return Location(entry.object_id, [])
        return Location(entry.object_id, [], len(entry.data or b""))

    def _ask_owners(
        self, by_owner: dict[Owner, list[bytes]], timeout_s: float | None
    ) -> list[Location]:
        question = Question(len(by_owner))
        numbers: list[int] = []
        for owner, object_ids in by_owner.items():
            number = self.begin_question(owner, question)
            numbers.append(number)
            peer = self.peers.get(owner.worker_id, owner.endpoint)
            if not self.ownership.send(peer, AskLocations(number, object_ids)):
                self.end_question(number, ())
        question.done.wait(timeout_s)
        for number in numbers:
            self._questions.pop(number, None)
        return list(question.rows)

    def begin_question(self, owner: Owner, question: Question) -> int:
        """The number under which the owner answers; :meth:`end_question` in any case."""
        number = next(self._question_numbers)
        self._questions[number] = owner.worker_id, question
        return number

    def end_question(self, number: int, rows: Iterable[Location]) -> None:
        """An owner has answered, or will not: nothing happens for one that has."""
        asked = self._questions.pop(number, None)
        if asked is not None:
            asked[1].answered(rows)

    # ---- references pickled by other means ----

    def pin_out_of_band(self, entry: Entry) -> None:
        """Someone pickled a reference by other means: keep the object while the process lives.

        Warns once a line of code. Raises ``OutOfBandReferenceError`` when
        ``SKATE_ALLOW_OUT_OF_BAND_REFERENCES=0`` forbids it.
        """
        site = call_site()
        hint = (
            "put the reference into a task's arguments, a returned value or put() instead, where"
            " Skate counts it"
        )
        if os.environ.get(OUT_OF_BAND_VARIABLE, "1") == "0":
            raise OutOfBandReferenceError(
                f"A reference was pickled outside Skate at {site}, which {OUT_OF_BAND_VARIABLE}=0"
                f" forbids: {hint}."
            )
        with self.ownership.lock:
            is_new = entry.object_id not in self.out_of_band
            self.out_of_band[entry.object_id] = site
            is_new_line = site not in self._out_of_band_lines
            self._out_of_band_lines.add(site)
        if is_new:
            super().pin_out_of_band(entry)
        if is_new_line and len(self._out_of_band_lines) <= OUT_OF_BAND_WARNINGS_MAX:
            warnings.warn(
                f"A reference was pickled outside Skate at {site}; its object is kept as long as"
                f" this process lives: {hint}.",
                stacklevel=3,
            )

    # ---- messages; on the loop's thread ----

    def _on_other_message(self, peer: Peer, message: Any) -> None:
        handler = self._control_handlers.get(type(message))
        if handler is not None:
            handler(peer, message)
        else:
            super()._on_other_message(peer, message)

    def _on_free(self, peer: Peer, message: FreeObjects) -> None:
        with self.ownership.lock:
            known = [self.ownership.table.entries.get(item) for item in message.object_ids]
        self._free_owned(entry for entry in known if entry is not None and entry.owner is None)

    def _on_freed(self, peer: Peer, message: ObjectsFreed) -> None:
        self._mark_freed(message.object_ids)

    def _on_ask_locations(self, peer: Peer, message: AskLocations) -> None:
        with self.ownership.lock:
            known = [self.ownership.table.entries.get(item) for item in message.object_ids]
            rows = [self._location(entry) for entry in known if entry is not None]
        self.ownership.send(peer, Locations(message.number, rows))

    def _on_locations(self, peer: Peer, message: Locations) -> None:
        self.end_question(message.number, message.rows)

    def _process_lost(self, worker_id: bytes, cause: str) -> None:
        super()._process_lost(worker_id, cause)
        for number, (owner_id, _) in list(self._questions.items()):
            if owner_id == worker_id:
                self.end_question(number, ())


def _found(row: Location) -> FoundObject:
    return FoundObject(row.node_ids, None if row.size_bytes < 0 else row.size_bytes)


def _freed_error(ownership: Ownership, object_id: bytes) -> bytes:
    site = ownership.sites.get(object_id, "")
    error = ObjectFreedError(object_id.hex(), ownership.worker_id.hex(), call_site=site)
    return serialize(error, is_error=True).to_bytes()


def _fail_freed(entry: Entry, data: bytes) -> None:
    # A get in another thread may look at the entry without the lock. It sees the value, the error,
    # or nothing, which is an error too, but never the error in the place of a value.
    entry.data = None
    entry.state = FAILED
    entry.data = data
