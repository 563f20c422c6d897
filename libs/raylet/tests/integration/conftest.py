from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from libs.raylet.tests.integration.transfer_nodes import MakeNode, nodes
from skate_raylet import Raylet, RayletConfig
from skate_raylet.zygote_process import ZygoteProcess
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import gcs_pb2, gcs_pb2_grpc
from skate_rpc.grpc_channel import open_channel
from skate_rpc.grpc_server import SecureServer
from skate_rpc.node_messages import stamp
from skate_rpc.raylet_client import RayletClient
from skate_rpc.serials import Serials
from skate_rpc.stream import open_stream

TOKEN = "0123456789abcdef" * 4
NODE_ID = os.urandom(28)  # of this test run: others may run beside it, and marks are by node
TINY_WORKER = (sys.executable, str(Path(__file__).with_name("tiny_worker.py")))
WAIT_S = 15.0


async def until(condition: Callable[[], Any], what: str = "", timeout_s: float = WAIT_S) -> Any:
    """Wait until ``condition()`` is true; returns its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited in vain: {what or condition}"
        await asyncio.sleep(0.005)


class ScriptedGcs(
    gcs_pb2_grpc.NodeServiceServicer,
    gcs_pb2_grpc.JobServiceServicer,
    gcs_pb2_grpc.ActorServiceServicer,
    gcs_pb2_grpc.PlacementGroupServiceServicer,
    gcs_pb2_grpc.WorkerServiceServicer,
    gcs_pb2_grpc.KvServiceServicer,
    gcs_pb2_grpc.EventServiceServicer,
):
    """Answers a raylet and remembers what it said."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.reports: list[Any] = []
        self.jobs: dict[bytes, Any] = {}
        self.finished: list[bytes] = []
        self.started: list[Any] = []
        self.failed: list[Any] = []
        self.dead: list[Any] = []
        self.actors: dict[bytes, Any] = {}
        self.kv: dict[tuple[str, bytes], bytes] = {}
        self.kv_gets = 0
        self.job_lists = 0
        self.unregistered: list[bytes] = []
        self.knows_node = True
        self.life = 1
        self.accepts_started = True
        self.queues: list[asyncio.Queue[Any]] = []
        self.server: SecureServer | None = None
        self.elsewhere: list[SecureServer] = []

    async def start(self) -> None:
        self.server = await self._serve(self.endpoint)

    async def serve_also(self, endpoint: str) -> None:
        """Answer at another place too, until the end of the test."""
        self.elsewhere.append(await self._serve(endpoint))

    async def _serve(self, endpoint: str) -> SecureServer:
        server = SecureServer(TOKEN)
        for name in ("Node", "Job", "Actor", "PlacementGroup", "Worker", "Kv", "Event"):
            server.add(getattr(gcs_pb2_grpc, f"add_{name}ServiceServicer_to_server"), self)
        await server.start(endpoint)
        return server

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop(0.0)

    def publish(self, event: Any) -> None:
        for queue in self.queues:
            queue.put_nowait(event)

    async def Register(self, request: Any, context: Any) -> Any:  # noqa: N802
        if isinstance(request, gcs_pb2.RegisterNodeRequest):
            return gcs_pb2.RegisterNodeReply(cluster_id="c")
        known = self.actors.get(request.spec.actor_id)
        names = {info.spec.name: info for info in self.actors.values() if info.spec.name}
        info = known or names.get(request.spec.name)
        if info is not None:
            return gcs_pb2.RegisterActorReply(info=info, created=known is not None)
        info = gcs_pb2.ActorInfo(spec=request.spec, state=gcs_pb2.ACTOR_STATE_PENDING_CREATION)
        self.actors[request.spec.actor_id] = info
        return gcs_pb2.RegisterActorReply(info=info, created=True)

    async def Unregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.unregistered.append(request.node_id)
        return gcs_pb2.UnregisterNodeReply()

    async def ReportResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.reports.append(request)
        return gcs_pb2.ReportResourcesReply(known=self.knows_node, gcs_life=self.life)

    async def Add(self, request: Any, context: Any) -> Any:  # noqa: N802
        job_id = (len(self.jobs) + 1).to_bytes(4, "big")
        self.jobs[job_id] = request.job
        return gcs_pb2.AddJobReply(job_id=job_id)

    async def Finish(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.finished.append(request.job_id)
        return gcs_pb2.FinishJobReply()

    async def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        if isinstance(request, gcs_pb2.KvGetRequest):
            self.kv_gets += 1
            value = self.kv.get((request.namespace, request.key))
            return gcs_pb2.KvGetReply(found=value is not None, value=value or b"")
        info = self.actors.get(request.actor_id)
        return gcs_pb2.GetActorReply(found=info is not None, info=info)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        if isinstance(request, gcs_pb2.ListNodesRequest):
            return gcs_pb2.ListNodesReply()
        if isinstance(request, gcs_pb2.ListPlacementGroupsRequest):
            return gcs_pb2.ListPlacementGroupsReply()
        if isinstance(request, gcs_pb2.ListJobsRequest):
            self.job_lists += 1
            jobs = [
                gcs_pb2.JobInfo(job_id=key, metadata=job.metadata) for key, job in self.jobs.items()
            ]
            return gcs_pb2.ListJobsReply(jobs=jobs)
        return gcs_pb2.ListActorsReply(actors=self.actors.values())

    async def Put(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.kv[request.namespace, request.key] = request.value
        return gcs_pb2.KvPutReply(added=True)

    async def ReportStarted(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.started.append(request)
        return gcs_pb2.ReportActorStartedReply(accepted=self.accepts_started)

    async def ReportFailed(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.failed.append(request)
        return gcs_pb2.ReportActorFailedReply()

    async def ReportDeath(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.dead.append(request.worker)
        return gcs_pb2.ReportWorkerDeathReply()

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.queues.append(queue)
        yield gcs_pb2.Event(snapshot_end=True)
        while True:
            yield await queue.get()


class Driver:
    """A driver's connection to the raylet, on the test's own loop."""

    def __init__(self, endpoint: str, **registration: Any) -> None:
        self.worker_id = os.urandom(28)
        self.got: list[Any] = []
        self.close_reason: str | None = None
        self.serials = Serials()
        self.numbers = iter(range(1, 1_000_000))
        self.connection = open_stream(
            endpoint,
            TOKEN.encode(),
            asyncio.get_running_loop(),
            incoming=node.FromRaylet,
            on_messages=lambda connection, batch: self.got.extend(batch),
            on_close=self._on_close,
        )
        self.send(
            node.RegisterProcess(self.worker_id, os.getpid(), "unix:/d", True, **registration)
        )

    def _on_close(self, connection: Any, reason: str) -> None:
        self.close_reason = reason

    def send(self, message: Any) -> None:
        self.connection.send(stamp(message, self.serials))

    def all(self, kind: type[Any], **fields: Any) -> list[Any]:
        return [
            message
            for message in self.got
            if isinstance(message, kind)
            and all(getattr(message, name) == value for name, value in fields.items())
        ]

    async def one(self, kind: type[Any], **fields: Any) -> Any:
        """Wait for the first such message."""
        found = await until(lambda: self.all(kind, **fields), f"{kind.__name__} {fields}")
        return found[0]

    async def registered(self) -> Any:
        return await self.one(node.ProcessRegistered)

    def request(self, *, env_vars: dict[str, str] | None = None, **amounts: int) -> int:
        number = next(self.numbers)
        resources = {name: units * 10_000 for name, units in (amounts or {"CPU": 1}).items()}
        self.send(node.RequestLease(number, resources, env_vars or {}))
        return number

    async def lease(self, **options: Any) -> Any:
        return await self.one(node.LeaseGranted, request_id=self.request(**options))

    async def call(self, method: str, body: Any) -> Any:
        number = next(self.numbers)
        self.send(node.ControlCall(number, method, msgspec.msgpack.encode(body)))
        return await self.one(node.ControlReply, call_id=number)


class Cluster:
    """One raylet with a scripted GCS, and what a test does with them."""

    def __init__(
        self, raylet: Raylet, gcs: ScriptedGcs, client: RayletClient, folder: Path
    ) -> None:
        self.raylet = raylet
        self.gcs = gcs
        self.client = client
        self.folder = folder
        self.drivers: list[Driver] = []

    async def driver(self, **registration: Any) -> Driver:
        driver = Driver(self.raylet.stream_endpoint, **registration)
        self.drivers.append(driver)
        await driver.registered()
        return driver

    async def tell_worker(self, grant_endpoint: str, code: str) -> str:
        """Have a worker run Python; returns what it set ``answer`` to."""

        def talk() -> str:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(WAIT_S)
                peer.connect(grant_endpoint.removeprefix("unix:"))
                peer.sendall(code.encode())
                return peer.recv(1 << 20).decode()

        return await asyncio.to_thread(talk)

    def session_pids(self) -> list[int]:
        """Every live process that bears the node's mark."""
        mark = f"SKATE_NODE_MARK={NODE_ID.hex()}".encode()
        found = []
        for name in os.listdir("/proc"):
            try:
                if name.isdecimal() and mark in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
            except OSError:
                continue
        return found


@asynccontextmanager
async def start_cluster(
    folder: Path,
    spawn_ahead: Callable[[str, bytes], ZygoteProcess] | None = None,
    **options: Any,
) -> AsyncIterator[Cluster]:
    (folder / "sockets").mkdir(mode=0o700)
    (folder / "logs").mkdir(mode=0o700)
    gcs = ScriptedGcs(f"unix:{folder}/sockets/gcs.sock")  # type: ignore[abstract]
    await gcs.start()
    settings: dict[str, Any] = {
        "node_id": NODE_ID,
        "session_dir": str(folder),
        "token": TOKEN,
        "gcs_endpoint": gcs.endpoint,
        "stream_endpoint": f"unix:{folder}/sockets/node.sock",
        "grpc_endpoint": f"unix:{folder}/sockets/raylet.sock",
        "resources": {"CPU": 20_000},
        "store_capacity_bytes": 80 << 20,
        "zygote_command": TINY_WORKER,
        "preload": (),
        **options,
    }
    zygote = None if spawn_ahead is None else spawn_ahead(str(folder), NODE_ID)
    raylet = Raylet(RayletConfig(**settings), zygote=zygote)
    await raylet.start()
    channel = open_channel(raylet.grpc_endpoint, TOKEN)
    cluster = Cluster(raylet, gcs, RayletClient(channel), folder)
    try:
        yield cluster
    finally:
        for driver in cluster.drivers:
            driver.connection.close()
        await raylet.stop("the test is over", 1.0)
        await channel.close()
        await gcs.stop()
        for server in gcs.elsewhere:
            await server.stop(0.0)
        await asyncio.sleep(0.01)
    assert cluster.session_pids() == [], "processes of the node are left"


Play = Callable[..., None]


@pytest.fixture
def play(short_folder: Path) -> Play:
    """Runs ``async def test(cluster)`` against a fresh cluster."""

    def run(test: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
        async def main() -> None:
            async with start_cluster(short_folder, **options) as cluster:
                await test(cluster)

        asyncio.run(asyncio.wait_for(main(), 50))

    return run


@pytest.fixture
def play_nodes(short_folder: Path) -> Callable[[Callable[[MakeNode], Awaitable[None]]], None]:
    """Runs ``async def test(make_node)``."""

    def run(test: Callable[[MakeNode], Awaitable[None]]) -> None:
        async def main() -> None:
            async with nodes(short_folder) as make:
                await test(make)

        asyncio.run(asyncio.wait_for(main(), 50))

    return run


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Socket paths have at most 107 characters."""
    return tmp_path_factory.mktemp("n")


@pytest.fixture
def wait_until() -> Any:
    return until
