"""The parts of a node, started in order, watched, and stopped in reverse, on one event loop.

::

    token -> spans -> gcs (head) -> metrics -> raylet (store, stream) -> zygote ready
          -> the API server's port (head) -> node.json

What comes before: ``daemon`` (process set-up, watchdog, the zygote's spawn). What comes after: the
raylet and the GCS do the work; this module only waits for a reason to stop. The parts are made by
the factories of :class:`Components`, so that a test can put one that fails in a part's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from skate_core_ids import NodeID
from skate_gcs import GcsConfig, GcsServer
from skate_node.api_server import ApiServer, bind_first
from skate_node.endpoints import NodeEndpoints, plan_endpoints, reachable_from_here
from skate_node.failures import ComponentFailedError, blame
from skate_node.gcs_process import GcsProcess
from skate_node.gcs_spawn import IN_DAEMON, storage_of
from skate_node.launch_protocol import Launch, ReadyNode, ReadyWriter
from skate_node.node_metrics import NodeMetrics
from skate_node.options import LOOPBACK_HOSTS
from skate_node.program_metrics import ProgramMetrics
from skate_node.resources import ResourceDetector, node_resources, store_capacity_bytes
from skate_node.session import (
    NodeRecord,
    link_latest,
    set_current,
    sweep_dead_sessions,
    write_record,
)
from skate_node.task_spans import TaskSpans
from skate_node.watchdog import Watchdog
from skate_object_store import SpillConfig
from skate_raylet import Raylet, RayletConfig
from skate_raylet.zygote_process import ZygoteProcess
from skate_rpc.tokens import generate_token, write_token_file
from skate_scheduler import NODE_ID_LABEL, to_units
from skate_telemetry.logs import configure_logging
from skate_telemetry.tracing import TracingConfig

_log = logging.getLogger(__name__)

RAYLET_GRACE_S = 1.0
"""Workers may run exit hooks for this long; the stop as a whole has 2.5 s."""
GCS_GRACE_S = 0.2
API_GRACE_S = 0.3
SPANS_FLUSH_S = 0.5
LOG_BYTES_MAX = 4 * 1024 * 1024
LOG_BACKUPS_MAX = 1
ZYGOTE_READY_S = 25.0
"""It imports a tenth of a second's worth; the launcher waits for 30 s in all."""


@dataclass(frozen=True)
class Components:
    """How each part is made."""

    gcs: Callable[[GcsConfig], GcsServer] = GcsServer
    gcs_process: Callable[..., GcsProcess] = GcsProcess
    raylet: Callable[..., Raylet] = Raylet
    metrics: Callable[..., NodeMetrics] = NodeMetrics


def run_node(
    launch: Launch,
    ready: ReadyWriter,
    watchdog: Watchdog,
    zygote: ZygoteProcess,
    gcs: subprocess.Popen[bytes] | None,
    components: Components,
) -> int:
    """Be the node until a stop is asked for or a part ends. Returns the process's exit status.

    ``gcs``: of a head whose tables outlive it, what ``spawn_gcs`` started.
    Raises nothing for a part that does not start: that is told through ``ready``.
    """
    logs = os.path.join(launch.session_dir, "logs")
    configure_logging(
        "node",
        os.path.join(logs, "daemon.log"),
        bytes_max=LOG_BYTES_MAX,
        backups_max=LOG_BACKUPS_MAX,
    )
    node = NodeService(launch, zygote, gcs, components, ready.starting)
    return asyncio.run(_serve(node, ready, watchdog))


async def _serve(node: NodeService, ready: ReadyWriter, watchdog: Watchdog) -> int:
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[str] = loop.create_future()

    def note(reason: str) -> None:
        if not asked.done():
            asked.set_result(reason)

    def ask(reason: str) -> None:
        loop.call_soon_threadsafe(note, reason)

    watchdog.arm(ask)
    try:
        described = await _unless_stopped(node.start(), asked)
        if described is None:
            _log.info("stopped while starting", extra={"why": asked.result()})
            return 1
        ready.ready(described)
        gc.freeze()  # What was imported stays: collections need not look at it again.
        gc.enable()
        sweep = asyncio.create_task(asyncio.to_thread(node.tidy), name="skate-node-tidy")
        reason, exit_code = await node.wait(asked)
        _log.info("the node stops", extra={"why": reason, "exit_code": exit_code})
        sweep.cancel()
        return exit_code
    except ComponentFailedError as error:
        _log.error("the node does not start", exc_info=error)
        ready.failed(error.component, error.reason, error.exit_status, error.log_tail)
        return 1
    finally:
        await node.stop()


