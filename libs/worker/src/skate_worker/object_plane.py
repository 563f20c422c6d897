"""A process's part in the object plane: composes the owner's side and the fetching side.

::

    object_access, execution --> fetching --> an owner's owned_objects --> recovery --> submission
                                    |                                                      ^
                                    +--> raylet (pulls)         results (what is kept) ----+

It dispatches the messages about copies, and spreads the news of deaths in the order that matters: a
death is known before anybody is told that something failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from skate_core_ids import SkateError
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.stream import StreamClosedError
from skate_worker.deaths import Deaths
from skate_worker.fetching import Fetching
from skate_worker.machine.fetches import HERE, OWNER_DIED, VALUE, Outcome, Waiter
from skate_worker.machine.locality import nearest
from skate_worker.machine.object_directory import ObjectDirectory
from skate_worker.machine.references import FAILED, INLINE, STORED, Entry, Owner
from skate_worker.node_client import NodeClient
from skate_worker.owned_objects import OwnedObjects
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.recovery import Recovery
from skate_worker.submission import Submission
from skate_worker.task_protocol import AskCopy, CopyMade, CopySources, PullStopped, Resolved

DEATH_NEWS_S: Final = 1.5  # how long after a connection broke the cause of death is waited for


class ObjectPlane:
    """Composes; see the modules of its parts for their threads."""

    def __init__(
        self,
        ownership: Ownership,
        peers: Peers,
        raylet: NodeClient,
        loop: IoThread,
        resubmit: Callable[[Submission], None],
    ) -> None:
        self._ownership = ownership
        self._peers = peers
        self._raylet = raylet
        self._loop = loop
        self._told_owners: dict[bytes, None] = {}
        self.directory: ObjectDirectory = ObjectDirectory()
        self.deaths: Deaths = ownership.deaths
        self.recovery: Recovery = Recovery(ownership, self.directory, self.deaths, resubmit)
        self.owned: OwnedObjects = OwnedObjects(
            ownership, self.directory, self.recovery, self._say, raylet.post
        )
        self.fetching: Fetching = Fetching(ownership, self.deaths, loop, self._tell, raylet.post)
        self.here: dict[bytes, None] = {}  # copies that this process had brought, still referenced
        self._damages: dict[bytes, str] = {}  # why copies here are none, until they are fetched
        ownership.on_stored_released = self._released

    # ---- where tasks are best run; on any thread ----

    def nodes_near(self, submission: Submission) -> list[tuple[bytes, int]]:
        """The nodes that hold a task's stored arguments, with how many bytes; see ``nearest``."""
        here = self._ownership.node_id
        arguments: list[tuple[list[bytes], int]] = []
        with self._ownership.lock:
            for item in submission.message.resolved:
                at = item.stored_at
                if at is None:
                    continue
                node_ids = [at.node_id]
                if at.owner_id == self._ownership.worker_id:
                    node_ids = self.directory.copies(item.object_id, at.node_id)
                if here not in node_ids and item.object_id in self.here:
                    node_ids = [*node_ids, here]
                arguments.append((node_ids, at.size_bytes))
        return nearest(arguments, here)

    # ---- fetching; on any thread ----

    def is_here(self, entry: Entry) -> bool:
        """Whether a stored value is believed to be in this node's store."""
        return entry.node_id == self._ownership.node_id or entry.object_id in self.here

    def fetch(self, entry: Entry, waiter: Waiter, priority: int = node.PULL_FOR_GET) -> Waiter:
        """Bring a stored value here; ``waiter`` is called when the entry shows the outcome.

        Returns what to pass to ``fetching.stop``.
        """

        def arrived(outcome: Outcome) -> None:
            self._arrived(entry, outcome)
            waiter(outcome)

        lost_at = (entry.node_id,) if entry.node_id == self._ownership.node_id else ()
        owner = entry.owner or self._ownership.as_owner
        why_lost = self._damages.pop(entry.object_id, "")
        self.fetching.start(
            entry.object_id, owner, entry.size_bytes, arrived, priority, lost_at, why_lost
        )
        return arrived

    def note_damaged(self, entry: Entry, why: str) -> None:
        """The copy in this node's store can not be read; the value is about to be fetched."""
        self.here.pop(entry.object_id, None)
        self._damages[entry.object_id] = why

    def failure(self, entry: Entry, outcome: Outcome) -> BaseException | None:
        """The error of an outcome that brought nothing; None if the entry shows what came."""
        if outcome.kind in (HERE, VALUE) or entry.state == FAILED:
            return None
        owner = entry.owner or self._ownership.as_owner
        return self.fetching.error_of(entry.object_id, outcome, owner)

    def _arrived(self, entry: Entry, outcome: Outcome) -> None:
        if outcome.kind == HERE:
            if not entry.is_released:
                self.here[entry.object_id] = None
        elif outcome.kind == VALUE and entry.owner is not None:
            # It was made again, and is small now, or it could not be.
            with self._ownership.lock:
                if entry.state == STORED:
                    entry.settle(FAILED if outcome.is_error else INLINE, outcome.data)
        elif outcome.kind == OWNER_DIED and entry.owner is not None:
            self._ownership.lose((entry,))

    def prefetch(self, resolved: list[Resolved]) -> None:
        """The arguments of a task that will run here soon."""
        for item in resolved:
            at = item.stored_at
            if at is not None and at.node_id != self._ownership.node_id:
                owner = Owner(at.owner_id, at.owner_endpoint, at.owner_node)
                self.fetching.start(
                    item.object_id, owner, at.size_bytes, _ignore, node.PULL_FOR_ARGUMENT
                )

    # ---- messages; on the loop's thread ----

    def on_message(self, peer: Peer, message: Any) -> bool:
        """Dispatch a message about copies. False: it is none."""
        kind = type(message)
        if kind is CopySources:
            if not self.fetching.on_sources(message):
                self._send(peer, peer.stamp(PullStopped(message.object_id)))
        elif kind is AskCopy or kind is CopyMade or kind is PullStopped:
            self._on_puller(peer.worker_id, message)
        else:
            return False
        return True

    def _on_puller(self, worker_id: bytes, message: Any) -> None:
        kind = type(message)
        if kind is AskCopy:
            self.owned.ask(worker_id, message)
        elif kind is CopyMade:
            self.owned.copy_made(worker_id, message)
        elif kind is PullStopped:
            self.owned.pull_stopped(worker_id, message.object_id)

    def _tell(self, owner: Owner, message: Any) -> bool:
        if owner.worker_id == self._ownership.worker_id:
            self._on_puller(owner.worker_id, message)
            return True
        peer = self._peers.get(owner.worker_id, owner.endpoint)
        self._peers.lives_on(peer, owner.node_id)
        return self._send(peer, peer.stamp(message))

    def _say(self, worker_id: bytes, message: Any) -> None:
        if worker_id == self._ownership.worker_id:
            if self._loop.is_current():
                self._hear(message)
            else:
                self._loop.call_soon_threadsafe(self._hear, message)
            return
        peer = self._peers.find(worker_id)
        if peer is not None:
            self._send(peer, message)

    def _hear(self, message: CopySources) -> None:
        if not self.fetching.on_sources(message):
            self.owned.pull_stopped(self._ownership.worker_id, message.object_id)

    def _send(self, peer: Peer, message: Any) -> bool:
        try:
            peer.connection.post(message)
        except StreamClosedError:
            return False
        return True

    # ---- deaths; on the loop's thread ----

    def peer_known(self, peer: Peer) -> None:
        """It is known where a peer runs: the raylet frees what it owns if that node dies."""
        if peer.node_id in (b"", self._ownership.node_id) or peer.worker_id in self._told_owners:
            return
        self._told_owners[peer.worker_id] = None
        self._raylet.post(node.KnowOwner(peer.worker_id, peer.node_id))

    def peer_lost(self, worker_id: bytes, reason: str) -> None:
        """A connection broke; the raylet will say why, or nobody will."""
        self._told_owners.pop(worker_id, None)
        self.owned.process_died(worker_id)
        if self.deaths.is_dead(Owner(worker_id, "")):
            return
        self._loop.call_later(DEATH_NEWS_S, self._no_news, worker_id, reason)

    def _no_news(self, worker_id: bytes, reason: str) -> None:
        if not self.deaths.is_dead(Owner(worker_id, "")):
            text = f"its connection broke ({reason}), and no cause was reported"
            self.worker_died(worker_id, node.Death("unknown", text))

    def worker_died(self, worker_id: bytes, death: node.Death) -> None:
        """The raylet says how a process ended."""
        self.deaths.worker_died(worker_id, death)
        self.owned.process_died(worker_id)
        self._owners_died()

    def node_died(self, message: node.NodeDied) -> None:
        """A node is gone, with its store and all processes on it."""
        self.deaths.node_died(message.node_id, message.cause)
        self.owned.node_died(message.node_id)
        self._owners_died()
        for peer in self._peers.on_node(message.node_id):
            # A broken network leaves connections to a dead node open, with all that waits on them.
            peer.connection.close(f"its node died: {message.cause.message}")

    def _owners_died(self) -> None:
        self._ownership.lose_orphans()
        self.fetching.owners_died()

    def end(self, error: SkateError) -> None:
        """Nothing can be fetched any more: whoever waits is told."""
        self.fetching.end(error)

    # ---- the end of objects ----

    def _released(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.here.pop(entry.object_id, None)
        self.fetching.released([entry.object_id for entry in entries])
        owned = [entry for entry in entries if entry.owner is None]
        if owned:
            self.owned.delete([entry for entry in owned if entry.state == STORED])
            self.recovery.released(owned)


def _ignore(outcome: Outcome) -> None:
    return None
