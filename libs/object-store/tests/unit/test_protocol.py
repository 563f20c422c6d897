from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_object_store import protocol
from skate_object_store.constants import CREATE_WAIT_S, FRAME_BYTES_MAX, NOTE_BYTES_MAX
from skate_object_store.machine.facts import Copy, Fullness, FullReason, Holder
from skate_object_store.protocol import Kind, MalformedFrameError

IDS = st.binary(min_size=1, max_size=255)
OWNERS = st.binary(max_size=255)
NUMBERS = st.integers(0, (1 << 64) - 1)
TIMES = st.one_of(st.floats(0, 1e9), st.just(math.inf))


def body_of(frame: bytes, kind: Kind, request: int) -> memoryview:
    ((found_kind, found_request, body),), used = protocol.split_frames(frame)
    assert (found_kind, found_request, used) == (kind, request, len(frame))
    return body


@given(
    NUMBERS,
    IDS,
    NUMBERS,
    OWNERS,
    st.booleans(),
    st.none() | TIMES,
    st.text(max_size=60),
    st.booleans(),
)
def test_create_survives_the_wire(
    request: int,
    object_id: bytes,
    size: int,
    owner: bytes,
    evictable: bool,
    wait_s: float | None,
    note: str,
    late: bool,
) -> None:
    frame = protocol.pack_create(
        request,
        object_id,
        size,
        owner,
        is_evictable=evictable,
        wait_s=wait_s,
        note=protocol.note_bytes(note),
        takes_late_pages=late,
    )
    body = body_of(frame, Kind.CREATE, request)
    waits_s = CREATE_WAIT_S if wait_s is None else wait_s
    only_spilling = wait_s is None
    kept = protocol.note_bytes(note).decode(errors="replace")
    expected = (object_id, size, owner, evictable, waits_s, only_spilling, kept, late)
    assert protocol.unpack_create(body) == expected


def test_note_is_cut_and_costs_nothing_when_empty() -> None:
    assert len(protocol.note_bytes("é" * 200)) == NOTE_BYTES_MAX

    def pack(note: bytes) -> bytes:
        return protocol.pack_create(1, b"id", 1, b"", is_evictable=False, wait_s=0, note=note)

    assert len(pack(b"x")) - len(pack(b"")) == 2


def test_unknown_create_flags_are_malformed() -> None:
    body = struct.pack("<QdB", 1, 0.0, 16) + b"\x01a\x00"
    with pytest.raises(MalformedFrameError, match="flags"):
        protocol.unpack_create(memoryview(body))


