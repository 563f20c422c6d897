"""Options that every command which looks at a cluster has, so that they are spelled one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def which_cluster(command: Command) -> Command:
    """``--address``, ``--token-file``, ``--temp-dir``: the cluster, and how to be let in."""
    for option in (
        click.option("--temp-dir", type=click.Path(), help="Where session folders are."),
        click.option("--token-file", type=click.Path(), help="File with the cluster's token."),
        click.option(
            "--address", metavar="HOST:PORT", help="The cluster.  [default: $SKATE_ADDRESS, auto]"
        ),
    ):
        command = option(command)
    return command


def how_shown(*, timeout_s: float) -> Callable[[Command], Command]:
    """``--format`` (as ``style``) and ``--timeout``, by default ``timeout_s``."""

    def add(command: Command) -> Command:
        timeout = click.FloatRange(min=0.1)
        command = click.option("--timeout", type=timeout, default=timeout_s, show_default=True)(
            command
        )
        styles = click.Choice(["table", "json"])
        return click.option(
            "-o", "--format", "style", type=styles, default="table", show_default=True
        )(command)

    return add
