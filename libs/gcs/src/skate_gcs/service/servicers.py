"""The gRPC services: each method turns its request into an event, and the answer into a reply."""

# ruff: noqa: N802  the methods are named by the protocol

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio

from skate_gcs.machine import events
from skate_gcs.machine.answers import ActorFound, GroupFound, RefusalKind
from skate_gcs.machine.records import DrainReason, DrainRecord
from skate_gcs.service.convert import (
    actor_to,
    address_from,
    bundle_ref_from,
    bundle_ref_to,
    cause_from,
    demand_from,
    demand_to,
    drain_from,
    event_to,
    group_demand_to,
    group_spec_from,
    group_to,
    job_from,
    job_to,
    node_from,
    node_to,
    resources_from,
    spec_from,
    worker_from,
    worker_to,
)
from skate_gcs.service.hub import (
    EVENTS_PER_MESSAGE_MAX,
    Hub,
    HubClosedError,
    SlowSubscriberError,
)
from skate_gcs.service.node_calls import NodeCalls
from skate_gcs.service.runner import (
    RequestFailedError,
    RequestLostError,
    RequestRefusedError,
    Runner,
)
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2, gcs_pb2_grpc
from skate_scheduler import LabelError

_A = TypeVar("_A")
_Context = grpc.aio.ServicerContext[Any, Any]

_REFUSAL_CODES = {
    RefusalKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    RefusalKind.FENCED: grpc.StatusCode.FAILED_PRECONDITION,
}


class _Asker:
    """What all servicers do: enqueue, await the answer, translate failures."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    async def _ask(self, request: events.Request[_A], context: _Context) -> _A:
        try:
            return await self._runner.ask(request)
        except RequestRefusedError as error:
            await _abort(context, _REFUSAL_CODES[error.refusal.kind], error)
        except RequestLostError as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, error)
        except RequestFailedError as error:
            await _abort(context, grpc.StatusCode.INTERNAL, error)


async def _abort(context: _Context, code: grpc.StatusCode, error: Exception | str) -> NoReturn:
    await context.abort(code, str(error))
    raise AssertionError("abort raises")


class NodeServicer(_Asker, gcs_pb2_grpc.NodeServiceServicer):
    """NodeService. ``life`` is the number of this GCS's start."""

    def __init__(self, runner: Runner, node_calls: NodeCalls, life: int) -> None:
        super().__init__(runner)
        self._node_calls = node_calls
        self._life = life

    async def Register(
        self, request: gcs_pb2.RegisterNodeRequest, context: _Context
    ) -> gcs_pb2.RegisterNodeReply:
        """See gcs.proto."""
        answer = await self._ask(events.NodeRegistered(node_from(request.node)), context)
        return gcs_pb2.RegisterNodeReply(cluster_id=answer.cluster_id, gcs_life=self._life)

    async def Unregister(
        self, request: gcs_pb2.UnregisterNodeRequest, context: _Context
    ) -> gcs_pb2.UnregisterNodeReply:
        """See gcs.proto."""
        await self._ask(
            events.NodeUnregistered(request.node_id, cause_from(request.cause)), context
        )
        return gcs_pb2.UnregisterNodeReply()

    async def List(
        self, request: gcs_pb2.ListNodesRequest, context: _Context
    ) -> gcs_pb2.ListNodesReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListNodes(), context)
        return gcs_pb2.ListNodesReply(nodes=map(node_to, answer.records))

    async def ReportResources(
        self, request: gcs_pb2.ReportResourcesRequest, context: _Context
    ) -> gcs_pb2.ReportResourcesReply:
        """See gcs.proto."""
        demands = None
        if request.has_demands:
            try:
                demands = tuple(map(demand_from, request.demands))
            except LabelError as error:
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        answer = await self._ask(
            events.ResourcesReported(
                request.node_id,
                request.version,
                resources_from(request.available),
                resources_from(request.total),
                tuple(map(bundle_ref_from, request.bundles)) if request.has_bundles else None,
                drain_from(request.drain) if request.HasField("drain") else None,
                demands,
                request.demands_left_out,
            ),
            context,
        )
        return gcs_pb2.ReportResourcesReply(
            known=answer.value,
            gcs_life=self._life,
            stale_bundles=map(bundle_ref_to, answer.stale_bundles),
        )

    async def ListDemands(
        self, request: gcs_pb2.ListDemandsRequest, context: _Context
    ) -> gcs_pb2.ListDemandsReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListDemands(), context)
        return gcs_pb2.ListDemandsReply(
            demands=map(demand_to, answer.demands),
            groups=map(group_demand_to, answer.groups),
            demands_left_out=answer.demands_left_out,
            groups_left_out=answer.groups_left_out,
        )

    async def Drain(
        self, request: gcs_pb2.DrainNodeRequest, context: _Context
    ) -> gcs_pb2.DrainNodeReply:
        """See gcs.proto. The node decides; what it agrees to is stored before it is answered."""
        drain = drain_from(request.drain)
        problem = _problem_of_drain(drain)
        if problem:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        nodes = await self._ask(events.ListNodes(), context)
        node = next((row for row in nodes.records if row.node_id == request.node_id), None)
        if node is None:
            problem = f"There is no node {request.node_id.hex()}."
            await _abort(context, grpc.StatusCode.NOT_FOUND, problem)
        if not node.is_alive:
            return gcs_pb2.DrainNodeReply(accepted=True)
        try:
            rejection = await self._node_calls.drain(node, drain)
        except RpcError as error:
            problem = f"The node {node.node_id.hex()} did not answer: {error.message}"
            await _abort(context, grpc.StatusCode.UNAVAILABLE, problem)
        if rejection:
            return gcs_pb2.DrainNodeReply(accepted=False, rejection=rejection)
        await self._ask(events.NodeDrained(node.node_id, drain), context)
        return gcs_pb2.DrainNodeReply(accepted=True)


