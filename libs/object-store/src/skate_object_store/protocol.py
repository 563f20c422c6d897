"""The frames between a client and the store: packed, unpacked, and cut from a byte stream.

A frame is ``body length u32 | kind u8 | request u64 | body``, little end first. ``request`` is
chosen by the client and comes back in the reply; it is 0 in one-way frames. Ids and owner tags are
``length u8 | bytes``. Unpackers raise :class:`MalformedFrameError` for anything that a packer could
not have made.

::

    client                                   store
      │ ── handshake bytes, if the store asks for one ──  │
      │ HELLO version owner ───────────────────────────►  │
      │  ◄───────────── WELCOME version capacity + memfd  │
      │ CREATE id size ────────────────────────────────►  │
      │  ◄──────────────────────── CREATED serial offset  │   or EXISTS, FULL
      │   or RESERVED serial offset, if the client takes late pages, and then
      │ COMMIT serial bytes ───────────────────────────►  │
      │  ◄──────────────────────────────────── COMMITTED  │   so many from the start; or FULL
      │ SEAL serial / ABORT serial ─────────────────────► │   one way
      │ GET ids timeout ───────────────────────────────►  │
      │  ◄────────────────── GOT (serial offset size)...  │   each one pinned
      │   or GOT_PART: ask again for some; LOST, UNRESTORED: it cannot be read back from disk
      │ RELEASE (serial count)... / DELETE ids ─────────► │   one way, batched
      │ WAIT ids wanted timeout ───────────────────────►  │
      │  ◄──────────────────────────────── READY indexes  │
      │ KEEP ids ──────────────────────────────────────►  │
      │  ◄──────────────────────────────── READY indexes  │   those that are primary now
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum

from skate_object_store.constants import CREATE_WAIT_S, FRAME_BYTES_MAX, NOTE_BYTES_MAX
from skate_object_store.machine.facts import Copy, Fullness, FullReason, Holder

PROTOCOL_VERSION = 4


class MalformedFrameError(Exception):
    """The bytes are not a frame of this protocol."""


class Kind(IntEnum):
    """What a frame says. Below 64: client to store; from 64: store to client."""

    HELLO = 1
    CREATE = 2
    SEAL = 3
    ABORT = 4
    GET = 5
    WAIT = 6
    CANCEL = 7
    RELEASE = 8
    DELETE = 9
    KEEP = 10
    COMMIT = 11
    WELCOME = 64
    REFUSED = 65
    CREATED = 66
    EXISTS = 67
    FULL = 68
    GOT = 69
    READY = 70
    GOT_PART = 71
    LOST = 72
    UNRESTORED = 73
    RESERVED = 74
    COMMITTED = 75


_HEADER = struct.Struct("<IBQ")
_HELLO = struct.Struct("<H")
_CREATE = struct.Struct("<QdB")
_IS_EVICTABLE, _IS_FOR_SPILLING_ONLY, _HAS_NOTE, _TAKES_LATE_PAGES = 1, 2, 4, 8
_SEAL = struct.Struct("<QB")
_SERIAL = struct.Struct("<Q")
_COMMIT = struct.Struct("<QQ")
_GET = struct.Struct("<dI")
_WAIT = struct.Struct("<dII")
_RELEASE = struct.Struct("<QI")
_WELCOME = struct.Struct("<HQ")
_CREATED = struct.Struct("<QQ")
_COPY = struct.Struct("<QQQ")
_FLAG = struct.Struct("<B")
_FULL = struct.Struct("<BQQQQI")
_HOLDER = struct.Struct("<QdIB")

HEADER_BYTES = _HEADER.size
_CAUSE_BYTES_MAX = 1024


def frame(kind: Kind, request: int, body: bytes = b"") -> bytes:
    """One frame, ready to send."""
    return _HEADER.pack(len(body), kind, request) + body


def split_frames(data: bytes) -> tuple[list[tuple[int, int, memoryview]], int]:
    """The complete frames in ``data`` as (kind, request, body), and how many bytes they take.

    Raises:
        MalformedFrameError: a header announces more than ``FRAME_BYTES_MAX``.
    """
    frames: list[tuple[int, int, memoryview]] = []
    view = memoryview(data)
    start, end = 0, len(data)
    while end - start >= HEADER_BYTES:
        length, kind, request = _HEADER.unpack_from(data, start)
        if length > FRAME_BYTES_MAX:
            raise MalformedFrameError(f"a frame of {length} bytes")
        body_start = start + HEADER_BYTES
        if end - body_start < length:
            break
        start = body_start + length
        frames.append((kind, request, view[body_start:start]))
    return frames, start


def pack_hello(owner: bytes) -> bytes:
    """First frame of a client: the owner tag of what it creates."""
    return frame(Kind.HELLO, 0, _HELLO.pack(PROTOCOL_VERSION) + _tag(owner))


def unpack_hello(body: memoryview) -> tuple[int, bytes]:
    """(version, owner). Only the version is read when it is not ours."""
    reader = _Reader(body)
    (version,) = reader.take(_HELLO)
    if version != PROTOCOL_VERSION:
        return version, b""
    owner = reader.tag(can_be_empty=True)
    reader.end()
    return version, owner


def pack_create(
    request: int,
    object_id: bytes,
    size: int,
    owner: bytes,
    *,
    is_evictable: bool,
    wait_s: float | None,
    note: bytes = b"",
    takes_late_pages: bool = False,
) -> bytes:
    """Ask for ``size`` bytes; ``wait_s`` is how long the store may look for room.

    None: while spilling can make some. ``note``: what to say about the object, UTF-8.
    """
    flags = _IS_EVICTABLE if is_evictable else 0
    if takes_late_pages:
        flags |= _TAKES_LATE_PAGES
    if wait_s is None:
        wait_s = CREATE_WAIT_S
        flags |= _IS_FOR_SPILLING_ONLY
    if note:
        body = _CREATE.pack(size, wait_s, flags | _HAS_NOTE) + _tag(object_id) + _tag(owner)
        return frame(Kind.CREATE, request, body + _tag(note))
    body = _CREATE.pack(size, wait_s, flags) + _tag(object_id) + _tag(owner)
    return frame(Kind.CREATE, request, body)


def unpack_create(body: memoryview) -> tuple[bytes, int, bytes, bool, float, bool, str, bool]:
    """(object id, size, owner, is evictable, wait in seconds, only spilling, note, late pages)."""
    reader = _Reader(body)
    size, wait_s, flags = reader.take(_CREATE)
    object_id = reader.tag()
    owner = reader.tag(can_be_empty=True)
    note = reader.tag().decode(errors="replace") if flags & _HAS_NOTE else ""
    reader.end()
    if flags > _IS_EVICTABLE | _IS_FOR_SPILLING_ONLY | _HAS_NOTE | _TAKES_LATE_PAGES:
        raise MalformedFrameError(f"unknown create flags {flags}")
    is_for_spilling_only = bool(flags & _IS_FOR_SPILLING_ONLY)
    is_evictable = bool(flags & _IS_EVICTABLE)
    takes_late_pages = bool(flags & _TAKES_LATE_PAGES)
    return (
        object_id,
        size,
        owner,
        is_evictable,
        _seconds(wait_s),
        is_for_spilling_only,
        note,
        takes_late_pages,
    )


def pack_commit(request: int, serial: int, size: int) -> bytes:
    """Ask for the pages of an object's first ``size`` bytes."""
    return frame(Kind.COMMIT, request, _COMMIT.pack(serial, size))


