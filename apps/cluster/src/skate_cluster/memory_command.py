"""``skate memory``: every byte of the object stores, who holds it, why, and which line made it."""

from __future__ import annotations

import asyncio
import json

import click

from skate_cluster.addresses import chosen_address, find_cluster
from skate_cluster.failed_calls import explained
from skate_cluster.memory_report import GROUP_KEYS, SORT_KEYS, collect_memory
from skate_cluster.memory_text import FIXED_UNITS, format_memory
from skate_cluster.shared_options import how_shown, which_cluster


@click.command(name="memory", short_help="Explain what the object stores hold.")
@which_cluster
@click.option("--sort-by", type=click.Choice(list(SORT_KEYS)), default="size", show_default=True)
@click.option("--group-by", type=click.Choice(list(GROUP_KEYS)), help="Show in groups.")
@click.option(
    "--units",
    type=click.Choice(["auto", *FIXED_UNITS]),
    default="auto",
    show_default=True,
    help="Of sizes in the table.",
)
@click.option(
    "-n",
    "--num-entries",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Show at most so many references; 0: all.",
)
@click.option("--stats-only", is_flag=True, help="Only the stores.")
@how_shown(timeout_s=10.0)
def command(
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    sort_by: str,
    group_by: str | None,
    units: str,
    num_entries: int,
    stats_only: bool,
    style: str,
    timeout: float,
) -> None:
    """Show each object that a process refers to or a store holds.

    With its size, the process, the reasons that keep it, its owner, the task that makes it, and the
    line that made it (of values over 100 KiB; of all with SKATE_RECORD_REF_CREATION_SITES=1).
    Processes that do not answer are named.
    """
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        report = asyncio.run(collect_memory(cluster.gcs_endpoint, cluster.token, timeout))
    rows = report.sorted_by(sort_by)[: num_entries or None]
    if style == "json":
        click.echo(json.dumps(report.to_json(rows), indent=2, sort_keys=True))
    else:
        click.echo(
            format_memory(
                report,
                rows,
                sort_by=sort_by,
                group_by=group_by or "",
                units=units,
                is_stats_only=stats_only,
            )
        )
