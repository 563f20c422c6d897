"""Each reason for which an object stays, and that it goes when the reason does, in real processes.

What is watched is the node's store: an object there is what an entry in some table stands for.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from mini_raylet import MiniRaylet

from skate_worker import ownership
from skate_worker.core import CoreWorker
from skate_worker.current import require_core
from skate_worker.object_ref import ObjectRef
from skate_worker.specs import ActorOptions, CallOptions, TaskOptions

WAIT_S = 20.0
LARGE = 50_000  # numbers of 8 bytes: four times what travels inline
SMALL_OBJECTS = 20_000
LARGE_OBJECTS = 400
RSS_SLACK_BYTES = 24 << 20

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def run(core: CoreWorker, function: Any, *args: Any, **options: Any) -> ObjectRef[Any]:
    task_options = TaskOptions(function.__name__, **options)
    return core.submit_task(core.export(function), args, {}, task_options)[0]


def read(core: CoreWorker, ref: ObjectRef[Any]) -> Any:
    return core.get([ref], WAIT_S)[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def large(core: CoreWorker, number: int = 7) -> ObjectRef[Any]:
    return core.put(np.full(LARGE, number))


def stored(raylet: MiniRaylet) -> int:
    return raylet.store.statistics().objects


def entries(core: CoreWorker) -> int:
    core.ownership.drain_dropped()
    return len(core.ownership.table.entries)


def wait_for_file(path: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not os.path.exists(path):
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Keeper:
    """An actor that keeps what it is given, and passes it on."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, refs: list[Any], started: str = "", go: str = "") -> int:
        if started:
            Path(started).touch()
            wait_for_file(go)
        self.kept = refs
        return len(refs)

    def pass_on(self, other: bytes) -> int:
        core = require_core()
        options = CallOptions("keep", "keep")
        refs = core.submit_actor_task(other, (self.kept,), {}, options)
        count: int = core.get(refs, WAIT_S)[0]
        return count

    def pass_on_and_forget(self, other: bytes, started: str, go: str) -> None:
        args = (self.kept, started, go)
        self.answer = require_core().submit_actor_task(other, args, {}, CallOptions("keep", "keep"))
        self.kept = []

    def value(self) -> int:
        return int(require_core().get(self.kept, WAIT_S)[0][-1])

    def drop(self) -> None:
        self.kept = []

    def pid(self) -> int:
        return os.getpid()


class Actor:
    """A handle of the plainest kind."""

    def __init__(self, core: CoreWorker) -> None:
        self.core = core
        options = ActorOptions("Keeper")
        self.id, _, self.keeper = core.create_actor(core.export(Keeper), (), {}, options)

    def call(self, method: str, *args: Any) -> Any:
        return read(self.core, self.start(method, *args))

    def start(self, method: str, *args: Any) -> ObjectRef[Any]:
        return self.core.submit_actor_task(self.id, args, {}, CallOptions(method, method))[0]