def unpack_commit(body: memoryview) -> tuple[int, int]:
    """(serial, bytes from the start)."""
    reader = _Reader(body)
    serial, size = reader.take(_COMMIT)
    reader.end()
    return serial, size


def pack_seal(serial: int, *, keeps_pin: bool) -> bytes:
    """The object is whole."""
    return frame(Kind.SEAL, 0, _SEAL.pack(serial, keeps_pin))


def unpack_seal(body: memoryview) -> tuple[int, bool]:
    """(serial, whether the writer keeps a pin)."""
    reader = _Reader(body)
    serial, keeps_pin = reader.take(_SEAL)
    reader.end()
    return serial, bool(keeps_pin)


def pack_abort(serial: int) -> bytes:
    """The object will not be written."""
    return frame(Kind.ABORT, 0, _SERIAL.pack(serial))


def unpack_abort(body: memoryview) -> int:
    """The serial."""
    reader = _Reader(body)
    (serial,) = reader.take(_SERIAL)
    reader.end()
    return int(serial)


def pack_get(request: int, object_ids: Sequence[bytes], timeout_s: float) -> bytes:
    """Ask for pinned copies; ``timeout_s`` may be infinite."""
    return frame(Kind.GET, request, _GET.pack(timeout_s, len(object_ids)) + _tags(object_ids))


