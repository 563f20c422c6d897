"""numpy's arrays of dates as out-of-band buffers: numpy sends all others so by itself.

A ``datetime64`` array does not export its memory, but the same memory as integers does. Subclasses
of ``ndarray`` go numpy's own way, which copies them.

numpy is not a dependency: this module is imported once a process that has imported numpy pickles
something.
"""

from __future__ import annotations

from typing import Any

DATE_KINDS = "mM"


def reduce_array(array: Any) -> Any:
    """How exactly ``numpy.ndarray`` is pickled."""
    if array.dtype.kind in DATE_KINDS:
        return _as_dates, (array.view("i8"), array.dtype)
    return array.__reduce_ex__(5)


def _as_dates(numbers: Any, dtype: Any) -> Any:
    return numbers.view(dtype)
