"""``skate start``: a head node, or a node that joins a cluster, on this machine."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import click

from skate_cluster.exit_codes import (
    FAILED,
    INTERRUPTED,
    OK,
    UNREACHABLE,
    USAGE,
    CommandError,
)
from skate_core_ids import SkateError
from skate_node.errors import ClusterNotFoundError
from skate_node.launcher import RunningNode, start_node
from skate_node.options import NodeOptions, parse_labels, parse_resources
from skate_node.session import NodeRecord, find_node, live_nodes, read_record
from skate_rpc.tokens import read_token_file
from skate_telemetry.tracing import TracingConfig

DEFAULT_PORT = 6379
DEFAULT_HOST = "127.0.0.1"
DEFAULT_API_PORTS = (*range(8265, 8275), 0)  # as Ray counts up from 8265 when it is taken
API_COMMAND = ("-P", "-m", "skate_dashboard.server")
STORAGE_VARIABLE = "SKATE_STORAGE"
_WILDCARDS = ("0.0.0.0", "::")
_POLL_S = 0.1
_OPEN_SPELLINGS = (
    "--no-token",
    "--no-auth",
    "--disable-auth",
    "--insecure",
    "--auth",
    "--auth-mode",
)


def _refuse_open(_context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value:
        raise CommandError(
            f"{parameter.opts[0]} is not supported: a Skate cluster always has a token;"
            " give your own with --token-file, or leave it to Skate to make one.",
            USAGE,
        )


@click.command(name="start", short_help="Start a node.")
@click.option("--head", is_flag=True, help="Start a new cluster, with its control service here.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Join the cluster whose head listens here; auto finds one of this machine.",
)
@click.option("--token-file", type=click.Path(), help="File with the cluster's token, mode 0600.")
@click.option("--host", metavar="HOST", help=f"Address to listen on.  [default: {DEFAULT_HOST}]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    help=f"Port of the head's control service; 0 takes a free one.  [default: {DEFAULT_PORT}]",
)
@click.option("--num-cpus", type=float, help="CPUs to offer.  [default: detected]")
@click.option("--num-gpus", type=float, help="GPUs to offer.  [default: detected]")
@click.option("--memory", type=int, metavar="BYTES", help="Memory to offer to tasks.")
@click.option("--object-store-memory", type=int, metavar="BYTES", help="Size of the object store.")
@click.option(
    "--object-spilling-directory",
    metavar="PATH|URL",
    help="Where objects go when the store is full.  [default: in the session]",
)
@click.option("--resources", metavar="JSON", help="""Custom resources: '{"disk": 2}'.""")
@click.option("--labels", metavar="JSON|K=V,...", help="Labels of the node.")
@click.option(
    "--infeasible-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Fail tasks that no node can ever hold after so long.  [default: they wait]",
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), default=0, show_default="any free")
@click.option(
    "--include-dashboard",
    type=bool,
    default=True,
    show_default=True,
    metavar="BOOL",
    help="Have an API server on the head. Its process starts with the first request.",
)
@click.option(
    "--dashboard-host", metavar="HOST", help="Address of the API server.  [default: 127.0.0.1]"
)
@click.option(
    "--dashboard-port",
    type=click.IntRange(0, 65535),
    help="Port of the API server; 0 takes a free one.  [default: the first free one from"
    f" {DEFAULT_API_PORTS[0]}]",
)
@click.option(
    "--storage",
    metavar="URL",
    help="memory, sqlite:/path or redis://host:port/db.  [default: $SKATE_STORAGE, else in the"
    " session]",
)
@click.option(
    "--gcs-reconnect-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="The node ends when the control service has not answered for so long.",
)
@click.option("--temp-dir", type=click.Path(), help="Where session folders go.")
@click.option("--node-name", default="", help="Name of the node, for people.")
@click.option(
    "--block", is_flag=True, help="Stay in the foreground; the node ends with the command."
)
@click.option(
    *_OPEN_SPELLINGS,
    "open_spelling",
    hidden=True,
    expose_value=False,
    is_flag=False,
    flag_value="on",
    callback=_refuse_open,
)
def command(
    head: bool,
    address: str | None,
    token_file: str | None,
    host: str | None,
    port: int | None,
    num_cpus: float | None,
    num_gpus: float | None,
    memory: int | None,
    object_store_memory: int | None,
    object_spilling_directory: str | None,
    resources: str | None,
    labels: str | None,
    infeasible_timeout: float | None,
    metrics_port: int,
    include_dashboard: bool,
    dashboard_host: str | None,
    dashboard_port: int | None,
    storage: str | None,
    gcs_reconnect_timeout: float,
    temp_dir: str | None,
    node_name: str,
    block: bool,
) -> None:
    """Start a node on this machine: --head for a new cluster, --address to join one."""
    if head == (address is not None):
        raise CommandError("Give either --head, or --address of the cluster to join.", USAGE)
    if address is not None and (port is not None or storage is not None):
        raise CommandError("--port and --storage belong to --head.", USAGE)
    _check_host("--host", host)
    _check_host("--dashboard-host", dashboard_host)
    api_ports = DEFAULT_API_PORTS if dashboard_port is None else (dashboard_port,)
    has_api = head and include_dashboard
    try:
        nodes = live_nodes(temp_dir)
        if head:
            port = DEFAULT_PORT if port is None else port
            _refuse_second_head(nodes, port)
        gcs_address, token = _to_join(address, token_file, temp_dir)
        options = NodeOptions(
            is_head=head,
            gcs_address=gcs_address,
            token=token,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory,
            resources=parse_resources(resources) if resources else {},
            labels=parse_labels(labels) if labels else {},
            infeasible_timeout_s=infeasible_timeout,
            object_store_memory=object_store_memory,
            spill_dir=object_spilling_directory,
            host=host or (DEFAULT_HOST if head else None),
            port=port,
            metrics_port=metrics_port,
            api_ports=api_ports if has_api else (),
            api_host=dashboard_host,
            api_command=API_COMMAND if has_api else (),
            storage=storage or (os.environ.get(STORAGE_VARIABLE) if head else None),
            gcs_reconnect_s=gcs_reconnect_timeout,
            temp_dir=os.path.abspath(temp_dir) if temp_dir else None,
            node_name=node_name,
            is_tracing=TracingConfig.from_environment().is_enabled,
            lifeline=block,
            keep_logs=True,
        )
    except (ValueError, TypeError) as error:
        raise CommandError(str(error), USAGE) from None
    except SkateError as error:
        raise CommandError(str(error), FAILED) from None
    signals = _StopSignals() if block else None
    try:
        node = start_node(options)
    except SkateError as error:
        raise CommandError(str(error), FAILED) from None
    _announce(node, host)
    if signals is not None:
        signals.wait(node)


def _check_host(option: str, host: str | None) -> None:
    if host is not None and (not host.strip() or host.strip() == "*"):
        raise CommandError(f"{option} takes an address; 0.0.0.0 stands for every interface.", USAGE)


def _refuse_second_head(nodes: list[NodeRecord], port: int) -> None:
    for node in nodes:
        if node.is_head and port and node.gcs_endpoint.endswith(f":{port}"):
            raise CommandError(
                f"A head node already runs at {node.gcs_endpoint} (pid {node.pid});"
                " stop it with `skate stop`, or choose another --port."
            )


def _to_join(
    address: str | None, token_file: str | None, temp_dir: str | None
) -> tuple[str | None, str | None]:
    """The GCS to join and its token; a head joins nothing, and may be given its token.

    A cluster of this machine is found by its address or by ``auto``, token and all.
    """
    token = None if token_file is None else read_token_file(token_file)
    if address is None or (token is not None and address != "auto"):
        return address, token
    try:
        node = find_node(address, temp_dir)
    except ClusterNotFoundError as error:
        if address == "auto":
            raise CommandError(str(error), UNREACHABLE) from None
        raise CommandError(
            f"The token of the cluster at {address} is not known on this machine; copy the head's"
            " token file here and give it with --token-file.",
            USAGE,
        ) from None
    return node.gcs_endpoint, token or read_token_file(node.token_path)


def _joining_address(record: NodeRecord, host: str | None) -> str:
    """The head's address as other machines call it."""
    if host not in _WILDCARDS:
        return record.gcs_endpoint
    return f"{record.ip_address}:{record.gcs_endpoint.rpartition(':')[2]}"


