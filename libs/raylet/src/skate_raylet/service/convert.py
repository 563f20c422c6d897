"""Between the control plane's messages (protobuf) and those of the stream. No decisions here."""

from __future__ import annotations

from collections.abc import Mapping

from skate_raylet.machine.events import Strategy
from skate_rpc import node_protocol as node
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.node_protocol import ActorView, Death, NodeView
from skate_scheduler import ANY_LABELS, LabelRules, LabelSelector

_KIND_PREFIX = "KIND_"
_STATE_PREFIX = "ACTOR_STATE_"
_DRAIN_REASONS = {
    gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION: "idle_termination",
    gcs_pb2.DrainInfo.REASON_PREEMPTION: "preemption",
}


def death_to_proto(death: Death) -> common_pb2.DeathCause:
    """A kind that the control plane does not know becomes KIND_UNSPECIFIED."""
    name = _KIND_PREFIX + death.kind.upper()
    known = common_pb2.DeathCause.Kind.keys()
    kind = common_pb2.DeathCause.Kind.Value(name if name in known else "KIND_UNSPECIFIED")
    return common_pb2.DeathCause(
        kind=kind,
        message=death.message,
        pid=death.pid,
        exit_code=death.exit_code,
        signal=death.signal,
        log_tail=death.log_tail,
    )


def death_from_proto(cause: common_pb2.DeathCause) -> Death:
    """The stream's form; an unknown number (of a newer sender) is "unspecified"."""
    try:
        kind = common_pb2.DeathCause.Kind.Name(cause.kind)
    except ValueError:
        kind = "KIND_UNSPECIFIED"
    return Death(
        kind.removeprefix(_KIND_PREFIX).lower(),
        cause.message,
        cause.pid,
        cause.exit_code,
        cause.signal,
        cause.log_tail,
    )


def resources_to_proto(amounts: Mapping[str, int]) -> common_pb2.ResourceSet:
    """Amounts in units on both sides."""
    return common_pb2.ResourceSet(amounts=dict(amounts))


def label_rules(rules: node.LabelRules | None) -> LabelRules:
    """The machines' form. Raises ``LabelError`` for what a call site would have refused."""
    if rules is None:
        return ANY_LABELS
    return LabelRules(
        tuple(LabelSelector.from_tuples(selector) for selector in rules.selectors),
        LabelSelector.from_tuples(rules.preferred),
    )


def strategy_to_proto(body: node.ActorRegistration) -> gcs_pb2.SchedulingStrategy:
    """Where an actor may run."""
    rules = body.labels or node.LabelRules()
    return gcs_pb2.SchedulingStrategy(
        spread=body.is_spread,
        node_id=body.node_id,
        soft=body.is_soft,
        impatient=body.is_impatient,
        selectors=[_selector_to_proto(selector) for selector in rules.selectors],
        preferred=_selector_to_proto(rules.preferred) if rules.preferred else None,
        placement_group_id=body.placement_group_id,
        bundle_index=body.bundle_index,
        capture_child_tasks=body.captures,
    )


def machine_strategy_to_proto(strategy: Strategy) -> gcs_pb2.SchedulingStrategy:
    """Where a task that waits may run; nothing of placement groups."""
    labels = strategy.labels
    return gcs_pb2.SchedulingStrategy(
        spread=strategy.is_spread,
        node_id=strategy.node_id,
        soft=strategy.is_soft,
        impatient=strategy.is_impatient,
        selectors=[_selector_to_proto(selector.to_tuples()) for selector in labels.selectors],
        preferred=_selector_to_proto(labels.preferred.to_tuples()) if labels.preferred else None,
    )


def _selector_to_proto(conditions: tuple[node.Condition, ...]) -> gcs_pb2.LabelSelector:
    return gcs_pb2.LabelSelector(
        expressions=[
            gcs_pb2.LabelExpression(
                key=key, operator=gcs_pb2.LabelExpression.Operator.ValueType(number), values=values
            )
            for key, number, values in conditions
        ]
    )


