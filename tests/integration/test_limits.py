"""Limits: how many calls may wait for an actor, how many threads numeric libraries start."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.exceptions import PendingCallsLimitExceeded
from tests.waiting import wait_for

WAIT_S = 30.0

pytestmark = pytest.mark.usefixtures("nobody_chose", "cluster")


@pytest.fixture
def nobody_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster, which starts after this, inherits no choice of ours."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class Gate:
    def pass_when(self, path: str) -> str:
        deadline_s = time.monotonic() + WAIT_S
        while not Path(path).exists():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        return path

    def hold(self, handle: Any, path: str, count: int) -> str:
        """Call another actor so often without waiting."""
        try:
            for _ in range(count):
                handle.pass_when.remote(path)
        except PendingCallsLimitExceeded as error:
            return str(error)
        return "all were taken"


@pytest.mark.surface("A29", "E27")
def test_call_above_max_pending_calls_is_refused_until_others_have_ended(tmp_path: Path) -> None:
    actor = skate.remote(max_pending_calls=2)(Gate).remote()
    go = str(tmp_path / "go")
    refs = [actor.pass_when.remote(go) for _ in range(2)]
    with pytest.raises(PendingCallsLimitExceeded, match=r"2 calls .* max_pending_calls"):
        actor.pass_when.remote(go)
    with pytest.raises(PendingCallsLimitExceeded):
        actor.pass_when.options(name="other").remote(go)
    Path(go).touch()
    assert skate.get(refs, timeout=WAIT_S) == [go, go]
    assert skate.get(actor.pass_when.remote(go), timeout=WAIT_S) == go


@pytest.mark.surface("A29")
def test_limit_travels_with_the_handle_and_counts_each_process_alone(tmp_path: Path) -> None:
    gate = skate.remote(Gate).options(max_pending_calls=3, num_cpus=0).remote()
    other = skate.remote(Gate).options(num_cpus=0).remote()
    go = str(tmp_path / "go")
    mine = [gate.pass_when.remote(go) for _ in range(3)]
    assert "3 calls" in skate.get(other.hold.remote(gate, go, 4), timeout=WAIT_S)
    Path(go).touch()
    assert skate.get(mine, timeout=WAIT_S) == [go] * 3
    wait_for(lambda: skate.get(other.hold.remote(gate, go, 1), timeout=WAIT_S).startswith("all"))


@pytest.mark.surface("A29")
def test_actor_without_the_option_takes_any_number(tmp_path: Path) -> None:
    actor = skate.remote(Gate).remote()
    go = str(tmp_path / "go")
    refs = [actor.pass_when.remote(go) for _ in range(500)]
    Path(go).touch()
    assert len(skate.get(refs, timeout=WAIT_S)) == 500


@skate.remote
def threads() -> str:
    return os.environ["OMP_NUM_THREADS"]


class Threads:
    def threads(self) -> str:
        return os.environ["OMP_NUM_THREADS"]


@pytest.mark.surface("T32")
def test_numeric_libraries_start_as_many_threads_as_the_work_has_cpus() -> None:
    assert skate.get(threads.remote(), timeout=WAIT_S) == "1"
    assert skate.get(threads.options(num_cpus=2).remote(), timeout=WAIT_S) == "2"
    assert skate.get(threads.options(num_cpus=0.5).remote(), timeout=WAIT_S) == "1"
    chosen = threads.options(num_cpus=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "5"}})
    assert skate.get(chosen.remote(), timeout=WAIT_S) == "5"
    actor = skate.remote(num_cpus=2)(Threads).remote()
    assert skate.get(actor.threads.remote(), timeout=WAIT_S) == "2"