def _announce(node: RunningNode, host: str | None) -> None:
    record = read_record(node.session_dir)
    if record is None:
        raise CommandError(f"The node ended at once; see {node.session_dir}/logs.")
    is_head = record.is_head
    token_path = os.path.join(node.session_dir, "token")
    lines = [
        f"Skate {'head ' if is_head else ''}node started.",
        f"  address      {node.gcs_endpoint}",
        f"  session      {node.session_dir}",
        f"  token file   {token_path}",
    ]
    if node.metrics_endpoint:
        lines.append(f"  metrics      http://{node.metrics_endpoint}/metrics")
    if record.api_endpoint:
        lines.append(f"  API server   http://{record.api_endpoint}")
    lines += [
        "",
        "Next steps",
        '  from Python  skate.init(address="auto")',
        "  a script     skate run script.py",
        *(["  a job        skate job submit -- python script.py"] if record.api_endpoint else []),
        "  look         skate status",
        "  end          skate stop",
    ]
    if is_head:
        address = _joining_address(record, host)
        joining = f"skate start --address {address} --token-file FILE"
        lines.insert(-3, f"  more nodes   {joining}")
    click.echo("\n".join(lines))
    sys.stdout.flush()


class _StopSignals:
    """SIGTERM, SIGINT and SIGHUP of a command that stays: the first ends it in an orderly way.

    Noted before the start begins, so that one that comes early is not lost; a second one does not
    wait for the start, or the stop, to be complete.
    """

    def __init__(self) -> None:
        self.exit_code: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.exit_code is not None:
            sys.exit(self.exit_code)
        self.exit_code = INTERRUPTED if number == signal.SIGINT else OK

    def wait(self, node: RunningNode) -> NoReturn:
        """Wait for a signal, or for the node's end, which nobody asked for (status 1)."""
        status = None
        while self.exit_code is None and status is None:
            status = node.wait(_POLL_S)
        node.stop()
        if self.exit_code is not None:
            sys.exit(self.exit_code)
        raise CommandError(
            f"The node ended by itself (its process {status}); see {node.session_dir}/logs."
        )
