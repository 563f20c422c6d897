"""Pages ahead of use: what to commit, when to give back, and which grants wait for it.

Before it: the object table reserved a range (:class:`Created`). After it: the reply may leave,
because writing into the range cannot fault for want of memory; an object that takes late pages gets
them step by step. Runs on the server's loop; the
committer thread does the work.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from skate_object_store.constants import COMMIT_STEP_BYTES
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.commit_map import CommitMap, Range
from skate_object_store.machine.late_pages import Step
from skate_object_store.machine.records import Created
from skate_object_store.service.committer import Committer, Job, Outcome
from skate_object_store.service.config import StoreConfig

_SHORTAGE_PAUSE_S = 1.0
"""After a failed commit nothing is committed on speculation for this long."""

Verdict = Literal["ready", "short", "hopeless"]


@dataclass(slots=True)
class _Grant:
    created: Created
    part: Range  # of the arena, that has to have its pages
    has_retried: bool = False


class PageKeeper:
    """The commit map of one arena, and the policy around it."""

    def __init__(self, allocator: Allocator, config: StoreConfig, committer: Committer) -> None:
        self._allocator = allocator
        self._config = config
        self._committer = committer
        self._map = CommitMap(allocator.capacity_bytes)
        self._tokens = itertools.count(1)
        self._grants: dict[int, _Grant] = {}  # by the token of the job they wait for
        self._ahead_token: int | None = None
        self._shortage_s = float("-inf")
        self._last_change_s = float("-inf")
        self._is_trimmed = True

    @property
    def committed_bytes(self) -> int:
        """Bytes of the arena that have pages."""
        return self._map.committed_bytes

    def admit(self, created: Created, now_s: float) -> bool:
        """True if the range has its pages; else :meth:`settle` names the grant later."""
        self.note_change(now_s)
        if self.is_warm(created):
            return True
        self._commit(_Grant(created, _whole(created)), [])
        return False

    def is_warm(self, created: Created) -> bool:
        """Whether all of a reserved range has its pages."""
        return self._map.is_warm(*_whole(created))

    def has_pages(self, offset: int, size_bytes: int) -> bool:
        """Whether all of this range has them."""
        return self._map.is_warm(offset, size_bytes)

    def commit(self, step: Step, now_s: float) -> None:
        """Commit a part of a range; :meth:`settle` names the grant later."""
        self.note_change(now_s)
        self._commit(_Grant(step.created, (step.offset, step.size_bytes)), [])

    def note_change(self, now_s: float) -> None:
        """Something was created or freed: the store is not idle."""
        self._last_change_s = now_s
        self._is_trimmed = False

    def settle(self, outcome: Outcome, now_s: float) -> tuple[Created, Verdict] | None:
        """Note a job's outcome; returns the grant that waited for it.

        ``short``: the caller drops what it can and calls :meth:`retry`; ``hopeless``: it refuses
        the grant.
        """
        for offset, size in outcome.committed:
            self._map.settle(offset, size, is_committed=True)
        for offset, size in outcome.failed:
            self._map.settle(offset, size, is_committed=False)
        if outcome.error is not None:
            self._shortage_s = now_s
        if outcome.token == self._ahead_token:
            self._ahead_token = None
        grant = self._grants.pop(outcome.token, None)
        if grant is None:
            return None
        if self._map.is_warm(*grant.part):
            return grant.created, "ready"
        return grant.created, "hopeless" if grant.has_retried else "short"

    def retry(self, created: Created, step: Step | None = None) -> None:
        """Give every free page back to the machine, then try the range, or step, once more."""
        part = _whole(created) if step is None else (step.offset, step.size_bytes)
        self._commit(_Grant(created, part, has_retried=True), self._give_back(keep_bytes=0))

    def commit_ahead(self, now_s: float) -> None:
        """Start one more step beyond the used part, if policy wants it and none is under way."""
        if self._ahead_token is not None or now_s < self._shortage_s + _SHORTAGE_PAUSE_S:
            return
        allocator = self._allocator
        # An idle store keeps the minimum; one in use keeps as much again as it uses, within bounds.
        in_use = 0 if self._is_trimmed else allocator.used_bytes
        wanted = min(
            max(in_use, self._config.commit_ahead_min_bytes),
            self._config.commit_ahead_max_bytes,
            allocator.capacity_bytes - allocator.top,
        )
        wanted -= allocator.top - allocator.used_bytes  # Free ranges below the top serve as well.
        if wanted <= 0:
            return
        ranges = self._map.claim(allocator.top, wanted, COMMIT_STEP_BYTES)
        if ranges:
            self._ahead_token = next(self._tokens)
            self._committer.submit(Job(self._ahead_token, ranges))

    def trim_at_s(self) -> float | None:
        """When free pages should go back to the machine, if nothing changes until then."""
        return None if self._is_trimmed else self._last_change_s + self._config.trim_idle_s

    def trim(self) -> None:
        """The store is idle: give free pages back, except those that an idle store keeps ahead."""
        self._is_trimmed = True
        holes = self._give_back(keep_bytes=self._config.commit_ahead_min_bytes)
        if holes:
            self._committer.submit(Job(next(self._tokens), [], holes))

    def _commit(self, grant: _Grant, holes: list[tuple[int, int]]) -> None:
        token = next(self._tokens)
        self._grants[token] = grant
        # Chunks that another job has claimed are ready when this one is: jobs are done in order.
        ranges = self._map.claim(*grant.part)
        self._committer.submit(Job(token, ranges, holes))

    def _give_back(self, keep_bytes: int) -> list[tuple[int, int]]:
        free = self._allocator.free_ranges()
        top, capacity = self._allocator.top, self._allocator.capacity_bytes
        if top < capacity:
            free.pop()
            kept = min(top + keep_bytes, capacity)
            free.append((kept, capacity - kept))
        return self._map.give_back(free)


def _whole(created: Created) -> Range:
    return created.offset, created.wish.size_bytes
