"""``skate status`` against real gRPC servers that answer from a table."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from skate_cluster.cli import cli
from skate_rpc.gen.skate.v1 import (
    common_pb2,
    gcs_pb2,
    gcs_pb2_grpc,
    raylet_pb2,
    raylet_pb2_grpc,
)
from skate_rpc.grpc_server import SecureServer
from skate_rpc.tokens import generate_token, write_token_file


class Nodes(gcs_pb2_grpc.NodeServiceServicer):
    def __init__(self) -> None:
        self.rows: list[gcs_pb2.NodeInfo] = []

    async def List(self, request: Any, context: Any) -> gcs_pb2.ListNodesReply:  # noqa: N802
        return gcs_pb2.ListNodesReply(nodes=self.rows)

    async def ListDemands(self, request: Any, context: Any) -> Any:  # noqa: N802
        zone = gcs_pb2.LabelExpression(
            key="zone", operator=gcs_pb2.LabelExpression.OPERATOR_IN, values=["a"]
        )
        task = gcs_pb2.PendingDemand(
            shape=common_pb2.ResourceSet(amounts={"CPU": 20000}),
            count=4,
            backlog=96,
            strategy=gcs_pb2.SchedulingStrategy(
                selectors=[gcs_pb2.LabelSelector(expressions=[zone])]
            ),
        )
        return gcs_pb2.ListDemandsReply(demands=[task])


class Groups(gcs_pb2_grpc.PlacementGroupServiceServicer):
    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        needs = common_pb2.ResourceSet(amounts={"CPU": 990000})
        waiting = gcs_pb2.PlacementGroupInfo(
            spec=gcs_pb2.PlacementGroupSpec(
                group_id=b"\x09", strategy="PACK", bundles=[gcs_pb2.Bundle(resources=needs)]
            ),
            state=gcs_pb2.PLACEMENT_GROUP_STATE_PENDING,
            node_ids=[b""],
            pending_reason="no node has 99 CPUs",
        )
        return gcs_pb2.ListPlacementGroupsReply(groups=[waiting])


class Raylet(raylet_pb2_grpc.RayletServiceServicer):
    async def Status(self, request: Any, context: Any) -> raylet_pb2.NodeStatusReply:  # noqa: N802
        return raylet_pb2.NodeStatusReply(
            node=gcs_pb2.NodeInfo(
                available=common_pb2.ResourceSet(amounts={"CPU": 5000, "memory": 1 << 40})
            ),
            leases=[
                raylet_pb2.LeaseInfo(
                    lease_id=b"\x01",
                    worker_pid=77,
                    resources=common_pb2.ResourceSet(amounts={"CPU": 15000}),
                )
            ],
            pending=[
                raylet_pb2.PendingLease(
                    resources=common_pb2.ResourceSet(amounts={"CPU": 20000}),
                    reason="CPU 2 wanted, 0.5 free",
                    waiting_s=3.0,
                )
            ],
            workers_total=1,
            store_capacity_bytes=1 << 20,
        )


class Cluster:
    """One GCS and one raylet on a loop of their own."""

    def __init__(self, folder: str) -> None:
        self.token = generate_token()
        self.token_file = f"{folder}/token"
        write_token_file(self.token_file, self.token)
        self.nodes = Nodes()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.address = self.run(self._start(folder))

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def _start(self, folder: str) -> str:
        self.gcs = SecureServer(self.token)
        self.gcs.add(gcs_pb2_grpc.add_NodeServiceServicer_to_server, self.nodes)
        self.gcs.add(gcs_pb2_grpc.add_PlacementGroupServiceServicer_to_server, Groups())
        self.raylet = SecureServer(self.token)
        self.raylet.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, Raylet())
        self.nodes.rows = [
            row(b"\x01", await self.raylet.start(f"unix:{folder}/raylet.sock")),
            row(b"\x02", f"unix:{folder}/nobody.sock"),
            row(b"\x03", "", gcs_pb2.NodeInfo.STATE_DEAD),
        ]
        return await self.gcs.start("127.0.0.1:0")

    def close(self) -> None:
        self.run(self.gcs.stop(0))
        self.run(self.raylet.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def row(
    node_id: bytes,
    endpoint: str,
    state: gcs_pb2.NodeInfo.State = gcs_pb2.NodeInfo.STATE_ALIVE,
) -> gcs_pb2.NodeInfo:
    return gcs_pb2.NodeInfo(
        node_id=node_id,
        hostname="box",
        ip_address="127.0.0.1",
        raylet_endpoint=endpoint,
        is_head=node_id == b"\x01",
        total=common_pb2.ResourceSet(amounts={"CPU": 20000, "memory": 1 << 40}),
        available=common_pb2.ResourceSet(amounts={"CPU": 20000, "memory": 1 << 40}),
        state=state,
        death_cause=common_pb2.DeathCause(message="silent for 10 s"),
    )


@pytest.fixture
def cluster(temp_dir: str) -> Iterator[Cluster]:
    made = Cluster(temp_dir)
    yield made
    made.close()


def status(cluster: Cluster, *arguments: str) -> Result:
    return CliRunner().invoke(
        cli,
        ["status", "--address", cluster.address, "--token-file", cluster.token_file, *arguments],
    )


def test_status_json_has_a_schema_and_live_amounts(cluster: Cluster) -> None:
    result = status(cluster, "--format", "json", "--timeout", "1")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["schema"] == "skate.status/1"
    assert report["resources"]["CPU"] == {"used": 1.5, "total": 4.0}
    head, silent, dead = report["nodes"]
    assert head["pending"][0]["reason"] == "CPU 2 wanted, 0.5 free"
    assert head["leases"][0]["worker_pid"] == 77
    assert silent["problem"]
    assert not dead["is_alive"]
    (group,) = report["placement_groups"]
    assert (group["state"], group["bundles"]) == ("PENDING", [{"CPU": 99.0}])
    (shape,) = report["demands"]["shapes"]
    assert (shape["tasks"], shape["resources"]) == (100, {"CPU": 2.0})
    assert cluster.token not in result.output


def test_status_table_shows_pending_reasons_and_silent_nodes(cluster: Cluster) -> None:
    result = status(cluster, "-v", "--timeout", "1")
    assert result.exit_code == 0
    assert "CPU 2 wanted, 0.5 free" in result.output
    assert "no answer" in result.output
    assert "no node has 99 CPUs" in result.output
    assert re.search(r"100 tasks +CPU 2 +where zone is a", result.output)
    assert "dead (silent for 10 s)" in result.output


def test_status_with_a_wrong_token_exits_1(cluster: Cluster, temp_dir: str) -> None:
    cluster.token_file = f"{temp_dir}/wrong"
    write_token_file(cluster.token_file, generate_token())
    result = status(cluster)
    assert result.exit_code == 1
    assert "token" in result.output


def test_status_of_an_address_where_nobody_listens_exits_3(temp_dir: str) -> None:
    token_file = str(Path(temp_dir, "token"))
    write_token_file(token_file, generate_token())
    result = CliRunner().invoke(
        cli,
        [
            *("status", "--address", f"unix:{temp_dir}/none.sock"),
            *("--token-file", token_file, "--timeout", "0.5"),
        ],
    )
    assert result.exit_code == 3
    assert result.output.startswith("Error: ")
