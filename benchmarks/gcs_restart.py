"""How long a cluster is without its GCS when that is killed, with many actors in its tables.

``python -m benchmarks.gcs_restart [--actors 1000] [--rounds 5] [--storage sqlite,redis]``. The GCS
runs as on a head of ``skate start``, in a process of its own that its daemon's keeper starts again;
a raylet is played by this process, so that a thousand live actors cost no thousand processes. Each
round kills the GCS with SIGKILL and makes two calls at once, as a driver would whose raylet passes
them on: *write*, a value stored under a new key, and *actor*, a new actor registered. The time runs
from the signal to the acknowledgement. Aim (issue of many nodes): under 2 s with 1,000 actors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine_facts import machine_facts
from skate_gcs import GcsConfig
from skate_gcs.redis_for_tests import OwnRedisServer, is_redis_installed
from skate_node.gcs_process import SETTLED_S, GcsProcess
from skate_rpc.clients import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_rpc.grpc_channel import open_channel
from skate_rpc.grpc_server import SecureServer
from skate_rpc.tokens import generate_token

STORAGES = ("sqlite", "redis")
ROWS = ("write", "actor")
AIM_S = 2.0
SETTLE_S = SETTLED_S + 0.5  # deaths in quick succession are answered with growing pauses
REGISTRATIONS_MAX = 64
RESULTS = Path(__file__).resolve().parent / "results"

Samples = dict[str, list[float]]
"""Seconds by row."""


class PlayedRaylet(raylet_pb2_grpc.RayletServiceServicer):
    """Takes every actor and reports it alive, as a raylet does."""

    def __init__(self, client: GcsClient) -> None:
        self.node_id = os.urandom(28)
        self._client = client
        self._reports: set[asyncio.Task[bool]] = set()
        self.alive = 0

    async def StartActor(self, request: Any, context: Any) -> Any:  # noqa: N802  gRPC's name
        """Accept it, and report soon."""
        task = asyncio.create_task(self._report(request))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)
        return raylet_pb2.StartActorReply(accepted=True)

    async def _report(self, request: Any) -> bool:
        address = common_pb2.Address(
            node_id=self.node_id, worker_id=os.urandom(28), endpoint="unix:/played"
        )
        actor_id = request.spec.actor_id
        accepted = await self._client.actors.report_started(
            actor_id, request.incarnation, address, 1
        )
        self.alive += accepted
        return accepted

    async def settle(self) -> None:
        """Wait for the reports that are under way; the GCS is there to take them."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=SETTLE_S)

    async def beat(self) -> None:
        """The heartbeat, for as long as the task lives."""
        version = 0
        while True:
            version += 1
            report = gcs_pb2.ReportResourcesRequest(node_id=self.node_id, version=version)
            await self._client.nodes.report_resources(report, timeout_s=60.0)
            await asyncio.sleep(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 2 when nothing could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gcs_restart")
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--storage", default=",".join(STORAGES))
    parser.add_argument("--save", action="store_true", help="keep the table under results/")
    parsed = parser.parse_args(arguments)
    storages = parsed.storage.split(",")
    if unknown := [name for name in storages if name not in STORAGES]:
        print(f"gcs_restart: unknown storages {', '.join(unknown)}", file=sys.stderr)
        return 2
    if "redis" in storages and not is_redis_installed():
        print("gcs_restart: redis-server is not installed", file=sys.stderr)
        return 2
    samples = {name: measure(name, parsed.actors, parsed.rounds) for name in storages}
    text = render(samples, parsed.actors)
    print(text)
    if parsed.save:
        path = RESULTS / f"{time.strftime('%Y-%m-%d')}-gcs-restart"
        document = {"actors": parsed.actors, "seconds": samples}
        path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
        path.with_suffix(".md").write_text(text + "\n")
    return 0


def measure(storage: str, actors: int, rounds: int) -> Samples:
    """Seconds of each outage on this storage."""
    with tempfile.TemporaryDirectory(prefix="gcs-") as folder:
        Path(folder, "logs").mkdir()
        server = OwnRedisServer(folder) if storage == "redis" else None
        url = f"sqlite:{folder}/gcs.sqlite"
        if server is not None:
            server.start()
            url = server.url
        try:
            return asyncio.run(_measure(folder, url, actors, rounds))
        finally:
            if server is not None:
                server.kill()


async def _measure(folder: str, storage: str, actors: int, rounds: int) -> Samples:
    token = generate_token()
    gcs = GcsProcess(GcsConfig(f"unix:{folder}/gcs.sock", token, storage), folder)
    endpoint = await gcs.start()
    channel = open_channel(endpoint, token)
    client = GcsClient(channel, endpoint)
    raylet = PlayedRaylet(client)  # type: ignore[abstract]  # it is asked nothing else
    played = SecureServer(token)
    played.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, raylet)
    raylet_endpoint = await played.start(f"unix:{folder}/raylet.sock")
    total = common_pb2.ResourceSet(amounts={"CPU": 10_000 * (actors + rounds)})
    node = gcs_pb2.NodeInfo(
        node_id=raylet.node_id, raylet_endpoint=raylet_endpoint, total=total, available=total
    )
    await client.nodes.register(node)
    beat = asyncio.create_task(raylet.beat())
    turns = asyncio.Semaphore(REGISTRATIONS_MAX)

    async def register() -> None:
        async with turns:
            await client.actors.register(_spec(), timeout_s=60.0)

    await asyncio.gather(*(register() for _ in range(actors)))
    samples: Samples = {row: [] for row in ROWS}
    for number in range(rounds):
        while raylet.alive < actors + number:  # noqa: ASYNC110  what other tasks count
            await asyncio.sleep(0.01)
        await asyncio.sleep(SETTLE_S)
        os.kill(gcs.pid, signal.SIGKILL)
        killed_s = time.perf_counter()

        async def timed(row: str, call: Any, since_s: float = killed_s) -> None:
            await call
            samples[row].append(time.perf_counter() - since_s)

        await asyncio.gather(
            timed("write", client.kv.put("n", b"%d" % number, b"v", timeout_s=60.0)),
            timed("actor", client.actors.register(_spec(), timeout_s=60.0)),
        )
    beat.cancel()
    await asyncio.gather(beat, return_exceptions=True)
    await raylet.settle()
    await channel.close()
    await gcs.stop(0.2)
    await played.stop(0)
    return samples


def _spec() -> gcs_pb2.ActorSpec:
    return gcs_pb2.ActorSpec(
        actor_id=os.urandom(16),
        owner=common_pb2.Address(worker_id=os.urandom(28)),
        creation_task=os.urandom(1000),
        max_restarts=1,
        placement_resources=common_pb2.ResourceSet(amounts={"CPU": 10_000}),
    )


def render(samples: dict[str, Samples], actors: int) -> str:
    """A table of medians and ranges."""
    title = f"GCS restart outage with {actors} live actors, from SIGKILL to the acknowledgement"
    lines = [
        f"{title} (aim: {AIM_S:g} s)",
        machine_facts().line(),
        "",
        "| s: median [range] | " + " | ".join(samples) + " |",
        "| --- |" + " --- |" * len(samples),
    ]
    for row in ROWS:
        cells = [
            f"{statistics.median(one[row]):.3f} [{min(one[row]):.3f}-{max(one[row]):.3f}]"
            for one in samples.values()
        ]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
