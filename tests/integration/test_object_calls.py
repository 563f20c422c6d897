"""What programs ask about objects: futures, copies, free, locations, pickling, unseen errors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import logging
import os
import pickle
import re
import signal
import subprocess
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import skate
from skate.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    ObjectFreedError,
    OwnerDiedError,
    ReferenceCountingAssertionError,
    TaskError,
)
from skate.experimental import get_local_object_locations, get_object_locations
from skate.internal import free
from skate.util.state import list_objects
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("shared_cluster")
WAIT_S = 20.0
LARGE = 50_000  # float64 values: more than an inline value may have


@skate.remote
def wait_for_file(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return "done"


@skate.remote
def fail(text: str) -> None:
    raise KeyError(text)


@skate.remote
def large() -> Any:
    return np.ones(LARGE)


@skate.remote
class Holder:
    def __init__(self) -> None:
        self.refs: list[Any] = []

    def hold(self, refs: list[Any]) -> None:
        self.refs = refs

    def read(self) -> str:
        try:
            return f"{skate.get(self.refs[0])!r:.20}"
        except ObjectFreedError:
            return "freed"

    def make(self) -> list[Any]:
        return [skate.put(np.zeros(LARGE)), skate.put(1)]

    def free(self) -> None:
        free(self.refs)

    def locations(self) -> Any:
        return [(w["node_ids"], w["object_size"]) for w in get_object_locations(self.refs).values()]


# ---- get ----


def test_get_of_many_raises_an_error_that_is_there_without_waiting(tmp_path: Path) -> None:
    failed = fail.remote("early")
    slow = wait_for_file.remote(str(tmp_path / "go"))
    skate.wait([failed])

    with pytest.raises(KeyError):
        skate.get([slow, failed], timeout=WAIT_S)
    with pytest.raises(GetTimeoutError):
        skate.get([slow], timeout=0)
    (tmp_path / "go").touch()
    assert skate.get(slow, timeout=WAIT_S) == "done"


@pytest.mark.parametrize("count", [10, LARGE])
def test_get_gives_read_only_arrays_and_with_copy_private_ones(count: int) -> None:
    ref = skate.put({"array": np.arange(count)})

    shared = skate.get(ref)["array"]
    own, other = skate.get([ref, ref], copy=True)
    own["array"][0] = 77

    with pytest.raises(ValueError, match="read-only"):
        shared[0] = 1
    assert shared[0] == other["array"][0] == skate.get(ref)["array"][0] == 0
    assert own["array"].flags.aligned


def test_get_with_copy_raises_the_tasks_error() -> None:
    with pytest.raises(KeyError):
        skate.get(fail.remote("copied"), copy=True, timeout=WAIT_S)


# ---- futures ----


def test_future_gives_value_or_error() -> None:
    good, bad = large.remote().future(), fail.remote("x").future()

    assert good.result(WAIT_S).sum() == LARGE
    assert isinstance(bad.exception(WAIT_S), KeyError)
    assert isinstance(good, concurrent.futures.Future)


def test_future_that_is_cancelled_leaves_the_task_alone(tmp_path: Path) -> None:
    ref = wait_for_file.remote(str(tmp_path / "go"))
    future = ref.future()

    assert future.cancel()
    (tmp_path / "go").touch()
    assert skate.get(ref, timeout=WAIT_S) == "done"


def test_on_completed_calls_back_once_with_value_or_error() -> None:
    seen: list[Any] = []
    skate.put(3)._on_completed(seen.append)
    fail.remote("told")._on_completed(seen.append)

    wait_for(lambda: len(seen) == 2)
    assert seen[0] == 3
    assert isinstance(seen[1], KeyError)


def test_as_future_warns_that_it_is_deprecated() -> None:
    async def main() -> Any:
        with pytest.warns(DeprecationWarning, match="wrap_future"):
            return await skate.put(5).as_future()

    assert asyncio.run(main()) == 5


def test_references_work_with_asyncios_tools(tmp_path: Path) -> None:
    async def main() -> None:
        ref = skate.put("v")
        assert [await ref, await ref] == ["v", "v"]
        assert await asyncio.gather(ref, skate.put(2), large.remote()) is not None
        slow = wait_for_file.remote(str(tmp_path / "go"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await slow
        tasks = [asyncio.ensure_future(slow), asyncio.ensure_future(ref)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result() for task in done} == {"v"}
        assert pending == {tasks[0]}
        (tmp_path / "go").touch()
        assert await asyncio.wait_for(slow, WAIT_S) == "done"
        await tasks[0]
        with pytest.raises(KeyError):
            await fail.remote("awaited")

        async def wait(ref: Any) -> Any:
            return await ref

        async with asyncio.TaskGroup() as group:
            members = [group.create_task(wait(skate.put(n))) for n in range(3)]
        assert [member.result() for member in members] == [0, 1, 2]

    asyncio.run(main())


def test_await_works_in_loops_of_several_threads() -> None:
    ref = large.remote()
    sums: list[float] = []

    async def main() -> None:
        sums.append((await ref).sum())

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sums == [LARGE] * 3


# ---- free ----


@pytest.mark.parametrize("value", [1, np.zeros(LARGE)], ids=["small", "large"])
def test_get_after_free_raises_object_freed_error(value: Any) -> None:
    ref = skate.put(value)
    free([ref])

    with pytest.raises(ObjectFreedError, match=ref.hex()) as caught:
        skate.get(ref)
    assert skate.wait([ref]) == ([ref], [])
    with pytest.raises(TaskError, match="input arguments"):
        skate.get(large_of.remote(ref), timeout=WAIT_S)
    if not isinstance(value, int):
        assert "test_object_calls.py" in caught.value.call_site


@skate.remote
def large_of(value: Any) -> Any:
    return value


@skate.remote
class Owner:
    """Owns what others put for it."""

    def pid(self) -> int:
        return os.getpid()


@skate.remote
class Giver:
    """Puts values that another one owns."""

    def give(self, owner: Any, value: Any) -> list[Any]:
        inner = skate.put("inside")
        return [skate.put(value, _owner=owner), skate.put([inner], _owner=owner)]

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.surface("O2")
@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "stored"])
def test_value_put_for_an_actor_outlives_its_maker_and_dies_with_the_actor(size: int) -> None:
    owner, giver = Owner.remote(), Giver.remote()
    value = np.arange(size, dtype=np.uint8)
    ref, container = skate.get(giver.give.remote(owner, value), timeout=WAIT_S)
    object_id = ref.hex()
    giver_pid = skate.get(giver.pid.remote(), timeout=WAIT_S)
    pid = skate.get(owner.pid.remote(), timeout=WAIT_S)
    (row,) = (r for r in list_objects() if r.object_id == object_id and r.pid == pid)
    assert row.owner_pid == pid
    os.kill(giver_pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError):
        skate.get(giver.pid.remote(), timeout=WAIT_S)
    assert (skate.get(ref, timeout=WAIT_S) == value).all()
    inner = skate.get(container, timeout=WAIT_S)[0]
    # What was its maker's own went with it.
    with pytest.raises(OwnerDiedError):
        skate.get(inner, timeout=WAIT_S)
    again = skate.put(value, _owner=owner)
    assert (skate.get(again, timeout=WAIT_S) == value).all()
    # Not read before: a small value that was is with the reader as well.
    unread = skate.put(value, _owner=owner)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(OwnerDiedError, match=f"pid={pid}"):
        skate.get(unread, timeout=WAIT_S)
    with pytest.raises(RuntimeError, match=r"actor Owner \(\w+\), (is dead|died)"):
        skate.put(1, _owner=owner)
    wait_for(lambda: object_id not in {r.object_id for r in list_objects() if r.stored_on})


@pytest.mark.surface("O2")
def test_value_put_for_an_actor_goes_with_its_last_reference() -> None:
    owner = Owner.remote()
    ref = skate.put([skate.put(np.zeros(LARGE))], _owner=owner)
    (inner,) = skate.get(ref, timeout=WAIT_S)
    assert skate.get(inner, timeout=WAIT_S).sum() == 0
    ids = {ref.hex(), inner.hex()}
    del ref, inner
    wait_for(lambda: not ids & {row.object_id for row in list_objects()})


def test_free_of_an_owner_reaches_those_who_hold_the_value() -> None:
    holder = Holder.remote()
    ref = skate.put(np.zeros(LARGE))
    skate.get(holder.hold.remote([ref]), timeout=WAIT_S)
    assert skate.get(holder.read.remote(), timeout=WAIT_S).startswith("array")

    free(ref)

    wait_for(lambda: skate.get(holder.read.remote(), timeout=WAIT_S) == "freed")


def test_free_by_a_borrower_reaches_the_owner_and_both_know() -> None:
    holder = Holder.remote()
    ref = skate.put(np.zeros(LARGE))
    skate.get(holder.hold.remote([ref]), timeout=WAIT_S)
    assert skate.get(holder.read.remote(), timeout=WAIT_S).startswith("array")

    skate.get(holder.free.remote(), timeout=WAIT_S)

    assert skate.get(holder.read.remote(), timeout=WAIT_S) == "freed"

    def is_freed() -> bool:
        try:
            skate.get(ref)
        except ObjectFreedError:
            return True
        return False

    wait_for(is_freed)


def test_free_leaves_what_is_not_ready_alone(tmp_path: Path) -> None:
    ref = wait_for_file.remote(str(tmp_path / "go"))
    free([ref])
    (tmp_path / "go").touch()
    assert skate.get(ref, timeout=WAIT_S) == "done"


def test_free_with_local_only_keeps_small_values() -> None:
    small, stored = skate.put(1), skate.put(np.zeros(LARGE))
    free([small, stored], local_only=True)
    assert skate.get(small) == 1
    with pytest.raises(ObjectFreedError):
        skate.get(stored)


@pytest.mark.parametrize("wrong", [3, "ref", [3], [None]])
def test_free_of_something_else_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="ObjectRef"):
        free(wrong)


# ---- locations ----


def test_locations_of_stored_small_and_pending_objects(tmp_path: Path) -> None:
    stored, small = skate.put(np.zeros(LARGE)), skate.put(1)
    pending = wait_for_file.remote(str(tmp_path / "go"))

    found = get_object_locations([stored, small, pending])

    node_id = skate.get_runtime_context().get_node_id()
    assert found[stored]["node_ids"] == [node_id]
    assert found[stored]["object_size"] > LARGE * 8
    assert found[small]["node_ids"] == []
    assert found[small]["object_size"] > 0
    assert found[pending] == {"node_ids": [], "object_size": None, "did_spill": False}
    assert get_local_object_locations([stored]) == {stored: found[stored]}
    assert get_object_locations([]) == {}
    (tmp_path / "go").touch()
    skate.get(pending, timeout=WAIT_S)


def test_locations_of_another_processs_objects_come_from_their_owner() -> None:
    owner = Holder.remote()
    stored, small = skate.get(owner.make.remote(), timeout=WAIT_S)

    found = get_object_locations([stored, small], timeout_ms=20_000)

    assert found[stored]["node_ids"] == [skate.get_runtime_context().get_node_id()]
    assert found[small]["node_ids"] == []


def test_locations_of_a_dead_owners_objects_are_left_out() -> None:
    owner = Holder.remote()
    stored, small = skate.get(owner.make.remote(), timeout=WAIT_S)
    skate.kill(owner)
    wait_for(lambda: get_object_locations([stored, small], timeout_ms=2000) == {})


def test_locations_with_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="ObjectRefs"):
        get_object_locations(skate.put(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout_ms"):
        get_object_locations([], timeout_ms="1")  # type: ignore[arg-type]


# ---- pickled by other means ----


def test_reference_pickled_elsewhere_warns_once_a_line_and_pins() -> None:
    refs = [skate.put(np.arange(LARGE)) for _ in range(3)]
    with pytest.warns(UserWarning, match="pickled outside Skate") as caught:
        data, *_ = [pickle.dumps(ref) for ref in refs]
    del refs
    gc.collect()

    (warning,) = caught
    assert re.search(r"pickled outside Skate at \S*test_object_calls\.py:", str(warning.message))
    assert skate.get(pickle.loads(data)).sum() == sum(range(LARGE))


def test_reference_pickled_elsewhere_is_refused_where_that_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SKATE_ALLOW_OUT_OF_BAND_REFERENCES", "0")
    ref = skate.put(1)
    with pytest.raises(skate.exceptions.OutOfBandReferenceError, match=r"test_object_calls\.py:"):
        pickle.dumps(ref)
    assert skate.get(large_of.remote([ref]), timeout=WAIT_S) == [ref]


@skate.remote
class Pickler:
    def pickled(self, refs: list[Any]) -> bytes:
        return pickle.dumps(refs[0])


def why_lost(data: bytes) -> str:
    """What a pickled reference's object is said to be lost by; empty: it can be had."""
    try:
        skate.get(pickle.loads(data), timeout=WAIT_S)
    except ReferenceCountingAssertionError as error:
        return str(error)
    return ""


