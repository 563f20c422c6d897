"""``skate status``: what the cluster has, uses and waits for."""

from __future__ import annotations

import asyncio
import json

import click

from skate_cluster.addresses import chosen_address, find_cluster
from skate_cluster.failed_calls import explained
from skate_cluster.report import collect_report
from skate_cluster.report_text import format_report


@click.command(name="status", short_help="Show the cluster.")
@click.option(
    "--address", metavar="HOST:PORT", help="The cluster.  [default: $SKATE_ADDRESS, auto]"
)
@click.option("--token-file", type=click.Path(), help="File with the cluster's token.")
@click.option("--temp-dir", type=click.Path(), help="Where session folders are.")
@click.option("-v", "--verbose", is_flag=True, help="Also each lease and the dead nodes.")
@click.option(
    "-o",
    "--format",
    "style",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=5.0, show_default=True)
def command(
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    verbose: bool,
    style: str,
    timeout: float,
) -> None:
    """Show nodes, resources in use, leases, what waits and why, and the object stores."""
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        report = asyncio.run(collect_report(cluster.gcs_endpoint, cluster.token, timeout))
    if style == "json":
        click.echo(json.dumps(report.to_json(), indent=2, sort_keys=True))
    else:
        click.echo(format_report(report, is_verbose=verbose))
