"""RELIABILITY I17: what a GCS acknowledged before SIGKILL exists after its restart.

Killed ten times on each back end; more with ``--gcs-kills 1000``. Now and then five kills in a row.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from skate_rpc.errors import RpcError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.grpc_channel import open_channel

TOKEN = "5c" * 32
SCRIPT = Path(__file__).with_name("gcs_process.py")
BURST = 5
PROGRESS = 20  # jobs between two kills


class GcsProcess:
    def __init__(self, folder, storage):
        self.endpoint = f"unix:{folder}/gcs.sock"
        self.storage = storage

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            self.endpoint,
            self.storage,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.process.stdin.write(TOKEN.encode() + b"\n")
        async with asyncio.timeout(20):
            line = await self.process.stdout.readline()
        assert line.decode().strip() == self.endpoint

    async def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        assert await self.process.wait() == -signal.SIGKILL
        self.process.stdin.close()


class Load:
    """Clients that change things as fast as they can, and remember what was acknowledged."""

    def __init__(self, client, seed):
        self.client = client
        self.random = random.Random(seed)
        self.kv = {}
        self.in_doubt = {}  # key -> values whose fate was not told
        self.jobs = {}
        self.drivers = {}
        self.actors = {}
        self.names = {}
        self.nodes = set()
        self.groups = {}  # id -> whether it was removed; None: its fate was not told
        self.is_over = False

    async def run(self):
        await asyncio.gather(
            self.change_kv(0),
            self.change_kv(1),
            self.add_jobs(),
            self.add_actors(),
            self.add_nodes(),
            self.change_groups(),
        )

    async def attempt(self, call):
        """The call's result, or None when the GCS went away under it."""
        try:
            return await call
        except RpcError as error:
            if error.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                raise
            return None

    async def change_kv(self, lane):
        number = 0
        while not self.is_over:
            number += 1
            key = b"%d-%d" % (lane, self.random.randrange(20))
            value = b"%d" % number * self.random.choice([1, 1000])
            self.in_doubt.setdefault(key, []).append(value)
            if await self.attempt(self.client.kv.put("n", key, value, timeout_s=0.3)) is not None:
                self.kv[key] = value
                self.in_doubt[key] = []

    async def add_jobs(self):
        while not self.is_over:
            driver = os.urandom(28)
            job = gcs_pb2.JobInfo(driver=common_pb2.Address(worker_id=driver))
            job_id = await self.attempt(self.client.jobs.add(job, timeout_s=0.3))
            if job_id is not None:
                assert job_id not in self.jobs, "a number was given twice"
                self.jobs[job_id] = driver
                self.drivers[driver] = job

    async def add_actors(self):
        number = 0
        while not self.is_over:
            number += 1
            spec = gcs_pb2.ActorSpec(
                actor_id=os.urandom(16), name=f"actor{number}", creation_task=os.urandom(500)
            )
            spec.placement_resources.amounts["GPU"] = 10_000  # which nobody has: it waits
            reply = await self.attempt(self.client.actors.register(spec, timeout_s=0.3))
            if reply is not None:
                assert reply.created
                self.actors[spec.actor_id] = spec

    async def add_nodes(self):
        while not self.is_over:
            node_id = os.urandom(28)
            node = gcs_pb2.NodeInfo(node_id=node_id)
            if await self.attempt(self.client.nodes.register(node, timeout_s=0.3)) is not None:
                self.nodes.add(node_id)
            await asyncio.sleep(0.02)

    async def change_groups(self):
        while not self.is_over:
            spec = gcs_pb2.PlacementGroupSpec(group_id=os.urandom(18), strategy="PACK")
            spec.bundles.add().resources.amounts["GPU"] = 10_000  # which nobody has: it waits
            replies = await self.attempt(self.client.groups.register([spec], timeout_s=0.3))
            if replies is None:
                continue
            assert not replies[0].refusal
            self.groups[spec.group_id] = False
            if self.random.random() < 0.5:
                self.groups[spec.group_id] = None
                call = self.client.groups.remove([spec.group_id], timeout_s=0.3)
                if await self.was_answered(call):
                    self.groups[spec.group_id] = True

    async def was_answered(self, call):
        try:
            await call
        except RpcError as error:
            if error.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                raise
            return False
        return True

    async def check(self):
        for key, value in self.kv.items():
            found = await self.client.kv.get("n", key)
            assert found == value or found in self.in_doubt[key], (key, value, found)
        jobs = {job.job_id: job.driver.worker_id for job in await self.client.jobs.list()}
        assert self.jobs.items() <= jobs.items()
        for driver, job in list(self.drivers.items())[-3:]:
            assert self.jobs[await self.client.jobs.add(job)] == driver
        actors = {info.spec.actor_id: info for info in await self.client.actors.list()}
        assert self.actors.keys() <= actors.keys()
        for actor_id, spec in self.actors.items():
            assert actors[actor_id].spec.name == spec.name
            assert actors[actor_id].state == gcs_pb2.ACTOR_STATE_PENDING_CREATION
        nodes = {node.node_id for node in await self.client.nodes.list()}
        assert self.nodes <= nodes
        groups = {info.spec.group_id: info.state for info in await self.client.groups.list()}
        states = {
            True: {gcs_pb2.PLACEMENT_GROUP_STATE_REMOVED},
            False: {gcs_pb2.PLACEMENT_GROUP_STATE_PENDING},
        }
        for group_id, is_removed in self.groups.items():
            assert is_removed is None or groups[group_id] in states[is_removed]


@pytest.fixture(params=["sqlite", "redis"])
def storage(request, folder):
    if request.param == "redis":
        return request.getfixturevalue("redis").url
    return f"sqlite:{folder}/gcs.sqlite"


@pytest.mark.timeout(0)  # bounded by the number of kills, each of which is
@pytest.mark.invariant("I17")
@pytest.mark.surface("F3")
def test_everything_acknowledged_survives_sigkill_under_load(folder, storage, gcs_kills):
    async def main():
        gcs = GcsProcess(folder, storage)
        await gcs.start()
        channel = open_channel(gcs.endpoint, TOKEN)
        load = Load(GcsClient(channel, gcs.endpoint), seed=1)
        source = random.Random(1)
        work = asyncio.create_task(load.run())
        kills = 0
        try:
            while kills < gcs_kills:
                count = len(load.jobs) + PROGRESS
                async with asyncio.timeout(20):
                    while len(load.jobs) < count:
                        assert not work.done(), work.result()
                        await asyncio.sleep(0.01)
                for _ in range(BURST if source.random() < 0.1 else 1):
                    await gcs.kill()
                    await gcs.start()
                    kills += 1
            load.is_over = True
            await work
            await load.check()
            await gcs.kill()
            await gcs.start()
            await load.check()
            assert len(load.actors) > PROGRESS
        finally:
            work.cancel()
            await gcs.kill()
            await channel.close()

    asyncio.run(main())
