"""What the command's exit status says. Stable: scripts may rely on it."""

from __future__ import annotations

import click

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
NOT_FOUND = 4
TIMED_OUT = 5
INTERRUPTED = 130


class CommandError(click.ClickException):
    """Ends the command with one sentence on standard error and this exit status."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click documents it as set per instance