class NodeService:
    """One node's parts. Start once, stop once."""

    def __init__(
        self,
        launch: Launch,
        zygote: ZygoteProcess,
        gcs: subprocess.Popen[bytes] | None,
        components: Components,
        on_starting: Callable[[str], None],
    ) -> None:
        self._launch = launch
        self._options = launch.options
        self._components = components
        self._on_starting = on_starting
        self._node_id = NodeID(zygote.node_id)
        self._zygote = zygote
        self._gcs_spawned = gcs
        self._started = contextlib.AsyncExitStack()
        self._gcs: GcsServer | GcsProcess | None = None
        self._raylet: Raylet | None = None
        self._programs = ProgramMetrics()

    async def start(self) -> ReadyNode:
        """Start every part in order. Raises ``ComponentFailedError`` naming the one that fails.

        What was started before that is stopped by :meth:`stop`.
        """
        options = self._options
        with self._starting("session"):
            token = options.token or generate_token()
            write_token_file(os.path.join(self._launch.session_dir, "token"), token)
            plan = plan_endpoints(options, self._launch.session_dir)
        with self._starting("tracing"):
            spans = self._start_spans()
        with self._starting("gcs"):
            gcs_endpoint = await self._start_gcs(plan, token) if options.is_head else plan.gcs
        with self._starting("metrics"):
            metrics = self._start_metrics(plan, token)
        with self._starting("resources"):
            config = self._raylet_config(plan, token, gcs_endpoint, metrics, spans.is_enabled)
        with self._starting("raylet"):
            raylet = await self._start_raylet(config, spans)
        with self._starting("zygote"):
            await raylet.wait_zygote_ready(ZYGOTE_READY_S)
        with self._starting("api server"):
            api = self._bind_api_server()
        with self._starting("session"):
            record = self._publish(config, raylet, "" if api is None else api.endpoint)
        if api is not None:
            # Jobs of an earlier life of the cluster have to be looked after without being asked.
            api.start(at_once=options.storage not in (None, "memory"))
        if metrics is not None:
            metrics.watch(record, self._gcs, raylet, spans, self._programs)
        return ReadyNode(
            node_id=record.node_id,
            gcs_endpoint=record.gcs_endpoint,
            stream_endpoint=record.stream_endpoint,
            store_endpoint=record.store_endpoint,
            raylet_endpoint=record.raylet_endpoint,
            metrics_endpoint=record.metrics_endpoint,
            token=token,
            ip_address=record.ip_address,
        )

    async def wait(self, asked: asyncio.Future[str]) -> tuple[str, int]:
        """Wait until a stop is asked for or a part ends by itself: why, and the exit status."""
        assert self._raylet is not None, "start the node first"
        ends = {"raylet": asyncio.ensure_future(self._raylet.wait_stopped())}
        if self._gcs is not None:
            ends["gcs"] = asyncio.ensure_future(self._gcs.wait_stopped())
        try:
            await asyncio.wait([asked, *ends.values()], return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result(), 0
            name, end = next((name, end) for name, end in ends.items() if end.done())
            return f"the {name} ended: {end.result()}", 1
        finally:
            for end in ends.values():
                end.cancel()

    async def stop(self) -> None:
        """Stop what was started, the last first."""
        await self._started.aclose()

    def tidy(self) -> None:
        """What a start owes to earlier sessions and to people; blocks, and nobody waits for it."""
        link_latest(self._launch.session_dir)
        sweep_dead_sessions(self._options.temp_dir)

    @contextlib.contextmanager
    def _starting(self, component: str) -> Iterator[None]:
        """Announce a part's start, and blame it (or a part inside it) for what goes wrong."""
        self._on_starting(component)
        try:
            yield
        except Exception as error:
            raise blame(component, error, self._launch.session_dir) from error

    def _start_spans(self) -> TaskSpans:
        is_tracing = self._options.is_tracing
        config = TracingConfig.from_environment() if is_tracing else TracingConfig()
        spans = TaskSpans(config, self._node_id.hex())
        self._started.push_async_callback(asyncio.to_thread, spans.close, SPANS_FLUSH_S)
        return spans

    async def _start_gcs(self, plan: NodeEndpoints, token: str) -> str:
        storage = storage_of(self._launch)
        config = GcsConfig(
            endpoint=plan.gcs,
            token=token,
            storage=storage,
            advertised_host="" if plan.gcs.startswith("unix:") else plan.ip_address,
        )
        gcs: GcsServer | GcsProcess
        if storage == IN_DAEMON:
            gcs = self._components.gcs(config)
        else:
            session_dir = self._launch.session_dir
            gcs = self._components.gcs_process(config, session_dir, first=self._gcs_spawned)
        bound = await gcs.start()
        self._gcs = gcs
        self._started.push_async_callback(gcs.stop, GCS_GRACE_S)
        return reachable_from_here(bound)

    def _start_metrics(self, plan: NodeEndpoints, token: str) -> NodeMetrics | None:
        port = self._options.metrics_port
        if port is None:
            return None
        metrics = self._components.metrics(plan.metrics_host, port, token)
        self._started.callback(metrics.close)
        return metrics

    async def _start_raylet(self, config: RayletConfig, spans: TaskSpans) -> Raylet:
        raylet = self._components.raylet(
            config,
            task_events=spans.record,
            user_metrics=self._programs,
            zygote=self._zygote,
        )
        await raylet.start()
        self._raylet = raylet
        self._started.push_async_callback(raylet.stop, "the node stops", RAYLET_GRACE_S)
        return raylet

    def _raylet_config(
        self,
        plan: NodeEndpoints,
        token: str,
        gcs_endpoint: str,
        metrics: NodeMetrics | None,
        is_tracing: bool,
    ) -> RayletConfig:
        options = self._options
        detector = ResourceDetector()
        available_bytes = detector.available_bytes()
        capacity_bytes = store_capacity_bytes(options, available_bytes)
        totals = node_resources(
            options,
            ip_address=plan.ip_address,
            capacity_bytes=capacity_bytes,
            available_bytes=available_bytes,
            detector=detector,
            environment=os.environ,
        )
        config = RayletConfig(
            node_id=self._node_id.binary(),
            session_dir=self._launch.session_dir,
            token=token,
            gcs_endpoint=gcs_endpoint,
            stream_endpoint=plan.stream,
            grpc_endpoint=plan.raylet,
            resources={name: to_units(amount, name) for name, amount in totals.items()},
            store_capacity_bytes=capacity_bytes,
            spill=spill_config(options.spill_dir, self._launch.session_dir),
            labels={NODE_ID_LABEL: self._node_id.hex(), **options.labels},
            is_head=options.is_head,
            ip_address=plan.ip_address,
            node_name=options.node_name or socket.gethostname(),
            metrics_endpoint="" if metrics is None else metrics.endpoint,
            is_tracing=is_tracing,
            zygote_command=self._zygote.command,
            worker_umask=self._launch.umask,
            infeasible_grace_s=options.infeasible_timeout_s,
            gcs_reconnect_s=options.gcs_reconnect_s,
        )
        if options.workers_max is None:
            return config
        return dataclasses.replace(config, workers_max=options.workers_max)

    def _bind_api_server(self) -> ApiServer | None:
        options = self._options
        if not options.api_ports:
            return None
        listener = bind_first(options.api_host or LOOPBACK_HOSTS[0], options.api_ports)
        api = ApiServer(options.api_command, listener, self._launch.session_dir)
        self._started.push_async_callback(api.stop, API_GRACE_S)
        return api

    def _publish(self, config: RayletConfig, raylet: Raylet, api_endpoint: str) -> NodeRecord:
        is_owned = bool(self._launch.starter_pid) and not self._options.keep_logs
        record = NodeRecord(
            session_dir=config.session_dir,
            node_id=self._node_id.hex(),
            pid=os.getpid(),
            is_head=config.is_head,
            is_owned=is_owned,
            keeps_logs=self._options.keep_logs,
            gcs_endpoint=config.gcs_endpoint,
            stream_endpoint=raylet.stream_endpoint,
            store_endpoint=raylet.store_endpoint,
            raylet_endpoint=raylet.grpc_endpoint,
            metrics_endpoint=config.metrics_endpoint,
            api_endpoint=api_endpoint,
            node_name=config.node_name,
            ip_address=config.ip_address,
            start_time_s=time.time(),
        )
        write_record(record)
        if config.is_head and not is_owned:
            set_current(record)
        raylet.on_gcs_moved = lambda endpoint: write_record(
            dataclasses.replace(record, gcs_endpoint=endpoint)
        )
        return record


def spill_config(spill_dir: str | None, session_dir: str) -> SpillConfig:
    """Where the object store spills to: the option's place, or a folder of the session."""
    if spill_dir is not None and "://" in spill_dir:
        return SpillConfig(url=spill_dir)
    return SpillConfig(directories=(spill_dir or os.path.join(session_dir, "spill"),))


async def _unless_stopped(
    work: Coroutine[Any, Any, ReadyNode], asked: asyncio.Future[str]
) -> ReadyNode | None:
    """The outcome of ``work``; None when a stop was asked for first, which cancels it."""
    task = asyncio.ensure_future(work)
    either: list[asyncio.Future[Any]] = [task, asked]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.wait([task])
    return None