@given(NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_late_pages_survive_the_wire(
    request: int, serial: int, number: int, is_written: bool
) -> None:
    body = body_of(protocol.pack_reserved(request, serial, number), Kind.RESERVED, request)
    assert protocol.unpack_created(body) == (serial, number)
    body = body_of(protocol.pack_commit(request, serial, number), Kind.COMMIT, request)
    assert protocol.unpack_commit(body) == (serial, number)
    frame = protocol.pack_committed(request, is_written=is_written)
    body = body_of(frame, Kind.COMMITTED, request)
    assert protocol.unpack_committed(body) is is_written
    with pytest.raises(MalformedFrameError):
        protocol.unpack_committed(memoryview(b""))


@given(NUMBERS, st.lists(IDS, min_size=1, max_size=20), TIMES, st.integers(0, 100))
def test_get_wait_and_delete_survive_the_wire(
    request: int, object_ids: list[bytes], timeout_s: float, wanted: int
) -> None:
    body = body_of(protocol.pack_get(request, object_ids, timeout_s), Kind.GET, request)
    assert protocol.unpack_get(body) == (object_ids, timeout_s)
    frame = protocol.pack_wait(request, object_ids, wanted, timeout_s)
    body = body_of(frame, Kind.WAIT, request)
    assert protocol.unpack_wait(body) == (object_ids, wanted, timeout_s)
    body = body_of(protocol.pack_keep(request, object_ids), Kind.KEEP, request)
    assert protocol.unpack_keep(body) == object_ids
    body = body_of(protocol.pack_delete(object_ids), Kind.DELETE, 0)
    assert protocol.unpack_delete(body) == object_ids


@given(st.lists(st.none() | st.builds(Copy, st.integers(1, 1 << 60), NUMBERS, NUMBERS)))
def test_got_survives_the_wire(copies: list[Copy | None]) -> None:
    assert protocol.unpack_got(body_of(protocol.pack_got(7, copies), Kind.GOT, 7)) == copies


def test_other_frames_survive_the_wire() -> None:
    assert protocol.unpack_hello(body_of(protocol.pack_hello(b"me"), Kind.HELLO, 0)) == (4, b"me")
    seal = protocol.pack_seal(5, keeps_pin=True)
    assert protocol.unpack_seal(body_of(seal, Kind.SEAL, 0)) == (5, True)
    assert protocol.unpack_abort(body_of(protocol.pack_abort(5), Kind.ABORT, 0)) == 5
    assert body_of(protocol.pack_cancel(9), Kind.CANCEL, 9) == b""
    pins = [(1, 2), (1 << 60, 3)]
    assert protocol.unpack_release(body_of(protocol.pack_release(pins), Kind.RELEASE, 0)) == pins
    welcome = body_of(protocol.pack_welcome(1 << 40), Kind.WELCOME, 0)
    assert protocol.unpack_welcome(welcome) == (4, 1 << 40)
    refused = body_of(protocol.pack_refused("no: é"), Kind.REFUSED, 0)
    assert protocol.unpack_refused(refused) == "no: é"
    assert protocol.unpack_created(body_of(protocol.pack_created(3, 4, 5), Kind.CREATED, 3)) == (
        4,
        5,
    )
    exists = body_of(protocol.pack_exists(3, is_sealed=True), Kind.EXISTS, 3)
    assert protocol.unpack_exists(exists)
    assert protocol.unpack_ready(body_of(protocol.pack_ready(3, (1, 4)), Kind.READY, 3)) == (1, 4)


def test_full_survives_the_wire() -> None:
    holders = (
        Holder(b"big", b"owner", 1 << 40, 1.5, 3, is_sealed=True, is_deleted=True),
        Holder(b"x", b"", 0, 0.0, 0, is_sealed=False, is_deleted=False, note="job.py:7"),
    )
    fullness = Fullness(FullReason.MACHINE_SHORT, 1, 2, 3, 4, holders)
    assert protocol.unpack_full(body_of(protocol.pack_full(8, fullness), Kind.FULL, 8)) == fullness
    fullness = Fullness(FullReason.DISK_FULL, 1, 2, 3, 4, holders[:1], "disk 95% full")
    body = body_of(protocol.pack_unrestored(8, b"id", fullness), Kind.UNRESTORED, 8)
    assert protocol.unpack_unrestored(body) == (b"id", fullness)
    assert protocol.unpack_fullness(protocol.pack_fullness(fullness)) == fullness


def test_answers_about_spilled_objects_survive_the_wire() -> None:
    for is_final in (False, True):
        lost = body_of(protocol.pack_lost(8, b"id", "a gap", is_final=is_final), Kind.LOST, 8)
        assert protocol.unpack_lost(lost) == (b"id", "a gap", is_final)
    copies = [None, Copy(1, 2, 3), None]
    part = body_of(protocol.pack_got_part(8, copies, (0, 2)), Kind.GOT_PART, 8)
    assert protocol.unpack_got_part(part) == (copies, (0, 2))
    part = body_of(protocol.pack_got_part(8, copies, (3,)), Kind.GOT_PART, 8)
    with pytest.raises(MalformedFrameError, match="beyond"):
        protocol.unpack_got_part(part)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(0, 200))
def test_frames_are_cut_wherever_the_stream_is(bodies: list[bytes], cut: int) -> None:
    stream = b"".join(protocol.frame(Kind.GET, number, body) for number, body in enumerate(bodies))
    first, used = protocol.split_frames(stream[:cut])
    rest, used_rest = protocol.split_frames(stream[:cut][used:] + stream[cut:])
    assert [bytes(body) for _, _, body in first + rest] == bodies
    assert used + used_rest == len(stream)


def test_oversized_frame_is_refused_by_its_header() -> None:
    header = struct.pack("<IBQ", FRAME_BYTES_MAX + 1, Kind.GET, 0)
    with pytest.raises(MalformedFrameError):
        protocol.split_frames(header)


UNPACKERS = [
    protocol.unpack_hello,
    protocol.unpack_create,
    protocol.unpack_seal,
    protocol.unpack_abort,
    protocol.unpack_get,
    protocol.unpack_wait,
    protocol.unpack_release,
    protocol.unpack_delete,
    protocol.unpack_welcome,
    protocol.unpack_created,
    protocol.unpack_exists,
    protocol.unpack_full,
    protocol.unpack_got,
    protocol.unpack_got_part,
    protocol.unpack_lost,
    protocol.unpack_unrestored,
    protocol.unpack_ready,
]


@pytest.mark.parametrize("unpack", UNPACKERS, ids=lambda unpack: unpack.__name__)
@given(garbage=st.binary(max_size=120))
def test_garbage_is_malformed_and_nothing_worse(unpack: object, garbage: bytes) -> None:
    try:
        unpack(memoryview(garbage))  # type: ignore[operator]
    except MalformedFrameError:
        pass  # The one error that it may raise.


def test_negative_and_undefined_times_are_malformed() -> None:
    for timeout_s in (-1.0, math.nan, -math.inf):
        frame = protocol.pack_get(1, [b"a"], timeout_s)
        with pytest.raises(MalformedFrameError):
            protocol.unpack_get(body_of(frame, Kind.GET, 1))


def test_ids_that_do_not_match_their_count_are_malformed() -> None:
    body = struct.pack("<dI", 0.0, 2) + b"\x01a"
    with pytest.raises(MalformedFrameError):
        protocol.unpack_get(memoryview(body))
    with pytest.raises(MalformedFrameError):
        protocol.unpack_get(memoryview(struct.pack("<dI", 0.0, 0)))
