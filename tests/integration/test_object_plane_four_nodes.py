"""Objects among four nodes and the driver's: who serves whom, chains of borrowers, deaths, disk."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import OwnerDiedError
from skate.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from skate_node import RunningNode
from skate_worker.current import require_core
from tests.namespaces import Network, why_not
from tests.waiting import wait_for

WAIT_S = 30.0
OWNER_DEATH_S = 5.0  # until everybody who needs its objects is told
FREED_S = 10.0
LARGE = 200_000  # numbers of 8 bytes
MIB = 1 << 20
PLACES = ("one", "two", "three", "four")

# Workers can not import this module: pytest made it from a path.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Nodes:
    """A head with the driver, and four nodes with a resource of their own."""

    def __init__(self, **node_args: Any) -> None:
        args = {"num_cpus": 2, "metrics_export_port": 0, **node_args}
        self.cluster = Cluster(initialize_head=True, connect=True, head_node_args=args)
        assert self.cluster.head_node is not None
        self.head = self.cluster.head_node
        self.at = {name: self.cluster.add_node(resources={name: 10}, **args) for name in PLACES}
        self.cluster.wait_for_nodes()

    def close(self) -> None:
        skate.shutdown()
        self.cluster.shutdown()

    def all(self) -> list[RunningNode]:
        return [self.head, *self.at.values()]

    def served_bytes(self, node: RunningNode) -> int:
        return _counter(node, "skate_object_served_bytes")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """For tests that leave all nodes alive; what was served before is there."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="sk-") as root:
        patch.setenv("SKATE_TMPDIR", root)
        made = Nodes()
        yield made
        made.close()


@pytest.fixture
def alone(nodes: Nodes) -> Iterator[None]:
    """Afterwards this process is not connected to the nodes that others share."""
    skate.shutdown()
    yield
    skate.init(nodes.cluster.address)


