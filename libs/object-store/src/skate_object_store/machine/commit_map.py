"""Which chunks of the arena have pages: asked before a range is handed out.

Before it: the allocator chose a range. After it: the committer thread calls ``fallocate`` for what
:meth:`CommitMap.claim` returned, in order, and the result comes back through :meth:`settle`.

A chunk is COLD (no pages), PENDING (a commit is under way) or WARM. Only a COLD chunk is claimed
and only a WARM one is given back, so the committer never works on a chunk twice at a time; that
matters because ``fallocate`` over existing pages costs more than over a hole.
"""

from __future__ import annotations

from collections.abc import Iterable

from skate_object_store.constants import CHUNK_BYTES

_COLD, _PENDING, _WARM = b"\0", b"\1", b"\2"

Range = tuple[int, int]
"""(offset, length) in bytes."""


class CommitMap:
    """One byte of state per chunk; a lookup costs O(chunks of the range) at memchr speed."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._chunks = bytearray(-(-capacity_bytes // CHUNK_BYTES))

    @property
    def committed_bytes(self) -> int:
        """Bytes that have pages. O(chunks)."""
        return min(self._capacity_bytes, self._chunks.count(_WARM) * CHUNK_BYTES)

    def is_warm(self, offset: int, size: int) -> bool:
        """Whether every byte of the range has its page."""
        first, last = _covering(offset, size)
        return self._chunks.count(_WARM, first, last) == last - first

    def claim(self, offset: int, size: int, limit_bytes: int | None = None) -> list[Range]:
        """Mark the range's COLD chunks PENDING and return them, merged, at most ``limit_bytes``.

        The caller commits exactly these and then calls :meth:`settle` for each of them.
        """
        first, last = _covering(offset, size)
        left = len(self._chunks) if limit_bytes is None else limit_bytes // CHUNK_BYTES
        claimed: list[Range] = []
        position = self._chunks.find(_COLD, first, last)
        while position >= 0 and left > 0:
            end = position
            while end < last and left > 0 and self._chunks[end] == _COLD[0]:
                end += 1
                left -= 1
            self._chunks[position:end] = _PENDING * (end - position)
            claimed.append(self._range(position, end))
            position = self._chunks.find(_COLD, end, last)
        return claimed

    def settle(self, offset: int, size: int, *, is_committed: bool) -> None:
        """The commit of a claimed range ended; a failed one is COLD again."""
        first, last = _covering(offset, size)
        self._chunks[first:last] = (_WARM if is_committed else _COLD) * (last - first)

    def give_back(self, free_ranges: Iterable[Range]) -> list[Range]:
        """Mark the WARM chunks that lie wholly in these ranges COLD and return them, merged.

        The caller punches holes there before any later commit of the same chunks starts.
        """
        given: list[Range] = []
        for offset, size in free_ranges:
            end_bytes = offset + size
            first = -(-offset // CHUNK_BYTES)
            last = end_bytes // CHUNK_BYTES
            if end_bytes >= self._capacity_bytes:
                last = len(self._chunks)  # A short last chunk ends with the arena.
            position = self._chunks.find(_WARM, first, last)
            while position >= 0:
                end = position
                while end < last and self._chunks[end] == _WARM[0]:
                    end += 1
                self._chunks[position:end] = _COLD * (end - position)
                given.append(self._range(position, end))
                position = self._chunks.find(_WARM, end, last)
        return given

    def _range(self, first: int, last: int) -> Range:
        start = first * CHUNK_BYTES
        return start, min(last * CHUNK_BYTES, self._capacity_bytes) - start


def _covering(offset: int, size: int) -> tuple[int, int]:
    return offset // CHUNK_BYTES, -(-(offset + max(1, size)) // CHUNK_BYTES)
