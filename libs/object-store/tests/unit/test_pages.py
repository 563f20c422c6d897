from __future__ import annotations

import errno
import math
import os

import pytest

from skate_object_store.constants import CHUNK_BYTES, COMMIT_STEP_BYTES
from skate_object_store.machine.allocator import Allocator
from skate_object_store.machine.records import Created, CreateRequest
from skate_object_store.service.committer import Committer, Job, Outcome
from skate_object_store.service.config import StoreConfig
from skate_object_store.service.pages import PageKeeper

CAPACITY = 64 * CHUNK_BYTES


class Recorder(Committer):
    """Collects jobs instead of doing them on a thread."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def succeed(self) -> Outcome:
        job = self.jobs.pop(0)
        return Outcome(job.token, job.ranges, [], None)

    def fail(self) -> Outcome:
        job = self.jobs.pop(0)
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return Outcome(job.token, [], job.ranges, error)


class World:
    def __init__(self, **config: float) -> None:
        self.allocator = Allocator(CAPACITY)
        self.committer = Recorder()
        options: dict[str, float] = {"commit_ahead_min_bytes": 0, "commit_ahead_max_bytes": 0}
        self.pages = PageKeeper(
            self.allocator,
            StoreConfig(**{**options, **config}),  # type: ignore[arg-type]
            self.committer,
        )

    def create(self, size: int) -> Created:
        offset = self.allocator.allocate(size)
        assert offset is not None
        return Created(CreateRequest(1, 1, b"id", size, b"", False, math.inf), 1, offset)


def test_cold_range_waits_for_its_pages_and_a_warm_one_does_not() -> None:
    world = World()
    created = world.create(3 * CHUNK_BYTES)
    assert not world.pages.admit(created, 0.0)
    assert world.pages.settle(world.committer.succeed(), 0.0) == (created, "ready")
    assert world.pages.admit(created, 0.0)
    assert world.pages.committed_bytes == 3 * CHUNK_BYTES


def test_second_grant_in_a_chunk_under_way_commits_nothing_twice() -> None:
    world = World()
    first, second = world.create(1000), world.create(1000)
    assert not world.pages.admit(first, 0.0)
    assert not world.pages.admit(second, 0.0)
    assert [job.ranges for job in world.committer.jobs] == [[(0, CHUNK_BYTES)], []]
    assert world.pages.settle(world.committer.succeed(), 0.0) == (first, "ready")
    assert world.pages.settle(world.committer.succeed(), 0.0) == (second, "ready")


def test_shortage_gives_back_free_pages_and_is_tried_once_more() -> None:
    world = World()
    old = world.create(4 * CHUNK_BYTES)
    world.pages.admit(old, 0.0)
    world.pages.settle(world.committer.succeed(), 0.0)
    created = world.create(2 * CHUNK_BYTES)
    world.allocator.free(old.offset)
    world.pages.admit(created, 0.0)
    assert world.pages.settle(world.committer.fail(), 0.0) == (created, "short")
    world.pages.retry(created)
    assert world.committer.jobs[0].holes == [(old.offset, 4 * CHUNK_BYTES)]
    assert world.pages.settle(world.committer.fail(), 0.0) == (created, "hopeless")
    assert world.pages.committed_bytes == 0


def test_pages_run_ahead_step_by_step_up_to_the_minimum() -> None:
    world = World(
        commit_ahead_min_bytes=COMMIT_STEP_BYTES + CHUNK_BYTES, commit_ahead_max_bytes=CAPACITY
    )
    world.pages.commit_ahead(0.0)
    world.pages.commit_ahead(0.0)
    assert [job.ranges for job in world.committer.jobs] == [[(0, COMMIT_STEP_BYTES)]]
    assert world.pages.settle(world.committer.succeed(), 0.0) is None
    world.pages.commit_ahead(0.0)
    assert [job.ranges for job in world.committer.jobs] == [[(COMMIT_STEP_BYTES, CHUNK_BYTES)]]
    world.pages.settle(world.committer.succeed(), 0.0)
    world.pages.commit_ahead(0.0)
    assert world.committer.jobs == []


def test_nothing_is_committed_ahead_right_after_a_shortage() -> None:
    world = World(commit_ahead_min_bytes=CHUNK_BYTES, commit_ahead_max_bytes=CHUNK_BYTES)
    world.pages.commit_ahead(0.0)
    world.pages.settle(world.committer.fail(), 5.0)
    world.pages.commit_ahead(5.5)
    assert world.committer.jobs == []
    world.pages.commit_ahead(6.5)
    assert len(world.committer.jobs) == 1


def test_idle_store_gives_its_free_pages_back_once() -> None:
    world = World(trim_idle_s=10.0)
    assert world.pages.trim_at_s() is None
    created = world.create(5 * CHUNK_BYTES)
    world.pages.admit(created, 3.0)
    world.pages.settle(world.committer.succeed(), 3.0)
    world.allocator.free(created.offset)
    assert world.pages.trim_at_s() == 13.0
    world.pages.trim()
    assert world.pages.trim_at_s() is None
    assert world.committer.jobs[0].holes == [(0, 5 * CHUNK_BYTES)]
    assert world.pages.committed_bytes == 0


@pytest.mark.parametrize("is_short", [False, True])
def test_committer_reports_each_range_once(is_short: bool) -> None:
    done: list[tuple[int, int]] = []

    class Machine:
        def commit(self, offset: int, size: int) -> None:
            if is_short and done:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            done.append((offset, size))

        def give_back(self, offset: int, size: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    outcomes: list[Outcome] = []
    committer = Committer(Machine(), outcomes.append)
    ranges = [(0, 2 * COMMIT_STEP_BYTES + 5), (7 * COMMIT_STEP_BYTES, 10)]
    committer.submit(Job(3, ranges, holes=[(0, 1)]))
    committer.submit(Job(4, []))
    while len(outcomes) < 2:
        assert committer._thread is not None
        assert committer._thread.is_alive()
    committer.close()
    first = outcomes[0]
    covered = sorted(first.committed + first.failed)
    assert sum(size for _, size in covered) == 2 * COMMIT_STEP_BYTES + 15
    assert (first.error is not None) == is_short
    assert len(first.committed) == (1 if is_short else 4)
    assert outcomes[1] == Outcome(4, [], [], None)
