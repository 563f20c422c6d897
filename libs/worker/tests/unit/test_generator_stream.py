"""The stream of a generator task at its owner."""

from __future__ import annotations

import pytest

from skate_worker.generator_returns import (
    DYNAMIC,
    STATIC,
    STREAMING,
    decode_returns,
    encode_returns,
    references_of,
)
from skate_worker.machine.generator_stream import GeneratorStream, item_id
from skate_worker.machine.references import FAILED, INLINE, PENDING, Entry, ReferenceTable

TASK_ID = b"t" * 24


def make(limit: int = 0) -> GeneratorStream:
    return GeneratorStream(ReferenceTable(), TASK_ID, limit)


def feed(stream: GeneratorStream, *indexes: int, attempt: int = 0) -> list[bool]:
    """Let items arrive; says of each whether it was wanted."""
    wanted = []
    for index in indexes:
        entry = stream.accept(index, attempt)
        if entry is not None:
            entry.settle(INLINE, b"%d" % index)
        wanted.append(entry is not None)
        stream.check_invariants()
    return wanted


def drain(stream: GeneratorStream) -> list[tuple[int, bytes]]:
    taken = []
    while (entry := stream.take()) is not None:
        taken.append((entry.state, entry.data))
        stream.check_invariants()
    return taken


def items(*indexes: int) -> list[tuple[int, bytes]]:
    return [(INLINE, b"%d" % index) for index in indexes]


def test_items_are_taken_in_order_and_then_comes_the_end() -> None:
    stream = make()
    feed(stream, 0, 1, 2)
    assert drain(stream) == items(0, 1, 2)
    assert not stream.is_finished
    stream.finish([])
    assert stream.is_finished
    assert not stream.is_ready
    assert stream.take() is None


def test_unread_items_are_those_that_came_and_were_not_taken() -> None:
    stream = make()
    assert stream.unread() == []
    feed(stream, 0, 1, 3)
    assert [entry.data for entry in stream.unread()] == [b"0", b"1", b"3"]
    stream.take()
    assert [entry.data for entry in stream.unread()] == [b"1", b"3"]
    feed(stream, 2)
    stream.announced = 4
    stream.finish([])
    assert {entry.data for entry in stream.unread()} == {b"1", b"2", b"3"}
    drain(stream)
    assert stream.unread() == []
    dropped = make()
    feed(dropped, 0, 1)
    dropped.drop([])
    assert dropped.unread() == []


def test_item_id_is_the_task_and_the_index_behind_the_completion() -> None:
    stream = make()
    feed(stream, 0)
    entry = stream.take()
    assert entry is not None
    assert entry.object_id == item_id(TASK_ID, 0) == TASK_ID + b"\0\0\0\2"


@pytest.mark.parametrize("ends_by", ["item", "end", "error"])
def test_whoever_waits_for_the_next_item_is_woken(ends_by: str) -> None:
    stream = make()
    woken: list[Entry] = []
    stream.head.waiters = [woken.append]
    if ends_by == "item":
        entry = stream.accept(0, 0)
        assert entry is stream.head
        waiters = [(entry, entry.settle(INLINE, b"0") or [])]
    elif ends_by == "end":
        waiters = stream.finish([])
    else:
        waiters = stream.fail(b"error", [])
    for entry, callbacks in waiters:
        for callback in callbacks:
            callback(entry)
    assert woken == [stream.head]
    assert stream.head.state != PENDING


def test_error_comes_after_the_items_that_are_here() -> None:
    stream = make()
    feed(stream, 0, 1)
    stream.fail(b"error", [])
    assert stream.is_ready
    assert drain(stream) == [*items(0, 1), (FAILED, b"error")]
    assert stream.is_finished


def test_retry_gives_only_what_is_not_here_yet() -> None:
    stream = make()
    feed(stream, 0, 1, 2)
    assert stream.take() is not None
    assert feed(stream, 0, 1, 2, 3, attempt=1) == [False, False, False, True]
    assert drain(stream) == items(1, 2, 3)


def test_item_of_an_attempt_that_is_over_is_ignored() -> None:
    stream = make()
    feed(stream, 0, attempt=1)
    assert feed(stream, 0, 1, attempt=0) == [False, False]
    assert feed(stream, 1, attempt=1) == [True]


