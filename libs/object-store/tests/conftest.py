from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skate_object_store import StoreClient, StoreConfig, StoreServer

Serve = Callable[..., StoreServer]
Connect = Callable[..., StoreClient]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers; at the end each must be consistent, and is closed."""
    servers: list[StoreServer] = []

    def start(capacity_bytes: int = 64 << 20, **options: object) -> StoreServer:
        path = tmp_path / f"store{len(servers)}.sock"
        options.setdefault("config", StoreConfig(commit_ahead_min_bytes=0))
        server = StoreServer(str(path), capacity_bytes, **options)  # type: ignore[arg-type]
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        if not server.is_closed:
            server.check_invariants()
        server.close()


@pytest.fixture
def server(serve: Serve) -> StoreServer:
    return serve()


@pytest.fixture
def connect(server: StoreServer) -> Iterator[Connect]:
    """Makes clients of ``server`` and closes them at the end."""
    clients: list[StoreClient] = []

    def attach(**options: object) -> StoreClient:
        clients.append(StoreClient(server.endpoint, **options))  # type: ignore[arg-type]
        return clients[-1]

    yield attach
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect) -> StoreClient:
    return connect()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds; one-way messages take a moment to arrive."""
    import time

    def wait(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
        deadline_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline_s, "the condition did not come true"

    return wait