class JobServicer(_Asker, gcs_pb2_grpc.JobServiceServicer):
    """JobService."""

    async def Add(self, request: gcs_pb2.AddJobRequest, context: _Context) -> gcs_pb2.AddJobReply:
        """See gcs.proto."""
        answer = await self._ask(events.JobAdded(job_from(request.job)), context)
        return gcs_pb2.AddJobReply(job_id=answer.job_id)

    async def Finish(
        self, request: gcs_pb2.FinishJobRequest, context: _Context
    ) -> gcs_pb2.FinishJobReply:
        """See gcs.proto."""
        await self._ask(events.JobFinished(request.job_id, cause_from(request.cause)), context)
        return gcs_pb2.FinishJobReply()

    async def List(
        self, request: gcs_pb2.ListJobsRequest, context: _Context
    ) -> gcs_pb2.ListJobsReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListJobs(), context)
        return gcs_pb2.ListJobsReply(jobs=map(job_to, answer.records))


class ActorServicer(_Asker, gcs_pb2_grpc.ActorServiceServicer):
    """ActorService."""

    async def Register(
        self, request: gcs_pb2.RegisterActorRequest, context: _Context
    ) -> gcs_pb2.RegisterActorReply:
        """See gcs.proto."""
        try:
            spec = spec_from(request.spec)
        except LabelError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        answer = await self._ask(events.ActorRegistered(spec, request.get_if_exists), context)
        return gcs_pb2.RegisterActorReply(info=actor_to(answer.record), created=answer.is_new)

    async def Get(
        self, request: gcs_pb2.GetActorRequest, context: _Context
    ) -> gcs_pb2.GetActorReply:
        """See gcs.proto."""
        answer = await self._ask(events.GetActor(request.actor_id), context)
        return _found(answer)

    async def GetNamed(
        self, request: gcs_pb2.GetNamedActorRequest, context: _Context
    ) -> gcs_pb2.GetActorReply:
        """See gcs.proto."""
        answer = await self._ask(events.GetNamedActor(request.name, request.namespace), context)
        return _found(answer)

    async def List(
        self, request: gcs_pb2.ListActorsRequest, context: _Context
    ) -> gcs_pb2.ListActorsReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListActors(), context)
        return gcs_pb2.ListActorsReply(actors=map(actor_to, answer.records))

    async def Kill(
        self, request: gcs_pb2.KillActorRequest, context: _Context
    ) -> gcs_pb2.KillActorReply:
        """See gcs.proto."""
        cause = cause_from(request.cause) if request.HasField("cause") else None
        answer = await self._ask(
            events.ActorKilled(request.actor_id, request.no_restart, cause), context
        )
        return gcs_pb2.KillActorReply(found=answer.value)

    async def Release(
        self, request: gcs_pb2.ReleaseActorRequest, context: _Context
    ) -> gcs_pb2.ReleaseActorReply:
        """See gcs.proto."""
        await self._ask(events.ActorReleased(request.actor_id), context)
        return gcs_pb2.ReleaseActorReply()

    async def ReportStarted(
        self, request: gcs_pb2.ReportActorStartedRequest, context: _Context
    ) -> gcs_pb2.ReportActorStartedReply:
        """See gcs.proto."""
        answer = await self._ask(
            events.ActorStarted(
                request.actor_id, request.incarnation, address_from(request.address), request.pid
            ),
            context,
        )
        return gcs_pb2.ReportActorStartedReply(accepted=answer.value)

    async def ReportFailed(
        self, request: gcs_pb2.ReportActorFailedRequest, context: _Context
    ) -> gcs_pb2.ReportActorFailedReply:
        """See gcs.proto."""
        await self._ask(
            events.ActorFailed(
                request.actor_id,
                request.incarnation,
                cause_from(request.cause),
                request.creation_error,
            ),
            context,
        )
        return gcs_pb2.ReportActorFailedReply()


