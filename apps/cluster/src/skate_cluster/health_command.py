"""``skate health-check``: whether the cluster answers, told by the exit status."""

from __future__ import annotations

import asyncio

import click

from skate_cluster.addresses import chosen_address, find_cluster
from skate_cluster.exit_codes import FAILED, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.first_node import ask_first_node
from skate_cluster.shared_options import which_cluster
from skate_rpc.clients import RayletClient


@click.command(name="health-check", short_help="Say whether the cluster answers.")
@which_cluster
@click.option("--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
def command(
    address: str | None, token_file: str | None, temp_dir: str | None, timeout: float
) -> None:
    """End with status 0 when the control service and a node answer, else with another and why."""
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)

    async def ask(raylet: RayletClient) -> list[str]:
        status = await raylet.status(timeout_s=timeout)
        return [status.node.node_id.hex()]

    with explained(cluster.gcs_endpoint, timeout):
        answered = asyncio.run(ask_first_node(cluster.gcs_endpoint, cluster.token, timeout, ask))
    if not answered:
        raise CommandError(
            f"The control service at {cluster.gcs_endpoint} answers, but no node is alive;"
            " start one with `skate start`.",
            FAILED,
        )
    click.echo(f"The cluster at {cluster.gcs_endpoint} answers, through node {answered[0][:12]}.")