def unpack_get(body: memoryview) -> tuple[list[bytes], float]:
    """(ids, timeout in seconds)."""
    reader = _Reader(body)
    timeout_s, count = reader.take(_GET)
    return reader.tags(count), _seconds(timeout_s)


def pack_wait(
    request: int, object_ids: Sequence[bytes], found_wanted: int, timeout_s: float
) -> bytes:
    """Ask which objects are there; ``timeout_s`` may be infinite."""
    head = _WAIT.pack(timeout_s, found_wanted, len(object_ids))
    return frame(Kind.WAIT, request, head + _tags(object_ids))


def unpack_wait(body: memoryview) -> tuple[list[bytes], int, float]:
    """(ids, how many are wanted, timeout in seconds)."""
    reader = _Reader(body)
    timeout_s, found_wanted, count = reader.take(_WAIT)
    return reader.tags(count), found_wanted, _seconds(timeout_s)


def pack_cancel(request: int) -> bytes:
    """Nobody waits for this request's reply any more."""
    return frame(Kind.CANCEL, request)


def pack_release(pins: Iterable[tuple[int, int]]) -> bytes:
    """Drop pins: (serial, count) pairs."""
    return frame(Kind.RELEASE, 0, b"".join(_RELEASE.pack(*pin) for pin in pins))


def unpack_release(body: memoryview) -> list[tuple[int, int]]:
    """(serial, count) pairs."""
    if len(body) % _RELEASE.size:
        raise MalformedFrameError("a cut release")
    return [(serial, count) for serial, count in _RELEASE.iter_unpack(body)]


def pack_delete(object_ids: Sequence[bytes]) -> bytes:
    """Forget objects."""
    return frame(Kind.DELETE, 0, _tags(object_ids))


def unpack_delete(body: memoryview) -> list[bytes]:
    """The ids."""
    return _Reader(body).tags(None)


def pack_keep(request: int, object_ids: Sequence[bytes]) -> bytes:
    """Make these primary copies."""
    return frame(Kind.KEEP, request, _tags(object_ids))


def unpack_keep(body: memoryview) -> list[bytes]:
    """The ids."""
    return _Reader(body).tags(None)


def pack_welcome(capacity_bytes: int) -> bytes:
    """The client is admitted. The arena's descriptor travels with this frame."""
    return frame(Kind.WELCOME, 0, _WELCOME.pack(PROTOCOL_VERSION, capacity_bytes))


def unpack_welcome(body: memoryview) -> tuple[int, int]:
    """(version, arena length in bytes)."""
    reader = _Reader(body)
    version, capacity_bytes = reader.take(_WELCOME)
    reader.end()
    return version, capacity_bytes


def pack_refused(reason: str) -> bytes:
    """The connection ends, and why."""
    return frame(Kind.REFUSED, 0, reason.encode()[:1024])


def unpack_refused(body: memoryview) -> str:
    """The reason."""
    return bytes(body).decode(errors="replace")


def pack_created(request: int, serial: int, offset: int) -> bytes:
    """Room was reserved."""
    return frame(Kind.CREATED, request, _CREATED.pack(serial, offset))


def unpack_created(body: memoryview) -> tuple[int, int]:
    """(serial, offset)."""
    reader = _Reader(body)
    serial, offset = reader.take(_CREATED)
    reader.end()
    return serial, offset


