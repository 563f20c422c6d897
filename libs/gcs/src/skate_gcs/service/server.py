"""A GCS as one object: its storage, its loop and its gRPC server."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable

import msgspec

from skate_gcs.config import GcsConfig
from skate_gcs.errors import GcsConfigError
from skate_gcs.machine.commands import Table
from skate_gcs.machine.events import Fact, ListNodes
from skate_gcs.machine.gcs_machine import MachineStatistics
from skate_gcs.service.hub import Hub
from skate_gcs.service.node_calls import NodeCalls
from skate_gcs.service.runner import Runner
from skate_gcs.service.servicers import (
    ActorServicer,
    EventServicer,
    JobServicer,
    KvServicer,
    NodeServicer,
    PlacementGroupServicer,
    WorkerServicer,
)
from skate_gcs.storage import Storage, StorageStatistics, Write, open_storage
from skate_rpc.gen.skate.v1 import gcs_pb2_grpc
from skate_rpc.grpc_server import SecureServer

_log = logging.getLogger(__name__)

_CLUSTER_ID_KEY = b"cluster_id"
_LIFE_KEY = b"life"
_ENDPOINT_KEY = b"endpoint"


class GcsStatistics(msgspec.Struct, frozen=True):
    """What a GCS holds and has done, for metrics."""

    tables: MachineStatistics
    storage: StorageStatistics
    subscribers: int
    events_handled: int  # since the start
    events_waiting: int
    node_calls: int  # orders to nodes that are under way
    rpc_calls: int  # since the start
    rpc_refused: int  # for their token, since the start


class GcsServer:
    """One GCS. Start it once, stop it once; everything runs on the loop that started it."""

    def __init__(self, config: GcsConfig) -> None:
        """Nothing is opened before :meth:`start`."""
        if config.subscriber_events_max < 1 or config.requests_max < 1:
            raise GcsConfigError("subscriber_events_max, requests_max", "must be at least 1.")
        self._config = config
        self._server = SecureServer(config.token)
        self._storage: Storage | None = None
        self._runner: Runner | None = None
        self._hub = Hub(config.subscriber_events_max)
        self._node_calls: NodeCalls | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Future[str] | None = None
        self.cluster_id = ""
        """Known after :meth:`start`; stays the same for as long as the storage does."""
        self.life = 0
        """The number of this start among all with the same storage, from 1."""

    @property
    def endpoint(self) -> str:
        """Where it listens; empty before :meth:`start`."""
        return self._server.endpoint

    async def start(self) -> str:
        """Load the tables and listen; returns the bound endpoint.

        Raises:
            GcsConfigError: the settings do not fit each other or the storage.
            StorageError: the storage can not be opened or read.
            BindError: the endpoint is not available.
        """
        config = self._config
        if self._stopped is not None:
            raise RuntimeError("This GCS has been started already.")
        self._stopped = asyncio.get_running_loop().create_future()
        storage = self._storage = await asyncio.to_thread(
            open_storage,
            config.storage,
            Table,
            config.holder or uuid.uuid4().hex,
            config.storage_wait_s,
        )
        try:
            self.cluster_id, self.life = await asyncio.to_thread(_settle_identity, storage, config)
            runner = self._runner = await asyncio.to_thread(self._make_runner, storage)
            self._add_servicers(runner)
            endpoint = await self._server.start(config.endpoint)
            advertised = _advertised(endpoint, config.advertised_host)
            has_moved = await asyncio.to_thread(_note_endpoint, storage, advertised)
        except BaseException:
            await asyncio.to_thread(storage.close)
            raise
        self._loop_task = asyncio.create_task(self._run(runner), name="skate-gcs-runner")
        if has_moved:
            await self._announce(runner, advertised)
        _log.info(
            "the GCS listens",
            extra={"endpoint": endpoint, "storage": config.storage, "cluster_id": self.cluster_id},
        )
        return endpoint

    async def wait_stopped(self) -> str:
        """Wait until the GCS has stopped, by itself or by :meth:`stop`; returns why.

        A GCS stops by itself when its storage fails: it then answers every request with
        UNAVAILABLE, and its process should end.
        """
        if self._stopped is None:
            raise RuntimeError("Start the GCS first.")
        return await asyncio.shield(self._stopped)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Take no new requests, give open ones ``grace_s`` seconds, and close everything."""
        if self._stopped is None or self._storage is None:
            return
        self._hub.close()
        await self._server.stop(grace_s)
        if self._runner is not None and self._loop_task is not None:
            self._runner.stop()
            await self._loop_task
        if self._node_calls is not None:
            await self._node_calls.close()
        await asyncio.to_thread(self._storage.close)
        if not self._stopped.done():
            self._stopped.set_result("stopped")

    def statistics(self) -> GcsStatistics:
        """Counts of this moment. O(live actors); call it on the GCS's loop."""
        if self._runner is None or self._storage is None or self._node_calls is None:
            raise RuntimeError("Start the GCS first.")
        calls = self._server.statistics()
        return GcsStatistics(
            tables=self._runner.statistics(),
            storage=self._storage.statistics(),
            subscribers=len(self._hub),
            events_handled=self._runner.events_handled,
            events_waiting=self._runner.inbox_length,
            node_calls=len(self._node_calls),
            rpc_calls=calls.calls,
            rpc_refused=calls.refused,
        )

    async def _announce(self, runner: Runner, endpoint: str) -> None:
        """Tell the nodes that a GCS at another place knew where it is now."""
        assert self._node_calls is not None
        for node in (await runner.ask(ListNodes())).records:
            if node.is_alive and node.raylet_endpoint:
                self._node_calls.announce_gcs(node, endpoint, self.cluster_id, self.life)

    def _make_runner(self, storage: Storage) -> Runner:
        config = self._config

        def make_node_calls(tell: Callable[[Fact], None]) -> NodeCalls:
            self._node_calls = NodeCalls(config, tell)
            return self._node_calls

        return Runner(
            self.cluster_id,
            config.limits,
            storage,
            self._hub,
            make_node_calls,
            requests_max=config.requests_max,
        )

    def _add_servicers(self, runner: Runner) -> None:
        assert self._node_calls is not None
        add = self._server.add
        add(
            gcs_pb2_grpc.add_NodeServiceServicer_to_server,
            NodeServicer(runner, self._node_calls, self.life),
        )
        add(gcs_pb2_grpc.add_JobServiceServicer_to_server, JobServicer(runner))
        add(gcs_pb2_grpc.add_ActorServiceServicer_to_server, ActorServicer(runner))
        add(
            gcs_pb2_grpc.add_PlacementGroupServiceServicer_to_server,
            PlacementGroupServicer(runner),
        )
        add(gcs_pb2_grpc.add_WorkerServiceServicer_to_server, WorkerServicer(runner))
        add(gcs_pb2_grpc.add_KvServiceServicer_to_server, KvServicer(runner))
        add(gcs_pb2_grpc.add_EventServiceServicer_to_server, EventServicer(runner, self._hub))

    async def _run(self, runner: Runner) -> None:
        failure = await runner.run()
        if failure:
            _log.critical("the GCS has failed", extra={"why": failure})
            self._hub.close()
            assert self._stopped is not None
            if not self._stopped.done():
                self._stopped.set_result(failure)


