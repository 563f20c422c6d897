"""A node of the cluster: composes the parts, starts them in order, stops them in reverse.

::

    store -> zygote -> GCS (register) -> gRPC server -> stream listener -> heartbeat, subscription

What comes before: the node's daemon, which owns the process. What comes after: workers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import random
import resource
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from skate_object_store import StoreConfig, StoreServer, StoreStatistics
from skate_raylet.config import GCS_CALL_SHARE, RayletConfig
from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import Command, NodeMachine, NodeStatistics
from skate_raylet.machine.pull_config import PullConfig
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_raylet.service.actor_directory import ActorDirectory
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.convert import (
    actor_view,
    death_from_proto,
    death_to_proto,
    resources_to_proto,
)
from skate_raylet.service.demand_report import DemandReport
from skate_raylet.service.draining import Draining
from skate_raylet.service.function_cache import FunctionCache
from skate_raylet.service.gateway import Gateway
from skate_raylet.service.gcs_link import GcsLink
from skate_raylet.service.group_desk import GroupDesk
from skate_raylet.service.job_book import JobBook, job_of
from skate_raylet.service.job_forks import JobForks
from skate_raylet.service.loan_office import LoanOffice
from skate_raylet.service.local_process import LocalProcess, LocalProcesses
from skate_raylet.service.logs.log_office import LogOffice
from skate_raylet.service.logs.log_reader import LogReader
from skate_raylet.service.node_runner import NodeRunner
from skate_raylet.service.object_reporter import ObjectReporter
from skate_raylet.service.owner_book import OwnerBook
from skate_raylet.service.process_server import ProcessServer, UserMetricsSink
from skate_raylet.service.reaper import Reaper
from skate_raylet.service.servicer import RayletServicer
from skate_raylet.service.transfer.object_transfers import ObjectTransfers, TransferStatistics
from skate_raylet.service.wait_reporter import WaitReporter
from skate_raylet.service.worker_processes import WorkerEvents, WorkerProcess, WorkerProcesses
from skate_raylet.service.zygote import ForkRequest, Zygote, ZygoteBoot, ZygoteEvents
from skate_raylet.zygote_process import MARK_VARIABLE, ZygoteProcess
from skate_rpc import node_protocol as node
from skate_rpc.errors import RpcError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import gcs_pb2, raylet_pb2, raylet_pb2_grpc
from skate_rpc.grpc_server import SecureServer
from skate_rpc.handshake import ServerHandshake
from skate_rpc.movable_channel import MovableChannel
from skate_scheduler import ResourceSet

_log = logging.getLogger(__name__)

DEAD_REMEMBERED_MAX = 10_000
RELEASE_AGAIN_S = 10.0
DRAINED_GRACE_S = 1.0
REGISTER_TIMEOUT_S = 10.0  # somebody waits for the start
STATISTICS_TIMEOUT_S = 5.0
ZYGOTE_END_S = 1.0
JOBS_TIMEOUT_S = 5.0  # a worker of a job that is not known waits this long for the GCS's word


class RayletStatistics(msgspec.Struct, frozen=True):
    """Counts of one moment."""

    node: NodeStatistics
    store: StoreStatistics
    actors: int
    processes: int  # registered workers and drivers
    zygote_restarts: int
    is_zygote_ready: bool  # whether workers can be forked at this moment
    worker_deaths: int  # since the start, whatever the cause
    unsent_reports: int  # that wait for the GCS
    transfers: TransferStatistics


class Raylet:
    """One node's raylet, on the running event loop of the daemon's main thread.

    ``on_driver_gone(job_id)`` is called when a driver of this node hung up or died.
    """

    def __init__(
        self,
        config: RayletConfig,
        *,
        task_events: Callable[[list[node.TaskEvent]], None] | None = None,
        user_metrics: UserMetricsSink | None = None,
        zygote: ZygoteProcess | None = None,
    ) -> None:
        """``zygote``: one spawned ahead, by the same command and for the same node id."""
        self._config = config
        self._task_events = task_events
        self._user_metrics = user_metrics
        self._early_zygote = zygote
        self.on_driver_gone: Callable[[bytes], None] | None = None
        self.on_gcs_moved: Callable[[str], None] | None = None
        self._cluster_id = ""
        self.on_ready_step: Callable[[str], None] | None = None
        self.grpc_endpoint = ""
        self.stream_endpoint = ""
        self.store_endpoint = ""
        self.object_endpoint = ""
        total = ResourceSet(config.resources)
        self._machine = NodeMachine(
            LeaseConfig(
                total,
                config.node_id[:8],
                config.infeasible_grace_s,
                config.node_id,
                config.labels,
            ),
            PoolConfig(config.soft_limit, config.start_limit, config.workers_max),
            random.Random(config.node_id),
        )
        self._processes = LocalProcesses()
        self._jobs = JobBook()
        self._owners = OwnerBook(self._release_owner_soon)
        self._deaths: dict[bytes, node.Death] = {}  # of workers whose end is being handled
        self._dead: OrderedDict[bytes, None] = OrderedDict()  # deaths that were told already
        self._dead_nodes: OrderedDict[bytes, None] = OrderedDict()  # as for processes
        self._death_count = 0
        self._stopped: asyncio.Future[str] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._start_time_s = 0.0

    # ---- start and stop ----

    async def start(self) -> None:
        """Start every part. Raises ``OSError``, ``BindError`` or ``RpcError`` when one can not."""
        config = self._config
        self._loop = asyncio.get_running_loop()
        self._stopped = self._loop.create_future()
        self._start_time_s = time.time()
        _raise_descriptor_limit()
        self._store_calls = concurrent.futures.ThreadPoolExecutor(1, "skate-store-calls")
        token = config.token.encode()
        self._store = StoreServer(
            os.path.join(config.session_dir, "sockets", "store.sock"),
            config.store_capacity_bytes,
            handshake=lambda: ServerHandshake(token),
            config=StoreConfig(spill=config.spill),
        )
        self._store.start()
        self.store_endpoint = self._store.endpoint
        self._transfers = ObjectTransfers(
            config.node_id,
            token,
            self.store_endpoint,
            PullConfig(config.pull_limit_bytes),
            self._send,
        )
        self._start_processes()
        self._channel = MovableChannel(config.gcs_endpoint, config.token)
        patience_s = config.gcs_reconnect_s * GCS_CALL_SHARE
        client = GcsClient(self._channel, config.gcs_endpoint, patience_s=patience_s)
        self._link = GcsLink(
            client,
            config.node_id,
            self._make_report,
            self._on_gcs_event,
            self._fenced,
            DemandReport(self._machine.demands),
            config.gcs_reconnect_s,
        )
        self._draining = Draining(self._why_busy, self._begin_drain, self._leave_drained)
        self._link.held_bundles = self._held_bundles
        self._link.on_stale_bundles = self._give_back
        self._directory = ActorDirectory(self._ask_for_actor)
        cache = FunctionCache(config.function_cache_bytes)
        self._gateway = Gateway(client, config.node_id, cache, self._available)
        self._groups = GroupDesk(
            client, config.node_id, self._runner.tell, self._machine.known_groups
        )
        self._groups.serve_by(self._gateway)
        self._objects = ObjectReporter(
            self._node_info,
            config.token,
            self._processes,
            self._store,
            self._store_calls,
            client.nodes.list,
        )
        self._gateway.serve("list_objects", node.ListObjects, self._objects.list_objects)
        self._waits = WaitReporter(
            self._node_info,
            config.token,
            self._processes,
            self._machine,
            client.nodes.list,
            client.actors.list,
            client.groups.list,
        )
        self._gateway.serve("why", node.Why, self._waits.answer)
        log_reader = LogReader(
            config.node_id,
            os.path.join(config.session_dir, "logs"),
            config.token,
            self._logs.endpoint_of,
        )
        self._gateway.serve("list_logs", node.ListLogs, log_reader.list_logs)
        self._gateway.serve("read_log", node.ReadLog, log_reader.read_log)
        self._actors = ActorHost(
            config.node_id,
            self._machine.total,
            self._link,
            self._processes,
            self._runner.tell,
            self._machine.actor_refusal,
        )
        self._loans = LoanOffice(
            config.node_id,
            config.token,
            tell=self._runner.tell,
            send=self._send,
            processes=self._processes,
            deaths=self._deaths,
        )
        self._server = ProcessServer(
            config,
            machine=self._machine,
            tell=self._runner.tell,
            processes=self._processes,
            workers=self._workers,
            actors=self._actors,
            directory=self._directory,
            gateway=self._gateway,
            link=self._link,
            jobs=self._jobs,
            transfers=self._transfers,
            owners=self._owners,
            groups=self._groups,
            logs=self._logs,
            on_driver_gone=self._driver_gone,
            on_task_events=self._task_events,
            user_metrics=self._user_metrics,
            on_objects=self._objects.on_report,
            on_waits=self._waits.on_report,
        )
        self._server.store_endpoint = self._store.endpoint
        self._grpc = SecureServer(config.token)
        servicer = RayletServicer(
            self._machine,
            self._runner.tell,
            self._actors,
            self._processes,
            self._loop.time,
            self._fill_status,
            self._begin_stop,
            self._loans.serve,
            self._logs.serve,
            log_reader,
            self._objects,
            self._waits,
            self._draining.ask,
            self._follow_gcs,
        )
        self._grpc.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, servicer)
        self.grpc_endpoint = await self._grpc.start(config.grpc_endpoint)
        self.object_endpoint = self._transfers.start(config.object_listen_endpoint)
        self.stream_endpoint = self._server.start()
        registered = await client.nodes.register(self._node_info(), timeout_s=REGISTER_TIMEOUT_S)
        self._cluster_id = registered.cluster_id
        self._link.note_life(registered.gcs_life)
        self._link.start()
        _log.info("event=raylet_started node_id=%s", config.node_id.hex())

    def _start_processes(self) -> None:
        config = self._config
        mark = config.node_id.hex()
        zygote: Zygote | None = None
        self._reaper = Reaper(
            f"{MARK_VARIABLE}={mark}".encode(),
            lambda: zygote is not None and zygote.has_forks_under_way(),
        )
        self._runner = NodeRunner(self._machine, self._perform)
        self._logs = LogOffice(config.node_id, config.token, self._jobs)
        self._job_forks = JobForks(self._jobs, self._fork, self._ask_for_jobs)
        self._workers = WorkerProcesses(
            config.session_dir,
            self._reaper,
            self._job_forks.fork,
            lambda job_id: list(self._jobs.get(job_id).sys_path),
            WorkerEvents(
                self._runner.tell, self._worker_died, self._output_begins, self._output_ends
            ),
        )
        boot = ZygoteBoot(
            os.getpid(),
            config.node_id,
            config.token,
            config.stream_endpoint,
            config.session_dir,
            list(config.preload),
            -1 if config.worker_umask is None else config.worker_umask,
            config.ip_address,
        )
        zygote = self._zygote = Zygote(
            config.zygote_command,
            boot,
            os.environ,
            self._reaper,
            ZygoteEvents(self._workers.forked, self._workers.fork_failed),
            self._early_zygote,
        )
        self._zygote.start()

    def _fork(self, request: ForkRequest) -> None:
        self._zygote.fork(request)

    def _output_begins(self, worker: WorkerProcess) -> None:
        self._logs.worker_started(worker.startup_id, worker.job_id, worker.pid, worker.log_paths)

    def _output_ends(self, worker: WorkerProcess) -> None:
        self._logs.worker_ended(worker.startup_id)

    async def wait_zygote_ready(self, timeout_s: float) -> None:
        """Wait until workers can be forked. Raises ``ZygoteStartError``: the first one ended."""
        await self._zygote.wait_ready(timeout_s)

    async def stop(self, reason: str, grace_s: float) -> None:
        """End the workers (asked first, killed after ``grace_s``), then every part. Idempotent."""
        self._begin_stop(reason, grace_s)
        assert self._stopping is not None
        await asyncio.shield(self._stopping)

    async def wait_stopped(self) -> str:
        """Wait for the end; returns its reason."""
        assert self._stopped is not None, "the raylet was not started"
        return await asyncio.shield(self._stopped)

    def _begin_stop(self, reason: str, grace_s: float) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(reason, grace_s))

    async def _stop(self, reason: str, grace_s: float) -> None:
        _log.info("event=raylet_stopping reason=%r", reason)
        ends_at_s = self._loop.time() + grace_s
        self._server.stop_listening()
        self._transfers.stop_serving()
        self._draining.close()
        self._actors.is_closing = True
        self._job_forks.release_all()
        self._runner.close()
        is_preempted = self._draining.is_preempted
        await self._workers.end_all(
            "node_preempted" if is_preempted else "node_died", reason, grace_s / 2
        )
        self._runner.stop()
        await self._loans.close()
        await self._logs.close()
        kind = "node_preempted" if is_preempted else "intended_exit"
        death = death_to_proto(node.Death(kind, reason, os.getpid()))
        left_s = max(0.1, ends_at_s - self._loop.time())
        await self._link.close(left_s / 2)
        await self._link.unregister(death, left_s / 2)
        await self._server.close(reason)
        await self._gateway.close()
        await self._groups.close()
        for question in self._questions:
            question.cancel()
        self._reaper.kill_strays()
        await self._zygote.close(ZYGOTE_END_S)
        self._reaper.sweep()
        self._reaper.close()
        await self._grpc.stop(0.0)
        await self._channel.close()
        await self._transfers.close()
        self._store_calls.shutdown(wait=True)
        self._store.close()
        assert self._stopped is not None
        if not self._stopped.done():
            self._stopped.set_result(reason)

    def _fenced(self, reason: str) -> None:
        self._begin_stop(reason, 1.0)

    # ---- leaving ----

    def _why_busy(self) -> str:
        leases = self._machine.leases()
        if leases:
            return f"{len(leases)} of its workers are in use"
        bundles = len(self._held_bundles())
        if bundles:
            return f"it holds bundles of {bundles} placement groups"
        drivers = sum(process.is_driver for process in self._processes)
        if drivers:
            return f"{drivers} drivers are connected to it"
        store = self._store.statistics()
        if store.primary_bytes or store.disk_bytes:
            size_bytes = store.primary_bytes + store.disk_bytes
            return f"its object store holds {size_bytes} bytes that may be nowhere else"
        return ""

    def _begin_drain(self) -> None:
        self._actors.is_draining = True
        self._runner.drain()
        self._link.changed()

    def _leave_drained(self, reason: str) -> None:
        self._begin_stop(reason, DRAINED_GRACE_S)

    def _follow_gcs(self, endpoint: str, cluster_id: str, life: int) -> bool:
        """A GCS that was started elsewhere says where it is; False: this node knows better."""
        if cluster_id != self._cluster_id or self._link.knows(life):
            return endpoint == self._channel.target
        _log.warning("event=gcs_moved from=%s to=%s", self._channel.target, endpoint)
        self._channel.move(endpoint)
        self._link.moved(life)
        if self.on_gcs_moved is not None:
            self.on_gcs_moved(endpoint)
        return True

    # ---- commands of the machine ----

    def _perform(self, command: Command) -> None:
        match command:
            case do.StartWorker():
                self._workers.start(command)
            case do.EndWorker():
                self._workers.end(command)
            case do.GrantLease():
                self._grant(command)
            case do.RefuseLease(holder_id, request_id, kind, message):
                self._send(holder_id, node.LeaseRefused(request_id, kind, message))
            case do.WarnHolder(holder_id, request_id, message):
                self._send(holder_id, node.LeaseWarning(request_id, message))
            case do.LoseLease(holder_id, lease_id, worker_id):
                self._send(holder_id, node.LeaseLost(lease_id, self._deaths[worker_id]))
            case do.AskLeaseBack(holder_id, lease_id):
                self._send(holder_id, node.ReclaimLease(lease_id))
            case do.TellOthersWait(holder_id, lease_id):
                self._send(holder_id, node.ReclaimLease(lease_id, when_idle=True))
            case do.PlaceActor():
                self._actors.place(command)
            case do.RefuseActor():
                self._actors.refuse(command)
            case do.LoseActor(_, _, worker_id):
                self._actors.lose(command, self._deaths[worker_id])
            case do.AskForGroup(group_id):
                self._groups.ask(group_id)
            case _:
                self._loans.perform(command)
        self._link.changed()

    def _grant(self, command: do.GrantLease) -> None:
        worker = self._processes.get(command.worker_id)
        # A worker that is handed out is registered; it may have hung up, then its end follows.
        self._send(
            command.holder_id,
            node.LeaseGranted(
                command.request_id,
                command.lease_id,
                command.worker_id,
                self._config.node_id,
                worker.endpoint if worker is not None else "",
                worker.pid if worker is not None else 0,
                {name: list(parts) for name, parts in command.device_ids.items()},
            ),
        )

    def _send(self, worker_id: bytes, message: object) -> None:
        process = self._processes.get(worker_id)
        if process is not None:
            process.send(message)

    # ---- ends ----

    def _worker_died(self, worker: WorkerProcess, death: node.Death) -> None:
        process = worker.local
        assert process is not None
        self._death_count += 1
        self._processes.remove(process.worker_id)
        self._directory.forget(process)
        self._groups.forget(process)
        self._deaths[process.worker_id] = death
        self._runner.tell(on.WorkerGone(worker.startup_id, process.worker_id))
        del self._deaths[process.worker_id]
        self._process_ended(process, death)
        process.connection.close("the process ended")

    def _driver_gone(self, process: LocalProcess, reason: str) -> None:
        """A driver hung up: its job is over."""
        _log.info("event=driver_gone pid=%d reason=%r", process.pid, reason)
        message = f"The driver (pid {process.pid}) is gone: {reason}."
        death = node.Death("exited", message, process.pid)
        if self._jobs.finish(process.job_id):
            self._logs.job_finished(process.job_id)
            self._runner.tell(on.JobFinished(process.job_id))
        self._runner.tell(on.HolderGone(process.worker_id))
        cause = death_to_proto(death)

        async def report() -> None:
            await self._link.client.jobs.finish(process.job_id, cause)

        self._link.report(("job", process.job_id), "job_finished", report)
        self._process_ended(process, death)
        if self.on_driver_gone is not None:
            self.on_driver_gone(process.job_id)

    def _process_ended(self, process: LocalProcess, death: node.Death) -> None:
        """Tell all who may hold something of it, and give back what it kept in the store."""
        self._transfers.process_ended(process.worker_id)
        self._tell_of_death(process.worker_id, death, process.job_id)
        info = gcs_pb2.WorkerInfo(
            worker_id=process.worker_id,
            node_id=self._config.node_id,
            job_id=process.job_id,
            pid=process.pid,
            is_driver=process.is_driver,
            death_cause=death_to_proto(death),
            end_time_s=time.time(),
        )

        async def report() -> None:
            await self._link.client.workers.report_death(info)

        self._link.report(("worker", process.worker_id), "worker_death", report)

    def _tell_of_death(self, worker_id: bytes, death: node.Death, job_id: bytes) -> None:
        if worker_id in self._dead:
            return
        self._dead[worker_id] = None
        while len(self._dead) > DEAD_REMEMBERED_MAX:
            self._dead.popitem(last=False)
        self._transfers.owner_died(worker_id, death.message)
        self._release_owner_soon(worker_id)  # what it owns may lie here
        self._owners.forget(worker_id)
        message = node.WorkerDied(worker_id, death)
        is_job_over = self._jobs.get(job_id).is_finished
        for process in self._processes:
            # The processes of a finished job are about to end too and need no news of each other;
            # without this the end of n workers would cost n * n messages.
            if not (is_job_over and process.job_id == job_id and not self._is_actor(process)):
                process.post(message)

    def _is_actor(self, process: LocalProcess) -> bool:
        lease = self._machine.lease_of_worker(process.worker_id)
        return lease is not None and not lease.holder_id

    def _release_owner_soon(self, worker_id: bytes) -> None:
        self._store_calls.submit(self._release_owner, worker_id)
        # Again, for what a task wrote in its name before it heard of the death.
        self._loop.call_later(RELEASE_AGAIN_S, self._release_again, worker_id)

    def _release_again(self, worker_id: bytes) -> None:
        if self._stopped is not None and not self._stopped.done():
            self._store_calls.submit(self._release_owner, worker_id)

    def _release_owner(self, worker_id: bytes) -> None:
        try:
            self._store.release_owner(worker_id)
        except Exception:  # noqa: BLE001  the thread's boundary: the store is gone
            _log.exception("event=release_owner_failed")

    # ---- the GCS ----

    def _on_gcs_event(self, event: gcs_pb2.Event) -> None:
        match event.WhichOneof("payload"):
            case "actor":
                self._directory.update(actor_view(event.actor))
            case "job":
                self._learn_job(event.job)
            case "worker":
                worker = event.worker
                cause = death_from_proto(worker.death_cause)
                self._tell_of_death(worker.worker_id, cause, worker.job_id)
            case "node":
                self._on_node(event.node)
            case "placement_group":
                self._groups.take_news(event.placement_group)
            case "snapshot_end":
                self._groups.snapshot_taken()
            case None:
                pass  # what a newer GCS may say

    def _on_node(self, info: gcs_pb2.NodeInfo) -> None:
        node_id = info.node_id
        if node_id != self._config.node_id:
            self._loans.take_news(info)
            self._logs.node_seen(info)
        elif info.HasField("drain") and info.state != gcs_pb2.NodeInfo.STATE_DEAD:
            self._draining.take(info.drain)
        if info.state != gcs_pb2.NodeInfo.STATE_DEAD:
            self._transfers.node_seen(node_id, info.object_endpoint)
        elif node_id == self._config.node_id:
            self._fenced("The GCS holds this node for dead.")
        elif node_id not in self._dead_nodes:
            self._dead_nodes[node_id] = None
            while len(self._dead_nodes) > DEAD_REMEMBERED_MAX:
                self._dead_nodes.popitem(last=False)
            cause = death_from_proto(info.death_cause)
            self._transfers.node_died(node_id, f"it died: {cause.message}")
            for process in self._processes:
                process.post(node.NodeDied(node_id, cause))
            self._owners.node_died(node_id)

    def _learn_job(self, info: gcs_pb2.JobInfo) -> None:
        is_over = self._jobs.update(job_of(info))
        self._job_forks.job_known(info.job_id)
        if is_over:
            self._logs.job_finished(info.job_id)
            self._runner.tell(on.JobFinished(info.job_id))

    async def _ask_for_jobs(self) -> None:
        for info in await self._link.client.jobs.list(timeout_s=JOBS_TIMEOUT_S):
            self._learn_job(info)

    def _ask_for_actor(self, actor_id: bytes) -> None:
        async def ask() -> None:
            try:
                info = await self._link.client.actors.get(actor_id)
            except RpcError as error:
                # The subscription brings it when the GCS is back.
                _log.warning("event=get_actor_failed error=%s", error)
                return
            self._directory.answer(actor_id, actor_view(info) if info is not None else None)

        task = asyncio.create_task(ask())
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    def _node_info(self) -> gcs_pb2.NodeInfo:
        config = self._config
        return gcs_pb2.NodeInfo(
            node_id=config.node_id,
            node_name=config.node_name,
            hostname=socket.gethostname(),
            ip_address=config.ip_address,
            raylet_endpoint=self.grpc_endpoint,
            stream_endpoint=self.stream_endpoint,
            store_endpoint=self.store_endpoint,
            object_endpoint=self.object_endpoint,
            metrics_endpoint=config.metrics_endpoint,
            pid=os.getpid(),
            is_head=config.is_head,
            total=resources_to_proto(self._machine.total),
            available=resources_to_proto(self._machine.available),
            labels=dict(config.labels),
            state=gcs_pb2.NodeInfo.STATE_ALIVE,
            start_time_s=self._start_time_s,
            session_dir=config.session_dir,
        )

    def _make_report(self) -> gcs_pb2.ReportResourcesRequest:
        return gcs_pb2.ReportResourcesRequest(
            node_id=self._config.node_id,
            available=resources_to_proto(self._machine.available),
            total=resources_to_proto(self._machine.total),
            drain=self._draining.order,
        )

    def _held_bundles(self) -> list[gcs_pb2.BundleRef]:
        return [
            gcs_pb2.BundleRef(group_id=held.group_id, attempt=held.attempt, indices=held.indices)
            for held in self._machine.held_bundles()
        ]

    def _give_back(self, refs: Sequence[gcs_pb2.BundleRef]) -> None:
        _log.info("event=stale_bundles groups=%d", len(refs))
        for ref in refs:
            indices = tuple(ref.indices)
            self._runner.tell(on.BundlesReturned(ref.group_id, ref.attempt, indices))

    # ---- questions ----

    def _available(self) -> dict[str, int]:
        return self._machine.available.to_dict()

    def statistics(self) -> RayletStatistics:
        """Counts of this moment. From any thread; raises ``TimeoutError`` when the loop hangs."""
        try:
            is_on_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_on_loop = False
        if is_on_loop:
            return self._count()
        answer: concurrent.futures.Future[RayletStatistics] = concurrent.futures.Future()
        self._loop.call_soon_threadsafe(lambda: answer.set_result(self._count()))
        return answer.result(STATISTICS_TIMEOUT_S)

    def _count(self) -> RayletStatistics:
        return RayletStatistics(
            node=self._machine.statistics(),
            store=self._store.statistics(),
            actors=self._actors.count(),
            processes=len(self._processes),
            zygote_restarts=self._zygote.restarts,
            is_zygote_ready=self._zygote.is_ready,
            worker_deaths=self._death_count,
            unsent_reports=self._link.unsent_reports(),
            transfers=self._transfers.statistics(),
        )

    def _fill_status(self, reply: raylet_pb2.NodeStatusReply) -> None:
        statistics = self._count()
        reply.node.CopyFrom(self._node_info())
        reply.workers_idle = statistics.node.workers_idle
        reply.workers_total = statistics.node.workers
        reply.store_capacity_bytes = statistics.store.capacity_bytes
        reply.store_used_bytes = statistics.store.used_bytes
        reply.store_objects = statistics.store.objects


def _raise_descriptor_limit() -> None:
    """A worker costs the daemon three descriptors; the usual soft limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
