"""``python -m skate_node.daemon``: the process that is a node.

What comes before: the launcher's spawn (see ``launch_protocol``). What comes after:
``composition``, which starts the parts. This module is what must work before and after them:
leaving the starter's terminal, the watchdog, and a clean end. It imports little, so that a broken
installation can still be reported.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from skate_core_ids import NodeID
from skate_node.gcs_spawn import IN_DAEMON, spawn_gcs, storage_of
from skate_node.launch_protocol import (
    FIRST_FREE_FD,
    LIFELINE_FD,
    LOCK_FD,
    LOG_TAIL_LINES,
    READY_FD,
    Launch,
    ReadyWriter,
)
from skate_node.options import NodeOptions
from skate_node.processes import kill_session_processes
from skate_node.session import remove_session
from skate_node.watchdog import Watchdog
from skate_raylet.zygote_process import spawn_zygote

if TYPE_CHECKING:
    from skate_node.composition import Components

STOP_GRACE_S = 2.5
"""An orderly stop takes at most this; the whole end, killing included, stays under 3 s."""
ZYGOTE_COMMAND = (sys.executable, "-P", "-m", "skate_worker.zygote")


def main(
    make_components: Callable[[], Components] | None = None,
    zygote_command: tuple[str, ...] = ZYGOTE_COMMAND,
) -> None:
    """Be a node until a stop is asked for, then leave nothing. Does not return.

    ``make_components`` gives other parts than the usual ones, after the imports.
    """
    # A tenth of the start goes to looking for garbage in what is being imported.
    gc.disable()
    launch = _take_launch()
    ending = _Ending(launch)
    ready = ReadyWriter(READY_FD)
    watchdog = Watchdog(
        lifeline_fd=LIFELINE_FD if launch.starter_pid else None,
        starter_pid=launch.starter_pid,
        grace_s=STOP_GRACE_S,
        on_hard_stop=ending.end_now,
    )
    watchdog.start()
    exit_code = 1
    try:
        # First of all: it imports for as long as this process does, on another processor.
        ready.starting("zygote")
        node_id = NodeID.from_random().binary()
        zygote = spawn_zygote(zygote_command, launch.session_dir, node_id, os.environ)
        gcs = None
        storage = storage_of(launch)
        if launch.options.is_head and storage != IN_DAEMON:
            ready.starting("gcs")
            gcs = spawn_gcs(launch.session_dir, storage)
        ready.starting("python import")
        # Imported here: it loads gRPC, and its failure is to be reported like any other.
        from skate_node.composition import Components, run_node  # noqa: PLC0415

        parts = Components() if make_components is None else make_components()
        exit_code = run_node(launch, ready, watchdog, zygote, gcs, parts)
    except Exception as error:  # noqa: BLE001  # The process boundary: the starter is told.
        text = "\n".join(traceback.format_exc().splitlines()[-LOG_TAIL_LINES:])
        print(text, file=sys.stderr, flush=True)  # noqa: T201  # Into daemon.err.
        ready.failed(ready.component, f"{type(error).__name__}: {error}", log_tail=text)
    watchdog.disarm()
    ending.end(exit_code)


class _Ending:
    """Ends the process without the interpreter's tear-down, which other threads could hold up."""

    def __init__(self, launch: Launch) -> None:
        self._session_dir = launch.session_dir
        self._keep_logs = launch.options.keep_logs

    def end(self, exit_code: int) -> None:
        kill_session_processes(os.path.basename(self._session_dir))
        remove_session(self._session_dir, keep_logs=self._keep_logs)
        sys.stderr.flush()
        os._exit(exit_code)

    def end_now(self, reason: str) -> None:
        print(f"ended at once: {reason}", file=sys.stderr, flush=True)  # noqa: T201
        self.end(1)


def _take_launch() -> Launch:
    """Leave the starter's terminal and take over the fixed descriptors."""
    try:
        os.setsid()
    except PermissionError:
        pass  # Started by hand from a shell: it leads its own group already.
    os.closerange(FIRST_FREE_FD, os.sysconf("SC_OPEN_MAX"))
    for descriptor in (READY_FD, LIFELINE_FD, LOCK_FD):
        try:
            os.set_inheritable(descriptor, False)
        except OSError:
            continue  # No lifeline was given.
    with open(0, "rb", closefd=False) as file:
        config = json.load(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return Launch(
        options=NodeOptions.from_json(config["options"]),
        session_dir=config["session_dir"],
        starter_pid=config["starter_pid"],
        umask=os.umask(0o077),
    )


if __name__ == "__main__":
    main()
