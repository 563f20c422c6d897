"""``skate why ID``: why a task, object, actor or group waits, or what it, a node or worker does."""

from __future__ import annotations

import asyncio
import json
import re

import click

from skate_cluster.addresses import chosen_address, find_cluster
from skate_cluster.exit_codes import NOT_FOUND, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.first_node import ask_first_node
from skate_cluster.shared_options import how_shown, which_cluster
from skate_rpc.wait_report import TIMEOUT_S, Explanation

SCHEMA = "skate.why/1"


@click.command(name="why", short_help="Explain why something waits.")
@click.argument("id_", metavar="ID")
@which_cluster
@how_shown(timeout_s=TIMEOUT_S)
def command(
    id_: str,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    style: str,
    timeout: float,
) -> None:
    """Explain what has an id that begins with ID: of a task, object, actor, placement group, node
    or worker.

    What it waits for, which resource is short at which node and who holds it, since when, where it
    runs; and the circle, if it waits in one. Asks every process of the cluster; who does not answer
    within the timeout is named.
    """
    if re.fullmatch("[0-9a-fA-F]{4,}", id_) is None:
        raise click.BadParameter("an id is at least four hex digits.", param_hint="ID")
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        found = asyncio.run(ask_why(cluster.gcs_endpoint, cluster.token, id_, timeout))
    if not found:
        raise CommandError(
            f"Nothing that waits, runs or lives has an id that begins with {id_}: it has ended, or"
            " never was.",
            NOT_FOUND,
        )
    if style == "json":
        rows = [one.to_json() for one in found]
        click.echo(json.dumps({"schema": SCHEMA, "found": rows}, indent=2, sort_keys=True))
    else:
        click.echo("\n\n".join(map(str, found)))


async def ask_why(
    gcs_endpoint: str, token: str, prefix: str, timeout_s: float
) -> list[Explanation]:
    """Ask the first live node that answers. Raises ``RpcError`` when none does."""
    return await ask_first_node(
        gcs_endpoint, token, timeout_s, lambda raylet: raylet.why(prefix, timeout_s=timeout_s)
    )
