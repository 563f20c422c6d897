"""Values in the stores of several nodes: reading, waiting, arguments, losing, making again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from mini_raylet import MiniRaylet

from skate_object_store import StoreFullError
from skate_worker.core import CoreWorker
from skate_worker.errors import (
    GetTimeoutError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    OwnerDiedError,
    SkateSystemError,
    TaskError,
)
from skate_worker.object_ref import ObjectRef
from skate_worker.specs import ActorOptions, CallOptions, TaskOptions

WAIT_S = 20.0
THERE = (("second", 10_000),)
LARGE = 200_000

cloudpickle.register_pickle_by_value(sys.modules[__name__])


def submit(core: CoreWorker, function: Any, *args: Any, **options: Any) -> list[ObjectRef[Any]]:
    task_options = TaskOptions(function.__name__, **options)
    return core.submit_task(core.export(function), args, {}, task_options)


def there(core: CoreWorker, function: Any, *args: Any, **options: Any) -> ObjectRef[Any]:
    """Run a task on the second node."""
    return submit(core, function, *args, resources=THERE, **options)[0]


def call(core: CoreWorker, actor_id: bytes, method: str, *args: Any, **options: Any) -> Any:
    return core.submit_actor_task(actor_id, args, {}, CallOptions(method, method, **options))[0]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def array(number: int) -> Any:
    return np.full(LARGE, number)


def note(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def runs(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


def noted_array(path: str, number: int) -> Any:
    note(path)
    return np.full(LARGE, number)


def plus_one(path: str, values: Any) -> Any:
    note(path)
    return values + 1


def total(values: Any) -> int:
    return int(values.sum())


def lose(core: CoreWorker, node: MiniRaylet, *refs: ObjectRef[Any]) -> None:
    """Delete the copies of one node's store behind everybody's back."""
    ids = [ref.binary() for ref in refs]
    node.client().delete(ids)
    wait_until(lambda: not any(map(node.client().contains, ids)))
    if node.node_id == core.ownership.node_id:
        store = core.ownership.store
        assert store is not None
        wait_until(lambda: not any(store.get(ids, 0)))  # views that were read linger a moment


# ---- reading ----


def test_get_of_a_value_on_another_node_brings_a_copy(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 7)
    assert core.get([ref], WAIT_S)[0].sum() == 7 * LARGE
    assert raylet.stored() == second.stored() == 1
    assert core.get([ref], WAIT_S)[0].sum() == 7 * LARGE
    assert len(raylet.pulls) == 1


def test_get_of_many_remote_values_pulls_all_at_once(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    refs = [there(core, array, n) for n in range(5)]
    core.wait(refs, 5, WAIT_S, fetch_local=False)
    raylet.hold_pulls.set()
    reader = threading.Thread(target=lambda: got.extend(core.get(refs, WAIT_S)))
    got: list[Any] = []
    reader.start()
    wait_until(lambda: len(raylet.held) == 5)
    raylet.release_pulls()
    reader.join(WAIT_S)
    assert [int(values[0]) for values in got] == [0, 1, 2, 3, 4]


def test_get_with_a_timeout_leaves_the_pull_to_the_next_one_and_gives_it_up_with_the_reference(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    refs = [there(core, array, n) for n in range(2)]
    core.wait(refs, 2, WAIT_S, fetch_local=False)
    raylet.hold_pulls.set()
    for _ in range(3):
        with pytest.raises(GetTimeoutError):
            core.get(refs, 0.02)
    wait_until(lambda: len(raylet.held) == 2)
    refs.pop()
    wait_until(lambda: len(raylet.cancelled) == 1)
    raylet.release_pulls()
    assert core.get(refs, WAIT_S)[0][0] == 0
    assert len(raylet.pulls) == 2


def test_first_error_is_raised_while_other_values_are_still_pulled(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    remote = there(core, array, 1)
    core.wait([remote], 1, WAIT_S, fetch_local=False)
    raylet.hold_pulls.set()

    def fail() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        core.get([remote, submit(core, fail)[0]], WAIT_S)


def test_copy_that_was_evicted_is_pulled_again(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 3)
    core.get([ref], WAIT_S)
    lose(core, raylet, ref)
    assert core.get([ref], WAIT_S)[0][0] == 3
    assert len(raylet.pulls) >= 2


def test_wait_counts_a_remote_value_when_it_is_here(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 3)
    assert core.wait([ref], 1, WAIT_S, fetch_local=False) == ([ref], [])
    raylet.hold_pulls.set()
    assert core.wait([ref], 1, 0.05) == ([], [ref])
    raylet.release_pulls()
    assert core.wait([ref], 1, WAIT_S) == ([ref], [])
    assert raylet.stored() == 1


def test_future_of_a_remote_value_gets_it(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 3)
    assert ref.future().result(WAIT_S)[0] == 3


# ---- arguments ----


def test_arguments_travel_in_both_directions(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    here = core.put(np.full(LARGE, 2))
    assert core.get([there(core, total, here)], WAIT_S) == [2 * LARGE]
    far = there(core, array, 5)
    assert core.get(submit(core, total, far), WAIT_S) == [5 * LARGE]


def test_references_in_a_container_are_read_on_another_node(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    def read(refs: list[Any]) -> int:
        from skate_worker.current import require_core

        return sum(int(v.sum()) for v in require_core().get(refs, WAIT_S))

    refs = [core.put(np.full(LARGE, n)) for n in (1, 2)]
    assert core.get([there(core, read, refs)], WAIT_S) == [3 * LARGE]


def test_async_actor_goes_on_while_an_argument_travels(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    class Actor:
        async def total(self, values: Any) -> int:
            return int(values.sum())

        async def hello(self) -> str:
            return "hello"

    options = ActorOptions("Actor", is_async=True, max_concurrency=10, placement_resources=THERE)
    actor_id, _, keeper = core.create_actor(core.export(Actor), (), {}, options)
    assert core.get([call(core, actor_id, "hello")], WAIT_S) == ["hello"]
    second.hold_pulls.set()
    summed = call(core, actor_id, "total", core.put(np.full(LARGE, 2)))
    wait_until(lambda: len(second.held) == 1)
    assert core.get([call(core, actor_id, "hello")], WAIT_S) == ["hello"]
    second.release_pulls()
    assert core.get([summed], WAIT_S) == [2 * LARGE]
    del keeper


# ---- the end of objects ----


def test_all_copies_are_deleted_with_the_last_reference(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    far = there(core, array, 5)
    here = core.put(np.full(LARGE, 2))
    core.get([far, there(core, total, here)], WAIT_S)
    assert raylet.stored() == second.stored() == 2
    del far, here
    wait_until(lambda: raylet.stored() == second.stored() == 0)
    assert not core.plane.directory._records


def test_value_released_before_it_was_made_is_deleted_where_it_lies(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, tmp_path: Path
) -> None:
    def slow(path: str) -> Any:
        while not os.path.exists(path):
            time.sleep(0.005)
        return np.zeros(LARGE)

    ref = there(core, slow, str(tmp_path / "go"))
    del ref
    (tmp_path / "go").touch()
    assert core.get([there(core, total, core.put(np.ones(3)))], WAIT_S) == [3]
    wait_until(lambda: second.stored() == 0)


# ---- losing and making again ----


def test_lost_return_is_made_again_with_its_lost_arguments(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, tmp_path: Path
) -> None:
    first_path, second_path = tmp_path / "first_runs", tmp_path / "second_runs"
    first = there(core, noted_array, str(first_path), 1)
    later = there(core, plus_one, str(second_path), first)
    core.wait([later], 1, WAIT_S, fetch_local=False)
    lose(core, second, first, later)
    assert core.get([later], WAIT_S)[0][0] == 2
    assert runs(first_path) == runs(second_path) == 2
    assert core.get([first], WAIT_S)[0][0] == 1


def test_argument_without_references_is_made_again_for_its_dependent(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, tmp_path: Path
) -> None:
    first = there(core, noted_array, str(tmp_path / "a"), 1)
    middle = there(core, plus_one, str(tmp_path / "b"), first)
    last = there(core, plus_one, str(tmp_path / "c"), middle)
    core.wait([last], 1, WAIT_S, fetch_local=False)
    del first, middle
    wait_until(lambda: second.stored() == 1)
    assert len(core.plane.recovery.lineage) == 3
    lose(core, second, last)
    assert core.get([last], WAIT_S)[0][0] == 3
    wait_until(lambda: second.stored() == 1)
    del last
    wait_until(lambda: len(core.plane.recovery.lineage) == 0)
    assert core.plane.recovery.lineage.size_bytes == 0
    wait_until(lambda: raylet.stored() == second.stored() == 0)


def test_small_results_keep_no_lineage(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    refs = [submit(core, total, core.put(np.ones(n)))[0] for n in range(1, 20)]
    core.get(refs, WAIT_S)
    assert len(core.plane.recovery.lineage) == 0


def test_return_that_has_a_copy_stays_as_it_is_when_its_sibling_is_made_again(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    def two() -> Any:
        number = int.from_bytes(os.urandom(4), "big")
        return np.full(LARGE, number), np.full(LARGE, number)

    left, right = submit(core, two, resources=THERE, num_returns=2)
    before = int(core.get([left], WAIT_S)[0][0])
    core.wait([right], 1, WAIT_S, fetch_local=False)
    lose(core, second, right)
    assert core.get([right], WAIT_S)[0][0] != before
    lose(core, raylet, left)
    assert core.get([left], WAIT_S)[0][0] == before


@pytest.mark.invariant("I2")
def test_values_of_a_dead_node_are_made_again_elsewhere(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, tmp_path: Path
) -> None:
    # The second node vanishes, and a third one takes its name.
    path = tmp_path / "runs"
    ref = there(core, noted_array, str(path), 4)
    core.wait([ref], 1, WAIT_S, fetch_local=False)
    second.die()
    second.name = "gone"
    directory = tmp_path / "third"
    directory.mkdir()
    third = MiniRaylet(directory, "second")
    try:
        raylet.join(third)
        assert core.get([ref], WAIT_S)[0][0] == 4
        assert runs(path) == 2
    finally:
        third.close()


def test_retries_are_the_bound_of_making_again(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 4, max_retries=1)
    for _ in range(2):
        core.wait([ref], 1, WAIT_S, fetch_local=False)
        lose(core, second, ref)
        if core.plane.recovery.lineage.is_precious(ref.binary()):
            break
        core.get([ref], WAIT_S)
        lose(core, raylet, ref)
    with pytest.raises(ObjectReconstructionFailedError, match="max_retries") as caught:
        core.get([ref], WAIT_S)
    assert caught.value.reason == "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED"


def test_task_without_retries_does_not_run_again(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 4, max_retries=0)
    core.wait([ref], 1, WAIT_S, fetch_local=False)
    lose(core, second, ref)
    with pytest.raises(ObjectReconstructionFailedError, match="max_retries is 0") as caught:
        core.get([ref], WAIT_S)
    assert caught.value.reason == "OBJECT_UNRECONSTRUCTABLE_RETRIES_DISABLED"


@pytest.mark.invariant("I2")
def test_put_that_is_lost_with_its_copies_names_the_node_and_cause(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    def put() -> Any:
        from skate_worker.current import require_core

        return [require_core().put(np.ones(LARGE))]

    # The owner is a worker on this node, whose store loses the value.
    inner = core.get([submit(core, put)[0]], WAIT_S)[0][0]
    core.wait([inner], 1, WAIT_S)
    lose(core, raylet, inner)
    with pytest.raises(ObjectLostError, match="put") as caught:
        core.get([inner], WAIT_S)
    assert raylet.node_id.hex() in str(caught.value)


def test_task_fails_with_the_reason_when_an_argument_can_not_be_had(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    here = core.put(np.full(LARGE, 2))
    lose(core, raylet, here)
    with pytest.raises(TaskError, match="put") as caught:
        core.get([there(core, total, here)], WAIT_S)
    assert isinstance(caught.value, ObjectLostError)


def test_actor_method_is_called_again_only_if_it_may(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    class Maker:
        def make(self) -> Any:
            return np.full(LARGE, 6)

    options = ActorOptions("Maker", placement_resources=THERE)
    actor_id, _, keeper = core.create_actor(core.export(Maker), (), {}, options)
    again = call(core, actor_id, "make", max_task_retries=1)
    once = call(core, actor_id, "make")
    core.wait([again, once], 2, WAIT_S, fetch_local=False)
    lose(core, second, again, once)
    assert core.get([again], WAIT_S)[0][0] == 6
    with pytest.raises(ObjectReconstructionFailedError, match="max_task_retries"):
        core.get([once], WAIT_S)
    del keeper


# ---- owners that die ----


class Owner:
    """An actor that owns values for others."""

    def __init__(self) -> None:
        self.refs: list[Any] = []

    def own(self) -> Any:
        from skate_worker.current import require_core

        ref = require_core().put(np.ones(LARGE))
        self.refs.append(ref)
        return [ref]

    def pid(self) -> int:
        return os.getpid()


def make_owner(core: CoreWorker, resources: Any = ()) -> tuple[Any, Any, int]:
    options = ActorOptions("Owner", placement_resources=resources)
    actor_id, _, keeper = core.create_actor(core.export(Owner), (), {}, options)
    return actor_id, keeper, core.get([call(core, actor_id, "pid")], WAIT_S)[0]


def owned_by(core: CoreWorker, actor_id: Any) -> ObjectRef[Any]:
    ref: ObjectRef[Any] = core.get([call(core, actor_id, "own")], WAIT_S)[0][0]
    return ref


@pytest.mark.parametrize("is_known", [False, True], ids=["asks_later", "knew_the_place"])
@pytest.mark.invariant("I5")
def test_borrower_is_told_that_the_owner_died(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, is_known: bool
) -> None:
    actor_id, keeper, pid = make_owner(core, THERE)
    ref = owned_by(core, actor_id)
    if is_known:
        core.wait([ref], 1, WAIT_S, fetch_local=False)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bool(core.plane.deaths._workers))
    with pytest.raises(OwnerDiedError, match=f"pid={pid}") as caught:
        core.get([ref], WAIT_S)
    assert "SIGKILL" in str(caught.value)
    assert second.node_id.hex() in str(caught.value)
    del keeper


@pytest.mark.invariant("I5")
def test_owner_that_dies_ends_the_pull_under_way(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    actor_id, keeper, pid = make_owner(core, THERE)
    ref = owned_by(core, actor_id)
    raylet.hold_pulls.set()
    threading.Thread(
        target=lambda: (wait_until(lambda: bool(raylet.held)), os.kill(pid, signal.SIGKILL))
    ).start()
    with pytest.raises(OwnerDiedError):
        core.get([ref], WAIT_S)
    wait_until(lambda: not raylet.held)
    del keeper


def test_value_of_a_dead_owner_is_gone_although_a_copy_is_here(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    actor_id, keeper, pid = make_owner(core, THERE)
    ref = owned_by(core, actor_id)
    core.get([ref], WAIT_S)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bool(core.plane.deaths._workers))
    with pytest.raises(OwnerDiedError):
        core.get([ref], WAIT_S)
    del keeper


@pytest.mark.invariant("I5")
def test_queued_task_whose_argument_lost_its_owner_fails_with_that(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    actor_id, keeper, pid = make_owner(core, THERE)
    ref = owned_by(core, actor_id)
    core.wait([ref], 1, WAIT_S, fetch_local=False)
    raylet.hold_pulls.set()
    task = submit(core, total, ref)[0]
    wait_until(lambda: bool(raylet.held))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(OwnerDiedError):
        core.get([task], WAIT_S)
    del keeper


def test_copy_whose_primary_died_is_not_evicted(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 6, max_retries=0)
    core.get([ref], WAIT_S)
    wait_until(lambda: raylet.store.statistics().evictable_bytes > 0)
    second.die()
    wait_until(lambda: raylet.store.statistics().primary_bytes > 0)
    client = raylet.client()
    with pytest.raises(StoreFullError):
        client.create(b"large", raylet.store.statistics().capacity_bytes, wait_s=0)
    assert core.get([ref], WAIT_S)[0][0] == 6


def test_copy_that_was_evicted_before_it_could_be_kept_is_made_again(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet, tmp_path: Path
) -> None:
    path = tmp_path / "runs"
    ref = there(core, noted_array, str(path), 4)
    assert core.get([ref], WAIT_S)[0][0] == 4
    wait_until(lambda: core.plane.directory.copies(ref.binary(), b"") != [second.node_id])
    lose(core, raylet, ref)
    second.die()
    wait_until(lambda: core.plane.directory.copies(ref.binary(), second.node_id) == [])
    second.name = "gone"
    directory = tmp_path / "third"
    directory.mkdir()
    third = MiniRaylet(directory, "second")
    try:
        raylet.join(third)
        assert core.get([ref], WAIT_S)[0][0] == 4
        assert runs(path) == 2
    finally:
        third.close()


def test_owners_on_a_dead_node_are_dead(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    actor_id, keeper, _ = make_owner(core, THERE)
    ref = owned_by(core, actor_id)
    second.die()
    with pytest.raises(OwnerDiedError, match="switched off"):
        core.get([ref], WAIT_S)
    del keeper


# ---- the end ----


def test_leaving_the_cluster_ends_a_get_that_waits_for_a_pull(
    core: CoreWorker, raylet: MiniRaylet, second: MiniRaylet
) -> None:
    ref = there(core, array, 1)
    core.wait([ref], 1, WAIT_S, fetch_local=False)
    raylet.hold_pulls.set()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            core.get([ref])
        except SkateSystemError as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: bool(raylet.held))
    core.close()
    reader.join(WAIT_S)
    assert len(errors) == 1