def _settle_identity(storage: Storage, config: GcsConfig) -> tuple[str, int]:
    """The stored id of the cluster, made now if the storage is new, and this start's number.

    Blocks.
    """
    rows = dict(storage.scan(Table.META))
    stored = rows.get(_CLUSTER_ID_KEY, b"").decode()
    if stored and config.cluster_id not in {"", stored}:
        raise GcsConfigError("cluster_id", f"the storage belongs to the cluster {stored}.")
    cluster_id = stored or config.cluster_id or uuid.uuid4().hex
    life = int(rows.get(_LIFE_KEY, b"0")) + 1
    storage.commit(
        [
            Write(Table.META, _CLUSTER_ID_KEY, cluster_id.encode()),
            Write(Table.META, _LIFE_KEY, b"%d" % life),
        ]
    ).result()
    return cluster_id, life


def _advertised(endpoint: str, host: str) -> str:
    """Where other machines call what is bound to ``endpoint``."""
    if not host or endpoint.startswith("unix:"):
        return endpoint
    return f"{f'[{host}]' if ':' in host else host}:{endpoint.rpartition(':')[2]}"


def _note_endpoint(storage: Storage, endpoint: str) -> bool:
    """Store where the GCS listens; whether an earlier one listened elsewhere. Blocks."""
    before = dict(storage.scan(Table.META)).get(_ENDPOINT_KEY, b"").decode()
    if before != endpoint:
        storage.commit([Write(Table.META, _ENDPOINT_KEY, endpoint.encode())]).result()
    return before not in {"", endpoint}
