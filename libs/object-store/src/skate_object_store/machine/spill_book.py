"""What is on disk: objects by id and owner, and the files they share.

Before it: the planner had objects written, or read back. After it: the table knows where an object
is that memory does not hold, and which file nobody needs any more.

An object here may be in memory too, as an evictable copy. Every method costs O(1) besides what it
returns, unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from skate_object_store.constants import LOST_KEPT_MAX
from skate_object_store.machine.records import DeleteFile, Place


@dataclass(slots=True, eq=False)
class SpilledObject:
    """One object that was written to disk and not deleted since."""

    object_id: bytes
    size_bytes: int
    owner: bytes
    created_s: float
    note: str
    place: Place | None
    """None once it proved unreadable."""
    loss: str = ""
    """Why it is unreadable."""


@dataclass(slots=True)
class _File:
    size_bytes: int
    live: int  # > 0: objects in it that were not deleted


class SpillBook:
    """The objects on disk and their files."""

    def __init__(self) -> None:
        self.by_id: dict[bytes, SpilledObject] = {}
        """Readable and lost ones, oldest spill first. Only to be looked at: gets and creates, most
        of which find it empty, look before they call."""
        self._by_owner: dict[bytes, dict[bytes, SpilledObject]] = {}
        self._files: dict[str, _File] = {}
        self._lost: dict[bytes, None] = {}  # the lost ones, oldest loss first
        self.largest_bytes = 0
        """The largest object that was added since there was none; at least that of any here."""

    def __len__(self) -> int:
        return len(self.by_id)

    def find(self, object_id: bytes) -> SpilledObject | None:
        """The object with this id, readable or lost."""
        return self.by_id.get(object_id)

    def is_readable(self, object_id: bytes) -> bool:
        """Whether the object with this id is here and was not lost."""
        spilled = self.by_id.get(object_id)
        return spilled is not None and spilled.place is not None

    def owned_by(self, owner: bytes) -> list[bytes]:
        """The ids of the objects that bear this tag."""
        return list(self._by_owner.get(owner, {}))

    @property
    def files(self) -> list[str]:
        """The keys of the files that hold something wanted. O(files)."""
        return list(self._files)

    @property
    def files_bytes(self) -> int:
        """What the files take on disk. O(files)."""
        return sum(file.size_bytes for file in self._files.values())

    def add_file(self, file_key: str, objects: list[SpilledObject]) -> list[DeleteFile]:
        """A file was written; the objects of it that are still wanted. None: it can go."""
        if not objects:
            return [DeleteFile(file_key)]
        size = 0
        for spilled in objects:
            assert spilled.place is not None
            assert spilled.object_id not in self.by_id
            self.largest_bytes = max(self.largest_bytes, spilled.size_bytes)
            size = max(size, spilled.place.position + spilled.size_bytes)
            self.by_id[spilled.object_id] = spilled
            if spilled.owner:
                self._by_owner.setdefault(spilled.owner, {})[spilled.object_id] = spilled
        self._files[file_key] = _File(size, len(objects))
        return []

    def forget(self, object_id: bytes) -> list[DeleteFile]:
        """The object was deleted; its file goes with the last one in it. Unknown ids are fine."""
        spilled = self.by_id.pop(object_id, None)
        if spilled is None:
            return []
        self._lost.pop(object_id, None)
        if not self.by_id:
            self.largest_bytes = 0
        if spilled.owner:
            owned = self._by_owner[spilled.owner]
            del owned[object_id]
            if not owned:
                del self._by_owner[spilled.owner]
        return self._leave_file(spilled)

    def lose(self, object_id: bytes, cause: str) -> list[DeleteFile]:
        """The object proved unreadable: remembered as that until it is deleted or made anew.

        Of more than ``LOST_KEPT_MAX`` the oldest are forgotten, as if they had been deleted: nobody
        need delete what is gone.
        """
        spilled = self.by_id[object_id]
        effects = self._leave_file(spilled)
        spilled.place = None
        spilled.loss = cause
        self._lost[object_id] = None
        if len(self._lost) > LOST_KEPT_MAX:
            self.forget(next(iter(self._lost)))
        return effects

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` unless files and owners mirror the objects. O(objects)."""
        live: dict[str, int] = {}
        owned: dict[bytes, dict[bytes, SpilledObject]] = {}
        for object_id, spilled in self.by_id.items():
            assert spilled.object_id == object_id
            assert (spilled.place is None) == bool(spilled.loss)
            assert spilled.size_bytes <= self.largest_bytes
            assert (object_id in self._lost) == (spilled.place is None)
            if spilled.place is not None:
                live[spilled.place.file_key] = live.get(spilled.place.file_key, 0) + 1
            if spilled.owner:
                owned.setdefault(spilled.owner, {})[object_id] = spilled
        assert self._lost.keys() <= self.by_id.keys()
        assert live == {key: file.live for key, file in self._files.items()}
        assert owned == self._by_owner

    def _leave_file(self, spilled: SpilledObject) -> list[DeleteFile]:
        if spilled.place is None:
            return []
        file = self._files[spilled.place.file_key]
        file.live -= 1
        if file.live:
            return []
        del self._files[spilled.place.file_key]
        return [DeleteFile(spilled.place.file_key)]
