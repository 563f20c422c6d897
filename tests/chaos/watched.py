"""``skate.get`` under faults, with a bound and a stop-watch."""

from __future__ import annotations

import faulthandler
import sys
import time
from typing import Any

import skate
from skate.exceptions import GetTimeoutError
from skate.util.state import list_objects

GET_S = 60.0


class Watched:
    """``skate.get`` with a stop-watch; one that takes too long dumps what is known."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.values = 0

    def get(self, refs: list[Any]) -> list[Any]:
        start_s = time.monotonic()
        try:
            found: list[Any] = skate.get(refs, timeout=GET_S)
        except GetTimeoutError:
            faulthandler.dump_traceback(sys.stderr)
            for row in list_objects(limit=200, raise_on_missing_output=False):
                print(row, file=sys.stderr)
            raise
        self.longest_s = max(self.longest_s, time.monotonic() - start_s)
        self.values += len(refs)
        return found
