"""The layout of a serialised value.

The first byte tells the kind; every size is in bytes and little-endian::

    0x80                 a plain pickle: the byte is the pickle's own first opcode
    flags                bit 0 error, bit 1 out-of-band buffers, bit 2 raw bytes; top bit clear

    bit 0 alone          flags | pickle
    bit 2                flags | 63 unused | the content of one ``bytes`` object
    bit 1                flags 1 | unused 3 | buffer count 4 | pickle size 8
                         | per buffer: offset 8, size 8
                         | pickle | padding | buffer | padding | buffer ...

Buffers start at multiples of 64 from the first byte. Over memory that is itself so aligned (the
object store's), a numpy array is rebuilt as a read-only view: nothing is copied, and the view
keeps the memory alive. Every buffer is out of band however small, so that whether an array is
writable does not depend on its size.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pickle import PickleBuffer, dumps, loads
from typing import Any, Final

from skate_worker.errors import DeserializationError, UnknownOwnerError, public_error
from skate_worker.inspect_pickle import explain_failure
from skate_worker.pickler import PROTOCOL, ValuePickler

Buffer = bytes | memoryview

ALIGNMENT_BYTES: Final = 64
RAW_BYTES_MIN: Final = 4096

_PLAIN: Final = 0x80
_ERROR: Final = 1
_BUFFERS: Final = 2
_RAW: Final = 4

_HEADER: Final = struct.Struct("<BxxxIQ")
_SPAN: Final = struct.Struct("<QQ")
_ZEROS: Final = bytes(ALIGNMENT_BYTES)
_RAW_HEAD: Final = bytes([_RAW]) + bytes(ALIGNMENT_BYTES - 1)

_ATOMS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS: Final = frozenset({tuple, list, dict})
PLAIN_ITEMS_MAX: Final = 64  # looking at more items costs more than the general pickler's start
_NOTHING: Final[tuple[Any, ...]] = ()


class Serialized:
    """A value as buffers to be written one after the other, ``total_bytes`` in all.

    The parts alias the value's own memory where they can: write them, or take :meth:`to_bytes`,
    before the value may change. ``contained`` lists the references met inside the value.
    """

    __slots__ = ("contained", "parts", "total_bytes")

    def __init__(
        self, parts: Sequence[Buffer], total_bytes: int, contained: Sequence[Any] = _NOTHING
    ) -> None:
        self.parts: Sequence[Buffer] = parts
        self.total_bytes: int = total_bytes
        self.contained: Sequence[Any] = contained

    def to_bytes(self) -> bytes:
        """Everything in one piece. Copies unless the value is a single part already."""
        parts = self.parts
        if len(parts) == 1:
            return bytes(parts[0])
        return b"".join(parts)


class ErrorValue:
    """What :func:`deserialize` gives for a stored error: the error is the value of the object."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def to_raise(self) -> BaseException:
        """The exception that ``get`` raises: also an instance of the class that the user raised."""
        return public_error(self.error)


def is_plain(value: Any) -> bool:
    """Whether ``value`` is an atom or a flat container of atoms: a case for the C pickler alone."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind not in _CONTAINERS or len(value) > PLAIN_ITEMS_MAX:
        return False
    if kind is not dict:
        return _ATOMS.issuperset(map(type, value))
    return _ATOMS.issuperset(map(type, value.values())) and _ATOMS.issuperset(map(type, value))


def serialize(
    value: Any, *, is_error: bool = False, subject: str = "", is_call: bool = False
) -> Serialized:
    """Serialise any value. ``subject`` names it in an error, for example ``"task train()"``.

    ``is_call``: the value is the ``(args, kwargs)`` of a call of what ``subject`` names.

    Raises:
        UnknownOwnerError: a reference in the value belongs to a session that has ended.
        TypeError: something in the value can not be pickled; the message names the path to it.
    """
    kind = type(value)
    if kind is bytes and len(value) >= RAW_BYTES_MIN and not is_error:
        return Serialized((_RAW_HEAD, value), ALIGNMENT_BYTES + len(value))
    if not is_error and is_plain(value):
        data = dumps(value, PROTOCOL)
        return Serialized((data,), len(data))
    return _serialize_any(value, is_error, subject, is_call)


def deserialize(data: Buffer, *, is_writable: bool = False) -> Any:
    """The value that was serialised, or an :class:`ErrorValue` when it is a stored error.

    Over a ``memoryview``, arrays are read-only views of that memory and keep it alive.
    ``is_writable``: the memory is the caller's own, and arrays over it may be written to.

    Raises:
        DeserializationError: the bytes can not be turned back here, for example because a module is
            missing; the cause is chained.
    """
    try:
        flags = data[0]
        if flags == _PLAIN:
            return loads(data)
        view = memoryview(data)
        if flags == _RAW:
            return bytes(view[ALIGNMENT_BYTES:])
        if not flags & _BUFFERS:
            value = loads(view[1:])
        else:
            value = _load_with_buffers(view if is_writable else view.toreadonly())
        return ErrorValue(value) if flags & _ERROR else value
    except Exception as error:
        raise DeserializationError(f"{type(error).__name__}: {error}") from error


def is_error(data: Buffer) -> bool:
    """Whether the bytes hold a stored error; looks at the first byte only."""
    return bool(data[0] & _ERROR)


def _serialize_any(value: Any, is_error: bool, subject: str, is_call: bool) -> Serialized:
    file = io.BytesIO()
    buffers: list[PickleBuffer] = []
    # `append` answers None, which tells the pickler to leave the buffer out of band.
    pickler = ValuePickler(file, buffers.append)
    try:
        pickler.dump(value)
        raw_buffers = [buffer.raw() for buffer in buffers]
    except UnknownOwnerError:
        raise
    except Exception as error:
        # Whatever user code raises in __reduce__ and the like.
        raise explain_failure(value, error, subject, is_call=is_call) from error
    contained: Sequence[Any] = pickler.contained or _NOTHING
    if not buffers:
        data = file.getvalue()
        if is_error:
            data = bytes([_ERROR]) + data
        return Serialized((data,), len(data), contained)
    return _lay_out(file.getvalue(), raw_buffers, is_error, contained)


def _lay_out(
    pickled: bytes, buffers: list[memoryview], is_error: bool, contained: Sequence[Any]
) -> Serialized:
    flags = _BUFFERS | _ERROR if is_error else _BUFFERS
    head = bytearray(_HEADER.pack(flags, len(buffers), len(pickled)))
    end = _HEADER.size + _SPAN.size * len(buffers) + len(pickled)
    parts: list[Buffer] = [b"", pickled]  # The head is known once every offset is.
    for buffer in buffers:
        padding = -end % ALIGNMENT_BYTES
        if padding:
            parts.append(_ZEROS[:padding])
        size = buffer.nbytes
        head += _SPAN.pack(end + padding, size)
        end += padding + size
        parts.append(buffer)
    parts[0] = bytes(head)
    return Serialized(parts, end, contained)


def _load_with_buffers(view: memoryview) -> Any:
    _, count, pickle_size = _HEADER.unpack_from(view)
    start = _HEADER.size
    end = start + _SPAN.size * count
    buffers = [view[at : at + size] for at, size in _SPAN.iter_unpack(view[start:end])]
    return loads(view[end : end + pickle_size], buffers=buffers)