def test_retry_that_yields_less_ends_at_what_was_taken() -> None:
    stream = make()
    released: list[Entry] = []
    feed(stream, 0, 1, 2, 3)
    assert stream.take() is not None
    assert stream.take() is not None
    feed(stream, 0, attempt=1)
    stream.announced = 1
    stream.finish(released)
    assert stream.is_finished
    assert [entry.object_id for entry in released] == [item_id(TASK_ID, 3), item_id(TASK_ID, 2)]
    stream.check_invariants()


def test_drop_releases_what_is_unread_and_keeps_what_was_taken() -> None:
    table = ReferenceTable()
    stream = GeneratorStream(table, TASK_ID)
    released: list[Entry] = []
    feed(stream, 0, 1, 2)
    taken = stream.take()
    stream.drop(released)
    assert [entry.object_id for entry in released] == [item_id(TASK_ID, 1), item_id(TASK_ID, 2)]
    assert list(table.entries.values()) == [taken]
    assert feed(stream, 3) == [False]
    stream.fail(b"error", released)
    assert list(table.entries.values()) == [taken]
    stream.check_invariants()


def test_drop_after_an_error_releases_the_error() -> None:
    table = ReferenceTable()
    stream = GeneratorStream(table, TASK_ID)
    feed(stream, 0)
    stream.fail(b"error", [])
    stream.drop([])
    assert table.entries == {}


def test_credit_is_told_only_when_the_producer_may_wait_for_it() -> None:
    stream = make(limit=3)
    feed(stream, 0, 1)
    stream.take()
    assert stream.credit() is None  # one more may come without it
    feed(stream, 2)
    assert stream.credit() == 1
    assert stream.credit() is None  # told
    feed(stream, 3)
    stream.take()
    assert stream.credit() == 2


def test_new_attempt_is_told_what_was_taken_before_it() -> None:
    stream = make(limit=1)
    for index in range(5):
        feed(stream, index)
        stream.take()
        assert stream.credit() == index + 1
    feed(stream, 0, attempt=1)
    assert stream.credit() == 5


def test_stream_without_a_bound_tells_nothing() -> None:
    stream = make()
    feed(stream, 0)
    stream.take()
    assert stream.credit() is None


@pytest.mark.parametrize("kind", [STREAMING, DYNAMIC, STATIC])
@pytest.mark.parametrize("count", [0, 1, 7, 100_000_000])
def test_returns_of_a_generator_are_one_number_below_zero(kind: int, count: int) -> None:
    code = encode_returns(kind, count)
    assert code < 0
    assert decode_returns(code) == (kind, count)
    assert references_of(code) == (count if kind == STATIC else 1)


def test_plain_number_of_returns_stands_for_itself() -> None:
    assert [references_of(count) for count in (0, 1, 5)] == [0, 1, 5]


def lose(stream: GeneratorStream, entry: Entry) -> None:
    entry.state = PENDING
    stream.lost.append(entry)


def test_unread_item_that_is_lost_stays_in_its_place_until_it_comes_again() -> None:
    stream = make()
    feed(stream, 0, 1)
    for entry in stream.unread():
        lose(stream, entry)
    assert stream.take() is None
    assert len(stream.unread()) == 2
    stream.announced = 2
    stream.finish([])
    stream.check_invariants()
    assert not stream.is_finished
    for index, entry in enumerate(stream.unread()):
        entry.settle(INLINE, b"%d" % index)
    assert drain(stream) == items(0, 1)
    assert stream.is_finished


def test_unread_item_that_is_lost_is_let_go_with_its_stream() -> None:
    stream = make()
    feed(stream, 0)
    (entry,) = stream.unread()
    lose(stream, entry)
    released: list[Entry] = []
    stream.drop(released)
    assert released == [entry]


def test_error_of_a_stream_comes_after_the_items_that_were_lost() -> None:
    stream = make()
    feed(stream, 0)
    (entry,) = stream.unread()
    lose(stream, entry)
    stream.fail(b"error", [])
    entry.settle(FAILED, b"error")
    assert drain(stream) == [(FAILED, b"error")] * 2


def test_dropped_stream_runs_on_for_an_item_that_was_lost() -> None:
    stream = make()
    feed(stream, 0)
    entry = stream.take()
    assert entry is not None
    assert not stream.is_enough
    stream.drop([])
    assert stream.is_enough
    lose(stream, entry)
    assert not stream.is_enough


def test_items_of_an_attempt_that_came_further_than_the_last_are_known_at_the_end() -> None:
    stream = make()
    feed(stream, 0, 1, 2)
    stream.take()
    stream.take()
    assert stream.known_items(5) == 5
    assert stream.known_items(1) == 2
    assert stream.known_items(-1) == 3
