"""A worker process, from the fork to its exit.

The zygote forks; the child calls :func:`run_worker` on its main thread, which runs user code until
the raylet, the user, or the death of the raylet ends it.
"""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
from dataclasses import dataclass

from skate_rpc.process_endpoints import LOOPBACK
from skate_worker import actor_host  # noqa: F401 - imported before the fork, so that workers share it
from skate_worker.core import CoreWorker
from skate_worker.current import set_current_core
from skate_worker.setup_hook import run_setup_hook

_log = logging.getLogger(__name__)
EXIT_RAYLET_LOST = 3


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a forked worker needs to join its raylet."""

    raylet_endpoint: str
    token: str
    session_dir: str
    node_id: bytes
    job_id: bytes
    startup_id: int
    sys_path: tuple[str, ...] = ()
    ip_address: str = LOOPBACK


def run_worker(config: WorkerConfig) -> int:
    """Join, run until told to exit, run exit hooks; returns the exit code."""
    faulthandler.enable()
    core = CoreWorker.connect_worker(
        raylet_endpoint=config.raylet_endpoint,
        token=config.token,
        startup_id=config.startup_id,
        ip_address=config.ip_address,
        on_raylet_lost=_die_with_the_raylet,
    )
    for path in reversed(config.sys_path):
        if path not in sys.path:
            sys.path.insert(0, path)
    set_current_core(core)
    run_setup_hook()
    try:
        code = core.run()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else 1
        core.announce_exit(f"user code called sys.exit({request.code!r})")
    # The interpreter's own shutdown is skipped (a forked child ends by os._exit), so its hooks run
    # here.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    core.close()
    return code


def _die_with_the_raylet(reason: str) -> None:
    # User code may hold the main thread for ever: nothing orderly is left to wait for.
    _log.error("event=raylet_lost reason=%r", reason)
    os._exit(EXIT_RAYLET_LOST)
