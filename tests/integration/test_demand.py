"""What a cluster's work waits for, as the GCS sums it up and ``skate status`` shows it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import skate
from skate.cluster_utils import Cluster
from skate.util.placement_group import placement_group, remove_placement_group
from skate.util.scheduling_strategies import In, NodeLabelSchedulingStrategy
from skate_cluster.cli import cli
from tests.waiting import wait_for

WAIT_S = 30.0

pytestmark = [pytest.mark.surface("K3"), pytest.mark.surface("Z2"), pytest.mark.surface("P16")]


def status(cluster: Cluster, *arguments: str) -> str:
    command = ["status", "--address", cluster.address, *arguments]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    return result.stdout


def demands(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(cluster, "--format", "json"))["demands"]
    return found


@skate.remote
def hold(folder: str) -> None:
    Path(folder, "begun").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)


@skate.remote
def nothing() -> None:
    pass


@skate.remote(num_cpus=1)
class Idle:
    def there(self) -> bool:
        return True


def test_demand_names_what_waits_and_goes_when_it_is_served(nodes: Cluster, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=1)
    nodes.connect()
    held = hold.remote(str(tmp_path))
    wait_for(Path(tmp_path, "begun").exists, "the CPU is taken")
    assert demands(nodes)["shapes"] == []
    waiting = [nothing.options(num_cpus=0.5).remote() for _ in range(50)]
    actor = Idle.remote()
    zone = NodeLabelSchedulingStrategy(hard={"zone": In("z")})
    never = nothing.options(num_cpus=1, scheduling_strategy=zone).remote()
    group = placement_group([{"CPU": 1}, {"CPU": 1}, {"GPU": 1}])

    def all_are_seen() -> dict[str, Any] | None:
        found = demands(nodes)
        counts = [(one["tasks"], one["actors"]) for one in found["shapes"]]
        return found if sorted(counts) == [(0, 1), (1, 0), (50, 0)] and found["groups"] else None

    found = wait_for(all_are_seen, "tasks, actor and group are demand")
    by_count = {(one["tasks"], one["actors"]): one for one in found["shapes"]}
    assert by_count[50, 0]["resources"] == {"CPU": 0.5}
    assert not by_count[50, 0]["is_infeasible"]
    assert not by_count[0, 1]["is_infeasible"]
    assert by_count[1, 0]["where"] == "where zone is z"
    assert by_count[1, 0]["is_infeasible"]
    (waits,) = found["groups"]
    assert (waits["count"], waits["strategy"], waits["is_infeasible"]) == (1, "PACK", True)
    assert sorted((kind["count"], *kind["resources"]) for kind in waits["bundles"]) == [
        (1, "GPU"),
        (2, "CPU"),
    ]
    text = status(nodes)
    assert re.search(r"50 tasks +CPU 0.5\n", text)
    assert re.search(r"1 task +CPU 1 +where zone is z +no live node can ever hold one", text)
    assert re.search(r"1 placement group +PACK of .*2 x \(CPU 1\)", text)

    Path(tmp_path, "go").touch()
    skate.get([held, *waiting, actor.there.remote()], timeout=WAIT_S)
    skate.cancel(never)
    remove_placement_group(group)
    wait_for(
        lambda: not demands(nodes)["shapes"] and not demands(nodes)["groups"], "all was served"
    )


@pytest.mark.surface("I9")
def test_demand_of_two_nodes_is_summed_and_goes_with_their_driver(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    nodes.connect()
    waiting = [nothing.options(resources={"nowhere": 1}).remote() for _ in range(2)]

    def counted() -> bool:
        shapes = demands(nodes)["shapes"]
        return [(one["tasks"], one["is_infeasible"]) for one in shapes] == [(2, True)]

    wait_for(counted, "each request is counted once")
    del waiting
    skate.shutdown()
    wait_for(lambda: demands(nodes)["shapes"] == [], "the driver's demand went with it")
