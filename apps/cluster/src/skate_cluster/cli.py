"""The command group. A subcommand is imported when it runs, so that ``--help`` stays cheap.

Exit statuses: 0 done, 1 failed, 2 wrong usage, 3 cluster unreachable, 4 not found, 5 timed out;
``skate run`` ends as its script ends. Results go to standard output, everything else to standard
error.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class _Entry:
    module: str
    summary: str
    attribute: str = "command"


_COMMANDS = {
    "start": _Entry("skate_cluster.start_command", "Start a node: a head, or one that joins."),
    "stop": _Entry("skate_cluster.stop_command", "Stop the nodes that run on this machine."),
    "status": _Entry("skate_cluster.status_command", "Show nodes, resources and what waits."),
    "drain-node": _Entry("skate_cluster.drain_command", "Have a node take no work and leave."),
    "memory": _Entry("skate_cluster.memory_command", "Explain what the object stores hold."),
    "list": _Entry(
        "skate_cluster.list_commands",
        "List nodes, actors, jobs, placement groups, dead workers.",
        "list_command",
    ),
    "get": _Entry("skate_cluster.list_commands", "Show one of those.", "get_command"),
    "summary": _Entry("skate_cluster.list_commands", "Count them by state.", "summary_command"),
    "logs": _Entry("skate_cluster.logs_command", "List, print and follow log files."),
    "health-check": _Entry("skate_cluster.health_command", "Say whether the cluster answers."),
    "kill-actor": _Entry("skate_cluster.kill_actor_command", "End an actor by its name or id."),
    "why": _Entry("skate_cluster.why_command", "Explain why something waits."),
    "job": _Entry("skate_cluster.job_commands", "Submit, follow and stop jobs."),
    "run": _Entry("skate_cluster.run_command", "Run a Python script on the cluster."),
}


class _LazyGroup(click.Group):
    """Lists its commands from a table and imports the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit status: 0 done, 1 failed, 2 wrong usage, 3 cluster unreachable, 4 not found,"
        " 5 timed out."
    ),
)
@click.version_option(package_name="skate-cluster", prog_name="skate")
def cli() -> None:
    """Skate: a distributed runtime for Python."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with its exit status."""
    cli.main(args=None if arguments is None else list(arguments), prog_name="skate")
