"""The calls of a process that puts objects into a store and gets them out.

Before it: the user. After it: :mod:`~skate_object_store.client.attachment`, which knows what is
alive.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from skate_object_store.client.attachment import Attachment
from skate_object_store.client.copying import UNLOCKED_BYTES, borrowed
from skate_object_store.client.link import Call
from skate_object_store.client.private_views import private_view
from skate_object_store.constants import (
    CREATE_WAIT_S,
    FRAME_BYTES_MAX,
    ID_BYTES_MAX,
    IDS_PER_FRAME_MAX,
    OWNER_BYTES_MAX,
    RESTORE_MAX_S,
)
from skate_object_store.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    SpilledObjectLostError,
    SpillReadError,
    StoreProtocolError,
    StoreTimeoutError,
    full_error,
)
from skate_object_store.handshake import HandshakeLike
from skate_object_store.machine.facts import Copy
from skate_object_store.protocol import (
    Kind,
    MalformedFrameError,
    note_bytes,
    pack_commit,
    pack_create,
    pack_get,
    pack_keep,
    pack_seal,
    pack_wait,
    unpack_committed,
    unpack_created,
    unpack_exists,
    unpack_full,
    unpack_got,
    unpack_got_part,
    unpack_lost,
    unpack_ready,
    unpack_unrestored,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_FRAME_SLACK_BYTES = 64

_Answer = TypeVar("_Answer")


class StoreClient:
    """One process's connection to a store. Every method may be called from any thread.

    Args:
        endpoint: ``unix:<path>``, as :attr:`StoreServer.endpoint` says.
        owner: Tag of what this client creates, for :meth:`StoreServer.release_owner`. At most 255
            bytes.
        handshake: The client's side of the proof that the server asks for, if it does.
        timeout_s: For each round trip: a server that does not answer in time raises
            ``StoreTimeoutError``.

    Raises:
        StoreClosedError: nobody listens there.
        StoreAuthenticationError: this process was not admitted, or the server did not prove itself.
        StoreTimeoutError: no answer in time.

    Every method raises ``StoreClosedError`` once the client or the server is closed, and in a
    forked child; ``StoreTimeoutError`` when the server does not answer; ``ValueError`` for an id
    that is empty or longer than 255 bytes. Not to be called from finalizers, except for
    :meth:`delete`.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        owner: bytes = b"",
        handshake: HandshakeLike | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self.endpoint = endpoint
        self._owner = _checked_owner(owner)
        self._timeout_s = timeout_s
        self._attachment = Attachment(endpoint, self._owner, handshake, timeout_s)

    def create(
        self,
        object_id: bytes,
        size: int,
        *,
        evictable: bool = False,
        owner: bytes | None = None,
        wait_s: float | None = None,
        note: str = "",
        late_pages: bool = False,
    ) -> memoryview:
        """Reserve ``size`` bytes, 64-byte aligned, to be written and then sealed. One round trip.

        The content is undefined. Nobody can get the object before :meth:`seal`; if this process
        dies first, it is gone. After seal or abort the view raises; slices and arrays made from it
        do not, so drop them.

        Args:
            object_id: 1 to 255 bytes that name the object.
            size: In bytes; may be 0.
            evictable: A secondary copy, which the store may drop while nobody has a view of it.
                Otherwise it stays until it is deleted.
            owner: Tag instead of the client's.
            wait_s: How long the store may wait for room, whoever gives it. None: only for room that
                it makes itself by spilling, and at most ten seconds.
            note: What to say about the object when memory is short, such as the line that made it;
                cut at 200 bytes.
            late_pages: Return before the object has its memory, which the store gets from the
                machine step by step: write nothing that :meth:`commit` was not asked for.

        Raises:
            ObjectExistsError: the id is in the store, or being written.
            StoreFullError: no room within ``wait_s``; lists the biggest holders.
            OutOfDiskError: a StoreFullError because objects could not be spilled.
        """
        with self._attachment as attachment:
            call = attachment.link.begin()
            try:
                serial, offset, lacks_pages = self._create(
                    call, object_id, size, evictable, owner, wait_s, note, late_pages
                )
                call.claim()
                return attachment.begin_writing(
                    bytes(object_id), serial, offset, size, lacks_pages=lacks_pages
                )
            except BaseException:
                attachment.link.undo(call)
                raise

    def commit(self, object_id: bytes, size: int) -> None:
        """Wait until the first ``size`` bytes of an object created with ``late_pages`` have memory.

        Until then a write there may end the process (SIGBUS). The store goes on by itself from the
        object's start to its end, so that what is asked for later is likely to be there. One round
        trip; none for memory that was used before, or was asked for. Sets up this process's page
        tables too, so it is best called ahead of the writer, on another thread.

        Args:
            object_id: What this client is writing.
            size: In bytes, from the start; grows from call to call.

        Raises:
            ObjectNotFoundError: this client is not writing it, or it was given up meanwhile.
            StoreFullError: the machine has no memory for it. Asking again tries again.
            ValueError: the object is smaller.
        """
        with self._attachment as attachment:
            span = attachment.written(object_id)
            if not 0 <= size <= span.size_bytes:
                raise ValueError(f"{size} bytes of an object of {span.size_bytes}")
            if size <= span.ready_bytes:
                return
            if span.lacks_pages:
                self._commit(bytes(object_id), span.serial, size)
            mapping = attachment.mapping
            offset = span.address - mapping.write_address
            mapping.prepare_write(offset + span.ready_bytes, size - span.ready_bytes)
            span.ready_bytes = size

    def seal(self, object_id: bytes) -> None:
        """Publish an object that this client created: it is whole and will not change. One way.

        Raises:
            ObjectNotFoundError: this client is not writing it.
            ValueError: it was created with ``late_pages`` and not wholly committed.
        """
        with self._attachment as attachment:
            attachment.seal(object_id)

    def abort(self, object_id: bytes) -> None:
        """Give up an object that this client created. One way. Raises like :meth:`seal`.

        The range is reused only when the last slice or array made from the view is gone.
        """
        with self._attachment as attachment:
            attachment.abort(object_id)

    def put(
        self,
        object_id: bytes,
        parts: Sequence[ReadableBuffer],
        total: int | None = None,
        *,
        evictable: bool = False,
        owner: bytes | None = None,
        wait_s: float | None = None,
        note: str = "",
    ) -> int:
        """Create, write the parts one after the other, and seal. Returns the object's size.

        One round trip and a copy, which runs without the interpreter lock and on several threads if
        large.

        Args:
            object_id: As in :meth:`create`.
            parts: Contiguous buffers.
            total: The sum of their lengths, checked if given.
            evictable: As in :meth:`create`.
            owner: As in :meth:`create`.
            wait_s: As in :meth:`create`.
            note: As in :meth:`create`.

        Raises:
            ObjectExistsError, StoreFullError: as :meth:`create`.
            BufferError: a part is not contiguous.
            ValueError: the parts do not add up to ``total``.
        """
        views = [memoryview(part) for part in parts]
        size = sum(view.nbytes for view in views)
        if total is not None and total != size:
            raise ValueError(f"the parts have {size} bytes in all, not {total}")
        with self._attachment as attachment:
            call = attachment.link.begin()
            try:
                # Without late pages: with them a first put of 800 MB took 0.8 of the time, but
                # later ones into the same memory 1.3 times as long (why is not known).
                serial, offset, _ = self._create(
                    call, object_id, size, evictable, owner, wait_s, note, takes_late_pages=False
                )
                for view in views:
                    self._copy(offset, view)
                    offset += view.nbytes
                attachment.link.post(pack_seal(serial, keeps_pin=False), self._timeout_s)
            except BaseException:
                attachment.link.undo(call)  # An abort that comes after the seal does nothing.
                raise
        return size

    def write(self, view: memoryview, offset: int, buffer: ReadableBuffer) -> None:
        """Copy a buffer into a view that :meth:`create` returned, as :meth:`put` does.

        Raises:
            ValueError: the buffer does not fit at ``offset``, or the view is not one of this
                store's.
            BufferError: the buffer is not contiguous.
        """
        source = memoryview(buffer)
        with self._attachment as attachment, borrowed(view, is_writable=True) as (address, length):
            start = address - attachment.mapping.write_address
            if not 0 <= start <= attachment.mapping.size_bytes - length:
                raise ValueError("the view was not made by this client's create()")
            if not 0 <= offset <= length - source.nbytes:
                raise ValueError(
                    f"{source.nbytes} bytes at {offset} do not fit into a view of {length} bytes"
                )
            self._copy(start + offset, source)

    def get(
        self, object_ids: Sequence[bytes], timeout_s: float | None = 0
    ) -> list[memoryview | None]:
        """Read-only views in the order of the ids, None for each that is not there in time.

        An object that was spilled to disk counts as being there: it is read back, and waited for
        beyond ``timeout_s`` if need be, but at most a minute.

        An object stays where it is while a view, a slice of one, or an array over one is alive,
        even if it is deleted or this client is closed meanwhile. Objects that this process has
        views of cost no round trip.

        Args:
            object_ids: Repeats are allowed.
            timeout_s: How long to wait for the objects that are not there yet; None: as long as it
                takes.

        Raises:
            SpilledObjectLostError: what is on disk of one of them is not what was written.
            SpillReadError: one of them could not be read from disk this time.
            StoreFullError: views fill the memory, so that a spilled object cannot come back.
        """
        deadline_s = _deadline_s(timeout_s)
        with self._attachment as attachment:
            views = [attachment.cached(object_id) for object_id in object_ids]
            missing = [position for position, view in enumerate(views) if view is None]
            for start in range(0, len(missing), IDS_PER_FRAME_MAX):
                positions = missing[start : start + IDS_PER_FRAME_MAX]
                wanted = [_checked_id(object_ids[position]) for position in positions]
                found = self._get(wanted, max(0.0, deadline_s - time.monotonic()))
                for position, view in zip(positions, found, strict=True):
                    views[position] = view
        return views

    def private_view(self, view: memoryview) -> memoryview | None:
        """A writable view of the same bytes that only this process sees.

        Nothing is copied until a page is written to, and then that page. It keeps the object as
        ``view`` does. For memory users without a notion of read-only; of little use below some
        hundred KiB, where a copy costs less than the mapping.

        Args:
            view: What :meth:`get` returned, or a slice of it. For other memory the answer is None.

        Raises:
            OSError: the process has too many mappings.
        """
        with self._attachment as attachment:
            return private_view(attachment.mapping, view)

    def contains(self, object_id: bytes) -> bool:
        """Whether the object is in the store, sealed. One round trip."""
        return bool(self.wait([object_id], 1, 0))

    def wait(
        self, object_ids: Sequence[bytes], num_ready: int, timeout_s: float | None
    ) -> list[bytes]:
        """Wait until ``num_ready`` of the objects are there; returns those that are, in order.

        In memory or on disk: a spilled object is there, and is left on disk.

        More may be returned than asked for, and fewer after ``timeout_s`` (None: no limit). Pins
        nothing.

        Raises:
            ValueError: too many ids for one request; 30 000 ids of 28 bytes are not.
        """
        wanted = [_checked_id(object_id) for object_id in object_ids]
        if not wanted:
            return []
        if sum(map(len, wanted)) + len(wanted) > FRAME_BYTES_MAX - _FRAME_SLACK_BYTES:
            raise ValueError(f"{len(wanted)} ids are too many for one wait")
        limit_s = math.inf if timeout_s is None else max(0.0, timeout_s)
        count = min(max(num_ready, 0), len(wanted))

        def pack(request: int) -> bytes:
            return pack_wait(request, wanted, count, limit_s if count else 0.0)

        with self._attachment as attachment:
            call = attachment.link.begin()
            try:
                positions = self._request(call, pack, limit_s, Kind.READY, unpack_ready)
            except BaseException:
                attachment.link.undo(call)
                raise
        return [wanted[position] for position in positions if position < len(wanted)]

    def keep(self, object_ids: Sequence[bytes]) -> list[bytes]:
        """Make secondary copies primary ones, which are not evicted. One round trip.

        Returns those that stay now until they are deleted, primary ones included. The others are
        not in the store, or still being written.
        """
        kept: list[bytes] = []
        with self._attachment as attachment:
            for start in range(0, len(object_ids), IDS_PER_FRAME_MAX):
                ids = [_checked_id(each) for each in object_ids[start : start + IDS_PER_FRAME_MAX]]
                call = attachment.link.begin()
                try:
                    positions = self._request(
                        call, partial(pack_keep, object_ids=ids), 0.0, Kind.READY, unpack_ready
                    )
                except BaseException:
                    attachment.link.undo(call)
                    raise
                kept += [ids[position] for position in positions if position < len(ids)]
        return kept

    def delete(self, object_ids: Sequence[bytes]) -> None:
        """Forget objects, whoever created them. One way, and safe in finalizers.

        Unknown ids are no error. The ids are free at once, the memory when the last view in any
        process is gone.
        """
        self._attachment.delete([_checked_id(object_id) for object_id in object_ids])

    def close(self) -> None:
        """Abort what is being written and end the connection; views that are alive stay valid.

        The connection itself ends with the last of them. Calling it again does nothing.
        """
        self._attachment.close()

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(
        self,
        call: Call,
        object_id: bytes,
        size: int,
        evictable: bool,
        owner: bytes | None,
        wait_s: float | None,
        note: str,
        takes_late_pages: bool,
    ) -> tuple[int, int, bool]:
        """(serial, offset, whether it lacks pages) of a reserved range.

        The caller undoes the call if it cannot use it.
        """
        _checked_id(object_id)
        if not 0 <= size < 1 << 63:
            raise ValueError(f"an object cannot have {size} bytes")
        if wait_s is not None and not wait_s >= 0:
            raise ValueError(f"cannot wait {wait_s} s")
        tag = self._owner if owner is None else _checked_owner(owner)
        kind, body = self._attachment.link.request(
            call,
            lambda number: pack_create(
                number,
                object_id,
                size,
                tag,
                is_evictable=evictable,
                wait_s=wait_s,
                note=note_bytes(note) if note else b"",
                takes_late_pages=takes_late_pages,
            ),
            (CREATE_WAIT_S if wait_s is None else wait_s) + self._timeout_s,
        )
        try:
            if kind == Kind.CREATED:
                return *unpack_created(body), False
            if kind == Kind.RESERVED and takes_late_pages:
                serial, offset = unpack_created(body)
                self._attachment.mapping.forget_prepared(offset, size)
                return serial, offset, True
            if kind == Kind.FULL:
                raise full_error(bytes(object_id), unpack_full(body))
            if kind == Kind.EXISTS:
                raise ObjectExistsError(bytes(object_id), unpack_exists(body))
        except MalformedFrameError as error:
            raise StoreProtocolError(self.endpoint, str(error)) from None
        raise StoreProtocolError(self.endpoint, f"frame kind {kind} in reply to a create")

    def _commit(self, object_id: bytes, serial: int, size: int) -> None:
        """Wait until a copy's first ``size`` bytes have their pages."""
        link = self._attachment.link
        call = link.begin()
        try:
            kind, body = link.request(
                call, lambda number: pack_commit(number, serial, size), self._timeout_s
            )
            call.claim()
        except BaseException:
            link.undo(call)
            raise
        try:
            if kind == Kind.FULL:
                raise full_error(object_id, unpack_full(body))
            if kind != Kind.COMMITTED:
                raise StoreProtocolError(self.endpoint, f"frame kind {kind} in reply to a commit")
            if not unpack_committed(body):
                raise ObjectNotFoundError(object_id)
        except MalformedFrameError as error:
            raise StoreProtocolError(self.endpoint, str(error)) from None

    def _copy(self, offset: int, source: memoryview) -> None:
        """Copy into the arena at ``offset``."""
        size = source.nbytes
        if not source.c_contiguous:
            raise BufferError("a part is not contiguous; pass a contiguous copy of it")
        mapping = self._attachment.mapping
        if size >= UNLOCKED_BYTES:
            with borrowed(source) as (address, _):
                self._attachment.copier.copy(
                    mapping.write_address + offset,
                    address,
                    size,
                    lambda start, length: mapping.prepare_write(offset + start, length),
                )
        elif size:
            mapping.writable[offset : offset + size] = source.cast("B")

    def _get(self, object_ids: list[bytes], timeout_s: float) -> list[memoryview | None]:
        """One frame's worth of :meth:`get`."""
        views, restoring = self._ask(object_ids, timeout_s)
        if restoring:
            self._await_restores(object_ids, views, restoring, timeout_s)
        return views

    def _ask(
        self, object_ids: list[bytes], timeout_s: float
    ) -> tuple[list[memoryview | None], tuple[int, ...]]:
        """The views of what is there, and positions of what is on its way from disk."""
        attachment = self._attachment
        call = attachment.link.begin()
        try:
            kind, body = attachment.link.request(
                call,
                lambda number: pack_get(number, object_ids, timeout_s),
                timeout_s + self._timeout_s,
            )
            restoring: tuple[int, ...] = ()
            try:
                if kind == Kind.GOT:
                    copies = unpack_got(body)
                else:
                    copies, restoring = self._unpack_unusual(kind, body)
            except MalformedFrameError as error:
                raise StoreProtocolError(self.endpoint, str(error)) from None
            if len(copies) != len(object_ids):
                raise StoreProtocolError(self.endpoint, "a get's answer has another length")
            call.claim()
            return attachment.adopt(object_ids, copies), restoring
        except BaseException:
            attachment.link.undo(call)
            raise

    def _unpack_unusual(
        self, kind: int, body: memoryview
    ) -> tuple[list[Copy | None], tuple[int, ...]]:
        """Answers to a get of what is on disk: a part of it, or an error, which is raised."""
        if kind == Kind.GOT_PART:
            return unpack_got_part(body)
        if kind == Kind.LOST:
            object_id, cause, is_final = unpack_lost(body)
            raise (SpilledObjectLostError if is_final else SpillReadError)(object_id, cause)
        if kind == Kind.UNRESTORED:
            raise full_error(*unpack_unrestored(body))
        raise StoreProtocolError(self.endpoint, f"frame kind {kind} in reply to a get")

    def _await_restores(
        self,
        object_ids: list[bytes],
        views: list[memoryview | None],
        restoring: tuple[int, ...],
        timeout_s: float,
    ) -> None:
        """Ask again for objects that the store is reading; fills in their views."""
        deadline_s = time.monotonic() + RESTORE_MAX_S
        positions = list(restoring)
        while positions:
            if time.monotonic() > deadline_s:
                raise StoreTimeoutError(self.endpoint, timeout_s + RESTORE_MAX_S)
            found, still = self._ask([object_ids[position] for position in positions], 0)
            for position, view in zip(positions, found, strict=True):
                views[position] = view
            positions = [positions[index] for index in still]

    def _request(
        self,
        call: Call,
        pack: Callable[[int], bytes],
        patience_s: float,
        expected: Kind,
        unpack: Callable[[memoryview], _Answer],
    ) -> _Answer:
        """A round trip that the server may take ``patience_s`` to answer."""
        kind, body = self._attachment.link.request(call, pack, patience_s + self._timeout_s)
        if kind != expected:
            raise StoreProtocolError(self.endpoint, f"frame kind {kind} instead of {expected.name}")
        try:
            return unpack(body)
        except MalformedFrameError as error:
            raise StoreProtocolError(self.endpoint, str(error)) from None


def _checked_id(object_id: bytes) -> bytes:
    if not 0 < len(object_id) <= ID_BYTES_MAX:
        raise ValueError(f"an object id has 1 to {ID_BYTES_MAX} bytes, got {len(object_id)}")
    return object_id


def _checked_owner(owner: bytes) -> bytes:
    if len(owner) > OWNER_BYTES_MAX:
        raise ValueError(f"an owner tag has at most {OWNER_BYTES_MAX} bytes, got {len(owner)}")
    return owner


def _deadline_s(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + max(0.0, timeout_s)
