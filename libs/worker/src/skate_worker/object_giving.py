"""``put`` in the name of an actor: the value is the actor's from the start, and outlives its maker.

::

    maker: store the bytes, tagged with the actor's worker -> GiveObject -> owner: own it, hold what
    it contains, count the maker as a borrower -> Locations -> maker: a borrowed reference

Before it: ``object_control``, whose questions and answers it uses. After it: ``core``. Source:
SURFACE O2.
"""

from __future__ import annotations

import time
from typing import Any, Final

from skate_rpc import node_protocol as node
from skate_worker.call_site import call_site
from skate_worker.errors import ending
from skate_worker.machine.references import INLINE, STORED, Entry, Owner
from skate_worker.object_control import ObjectControl, Question
from skate_worker.object_ref import ObjectRef
from skate_worker.ownership import INLINE_MAX_BYTES, contained_entries
from skate_worker.peers import Peer
from skate_worker.serialization import Serialized, serialize
from skate_worker.task_protocol import EndBorrow, GiveObject, Location, Locations

OWNER_WAIT_S: Final = 60.0  # for the actor to be alive, and then for its answer
POLL_S: Final = 0.005


class ObjectGiving(ObjectControl):
    """A member that puts objects which others own. Thread-safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._control_handlers[GiveObject] = self._on_give

    def put_for(self, value: Any, actor_id: bytes) -> ObjectRef[Any]:
        """Store a value that the actor's process owns; it goes when that process ends.

        Raises:
            RuntimeError: the actor is dead, dies meanwhile, or is not alive within a minute.
            TypeError, StoreFullError: as :meth:`put`.
        """
        view = self._living(actor_id)
        if view.worker_id == bytes(self.worker_id):
            return self.put(value)
        owner = Owner(view.worker_id, view.endpoint, view.node_id)
        serialized = serialize(value)
        object_id = self.new_put_id()
        inner = contained_entries(serialized)
        rows = self._give(owner, object_id, serialized, inner)
        if rows is None:
            # It may have taken the object, and answers too late: then this was the last hold on it.
            self.ownership.tell(owner, EndBorrow([object_id]))
            raise RuntimeError(f"The owner, {_named(view)}, did not answer in {OWNER_WAIT_S:g} s.")
        if not rows:
            self.ownership.end_borrows(inner, owner.worker_id)
            if self.ownership.store is not None:
                self.ownership.store.delete([object_id])
            raise RuntimeError(f"The owner, {_named(view)}, died while the value was put.")
        with self.ownership.lock:
            entry = self.ownership.table.borrow(object_id, owner)
            entry.local += 1
            entry.is_told = True
        return ObjectRef(self, entry)

    def _living(self, actor_id: bytes) -> node.ActorView:
        calls = self.actor_calls.calls_of(actor_id)
        deadline_s = time.monotonic() + OWNER_WAIT_S
        while True:
            view: node.ActorView | None = calls.view
            if view is not None and view.state == "ALIVE":
                return view
            if view is not None and view.state == "DEAD":
                death = view.death or node.Death("unknown", "")
                why = death.message or ending(death.kind, death.exit_code, death.signal)
                raise RuntimeError(f"The owner, {_named(view)}, is dead: {why}")
            if time.monotonic() >= deadline_s:
                raise RuntimeError(f"The owner is not alive after {OWNER_WAIT_S:g} s.")
            time.sleep(POLL_S)

    def _give(
        self, owner: Owner, object_id: bytes, value: Serialized, inner: list[Entry]
    ) -> list[Location] | None:
        """What the owner answers; empty: it died. None: nothing."""
        ownership = self.ownership
        site = call_site()
        message = GiveObject(0, object_id, site=site)
        if value.total_bytes > INLINE_MAX_BYTES:
            ownership.put_parts(object_id, value, owner.worker_id, site)
            message.node_id, message.size_bytes = ownership.node_id, value.total_bytes
        else:
            message.data = value.to_bytes()
        with ownership.lock:
            for entry in inner:
                message.contained.append(ownership.reference_of(entry))
                if entry.owner is None:
                    ownership.table.add_borrower(entry.object_id, owner.worker_id)
        question = Question(1)
        message.number = self.begin_question(owner, question)
        peer = self.peers.get(owner.worker_id, owner.endpoint)
        if not ownership.send(peer, peer.stamp(message)):
            self.end_question(message.number, ())
        has_answer = question.done.wait(OWNER_WAIT_S)
        self.end_question(message.number, ())
        return list(question.rows) if has_answer else None

    # ---- the owner's side; on the loop's thread ----

    def _on_give(self, peer: Peer, message: GiveObject) -> None:
        ownership, object_id = self.ownership, message.object_id
        with ownership.lock:
            entry = ownership.table.own(object_id)
            entry.local = 0  # its maker holds it, and nobody here
            entry.state = STORED if message.node_id else INLINE
            entry.data = message.data or None
            entry.node_id = message.node_id
            entry.size_bytes = message.size_bytes or len(message.data)
            ownership.table.add_borrower(object_id, peer.worker_id)
            if message.node_id not in (b"", ownership.node_id):
                ownership.has_remote = True
        if message.site and message.node_id:
            ownership.sites[object_id] = message.site

        def answer() -> None:
            ownership.send(peer, Locations(message.number, [Location(object_id, [])]))

        if message.contained:
            ownership.take_contained(entry, message.contained, peer, answer)
        else:
            answer()


def _named(view: node.ActorView) -> str:
    return f"actor {view.class_name} ({view.actor_id.hex()})"
