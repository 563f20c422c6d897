"""The API server of a head: a port at once, a process when somebody calls, another when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from skate_node.api_server import ApiServer, bind_first
from skate_rpc.errors import BindError

TIMEOUT_S = 40.0
ECHO = """
import os, socket, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
listener = socket.socket(fileno=int(sys.argv[sys.argv.index("--listen-fd") + 1]))
listener.setblocking(True)
while True:
    connection, _ = listener.accept()
    connection.sendall(f"{os.getpid()} {sys.argv[sys.argv.index('--session') + 1]}".encode())
    connection.close()
"""


def play(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await test()

    asyncio.run(bounded())


def make(folder: Path, program: str = ECHO) -> ApiServer:
    (folder / "logs").mkdir()
    return ApiServer(("-c", program), bind_first("127.0.0.1", [0]), str(folder))


async def ask(endpoint: str) -> list[str]:
    host, port = endpoint.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    text = (await reader.read()).decode()
    writer.close()
    return text.split()


def has_ended(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  over processes there is no event
        await asyncio.sleep(0.005)


def test_process_starts_with_the_first_connection_and_answers_it(tmp_path: Path) -> None:
    async def test() -> None:
        server = make(tmp_path)
        server.start(at_once=False)
        await asyncio.sleep(0)
        assert (server.pid, server.starts) == (0, 0)
        assert await ask(server.endpoint) == [str(server.pid), str(tmp_path)]
        assert await ask(server.endpoint) == [str(server.pid), str(tmp_path)]
        pid, endpoint = server.pid, server.endpoint
        await server.stop(5.0)
        assert has_ended(pid)
        with pytest.raises(ConnectionRefusedError):
            await ask(endpoint)

    play(test)


def test_killed_process_is_replaced_behind_the_same_port(tmp_path: Path) -> None:
    async def test() -> None:
        server = make(tmp_path)
        server.start(at_once=True)
        pids = set()
        for starts in (1, 2, 3):
            await until(lambda starts=starts: server.starts == starts)
            pid, _ = await ask(server.endpoint)
            pids.add(pid)
            os.kill(int(pid), signal.SIGKILL)
        assert len(pids) == 3
        await server.stop(5.0)

    play(test)


def test_process_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    async def test() -> None:
        server = make(tmp_path, "import time\nwhile True: time.sleep(60)")
        server.start(at_once=True)
        await until(lambda: server.starts == 1)
        pid = server.pid
        await server.stop(0.05)
        assert has_ended(pid)

    play(test)


def test_process_that_fails_at_once_is_tried_again_with_pauses_and_logged(tmp_path: Path) -> None:
    async def test() -> None:
        server = make(tmp_path, "raise SystemExit('the port is haunted')")
        server.start(at_once=True)
        await until(lambda: server.starts == 2)
        await server.stop(0.05)
        assert "the port is haunted" in (tmp_path / "logs" / "api_server.log").read_text()

    play(test)


def test_first_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}.*Give another port"):
            bind_first("127.0.0.1", [port])
        with bind_first("127.0.0.1", [port, 0]) as found:
            assert found.getsockname()[1] not in (0, port)