@pytest.mark.surface("E16")
@pytest.mark.parametrize("value", [1, np.zeros(LARGE)], ids=["small", "large"])
def test_reference_whose_pickler_ended_is_to_a_deleted_object_and_says_so(value: Any) -> None:
    pickler = Pickler.remote()
    ref = skate.put(value)
    data = skate.get(pickler.pickled.remote([ref]), timeout=WAIT_S)
    del ref
    assert np.array_equal(skate.get(pickle.loads(data), timeout=WAIT_S), value)  # the actor pins it
    skate.kill(pickler)

    wait_for(lambda: "pickled the reference by other means" in why_lost(data))


@pytest.mark.surface("E16")
def test_borrowed_reference_whose_pickler_ended_is_told_by_the_owner() -> None:
    pickler, owner = Pickler.remote(), Holder.remote()
    stored, small = skate.get(owner.make.remote(), timeout=WAIT_S)
    datas = [skate.get(pickler.pickled.remote([ref]), timeout=WAIT_S) for ref in (stored, small)]
    del stored, small
    skate.kill(pickler)

    for data in datas:
        wait_for(lambda data=data: bool(why_lost(data)))  # type: ignore[misc]


def test_reference_that_is_copied_is_the_same_and_pins_nothing() -> None:
    ref = skate.put(1)
    assert copy.copy(ref) is ref
    assert copy.deepcopy([ref])[0] is ref


