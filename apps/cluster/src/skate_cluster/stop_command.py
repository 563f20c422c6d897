"""``skate stop``: end the nodes of this user on this machine that ``skate start`` started."""

from __future__ import annotations

import os
import signal
import time

import click

from skate_cluster.exit_codes import FAILED, TIMED_OUT, CommandError
from skate_core_ids import SkateError
from skate_node.processes import kill_session_processes
from skate_node.session import NodeRecord, is_alive, live_nodes, sweep_dead_sessions

_POLL_S = 0.02


@click.command(name="stop", short_help="Stop the nodes of this machine.")
@click.option("-f", "--force", is_flag=True, help="Kill at once instead of asking.")
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=16.0,
    show_default=True,
    help="Seconds to wait for an orderly end.",
)
@click.option(
    "--all", "every", is_flag=True, help="Also the nodes that belong to running programs."
)
@click.option("--temp-dir", type=click.Path(), help="Where session folders are.")
def command(force: bool, grace: float, every: bool, temp_dir: str | None) -> None:
    """Stop the nodes on this machine, the head last. No node to stop is no error."""
    try:
        nodes = [node for node in live_nodes(temp_dir) if every or not node.is_owned]
        if not nodes:
            click.echo("No node runs here.")
            return
        # Workers before heads, so that they can still say goodbye.
        nodes.sort(key=lambda node: node.is_head)
        left = [node for node in nodes if not _stop(node, force, grace)]
        sweep_dead_sessions(temp_dir)
    except SkateError as error:
        raise CommandError(str(error), FAILED) from None
    if left:
        names = ", ".join(f"{node.session_name} (pid {node.pid})" for node in left)
        raise CommandError(
            f"Still running after {grace:g} s: {names}; kill with `skate stop --force`.", TIMED_OUT
        )
    click.echo(f"Stopped {len(nodes)} node{'s' if len(nodes) > 1 else ''}.")


def _stop(node: NodeRecord, force: bool, grace_s: float) -> bool:
    """Whether the node is gone."""
    # The pidfd is taken before the node's life is checked, so that no reused process id is hit.
    try:
        descriptor = os.pidfd_open(node.pid)
    except ProcessLookupError:
        return True
    try:
        if not is_alive(node.session_dir):
            return True
        signal.pidfd_send_signal(descriptor, signal.SIGKILL if force else signal.SIGTERM)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + max(grace_s, 5.0 if force else 0.0)
    while is_alive(node.session_dir):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    if force:
        kill_session_processes(node.session_name)
    return True