def test_object_without_references_leaves_the_store_at_once(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    ref = large(core)
    again = ref
    assert stored(raylet) == 1
    del ref
    assert int(read(core, again)[0]) == 7
    del again
    wait_until(lambda: stored(raylet) == 0)
    assert entries(core) == 0


def test_argument_of_a_waiting_task_stays_until_the_task_ends(
    core: CoreWorker, raylet: MiniRaylet, tmp_path: Path
) -> None:
    go = str(tmp_path / "go")
    gate = run(core, wait_for_file, go)

    def last(array: Any, after: Any) -> int:
        return int(array[-1])

    ref = large(core)
    answer = run(core, last, ref, gate)
    del ref
    assert stored(raylet) == 1
    Path(go).touch()
    assert read(core, answer) == 7
    wait_until(lambda: stored(raylet) == 0)


def test_object_inside_another_stays_as_long_as_the_outer_one(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    inner = large(core)
    middle = core.put([inner])
    outer = core.put({"deep": [middle]})
    del inner, middle
    assert entries(core) == 3
    found = read(core, read(core, outer)["deep"][0])[0]
    assert int(read(core, found)[0]) == 7
    del found
    assert stored(raylet) == 1
    del outer
    wait_until(lambda: stored(raylet) == 0)
    assert entries(core) == 0


def test_object_returned_inside_a_value_outlives_its_task_and_goes_with_the_value(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def produce() -> Any:
        return [require_core().put(np.full(LARGE, 3))]

    answer = run(core, produce)
    inner = read(core, answer)[0]
    del answer
    assert int(read(core, inner)[0]) == 3
    assert stored(raylet) == 1
    del inner
    wait_until(lambda: stored(raylet) == 0)


def test_object_in_a_closure_stays_while_the_function_may_be_loaded(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def capture(ref: ObjectRef[Any]) -> Callable[[], int]:
        return lambda: int(require_core().get([ref], WAIT_S)[0][-1])

    function_id = core.export(capture(large(core)))
    core.ownership.drain_dropped()
    answer = core.submit_task(function_id, (), {}, TaskOptions("captured"))[0]
    assert read(core, answer) == 7
    assert stored(raylet) == 1


def test_object_held_by_an_actor_goes_when_the_actor_drops_it(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    actor = Actor(core)
    ref = large(core)
    actor.call("keep", [ref])
    del ref
    core.ownership.drain_dropped()
    assert actor.call("value") == 7
    actor.call("drop")
    wait_until(lambda: stored(raylet) == 0)


def test_last_of_a_chain_of_borrowers_holds_when_the_middle_one_drops(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    middle, last = Actor(core), Actor(core)
    ref = large(core)
    middle.call("keep", [ref])
    assert middle.call("pass_on", bytes(last.id)) == 1
    del ref
    middle.call("drop")
    core.ownership.drain_dropped()
    assert last.call("value") == 7
    last.call("drop")
    wait_until(lambda: stored(raylet) == 0)


def test_last_of_a_chain_of_borrowers_holds_when_the_middle_one_dies(
    core: CoreWorker, raylet: MiniRaylet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "DEATH_GRACE_S", 0.2)
    middle, last = Actor(core), Actor(core)
    ref = large(core)
    middle.call("keep", [ref])
    middle.call("pass_on", bytes(last.id))
    entry = core.ownership.table.entries[ref.binary()]
    del ref
    os.kill(middle.call("pid"), signal.SIGKILL)
    wait_until(lambda: len(entry.borrowers or {}) == 1)
    assert last.call("value") == 7
    last.call("drop")
    wait_until(lambda: stored(raylet) == 0)


def test_task_whose_caller_dies_while_it_runs_keeps_what_it_was_given(
    core: CoreWorker, raylet: MiniRaylet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the caller's own hold covered the reference; the callee registers on hearing of the
    # death, and the owner waits that long.
    monkeypatch.setattr(ownership, "DEATH_GRACE_S", 1.0)
    started, go = str(tmp_path / "started"), str(tmp_path / "go")
    middle, last = Actor(core), Actor(core)
    last_pid = last.call("pid")
    ref = large(core)
    middle.call("keep", [ref])
    middle.call("pass_on_and_forget", bytes(last.id), started, go)
    wait_for_file(started)
    entry = core.ownership.table.entries[ref.binary()]
    before = dict(entry.borrowers or {})
    del ref
    os.kill(middle.call("pid"), signal.SIGKILL)
    wait_until(lambda: bool(entry.borrowers) and not before.keys() & entry.borrowers.keys())
    Path(go).touch()
    assert last.call("value") == 7
    assert last.call("pid") == last_pid
    last.call("drop")
    wait_until(lambda: stored(raylet) == 0)


def test_death_of_the_last_borrower_frees_the_object(
    core: CoreWorker, raylet: MiniRaylet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "DEATH_GRACE_S", 0.2)
    actor = Actor(core)
    ref = large(core)
    actor.call("keep", [ref])
    del ref
    core.ownership.drain_dropped()
    assert stored(raylet) == 1
    os.kill(actor.call("pid"), signal.SIGKILL)
    wait_until(lambda: stored(raylet) == 0)


def test_error_that_get_raised_holds_no_reference_of_its_caller(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    def boom() -> None:
        raise KeyError("missing")

    def fail_beside_a_large_object() -> None:
        held = large(core)
        try:
            core.get([run(core, boom)], WAIT_S)
        except KeyError:
            assert held.hex()

    gc.collect()
    gc.disable()
    try:
        fail_beside_a_large_object()
        wait_until(lambda: stored(raylet) == 0)
    finally:
        gc.enable()


def test_reference_pickled_by_other_means_keeps_the_object_and_warns(
    core: CoreWorker, raylet: MiniRaylet
) -> None:
    ref = large(core)
    with pytest.warns(UserWarning, match="as long as this process lives"):
        data = pickle.dumps(ref)
    del ref
    core.ownership.drain_dropped()
    assert int(read(core, pickle.loads(data))[0]) == 7
    assert stored(raylet) == 1


def test_many_objects_leave_nothing_behind(core: CoreWorker, raylet: MiniRaylet) -> None:
    def make_and_drop() -> None:
        small = [core.put(number) for number in range(SMALL_OBJECTS)]
        # At most 64 of the large ones at once: the store of these tests is small.
        for _ in range(LARGE_OBJECTS // 64):
            some = [large(core) for _ in range(64)]
            assert read(core, some[0])[0] == 7
            del some
        assert read(core, small[-1]) == SMALL_OBJECTS - 1
        del small
        wait_until(lambda: entries(core) == 0)
        wait_until(lambda: stored(raylet) == 0)

    make_and_drop()  # once to let pools and allocators reach their size
    before = rss_bytes()
    for _ in range(3):
        make_and_drop()
    assert rss_bytes() - before < RSS_SLACK_BYTES
    statistics = raylet.store.statistics()
    assert statistics.used_bytes == 0
    assert not core.ownership.untold
    assert not core.ownership._borrows
    assert not core.ownership.table._borrowed_by


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