def _problem_of_drain(drain: DrainRecord) -> str:
    """Why the order makes no sense, or nothing."""
    if drain.reason is DrainReason.UNSPECIFIED:
        return "A drain needs a reason: idle termination or preemption."
    if not drain.deadline_s >= 0.0:
        return f"A drain's deadline is a time from now on, or 0 for none, got {drain.deadline_s}."
    return ""


def _found(answer: ActorFound) -> gcs_pb2.GetActorReply:
    if answer.record is None:
        return gcs_pb2.GetActorReply(found=False)
    return gcs_pb2.GetActorReply(found=True, info=actor_to(answer.record))


class PlacementGroupServicer(_Asker, gcs_pb2_grpc.PlacementGroupServiceServicer):
    """PlacementGroupService."""

    async def Register(
        self, request: gcs_pb2.RegisterPlacementGroupsRequest, context: _Context
    ) -> gcs_pb2.RegisterPlacementGroupsReply:
        """See gcs.proto."""
        created = [events.GroupCreated(group_spec_from(spec)) for spec in request.specs]
        answers = await asyncio.gather(
            *map(self._runner.ask, created), return_exceptions=True
        )  # they are many: one batch, one commit
        reply = gcs_pb2.RegisterPlacementGroupsReply()
        for answer in answers:
            if isinstance(answer, RequestRefusedError):
                reply.groups.add(refusal=str(answer))
            elif isinstance(answer, RequestLostError):
                await _abort(context, grpc.StatusCode.UNAVAILABLE, answer)
            elif isinstance(answer, RequestFailedError):
                await _abort(context, grpc.StatusCode.INTERNAL, answer)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer.is_new:
                reply.groups.add(info=group_to(answer.record))
            else:
                name, namespace = answer.record.spec.name, answer.record.spec.namespace
                refusal = f"The name {name!r} is taken in the namespace {namespace!r}."
                reply.groups.add(info=group_to(answer.record), refusal=refusal, is_name_taken=True)
        return reply

    async def Remove(
        self, request: gcs_pb2.RemovePlacementGroupsRequest, context: _Context
    ) -> gcs_pb2.RemovePlacementGroupsReply:
        """See gcs.proto."""
        removed = [events.GroupRemoved(group_id, request.reason) for group_id in request.group_ids]
        await asyncio.gather(*(self._ask(event, context) for event in removed))
        return gcs_pb2.RemovePlacementGroupsReply()

    async def Get(
        self, request: gcs_pb2.GetPlacementGroupRequest, context: _Context
    ) -> gcs_pb2.GetPlacementGroupReply:
        """See gcs.proto."""
        question: events.GetGroup | events.GetNamedGroup
        if request.group_id:
            question = events.GetGroup(request.group_id)
        else:
            question = events.GetNamedGroup(request.name, request.namespace)
        answer: GroupFound = await self._ask(question, context)
        if answer.record is None:
            return gcs_pb2.GetPlacementGroupReply(found=False)
        return gcs_pb2.GetPlacementGroupReply(found=True, info=group_to(answer.record))

    async def List(
        self, request: gcs_pb2.ListPlacementGroupsRequest, context: _Context
    ) -> gcs_pb2.ListPlacementGroupsReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListGroups(), context)
        return gcs_pb2.ListPlacementGroupsReply(groups=map(group_to, answer.records))


