"""Answers the node's workers and drivers on the stream: registration, then one handler a message.

What comes before: ``skate_rpc.stream``, which has authenticated the peer. What comes after: the
node's machine (leases), the gateway (calls for the GCS), the actor host.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from typing import Any, Protocol

from skate_raylet.config import RayletConfig
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine.lease_table import Granted
from skate_raylet.machine.node_machine import Event, NodeMachine
from skate_raylet.service.actor_directory import ActorDirectory
from skate_raylet.service.actor_host import ActorHost
from skate_raylet.service.convert import label_rules
from skate_raylet.service.gateway import Gateway
from skate_raylet.service.gcs_link import GcsLink
from skate_raylet.service.group_desk import GroupDesk
from skate_raylet.service.job_book import LOGS_KEY, SYS_PATH_KEY, Job, JobBook
from skate_raylet.service.local_process import Connection, LocalProcess, LocalProcesses
from skate_raylet.service.logs.log_office import LogOffice
from skate_raylet.service.owner_book import OwnerBook
from skate_raylet.service.transfer.object_transfers import ObjectTransfers
from skate_raylet.service.worker_processes import WorkerProcess, WorkerProcesses
from skate_rpc import node_protocol as node
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.node_messages import is_new
from skate_rpc.stream import StreamListener
from skate_scheduler import LabelError, ResourceSet

_log = logging.getLogger(__name__)

REGISTER_DEADLINE_S = 10.0
NEAR_MAX = 8  # nodes that a request may name
WORKER_ID_BYTES = 28


class UserMetricsSink(Protocol):
    """Where the metrics of programs go."""

    def record(self, worker_id: bytes, metrics: list[node.MetricRows], /) -> None:
        """Take what a process has measured."""

    def forget(self, worker_id: bytes, /) -> None:
        """The process is gone: what it said of the present moment holds no more."""


class ProcessServer:
    """The stream's side of the raylet. A connection's ``context`` is its :class:`LocalProcess`."""

    def __init__(
        self,
        config: RayletConfig,
        *,
        machine: NodeMachine,
        tell: Callable[[Event], None],
        processes: LocalProcesses,
        workers: WorkerProcesses,
        actors: ActorHost,
        directory: ActorDirectory,
        gateway: Gateway,
        link: GcsLink,
        jobs: JobBook,
        transfers: ObjectTransfers,
        owners: OwnerBook,
        logs: LogOffice,
        groups: GroupDesk,
        on_driver_gone: Callable[[LocalProcess, str], None],
        on_task_events: Callable[[list[node.TaskEvent]], None] | None,
        user_metrics: UserMetricsSink | None,
        on_objects: Callable[[LocalProcess, node.ObjectsReport], None],
        on_waits: Callable[[LocalProcess, node.WaitsReport], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self._tell = tell
        self._processes = processes
        self._workers = workers
        self._actors = actors
        self._directory = directory
        self._gateway = gateway
        self._link = link
        self._jobs = jobs
        self._transfers = transfers
        self._owners = owners
        self._logs = logs
        self._on_driver_gone = on_driver_gone
        self._on_task_events = on_task_events
        self._user_metrics = user_metrics
        self._loop = asyncio.get_running_loop()
        self._listener: StreamListener | None = None
        self._open: dict[Connection, asyncio.TimerHandle] = {}  # not registered yet
        self._introduced: dict[Connection, None] = {}  # that said who they are
        self._tasks: set[asyncio.Task[None]] = set()
        self.store_endpoint = ""
        self.gcs_endpoint = config.gcs_endpoint
        self._handlers: dict[type[Any], Callable[[LocalProcess, Any], None]] = {
            node.RequestLease: self._on_request_lease,
            node.CancelLeaseRequest: self._on_cancel_request,
            node.TellBacklog: self._on_backlog,
            node.ReturnLease: self._on_return_lease,
            node.Blocked: self._on_blocked,
            node.Unblocked: self._on_unblocked,
            node.ControlCall: self._gateway.call,
            node.KillWorker: self._on_kill_worker,
            node.ActorCreated: self._actors.created,
            node.ActorCreationFailed: self._actors.creation_failed,
            node.Exiting: self._on_exiting,
            node.TaskEvents: self._on_events,
            node.UserMetrics: self._on_user_metrics,
            node.SubscribeActor: self._on_subscribe,
            node.UnsubscribeActor: self._on_unsubscribe,
            node.ObjectsReport: on_objects,
            node.WaitsReport: on_waits,
            node.PullObject: self._on_pull,
            node.CancelPull: self._on_cancel_pull,
            node.DeleteCopies: self._on_delete_copies,
            node.KeepCopies: self._on_keep_copies,
            node.KnowOwner: self._on_know_owner,
            node.SubscribePlacementGroup: groups.subscribe,
            node.LogsTaken: self._logs.on_taken,
            node.FlushLogs: self._logs.on_flush,
        }

    def start(self) -> str:
        """Listen; returns the endpoint. Raises ``OSError`` when it can not."""
        self._listener = StreamListener(
            self._config.stream_endpoint,
            self._config.token.encode(),
            self._loop,
            incoming=node.FromProcess,
            on_open=self._on_open,
            on_messages=self._on_messages,
            on_close=self._on_close,
        )
        return self._listener.endpoint

    def stop_listening(self) -> None:
        """Take no new processes."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def close(self, reason: str) -> None:
        """Hang up on everybody."""
        self.stop_listening()
        for connection, timer in list(self._open.items()):
            timer.cancel()
            connection.close(reason)
        for process in self._processes:
            process.connection.close(reason)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the closing callbacks

    # ---- the stream's callbacks ----

    def _on_open(self, connection: Connection) -> None:
        reason = f"it did not register within {REGISTER_DEADLINE_S:g} s"
        self._open[connection] = self._loop.call_later(
            REGISTER_DEADLINE_S, connection.close, reason
        )

    def _on_messages(self, connection: Connection, batch: list[Any]) -> None:
        for message in batch:
            process = connection.context
            if type(message) is node.RegisterProcess:
                if connection not in self._introduced:
                    self._introduced[connection] = None
                    self._on_first(connection, message)
            elif process is None:
                connection.close("the first message must register the process")
            elif not is_new(message, process.serials):
                continue
            elif (handler := self._handlers.get(type(message))) is not None:
                handler(process, message)
            else:
                connection.close(f"unexpected {type(message).__name__}")

    def _on_close(self, connection: Connection, reason: str) -> None:
        self._introduced.pop(connection, None)
        timer = self._open.pop(connection, None)
        if timer is not None:
            timer.cancel()
        process: LocalProcess | None = connection.context
        if process is None:
            return
        self._directory.forget(process)
        if self._user_metrics is not None:
            self._user_metrics.forget(process.worker_id)
        if process.is_driver:
            if self._processes.remove(process.worker_id) is not None:
                self._on_driver_gone(process, reason)
        else:
            worker = self._workers.get(process.startup_id)
            if worker is not None:
                self._workers.hung_up(worker)

    # ---- registration ----

    def _on_first(self, connection: Connection, message: node.RegisterProcess) -> None:
        if len(message.worker_id) != WORKER_ID_BYTES or self._processes.get(message.worker_id):
            self._refuse(connection, "The worker id is malformed or taken.")
        elif message.is_driver:
            task = asyncio.create_task(self._register_driver(connection, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._register_worker(connection, message)

    def _refuse(self, connection: Connection, error: str) -> None:
        connection.send(node.ProcessRegistered(error=error))
        connection.close("registration refused")

    def _register_worker(self, connection: Connection, message: node.RegisterProcess) -> None:
        worker = self._workers.get(message.startup_id)
        if worker is None or worker.local is not None:
            self._refuse(
                connection, "This node did not start such a worker, or no longer waits for it."
            )
        elif worker.pid == 0:
            # Quicker than the zygote's answer, which is to confirm the pid.
            worker.on_forked = lambda: self._register_worker(connection, message)
        elif worker.pid != message.pid:
            self._refuse(connection, f"Start {message.startup_id} is another process.")
        elif not connection.is_closed:
            self._accept_worker(connection, message, worker)

    def _accept_worker(
        self, connection: Connection, message: node.RegisterProcess, worker: WorkerProcess
    ) -> None:
        job = self._jobs.get(worker.job_id)
        process = LocalProcess(
            worker_id=message.worker_id,
            pid=message.pid,
            job_id=worker.job_id,
            namespace=job.namespace,
            endpoint=message.endpoint,
            is_driver=False,
            startup_id=worker.startup_id,
            connection=connection,
        )
        worker.local = process
        self._admit(process)
        self._tell(on.WorkerRegistered(worker.startup_id, message.worker_id))

    async def _register_driver(self, connection: Connection, message: node.RegisterProcess) -> None:
        namespace = message.namespace or os.urandom(16).hex()
        metadata = dict(message.metadata)
        if message.sys_path:
            metadata[SYS_PATH_KEY] = json.dumps(message.sys_path)
        if message.wants_logs:
            metadata[LOGS_KEY] = "1"
        info = gcs_pb2.JobInfo(
            driver=common_pb2.Address(
                node_id=self._config.node_id,
                worker_id=message.worker_id,
                endpoint=message.endpoint,
            ),
            driver_pid=message.pid,
            entrypoint=message.entrypoint,
            namespace=namespace,
            metadata=metadata,
        )
        try:
            job_id = await self._link.client.jobs.add(info)
        except RpcError as error:
            if not connection.is_closed:
                self._refuse(connection, f"The GCS could not take the new job: {error}")
            return
        self._jobs.update(
            Job(
                job_id,
                namespace,
                tuple(message.sys_path),
                wants_logs=message.wants_logs,
                driver_node_id=self._config.node_id,
            )
        )
        process = LocalProcess(
            worker_id=message.worker_id,
            pid=message.pid,
            job_id=job_id,
            namespace=namespace,
            endpoint=message.endpoint,
            is_driver=True,
            startup_id=0,
            connection=connection,
        )
        if connection.is_closed:
            self._on_driver_gone(process, "it hung up before it was registered")
            return
        self._admit(process)
        if message.wants_logs:
            self._logs.driver_joined(process)

    def _admit(self, process: LocalProcess) -> None:
        timer = self._open.pop(process.connection, None)
        if timer is not None:
            timer.cancel()
        process.connection.context = process
        self._processes.add(process)
        process.send(
            node.ProcessRegistered(
                node_id=self._config.node_id,
                job_id=process.job_id,
                namespace=process.namespace,
                store_endpoint=self.store_endpoint,
                session_dir=self._config.session_dir,
                gcs_endpoint=self.gcs_endpoint,
                is_tracing=self._config.is_tracing,
            )
        )

    # ---- messages ----

    def _on_request_lease(self, process: LocalProcess, message: node.RequestLease) -> None:
        try:
            strategy = _strategy_of(message)
        except LabelError as error:
            refusal = node.LeaseRefused(message.request_id, "invalid", str(error))
            process.send(refusal)
            return
        self._tell(
            on.LeaseRequested(
                process.worker_id,
                message.request_id,
                process.job_id,
                ResourceSet(message.resources),
                tuple(sorted(message.env_vars.items())),
                max(0, message.backlog),
                strategy,
                near=tuple(message.near[:NEAR_MAX]),
            )
        )

    def _on_cancel_request(self, process: LocalProcess, message: node.CancelLeaseRequest) -> None:
        self._tell(on.LeaseRequestCancelled(process.worker_id, message.request_id))

    def _on_backlog(self, process: LocalProcess, message: node.TellBacklog) -> None:
        backlogs = tuple((number, max(0, count)) for number, count in message.backlogs)
        self._tell(on.BacklogTold(process.worker_id, backlogs))

    def _on_return_lease(self, process: LocalProcess, message: node.ReturnLease) -> None:
        self._tell(on.LeaseReturned(process.worker_id, message.lease_id, message.discard))

    def _on_blocked(self, process: LocalProcess, message: node.Blocked) -> None:
        self._tell(on.WorkerBlocked(process.worker_id))

    def _on_unblocked(self, process: LocalProcess, message: node.Unblocked) -> None:
        self._tell(on.WorkerUnblocked(process.worker_id))

    def _on_kill_worker(self, process: LocalProcess, message: node.KillWorker) -> None:
        lease = self._machine.lease_of(message.lease_id)
        if (
            lease is not None
            and lease.holder_id == process.worker_id
            and isinstance(lease.state, Granted)
        ):
            self._tell(on.WorkerUnfit(lease.state.startup_id, "killed_by_user", message.reason))
        elif lease is None:
            killed = loan.BorrowedKilled(process.worker_id, message.lease_id, message.reason)
            self._tell(killed)

    def _on_exiting(self, process: LocalProcess, message: node.Exiting) -> None:
        worker = self._workers.get(process.startup_id)
        if worker is not None:
            self._workers.announce_exit(worker, message.reason)
            self._tell(on.WorkerRetiring(process.startup_id))

    def _on_events(self, process: LocalProcess, message: node.TaskEvents) -> None:
        if self._on_task_events is not None:
            self._on_task_events(message.events)

    def _on_user_metrics(self, process: LocalProcess, message: node.UserMetrics) -> None:
        if self._user_metrics is not None:
            self._user_metrics.record(process.worker_id, message.metrics)

    def _on_subscribe(self, process: LocalProcess, message: node.SubscribeActor) -> None:
        self._directory.subscribe(process, message.actor_id)

    def _on_unsubscribe(self, process: LocalProcess, message: node.UnsubscribeActor) -> None:
        self._directory.unsubscribe(process, message.actor_id)

    def _on_pull(self, process: LocalProcess, message: node.PullObject) -> None:
        self._transfers.pull(process.worker_id, message)

    def _on_delete_copies(self, process: LocalProcess, message: node.DeleteCopies) -> None:
        self._transfers.delete_copies(message)

    def _on_keep_copies(self, process: LocalProcess, message: node.KeepCopies) -> None:
        self._transfers.keep_copies(process.worker_id, message)

    def _on_know_owner(self, process: LocalProcess, message: node.KnowOwner) -> None:
        self._owners.know(message.owner_id, message.node_id)

    def _on_cancel_pull(self, process: LocalProcess, message: node.CancelPull) -> None:
        self._transfers.cancel(process.worker_id, message)


def _strategy_of(message: node.RequestLease) -> on.Strategy:
    if message.placement_group_id:
        return on.Strategy(group_id=message.placement_group_id, bundle_index=message.bundle_index)
    if message.node_id or message.is_spread or message.labels:
        return on.Strategy(
            message.is_spread,
            message.node_id,
            message.is_soft,
            message.is_impatient,
            label_rules(message.labels),
        )
    return on.DEFAULT_STRATEGY
