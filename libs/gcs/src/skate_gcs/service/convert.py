"""Between the wire's messages and the machine's values. No decisions here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from skate_gcs.machine.demand import Demand, GroupDemand
from skate_gcs.machine.records import (
    ActorRecord,
    ActorSpec,
    Address,
    Announced,
    BundleRef,
    BundleSpec,
    DeathCause,
    DeathKind,
    DrainReason,
    DrainRecord,
    JobRecord,
    NodeRecord,
    PlacementGroupRecord,
    PlacementGroupSpec,
    Strategy,
    WorkerRecord,
)
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_scheduler import LabelRules, LabelSelector, ResourceSet

_DEFAULT_STRATEGY = Strategy()
_KINDS = {int(kind): kind for kind in DeathKind}


def cause_from(message: common_pb2.DeathCause) -> DeathCause:
    """An unknown kind (of a newer sender) counts as unspecified; its text is kept."""
    return DeathCause(
        kind=_KINDS.get(message.kind, DeathKind.UNSPECIFIED),
        message=message.message,
        pid=message.pid,
        exit_code=message.exit_code,
        signal=message.signal,
        log_tail=message.log_tail,
    )


def cause_to(cause: DeathCause) -> common_pb2.DeathCause:
    """The wire's form."""
    return common_pb2.DeathCause(
        kind=common_pb2.DeathCause.Kind.ValueType(cause.kind),
        message=cause.message,
        pid=cause.pid,
        exit_code=cause.exit_code,
        signal=cause.signal,
        log_tail=cause.log_tail,
    )


def address_from(message: common_pb2.Address) -> Address:
    """The machine's form."""
    return Address(message.node_id, message.worker_id, message.endpoint)


def address_to(address: Address) -> common_pb2.Address:
    """The wire's form."""
    return common_pb2.Address(
        node_id=address.node_id, worker_id=address.worker_id, endpoint=address.endpoint
    )


def resources_from(message: common_pb2.ResourceSet) -> dict[str, int]:
    """Amounts in units; a zero says no more than an absent name."""
    return {name: units for name, units in message.amounts.items() if units}


def resources_to(amounts: Mapping[str, int]) -> common_pb2.ResourceSet:
    """The wire's form."""
    return common_pb2.ResourceSet(amounts=amounts)


def node_from(message: gcs_pb2.NodeInfo) -> NodeRecord:
    """What a node says of itself; its state is the GCS's to say."""
    return NodeRecord(
        node_id=message.node_id,
        node_name=message.node_name,
        hostname=message.hostname,
        ip_address=message.ip_address,
        raylet_endpoint=message.raylet_endpoint,
        stream_endpoint=message.stream_endpoint,
        store_endpoint=message.store_endpoint,
        metrics_endpoint=message.metrics_endpoint,
        pid=message.pid,
        is_head=message.is_head,
        total=resources_from(message.total),
        available=resources_from(message.available),
        labels=dict(message.labels),
        session_dir=message.session_dir,
        object_endpoint=message.object_endpoint,
    )


def node_to(node: NodeRecord) -> gcs_pb2.NodeInfo:
    """The wire's form."""
    state = gcs_pb2.NodeInfo.STATE_ALIVE if node.is_alive else gcs_pb2.NodeInfo.STATE_DEAD
    return gcs_pb2.NodeInfo(
        node_id=node.node_id,
        node_name=node.node_name,
        hostname=node.hostname,
        ip_address=node.ip_address,
        raylet_endpoint=node.raylet_endpoint,
        stream_endpoint=node.stream_endpoint,
        store_endpoint=node.store_endpoint,
        metrics_endpoint=node.metrics_endpoint,
        pid=node.pid,
        is_head=node.is_head,
        total=resources_to(node.total),
        available=resources_to(node.available),
        labels=node.labels,
        state=state,
        death_cause=cause_to(node.death_cause) if node.death_cause is not None else None,
        start_time_s=node.start_time_s,
        end_time_s=node.end_time_s,
        session_dir=node.session_dir,
        object_endpoint=node.object_endpoint,
        suspect=node.is_suspect,
        drain=drain_to(node.drain) if node.drain is not None else None,
    )


def drain_from(message: gcs_pb2.DrainInfo) -> DrainRecord:
    """A reason that this release does not know becomes UNSPECIFIED."""
    try:
        reason = DrainReason(message.reason)
    except ValueError:
        reason = DrainReason.UNSPECIFIED
    return DrainRecord(reason, message.message, message.deadline_s)


def drain_to(drain: DrainRecord) -> gcs_pb2.DrainInfo:
    """The wire's form."""
    return gcs_pb2.DrainInfo(
        reason=gcs_pb2.DrainInfo.Reason.ValueType(drain.reason),
        message=drain.message,
        deadline_s=drain.deadline_s,
    )


