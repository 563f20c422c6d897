"""What two nodes say to each other when one fetches an object from the other, or deletes one.

A connection carries requests one after the other; the handshake of the stream
(``skate_rpc.handshake``) comes before the first. Numbers are in network order::

    request   kind 1 | id length 1 | waits 1 | 0 1 | offset 8 | length 8 | id
    reply     status 1 | 0 7 | size of the object 8 | the bytes asked for, if status is OK

A deletion names objects that their owner has released: its kind is 2, the length that of what
follows, the id length and the offset are 0, and each id is preceded by a byte with its length. The
reply is OK, with a size of 0. A keeping names copies that are to be primary, in the same way; its
kind is 3. The reply is OK, with the length of what follows: the ids of those that are primary now.

``WAIT`` says that the source is bringing the object back from its disk, or still gets it itself;
another reply follows. ``waits`` is 1 if the object is expected to be on its way to the source: then
it sends the bytes as they come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

_REQUEST = struct.Struct("!BBBxQQ")
_REPLY = struct.Struct("!B7xQ")
_FETCH = 1
_DELETE = 2
_KEEP = 3

REQUEST_BYTES = _REQUEST.size
REPLY_BYTES = _REPLY.size
ID_BYTES_MAX = 255
"""What the one byte of its length can say; also the store's limit."""
DELETION_BYTES_MAX = 64 << 10
"""Of the ids that one request names."""
OBJECT_BYTES_MAX = 1 << 62
"""Offsets and lengths beyond this are malformed, so that their sums stay numbers of 8 bytes."""


class Status(IntEnum):
    """What a source answers."""

    OK = 0
    ABSENT = 1  # it does not have the object
    OUT_OF_RANGE = 2  # the object is shorter than the range
    WAIT = 3
    FAILED = 4  # its store does not answer


class MalformedError(Exception):
    """The peer does not speak this protocol; the connection is of no more use."""


class Deletion(NamedTuple):
    """The fixed part of a deletion; ``length`` bytes of ids follow it."""

    length: int


class KeepRequest(NamedTuple):
    """The fixed part of a keeping; ``length`` bytes of ids follow it."""

    length: int


class Request(NamedTuple):
    """The fixed part of a request; ``id_bytes`` of id follow it."""

    id_bytes: int
    offset: int
    length: int
    waits: bool = False


def pack_request(object_id: bytes, offset: int, length: int, *, waits: bool = False) -> bytes:
    """A whole request. Raises ``ValueError`` for an id that is empty or too long."""
    if not 0 < len(object_id) <= ID_BYTES_MAX:
        raise ValueError(f"an object id has 1 to {ID_BYTES_MAX} bytes, got {len(object_id)}")
    return _REQUEST.pack(_FETCH, len(object_id), waits, offset, length) + object_id


def pack_deletion(object_ids: Iterable[bytes]) -> bytes:
    """A whole request. Raises ``ValueError`` for more than ``DELETION_BYTES_MAX`` of ids."""
    body = pack_ids(object_ids)
    return _REQUEST.pack(_DELETE, 0, 0, 0, len(body)) + body


def pack_keeping(object_ids: Iterable[bytes]) -> bytes:
    """A whole request. Raises ``ValueError`` for more than ``DELETION_BYTES_MAX`` of ids."""
    body = pack_ids(object_ids)
    return _REQUEST.pack(_KEEP, 0, 0, 0, len(body)) + body


def pack_ids(object_ids: Iterable[bytes]) -> bytes:
    """Ids as they follow a fixed part. Raises as :func:`pack_deletion`."""
    body = b"".join(bytes((len(object_id),)) + object_id for object_id in object_ids)
    if len(body) > DELETION_BYTES_MAX:
        raise ValueError(f"{len(body)} bytes of ids are too many for one request")
    return body


def unpack_ids(body: bytes) -> list[bytes]:
    """What follows the fixed part of a deletion or a keeping. Raises :class:`MalformedError`."""
    object_ids: list[bytes] = []
    at = 0
    while at < len(body):
        end = at + 1 + body[at]
        if end > len(body) or not body[at]:
            raise MalformedError("a malformed list of ids")
        object_ids.append(body[at + 1 : end])
        at = end
    return object_ids


def unpack_request(data: bytes) -> Request | Deletion | KeepRequest:
    """The fixed part. Raises :class:`MalformedError`."""
    kind, id_bytes, waits, offset, length = _REQUEST.unpack(data)
    if kind == _DELETE and not id_bytes and length <= DELETION_BYTES_MAX:
        return Deletion(length)
    if kind == _KEEP and not id_bytes and length <= DELETION_BYTES_MAX:
        return KeepRequest(length)
    if kind != _FETCH:
        raise MalformedError(f"unknown request {kind}")
    if not id_bytes:
        raise MalformedError("an empty object id")
    if offset > OBJECT_BYTES_MAX or length > OBJECT_BYTES_MAX:
        raise MalformedError(f"a range of {length} bytes at {offset}")
    return Request(id_bytes, offset, length, bool(waits))


def pack_reply(status: Status, size_bytes: int = 0) -> bytes:
    """The fixed part; with OK, the range's bytes follow."""
    return _REPLY.pack(status, size_bytes)


def unpack_reply(data: bytes) -> tuple[Status, int]:
    """(status, size of the object). Raises :class:`MalformedError`."""
    status, size_bytes = _REPLY.unpack(data)
    try:
        return Status(status), size_bytes
    except ValueError:
        raise MalformedError(f"unknown status {status}") from None
