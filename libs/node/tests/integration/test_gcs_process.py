"""The GCS in a process of its own: started again when it dies, given up when it says why."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from skate_gcs import GcsConfig
from skate_node import gcs_process
from skate_node.failures import ComponentFailedError
from skate_node.gcs_process import GcsProcess
from skate_node.gcs_spawn import spawn_gcs
from skate_rpc.clients import GcsClient
from skate_rpc.grpc_channel import open_channel
from skate_rpc.tokens import generate_token

TOKEN = generate_token()
TIMEOUT_S = 40.0


class Head:
    """A GCS process and a client of it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        (folder / "logs").mkdir(exist_ok=True)
        self.folder = folder
        config = {"endpoint": "127.0.0.1:0", "storage": f"sqlite:{folder}/gcs.sqlite", **settings}
        self.gcs = GcsProcess(GcsConfig(token=TOKEN, **config), str(folder))

    async def start(self) -> GcsClient:
        self.endpoint = await self.gcs.start()
        self.channel = open_channel(self.endpoint, TOKEN)
        return GcsClient(self.channel, self.endpoint)

    async def stop(self) -> None:
        await self.channel.close()
        await self.gcs.stop(0.2)


def play(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  over processes there is no event
        await asyncio.sleep(0.005)


@pytest.mark.invariant("I17")
def test_killed_gcs_is_started_again_at_its_place_with_its_rows(tmp_path: Path) -> None:
    async def test() -> None:
        head = Head(tmp_path)
        client = await head.start()
        await client.kv.put("n", b"k", b"v")
        pids = {head.gcs.pid}
        for lives in (1, 2):
            os.kill(head.gcs.pid, signal.SIGKILL)
            assert await client.kv.get("n", b"k", timeout_s=30.0) == b"v"
            await until(lambda lives=lives: head.gcs.restarts == lives)
            pids.add(head.gcs.pid)
        assert len(pids) == 3
        assert (await head.gcs.statistics()).tables.kv_entries == 1
        await head.stop()
        assert await head.gcs.wait_stopped() == "stopped"
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    play(test)


@pytest.mark.invariant("I22")
def test_gcs_that_stands_still_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_process, "PING_S", 0.5)

    async def test() -> None:
        head = Head(tmp_path)
        client = await head.start()
        await client.kv.put("n", b"k", b"v")
        await asyncio.sleep(0)
        os.kill(head.gcs.pid, signal.SIGSTOP)
        assert await client.kv.get("n", b"k", timeout_s=30.0) == b"v"
        assert head.gcs.restarts == 1
        await head.stop()

    play(test)


@pytest.mark.invariant("I17")
@pytest.mark.parametrize("fate", [None, signal.SIGKILL, signal.SIGSTOP])
def test_standby_becomes_the_gcs_unless_it_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: signal.Signals | None
) -> None:
    monkeypatch.setattr(gcs_process, "STANDBY_AFTER_S", 0.0)
    if fate is not None:
        monkeypatch.setattr(gcs_process, "BEGIN_STANDBY_S", 0.2)

    async def test() -> None:
        head = Head(tmp_path)
        client = await head.start()
        await client.kv.put("n", b"k", b"v")
        await until(lambda: head.gcs.standby_pid != 0)
        first, standby = head.gcs.pid, head.gcs.standby_pid
        if fate is not None:
            os.kill(standby, fate)
        os.kill(first, signal.SIGKILL)
        assert await client.kv.get("n", b"k", timeout_s=30.0) == b"v"
        await until(lambda: head.gcs.restarts == 1)
        assert (head.gcs.pid == standby) == (fate is None)
        await until(lambda: head.gcs.standby_pid not in {0, standby})
        pids = {first, standby, head.gcs.pid, head.gcs.standby_pid}
        await head.stop()
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    play(test)


def test_gcs_that_was_spawned_ahead_is_the_first_life(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "logs").mkdir()
        storage = f"sqlite:{tmp_path}/gcs.sqlite"
        ahead = spawn_gcs(str(tmp_path), storage)
        config = GcsConfig(endpoint="127.0.0.1:0", token=TOKEN, storage=storage)
        gcs = GcsProcess(config, str(tmp_path), first=ahead)
        await gcs.start()
        assert gcs.pid == ahead.pid
        await gcs.stop(0.2)

    play(test)


@pytest.mark.invariant("I15")
@pytest.mark.parametrize("storage", ["sqlite", "redis"])
def test_standby_that_is_never_needed_ends_with_its_parent(tmp_path: Path, storage: str) -> None:
    (tmp_path / "logs").mkdir()
    standby = spawn_gcs(str(tmp_path), storage)
    assert standby.stdin is not None
    assert standby.stdout is not None
    standby.stdin.close()
    assert (standby.wait(TIMEOUT_S), standby.stdout.read()) == (0, b"")
    standby.stdout.close()


def test_gcs_that_can_not_start_says_why(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "gcs.sqlite").write_bytes(b"no database at all" * 100)
        with pytest.raises(ComponentFailedError, match="damaged") as failure:
            await Head(tmp_path).start()
        assert failure.value.component == "gcs"

    play(test)


def test_gcs_whose_process_can_not_run_says_how_it_ended(tmp_path: Path) -> None:
    async def test() -> None:
        head = Head(tmp_path)
        head.gcs._command = ("-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)")
        with pytest.raises(ComponentFailedError, match="ended") as failure:
            await head.start()
        assert (failure.value.exit_status, failure.value.log_tail) == (
            "exited with status 3",
            "no luck",
        )

    play(test)


@pytest.mark.invariant("I18")
def test_gcs_whose_storage_can_not_be_read_again_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        head = Head(tmp_path)
        await head.start()
        os.kill(head.gcs.pid, signal.SIGSTOP)
        connection = sqlite3.connect(f"file:{tmp_path}/copy.sqlite", uri=True)
        connection.execute("PRAGMA user_version=99")
        connection.close()
        os.kill(head.gcs.pid, signal.SIGKILL)
        for suffix in ("", "-wal"):
            (tmp_path / f"gcs.sqlite{suffix}").unlink()
        (tmp_path / "copy.sqlite").rename(tmp_path / "gcs.sqlite")
        assert "schema 99" in await head.gcs.wait_stopped()
        await head.stop()

    play(test)


def test_address_that_is_taken_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gcs_process, "PAUSE_FIRST_S", 1.0)  # time to take it

    async def test() -> None:
        head = Head(tmp_path)
        client = await head.start()
        await client.kv.put("n", b"k", b"v")
        host, _, port = head.endpoint.rpartition(":")
        os.kill(head.gcs.pid, signal.SIGKILL)
        await until(lambda: not head.gcs.pid)
        squatter = await asyncio.start_server(lambda reader, writer: writer.close(), host, port)
        await until(lambda: "does not start again yet" in caplog.text)
        squatter.close()
        await squatter.wait_closed()
        assert await client.kv.get("n", b"k", timeout_s=30.0) == b"v"
        await head.stop()

    play(test)
