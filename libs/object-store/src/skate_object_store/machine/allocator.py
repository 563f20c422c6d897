"""Where in the arena an object goes: segregated free lists with immediate coalescing.

Before it: nothing. After it: the object table reserves and frees ranges here.

The arena is ``[0, capacity)``. ``[top, capacity)`` is the *wilderness*, never used or wholly given
back; below ``top`` every byte is in exactly one used or free block, and no two free blocks touch.
A request takes a free block first and extends ``top`` only if none fits, so that pages which were
committed and touched once are used again.

Sizes are rounded up to a class boundary: 64-byte steps up to 8 KiB, then 128 steps per power of two
(waste below 1/128). Because used sizes are boundaries, any block in the request's class or a higher
one fits, and two bit searches find it: every operation is O(1) in the number of blocks.

Source: the two-level segregated fit of Masmano, Ripoll, Crespo and Real (ECRTS 2004), with the
rounding applied to the blocks rather than to the search.
"""

from __future__ import annotations

from skate_object_store.constants import ALIGNMENT_BYTES

_STEP_BITS = 7
"""Each power of two is cut into ``2 ** _STEP_BITS`` classes."""

_UNIT_BITS = ALIGNMENT_BYTES.bit_length() - 1
assert 1 << _UNIT_BITS == ALIGNMENT_BYTES


def round_to_class(size: int) -> int:
    """The smallest class boundary that is at least ``size`` bytes (and at least one unit)."""
    units = max(1, (size + ALIGNMENT_BYTES - 1) >> _UNIT_BITS)
    shift = max(0, units.bit_length() - 1 - _STEP_BITS)
    return ((units + (1 << shift) - 1) >> shift << shift) << _UNIT_BITS


def _class_of(size: int) -> int:
    """The class whose boundary is the largest that is at most ``size``; grows with ``size``."""
    units = size >> _UNIT_BITS
    shift = max(0, units.bit_length() - 1 - _STEP_BITS)
    return (shift << _STEP_BITS) + (units >> shift)


class Allocator:
    """Ranges of one arena. Offsets and sizes are bytes, multiples of ``ALIGNMENT_BYTES``."""

    def __init__(self, capacity_bytes: int) -> None:
        """Raises ``ValueError`` if there is not room for one unit; an odd tail is not used."""
        if capacity_bytes < ALIGNMENT_BYTES:
            raise ValueError(f"an arena needs {ALIGNMENT_BYTES} bytes, got {capacity_bytes}")
        self.capacity_bytes = capacity_bytes & -ALIGNMENT_BYTES
        self.used_bytes = 0  # 0 <= used_bytes <= top <= capacity_bytes
        self.top = 0
        self._used: dict[int, int] = {}  # start -> size
        self._free: dict[int, int] = {}  # start -> size
        self._free_ends: dict[int, int] = {}  # end -> start, the mirror of _free
        self._classes: dict[int, dict[int, None]] = {}  # class -> starts, oldest first
        self._filled = 0  # bit c is set exactly if _classes[c] is not empty

    def allocate(self, size_bytes: int) -> int | None:
        """Reserve a range and return its offset, or None if no free range is long enough."""
        size = round_to_class(size_bytes)
        candidates = self._filled >> _class_of(size)
        if candidates:
            found = _class_of(size) + (candidates & -candidates).bit_length() - 1
            # The range freed last: its pages are the likeliest to be in a processor cache.
            offset = next(reversed(self._classes[found]))
            rest = self._take_free(offset) - size
            if rest:
                self._add_free(offset + size, rest)
        else:
            room = self.capacity_bytes - self.top
            if room < size:
                # The last object may take an exact fit, so that a put of the whole capacity works.
                size = -(-max(1, size_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                if room < size:
                    return None
            offset = self.top
            self.top += size
        self._used[offset] = size
        self.used_bytes += size
        return offset

    def free(self, offset: int) -> int:
        """Give back the range at ``offset``; returns its length. ``KeyError`` if not in use."""
        freed = size = self._used.pop(offset)
        self.used_bytes -= size
        before = self._free_ends.get(offset)
        if before is not None:
            size += self._take_free(before)
            offset = before
        end = offset + size
        if end in self._free:
            size += self._take_free(end)
        if offset + size == self.top:
            self.top = offset
        else:
            self._add_free(offset, size)
        return freed

    def size_of(self, offset: int) -> int:
        """Length of the used range at ``offset``, rounding included."""
        return self._used[offset]

    def free_ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of every free range, the wilderness last if it is not empty. O(n)."""
        ranges = list(self._free.items())
        if self.top < self.capacity_bytes:
            ranges.append((self.top, self.capacity_bytes - self.top))
        return ranges

    def largest_free_bytes(self) -> int:
        """The longest range that one object could have. O(blocks of the highest class)."""
        largest = self.capacity_bytes - self.top
        if self._filled:
            highest = self._classes[self._filled.bit_length() - 1]
            largest = max(largest, *(self._free[start] for start in highest))
        return largest

    def check_invariants(self) -> None:
        """``AssertionError`` unless blocks tile ``[0, top)`` and indices agree. O(n log n)."""
        assert not self._used.keys() & self._free.keys()
        blocks = sorted([*self._used.items(), *self._free.items()])
        position = 0
        was_free = False
        for start, size in blocks:
            assert start == position, "blocks tile the used part"
            assert size > 0
            assert (start | size) % ALIGNMENT_BYTES == 0
            is_free = start in self._free
            assert not (is_free and was_free), "free neighbours are merged"
            was_free = is_free
            position += size
        assert position == self.top <= self.capacity_bytes
        assert not was_free, "the wilderness absorbs a free block at its edge"
        assert self.used_bytes == sum(self._used.values())
        assert self._free_ends == {start + size: start for start, size in self._free.items()}
        listed = {start: c for c, starts in self._classes.items() for start in starts}
        assert listed == {start: _class_of(size) for start, size in self._free.items()}
        assert self._filled == sum(1 << c for c in self._classes)

    def _add_free(self, offset: int, size: int) -> None:
        self._free[offset] = size
        self._free_ends[offset + size] = offset
        index = _class_of(size)
        self._classes.setdefault(index, {})[offset] = None
        self._filled |= 1 << index

    def _take_free(self, offset: int) -> int:
        size = self._free.pop(offset)
        del self._free_ends[offset + size]
        index = _class_of(size)
        starts = self._classes[index]
        del starts[offset]
        if not starts:
            del self._classes[index]
            self._filled &= ~(1 << index)
        return size
