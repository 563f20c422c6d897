"""A worker's stdout and stderr, which say whose function prints.

When another task or actor than before begins to print, a line goes first that names it; whoever
shows the output takes that line for the name. Only what goes through ``sys.stdout`` and
``sys.stderr`` is named; what C code writes counts as printed by whoever printed last. Source:
SURFACE W1, W3.
"""

from __future__ import annotations

import io
import sys

from skate_rpc.node_protocol import LOG_NAME_MARK
from skate_worker.context import running_task


class NamedOutput(io.TextIOWrapper):
    """A text stream over a descriptor. Costs a look at the running task for each ``write``."""

    def __init__(self, descriptor: int) -> None:
        raw = open(descriptor, "wb", closefd=False)  # noqa: SIM115 - it lives as long as the process
        super().__init__(raw, "utf-8", "backslashreplace", "\n")
        self._shown_name = ""
        self._is_line_start = True

    def write(self, text: str, /) -> int:
        """As the base's; on a new line, the name goes first if it changed."""
        if self._is_line_start and text:
            task = running_task.get()
            # Of an actor the class alone; a thread of user code has no task and keeps the name.
            name = task.name.partition(".")[0] if task.actor_id else task.name
            if name and name != self._shown_name:
                self._shown_name = name
                super().write(f"{LOG_NAME_MARK}{name}\n")
        if text:
            self._is_line_start = text[-1] == "\n"
        return super().write(text)


def name_output() -> None:
    """Give this process such streams. In the zygote: made in each worker they would cost pages."""
    sys.stdout = NamedOutput(1)
    sys.stderr = NamedOutput(2)
