"""A zygote whose workers do what a test tells them: they run the Python that arrives on their
socket.

Run in the place of ``skate_worker.zygote``; everything up to ``run_worker`` is the real one.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from typing import Any

from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.node_messages import stamp
from skate_rpc.serials import Serials
from skate_rpc.stream import connect_stream
from skate_worker import zygote
from skate_worker.worker_main import WorkerConfig


class Line:
    """What the code of a test sends by."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._serials = Serials()

    def send(self, message: Any) -> None:
        self.connection.send(stamp(message, self._serials))

    def close(self) -> None:
        self.connection.close()


def run(config: WorkerConfig) -> int:
    if os.environ.get("TINY_EXIT"):
        print("refuses to start", file=sys.stderr)
        return int(os.environ["TINY_EXIT"])
    loop = IoThread()
    loop.start()
    ended = threading.Event()
    worker_id = os.urandom(28)
    scope: dict[str, Any] = {
        "os": os,
        "signal": signal,
        "node": node,
        "config": config,
        "loop": loop,
        "connect_stream": connect_stream,
        "log": [],
    }

    def on_messages(connection: Any, batch: list[Any]) -> None:
        for message in batch:
            scope["log"].append(message)
            if isinstance(message, node.CreateActor):
                on_create(connection, message)
            elif isinstance(message, node.ExitNow) and not os.environ.get("TINY_STUBBORN"):
                ended.set()

    scope["on_messages"] = on_messages

    def on_create(connection: Any, message: node.CreateActor) -> None:
        life = (message.actor_id, message.incarnation)
        if message.creation_task == b"raise":
            connection.send(node.ActorCreationFailed(*life, b"pickled", "ValueError: no"))
            ended.set()
        elif message.creation_task != b"hang":
            connection.send(node.ActorCreated(*life))

    sockets = os.path.join(config.session_dir, "sockets")
    path = os.path.join(sockets, f"t{config.startup_id}.sock")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    connection = connect_stream(
        config.raylet_endpoint,
        config.token.encode(),
        loop,
        incoming=node.FromRaylet,
        on_messages=on_messages,
        on_close=lambda connection, reason: ended.set(),
    )
    scope["connection"] = Line(connection)
    connection.send(
        node.RegisterProcess(worker_id, os.getpid(), f"unix:{path}", False, config.startup_id)
    )

    def obey() -> None:
        while True:
            peer, _ = server.accept()
            with peer:
                code = peer.recv(65536).decode()
                try:
                    exec(code, scope)
                    peer.sendall(str(scope.pop("answer", "")).encode())
                except Exception:  # noqa: BLE001  the test is told
                    peer.sendall(traceback.format_exc().encode())

    threading.Thread(target=obey, daemon=True).start()
    ended.wait()
    return 0


if __name__ == "__main__":
    if "fork-twice" in sys.argv:
        zygote.find_sibling_fork = lambda: None
    sys.exit(zygote.main(run))
