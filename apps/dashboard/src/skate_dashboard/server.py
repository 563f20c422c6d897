"""The process of the API server: a driver of its cluster, and an HTTP server.

Run by the head's daemon, which keeps the other end of its standard input: when that closes, or the
cluster is gone, the server ends. What comes before: ``skate start``. What comes after:
``application``.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import threading
from typing import Final

import uvicorn

from skate_core_ids import SkateError
from skate_dashboard.application import make_application
from skate_dashboard.job_routes import JobRoutes
from skate_jobs.manager import JobManager
from skate_node import NodeRecord, find_node
from skate_rpc.node_protocol import LogPart, ReadLog
from skate_rpc.tokens import read_token_file
from skate_worker.core import CoreWorker
from skate_worker.current import set_current_core

_log = logging.getLogger(__name__)

LOST_EXIT_CODE: Final = 3
HEADERS_BYTES_MAX: Final = 64 * 1024
CONNECTIONS_MAX: Final = 1000
SYSTEM_KEY: Final = "skate:system"  # in the metadata of jobs that are Skate's own


def main(arguments: list[str] | None = None) -> int:
    """Serve until standard input closes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="skate-dashboard", description=__doc__)
    parser.add_argument("--session", required=True, help="folder of the head's session")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8265, help="0 takes a free one")
    parser.add_argument("--listen-fd", type=int, help="serve a socket that listens already")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    root = os.path.dirname(os.path.dirname(options.session))
    record = find_node(options.session, root)
    token = read_token_file(record.token_path)
    if options.listen_fd is None:
        listener = _listen(options.host, options.port)
    else:
        listener = socket.socket(fileno=options.listen_fd)
    try:
        core = CoreWorker.connect_driver(
            raylet_endpoint=record.stream_endpoint,
            token=token,
            entrypoint="skate-dashboard",
            metadata={SYSTEM_KEY: "dashboard"},
            on_raylet_lost=_end_with_the_node,
            ip_address=record.ip_address,
        )
    except SkateError as error:
        print(f"The API server can not join its cluster: {error}", file=sys.stderr)  # noqa: T201
        return 1
    set_current_core(core)
    manager = JobManager(core, bytes(core.node_id))
    manager.start()
    try:
        _serve(core, manager, record, token, listener)
    finally:
        manager.close()
        core.close()
    return 0


def _serve(
    core: CoreWorker, manager: JobManager, record: NodeRecord, token: str, listener: socket.socket
) -> None:
    def read_log(question: ReadLog) -> LogPart | None:
        part: LogPart | None = core.raylet.call("read_log", question, LogPart | None)
        return part

    host, port = listener.getsockname()[:2]
    application = make_application(
        JobRoutes(manager, read_log),
        token=token,
        hosts=names_of(host, port, record.ip_address),
        session_name=os.path.basename(record.session_dir),
    )
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            h11_max_incomplete_event_size=HEADERS_BYTES_MAX,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=1,
            ws="websockets-sansio",
            lifespan="off",
        )
    )
    threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
    print(f"listening {host}:{port}", flush=True)  # noqa: T201 - told to whoever started it
    asyncio.run(server.serve(sockets=[listener]))


def names_of(host: str, port: int, ip_address: str) -> frozenset[str]:
    """What a client may call this server in its Host header."""
    names = {"127.0.0.1", "localhost", "[::1]", host, ip_address}
    return frozenset(f"{name}:{port}" for name in names)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def _end_with_stdin(server: uvicorn.Server) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True


def _end_with_the_node(reason: str) -> None:
    print(f"the node is gone: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - its log
    os._exit(LOST_EXIT_CODE)


if __name__ == "__main__":
    sys.exit(main())
