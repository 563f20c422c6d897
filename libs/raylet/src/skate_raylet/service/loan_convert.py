"""Between the machines' messages about loans and those on the wire. No decisions here."""

from __future__ import annotations

from typing import assert_never

from skate_raylet.machine import loans
from skate_raylet.machine.commands import DeviceIds
from skate_raylet.service.convert import death_to_proto, resources_to_proto
from skate_rpc.gen.skate.v1 import common_pb2, raylet_pb2
from skate_rpc.node_protocol import Death
from skate_scheduler import ResourceSet


def order_to_proto(message: loans.ToLender) -> raylet_pb2.LoanOrder:
    """An order as the lender gets it."""
    match message:
        case loans.Ask():
            return raylet_pb2.LoanOrder(
                ask=raylet_pb2.LoanAsk(
                    ask_id=message.ask_id,
                    holder_id=message.holder_id,
                    job_id=message.job_id,
                    resources=resources_to_proto(message.resources),
                    env_vars=dict(message.env_vars),
                    backlog=message.backlog,
                    waited_s=message.waited_s,
                    wait_s=message.wait_s,
                    placement_group_id=message.group_id,
                    bundle_index=message.bundle_index,
                )
            )
        case loans.Drop(ask_id, kind, text, discard):
            drop = raylet_pb2.LoanDrop(ask_id=ask_id, kind=kind, message=text, discard=discard)
            return raylet_pb2.LoanOrder(drop=drop)
        case loans.Kill(ask_id, text):
            return raylet_pb2.LoanOrder(kill=raylet_pb2.LoanKill(ask_id=ask_id, message=text))
        case loans.Sync(next_ask_id, live):
            sync = raylet_pb2.LoanSync(next_ask_id=next_ask_id, live=live)
            return raylet_pb2.LoanOrder(sync=sync)
        case _:
            assert_never(message)


def order_from_proto(order: raylet_pb2.LoanOrder) -> loans.ToLender | None:
    """The machines' form; None for what a newer borrower may say."""
    match order.WhichOneof("order"):
        case "ask":
            ask = order.ask
            return loans.Ask(
                ask.ask_id,
                ask.holder_id,
                ask.job_id,
                ResourceSet(ask.resources.amounts),
                tuple(sorted(ask.env_vars.items())),
                ask.backlog,
                ask.waited_s,
                ask.wait_s,
                ask.placement_group_id,
                ask.bundle_index if ask.placement_group_id else -1,
            )
        case "drop":
            drop = order.drop
            return loans.Drop(drop.ask_id, drop.kind, drop.message, drop.discard)
        case "kill":
            return loans.Kill(order.kill.ask_id, order.kill.message)
        case "sync":
            return loans.Sync(order.sync.next_ask_id, tuple(order.sync.live))
        case _:
            return None


def news_to_proto(message: loans.ToBorrower, node_id: bytes) -> raylet_pb2.LoanNewsItem:
    """News as the borrower gets them. ``node_id``: the lender's."""
    match message:
        case loans.Granted():
            granted = raylet_pb2.LoanGranted(
                ask_id=message.ask_id,
                lease_id=message.lease_id,
                worker=common_pb2.Address(
                    node_id=node_id, worker_id=message.worker_id, endpoint=message.endpoint
                ),
                pid=message.pid,
                devices=_devices_to_proto(message.device_ids),
            )
            return raylet_pb2.LoanNewsItem(granted=granted)
        case loans.Ended(ask_id, cause):
            death = death_to_proto(death_of(cause))
            ended = raylet_pb2.LoanEnded(ask_id=ask_id, kind=cause.kind, cause=death)
            return raylet_pb2.LoanNewsItem(ended=ended)
        case loans.Reclaimed(ask_id, when_idle):
            reclaimed = raylet_pb2.LoanReclaimed(ask_id=ask_id, when_idle=when_idle)
            return raylet_pb2.LoanNewsItem(reclaimed=reclaimed)
        case _:
            assert_never(message)


def news_from_proto(item: raylet_pb2.LoanNewsItem) -> loans.ToBorrower | None:
    """The machines' form; None for what a newer lender may say."""
    match item.WhichOneof("news"):
        case "granted":
            granted = item.granted
            return loans.Granted(
                granted.ask_id,
                granted.lease_id,
                granted.worker.worker_id,
                granted.worker.endpoint,
                granted.pid,
                {
                    name: tuple((share.index, share.units) for share in shares.shares)
                    for name, shares in granted.devices.items()
                },
            )
        case "ended":
            ended, cause = item.ended, item.ended.cause
            return loans.Ended(
                ended.ask_id,
                loans.Cause(
                    ended.kind,
                    cause.message,
                    cause.pid,
                    cause.exit_code,
                    cause.signal,
                    cause.log_tail,
                ),
            )
        case "reclaimed":
            return loans.Reclaimed(item.reclaimed.ask_id, item.reclaimed.when_idle)
        case _:
            return None


def death_of(cause: loans.Cause) -> Death:
    """The stream's form of a cause."""
    return Death(
        cause.kind, cause.message, cause.pid, cause.exit_code, cause.signal, cause.log_tail
    )


def cause_of(death: Death) -> loans.Cause:
    """The machines' form of a death."""
    return loans.Cause(
        death.kind, death.message, death.pid, death.exit_code, death.signal, death.log_tail
    )


def _devices_to_proto(device_ids: DeviceIds) -> dict[str, raylet_pb2.DeviceShares]:
    return {
        name: raylet_pb2.DeviceShares(
            shares=[raylet_pb2.DeviceShare(index=index, units=units) for index, units in parts]
        )
        for name, parts in device_ids.items()
    }
