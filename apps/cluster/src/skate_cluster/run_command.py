"""``skate run``: a Python script as a driver of a running cluster."""

from __future__ import annotations

import os
import sys

import click

from skate_cluster.addresses import ADDRESS_VARIABLE, chosen_address
from skate_cluster.exit_codes import NOT_FOUND, UNREACHABLE, CommandError
from skate_node.errors import ClusterNotFoundError
from skate_node.session import find_node


@click.command(
    name="run",
    short_help="Run a script on the cluster.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option(
    "--address", metavar="HOST:PORT", help="The cluster.  [default: $SKATE_ADDRESS, auto]"
)
@click.option("--temp-dir", type=click.Path(), help="Where session folders are.")
@click.option("--as-ray", is_flag=True, help="In SCRIPT, ray is another name of skate.")
@click.argument("script", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    address: str | None,
    temp_dir: str | None,
    as_ray: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with its ARGUMENTS; skate.init() in it connects to the cluster.

    The script takes this process over: signals reach it, and its exit status is the command's.
    With --as-ray a program written for Ray runs as it stands, in its workers too.
    """
    if not os.path.isfile(script):
        raise CommandError(f"There is no script {script}; check the path.", NOT_FOUND)
    try:
        node = find_node(chosen_address(address), temp_dir)
    except ClusterNotFoundError as error:
        raise CommandError(str(error), UNREACHABLE) from None
    environment = {**os.environ, ADDRESS_VARIABLE: node.gcs_endpoint}
    if temp_dir is not None:
        environment["SKATE_TMPDIR"] = os.path.abspath(temp_dir)
    sys.stdout.flush()
    sys.stderr.flush()
    how = ["-m", "skate.as_ray"] if as_ray else []
    os.execve(sys.executable, [sys.executable, *how, script, *arguments], environment)