def job_from(message: gcs_pb2.JobInfo) -> JobRecord:
    """What a driver says of itself."""
    return JobRecord(
        job_id=message.job_id,
        driver=address_from(message.driver),
        driver_pid=message.driver_pid,
        entrypoint=message.entrypoint,
        namespace=message.namespace,
        metadata=dict(message.metadata),
    )


def job_to(job: JobRecord) -> gcs_pb2.JobInfo:
    """The wire's form."""
    return gcs_pb2.JobInfo(
        job_id=job.job_id,
        driver=address_to(job.driver),
        driver_pid=job.driver_pid,
        entrypoint=job.entrypoint,
        namespace=job.namespace,
        start_time_s=job.start_time_s,
        end_time_s=job.end_time_s,
        finished=job.is_finished,
        metadata=job.metadata,
    )


def worker_from(message: gcs_pb2.WorkerInfo) -> WorkerRecord:
    """A death that a node reports."""
    return WorkerRecord(
        worker_id=message.worker_id,
        node_id=message.node_id,
        job_id=message.job_id,
        pid=message.pid,
        is_driver=message.is_driver,
        death_cause=cause_from(message.death_cause),
        end_time_s=message.end_time_s,
    )


def worker_to(worker: WorkerRecord) -> gcs_pb2.WorkerInfo:
    """The wire's form."""
    return gcs_pb2.WorkerInfo(
        worker_id=worker.worker_id,
        node_id=worker.node_id,
        job_id=worker.job_id,
        pid=worker.pid,
        is_driver=worker.is_driver,
        death_cause=cause_to(worker.death_cause),
        end_time_s=worker.end_time_s,
    )


def spec_from(message: gcs_pb2.ActorSpec) -> ActorSpec:
    """What is to be created."""
    return ActorSpec(
        actor_id=message.actor_id,
        job_id=message.job_id,
        owner=address_from(message.owner),
        name=message.name,
        namespace=message.namespace,
        is_detached=message.detached,
        class_name=message.class_name,
        max_restarts=message.max_restarts,
        placement_resources=resources_from(message.placement_resources),
        running_resources=resources_from(message.running_resources),
        env_vars=dict(message.env_vars),
        creation_task=message.creation_task,
        trace_parent=message.trace_parent,
        handle_state=message.handle_state,
        strategy=_strategy_from(message.strategy),
    )


def spec_to(spec: ActorSpec, *, with_creation_task: bool) -> gcs_pb2.ActorSpec:
    """The wire's form; only the node that starts the actor gets its creation task."""
    return gcs_pb2.ActorSpec(
        actor_id=spec.actor_id,
        job_id=spec.job_id,
        name=spec.name,
        namespace=spec.namespace,
        detached=spec.is_detached,
        class_name=spec.class_name,
        max_restarts=spec.max_restarts,
        placement_resources=resources_to(spec.placement_resources),
        running_resources=resources_to(spec.running_resources),
        env_vars=spec.env_vars,
        owner=address_to(spec.owner),
        creation_task=spec.creation_task if with_creation_task else b"",
        trace_parent=spec.trace_parent,
        handle_state=spec.handle_state,
        strategy=_strategy_to(spec.strategy),
    )


def _strategy_from(message: gcs_pb2.SchedulingStrategy) -> Strategy:
    """Raises ``LabelError`` for conditions that a call site would have refused."""
    return Strategy(
        message.spread,
        message.node_id,
        message.soft,
        message.impatient,
        LabelRules(
            tuple(map(_selector_from, message.selectors)), _selector_from(message.preferred)
        ),
        message.placement_group_id,
        message.bundle_index if message.placement_group_id else -1,
        message.capture_child_tasks,
    )


def _strategy_to(strategy: Strategy) -> gcs_pb2.SchedulingStrategy:
    preferred = strategy.labels.preferred
    return gcs_pb2.SchedulingStrategy(
        spread=strategy.is_spread,
        node_id=strategy.node_id,
        soft=strategy.is_soft,
        impatient=strategy.is_impatient,
        selectors=map(_selector_to, strategy.labels.selectors),
        preferred=_selector_to(preferred) if preferred else None,
        placement_group_id=strategy.group_id,
        bundle_index=strategy.bundle_index,
        capture_child_tasks=strategy.captures,
    )


def _selector_from(message: gcs_pb2.LabelSelector) -> LabelSelector:
    return LabelSelector.from_tuples(
        (one.key, one.operator, tuple(one.values)) for one in message.expressions
    )


def _selector_to(selector: LabelSelector) -> gcs_pb2.LabelSelector:
    return gcs_pb2.LabelSelector(
        expressions=[
            gcs_pb2.LabelExpression(
                key=key, operator=gcs_pb2.LabelExpression.Operator.ValueType(number), values=values
            )
            for key, number, values in selector.to_tuples()
        ]
    )