def pack_reserved(request: int, serial: int, offset: int) -> bytes:
    """Room was reserved, and its pages are to be asked for. Unpacked like CREATED."""
    return frame(Kind.RESERVED, request, _CREATED.pack(serial, offset))


def pack_committed(request: int, *, is_written: bool) -> bytes:
    """The pages are there. ``is_written`` False: nobody writes the object any more."""
    return frame(Kind.COMMITTED, request, bytes([is_written]))


def unpack_committed(body: memoryview) -> bool:
    """Whether the pages are there."""
    if len(body) != 1:
        raise MalformedFrameError("a cut answer")
    return bool(body[0])


def pack_exists(request: int, *, is_sealed: bool) -> bytes:
    """The id is taken."""
    return frame(Kind.EXISTS, request, bytes([is_sealed]))


def unpack_exists(body: memoryview) -> bool:
    """Whether the object with this id is sealed."""
    if len(body) != 1:
        raise MalformedFrameError("a cut answer")
    return bool(body[0])


def pack_full(request: int, fullness: Fullness) -> bytes:
    """There is no room."""
    return frame(Kind.FULL, request, pack_fullness(fullness))


def unpack_full(body: memoryview) -> Fullness:
    """The state that refused the create."""
    return _take_fullness(_Reader(body))


def pack_unrestored(request: int, object_id: bytes, fullness: Fullness) -> bytes:
    """A spilled object does not fit into memory."""
    return frame(Kind.UNRESTORED, request, _tag(object_id) + pack_fullness(fullness))


def unpack_unrestored(body: memoryview) -> tuple[bytes, Fullness]:
    """(object id, the state that kept it on disk)."""
    reader = _Reader(body)
    return reader.tag(), _take_fullness(reader)


def pack_lost(request: int, object_id: bytes, cause: str, *, is_final: bool) -> bytes:
    """A spilled object cannot be read back. ``is_final``: and never will be."""
    text = cause.encode()[:_CAUSE_BYTES_MAX]
    return frame(Kind.LOST, request, _tag(object_id) + bytes((is_final,)) + text)


def unpack_lost(body: memoryview) -> tuple[bytes, str, bool]:
    """(object id, cause, is final)."""
    reader = _Reader(body)
    object_id = reader.tag()
    (is_final,) = reader.take(_FLAG)
    return object_id, reader.rest(), bool(is_final)


def pack_got(request: int, copies: Iterable[Copy | None]) -> bytes:
    """Pinned copies in the order of the ids; serial 0 for one that is missing."""
    packed = (
        _COPY.pack(0, 0, 0)
        if copy is None
        else _COPY.pack(copy.serial, copy.offset, copy.size_bytes)
        for copy in copies
    )
    return frame(Kind.GOT, request, b"".join(packed))


def unpack_got(body: memoryview) -> list[Copy | None]:
    """The copies."""
    if len(body) % _COPY.size:
        raise MalformedFrameError("a cut answer")
    return [Copy(*fields) if fields[0] else None for fields in _COPY.iter_unpack(body)]


def pack_got_part(request: int, copies: Sequence[Copy | None], restoring: Sequence[int]) -> bytes:
    """Like GOT, and the positions that are on their way back from disk."""
    marks = struct.pack(f"<I{len(restoring)}I", len(restoring), *restoring)
    return frame(Kind.GOT_PART, request, marks + pack_got(0, copies)[HEADER_BYTES:])


def unpack_got_part(body: memoryview) -> tuple[list[Copy | None], tuple[int, ...]]:
    """(copies, positions that are on their way)."""
    if len(body) < 4:
        raise MalformedFrameError("a cut answer")
    (count,) = struct.unpack_from("<I", body)
    end = 4 + 4 * count
    if len(body) < end:
        raise MalformedFrameError("a cut answer")
    restoring = struct.unpack(f"<{count}I", body[4:end])
    copies = unpack_got(body[end:])
    if any(position >= len(copies) for position in restoring):
        raise MalformedFrameError("a position beyond the answer")
    return copies, restoring


