"""A real GCS on a real loop, and a raylet that only speaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace

import pytest

from skate_gcs import GcsConfig, GcsServer
from skate_gcs.redis_for_tests import OwnRedisServer, is_redis_installed
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_rpc.grpc_channel import open_channel
from skate_rpc.grpc_server import SecureServer

TOKEN = "5c" * 32
TIMEOUT_S = 20.0


class FakeRaylet(raylet_pb2_grpc.RayletServiceServicer):
    """Accepts every actor and reports it started, unless told otherwise."""

    def __init__(self, client, endpoint):
        self.node_id = os.urandom(28)
        self.client = client
        self.endpoint = endpoint
        self.refusal = ""
        self.reports = True
        self.starts = []
        self.kills = []
        self.drains = []
        self.drain_rejection = ""
        self.moves = []
        self.server = SecureServer(TOKEN)
        self.server.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, self)
        self.tasks = set()

    async def start(self, cpus=4):
        await self.server.start(self.endpoint)
        total = common_pb2.ResourceSet(amounts={"CPU": cpus * 10_000})
        node = gcs_pb2.NodeInfo(
            node_id=self.node_id, raylet_endpoint=self.endpoint, total=total, available=total
        )
        await self.client.nodes.register(node)
        return self

    async def stop(self):
        await asyncio.gather(*self.tasks)
        await self.server.stop(0)

    async def StartActor(self, request, context):  # noqa: N802  the protocol's name
        self.starts.append(request)
        if self.refusal:
            return raylet_pb2.StartActorReply(accepted=False, refusal=self.refusal)
        if self.reports:
            task = asyncio.create_task(self.report_started(request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return raylet_pb2.StartActorReply(accepted=True)

    async def report_started(self, request):
        address = common_pb2.Address(
            node_id=self.node_id, worker_id=os.urandom(28), endpoint="unix:/worker"
        )
        return await self.client.actors.report_started(
            request.spec.actor_id, request.incarnation, address, 42
        )

    async def Drain(self, request, context):  # noqa: N802  the protocol's name
        self.drains.append(request.drain)
        return raylet_pb2.DrainReply(
            accepted=not self.drain_rejection, rejection=self.drain_rejection
        )

    async def MoveGcs(self, request, context):  # noqa: N802  the protocol's name
        self.moves.append(request)
        return raylet_pb2.MoveGcsReply(accepted=True)

    async def KillActor(self, request, context):  # noqa: N802  the protocol's name
        self.kills.append(request)
        return raylet_pb2.KillActorOnNodeReply()


class Harness:
    """One GCS, its client, and helpers that wait for conditions with a bound."""

    def __init__(self, folder, **config):
        self.folder = folder
        self.config = GcsConfig(
            **({"endpoint": f"unix:{folder}/gcs.sock", "token": TOKEN} | config)
        )
        self.stack = contextlib.AsyncExitStack()
        self.raylets = 0

    async def __aenter__(self):
        self.server = GcsServer(self.config)
        self.endpoint = await self.server.start()
        self.stack.push_async_callback(self.stop_server)
        self.client = self.connect()
        return self

    async def __aexit__(self, *details):
        await self.stack.aclose()

    async def stop_server(self):
        await self.server.stop(0)

    async def restart(self):
        await self.server.stop(0)
        self.server = GcsServer(replace(self.config, endpoint=self.endpoint))
        await self.server.start()

    def connect(self, token=TOKEN):
        channel = open_channel(self.endpoint, token)
        self.stack.push_async_callback(channel.close)
        return GcsClient(channel, self.endpoint)

    async def add_raylet(self, **options):
        self.raylets += 1
        raylet = FakeRaylet(self.client, f"unix:{self.folder}/raylet{self.raylets}.sock")
        self.stack.push_async_callback(raylet.stop)
        return await raylet.start(**options)

    async def add_job(self):
        driver = common_pb2.Address(worker_id=os.urandom(28))
        return await self.client.jobs.add(gcs_pb2.JobInfo(driver=driver))

    def spec(self, **fields):
        return gcs_pb2.ActorSpec(
            **(
                {
                    "actor_id": os.urandom(16),
                    "creation_task": b"secret task",
                    "owner": common_pb2.Address(worker_id=os.urandom(28)),
                }
                | fields
            )
        )

    async def until(self, condition):
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := await condition()):  # noqa: ASYNC110  over RPC there is no event
                await asyncio.sleep(0.005)
            return found

    async def until_actor(self, actor_id, state):
        async def reached():
            info = await self.client.actors.get(actor_id)
            return info if info is not None and info.state == state else None

        return await self.until(reached)


@pytest.fixture
def folder(socket_folder):
    return socket_folder


@pytest.fixture
def redis(socket_folder):
    """A Redis server of the test's own, which fsyncs before it answers."""
    if not is_redis_installed():
        pytest.skip("redis-server is not installed")
    server = OwnRedisServer(socket_folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def harness(folder):
    return lambda **config: Harness(folder, **config)


@pytest.fixture
def run():
    async def bounded(work):
        async with asyncio.timeout(TIMEOUT_S * 2):
            return await work

    return lambda work: asyncio.run(bounded(work))
