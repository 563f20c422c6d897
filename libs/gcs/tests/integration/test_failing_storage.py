"""What a GCS does when its storage, or its own code, fails under it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import pytest

from skate_gcs.machine.gcs_machine import GcsMachine
from skate_gcs.storage import SqliteStorage
from skate_rpc.errors import RpcError, RpcUnavailableError
from skate_rpc.gen.skate.v1 import gcs_pb2

ALIVE = gcs_pb2.ACTOR_STATE_ALIVE


@pytest.fixture
def disk(monkeypatch):
    """Faults to inject into the SQLite back end's writes."""

    class Disk:
        error_code = None

    write = SqliteStorage._write

    def faulty_write(self, connection, batches):
        if Disk.error_code is not None:
            error = sqlite3.OperationalError("injected")
            error.sqlite_errorcode = Disk.error_code
            raise error
        write(self, connection, batches)

    monkeypatch.setattr(SqliteStorage, "_write", faulty_write)
    return Disk


@pytest.mark.invariant("I19")
def test_full_disk_refuses_writes_answers_reads_and_heals(folder, harness, run, disk):
    async def main():
        async with harness(storage=f"sqlite:{folder}/gcs.sqlite") as gcs:
            raylet = await gcs.add_raylet()
            job = await gcs.add_job()
            await gcs.client.kv.put("n", b"old", b"1")
            disk.error_code = sqlite3.SQLITE_FULL
            writes = [
                gcs.client.kv.put("n", b"new", b"1", timeout_s=1.0),
                gcs.client.actors.register(gcs.spec(name="a"), timeout_s=1.0),
                gcs.client.jobs.finish(job, timeout_s=1.0),
            ]
            for refusal in await asyncio.gather(*writes, return_exceptions=True):
                assert isinstance(refusal, RpcUnavailableError)
                assert "no room" in refusal.message
            assert await gcs.client.kv.get("n", b"old") == b"1"
            assert await gcs.client.kv.get("n", b"new") is None
            assert await gcs.client.actors.get_named("a", "") is None
            assert not (await gcs.client.jobs.list())[0].finished
            report = gcs_pb2.ReportResourcesRequest(node_id=raylet.node_id, version=1)
            assert (await gcs.client.nodes.report_resources(report)).known
            assert raylet.starts == []  # nothing that is not stored has had an effect
            patient = asyncio.create_task(gcs.client.kv.put("n", b"patient", b"1"))
            await gcs.until(lambda: _failures_above(gcs, 5))
            disk.error_code = None
            assert await patient
            spec = gcs.spec()
            await gcs.client.actors.register(spec)
            await gcs.until_actor(spec.actor_id, ALIVE)

    run(main())


async def _failures_above(gcs, count):
    return gcs.server.statistics().storage.failures > count


@pytest.mark.invariant("I18")
def test_failed_device_stops_the_gcs_and_is_named(folder, harness, run, disk):
    async def main():
        async with harness(storage=f"sqlite:{folder}/gcs.sqlite") as gcs:
            await gcs.client.kv.put("n", b"k", b"1")
            events = gcs.client.events.subscribe(["job"])
            assert (await anext(events)).snapshot_end
            disk.error_code = sqlite3.SQLITE_IOERR_FSYNC
            with pytest.raises(RpcUnavailableError, match="device failed"):
                await gcs.client.kv.put("n", b"k", b"2", timeout_s=1.0)
            assert "device failed" in await gcs.server.wait_stopped()
            disk.error_code = None
            with pytest.raises(RpcUnavailableError, match="device failed"):
                await gcs.client.kv.get("n", b"k", timeout_s=0.3)
            with pytest.raises(RpcUnavailableError):
                await anext(events)
            await gcs.restart()
            assert await gcs.client.kv.get("n", b"k") == b"1"

    run(main())


def test_bug_in_the_machine_costs_one_request(harness, run, monkeypatch, caplog):
    handle = GcsMachine.handle

    def buggy_handle(self, event, now):
        commands = handle(self, event, now)
        if getattr(event, "key", b"") == b"bug":
            raise RuntimeError("planted")
        return commands

    monkeypatch.setattr(GcsMachine, "handle", buggy_handle)

    async def main():
        async with harness() as gcs:
            await gcs.client.kv.put("n", b"k", b"1")
            with (
                caplog.at_level(logging.CRITICAL, logger="skate_gcs.service.runner"),
                pytest.raises(RpcError, match="planted") as failure,
            ):
                await gcs.client.kv.put("n", b"bug", b"1")
            assert failure.value.code == "INTERNAL"
            assert list(await gcs.client.kv.keys("n")) == [b"k"]  # nothing of it happened

    run(main())


def test_requests_beyond_the_bound_are_refused(folder, harness, run, disk):
    async def main():
        async with harness(requests_max=5) as gcs:
            clients = [gcs.connect() for _ in range(4)]
            puts = [
                clients[number % 4].kv.put("n", b"%d" % number, b"", timeout_s=5.0)
                for number in range(200)
            ]
            assert all(await asyncio.gather(*puts))  # refused ones were tried again
            assert len(await gcs.client.kv.keys("n")) == 200

    run(main())