def pack_ready(request: int, positions: Sequence[int]) -> bytes:
    """Positions of the objects that are there."""
    return frame(Kind.READY, request, struct.pack(f"<{len(positions)}I", *positions))


def unpack_ready(body: memoryview) -> tuple[int, ...]:
    """The positions."""
    if len(body) % 4:
        raise MalformedFrameError("a cut answer")
    return struct.unpack(f"<{len(body) // 4}I", body)


def pack_fullness(fullness: Fullness) -> bytes:
    """An account of a full store; part of frames, and for hosts that pass one on."""
    parts = [
        _FULL.pack(
            fullness.reason,
            fullness.requested_bytes,
            fullness.capacity_bytes,
            fullness.used_bytes,
            fullness.evictable_bytes,
            len(fullness.holders),
        )
    ]
    for holder in fullness.holders:
        flags = holder.is_sealed | holder.is_deleted << 1
        parts.append(_HOLDER.pack(holder.size_bytes, holder.age_s, holder.pins, flags))
        parts += (_tag(holder.object_id), _tag(holder.owner), _tag(note_bytes(holder.note)))
    parts.append(fullness.detail.encode()[:_CAUSE_BYTES_MAX])
    return b"".join(parts)


def unpack_fullness(data: bytes) -> Fullness:
    """The inverse of :func:`pack_fullness`. Raises :class:`MalformedFrameError`."""
    return _take_fullness(_Reader(memoryview(data)))


def _take_fullness(reader: _Reader) -> Fullness:
    reason, requested, capacity, used, evictable, count = reader.take(_FULL)
    holders: list[Holder] = []
    for _ in range(count):
        size, age_s, pins, flags = reader.take(_HOLDER)
        object_id, owner = reader.tag(), reader.tag(can_be_empty=True)
        note = reader.tag(can_be_empty=True).decode(errors="replace")
        is_sealed, is_deleted = bool(flags & 1), bool(flags & 2)
        holders.append(Holder(object_id, owner, size, age_s, pins, is_sealed, is_deleted, note))
    try:
        known = FullReason(reason)
    except ValueError as error:
        raise MalformedFrameError(str(error)) from None
    detail = reader.rest()
    return Fullness(known, requested, capacity, used, evictable, tuple(holders), detail)


def note_bytes(note: str) -> bytes:
    """A note as it travels: UTF-8, cut to its maximum."""
    return note.encode(errors="replace")[:NOTE_BYTES_MAX]


class _Reader:
    """Takes fields off the front of a body."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def take(self, layout: struct.Struct) -> tuple[int, ...]:
        if len(self._body) - self._at < layout.size:
            raise MalformedFrameError("a cut frame")
        fields = layout.unpack_from(self._body, self._at)
        self._at += layout.size
        return fields

    def tag(self, *, can_be_empty: bool = False) -> bytes:
        start = self._at + 1
        if start > len(self._body):
            raise MalformedFrameError("a cut frame")
        self._at = start + self._body[start - 1]
        if self._at > len(self._body) or (self._at == start and not can_be_empty):
            raise MalformedFrameError("a cut or empty id")
        return bytes(self._body[start : self._at])

    def tags(self, count: int | None) -> list[bytes]:
        """``count`` ids and then the end; None: ids up to the end."""
        ids: list[bytes] = []
        while self._at < len(self._body):
            ids.append(self.tag())
        if not ids or len(ids) != (len(ids) if count is None else count):
            raise MalformedFrameError("ids that do not match their count")
        return ids

    def rest(self) -> str:
        """Text up to the end."""
        text = bytes(self._body[self._at :]).decode(errors="replace")
        self._at = len(self._body)
        return text

    def end(self) -> None:
        if self._at != len(self._body):
            raise MalformedFrameError("bytes after the last field")


def _tag(tag: bytes) -> bytes:
    return bytes((len(tag),)) + tag


def _tags(ids: Sequence[bytes]) -> bytes:
    return b"".join([bytes((len(object_id),)) + object_id for object_id in ids])


def _seconds(value: float) -> float:
    if not value >= 0:
        raise MalformedFrameError(f"a time of {value} s")
    return value
