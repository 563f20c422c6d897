"""Errors that nobody asked for: the last reference went, and no ``get`` had shown them.

Only failed objects come here, so a task that succeeds pays nothing. Source: SURFACE O19.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from skate_worker.errors import TaskError, WorkerCrashedError
from skate_worker.serialization import ErrorValue, deserialize

IGNORE_VARIABLE: Final = "SKATE_IGNORE_UNHANDLED_ERRORS"
SHOWN_MAX: Final = 100  # of a process; a loop of failing tasks must not flood the terminal

_log = logging.getLogger("skate")


class UnhandledErrors:
    """Logs the errors of objects that end unseen."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()  # failed objects that are alive and whose error was shown
        self._shown = 0
        self._is_silent = os.environ.get(IGNORE_VARIABLE, "0") == "1"

    def released(self, object_id: bytes, data: bytes | None) -> None:
        """A failed object of this process ended. ``data``: the stored error."""
        if object_id in self.seen:
            self.seen.discard(object_id)
            return
        if self._is_silent or not data or self._shown >= SHOWN_MAX:
            return
        stored = deserialize(data)
        # A cancelled task and a dead actor are told in other ways, as in Ray.
        if not isinstance(stored, ErrorValue) or not isinstance(
            stored.error, TaskError | WorkerCrashedError
        ):
            return
        self._shown += 1
        last = " Further ones are not shown." if self._shown == SHOWN_MAX else ""
        _log.error(
            "Unhandled error of object %s, whose last reference was dropped without get()"
            " (%s=1 silences this):%s\n%s",
            object_id.hex(),
            IGNORE_VARIABLE,
            last,
            stored.error,
        )
