"""The client of the GCS: one class per service, gathered in :class:`GcsClient`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

import grpc.aio

from skate_rpc.calls import Caller, RetryPolicy
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2, gcs_pb2_grpc
from skate_rpc.grpc_limits import KV_VALUE_BYTES_MAX
from skate_rpc.methods import DEFAULT_DEADLINE_S, KV_BYTES_PER_S, METHODS


class GcsClient:
    """Every service of the GCS over one channel."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        target: str = "",
        retry: RetryPolicy | None = None,
        patience_s: float = DEFAULT_DEADLINE_S,
    ) -> None:
        """``target`` is named in errors; ``patience_s``: how long calls without a ``timeout_s`` may
        take. The channel stays the caller's to close.
        """
        caller = Caller(channel, target, retry, patience_s)
        self.nodes = NodeClient(caller)
        self.jobs = JobClient(caller)
        self.actors = ActorClient(caller)
        self.groups = PlacementGroupClient(caller)
        self.workers = WorkerClient(caller)
        self.kv = KvClient(caller)
        self.events = EventClient(caller)


class NodeClient:
    """NodeService: the node table and the heartbeat."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.NodeServiceStub(caller.channel)

    async def register(
        self, node: gcs_pb2.NodeInfo, *, timeout_s: float | None = None
    ) -> gcs_pb2.RegisterNodeReply:
        """Announce a node; returns the cluster's id and the life of its GCS."""
        return await self._caller.unary(
            "NodeService.Register",
            self._stub.Register,
            gcs_pb2.RegisterNodeRequest(node=node),
            timeout_s,
        )

    async def unregister(
        self,
        node_id: bytes,
        cause: common_pb2.DeathCause | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """Declare a node dead."""
        await self._caller.unary(
            "NodeService.Unregister",
            self._stub.Unregister,
            gcs_pb2.UnregisterNodeRequest(node_id=node_id, cause=cause),
            timeout_s,
        )

    async def list(self, *, timeout_s: float | None = None) -> Sequence[gcs_pb2.NodeInfo]:
        """Every node, dead ones too."""
        reply = await self._caller.unary(
            "NodeService.List", self._stub.List, gcs_pb2.ListNodesRequest(), timeout_s
        )
        return reply.nodes

    async def drain(
        self, node_id: bytes, drain: gcs_pb2.DrainInfo, *, timeout_s: float | None = None
    ) -> gcs_pb2.DrainNodeReply:
        """Have a node take no new work and leave. ``accepted`` is True for a dead one too."""
        return await self._caller.unary(
            "NodeService.Drain",
            self._stub.Drain,
            gcs_pb2.DrainNodeRequest(node_id=node_id, drain=drain),
            timeout_s,
        )

    async def report_resources(
        self, report: gcs_pb2.ReportResourcesRequest, *, timeout_s: float | None = None
    ) -> gcs_pb2.ReportResourcesReply:
        """Send the heartbeat. Not ``known``: the GCS thinks this node dead, and it must exit."""
        return await self._caller.unary(
            "NodeService.ReportResources", self._stub.ReportResources, report, timeout_s
        )

    async def list_demands(self, *, timeout_s: float | None = None) -> gcs_pb2.ListDemandsReply:
        """What waits for room in the whole cluster, by shape. Amounts are in units of 1e-4."""
        return await self._caller.unary(
            "NodeService.ListDemands",
            self._stub.ListDemands,
            gcs_pb2.ListDemandsRequest(),
            timeout_s,
        )


class JobClient:
    """JobService: one job per driver."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.JobServiceStub(caller.channel)

    async def add(self, job: gcs_pb2.JobInfo, *, timeout_s: float | None = None) -> bytes:
        """Announce a driver; returns its job's id."""
        reply = await self._caller.unary(
            "JobService.Add", self._stub.Add, gcs_pb2.AddJobRequest(job=job), timeout_s
        )
        return reply.job_id

    async def finish(
        self,
        job_id: bytes,
        cause: common_pb2.DeathCause | None = None,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """The driver is gone: its actors that are not detached end."""
        await self._caller.unary(
            "JobService.Finish",
            self._stub.Finish,
            gcs_pb2.FinishJobRequest(job_id=job_id, cause=cause),
            timeout_s,
        )

    async def list(self, *, timeout_s: float | None = None) -> Sequence[gcs_pb2.JobInfo]:
        """Every job, finished ones too."""
        reply = await self._caller.unary(
            "JobService.List", self._stub.List, gcs_pb2.ListJobsRequest(), timeout_s
        )
        return reply.jobs


class ActorClient:
    """ActorService: the actor table."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.ActorServiceStub(caller.channel)

    async def register(
        self,
        spec: gcs_pb2.ActorSpec,
        get_if_exists: bool = False,
        *,
        timeout_s: float | None = None,
    ) -> gcs_pb2.RegisterActorReply:
        """Create an actor; answered before it runs. ``created`` False: the name was taken."""
        return await self._caller.unary(
            "ActorService.Register",
            self._stub.Register,
            gcs_pb2.RegisterActorRequest(spec=spec, get_if_exists=get_if_exists),
            timeout_s,
        )

    async def get(
        self, actor_id: bytes, *, timeout_s: float | None = None
    ) -> gcs_pb2.ActorInfo | None:
        """The actor's row; None when there is none."""
        reply = await self._caller.unary(
            "ActorService.Get",
            self._stub.Get,
            gcs_pb2.GetActorRequest(actor_id=actor_id),
            timeout_s,
        )
        return reply.info if reply.found else None

    async def get_named(
        self, name: str, namespace: str, *, timeout_s: float | None = None
    ) -> gcs_pb2.ActorInfo | None:
        """The row of the actor that has this name now; None when nobody has it."""
        reply = await self._caller.unary(
            "ActorService.GetNamed",
            self._stub.GetNamed,
            gcs_pb2.GetNamedActorRequest(name=name, namespace=namespace),
            timeout_s,
        )
        return reply.info if reply.found else None

    async def list(self, *, timeout_s: float | None = None) -> Sequence[gcs_pb2.ActorInfo]:
        """Every actor that the GCS remembers, dead ones too."""
        reply = await self._caller.unary(
            "ActorService.List", self._stub.List, gcs_pb2.ListActorsRequest(), timeout_s
        )
        return reply.actors

    async def kill(
        self,
        actor_id: bytes,
        no_restart: bool = True,
        cause: common_pb2.DeathCause | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bool:
        """End an actor's worker; whether the actor was found. Repeated only with ``no_restart``."""
        reply = await self._caller.unary(
            "ActorService.Kill",
            self._stub.Kill,
            gcs_pb2.KillActorRequest(actor_id=actor_id, no_restart=no_restart, cause=cause),
            timeout_s,
            may_repeat=no_restart,
        )
        return reply.found

    async def release(self, actor_id: bytes, *, timeout_s: float | None = None) -> None:
        """Every handle is gone: the actor ends after the calls that it has."""
        await self._caller.unary(
            "ActorService.Release",
            self._stub.Release,
            gcs_pb2.ReleaseActorRequest(actor_id=actor_id),
            timeout_s,
        )

    async def report_started(
        self,
        actor_id: bytes,
        incarnation: int,
        address: common_pb2.Address,
        pid: int,
        *,
        timeout_s: float | None = None,
    ) -> bool:
        """The constructor ran; False: a stale incarnation, whose worker must be killed."""
        reply = await self._caller.unary(
            "ActorService.ReportStarted",
            self._stub.ReportStarted,
            gcs_pb2.ReportActorStartedRequest(
                actor_id=actor_id, incarnation=incarnation, address=address, pid=pid
            ),
            timeout_s,
        )
        return reply.accepted

    async def report_failed(
        self,
        actor_id: bytes,
        incarnation: int,
        cause: common_pb2.DeathCause,
        creation_error: bytes = b"",
        *,
        timeout_s: float | None = None,
    ) -> None:
        """One life of the actor ended, or never began; ``creation_error`` is opaque here."""
        await self._caller.unary(
            "ActorService.ReportFailed",
            self._stub.ReportFailed,
            gcs_pb2.ReportActorFailedRequest(
                actor_id=actor_id,
                incarnation=incarnation,
                cause=cause,
                creation_error=creation_error,
            ),
            timeout_s,
        )


class PlacementGroupClient:
    """PlacementGroupService: the placement-group table."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.PlacementGroupServiceStub(caller.channel)

    async def register(
        self, specs: Sequence[gcs_pb2.PlacementGroupSpec], *, timeout_s: float | None = None
    ) -> Sequence[gcs_pb2.RegisteredPlacementGroup]:
        """Create groups; answered in their order, before they are placed."""
        reply = await self._caller.unary(
            "PlacementGroupService.Register",
            self._stub.Register,
            gcs_pb2.RegisterPlacementGroupsRequest(specs=specs),
            timeout_s,
        )
        return reply.groups

    async def remove(
        self, group_ids: Sequence[bytes], reason: str = "", *, timeout_s: float | None = None
    ) -> None:
        """Remove groups; unknown ones are nothing to remove."""
        await self._caller.unary(
            "PlacementGroupService.Remove",
            self._stub.Remove,
            gcs_pb2.RemovePlacementGroupsRequest(group_ids=group_ids, reason=reason),
            timeout_s,
        )

    async def get(
        self, group_id: bytes, *, timeout_s: float | None = None
    ) -> gcs_pb2.PlacementGroupInfo | None:
        """The group's row; None when there is none."""
        return await self._get(gcs_pb2.GetPlacementGroupRequest(group_id=group_id), timeout_s)

    async def get_named(
        self, name: str, namespace: str, *, timeout_s: float | None = None
    ) -> gcs_pb2.PlacementGroupInfo | None:
        """The row of the group that has this name now; None when nobody has it."""
        request = gcs_pb2.GetPlacementGroupRequest(name=name, namespace=namespace)
        return await self._get(request, timeout_s)

    async def list(self, *, timeout_s: float | None = None) -> Sequence[gcs_pb2.PlacementGroupInfo]:
        """Every group that the GCS remembers, removed ones too."""
        reply = await self._caller.unary(
            "PlacementGroupService.List",
            self._stub.List,
            gcs_pb2.ListPlacementGroupsRequest(),
            timeout_s,
        )
        return reply.groups

    async def _get(
        self, request: gcs_pb2.GetPlacementGroupRequest, timeout_s: float | None
    ) -> gcs_pb2.PlacementGroupInfo | None:
        reply = await self._caller.unary(
            "PlacementGroupService.Get", self._stub.Get, request, timeout_s
        )
        return reply.info if reply.found else None


class WorkerClient:
    """WorkerService: which workers died, and why."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.WorkerServiceStub(caller.channel)

    async def report_death(
        self, worker: gcs_pb2.WorkerInfo, *, timeout_s: float | None = None
    ) -> None:
        """A worker or driver of this node died."""
        await self._caller.unary(
            "WorkerService.ReportDeath",
            self._stub.ReportDeath,
            gcs_pb2.ReportWorkerDeathRequest(worker=worker),
            timeout_s,
        )

    async def list_dead(self, *, timeout_s: float | None = None) -> Sequence[gcs_pb2.WorkerInfo]:
        """The last dead workers, newest last, at most 1000."""
        reply = await self._caller.unary(
            "WorkerService.ListDead", self._stub.ListDead, gcs_pb2.ListWorkersRequest(), timeout_s
        )
        return reply.workers


class KvClient:
    """KvService: small values, and the function table (namespace ``"fun"``)."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.KvServiceStub(caller.channel)

    async def put(
        self,
        namespace: str,
        key: bytes,
        value: bytes,
        overwrite: bool = True,
        *,
        timeout_s: float | None = None,
    ) -> bool:
        """Store a value; whether it was stored, which without ``overwrite`` needs a new key.

        When the GCS goes away after storing it and before answering, the repeated call finds the
        key present: without ``overwrite``, False then means "present", and perhaps by this very
        call.

        Raises:
            RpcError: code ``"INVALID_ARGUMENT"`` for a value over ``KV_VALUE_BYTES_MAX``.
        """
        method = METHODS["KvService.Put"]
        if len(value) > KV_VALUE_BYTES_MAX:
            raise RpcError(
                "INVALID_ARGUMENT",
                f"the value has {len(value)} bytes; at most {KV_VALUE_BYTES_MAX} fit a message."
                " Put large data into the object store.",
                method.full_name,
                self._caller.target,
            )
        if timeout_s is None:
            timeout_s = self._caller.deadline_s(method, None) + len(value) / KV_BYTES_PER_S
        reply = await self._caller.unary(
            method.full_name,
            self._stub.Put,
            gcs_pb2.KvPutRequest(namespace=namespace, key=key, value=value, overwrite=overwrite),
            timeout_s,
        )
        return reply.added

    async def get(
        self, namespace: str, key: bytes, *, timeout_s: float | None = None
    ) -> bytes | None:
        """The value; None when there is none."""
        reply = await self._caller.unary(
            "KvService.Get",
            self._stub.Get,
            gcs_pb2.KvGetRequest(namespace=namespace, key=key),
            timeout_s,
        )
        return reply.value if reply.found else None

    async def delete(
        self,
        namespace: str,
        key: bytes,
        is_prefix: bool = False,
        *,
        timeout_s: float | None = None,
    ) -> int:
        """Delete a key, or all keys that begin with it; how many there were (see :meth:`put`)."""
        reply = await self._caller.unary(
            "KvService.Delete",
            self._stub.Delete,
            gcs_pb2.KvDeleteRequest(namespace=namespace, key=key, is_prefix=is_prefix),
            timeout_s,
        )
        return reply.deleted

    async def keys(
        self, namespace: str, prefix: bytes = b"", *, timeout_s: float | None = None
    ) -> Sequence[bytes]:
        """The keys of a namespace that begin with ``prefix``."""
        reply = await self._caller.unary(
            "KvService.Keys",
            self._stub.Keys,
            gcs_pb2.KvKeysRequest(namespace=namespace, prefix=prefix),
            timeout_s,
        )
        return reply.keys


class EventClient:
    """EventService: changes of the tables."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._stub = gcs_pb2_grpc.EventServiceStub(caller.channel)

    async def subscribe(
        self, channels: Iterable[str], node_id: bytes = b""
    ) -> AsyncGenerator[gcs_pb2.Event, None]:
        """Follow tables: their present rows, an event with ``snapshot_end``, then every change.

        The channels are ``"actor"``, ``"node"``, ``"job"``, ``"worker"`` and
        ``"placement_group"``. The stream lasts until
        it breaks with an error. After an ``RpcUnavailableError`` (the GCS is away) or the code
        ``"RESOURCE_EXHAUSTED"`` (this reader was too slow), subscribe again and take the new
        snapshot for the truth. ``node_id``: the subscriber is this node's raylet; when its stream
        breaks, the GCS looks at once whether the node lives.
        """
        messages = self._caller.stream(
            "EventService.Subscribe",
            self._stub.Subscribe,
            gcs_pb2.SubscribeRequest(channels=channels, node_id=node_id),
        )
        async with aclosing(messages):
            async for message in messages:
                if message.batch:
                    for event in message.batch:
                        yield event
                else:
                    yield message