class WorkerServicer(_Asker, gcs_pb2_grpc.WorkerServiceServicer):
    """WorkerService."""

    async def ReportDeath(
        self, request: gcs_pb2.ReportWorkerDeathRequest, context: _Context
    ) -> gcs_pb2.ReportWorkerDeathReply:
        """See gcs.proto."""
        await self._ask(events.WorkerDied(worker_from(request.worker)), context)
        return gcs_pb2.ReportWorkerDeathReply()

    async def ListDead(
        self, request: gcs_pb2.ListWorkersRequest, context: _Context
    ) -> gcs_pb2.ListWorkersReply:
        """See gcs.proto."""
        answer = await self._ask(events.ListDeadWorkers(), context)
        return gcs_pb2.ListWorkersReply(workers=map(worker_to, answer.records))


class KvServicer(_Asker, gcs_pb2_grpc.KvServiceServicer):
    """KvService."""

    async def Put(self, request: gcs_pb2.KvPutRequest, context: _Context) -> gcs_pb2.KvPutReply:
        """See gcs.proto."""
        answer = await self._ask(
            events.KvPut(request.namespace, request.key, request.value, request.overwrite), context
        )
        return gcs_pb2.KvPutReply(added=answer.value)

    async def Get(self, request: gcs_pb2.KvGetRequest, context: _Context) -> gcs_pb2.KvGetReply:
        """See gcs.proto."""
        answer = await self._ask(events.KvGet(request.namespace, request.key), context)
        return gcs_pb2.KvGetReply(found=answer.value is not None, value=answer.value or b"")

    async def Delete(
        self, request: gcs_pb2.KvDeleteRequest, context: _Context
    ) -> gcs_pb2.KvDeleteReply:
        """See gcs.proto."""
        answer = await self._ask(
            events.KvDelete(request.namespace, request.key, request.is_prefix), context
        )
        return gcs_pb2.KvDeleteReply(deleted=answer.count)

    async def Keys(self, request: gcs_pb2.KvKeysRequest, context: _Context) -> gcs_pb2.KvKeysReply:
        """See gcs.proto."""
        answer = await self._ask(events.KvList(request.namespace, request.prefix), context)
        return gcs_pb2.KvKeysReply(keys=answer.keys)


class EventServicer(gcs_pb2_grpc.EventServiceServicer):
    """EventService."""

    def __init__(self, runner: Runner, hub: Hub) -> None:
        self._runner = runner
        self._hub = hub

    async def Subscribe(
        self, request: gcs_pb2.SubscribeRequest, context: _Context
    ) -> AsyncIterator[gcs_pb2.Event]:
        """See gcs.proto."""
        try:
            channels = tuple(events.Channel(name) for name in request.channels)
        except ValueError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        if not channels:
            problem = f"Name at least one channel of {', '.join(events.Channel)}."
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        subscription = self._hub.open(channels)
        try:
            snapshot = await self._runner.ask(
                events.TakeSnapshot(channels), on_answer=subscription.attach
            )
            for start in range(0, len(snapshot.records), EVENTS_PER_MESSAGE_MAX):
                rows = snapshot.records[start : start + EVENTS_PER_MESSAGE_MAX]
                yield _batch([event_to(record, subscription.sequence) for record in rows])
            del snapshot
            yield gcs_pb2.Event(sequence=subscription.sequence, snapshot_end=True)
            while True:
                yield _batch(await subscription.next())
        except SlowSubscriberError as error:
            problem = f"Too slow: {error}. Subscribe again for a new snapshot."
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, problem)
        except (HubClosedError, RequestLostError) as error:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, error)
        finally:
            self._hub.drop(subscription)
            if request.node_id:
                self._runner.tell(events.SubscriberLeft(request.node_id))


def _batch(events_: list[gcs_pb2.Event]) -> gcs_pb2.Event:
    return events_[0] if len(events_) == 1 else gcs_pb2.Event(batch=events_)
