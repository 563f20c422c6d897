"""The owner's side of its stored objects: who may pull from where, what is lost, what is deleted.

Before it: messages of pullers, deaths, and the release of entries. After it: ``recovery``, which
has lost objects made again, and the raylet, which deletes copies on other nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from skate_rpc import node_protocol as node
from skate_worker.machine.object_directory import ObjectDirectory, Route
from skate_worker.machine.references import FAILED, PENDING, STORED, Entry
from skate_worker.task_protocol import AskCopy, CopyMade, CopySources

if TYPE_CHECKING:
    from skate_worker.ownership import Ownership
    from skate_worker.recovery import Recovery

Say = Callable[[bytes, Any], None]
"""Sends a message to a process, by its worker id; a process that is gone hears nothing."""


class OwnedObjects:
    """Thread-safe; the directory is guarded by the runtime's lock."""

    def __init__(
        self,
        ownership: Ownership,
        directory: ObjectDirectory,
        recovery: Recovery,
        say: Say,
        post_to_raylet: Callable[[Any], None],
    ) -> None:
        self._ownership = ownership
        self._directory = directory
        self._recovery = recovery
        self._say = say
        self._post_to_raylet = post_to_raylet
        self._to_keep: dict[bytes, list[bytes]] = {}  # new primary copies whose stores must know
        recovery.answer = self._answer
        recovery.delete = self._delete

    # ---- pullers ----

    def ask(self, worker_id: bytes, message: AskCopy) -> None:
        """A process wants a copy."""
        object_id = message.object_id
        with self._ownership.lock:
            entry = self._ownership.table.entries.get(object_id)
            if entry is not None and entry.owner is not None:
                entry = None
            if entry is not None and entry.state == STORED and message.lost_at:
                self._directory.ask(object_id, entry.node_id, worker_id, message.node_id)
                self._directory.lost_at(
                    object_id,
                    message.lost_at,
                    message.node_id,
                    is_precious=self._recovery.lineage.is_precious(object_id),
                )
                self._move_primary(entry)
        if entry is None:
            self._say(worker_id, CopySources(object_id, failure="freed"))
            return
        self._have_kept()
        if message.why_lost:
            self._recovery.note_loss(object_id, message.why_lost)
        self._answer(entry, worker_id, message.node_id, message.lost_at)
        self._advance(object_id)

    def copy_made(self, worker_id: bytes, message: CopyMade) -> None:
        """A process has pulled; one that nobody needs any more is deleted again."""
        with self._ownership.lock:
            entry = self._ownership.table.entries.get(message.object_id)
            is_wanted = (
                entry is not None
                and entry.owner is None
                and entry.state == STORED
                and (
                    self._directory.added(message.object_id, worker_id, message.node_id)
                    or entry.node_id == message.node_id
                )
            )
            if is_wanted and entry is not None and self._directory.is_dead(entry.node_id):
                self._move_primary(entry)  # the only copy, of a pull that outlived its source
        if is_wanted:
            self._have_kept()
            self._advance(message.object_id)
        else:
            self._delete({message.node_id: [message.object_id]})

    def pull_stopped(self, worker_id: bytes, object_id: bytes) -> None:
        """A process neither pulls nor waits any more."""
        with self._ownership.lock:
            self._directory.stopped(object_id, worker_id)
        self._advance(object_id)

    def _answer(
        self, entry: Entry, worker_id: bytes, node_id: bytes, avoid: Sequence[bytes] = ()
    ) -> None:
        object_id = entry.object_id
        while True:
            route: Route | None = None
            with self._ownership.lock:
                state = entry.state
                data = None if entry.is_released else entry.data
                if state == STORED and not entry.is_released:
                    route = self._directory.ask(
                        object_id, entry.node_id, worker_id, node_id, entry.size_bytes, avoid
                    )
            if state == PENDING:
                self._say(worker_id, CopySources(object_id))
                if self._ownership.watch(entry, lambda e: self._answer(e, worker_id, node_id)):
                    return
            elif data is not None:
                self._say(worker_id, CopySources(object_id, data=data, is_error=state == FAILED))
                return
            elif entry.is_released:
                self._say(worker_id, CopySources(object_id, failure="freed"))
                return
            elif route is None:
                self._say(worker_id, CopySources(object_id))
                return
            elif route.node_ids:
                self._say(worker_id, _sources(entry, route))
                return
            else:
                self._recovery.recover(entry)

    def _advance(self, object_id: bytes) -> None:
        """Give free slots to those who wait; when nothing is left to wait for, recover."""
        with self._ownership.lock:
            turns = self._directory.turns(object_id)
            orphans = {}
            if self._directory.is_orphan(object_id):
                orphans = self._directory.waiting(object_id)
            entry = self._ownership.table.entries.get(object_id)
        if entry is None:
            return
        for turn in turns:
            self._say(turn.worker_id, _sources(entry, turn.route))
        for worker_id, node_id in orphans.items():
            self._answer(entry, worker_id, node_id)

    # ---- deaths; on the loop's thread ----

    def node_died(self, node_id: bytes) -> None:
        """Copies and pullers there are gone."""
        with self._ownership.lock:
            changed = self._directory.node_died(node_id)
            for object_id in changed:
                entry = self._ownership.table.entries.get(object_id)
                if entry is not None:
                    self._move_primary(entry)
        self._have_kept()
        for object_id in changed:
            self._advance(object_id)

    def copies_kept(self, message: node.CopiesKept) -> None:
        """A store answered: what it has not any more is lost there, and the next copy chosen."""
        node_id = message.node_id
        with self._ownership.lock:
            for object_id in message.gone:
                entry = self._ownership.table.entries.get(object_id)
                if entry is None or entry.owner is not None:
                    continue
                self._directory.lost_at(object_id, [node_id], node_id, is_precious=False)
                self._move_primary(entry)
        self._have_kept()
        for object_id in message.gone:
            self._advance(object_id)

    def process_died(self, worker_id: bytes) -> None:
        """A puller is gone."""
        with self._ownership.lock:
            changed = self._directory.process_died(worker_id)
        for object_id in changed:
            self._advance(object_id)

    def _move_primary(self, entry: Entry) -> None:
        copies = self._directory.copies(entry.object_id, entry.node_id)
        if entry.state == STORED and copies and copies[0] != entry.node_id:
            # A copy that was pulled may be evicted, and this one may be the last: not any more.
            entry.node_id = copies[0]
            self._to_keep.setdefault(copies[0], []).append(entry.object_id)

    def _have_kept(self) -> None:
        """Have the stores of new primary copies told. Without the lock."""
        if self._to_keep:
            with self._ownership.lock:
                copies, self._to_keep = self._to_keep, {}
            if copies:
                self._post_to_raylet(node.KeepCopies(copies))

    def offered(self, entry: Entry, node_id: bytes) -> None:
        """Another attempt of its task wrote an object once more. Without the lock.

        The copy of the attempt that runs is the one that lives longer; but where others pull from
        the first one, both stay.
        """
        unneeded = node_id
        with self._ownership.lock:
            is_stored = entry.state == STORED and not entry.is_released
            if is_stored and entry.node_id == node_id:
                return  # in one store it is one object
            is_further = is_stored and self._directory.added(entry.object_id, b"", node_id)
            if is_stored and not is_further:
                unneeded, entry.node_id = entry.node_id, node_id
        if is_further:
            self._advance(entry.object_id)
        else:
            self.delete_at(unneeded, [entry.object_id])

    # ---- the end of an object ----

    def delete(self, entries: list[Entry]) -> None:
        """Entries of stored values were released: delete every copy, unless they were revived
        since. Without the lock.
        """
        with self._ownership.lock:
            copies = self._forgotten([entry for entry in entries if entry.is_released])
        self._delete(copies)

    def _forgotten(self, entries: list[Entry]) -> dict[bytes, list[bytes]]:
        # With the lock: where each has copies, which the directory knows no more.
        copies: dict[bytes, list[bytes]] = {}
        for entry in entries:
            for node_id in self._directory.forget(entry.object_id, entry.node_id):
                copies.setdefault(node_id, []).append(entry.object_id)
        return copies

    def freed(self, entries: list[Entry]) -> None:
        """Stored values were freed and their entries failed: delete every copy, tell who waits for
        one. Without the lock.
        """
        with self._ownership.lock:
            waiting = [(entry, self._directory.waiting(entry.object_id)) for entry in entries]
            copies = self._forgotten(entries)
        self._delete(copies)
        for entry, processes in waiting:
            for worker_id, node_id in processes.items():
                self._answer(entry, worker_id, node_id)

    def delete_at(self, node_id: bytes, object_ids: list[bytes]) -> None:
        """Delete what a store holds although nobody needs it. Without the lock."""
        if not self._directory.is_dead(node_id):
            self._delete({node_id: object_ids})

    def _delete(self, copies: dict[bytes, list[bytes]]) -> None:
        here = copies.pop(self._ownership.node_id, None)
        if here and self._ownership.store is not None:
            self._ownership.store.delete(here)
        if copies:
            self._post_to_raylet(node.DeleteCopies(copies))


def _sources(entry: Entry, route: Route) -> CopySources:
    return CopySources(
        entry.object_id, route.node_ids, entry.size_bytes, arriving_at=list(route.arriving_at)
    )
