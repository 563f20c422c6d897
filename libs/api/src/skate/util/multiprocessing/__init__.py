"""``multiprocessing.Pool`` over the cluster. Source: SURFACE U3; the standard library's Pool.

``from multiprocessing import Pool`` becomes ``from skate.util.multiprocessing import Pool``.
"""

from __future__ import annotations

from multiprocessing import TimeoutError  # noqa: A004 - its name in the standard library

from skate.util.multiprocessing.pool import Pool
from skate.util.multiprocessing.results import AsyncResult, IMapIterator, IMapUnorderedIterator

__all__ = ["AsyncResult", "IMapIterator", "IMapUnorderedIterator", "Pool", "TimeoutError"]
