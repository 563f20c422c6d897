"""Frames to table calls, table effects to frames: the interpreter between the loop and the machine.

Before it: :mod:`~skate_object_store.service.peer` cut frames. After it: replies are queued on peers
and page jobs on the committer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import assert_never

from skate_object_store.constants import REQUESTS_PER_CLIENT_MAX
from skate_object_store.machine.late_pages import Answer, LatePages, Step
from skate_object_store.machine.records import (
    STORE,
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    DeleteFile,
    Effect,
    Freed,
    GetLost,
    GetUnrestored,
    Got,
    GotPart,
    ReadBack,
    Ready,
    WriteBatch,
)
from skate_object_store.machine.table import ObjectTable
from skate_object_store.protocol import (
    Kind,
    MalformedFrameError,
    pack_committed,
    pack_created,
    pack_exists,
    pack_full,
    pack_got,
    pack_got_part,
    pack_lost,
    pack_ready,
    pack_reserved,
    pack_unrestored,
    unpack_abort,
    unpack_commit,
    unpack_create,
    unpack_delete,
    unpack_get,
    unpack_keep,
    unpack_release,
    unpack_seal,
    unpack_wait,
)
from skate_object_store.service.committer import Outcome
from skate_object_store.service.pages import PageKeeper, Verdict
from skate_object_store.service.spiller import ReadEnded, Spiller, Written


class Dispatcher:
    """Carries out what clients ask. ``send(client, frame)`` queues a reply; it never raises."""

    def __init__(
        self,
        table: ObjectTable,
        pages: PageKeeper,
        send: Callable[[int, bytes], None],
        poison: Callable[[int, int], None] | None,
        spiller: Spiller | None,
    ) -> None:
        self._table = table
        self._pages = pages
        self._send = send
        self._poison = poison
        self._spiller = spiller
        self._late = LatePages()

    def handle(self, client: int, kind: int, request: int, body: memoryview, now_s: float) -> None:
        """Carry out one frame.

        Raises:
            MalformedFrameError: the frame is not one of the protocol.
            ClientMisuseError: it names something that the client does not hold.
        """
        table = self._table
        effects: list[Effect]
        if kind == Kind.GET:
            object_ids, timeout_s = unpack_get(body)
            effects = table.get(client, request, object_ids, now_s, now_s + timeout_s)
        elif kind == Kind.RELEASE:
            effects = table.release(client, unpack_release(body), now_s)
        elif kind == Kind.CREATE:
            object_id, size, owner, is_evictable, wait_s, only_spilling, note, is_late = (
                unpack_create(body)
            )
            wish = CreateRequest(
                client,
                request,
                object_id,
                size,
                owner,
                is_evictable,
                now_s + wait_s,
                only_spilling,
                note,
                is_late,
            )
            effects = table.create(wish, now_s)
        elif kind == Kind.SEAL:
            serial, keeps_pin = unpack_seal(body)
            if self._late:
                self._late.seal(client, serial)
                self._commit_ahead(now_s)
            effects = table.seal(client, serial, now_s, keeps_pin=keeps_pin)
        elif kind == Kind.DELETE:
            effects = table.delete(unpack_delete(body), now_s)
        elif kind == Kind.WAIT:
            object_ids, found_wanted, timeout_s = unpack_wait(body)
            effects = table.wait(
                client, request, object_ids, found_wanted, now_s, now_s + timeout_s
            )
        elif kind == Kind.ABORT:
            effects = table.abort(client, unpack_abort(body), now_s)
        elif kind == Kind.CANCEL:
            effects = table.cancel(client, request, now_s)
        elif kind == Kind.KEEP:
            effects = table.keep(client, request, unpack_keep(body), now_s)
        elif kind == Kind.COMMIT:
            serial, size = unpack_commit(body)
            effects = []
            wanted = self._late.want(client, request, serial, size)
            if wanted is not None:
                self._grow([wanted], now_s)
        else:
            raise MalformedFrameError(f"unknown frame kind {kind}")
        if table.waiting_requests(client) > REQUESTS_PER_CLIENT_MAX:
            raise MalformedFrameError(f"more than {REQUESTS_PER_CLIENT_MAX} requests at a time")
        self.perform(effects, now_s)

    def client_came(self, client: int) -> None:
        """A connection was admitted."""
        self._table.connect(client)

    def client_gone(self, client: int, now_s: float) -> None:
        """A connection ended."""
        self.perform(self._table.client_gone(client, now_s), now_s)

    def expire(self, now_s: float) -> None:
        """Time has passed."""
        wakeup = self._table.next_wakeup()
        if wakeup is not None and wakeup.at_s <= now_s:
            self.perform(self._table.expire(now_s), now_s)
        trim_at_s = self._pages.trim_at_s()
        if trim_at_s is not None and trim_at_s <= now_s:
            self._pages.trim()

    def next_deadline_s(self) -> float | None:
        """When :meth:`expire` has something to do."""
        wakeup = self._table.next_wakeup()
        deadlines = (None if wakeup is None else wakeup.at_s, self._pages.trim_at_s())
        return min((at_s for at_s in deadlines if at_s is not None), default=None)

    def settle(self, outcome: Outcome, now_s: float) -> None:
        """The committer finished a job: answer the grant that waited for it."""
        settled = self._pages.settle(outcome, now_s)
        if settled is not None:
            created, verdict = settled
            client = created.wish.client
            if created.wish.takes_late_pages:
                self._settle_step(created, verdict, now_s)
            elif not self._table.is_unsealed(client, created.serial):
                pass  # The client went away meanwhile, and its object with it.
            elif verdict == "ready":
                self._grant(created, now_s)
            elif verdict == "short":
                # Evictable copies are the only memory that the store itself can do without.
                self.perform(self._table.evict(created.wish.size_bytes), now_s)
                self._pages.retry(created)
            elif verdict == "hopeless":
                self.perform(self._table.machine_short(created, now_s), now_s)
            else:
                assert_never(verdict)
        self._commit_ahead(now_s)

    def perform(self, effects: Iterable[Effect], now_s: float) -> None:
        """Carry out effects, in their order."""
        for effect in effects:
            match effect:
                case Got(client, request, copies):
                    self._send(client, pack_got(request, copies))
                case Freed(offset, size_bytes):
                    self._pages.note_change(now_s)
                    if self._late:
                        self._grow(self._late.freed(offset), now_s)
                    if self._poison is not None and self._pages.has_pages(offset, size_bytes):
                        self._poison(offset, size_bytes)
                case Created():
                    self._admit(effect, now_s)
                case CreateExists(client, request, is_sealed):
                    self._send(client, pack_exists(request, is_sealed=is_sealed))
                case CreateRefused(client, request, fullness):
                    self._send(client, pack_full(request, fullness))
                case Ready(client, request, positions):
                    self._send(client, pack_ready(request, positions))
                case GotPart(client, request, copies, restoring):
                    self._send(client, pack_got_part(request, copies, restoring))
                case GetLost(client, request, object_id, cause, is_final):
                    self._send(client, pack_lost(request, object_id, cause, is_final=is_final))
                case GetUnrestored(client, request, object_id, fullness):
                    self._send(client, pack_unrestored(request, object_id, fullness))
                case WriteBatch() | ReadBack() | DeleteFile():
                    self._use_disk(effect)
                case _:
                    assert_never(effect)

    def written(self, outcome: Written, now_s: float) -> None:
        """The spiller has ended a batch."""
        effects = self._table.spill_ended(
            outcome.number,
            outcome.file_key,
            outcome.places,
            outcome.failure,
            outcome.room_bytes,
            now_s,
        )
        self.perform(effects, now_s)

    def read_ended(self, outcome: ReadEnded, now_s: float) -> None:
        """The spiller has ended a restore."""
        if outcome.cause is None:
            effects = self._table.restored(outcome.serial, now_s)
        else:
            effects = self._table.restore_failed(
                outcome.serial, outcome.cause, now_s, is_lost=outcome.is_lost
            )
        self.perform(effects, now_s)

    def _use_disk(self, effect: WriteBatch | ReadBack | DeleteFile) -> None:
        assert self._spiller is not None, "a table without a place to spill to does not"
        match effect:
            case WriteBatch():
                self._spiller.write(effect)
            case ReadBack():
                self._spiller.read(effect)
            case DeleteFile(file_key):
                self._spiller.delete(file_key)

    def _admit(self, created: Created, now_s: float) -> None:
        """Answer once the range has its pages, or at once if the client takes late ones."""
        wish = created.wish
        if wish.takes_late_pages and not self._pages.is_warm(created):
            self._send(wish.client, pack_reserved(wish.request, created.serial, created.offset))
            self._grow([self._late.begin(created)], now_s)
        elif self._pages.admit(created, now_s):
            self._grant(created, now_s)
        self._commit_ahead(now_s)

    def _settle_step(self, created: Created, verdict: Verdict, now_s: float) -> None:
        """A step of a range with late pages was tried."""
        if verdict == "ready":
            self._grow(self._late.grown(created.serial), now_s)
            return
        step = self._late.step_under_way(created.serial)
        if step is None:
            return  # The object was given up meanwhile.
        if verdict == "short":
            self.perform(self._table.evict(step.size_bytes), now_s)
            self._pages.retry(created, step)
            return
        for request in self._late.failed(created.serial):
            self.perform([self._table.pages_refused(created, request, now_s)], now_s)

    def _grow(self, outcomes: Iterable[Answer | Step], now_s: float) -> None:
        for outcome in outcomes:
            match outcome:
                case Answer(client, request, has_pages):
                    self._send(client, pack_committed(request, is_written=has_pages))
                case Step():
                    self._pages.commit(outcome, now_s)
                case _:
                    assert_never(outcome)

    def _commit_ahead(self, now_s: float) -> None:
        """Speculate, unless somebody waits for pages, or writes, and needs the processor."""
        if not self._late:
            self._pages.commit_ahead(now_s)

    def _grant(self, created: Created, now_s: float) -> None:
        """The range has its pages: the client may write, or the store reads from disk."""
        wish = created.wish
        if wish.client == STORE:
            self.perform(self._table.read_back(created, now_s), now_s)
        else:
            self._send(wish.client, pack_created(wish.request, created.serial, created.offset))