def actor_to(actor: ActorRecord) -> gcs_pb2.ActorInfo:
    """The wire's form."""
    life = actor.life
    return gcs_pb2.ActorInfo(
        spec=spec_to(actor.spec, with_creation_task=False),
        state=gcs_pb2.ActorState.ValueType(life.state),
        address=address_to(life.address) if life.address.worker_id else None,
        pid=life.pid,
        incarnation=life.incarnation,
        death_cause=cause_to(life.death_cause) if life.death_cause is not None else None,
        creation_error=life.creation_error,
        start_time_s=life.start_time_s,
        end_time_s=life.end_time_s,
        pending_reason=actor.pending_reason,
    )


def group_spec_from(message: gcs_pb2.PlacementGroupSpec) -> PlacementGroupSpec:
    """What is to be created."""
    return PlacementGroupSpec(
        group_id=message.group_id,
        job_id=message.job_id,
        owner=address_from(message.owner),
        strategy=message.strategy,
        bundles=tuple(
            BundleSpec(resources_from(bundle.resources), dict(bundle.label_selector))
            for bundle in message.bundles
        ),
        name=message.name,
        namespace=message.namespace,
        is_detached=message.detached,
        soft_target_id=message.soft_target_node_id,
    )


def group_to(group: PlacementGroupRecord) -> gcs_pb2.PlacementGroupInfo:
    """The wire's form."""
    spec = group.spec
    return gcs_pb2.PlacementGroupInfo(
        spec=gcs_pb2.PlacementGroupSpec(
            group_id=spec.group_id,
            job_id=spec.job_id,
            name=spec.name,
            namespace=spec.namespace,
            detached=spec.is_detached,
            strategy=spec.strategy,
            bundles=map(_bundle_to, spec.bundles),
            owner=address_to(spec.owner),
            soft_target_node_id=spec.soft_target_id,
        ),
        state=gcs_pb2.PlacementGroupState.ValueType(group.state),
        node_ids=group.node_ids,
        pending_reason=group.pending_reason,
        pending_since_s=group.pending_since_s,
        scheduling_state=group.scheduling_state,
        attempts=group.attempt,
        creation_latency_ms=1e3 * max(0.0, group.created_s - group.registered_s),
        highest_retry_delay_ms=1e3 * group.highest_retry_delay_s,
        removal_reason=group.removal_reason,
    )


def bundle_ref_from(message: gcs_pb2.BundleRef) -> BundleRef:
    """The machine's form."""
    return BundleRef(message.group_id, message.attempt, tuple(message.indices))


def bundle_ref_to(ref: BundleRef) -> gcs_pb2.BundleRef:
    """The wire's form."""
    return gcs_pb2.BundleRef(group_id=ref.group_id, attempt=ref.attempt, indices=ref.indices)


def demand_from(message: gcs_pb2.PendingDemand) -> Demand:
    """The machine's form. Raises ``LabelError`` as a strategy does."""
    is_default = not message.HasField("strategy")
    return Demand(
        ResourceSet(message.shape.amounts),
        _DEFAULT_STRATEGY if is_default else _strategy_from(message.strategy),
        message.count,
        message.backlog,
        message.actors,
        message.infeasible,
    )


def demand_to(demand: Demand) -> gcs_pb2.PendingDemand:
    """The wire's form."""
    is_default = demand.strategy == _DEFAULT_STRATEGY
    return gcs_pb2.PendingDemand(
        shape=resources_to(demand.shape),
        strategy=None if is_default else _strategy_to(demand.strategy),
        count=demand.requests,
        backlog=demand.backlog,
        actors=demand.actors,
        infeasible=demand.is_infeasible,
    )


def group_demand_to(demand: GroupDemand) -> gcs_pb2.GroupDemand:
    """The wire's form."""
    return gcs_pb2.GroupDemand(
        strategy=demand.strategy,
        bundles=[
            gcs_pb2.BundleDemand(bundle=_bundle_to(bundle), count=count)
            for bundle, count in demand.bundles
        ],
        count=demand.count,
        infeasible=demand.is_infeasible,
        since_s=demand.since_s,
    )


def _bundle_to(bundle: BundleSpec) -> gcs_pb2.Bundle:
    return gcs_pb2.Bundle(resources=resources_to(bundle.resources), label_selector=bundle.selector)


def event_to(record: Announced, sequence: int) -> gcs_pb2.Event:
    """The wire's form of a change."""
    match record:
        case ActorRecord():
            return gcs_pb2.Event(sequence=sequence, actor=actor_to(record))
        case NodeRecord():
            return gcs_pb2.Event(sequence=sequence, node=node_to(record))
        case JobRecord():
            return gcs_pb2.Event(sequence=sequence, job=job_to(record))
        case WorkerRecord():
            return gcs_pb2.Event(sequence=sequence, worker=worker_to(record))
        case PlacementGroupRecord():
            return gcs_pb2.Event(sequence=sequence, placement_group=group_to(record))
        case _:
            assert_never(record)
