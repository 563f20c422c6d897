"""Waiting for values to be where they can be read: settled, and if stored, in this node's store.

Before it: ``waiting``, the count-down. After it: ``object_access``.
"""

from __future__ import annotations

from skate_worker.machine.fetches import Outcome, Waiter
from skate_worker.machine.references import FAILED, STORED, Entry
from skate_worker.object_plane import ObjectPlane
from skate_worker.waiting import ReadyCount

_FAILED_ENTRY = Entry(b"", None)
_FAILED_ENTRY.state = FAILED


class Arrivals(ReadyCount):
    """A count-down for which a stored value counts when it is here; it is fetched as soon as it is
    stored anywhere.

    ``failures``: the values that could not be brought, for reasons that are not theirs.
    """

    __slots__ = ("_fetches", "_plane", "_priority", "failures")

    def __init__(
        self, needed: int, plane: ObjectPlane, priority: int, *, stops_at_failure: bool = False
    ) -> None:
        super().__init__(needed, stops_at_failure=stops_at_failure)
        self._plane = plane
        self._priority = priority
        self._fetches: dict[Entry, Waiter] = {}
        self.failures: dict[Entry, BaseException] = {}

    def __call__(self, entry: Entry) -> None:  # noqa: D102 - the class says it
        if entry.state == STORED and not self._plane.is_here(entry):
            self.fetch(entry)
        else:
            super().__call__(entry)

    def fetch(self, entry: Entry) -> None:
        """Count this one when it was brought, wherever it is believed to be."""

        def arrived(outcome: Outcome) -> None:
            failure = self._plane.failure(entry, outcome)
            if failure is None:
                ReadyCount.__call__(self, entry)
            else:
                self.failures[entry] = failure
                ReadyCount.__call__(self, _FAILED_ENTRY)

        self._fetches[entry] = self._plane.fetch(entry, arrived, self._priority)

    def stop(self) -> None:
        """Nobody waits any more: what is still on its way need not come."""
        for entry, arrived in self._fetches.items():
            self._plane.fetching.stop(entry.object_id, arrived)
