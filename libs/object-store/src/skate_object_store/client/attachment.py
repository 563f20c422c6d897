"""What ties a process to a store: the link, the mapped arena, and which views are alive.

Before it: :class:`~skate_object_store.client.store_client.StoreClient` checked its arguments. After
it: frames leave on the link. It outlives the client's ``close()`` for as long as views do, because
their pins are what keeps the memory from being reused.

Locks, in the order in which they are taken: the link's send lock, then ``_lock``. Finalizers take
none.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence

from skate_object_store.client.admission import be_admitted
from skate_object_store.client.copying import Copier
from skate_object_store.client.link import Link
from skate_object_store.client.mapping import ArenaMapping
from skate_object_store.client.outbox import Nudge, Outbox
from skate_object_store.client.spans import Span, SpanViewer
from skate_object_store.constants import RELEASE_LINGER_S
from skate_object_store.errors import (
    ObjectNotFoundError,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
)
from skate_object_store.handshake import HandshakeLike
from skate_object_store.machine.facts import Copy
from skate_object_store.protocol import (
    Kind,
    MalformedFrameError,
    pack_abort,
    pack_cancel,
    pack_release,
    pack_seal,
    unpack_created,
    unpack_got,
    unpack_got_part,
)

_RETRY_S = 1.0
"""After the server did not take a flush, the next is tried this much later."""

_JOIN_S = 1.0


class Attachment:
    """A context manager around every operation: raises once closed, and holds off the end."""

    def __init__(
        self, endpoint: str, owner: bytes, handshake: HandshakeLike | None, timeout_s: float
    ) -> None:
        admission = be_admitted(endpoint, owner, handshake, timeout_s)
        try:
            self.mapping = ArenaMapping(admission.arena_fd, admission.arena_bytes)
        except OSError as error:
            admission.connection.close()
            raise StoreClosedError(endpoint, f"the arena cannot be mapped ({error})") from None
        self.timeout_s = timeout_s
        self.copier = Copier()
        self._nudge = Nudge()
        self._viewer = SpanViewer(self._nudge.give_for)
        self.outbox = Outbox(self._nudge, self._take_releases)
        self.link = Link(
            endpoint,
            admission.connection,
            drain=self.outbox.drain,
            on_orphan=self._undo,
            on_abandoned=lambda number: self.outbox.add(pack_cancel(number)),
            on_unread=self._nudge.give,
        )
        self._lock = threading.Lock()
        self._readable: dict[bytes, Span] = {}  # what a get finds without asking
        self._held: dict[int, Span] = {}  # by serial: spans whose end the store must hear of
        self._writing: dict[bytes, Span] = {}  # created, neither sealed nor aborted
        # Threads inside an operation. A thread has one at a time, so that an interrupt which falls
        # just before __exit__ does its work is made good by the thread's next operation.
        self._active: set[int] = set()
        self._is_closing = False
        self._has_ended = False
        self._is_forked = False
        self._flusher = threading.Thread(
            target=self._flush_when_nudged, name="skate-store-flush", daemon=True
        )
        _attachments.add(self)
        self._flusher.start()

    def __enter__(self) -> Attachment:
        self.link.check_open()  # First: after a fork the lock may be one that nobody will release.
        with self._lock:
            if self._is_closing:
                raise StoreClosedError(self.link.endpoint, "the client was closed")
            self._active.add(threading.get_ident())
        return self

    def __exit__(self, *_: object) -> None:
        self._active.discard(threading.get_ident())
        if self._is_closing:
            self._end_if_idle()

    def close(self) -> None:
        """Abort what is being written; end at once, or when the last view has gone."""
        if self._is_forked:
            return  # Everything here is the parent's.
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._active.discard(threading.get_ident())
            object_ids = list(self._writing)
        for object_id in object_ids:
            try:
                self.abort(object_id)
            except StoreError:
                pass  # The server is gone, or will see the connection end; the span is tracked.
        self._end_if_idle()

    # Reading.

    def cached(self, object_id: bytes) -> memoryview | None:
        """A read-only view of an object that this process has pinned already."""
        if object_id not in self._readable:
            return None
        with self._lock:
            span = self._readable.get(object_id)
            return None if span is None else self._viewer.view(span).toreadonly()

    def adopt(
        self, object_ids: Sequence[bytes], copies: Sequence[Copy | None]
    ) -> list[memoryview | None]:
        """Read-only views of copies that the store has just pinned, once each, for this process."""
        with self._lock:
            spans = [
                None if copy is None else self._pinned_span(object_id, copy)
                for object_id, copy in zip(object_ids, copies, strict=True)
            ]
            return [
                None if span is None else self._viewer.view(span).toreadonly() for span in spans
            ]

    def delete(self, object_ids: list[bytes]) -> None:
        """Delete soon, and find none of them any more. Safe in a finalizer."""
        for object_id in object_ids:
            self._readable.pop(object_id, None)
        self.outbox.delete(object_ids)

    # Writing.

    def begin_writing(
        self, object_id: bytes, serial: int, offset: int, size: int, *, lacks_pages: bool = False
    ) -> memoryview:
        """A writable view of a range that the store has just reserved."""
        span = Span(object_id, serial, self.mapping.write_address + offset, size)
        span.lacks_pages = lacks_pages
        with self._lock:
            forgotten = self._writing.get(object_id)
            span.writing = self._viewer.view(span)
            self._writing[object_id] = span
        if forgotten is not None:  # Deleted while it was being written, and created anew.
            self._stop_writing(forgotten)
            self._abort(forgotten)
        return span.writing

    def written(self, object_id: bytes) -> Span:
        """What this client is writing. Raises ``ObjectNotFoundError``."""
        with self._lock:
            span = self._writing.get(object_id)
        if span is None:
            raise ObjectNotFoundError(object_id)
        return span

    def seal(self, object_id: bytes) -> None:
        """Publish; the handed-out view is released, so that a late write raises."""
        span = self.written(object_id)
        if span.lacks_pages and span.ready_bytes < span.size_bytes:
            raise ValueError("the object has late pages: commit() all of it before it is sealed")
        span = self._take_writing(object_id)
        is_viewed = self._stop_writing(span)
        try:
            self.link.post(pack_seal(span.serial, keeps_pin=is_viewed), self.timeout_s)
        finally:
            if is_viewed:
                span.pins = 1
                self._hold(span)

    def abort(self, object_id: bytes) -> None:
        """Give the range back, once nobody can write into it."""
        span = self._take_writing(object_id)
        self._stop_writing(span)
        self._abort(span)

    # Helpers, in call order.

    def _pinned_span(self, object_id: bytes, copy: Copy) -> Span:
        span = self._held.get(copy.serial)
        if span is None:
            address = self.mapping.read_address + copy.offset
            span = Span(object_id, copy.serial, address, copy.size_bytes)
            span.is_held = True
            self._held[copy.serial] = self._readable[object_id] = span
        span.pins += 1
        return span

    def _take_writing(self, object_id: bytes) -> Span:
        with self._lock:
            span = self._writing.pop(object_id, None)
        if span is None:
            raise ObjectNotFoundError(object_id)
        return span

    def _stop_writing(self, span: Span) -> bool:
        """Invalidate the handed-out view; True if slices or arrays made from it live on."""
        view, span.writing = span.writing, None
        if view is not None:
            try:
                view.release()
            except BufferError:
                pass  # An array is built on it. Its end is noticed.
        del view
        return span.is_viewed

    def _abort(self, span: Span) -> None:
        if span.is_viewed:
            span.is_aborted = True
            self._hold(span)
        else:
            self.link.post(pack_abort(span.serial), self.timeout_s)

    def _hold(self, span: Span) -> None:
        """Tell the store when the span's last view ends, which may have happened just now."""
        with self._lock:
            span.is_held = True
            self._held[span.serial] = span
        if span.reference is not None and not span.is_viewed:
            self._viewer.ended.append(span.reference)
            self._nudge.give()

    def _take_releases(self) -> list[tuple[int, int]]:
        """(serial, pins) of the spans whose last view has gone. Called by the link's sender."""
        ended = self._viewer.ended
        releases: list[tuple[int, int]] = []
        with self._lock:
            while ended:
                span = ended.popleft().span
                if not span.is_held or span.is_viewed:
                    continue  # Seen before, or viewed again since.
                span.is_held = False
                del self._held[span.serial]
                if self._readable.get(span.object_id) is span:
                    del self._readable[span.object_id]
                if span.is_aborted:
                    self.outbox.add(pack_abort(span.serial))
                else:
                    releases.append((span.serial, span.pins))
        return releases

    def _undo(self, kind: int, body: memoryview) -> None:
        """Give back what a reply granted for which nobody waits any more."""
        try:
            if kind in {Kind.GOT, Kind.GOT_PART}:
                found = unpack_got(body) if kind == Kind.GOT else unpack_got_part(body)[0]
                copies = [copy for copy in found if copy is not None]
                if copies:
                    self.outbox.add(pack_release((copy.serial, 1) for copy in copies))
            elif kind in {Kind.CREATED, Kind.RESERVED}:
                serial, _ = unpack_created(body)
                self.outbox.add(pack_abort(serial))
        except MalformedFrameError as error:
            self.link.fail(str(error))

    def _flush_when_nudged(self) -> None:
        while True:
            self._nudge.wait()
            # Gather: a request that leaves meanwhile takes everything along.
            time.sleep(RELEASE_LINGER_S)
            self._nudge.take()
            if self._is_closing:
                self._end_if_idle()
            elif not self._has_ended:
                self._flush()
            if self._has_ended:
                return

    def _flush(self) -> None:
        try:
            self.link.post(b"", self.timeout_s)
            self.link.collect_orphans()
        except StoreTimeoutError:
            time.sleep(_RETRY_S)
            self._nudge.give()
        except StoreError:
            self.outbox.drain()  # Nobody to tell; but the spans are done with.

    def _end_if_idle(self) -> None:
        self._flush()
        with self._lock:
            if self._has_ended or self._active or self._held or self._writing:
                return
            self._has_ended = True
        self.link.close("the client was closed")
        self.copier.close()
        self.mapping.close()
        self._nudge.give()
        if threading.current_thread() is not self._flusher:
            self._flusher.join(_JOIN_S)

    def _forget_after_fork(self) -> None:
        self._is_forked = True
        self.link.forget_after_fork()


# Module state because fork hooks are the process's: a child must close its copies of these sockets,
# or the server would not notice the parent's death.
_attachments: weakref.WeakSet[Attachment] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for attachment in list(_attachments):
        attachment._forget_after_fork()  # noqa: SLF001  The hook is part of the class.
    _attachments.clear()


os.register_at_fork(after_in_child=_forget_all_after_fork)
