from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from skate_object_store.constants import CHUNK_BYTES
from skate_object_store.machine.commit_map import CommitMap

CHUNKS = 12
CAPACITY = CHUNKS * CHUNK_BYTES - 1000  # the last chunk is short


def test_claimed_chunks_are_warm_once_settled() -> None:
    pages = CommitMap(CAPACITY)
    assert not pages.is_warm(0, 1)
    (claimed,) = pages.claim(CHUNK_BYTES + 5, 10)
    assert claimed == (CHUNK_BYTES, CHUNK_BYTES)
    assert not pages.is_warm(CHUNK_BYTES, 1)
    pages.settle(*claimed, is_committed=True)
    assert pages.is_warm(CHUNK_BYTES, CHUNK_BYTES)
    assert not pages.is_warm(CHUNK_BYTES - 1, 2)
    assert pages.committed_bytes == CHUNK_BYTES


def test_pending_chunk_is_not_claimed_twice() -> None:
    pages = CommitMap(CAPACITY)
    assert pages.claim(0, 2 * CHUNK_BYTES) == [(0, 2 * CHUNK_BYTES)]
    assert pages.claim(0, 3 * CHUNK_BYTES) == [(2 * CHUNK_BYTES, CHUNK_BYTES)]


def test_failed_chunk_is_cold_again() -> None:
    pages = CommitMap(CAPACITY)
    (claimed,) = pages.claim(0, 1)
    pages.settle(*claimed, is_committed=False)
    assert pages.claim(0, 1) == [claimed]


def test_claim_stops_at_its_limit() -> None:
    pages = CommitMap(CAPACITY)
    assert pages.claim(0, CAPACITY, 3 * CHUNK_BYTES) == [(0, 3 * CHUNK_BYTES)]


def test_only_chunks_wholly_free_are_given_back() -> None:
    pages = CommitMap(CAPACITY)
    for claimed in pages.claim(0, CAPACITY):
        pages.settle(*claimed, is_committed=True)
    given_back = pages.give_back([(100, 3 * CHUNK_BYTES)])
    assert given_back == [(CHUNK_BYTES, 2 * CHUNK_BYTES)]
    assert pages.is_warm(0, CHUNK_BYTES)
    assert not pages.is_warm(CHUNK_BYTES, 1)


def test_short_last_chunk_is_given_back_with_the_wilderness() -> None:
    pages = CommitMap(CAPACITY)
    start = (CHUNKS - 1) * CHUNK_BYTES
    (claimed,) = pages.claim(start, 1)
    assert claimed == (start, CAPACITY - start)
    pages.settle(*claimed, is_committed=True)
    assert pages.give_back([(start, CAPACITY - start)]) == [claimed]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["claim", "fail", "give"]),
            st.integers(0, CAPACITY - 1),
            st.integers(0, CAPACITY),
        ),
        max_size=40,
    )
)
def test_committed_bytes_are_those_settled_and_not_given_back(
    steps: list[tuple[str, int, int]],
) -> None:
    pages = CommitMap(CAPACITY)
    warm: set[int] = set()
    for action, offset, length in steps:
        size = min(length, CAPACITY - offset)
        if action == "give":
            for start, given_size in pages.give_back([(offset, size)]):
                assert offset <= start
                assert start + given_size <= offset + size
                chunks = range(start // CHUNK_BYTES, -(-(start + given_size) // CHUNK_BYTES))
                assert warm.issuperset(chunks)
                warm.difference_update(chunks)
            continue
        for start, claimed_size in pages.claim(offset, size):
            chunks = range(start // CHUNK_BYTES, -(-(start + claimed_size) // CHUNK_BYTES))
            assert warm.isdisjoint(chunks)
            pages.settle(start, claimed_size, is_committed=action == "claim")
            if action == "claim":
                warm.update(chunks)
        assert pages.is_warm(offset, size) or action == "fail"
    assert pages.committed_bytes == min(CAPACITY, len(warm) * CHUNK_BYTES)
