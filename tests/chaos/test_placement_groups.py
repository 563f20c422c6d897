"""Placement groups made and removed without end while node daemons are killed with SIGKILL.

What each node holds is sampled all the time: no bundle stays for five seconds with a group that is
neither pending nor created (RELIABILITY I13), and in the end nothing is held and all is free.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

import skate
from skate.cluster_utils import Cluster
from skate.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from skate_rpc.clients import GcsClient, RayletClient
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_rpc.grpc_channel import open_channel

STALE_MAX_S = 5.0
SAMPLE_S = 0.02
WAIT_S = 30.0
FAULTS_PER_KILL = 10
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")

Bundle = tuple[bytes, bytes, int]  # node, group, index


class Watch:
    """Asks the GCS and every live node, on a thread of its own, for as long as it is open."""

    def __init__(self, gcs_endpoint: str, token: str) -> None:
        self._gcs_endpoint = gcs_endpoint
        self._token = token
        self._is_over = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.samples = 0
        self.held: set[Bundle] = set()
        self.longest_stale_s = 0.0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()

    async def _run(self) -> None:
        gcs_channel = open_channel(self._gcs_endpoint, self._token)
        gcs = GcsClient(gcs_channel)
        since_s: dict[Bundle, float] = {}
        while not self._is_over:
            rows = [n for n in await gcs.nodes.list() if n.state == gcs_pb2.NodeInfo.STATE_ALIVE]
            held: set[Bundle] = set()
            for row in rows:
                channel = open_channel(row.raylet_endpoint, self._token)
                try:
                    status = await RayletClient(channel).status(timeout_s=1.0)
                    held |= {(row.node_id, one.group_id, one.index) for one in status.bundles}
                except RpcError:
                    continue  # it was just killed
                finally:
                    await channel.close()
            rightful = {
                (node_id, info.spec.group_id, index)
                for info in await gcs.groups.list()
                for index, node_id in enumerate(info.node_ids)
            }
            now_s = time.monotonic()
            since_s = {one: since_s.get(one, now_s) for one in held - rightful}
            self.longest_stale_s = max(
                [self.longest_stale_s, *(now_s - first_s for first_s in since_s.values())]
            )
            self.held = held
            self.samples += 1
            await asyncio.sleep(SAMPLE_S)
        await gcs_channel.close()


@pytest.mark.timeout(0)  # bounded by the number of faults, each of which is
@pytest.mark.invariant("I13")
def test_killed_nodes_leave_no_bundle_behind(nodes: Cluster, faults: int, chaos_seed: int) -> None:
    rng = random.Random(chaos_seed)
    head = nodes.add_node(num_cpus=2)
    others = [nodes.add_node(num_cpus=2) for _ in range(2)]
    nodes.connect()
    groups: list[PlacementGroup] = []
    created = 0
    with Watch(nodes.gcs_address, head.token) as watch:
        for number in range(faults):
            cpus = [rng.choice((0.1, 0.5)) for _ in range(rng.randint(1, 3))]
            group = placement_group([{"CPU": amount} for amount in cpus], rng.choice(STRATEGIES))
            groups.append(group)
            if rng.random() < 0.5:
                created += group.wait(0.2)
            while len(groups) > 4 or (groups and rng.random() < 0.4):
                remove_placement_group(groups.pop(rng.randrange(len(groups))))
            if number % FAULTS_PER_KILL == FAULTS_PER_KILL - 1:
                victim = others.pop(rng.randrange(len(others)))
                nodes.remove_node(victim, allow_graceful=False)
                others.append(nodes.add_node(num_cpus=2))
        for group in groups:
            remove_placement_group(group)
        deadline_s = time.monotonic() + WAIT_S
        while watch.held or skate.available_resources().get("CPU") != 6.0:
            assert time.monotonic() < deadline_s, f"seed {chaos_seed}: {watch.held} are held"
            time.sleep(0.05)
    assert created
    assert watch.samples > faults // FAULTS_PER_KILL
    assert watch.longest_stale_s < STALE_MAX_S, f"seed {chaos_seed}"
