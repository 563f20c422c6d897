"""Reference counting: which objects this process knows, and who keeps each alive.

Every object has one owner: the process that submitted its task or put it. The owner counts its own
live ``ObjectRef`` instances (``local``), the uses that must keep the value although no instance is
left (``pins``:
arguments of unfinished tasks, values that contain the reference), and the processes that hold it
(``borrowers``). A borrower counts its own ``local`` and ``pins`` and tells the owner when both are
gone.

Invariants, for an entry that is in the table::

    local >= 0, pins >= 0
    owned:     local + pins + len(borrowers) > 0
    borrowed:  local + pins > 0, borrowers is empty

Before this module: ``ObjectRef`` (instances), submission (pins). After it: the shell, which deletes
what was released from the object store and tells owners. The rules are those of the ownership paper
(Wang et al., NSDI 2021) with eager registration of borrowers. All methods are O(1) unless said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

PENDING: Final = 0  # no value yet
INLINE: Final = 1  # `data` holds the serialised value
STORED: Final = 2  # the value is in the object store of `node_id`
FAILED: Final = 3  # `data` holds the serialised error


class Owner(NamedTuple):
    """Where the owner of a borrowed object listens."""

    worker_id: bytes
    endpoint: str
    node_id: bytes = b""  # with its node it dies


class Entry:
    """What this process knows about one object."""

    __slots__ = (
        "borrowers",
        "contained",
        "data",
        "is_asked",
        "is_released",
        "is_told",
        "local",
        "node_id",
        "object_id",
        "owner",
        "pins",
        "size_bytes",
        "state",
        "task_id",
        "waiters",
    )

    def __init__(self, object_id: bytes, owner: Owner | None) -> None:
        self.object_id: bytes = object_id
        self.owner: Owner | None = owner  # None: this process
        self.state: int = PENDING
        self.data: Any = None  # bytes when INLINE or FAILED
        self.node_id: bytes = b""  # whose store holds it, when STORED
        self.size_bytes: int = 0
        self.local: int = 0
        self.pins: int = 0
        self.borrowers: dict[bytes, int] | None = None  # worker id -> registrations
        self.contained: list[Entry] | None = (
            None  # what the value holds; pinned while this entry lives
        )
        self.waiters: list[Callable[[Entry], None]] | None = None
        self.task_id: bytes | None = None  # the task whose return it is
        self.is_released: bool = False
        self.is_told: bool = False  # borrowed: the owner knows that this process holds it
        self.is_asked: bool = False  # borrowed: the owner was asked for the value

    def settle(self, state: int, data: Any) -> list[Callable[[Entry], None]] | None:
        """Give the entry its value; returns who waits, to be called after locks are released."""
        self.state = state
        self.data = data
        waiters = self.waiters
        self.waiters = None
        return waiters


class ReferenceTable:
    """All entries of the process. The caller serialises the calls."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        # Instances made without the lock, to be counted before anything is released. Who makes one
        # appends it and then looks at `is_released`; who releases sets that and then looks here: so
        # at least one of the two sees the other.
        self.adopted: deque[Entry] = deque()
        # worker id -> object ids that it borrows from this process, for its death
        self._borrowed_by: dict[bytes, dict[bytes, None]] = {}

    def own(self, object_id: bytes) -> Entry:
        """A new object of this process, with one local reference."""
        entry = Entry(object_id, None)
        entry.local = 1
        self.entries[object_id] = entry
        return entry

    def borrow(self, object_id: bytes, owner: Owner | None) -> Entry:
        """The entry of a reference that came from outside; new entries hold nothing yet.

        ``owner`` None: this process owns it, or did (the entry then fails as freed).
        """
        entry = self.entries.get(object_id)
        if entry is None:
            entry = Entry(object_id, owner)
            self.entries[object_id] = entry
        return entry

    def revive(self, entry: Entry) -> Entry:
        """A released object is needed again, to make a later one; nothing holds it yet.

        It is stored, without a copy, until told otherwise. Returns the entry that stands for it:
        another one if a reference to it came in from outside meanwhile.
        """
        known = self.entries.setdefault(entry.object_id, entry)
        if known is entry and entry.is_released:
            entry.is_released = False
            entry.state = STORED
            entry.node_id = b""
            entry.data = None
        return known

    def drop_local(self, entry: Entry, released: list[Entry]) -> None:
        """One ``ObjectRef`` instance is gone. Appends what is thereby released."""
        entry.local -= 1
        if entry.local == 0:
            self._release_if_unheld(entry, released)

    def unpin(self, entry: Entry, released: list[Entry]) -> None:
        """One use ended. Appends what is thereby released."""
        entry.pins -= 1
        if entry.pins == 0:
            self._release_if_unheld(entry, released)

    def unpin_all(self, entries: Iterable[Entry], released: list[Entry]) -> None:
        """:meth:`unpin` for each."""
        for entry in entries:
            self.unpin(entry, released)

    def add_borrower(self, object_id: bytes, worker_id: bytes) -> bool:
        """Another process holds the object. False: it was freed before the registration came."""
        entry = self.entries.get(object_id)
        if entry is None or entry.owner is not None:
            return False
        if entry.borrowers is None:
            entry.borrowers = {}
        entry.borrowers[worker_id] = entry.borrowers.get(worker_id, 0) + 1
        self._borrowed_by.setdefault(worker_id, {})[object_id] = None
        return True

    def remove_borrower(self, object_id: bytes, worker_id: bytes, released: list[Entry]) -> None:
        """One registration ended. A repeated or late message is ignored."""
        entry = self.entries.get(object_id)
        if entry is None or entry.borrowers is None or worker_id not in entry.borrowers:
            return
        left = entry.borrowers[worker_id] - 1
        if left:
            entry.borrowers[worker_id] = left
            return
        del entry.borrowers[worker_id]
        self._forget_borrow(object_id, worker_id)
        self._release_if_unheld(entry, released)

    def lose_borrower(self, worker_id: bytes, released: list[Entry]) -> None:
        """A process died: all its registrations end. O(its registrations)."""
        for object_id in self._borrowed_by.pop(worker_id, ()):
            entry = self.entries.get(object_id)
            if entry is not None and entry.borrowers is not None:
                entry.borrowers.pop(worker_id, None)
                self._release_if_unheld(entry, released)

    def owned_by(self, worker_id: bytes) -> list[Entry]:
        """The entries borrowed from this owner. O(entries): used when an owner dies."""
        return [
            entry
            for entry in self.entries.values()
            if entry.owner is not None and entry.owner.worker_id == worker_id
        ]

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when an invariant of the module's docstring is broken.
        O(entries).
        """
        self.count_adopted()
        for object_id, entry in self.entries.items():
            assert object_id == entry.object_id
            assert entry.local >= 0, f"local {entry.local}"
            assert entry.pins >= 0, f"pins {entry.pins}"
            assert not entry.is_released
            if entry.owner is not None:
                assert not entry.borrowers
        for worker_id, object_ids in self._borrowed_by.items():
            for object_id in object_ids:
                held = self.entries[object_id].borrowers
                assert held is not None
                assert worker_id in held

    def _forget_borrow(self, object_id: bytes, worker_id: bytes) -> None:
        held = self._borrowed_by.get(worker_id)
        if held is not None:
            held.pop(object_id, None)
            if not held:
                del self._borrowed_by[worker_id]

    def count_adopted(self) -> None:
        """Count the instances that were made without the lock."""
        adopted = self.adopted
        while adopted:
            adopted.popleft().local += 1

    def _was_adopted(self, entry: Entry) -> bool:
        self.count_adopted()
        return entry.local > 0

    def _release_if_unheld(self, entry: Entry, released: list[Entry]) -> None:
        # Iterative: a chain of containers must not be as deep as the interpreter's stack.
        candidates = [entry]
        while candidates:
            entry = candidates.pop()
            if entry.local or entry.pins or entry.borrowers or entry.is_released:
                continue
            entry.is_released = True
            if self.adopted and self._was_adopted(entry):
                entry.is_released = False
                continue
            self.entries.pop(entry.object_id, None)
            released.append(entry)
            if entry.state == INLINE and entry.owner is None:
                entry.data = None  # here and not later, when it may have been revived
            if entry.contained:
                for inner in entry.contained:
                    inner.pins -= 1
                    if inner.pins == 0:
                        candidates.append(inner)
                entry.contained = None
