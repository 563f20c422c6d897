"""``skate drain-node``: a node takes no new work, and leaves when it is idle or at a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click

from skate_cluster.addresses import Cluster, chosen_address, find_cluster
from skate_cluster.connections import gcs_at
from skate_cluster.exit_codes import FAILED, NOT_FOUND, USAGE, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.shared_options import which_cluster
from skate_rpc.gen.skate.v1 import gcs_pb2

_REASONS = {
    "idle-termination": gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION,
    "preemption": gcs_pb2.DrainInfo.REASON_PREEMPTION,
    # As Ray spells them.
    "DRAIN_NODE_REASON_IDLE_TERMINATION": gcs_pb2.DrainInfo.REASON_IDLE_TERMINATION,
    "DRAIN_NODE_REASON_PREEMPTION": gcs_pb2.DrainInfo.REASON_PREEMPTION,
}
_ID_DIGITS_MIN = 6


@click.command(name="drain-node", short_help="Have a node leave.")
@which_cluster
@click.option("--node-id", required=True, help="The node, or the beginning of its id.")
@click.option(
    "--reason",
    type=click.Choice(list(_REASONS)),
    default="preemption",
    show_default=True,
    metavar="[idle-termination|preemption]",
    help="An idle termination is refused unless the node is idle; a preemption never.",
)
@click.option("--reason-message", default="", help="Why, for people.")
@click.option(
    "--deadline-remaining-seconds",
    type=click.FloatRange(min=0),
    help="When it leaves although work runs there.  [default: when it is idle]",
)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True)
def command(
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    node_id: str,
    reason: str,
    reason_message: str,
    deadline_remaining_seconds: float | None,
    timeout: float,
) -> None:
    """Give a node no new work; it leaves when it is idle, or at the deadline."""
    left_s = deadline_remaining_seconds
    deadline_s = 0.0 if left_s is None else time.time() + left_s
    drain = gcs_pb2.DrainInfo(
        reason=_REASONS[reason], message=reason_message, deadline_s=deadline_s
    )
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        node, rejection = asyncio.run(_drain(cluster, node_id.lower(), drain, timeout))
    if rejection:
        raise CommandError(f"Node {node.node_id.hex()} does not leave: {rejection}", FAILED)
    if node.state == gcs_pb2.NodeInfo.STATE_DEAD:
        click.echo(f"Node {node.node_id.hex()} is dead already.")
        return
    when = "when it is idle" if left_s is None else f"when it is idle, at most in {left_s:g} s"
    click.echo(f"Node {node.node_id.hex()} takes no new work and leaves {when}.")


async def _drain(
    cluster: Cluster, node_id: str, drain: gcs_pb2.DrainInfo, timeout_s: float
) -> tuple[gcs_pb2.NodeInfo, str]:
    """The node, and why it refused."""
    async with gcs_at(cluster.gcs_endpoint, cluster.token) as gcs:
        node = _find(await gcs.nodes.list(timeout_s=timeout_s), node_id)
        reply = await gcs.nodes.drain(node.node_id, drain, timeout_s=timeout_s)
    return node, "" if reply.accepted else reply.rejection


def _find(rows: Sequence[gcs_pb2.NodeInfo], node_id: str) -> gcs_pb2.NodeInfo:
    """The node whose id begins so. Raises ``CommandError`` for none, or more than one."""
    if len(node_id) < _ID_DIGITS_MIN:
        raise CommandError(f"--node-id needs at least {_ID_DIGITS_MIN} digits.", USAGE)
    found = [row for row in rows if row.node_id.hex().startswith(node_id)]
    if not found:
        raise CommandError(f"There is no node {node_id}; see `skate status -v`.", NOT_FOUND)
    if len(found) > 1:
        raise CommandError(f"{len(found)} nodes begin with {node_id}; give more of it.", USAGE)
    return found[0]