def _counter(node: RunningNode, family: str) -> int:
    request = urllib.request.Request(
        f"http://{node.metrics_endpoint.removeprefix('tcp:')}/metrics",
        headers={"Authorization": f"Bearer {node.token}"},
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        for found in text_string_to_metric_families(response.read().decode()):
            if found.name == family:
                return int(next(s.value for s in found.samples if s.name.endswith("_total")))
    return 0


def stored_on(object_id: str) -> set[str]:
    """The nodes whose stores have the object, in memory or on disk."""
    return {
        report.node_id.hex()
        for report in require_core().list_objects(10.0)
        for item in report.stored
        if item.object_id.hex() == object_id
    }


def wait_for_file(path: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not Path(path).exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@skate.remote
def slow_array(go: str) -> Any:
    wait_for_file(go)
    return np.ones(LARGE)


@skate.remote
class Person:
    """Makes, keeps, passes on and reads objects on its node."""

    def __init__(self) -> None:
        self.kept: Any = None

    def pid(self) -> int:
        return os.getpid()

    def put(self, count: int, size: int = LARGE) -> list[Any]:
        self.kept = [skate.put(np.full(size, number)) for number in range(count)]
        return list(self.kept)

    def keep(self, refs: list[Any]) -> int:
        self.kept = refs
        return len(refs)

    def pass_on(self, other: Any) -> Any:
        return skate.get(other.keep.remote(self.kept), timeout=WAIT_S)

    def make_elsewhere(self, place: str, go: str) -> list[Any]:
        """A value that this process owns and that lies on another node."""
        self.kept = [slow_array.options(resources={place: 1}).remote(go)]
        return list(self.kept)

    def drop(self) -> None:
        self.kept = None

    def total(self) -> int:
        return sum(int(values.sum()) for values in skate.get(self.kept, timeout=WAIT_S))

    def last_numbers(self) -> list[int]:
        return [int(skate.get(ref, timeout=WAIT_S)[-1]) for ref in self.kept]

    def error_of_get(self) -> tuple[str, str, float]:
        """The class and text of what a get raises, and after how long."""
        started_s = time.monotonic()
        try:
            skate.get(self.kept, timeout=WAIT_S)
        except Exception as error:  # noqa: BLE001  what it is, is the question
            return type(error).__name__, str(error), time.monotonic() - started_s
        return "", "", 0.0

    def total_of(self, values: Any) -> int:
        return int(values.sum())


def on(place: str) -> Any:
    return Person.options(resources={place: 1}).remote()


def get(ref: Any) -> Any:
    return skate.get(ref, timeout=WAIT_S)


# ---- who serves whom ----


def test_broadcast_fans_out_and_the_first_holder_serves_half_at_most(nodes: Nodes) -> None:
    values = np.random.default_rng(1).integers(0, 9, 4 * MIB)
    ref = skate.put(values)
    people = [on(place) for place in PLACES]
    get([one.pid.remote() for one in people])
    before = [nodes.served_bytes(node) for node in nodes.all()]
    totals = get([one.total_of.remote(ref) for one in people])
    assert totals == [int(values.sum())] * 4
    object_id = ref.hex()
    assert stored_on(object_id) == {str(node.node_id) for node in nodes.all()}

    def served() -> list[int]:
        return [
            nodes.served_bytes(node) - was for node, was in zip(nodes.all(), before, strict=True)
        ]

    size_bytes = get_size(object_id)
    wait_for(lambda: sum(served()) >= 4 * size_bytes)
    assert sum(served()) == 4 * size_bytes, "each node got it once"
    assert served()[0] <= 2 * size_bytes, "the others passed it on"

    del ref
    wait_for(lambda: not stored_on(object_id), within_s=FREED_S)


def get_size(object_id: str) -> int:
    return next(
        item.size_bytes
        for report in require_core().list_objects(10.0)
        for item in report.stored
        if item.object_id.hex() == object_id
    )


def test_object_made_on_one_node_and_passed_by_another_goes_straight_to_the_third(
    nodes: Nodes,
) -> None:
    maker, middle, reader = on("one"), on("two"), on("three")
    before = nodes.served_bytes(nodes.at["one"])
    made = get(maker.put.remote(1))
    object_id = made[0].hex()
    get(middle.keep.remote(made))
    del made
    assert get(middle.pass_on.remote(reader)) == 1
    get(maker.drop.remote())
    assert get(reader.last_numbers.remote()) == [0]
    places = {nodes.at[name].node_id for name in ("one", "three")}
    assert stored_on(object_id) == {str(node_id) for node_id in places}
    size_bytes = get_size(object_id)
    wait_for(lambda: nodes.served_bytes(nodes.at["one"]) - before == size_bytes)
    get([middle.drop.remote(), reader.drop.remote()])
    wait_for(lambda: not stored_on(object_id), within_s=FREED_S)


# ---- chains of borrowers ----


@pytest.mark.invariant("I6")
@pytest.mark.parametrize("how", ["drop", "die"])
def test_last_of_a_chain_over_three_nodes_holds_whatever_those_before_it_do(
    nodes: Nodes, how: str
) -> None:
    chain = [on(place) for place in ("one", "two", "three")]
    ref = skate.put(np.ones(LARGE))
    object_id = ref.hex()
    get(chain[0].keep.remote([ref]))
    del ref
    get(chain[0].pass_on.remote(chain[1]))
    get(chain[1].pass_on.remote(chain[2]))
    for one in chain[:2]:
        if how == "drop":
            get(one.drop.remote())
        else:
            os.kill(get(one.pid.remote()), signal.SIGKILL)
    assert get(chain[2].total.remote()) == LARGE
    time_to_forget_s = time.monotonic() + 3  # longer than an owner keeps what the dead ones held
    wait_for(lambda: time.monotonic() > time_to_forget_s)
    assert get(chain[2].total.remote()) == LARGE
    get(chain[2].drop.remote())
    wait_for(lambda: not stored_on(object_id), within_s=FREED_S)


def test_bytes_held_by_a_borrower_that_is_killed_are_freed(nodes: Nodes) -> None:
    borrower = on("four")
    ref = skate.put(np.ones(LARGE))
    object_id = ref.hex()
    get(borrower.keep.remote([ref]))
    assert get(borrower.total.remote()) == LARGE
    del ref
    pid = get(borrower.pid.remote())
    assert len(stored_on(object_id)) == 2
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not stored_on(object_id), within_s=FREED_S)


# ---- the death of an owner ----


@pytest.mark.invariant("I5")
def test_owner_that_is_killed_is_named_to_who_waits_who_asks_later_and_who_pulls(
    nodes: Nodes, tmp_path: Path
) -> None:
    owner, waiting, later = on("two"), on("three"), on("four")
    refs = get(owner.make_elsewhere.remote("one", str(tmp_path / "never")))
    waiting.keep.remote(refs)
    get(later.keep.remote(refs))
    answer = waiting.error_of_get.remote()
    pid = get(owner.pid.remote())
    wait_for(lambda: bool(answer_is_pending(answer)))
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    kind, text, _ = get(answer)
    assert time.monotonic() - killed_s < OWNER_DEATH_S
    assert kind == "OwnerDiedError"
    assert f"pid={pid}" in text
    assert str(nodes.at["two"].node_id) in text
    kind, text, after_s = get(later.error_of_get.remote())
    assert (kind, f"pid={pid}" in text) == ("OwnerDiedError", True)
    assert after_s < OWNER_DEATH_S
    with pytest.raises(OwnerDiedError, match=f"pid={pid}"):
        skate.get(refs[0], timeout=WAIT_S)


def answer_is_pending(ref: Any) -> bool:
    return not skate.wait([ref], timeout=0.3)[0]


@pytest.mark.invariant("I5")
def test_owner_that_is_killed_while_its_object_travels_ends_the_pull_and_frees_the_bytes(
    nodes: Nodes, tmp_path: Path
) -> None:
    owner, reader = on("two"), on("three")
    go = tmp_path / "go"
    go.touch()
    refs = get(owner.make_elsewhere.remote("one", str(go)))
    skate.wait(refs, timeout=WAIT_S, fetch_local=False)
    get(reader.keep.remote(refs))
    object_id = refs[0].hex()
    pid = get(owner.pid.remote())
    source = nodes.at["one"]
    assert stored_on(object_id) == {str(source.node_id)}
    os.kill(source.pid, signal.SIGSTOP)  # so that the pull certainly is under way
    try:
        answer = reader.error_of_get.remote()
        assert answer_is_pending(answer)
        killed_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        kind, text, _ = get(answer)
        assert time.monotonic() - killed_s < OWNER_DEATH_S
    finally:
        os.kill(source.pid, signal.SIGCONT)
    assert kind == "OwnerDiedError"
    assert f"pid={pid}" in text
    wait_for(lambda: not stored_on(object_id), within_s=FREED_S)


# ---- what is on disk, and what is lost ----


@pytest.mark.usefixtures("alone")
@pytest.mark.timeout(120)
def test_objects_spilled_on_one_node_are_read_from_others(session_root: Path) -> None:
    nodes = Nodes(object_store_memory=80 * MIB)
    try:
        maker, readers = on("two"), [on("three"), on("four")]
        refs = get(maker.put.remote(14, MIB))
        reports = {r.node_id.hex(): r for r in require_core().list_objects(10.0)}
        at_maker = reports[str(nodes.at["two"].node_id)].stored
        assert sum(item.is_spilled for item in at_maker) > 3
        for one in readers:
            get(one.keep.remote(refs))
        object_ids = {ref.hex() for ref in refs}
        del refs
        # The readers' stores hold fewer than all: they drop copies, and read some twice.
        assert get([one.last_numbers.remote() for one in readers]) == [list(range(14))] * 2
        assert get(maker.last_numbers.remote()) == list(range(14))
        get([one.drop.remote() for one in (maker, *readers)])
        wait_for(
            lambda: (
                not any(
                    item.object_id.hex() in object_ids
                    for report in require_core().list_objects(10.0)
                    for item in report.stored
                )
            ),
            FREED_S,
        )
    finally:
        nodes.close()


@skate.remote(max_retries=4)
def one_more(values: Any, log: str) -> Any:
    with Path(log).open("a") as file:
        file.write(f"{int(values[0])}\n")
    return values + 1


@pytest.mark.invariant("I2")
@pytest.mark.usefixtures("alone")
@pytest.mark.timeout(120)
def test_chain_of_results_over_nodes_that_die_is_made_again_from_its_start(
    session_root: Path, tmp_path: Path
) -> None:
    nodes = Nodes()
    try:
        lose_a_chain(nodes, tmp_path)
    finally:
        nodes.close()


def lose_a_chain(nodes: Nodes, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    start = skate.put(np.zeros(LARGE))
    ref = start
    for place in ("one", "two", "three"):
        affinity = NodeAffinitySchedulingStrategy(str(nodes.at[place].node_id), soft=True)
        ref = one_more.options(scheduling_strategy=affinity).remote(ref, log)
    skate.wait([ref], timeout=WAIT_S, fetch_local=False)
    assert stored_on(ref.hex()) == {str(nodes.at["three"].node_id)}
    for place in ("one", "two", "three"):
        nodes.cluster.remove_node(nodes.at.pop(place), allow_graceful=False)
    reader = on("four")
    assert get(reader.total_of.remote(ref)) == 3 * LARGE
    ran = [int(line) for line in Path(log).read_text().split()]
    assert sorted(ran) == [0, 0, 1, 1, 2, 2], "each ran again once"


# ---- over a network ----

MAKER = """
import hashlib, json, sys, numpy, skate
skate.init(address=sys.argv[1])

@skate.remote(resources={"far": 1})
def make():
    return numpy.random.default_rng(5).integers(0, 256, 120_000_000, dtype=numpy.uint8)

@skate.remote(resources={"farther": 1})
def digest(values):
    return hashlib.sha256(values).hexdigest()

ref = make.remote()
here = hashlib.sha256(skate.get(ref, timeout=60)).hexdigest()
print(json.dumps([here, skate.get(digest.remote(ref), timeout=60)]))
"""


@pytest.mark.timeout(120)
def test_return_of_120_mb_crosses_from_host_to_host(session_root: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with Network(3) as network:
        head = network.start_head(0)
        network.start_node(1, head, resources={"far": 1})
        network.start_node(2, head, resources={"farther": 1})
        with network.entered(0):
            driver = subprocess.Popen(
                [sys.executable, "-c", MAKER, head.gcs_endpoint],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        try:
            output, errors = driver.communicate(timeout=100)
        finally:
            driver.kill()
            driver.wait()
        assert driver.returncode == 0, errors.decode()[-3000:]
    values = np.random.default_rng(5).integers(0, 256, 120_000_000, dtype=np.uint8)
    assert json.loads(output.decode().splitlines()[-1]) == [hashlib.sha256(values).hexdigest()] * 2
