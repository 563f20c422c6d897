"""Objects of this process and objects that it borrows: values, waiting, and the borrowing protocol.

The decisions are in ``machine.references``; this shell sends what they imply.

Who tells whom. A process that unpickles a reference from the arguments of a task is covered by the
caller until the task ends; if it still holds the reference then, it registers with the owner
*before* it reports the end. A value that contains references lists them, so whoever receives the
value registers for them when the value arrives, and pins the value until the owners have confirmed.
Where the owner is the peer that the covering party's release goes through, the order of the
connection is the confirmation.

Nobody who covers a reference lets go before the owner has confirmed whom it covered. The one who
dies can not wait for that, so its death is acted upon only after a grace: its registrations, the
arguments of the tasks that it ran and what was pinned for it stay ``DEATH_GRACE_S`` longer, and who
hears of a death registers at once what it has not registered yet. ``tests/sim`` compares this with
reachability.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from skate_object_store import ObjectExistsError, StoreClient
from skate_rpc.stream import StreamClosedError
from skate_worker.deaths import Deaths
from skate_worker.errors import ReferenceCountingAssertionError
from skate_worker.machine.references import (
    FAILED,
    INLINE,
    PENDING,
    STORED,
    Entry,
    Owner,
    ReferenceTable,
)
from skate_worker.peers import Peer, Peers
from skate_worker.serialization import Serialized, serialize
from skate_worker.task_protocol import (
    AskObject,
    Borrow,
    BorrowKnown,
    EndBorrow,
    ObjectValue,
    Reference,
)
from skate_worker.unhandled_errors import UnhandledErrors

if TYPE_CHECKING:
    from skate_rpc.event_loop import IoThread

INLINE_MAX_BYTES = 100 * 1024  # SURFACE 3.1
INLINE_TOTAL_MAX_BYTES = 10 << 20  # of one message; SURFACE 3.1
DROPS_BEFORE_DRAIN = 512
# How long an owner keeps what a dead borrower held. Who got a reference from the dead one is no
# longer covered by it, notices the death about when the owner does, and registers then.
DEATH_GRACE_S = 2.0


class _BorrowUnderWay:
    """A registration that its owner has not confirmed."""

    __slots__ = ("callbacks", "entries", "owner_id")

    def __init__(self, owner_id: bytes, entries: list[Entry]) -> None:
        self.owner_id = owner_id
        self.entries = entries
        self.callbacks: list[Callable[[], None]] = []


Waiters = list[tuple[Entry, list[Callable[[Entry], None]]]]


def wake(waiters: Waiters) -> None:
    """Call who waits. Without the lock: they may take it."""
    for entry, callbacks in waiters:
        for callback in callbacks:
            callback(entry)


class Ownership:
    """The reference table with its lock, values and messages."""

    def __init__(self, worker_id: bytes, node_id: bytes, loop: IoThread) -> None:
        self.lock: threading.Lock = threading.Lock()
        self.table: ReferenceTable = ReferenceTable()
        self.worker_id = worker_id
        self.node_id = node_id
        self.as_owner: Owner = Owner(worker_id, "", node_id)
        self.deaths: Deaths = Deaths()
        self.on_stored_released: Callable[[list[Entry]], None] = _nobody
        # Some value lies in another node's store: until then nobody has to look where they are.
        self.has_remote: bool = False
        self.peers: Peers | None = None
        self.store: StoreClient | None = None
        self._loop = loop
        self._dropped: deque[Entry] = deque()
        self._is_drain_scheduled = False
        # References unpickled of which the owner does not know for certain that this process holds
        # them: 0, or the number of the Borrow that is under way.
        self.untold: dict[Entry, int] = {}
        self._borrow_numbers = itertools.count(1)
        self.errors: UnhandledErrors = UnhandledErrors()
        # Which line made an object: of stored values always, of others on request.
        self.sites: dict[bytes, str] = {}
        # Objects that stand for the handles of actors that this process created.
        self.actor_keepers: dict[bytes, bytes] = {}
        self.on_actor_unheld: Callable[[bytes], None] = _nobody
        self.new_object_id: Callable[[], bytes]  # set once the process has a job
        self._when_unowned: Callable[[], None] | None = None
        self._borrows: dict[int, _BorrowUnderWay] = {}  # by number
        # Questions without an answer: (the owner's id, the question's serial) -> object id. An
        # answer to none of these is a repetition, and what its owner registered for the first one
        # stands.
        self._asks: dict[tuple[bytes, int], bytes] = {}

    # ---- local references ----

    def note_dropped(self, entry: Entry) -> None:
        """An instance is gone. Runs inside ``__del__``: no lock, no I/O but a wake-up."""
        dropped = self._dropped
        dropped.append(entry)
        # A small owned value may wait for the next message; shared memory and owners elsewhere may
        # not.
        if (
            entry.state == STORED
            or entry.owner is not None
            or entry.data == b""  # it stands for an actor's handles
            or entry.contained
            or len(dropped) > DROPS_BEFORE_DRAIN
        ) and not self._is_drain_scheduled:
            self._is_drain_scheduled = True
            self._loop.call_soon_threadsafe(self.drain_dropped)

    def drain_dropped(self) -> None:
        """Count the instances that are gone."""
        self._is_drain_scheduled = False
        dropped = self._dropped
        if not dropped:
            return
        released: list[Entry] = []
        with self.lock:
            self.table.count_adopted()
            drop = self.table.drop_local
            while dropped:
                drop(dropped.popleft(), released)
        if released:
            self.finish_released(released)

    def finish_released(self, released: list[Entry]) -> None:
        """Free values of owned entries, and tell the owners of borrowed ones. Without the lock.

        An owned entry may have been revived since it was released: then its value stays.
        """
        stored: list[Entry] = []
        ended: dict[Owner, list[bytes]] = {}
        for entry in released:
            if entry.owner is None:
                if entry.state != INLINE:
                    if entry.state == FAILED:
                        self.errors.released(entry.object_id, entry.data)
                    stored.append(entry)
                if self.sites:
                    self.sites.pop(entry.object_id, None)
                if self.actor_keepers:
                    actor_id = self.actor_keepers.pop(entry.object_id, None)
                    if actor_id is not None:
                        self.on_actor_unheld(actor_id)
            else:
                self.untold.pop(entry, None)
                if self.sites:
                    self.sites.pop(entry.object_id, None)
                if entry.state == STORED:
                    stored.append(entry)
                if entry.is_told:
                    ended.setdefault(entry.owner, []).append(entry.object_id)
        if stored:
            self.on_stored_released(stored)
        for owner, object_ids in ended.items():
            self.tell(owner, EndBorrow(object_ids))

        if self._when_unowned is not None:
            self._check_unowned()

    def when_nothing_is_owned(self, callback: Callable[[], None]) -> None:
        """Call back once no object of this process is held by anyone. On the loop's thread."""
        self._when_unowned = callback
        self.drain_dropped()
        self._check_unowned()

    def _check_unowned(self) -> None:
        with self.lock:
            owns = any(entry.owner is None for entry in self.table.entries.values())
        callback = self._when_unowned
        if not owns and callback is not None:
            self._when_unowned = None
            callback()

    def release_later(self, entries: Iterable[Entry]) -> None:
        """Unpin entries and finish what that releases."""
        released: list[Entry] = []
        with self.lock:
            self.table.unpin_all(entries, released)
        if released:
            self.finish_released(released)

    # ---- values ----

    def settle(self, entry: Entry, state: int, data: Any) -> None:
        """Give one entry its value and wake who waits."""
        with self.lock:
            waiters = entry.settle(state, data)
        if waiters:
            wake([(entry, waiters)])

    def fail(self, entries: Iterable[Entry], error: BaseException) -> None:
        """Give entries that are still pending this error."""
        data = serialize(error, is_error=True).to_bytes()
        woken: Waiters = []
        with self.lock:
            for entry in entries:
                if entry.state == PENDING:
                    waiters = entry.settle(FAILED, data)
                    if waiters:
                        woken.append((entry, waiters))
        wake(woken)

    def watch(self, entry: Entry, callback: Callable[[Entry], None]) -> bool:
        """Have ``callback`` called once the entry is settled. False: it is settled already."""
        with self.lock:
            if entry.state != PENDING:
                return False
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(callback)
            must_ask = entry.owner is not None and not entry.is_asked
            entry.is_asked = entry.is_asked or must_ask
        if must_ask:
            self._ask(entry)
        return True

    def watch_all(self, entries: list[Entry], callback: Callable[[Entry], None]) -> list[Entry]:
        """:meth:`watch` for each; returns those that are settled already."""
        settled: list[Entry] = []
        ask: list[Entry] = []
        with self.lock:
            for entry in entries:
                if entry.state != PENDING:
                    settled.append(entry)
                    continue
                if entry.waiters is None:
                    entry.waiters = [callback]
                else:
                    entry.waiters.append(callback)
                if entry.owner is not None and not entry.is_asked:
                    entry.is_asked = True
                    ask.append(entry)
        for entry in ask:
            self._ask(entry)
        return settled

    def unwatch_all(self, entries: list[Entry], callback: Callable[[Entry], None]) -> None:
        """Undo :meth:`watch_all`."""
        with self.lock:
            for entry in entries:
                if entry.waiters is not None and callback in entry.waiters:
                    entry.waiters.remove(callback)

    def put_parts(
        self, object_id: bytes, value: Serialized, owner_id: bytes, note: str = ""
    ) -> None:
        """Write a large value into the node's store, in the name of its owner.

        ``note``: the line that made it, for when memory is short.
        """
        store = self.store
        assert store is not None
        # What was dropped a moment ago gives room, in memory that has been touched already: a loop
        # that puts and drops uses the same range again and again.
        self.drain_dropped()
        try:
            store.put(object_id, value.parts, value.total_bytes, owner=owner_id, note=note)
        except ObjectExistsError:
            # An earlier attempt of the task wrote it and died before it could say so.
            store.delete([object_id])
            store.put(object_id, value.parts, value.total_bytes, owner=owner_id, note=note)

    def promote(self, entry: Entry) -> Entry:
        """A copy of an inline value in the node's store, where any number of them fits a message.

        An object of its own, pinned once: other processes may promote the same value, and each copy
        ends with its own use.
        """
        store = self.store
        assert store is not None
        data = entry.data
        object_id = self.new_object_id()
        store.put(object_id, (data,), len(data), owner=self.worker_id)
        with self.lock:
            copy = self.table.own(object_id)
            copy.local, copy.pins = 0, 1
            copy.state = STORED
            copy.node_id = self.node_id
            copy.size_bytes = len(data)
        return copy

    # ---- references that travel ----

    def is_still_held(self, entry: Entry) -> bool:
        """Whether an entry that was just adopted without the lock escaped its release."""
        with self.lock:
            self.table.count_adopted()
            return not entry.is_released

    def adopt(self, object_id: bytes, owner: Owner) -> Entry:
        """The entry of a reference that was unpickled here, with one more local reference."""
        with self.lock:
            is_own = owner.worker_id == self.worker_id
            is_new = object_id not in self.table.entries
            entry = self.table.borrow(object_id, None if is_own else owner)
            entry.local += 1
            if is_own:
                if is_new:
                    # Unknown to its owner: it was deleted while only unregistered copies existed.
                    entry.state = FAILED
                    error = ReferenceCountingAssertionError(object_id.hex())
                    entry.data = serialize(error, is_error=True).to_bytes()
            elif not entry.is_told:
                self.untold.setdefault(entry, 0)
            return entry

    def reference_of(self, entry: Entry) -> Reference:
        """The entry as it travels."""
        owner = entry.owner
        if owner is None:
            assert self.peers is not None
            return Reference(entry.object_id, self.worker_id, self.peers.endpoint, self.node_id)
        return Reference(entry.object_id, owner.worker_id, owner.endpoint, owner.node_id)

    def take_contained(
        self,
        holder: Entry,
        references: list[Reference],
        sender: Peer,
        then: Callable[[], None] | None,
    ) -> None:
        """A value arrived whose inside refers to other objects: hold those while the value lives.

        They take the place of what an earlier value of ``holder`` referred to, which was lost and
        made again. The sender has registered this process for what it owns itself. ``then`` runs
        once every other owner has confirmed.
        """
        inner: list[Entry] = []
        unknown: list[Entry] = []  # to their owners, as far as this process knows
        twice: list[bytes] = []
        with self.lock:
            for reference in references:
                is_own = reference.owner_id == self.worker_id
                entry = self.table.borrow(
                    reference.object_id,
                    None
                    if is_own
                    else Owner(reference.owner_id, reference.owner_endpoint, reference.owner_node),
                )
                entry.pins += 1
                inner.append(entry)
                if is_own:
                    continue
                if reference.owner_id == sender.worker_id:
                    if entry.is_told:
                        twice.append(entry.object_id)
                    entry.is_told = True
                    self.untold.pop(entry, None)
                elif not entry.is_told or entry in self.untold:
                    unknown.append(entry)
            released: list[Entry] = []
            if holder.is_released:
                self.table.unpin_all(inner, released)
            else:
                earlier, holder.contained = holder.contained, inner
                self.table.unpin_all(earlier or (), released)
        if twice:
            self.send(sender, sender.stamp(EndBorrow(twice)))
        if unknown:
            holder_pinned = self._pin(holder)
            self.tell_owners(unknown, None, lambda: self._told(holder, holder_pinned, then))
        elif then is not None:
            then()
        if released:
            self.finish_released(released)

    def let_go_of_contained(self, holder: Entry) -> None:
        """The value that was made again refers to nothing, unlike the one that was lost."""
        with self.lock:
            earlier, holder.contained = holder.contained, None
        self.release_later(earlier or ())

    def _pin(self, entry: Entry) -> bool:
        with self.lock:
            if entry.is_released:
                return False
            entry.pins += 1
            return True

    def _told(self, holder: Entry, was_pinned: bool, then: Callable[[], None] | None) -> None:
        if was_pinned:
            self.release_later((holder,))
        if then is not None:
            then()

    def tell_untold(self, caller: Peer | None, then: Callable[[], None]) -> None:
        """Register what was unpickled and is still held; ``then`` runs when the owners know.

        ``caller``: the peer through which the covering party hears of the end; a registration with
        it needs no confirmation, because the connection keeps the order.
        """
        # Most of what a task unpickles it has dropped by its end: that needs no registration.
        self.drain_dropped()
        with self.lock:
            entries = list(self.untold)
        self.tell_owners(entries, caller, then)

    def tell_owners(
        self, entries: list[Entry], caller: Peer | None, then: Callable[[], None]
    ) -> None:
        """Register this process as borrower of ``entries`` with each owner that was not told;
        ``then`` runs when all owners have confirmed, also those that were told before.
        """
        peers = self.peers
        if caller is not None and (peers is None or peers.find(caller.worker_id) is not caller):
            # Both sides dialled at once and there are two connections: what is sent to the owner
            # goes by the other one, so the order of this one says nothing.
            caller = None
        by_owner: dict[Owner, list[Entry]] = {}
        under_way: dict[int, None] = {}
        with self.lock:
            for entry in entries:
                number = self.untold.get(entry, 0)
                if number:
                    under_way[number] = None
                elif not entry.is_told and not entry.is_released:
                    assert entry.owner is not None
                    by_owner.setdefault(entry.owner, []).append(entry)
            messages: list[tuple[Owner, Borrow]] = []
            for owner, untold in by_owner.items():
                number = next(self._borrow_numbers)
                messages.append((owner, Borrow(number, [e.object_id for e in untold])))
                self._borrows[number] = _BorrowUnderWay(owner.worker_id, untold)
                under_way[number] = None
                for entry in untold:
                    entry.is_told = True
                    self.untold[entry] = number
            waits = [
                borrow
                for borrow in map(self._borrows.get, under_way)
                if borrow is not None and (caller is None or borrow.owner_id != caller.worker_id)
            ]
            left = itertools.count(len(waits) - 1, -1)

            def one_known() -> None:
                if next(left) == 0:
                    then()

            for borrow in waits:
                borrow.callbacks.append(one_known)
        for owner, message in messages:
            if not self.tell(owner, message):
                self._borrow_known(message.number)
        if not waits:
            then()

    # ---- messages; on the loop's thread ----

    def on_message(self, peer: Peer, message: Any) -> None:
        """Dispatch one message of the borrowing protocol."""
        kind = type(message)
        if kind is ObjectValue:
            self._on_value(peer, message)
        elif kind is AskObject:
            self._on_ask(peer, message)
        elif kind is Borrow:
            with self.lock:
                for object_id in message.object_ids:
                    self.table.add_borrower(object_id, peer.worker_id)
            self.send(peer, BorrowKnown(message.number))
        elif kind is BorrowKnown:
            self._borrow_known(message.number)
        elif kind is EndBorrow:
            released: list[Entry] = []
            with self.lock:
                for object_id in message.object_ids:
                    self.table.remove_borrower(object_id, peer.worker_id, released)
            if released:
                self.finish_released(released)

    def lose_orphans(self) -> None:
        """Some process or node died: what it owned is lost, even with a copy. O(entries)."""
        with self.lock:
            orphans = [
                entry
                for entry in self.table.entries.values()
                if entry.owner is not None
                and entry.state in (PENDING, STORED)
                and self.deaths.is_dead(entry.owner)
            ]
        self.lose(orphans)

    def lose(self, entries: Iterable[Entry]) -> None:
        """The owners of these entries are gone."""
        woken: Waiters = []
        released: list[Entry] = []
        for entry in entries:
            assert entry.owner is not None
            site = self.sites.get(entry.object_id, "")
            error = self.deaths.owner_died(entry.object_id, entry.owner, call_site=site)
            data = serialize(error, is_error=True).to_bytes()
            with self.lock:
                if entry.state in (PENDING, STORED):
                    waiters = entry.settle(FAILED, data)
                    if waiters:
                        woken.append((entry, waiters))
                    inner, entry.contained = entry.contained, None
                    self.table.unpin_all(inner or (), released)
        wake(woken)
        if released:
            self.finish_released(released)

    def on_process_lost(self, worker_id: bytes, cause: str) -> None:
        """A process died: its borrows end. See :meth:`lose_orphans` for what it owned."""
        self.after_grace(self._end_borrows_of, worker_id)
        if self.untold:
            # The dead one may have covered some of these.
            self.tell_untold(None, _nothing)
        for number, borrow in list(self._borrows.items()):
            if borrow.owner_id == worker_id:
                self._borrow_known(number)
        for ask in [ask for ask in list(self._asks) if ask[0] == worker_id]:
            self._asks.pop(ask, None)

    def _end_borrows_of(self, worker_id: bytes) -> None:
        released: list[Entry] = []
        with self.lock:
            self.table.lose_borrower(worker_id, released)
        if released:
            self.finish_released(released)

    def after_grace(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back when all who had references from a process that just died have registered."""
        self._loop.call_soon_threadsafe(self._loop.call_later, DEATH_GRACE_S, callback, *args)

    def hold_for_grace(self, entries: Iterable[Entry]) -> None:
        """The executor of a task died, and may have passed the task's arguments on."""
        held = list(entries)
        if held:
            with self.lock:
                for entry in held:
                    entry.pins += 1
            self.after_grace(self.release_later, held)

    def end_borrows(self, entries: Iterable[Entry], worker_id: bytes) -> None:
        """Undo one registration of each entry that is owned here."""
        released: list[Entry] = []
        with self.lock:
            for entry in entries:
                if entry.owner is None:
                    self.table.remove_borrower(entry.object_id, worker_id, released)
        if released:
            self.finish_released(released)

    def _on_value(self, peer: Peer, message: ObjectValue) -> None:
        if self._asks.pop((peer.worker_id, message.asked), None) is None:
            return
        with self.lock:
            entry = self.table.entries.get(message.object_id)
        if entry is None or entry.state != PENDING:
            # Nobody waits for it any more: what the owner registered for this process ends.
            unused = [r.object_id for r in message.contained if r.owner_id == peer.worker_id]
            if unused:
                self.send(peer, peer.stamp(EndBorrow(unused)))
            return
        if message.failure:
            site = self.sites.get(message.object_id, "")
            address = f"worker {peer.worker_id.hex()}"
            error = ReferenceCountingAssertionError(message.object_id.hex(), address, site)
            self.fail((entry,), error)
            return
        if message.contained:
            self.take_contained(entry, message.contained, peer, None)
        if message.is_stored:
            entry.node_id = message.node_id
            entry.size_bytes = message.size_bytes
            self.has_remote = self.has_remote or message.node_id != self.node_id
            self.settle(entry, STORED, None)
        else:
            self.settle(entry, FAILED if message.is_error else INLINE, message.data)

    def _on_ask(self, peer: Peer, message: AskObject) -> None:
        with self.lock:
            entry = self.table.entries.get(message.object_id)
        if entry is None or entry.owner is not None:
            self.send(peer, ObjectValue(message.object_id, failure="freed", asked=message.serial))
            return
        if not self.watch(entry, lambda settled: self._answer(peer, settled, message.serial)):
            self._answer(peer, entry, message.serial)

    def _answer(self, peer: Peer, entry: Entry, asked: int) -> None:
        if entry.is_released:
            # Those who waited before the asker were the last to hold it.
            self.send(peer, ObjectValue(entry.object_id, failure="freed", asked=asked))
            return
        contained: list[Reference] = []
        with self.lock:
            # Settled when this was called for; it may be on its way to being made again by now.
            state = entry.state
            inner = list(entry.contained or ()) if state != PENDING else []
            for held in inner:
                contained.append(self.reference_of(held))
                if held.owner is None:
                    self.table.add_borrower(held.object_id, peer.worker_id)
        if state == PENDING:
            if not self.watch(entry, lambda settled: self._answer(peer, settled, asked)):
                self._answer(peer, entry, asked)
            return
        if state == STORED:
            answer = ObjectValue(
                entry.object_id,
                node_id=entry.node_id,
                size_bytes=entry.size_bytes,
                contained=contained,
                is_stored=True,
                asked=asked,
            )
        else:
            is_error = state == FAILED
            if is_error:
                self.errors.seen.add(entry.object_id)  # the borrower's to show
            answer = ObjectValue(
                entry.object_id, entry.data, is_error, contained=contained, asked=asked
            )
        if not self.send(peer, answer):
            self.end_borrows(inner, peer.worker_id)  # it died before the answer came

    def _borrow_known(self, number: int) -> None:
        with self.lock:
            borrow = self._borrows.pop(number, None)
            if borrow is None:
                return
            for entry in borrow.entries:
                if self.untold.get(entry) == number:
                    del self.untold[entry]
        for callback in borrow.callbacks:
            callback()

    def _ask(self, entry: Entry) -> None:
        owner = entry.owner
        assert owner is not None
        if self.deaths.is_dead(owner) or self.peers is None:
            self.lose((entry,))
            return
        peer = self.peers.get(owner.worker_id, owner.endpoint)
        question = peer.stamp(AskObject(entry.object_id))
        ask = (owner.worker_id, question.serial)
        self._asks[ask] = entry.object_id  # before the answer can come
        if not self.send(peer, question):
            self._asks.pop(ask, None)
            self.lose((entry,))

    def tell(self, owner: Owner, message: Any) -> bool:
        """Send a message that carries a serial to an owner soon. False: there is no way to it."""
        if self.peers is None:
            return False
        peer = self.peers.get(owner.worker_id, owner.endpoint)
        return self.send(peer, peer.stamp(message))

    def send(self, peer: Peer, message: Any) -> bool:
        """Send to a peer soon. False: its connection is closed."""
        try:
            peer.connection.post(message)
        except StreamClosedError:
            return False
        return True


def _nobody(about: Any) -> None:
    return None


def _nothing() -> None:
    return None


def contained_entries(value: Serialized) -> list[Entry]:
    """The entries of the references inside a serialised value, each once."""
    return list(dict.fromkeys(ref._entry for ref in value.contained if hasattr(ref, "_entry")))
