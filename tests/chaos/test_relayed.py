"""What nodes say to each other is repeated, late or lost, while random task graphs run.

Every connection between two nodes goes through ``relay``, which says what it does to which
protocol. Nodes are network namespaces and need root; skipped elsewhere. What processes of one node
say to each other goes by Unix sockets, and is not touched. RELIABILITY I1, I3, I7, I9, I25.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.exceptions import GetTimeoutError, SkateError
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.chaos import graphs
from tests.chaos.end_check import assert_ends, assert_settled, rest_of, use_everywhere
from tests.chaos.machines import Machines, machines
from tests.chaos.relayed import RelayedNetwork
from tests.chaos.watched import GET_S
from tests.chaos.workload import Workload, check_graph, started_once, without_calls
from tests.namespaces import why_not

HOSTS = 3
NODE_ARGS = {"num_cpus": 1, "object_store_memory": 80 << 20}
SPOILT = {"again": 0.1, "late": 0.1, "held": 0.01}
LOSSY = {"again": 0.05, "late": 0.05, "held": 0.005, "lost": 0.005, "broken": 0.005}
TASKS = 10
FAULTS_PER_ROUND = 10
FAULTS_PER_LOSS = 2  # of what is lost; more messages are repeated and late meanwhile
REPETITIONS_PER_FAULT = 5
PER_FAULT_S = 5.0
PER_LOSS_S = 10.0

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]  # bounded by the number of faults


@pytest.fixture
def relayed(session_root: Path, chaos_seed: int) -> Iterator[Machines]:
    """Three nodes, this thread on the host of the first."""
    if reason := why_not():
        pytest.skip(reason)
    with (
        RelayedNetwork(HOSTS, chaos_seed) as network,
        machines(network, HOSTS, NODE_ARGS) as made,
    ):
        yield made


def relay_of(made: Machines) -> RelayedNetwork:
    assert isinstance(made.network, RelayedNetwork)
    return made.network


@pytest.mark.invariant("I7", "I13", "I25")
def test_every_grpc_call_between_nodes_is_made_twice_from_the_start(
    session_root: Path, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with RelayedNetwork(HOSTS, chaos_seed) as relay:
        relay.spoil(twice=1.0)
        with machines(relay, HOSTS, NODE_ARGS) as made:
            base = rest_of(made.cluster)
            print(f"\nagain: nox -s chaos -- -k twice --chaos-seed {chaos_seed}")
            work = Workload(chaos_seed, tmp_path, list(made.hosts))
            for _ in range(max(1, faults // FAULTS_PER_ROUND)):
                work.run_once()
                use_everywhere(made.cluster, GET_S)
            work.finish()
            done = relay.spoil(twice=1.0)
            print(f"{work.graphs} graphs, {work.values} values compared, {done}")
            assert done["twice"] >= HOSTS - 1
            del work
            gc.collect()
            assert_settled(made.cluster, base, new_work_s)
            assert_ends(made.cluster)


@pytest.mark.invariant("I7", "I9", "I25")
def test_repeated_and_late_messages_change_nothing(
    relayed: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(relayed.cluster)
    relay = relay_of(relayed)
    print(f"\nagain: nox -s chaos -- -k repeated --chaos-seed {chaos_seed} --faults {faults}")
    work = Workload(chaos_seed, tmp_path, list(relayed.hosts))
    start_s = time.monotonic()
    while sum((done := relay.spoil(**SPOILT)).values()) < REPETITIONS_PER_FAULT * faults:
        assert time.monotonic() < start_s + 60 + PER_FAULT_S * faults, "too slow to go on"
        work.run_once()
    work.finish()
    relay.spoil()
    print(
        f"{work.graphs} graphs, {work.values} values compared, {done}, longest wait"
        f" {work.longest_s:.1f} s, {time.monotonic() - start_s:.0f} s"
    )
    assert all(done[kind] for kind in ("again", "late"))
    del work
    gc.collect()
    assert_settled(relayed.cluster, base, new_work_s)
    assert_ends(relayed.cluster)


@skate.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class Diary:
    """Notes each call that begins, where it can be read whatever becomes of the answers."""

    def __init__(self, path: str) -> None:
        self.path = path

    def note(self, number: int) -> int:
        with open(self.path, "a") as file:
            file.write(f"{number}\n")
        return number


class Lossy:
    """Work whose every value must be right, and every error a typed one.

    Tasks may start once, and calls of an actor on each node, which does not die, run in order and
    at most once, over all the connections that break meanwhile.
    """

    def __init__(self, seed: int, folder: Path, node_ids: Iterable[str]) -> None:
        self.values = 0
        self.errors: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._path = folder / "starts"
        self._path.touch()
        self._returned: list[int] = []
        self._submitted = 0
        self._diaries = {folder / node_id: node_id for node_id in node_ids}
        self._actors = [
            Diary.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(one, soft=False)
            ).remote(str(path))
            for path, one in self._diaries.items()
        ]
        for path in self._diaries:
            path.touch()
        self._noted: list[set[int]] = [set() for _ in self._actors]

    def run_once(self) -> None:
        """A graph and some tasks that may start once."""
        graph = self._rng.randrange(1 << 30)
        steps = without_calls(graphs.make_graph(graph))
        refs, _ = graphs.submit(graph, steps)
        numbers = range(self._submitted, self._submitted + TASKS)
        tasks = [started_once.remote(str(self._path), number) for number in numbers]
        self._submitted += TASKS
        calls = [[actor.note.remote(number) for number in numbers] for actor in self._actors]
        for noted, made in zip(self._noted, calls, strict=True):
            values = [self._value_of(lambda call=call: get(call)) for call in made]  # type: ignore[misc]
            assert all(
                value in (None, number) for value, number in zip(values, numbers, strict=True)
            )
            noted.update(value for value in values if value is not None)
        for number, task in zip(numbers, tasks, strict=True):
            if (value := self._value_of(lambda task=task: get(task))) is not None:  # type: ignore[misc]
                assert value == number * number
                self._returned.append(number)
        expected = graphs.run_in_sequence(graph, steps)
        for number, ref in refs.items():
            digest = self._value_of(lambda ref=ref: graphs.digest_of(get(ref), get))  # type: ignore[misc]
            assert digest in (None, expected[number]), f"graph {graph}, step {number} is wrong"

    def check_starts(self) -> None:
        """No task has started twice, and those that returned have started."""
        starts = Counter(int(line) for line in self._path.read_text().splitlines())
        assert [number for number, count in starts.items() if count > 1] == []
        assert [number for number in self._returned if not starts[number]] == []
        for path, noted in zip(self._diaries, self._noted, strict=True):
            diary = [int(line) for line in path.read_text().splitlines()]
            assert diary == sorted(set(diary)), "calls ran twice or out of order"
            assert noted <= set(diary)
        self._actors.clear()

    def _value_of(self, get_it: Callable[[], Any]) -> Any:
        """None for a typed error that is not one of time."""
        try:
            value = get_it()
        except GetTimeoutError:
            raise
        except SkateError as error:
            self.errors[type(error).__name__] += 1
            return None
        self.values += 1
        return value


def get(refs: Any) -> Any:
    return skate.get(refs, timeout=GET_S)


@pytest.mark.invariant("I1", "I3", "I7", "I9")
def test_lost_messages_and_broken_lines_give_no_wrong_value_and_no_second_start(
    relayed: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(relayed.cluster)
    relay = relay_of(relayed)
    losses = max(1, faults // FAULTS_PER_LOSS)
    print(f"\nagain: nox -s chaos -- -k lost --chaos-seed {chaos_seed} --faults {faults}")
    work = Lossy(chaos_seed, tmp_path, list(relayed.hosts))
    start_s = time.monotonic()
    while (done := relay.spoil(**LOSSY)).get("lost", 0) + done.get("broken", 0) < losses:
        assert time.monotonic() < start_s + 60 + PER_LOSS_S * losses, "too slow to go on"
        work.run_once()
    relay.spoil()
    print(
        f"{work.values} values compared, {done}, errors {dict(work.errors)},"
        f" {time.monotonic() - start_s:.0f} s"
    )
    work.check_starts()
    del work
    for seed in range(chaos_seed, chaos_seed + 3):  # all is well again
        steps = graphs.make_graph(seed)
        refs, actor = graphs.submit(seed, steps)
        check_graph(seed, steps, refs, get)
        del refs, actor
    gc.collect()
    assert_settled(relayed.cluster, base, new_work_s)
    assert_ends(relayed.cluster)
