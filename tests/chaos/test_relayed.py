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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.exceptions import GetTimeoutError, SkateError
from tests.chaos import graphs
from tests.chaos.end_check import assert_ends, assert_settled, rest_of
from tests.chaos.machines import Machines, machines
from tests.chaos.relayed import RelayedNetwork
from tests.chaos.workload import GET_S, Workload, check_graph, started_once, without_calls
from tests.namespaces import why_not

HOSTS = 3
NODE_ARGS = {"num_cpus": 1, "object_store_memory": 80 << 20}
SPOILT = {"again": 0.1, "late": 0.1, "held": 0.01}
LOSSY = {"again": 0.05, "late": 0.05, "held": 0.005, "lost": 0.005, "broken": 0.005}
TASKS = 10
PER_FAULT_S = 5.0

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


@pytest.mark.invariant("I7", "I9", "I25")
def test_repeated_and_late_messages_change_nothing(
    relayed: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(relayed.cluster)
    relay = relay_of(relayed)
    print(f"\nagain: nox -s chaos -- -k repeated --chaos-seed {chaos_seed} --faults {faults}")
    work = Workload(chaos_seed, tmp_path, list(relayed.hosts))
    start_s = time.monotonic()
    while sum((done := relay.spoil(**SPOILT)).values()) < 10 * faults:
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


def outcome_of(ref: Any) -> Any:
    """The value, or the typed error."""
    try:
        return skate.get(ref, timeout=GET_S)
    except GetTimeoutError:
        raise
    except SkateError as error:
        return error


@pytest.mark.invariant("I1", "I3", "I7")
def test_lost_messages_and_broken_lines_give_no_wrong_value_and_no_second_start(
    relayed: Machines, faults: int, chaos_seed: int, new_work_s: float, tmp_path: Path
) -> None:
    base = rest_of(relayed.cluster)
    relay = relay_of(relayed)
    print(f"\nagain: nox -s chaos -- -k lost --chaos-seed {chaos_seed} --faults {faults}")
    rng = random.Random(chaos_seed)
    path = tmp_path / "starts"
    path.touch()
    values = 0
    errors: Counter[str] = Counter()
    returned: list[int] = []
    submitted = 0
    start_s = time.monotonic()
    done: dict[str, int] = {}
    while done.get("lost", 0) + done.get("broken", 0) < faults:
        assert time.monotonic() < start_s + 60 + PER_FAULT_S * faults, "too slow to go on"
        done = relay.spoil(**LOSSY)
        seed = rng.randrange(1 << 30)
        steps = without_calls(graphs.make_graph(seed))
        expected = graphs.run_in_sequence(seed, steps)
        refs, _ = graphs.submit(seed, steps)
        tasks = {
            number: started_once.remote(str(path), number)
            for number in range(submitted, submitted + TASKS)
        }
        submitted += TASKS
        for number, ref in tasks.items():
            outcome = outcome_of(ref)
            if isinstance(outcome, SkateError):
                errors[type(outcome).__name__] += 1
            else:
                assert outcome == number * number
                returned.append(number)
        for number, ref in refs.items():
            try:
                digest = graphs.digest_of(outcome_of(ref), lambda refs: skate.get(refs, timeout=GET_S))
            except (SkateError, TypeError) as error:
                errors[type(error).__name__] += 1
                continue
            assert digest == expected[number], f"graph {seed}, step {number} is wrong"
            values += 1
        del tasks, refs, ref
    relay.spoil()
    starts = Counter(int(line) for line in path.read_text().splitlines())
    assert [number for number, count in starts.items() if count > 1] == []
    assert [number for number in returned if starts[number] != 1] == []
    print(
        f"{values} values compared, {done}, errors {dict(errors)}, {time.monotonic() - start_s:.0f} s"
    )
    for _ in range(3):  # all is well again
        seed = rng.randrange(1 << 30)
        steps = graphs.make_graph(seed)
        refs, actor = graphs.submit(seed, steps)
        check_graph(seed, steps, refs, lambda refs: skate.get(refs, timeout=GET_S))
        del refs, actor
    gc.collect()
    assert_settled(relayed.cluster, base, new_work_s)
    assert_ends(relayed.cluster)
