"""``skate list``, ``skate get`` and ``skate summary``: the cluster's tables."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any, Final

import click

from skate_cluster.addresses import Cluster, chosen_address, find_cluster
from skate_cluster.connections import gcs_at
from skate_cluster.exit_codes import NOT_FOUND, USAGE, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.report_text import columns
from skate_cluster.shared_options import how_shown, which_cluster
from skate_cluster.tables import TABLES, BadFilterError, Row, filtered

SCHEMA: Final = "skate.list/1"
CELL_MAX: Final = 60
LIMIT: Final = 100
ID_SHOWN: Final = 16
ID_MIN: Final = 4

_kind = click.argument("kind", type=click.Choice(list(TABLES)))


@click.command(name="list", short_help="List nodes, actors, jobs, placement groups.")
@_kind
@click.option(
    "-f",
    "--filter",
    "filters",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only rows with this value (!= for another); may be given again.",
)
@click.option("--limit", type=click.IntRange(min=1), default=LIMIT, show_default=True)
@click.option("--detail", is_flag=True, help="All columns.")
@which_cluster
@how_shown(timeout_s=10.0)
def list_command(
    kind: str,
    filters: tuple[str, ...],
    limit: int,
    detail: bool,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    style: str,
    timeout: float,
) -> None:
    r"""List what the cluster knows of one kind.

    \b
    skate list actors --filter state=ALIVE --filter class_name=Trainer
    skate list nodes --detail --format json
    """
    try:
        rows = filtered(_rows(kind, address, token_file, temp_dir, timeout), filters)
    except BadFilterError as error:
        raise CommandError(str(error), USAGE) from None
    shown = [row if detail or style == "json" else _short(kind, row) for row in rows[:limit]]
    if style == "json":
        answer = {"schema": SCHEMA, "kind": kind, "total": len(rows), "rows": shown}
        click.echo(json.dumps(answer, indent=2))
        return
    click.echo(_table(shown) if shown else f"No {kind.replace('-', ' ')}.")
    if len(rows) > limit:
        click.echo(f"{len(rows) - limit} more; --limit shows them.", err=True)


@click.command(name="get", short_help="Show one node, actor, job or placement group.")
@_kind
@click.argument("id_", metavar="ID")
@which_cluster
@how_shown(timeout_s=10.0)
def get_command(
    kind: str,
    id_: str,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    style: str,
    timeout: float,
) -> None:
    """Show everything of the one whose id begins with ID, or whose name it is."""
    rows = _rows(kind, address, token_file, temp_dir, timeout)
    found = [row for row in rows if _is_meant(row, id_)]
    if not found:
        raise CommandError(
            f"No {kind[:-1].replace('-', ' ')} {id_}; see `skate list {kind}`.", NOT_FOUND
        )
    if len(found) > 1:
        raise CommandError(f"{len(found)} {kind} are meant by {id_}; give more of the id.", USAGE)
    if style == "json":
        click.echo(json.dumps({"schema": SCHEMA, "kind": kind, "rows": found}, indent=2))
        return
    width = max(map(len, found[0]))
    for column, value in found[0].items():
        click.echo(f"{column.ljust(width)}  {_text(column, value)}".rstrip())


@click.command(name="summary", short_help="Count nodes, actors, jobs, placement groups by state.")
@_kind
@which_cluster
@how_shown(timeout_s=10.0)
def summary_command(
    kind: str,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    style: str,
    timeout: float,
) -> None:
    """Count those of one kind by state; actors also by class."""
    rows = _rows(kind, address, token_file, temp_dir, timeout)
    keys = ("class_name", "state") if kind == "actors" else ("state",)
    counts = Counter(tuple(str(row[key]) for key in keys) for row in rows)
    if style == "json":
        groups = [
            {**dict(zip(keys, group, strict=True)), "count": count}
            for group, count in sorted(counts.items())
        ]
        answer = {"schema": SCHEMA, "kind": kind, "total": len(rows), "groups": groups}
        click.echo(json.dumps(answer, indent=2))
        return
    table = [(*keys, "count"), *((*group, str(n)) for group, n in sorted(counts.items()))]
    click.echo(f"{len(rows)} {kind.replace('-', ' ')}")
    if rows:
        click.echo("\n".join(columns(table)))


def _rows(
    kind: str,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    timeout_s: float,
) -> list[Row]:
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout_s):
        return asyncio.run(_ask(cluster, kind, timeout_s))


async def _ask(cluster: Cluster, kind: str, timeout_s: float) -> list[Row]:
    async with gcs_at(cluster.gcs_endpoint, cluster.token) as gcs:
        return await TABLES[kind].rows(gcs, timeout_s)


def _is_meant(row: Row, wanted: str) -> bool:
    identity = str(next(iter(row.values())))
    is_id = len(wanted) >= ID_MIN and identity.startswith(wanted.lower())
    return is_id or wanted in (row.get("name"), row.get("node_name"))


def _short(kind: str, row: Row) -> Row:
    return {column: value for column, value in row.items() if column not in TABLES[kind].details}


def _table(rows: list[Row]) -> str:
    header = tuple(rows[0])
    cells = [tuple(_cell(column, row[column]) for column in header) for row in rows]
    return "\n".join(columns([header, *cells]))


def _cell(column: str, value: Any) -> str:
    if column.endswith("_id"):
        return str(value)[:ID_SHOWN]
    if column == "node_ids":
        return " ".join(one[:ID_SHOWN] for one in value)
    text = _text(column, value).replace("\n", " ")
    return text if len(text) <= CELL_MAX else f"{text[: CELL_MAX - 3]}..."


def _text(column: str, value: Any) -> str:
    if column.endswith("_time_s"):
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if value else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(amount)}" for name, amount in value.items())
    if isinstance(value, list):
        return "; ".join(_text(column, one) for one in value)
    return _plain(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
