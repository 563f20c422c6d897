"""Whole turns on peers that the standard library has, in real processes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.environments import find_uv, install_arguments
from benchmarks.events import Event, Kind
from benchmarks.peers import load_peer
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan, quick_plan
from benchmarks.round_process import Spec, run_round
from benchmarks.rounds import run_turn
from benchmarks.workloads import all_workloads

PLAN = quick_plan(1)
TASKS = ["init", "first_result", "tasks_sync", "tasks_async", "actor_sync", "shutdown"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["pool", "executor"])
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    started = load_peer(request.param)
    started.start(1)
    yield started
    started.stop()


def double(number: int) -> int:
    return 2 * number


def test_peer_task_gives_one_value_or_a_list(peer: Peer) -> None:
    send = peer.task(double)
    assert peer.get(send(2)) == 4
    assert peer.get([send(1), send(2)]) == [2, 4]


def test_peer_in_turn_and_together_run_to_the_end(peer: Peer) -> None:
    send = peer.task(double)
    peer.in_turn(send, 3, 1)
    peer.together(send, 3, 1)
    peer.together_over(send, range(3))
    peer.all_at_once([send, send], 1)


def test_peer_task_error_reaches_the_caller(peer: Peer) -> None:
    with pytest.raises(TypeError):
        peer.get(peer.task(len)(3))


def test_peer_missing_names_the_reason_or_nothing(peer: Peer) -> None:
    registry = all_workloads()
    assert peer.missing(registry["tasks_sync"].needs) is None
    assert peer.missing(registry["actor_sync"].needs) == "a pool has no actors"


def turn_of(peer_name: str, ids: list[str], plan: Plan = PLAN) -> dict[str, Event]:
    told: list[str] = []
    registry = all_workloads()
    turn = run_turn(registry, ids, peer_name, sys.executable, plan, 1, told.append)
    assert turn.processes_left == []
    return turn.results


def test_turn_of_pool_measures_what_it_can_and_says_what_it_lacks() -> None:
    results = turn_of("pool", TASKS)
    assert {name: event.kind for name, event in results.items()} == {
        "init": Kind.MEASURED,
        "first_result": Kind.MEASURED,
        "tasks_sync": Kind.MEASURED,
        "tasks_async": Kind.MEASURED,
        "actor_sync": Kind.LACKING,
        "shutdown": Kind.MEASURED,
    }


def test_turn_of_uninstalled_peer_fails_with_the_import_error() -> None:
    results = turn_of("xoscar", ["init", "actor_sync"])
    assert all(event.kind is Kind.FAILED for event in results.values())
    assert "xoscar" in results["init"].text
    assert set(results) == {"init", "actor_sync"}


def test_turn_workload_over_its_limit_fails_and_the_rest_is_measured() -> None:
    plan = dataclasses.replace(
        PLAN,
        limit_s=-4.5,  # The runner adds slack, so that half a second is what remains.
        sizes=dataclasses.replace(PLAN.sizes, queued_tasks=3_000_000),
    )
    results = turn_of("pool", ["tasks_queued", "init"], plan)
    assert results["tasks_queued"].kind is Kind.FAILED
    assert "not finished" in results["tasks_queued"].text
    assert results["init"].kind is Kind.MEASURED


class BrokenPeer(Peer):
    """Starts, and fails at its first task."""

    name = "broken"
    import_statement = "pass"
    stopped = False

    def start(self, cpus: int) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True

    def put(self, value: object) -> object:
        raise ConnectionError("the store is gone")


def test_round_failing_workload_is_reported_and_ends_the_round() -> None:
    events: list[Event] = []
    peer = BrokenPeer()
    run_round(Spec("broken", ["put_small", "get_small"], PLAN, 0), peer, events.append)
    reported = [event for event in events if event.kind is not Kind.BEGUN]
    assert [(event.kind, event.workload) for event in reported] == [(Kind.FAILED, "put_small")]
    assert "ConnectionError: the store is gone" in reported[0].text
    assert peer.stopped


def test_event_survives_its_line() -> None:
    event = Event(Kind.MEASURED, "init", [1.5], {"first_s": 2.0}, {"ray": "2"}, "text\n", 3.0)
    assert Event.from_line(event.to_line()) == event


def test_processes_descendants_are_seen_weighed_and_ended() -> None:
    processes.adopt_orphans()
    before = frozenset(processes.descendants(os.getpid()))
    # The shell ends at once and leaves its child behind, in a session of its own.
    command = "setsid sleep 60 >/dev/null 2>&1 & "
    subprocess.run(["sh", "-c", command], check=True)
    left = [pid for pid in processes.descendants(os.getpid()) if pid not in before]
    assert len(left) == 1
    assert processes.memory_of(left).pss_bytes > 0
    ended = processes.end_descendants(before)
    assert len(ended) == 1
    assert [pid for pid in processes.descendants(os.getpid()) if pid not in before] == []
    assert processes.memory_of(left).processes == 0


def test_environment_of_skate_installs_its_libraries_with_the_pins() -> None:
    arguments = install_arguments("skate")
    assert str(ROOT / "constraints.txt") in arguments
    assert str(ROOT / "libs" / "core-ids") in arguments
    assert find_uv() is None or Path(str(find_uv())).exists()


def test_command_interrupted_leaves_no_process_behind() -> None:
    processes.adopt_orphans()
    before = frozenset(processes.descendants(os.getpid()))
    command = [sys.executable, "-m", "benchmarks", "--in-place", "--peers", "pool", "--no-save"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as runner:
        assert runner.stderr is not None
        for line in runner.stderr:
            if "tasks_sync" in line:
                break
        runner.terminate()
        rest = runner.stderr.read()
    assert "interrupted" in rest
    left = [pid for pid in processes.descendants(os.getpid()) if pid not in before]
    assert left == []


@pytest.mark.timeout(300)
def test_benchmarks_run_on_skate_with_none_failing() -> None:
    pytest.importorskip("skate")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--in-place"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