def actor_view(info: gcs_pb2.ActorInfo) -> ActorView:
    """What a caller needs to know of an actor."""
    spec = info.spec
    try:
        state = gcs_pb2.ActorState.Name(info.state)
    except ValueError:
        state = "ACTOR_STATE_UNSPECIFIED"
    return ActorView(
        actor_id=spec.actor_id,
        state=state.removeprefix(_STATE_PREFIX),
        incarnation=info.incarnation,
        endpoint=info.address.endpoint,
        worker_id=info.address.worker_id,
        node_id=info.address.node_id,
        pid=info.pid,
        name=spec.name,
        namespace=spec.namespace,
        class_name=spec.class_name,
        max_restarts=spec.max_restarts,
        handle_state=spec.handle_state,
        death=death_from_proto(info.death_cause) if info.HasField("death_cause") else None,
        creation_error=info.creation_error,
        pending_reason=info.pending_reason,
    )


def drain_to_proto(order: node.DrainOrder) -> gcs_pb2.DrainInfo:
    """What a node is to do. An unknown reason becomes REASON_UNSPECIFIED, which is refused."""
    reason = next(
        (number for number, name in _DRAIN_REASONS.items() if name == order.reason),
        gcs_pb2.DrainInfo.REASON_UNSPECIFIED,
    )
    return gcs_pb2.DrainInfo(reason=reason, message=order.message, deadline_s=order.deadline_s)


def group_spec_to_proto(
    body: node.PlacementGroupCreation, job_id: bytes, owner: common_pb2.Address
) -> gcs_pb2.PlacementGroupSpec:
    """What a process asked for."""
    selectors = body.selectors or [{}] * len(body.bundles)
    return gcs_pb2.PlacementGroupSpec(
        group_id=body.group_id,
        job_id=job_id,
        name=body.name,
        namespace=body.namespace,
        detached=body.is_detached,
        strategy=body.strategy,
        bundles=[
            gcs_pb2.Bundle(resources=resources_to_proto(amounts), label_selector=selector)
            for amounts, selector in zip(body.bundles, selectors, strict=True)
        ],
        owner=owner,
        soft_target_node_id=body.soft_target_id,
    )


def group_view(info: gcs_pb2.PlacementGroupInfo) -> node.PlacementGroupView:
    """A row of the placement-group table."""
    spec = info.spec
    try:
        state = gcs_pb2.PlacementGroupState.Name(info.state)
    except ValueError:
        state = "PLACEMENT_GROUP_STATE_UNSPECIFIED"
    return node.PlacementGroupView(
        group_id=spec.group_id,
        state=state.removeprefix("PLACEMENT_GROUP_STATE_"),
        job_id=spec.job_id,
        name=spec.name,
        namespace=spec.namespace,
        strategy=spec.strategy,
        bundles=[dict(bundle.resources.amounts) for bundle in spec.bundles],
        selectors=[dict(bundle.label_selector) for bundle in spec.bundles],
        node_ids=list(info.node_ids),
        is_detached=spec.detached,
        pending_reason=info.pending_reason,
        pending_since_s=info.pending_since_s,
        scheduling_state=info.scheduling_state,
        attempts=info.attempts,
        creation_latency_ms=info.creation_latency_ms,
        highest_retry_delay_ms=info.highest_retry_delay_ms,
        removal_reason=info.removal_reason,
    )


def node_view(info: gcs_pb2.NodeInfo) -> NodeView:
    """A row of the node table."""
    return NodeView(
        node_id=info.node_id,
        is_alive=info.state == gcs_pb2.NodeInfo.STATE_ALIVE,
        node_name=info.node_name,
        hostname=info.hostname,
        ip_address=info.ip_address,
        stream_endpoint=info.stream_endpoint,
        store_endpoint=info.store_endpoint,
        raylet_endpoint=info.raylet_endpoint,
        metrics_endpoint=info.metrics_endpoint,
        is_head=info.is_head,
        total=dict(info.total.amounts),
        available=dict(info.available.amounts),
        labels=dict(info.labels),
        death=death_from_proto(info.death_cause) if info.HasField("death_cause") else None,
        session_dir=info.session_dir,
        is_suspect=info.suspect,
        drain_reason=_DRAIN_REASONS.get(info.drain.reason, ""),
        drain_message=info.drain.message,
        drain_deadline_s=info.drain.deadline_s,
    )