# ---- errors that nobody asked for ----


def unhandled(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("Unhandled error")]


def test_error_whose_reference_goes_unread_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ref = fail.remote("nobody looks")
    skate.wait([ref])
    del ref
    skate.put(np.zeros(LARGE))  # its end is noted at once, and takes the other along

    wait_for(lambda: len(unhandled(caplog)) == 1)
    assert "nobody looks" in caplog.text
    assert "SKATE_IGNORE_UNHANDLED_ERRORS=1" in caplog.text


def test_error_that_was_shown_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main(ref: Any) -> None:
        with pytest.raises(KeyError):
            await ref

    read, awaited, argument = fail.remote("a"), fail.remote("b"), fail.remote("c")
    dependent = large_of.remote(argument)
    for ref in (read, dependent):
        with pytest.raises(TaskError):
            skate.get(ref, timeout=WAIT_S)
    asyncio.run(main(awaited))
    last = fail.remote("the last")
    skate.wait([last])
    del read, awaited, argument, dependent, last, ref
    skate.put(np.zeros(LARGE))

    wait_for(lambda: any("the last" in text for text in unhandled(caplog)))
    assert len(unhandled(caplog)) == 1


# ---- processes with settings of their own ----


@pytest.fixture
def run_program(
    run_script: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program given as text, with these environment variables."""

    def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(text))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return run_script(path)

    return run


def test_unhandled_errors_can_be_silenced(
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    program = """
        import skate
        skate.init(num_cpus=1)
        @skate.remote
        def fail(): raise ValueError("unseen")
        ref = fail.remote()
        skate.wait([ref])
        del ref
        for _ in range(1000): skate.put(1)
        skate.get(skate.put(bytes(200_000)))
    """
    loud = run_program(program)
    silent = run_program(program, SKATE_IGNORE_UNHANDLED_ERRORS="1")
    assert "ValueError: unseen" in loud.stderr
    assert "unseen" not in silent.stderr


def test_creation_of_every_reference_is_noted_on_request(
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = run_program(
        """
        import skate
        skate.init(num_cpus=1)
        @skate.remote
        def one(): return 1
        def make():
            return skate.put(1), one.remote()
        for ref in make():
            print(ref.call_site())
        """,
        SKATE_RECORD_REF_CREATION_SITES="1",
    )
    put, task = result.stdout.splitlines()
    assert re.search(r":\d+ in make$", put)
    assert re.search(r"^one\(\) from .*:\d+ in make$", task)


@pytest.mark.surface("E15")
def test_error_of_a_dead_owner_names_the_line_its_log_and_the_cause(
    run_program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = run_program(
        """
        import os, signal, time, skate
        skate.init(num_cpus=1)
        @skate.remote
        class Maker:
            def make(self):
                self.kept = skate.put("value")
                return os.getpid(), [self.kept]
        maker = Maker.remote()
        pid, (ref,) = skate.get(maker.make.remote())
        os.kill(pid, signal.SIGKILL)
        try:
            skate.get(ref, timeout=20)
        except skate.exceptions.OwnerDiedError as error:
            print(error.call_site)
            print(error)
        """,
        SKATE_RECORD_REF_CREATION_SITES="1",
    )
    site, text = result.stdout.split("\n", 1)
    assert re.search(r":\d+ in (Maker\.)?make$", site)
    assert f"It was created at: {site}" in text
    assert re.search(r"What it printed is in /\S+/logs/worker-\S+\.err on its node", text)
    assert "SIGKILL" in text


def test_creation_is_noted_of_stored_values_only_by_default() -> None:
    assert skate.put(1).call_site() == ""
    assert re.search(r"test_object_calls\.py:\d+ in test_", skate.put(bytes(200_000)).call_site())


def test_blocking_get_in_an_async_actor_warns_once(tmp_path: Path) -> None:
    @skate.remote
    class Async:
        async def blocks(self, path: str) -> list[str]:
            records: list[str] = []

            class Keep(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    records.append(record.getMessage())

            logging.getLogger("skate").addHandler(Keep())
            for number in range(2):
                ref = wait_for_file.remote(f"{path}{number}")
                with pytest.raises(GetTimeoutError):
                    skate.get(ref, timeout=0.01)
                Path(f"{path}{number}").touch()  # noqa: ASYNC240 - one file, at once
                await ref
            return records

    messages = skate.get(Async.remote().blocks.remote(str(tmp_path / "go")), timeout=WAIT_S)
    assert len(messages) == 1
    assert "event loop" in messages[0]


def test_no_warnings_of_numpy_or_pickle_escape() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        skate.get(skate.put(np.zeros(LARGE)))
