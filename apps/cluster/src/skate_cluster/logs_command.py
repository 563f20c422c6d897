"""``skate logs``: the files that a cluster's processes write, on whichever node they are."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import click

from skate_cluster.addresses import Cluster, chosen_address, find_cluster
from skate_cluster.connections import gcs_at, raylet_at
from skate_cluster.exit_codes import FAILED, NOT_FOUND, USAGE, CommandError
from skate_cluster.failed_calls import explained
from skate_cluster.report_text import columns, format_bytes
from skate_cluster.shared_options import how_shown, which_cluster
from skate_rpc.clients import RayletClient
from skate_rpc.errors import RpcError
from skate_rpc.gen.skate.v1 import gcs_pb2

SCHEMA: Final = "skate.logs/1"
CHUNK_BYTES: Final = 1 << 20
FOLLOW_S: Final = 0.25
TAIL_LINES: Final = 1000


@dataclass(frozen=True, slots=True)
class File:
    """One file among the logs of a node."""

    node_id: str
    node_name: str
    name: str
    size: int
    changed_s: float


@click.command(name="logs", short_help="List, print and follow log files.")
@click.argument("pattern", required=False, metavar="[NAME|GLOB]")
@click.option("--node-id", default="", help="Only this node, or the beginning of its id.")
@click.option(
    "--tail",
    type=click.IntRange(min=-1),
    default=TAIL_LINES,
    show_default=True,
    help="Print the last so many lines; -1: all.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on as the file grows.")
@which_cluster
@how_shown(timeout_s=10.0)
def command(
    pattern: str | None,
    node_id: str,
    tail: int,
    follow: bool,
    address: str | None,
    token_file: str | None,
    temp_dir: str | None,
    style: str,
    timeout: float,
) -> None:
    r"""List log files, or print the one whose name is given or alone fits.

    \b
    skate logs                          all files of all nodes
    skate logs 'worker-*.err'           those that fit
    skate logs daemon.log --node-id 3f  one of them
    skate logs job-driver-nightly.log -f
    """
    cluster = find_cluster(chosen_address(address), token_file, temp_dir)
    with explained(cluster.gcs_endpoint, timeout):
        files, missing = asyncio.run(find_files(cluster, node_id, pattern or "*", timeout))
        for problem in missing:
            click.echo(problem, err=True)
        if pattern is None or (len(files) > 1 and not follow):
            click.echo(_listing(files, style))
            return
        file = _one_of(files, pattern)
        try:
            asyncio.run(_print(cluster, file, tail, timeout, follow=follow))
        except KeyboardInterrupt:
            return  # the way to end what follows


async def find_files(
    cluster: Cluster, node_id: str, pattern: str, timeout_s: float
) -> tuple[list[File], list[str]]:
    """The files whose names fit, and which nodes did not answer. Raises ``RpcError``."""
    rows = await _live_nodes(cluster, timeout_s)
    asked = [row for row in rows if row.node_id.hex().startswith(node_id.lower())]
    if not asked:
        raise CommandError(f"No live node's id begins with {node_id}; see `skate status`.")
    answers = await asyncio.gather(*(_files_of(cluster, row, timeout_s) for row in asked))
    files = [file for answer in answers if not isinstance(answer, str) for file in answer]
    return (
        [file for file in files if fnmatch.fnmatchcase(file.name, pattern)],
        [answer for answer in answers if isinstance(answer, str)],
    )


async def _live_nodes(cluster: Cluster, timeout_s: float) -> list[gcs_pb2.NodeInfo]:
    async with gcs_at(cluster.gcs_endpoint, cluster.token) as gcs:
        rows = await gcs.nodes.list(timeout_s=timeout_s)
    alive = [row for row in rows if row.state != gcs_pb2.NodeInfo.STATE_DEAD]
    return sorted(alive, key=lambda row: not row.is_head)


async def _files_of(cluster: Cluster, row: gcs_pb2.NodeInfo, timeout_s: float) -> list[File] | str:
    """A node's files, or what to say about its silence."""
    try:
        async with raylet_at(row.raylet_endpoint, cluster.token) as raylet:
            found = await raylet.list_logs(timeout_s=timeout_s)
    except RpcError as error:
        return f"Node {row.node_id.hex()[:12]} does not answer: {error}"
    name = row.node_name
    return [File(row.node_id.hex(), name, one.name, one.size, one.changed_s) for one in found]


def _one_of(files: Sequence[File], pattern: str) -> File:
    if not files:
        raise CommandError(f"No log file fits {pattern!r}; `skate logs` lists them.", NOT_FOUND)
    if len(files) > 1:
        raise CommandError(
            f"{len(files)} files fit {pattern!r}, and one can be followed: give its name and"
            " --node-id.",
            USAGE,
        )
    return files[0]


def _listing(files: Sequence[File], style: str) -> str:
    if style == "json":
        rows = [asdict(file) for file in files]
        return json.dumps({"schema": SCHEMA, "files": rows}, indent=2, sort_keys=True)
    table: list[tuple[str, ...]] = [("node", "file", "size", "changed")]
    for file in files:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.changed_s))
        table.append((file.node_id[:12], file.name, format_bytes(file.size), when))
    return "\n".join(columns(table))


async def _print(
    cluster: Cluster, file: File, tail: int, timeout_s: float, *, follow: bool
) -> None:
    rows = await _live_nodes(cluster, timeout_s)
    endpoint = next(row.raylet_endpoint for row in rows if row.node_id.hex() == file.node_id)
    async with raylet_at(endpoint, cluster.token) as raylet:
        offset = 0 if tail < 0 else await _start_of_tail(raylet, file, tail, timeout_s)
        while True:
            part = await raylet.read_log(file.name, offset, CHUNK_BYTES, timeout_s=timeout_s)
            if not part.found:
                raise CommandError(f"{file.name} is gone.", FAILED)
            sys.stdout.buffer.write(part.data)
            sys.stdout.buffer.flush()
            offset = part.offset + len(part.data)
            if offset < part.size:
                continue
            if not follow:
                return
            await asyncio.sleep(FOLLOW_S)


async def _start_of_tail(raylet: RayletClient, file: File, lines: int, timeout_s: float) -> int:
    """The offset from which there are so many lines, read from the end backwards."""
    end, wanted = file.size, lines + 1
    while end > 0 and wanted:
        begin = max(0, end - CHUNK_BYTES)
        part = await raylet.read_log(file.name, begin, end - begin, timeout_s=timeout_s)
        data = part.data
        if end == file.size and not data.endswith(b"\n"):
            wanted -= 1  # its last line is not complete
        at = len(data)
        while wanted and (at := data.rfind(b"\n", 0, at)) >= 0:
            wanted -= 1
            if not wanted:
                return begin + at + 1
        end = begin
    return 0 if wanted else file.size
