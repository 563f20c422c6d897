"""``skate status``: what the cluster has, uses and waits for."""

from __future__ import annotations

import asyncio
import json

import click

from skate_cluster.addresses import chosen_address, find_cluster
from skate_cluster.failed_calls import explained
from skate_cluster.report import collect_report
from skate_cluster.report_text import format_report
from skate_cluster.shared_options import how_shown, which_cluster


@click.command(name="status", short_help="Show the cluster.")
@which_cluster
@click.option("-v", "--verbose", is_flag=True, help="Also each lease and the dead nodes.")
@how_shown(timeout_s=5.0)
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
