"""RELIABILITY I17: clients of the GCS's key-value store see one order, across kills of the GCS.

Several clients change and read a few keys at once while the GCS is killed and its standby takes
over; what they saw is then judged by ``tests.linearizability``. Each round has keys of its own, so
that the histories stay small. A call is made once: what a client repeats by itself may happen
twice, which is no single operation.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from random import Random

import grpc
import grpc.aio
import pytest

from skate_gcs import GcsConfig
from skate_gcs.redis_for_tests import OwnRedisServer, is_redis_installed
from skate_node.gcs_process import GcsProcess
from skate_rpc.gen.skate.v1 import gcs_pb2, gcs_pb2_grpc
from skate_rpc.grpc_channel import open_channel
from skate_rpc.tokens import generate_token
from tests.linearizability import UNKNOWN, Operation, is_linearizable

KILLS = 4
CLIENTS = 4
KEYS = 3
OPERATIONS = 25  # of each client in each round
KINDS = ("put", "put", "add", "delete", "get", "get", "get")
CALL_S = 30.0
History = dict[bytes, list[Operation]]


# ---- the judge ----


def operations(*lines: tuple[str, bytes | None, object, float, float]) -> list[Operation]:
    return [Operation(*line) for line in lines]


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        pytest.param(
            operations(("put", b"1", True, 0, 1), ("get", None, b"1", 2, 3)), True, id="in-turn"
        ),
        pytest.param(
            operations(("put", b"1", True, 0, 1), ("get", None, None, 2, 3)), False, id="lost-write"
        ),
        pytest.param(
            operations(("put", b"1", True, 0, 9), ("get", None, None, 2, 3)), True, id="overlap"
        ),
        pytest.param(
            operations(
                ("put", b"1", True, 0, 9), ("get", None, b"1", 2, 3), ("get", None, None, 4, 5)
            ),
            False,
            id="read-goes-back",
        ),
        pytest.param(
            operations(("add", b"1", True, 0, 9), ("add", b"2", True, 0, 9)), False, id="two-firsts"
        ),
        pytest.param(
            operations(("put", b"1", None, 0, UNKNOWN), ("get", None, b"1", 5, 6)), True, id="late"
        ),
        pytest.param(
            operations(("put", b"1", None, 0, UNKNOWN), ("get", None, None, 5, 6)), True, id="never"
        ),
        pytest.param(
            operations(
                ("put", b"1", None, 0, UNKNOWN),
                ("delete", None, 1, 2, 3),
                ("get", None, b"1", 5, 6),
            ),
            False,
            id="happened-twice",
        ),
    ],
)
def test_judge_tells_possible_histories_from_impossible_ones(
    history: list[Operation], verdict: bool
) -> None:
    assert is_linearizable(history) is verdict


# ---- the GCS ----


class Client:
    """Calls once, and writes down what it saw."""

    def __init__(self, number: int, endpoint: str, token: str) -> None:
        self._random = Random(number)
        self._number = number
        self._count = 0
        self._channel = open_channel(endpoint, token)
        self._stub = gcs_pb2_grpc.KvServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def work(self, keys: list[bytes], history: History) -> None:
        for _ in range(OPERATIONS):
            await self._try(self._random.choice(KINDS), self._random.choice(keys), history)
        for key in keys:
            await self._try("get", key, history)

    async def _try(self, kind: str, key: bytes, history: History) -> None:
        self._count += 1
        value = b"%d-%d" % (self._number, self._count) if kind in ("put", "add") else None
        began_s = time.monotonic()
        try:
            answer = await self._call(kind, key, value)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            if kind != "get":
                history[key].append(Operation(kind, value, None, began_s, UNKNOWN))
        else:
            history[key].append(Operation(kind, value, answer, began_s, time.monotonic()))

    async def _call(self, kind: str, key: bytes, value: bytes | None) -> object:
        # Who calls while there is no GCS waits for one: only what is under way fails with it.
        how = {"timeout": CALL_S, "wait_for_ready": True}
        if kind == "get":
            found = await self._stub.Get(gcs_pb2.KvGetRequest(namespace="n", key=key), **how)
            return found.value if found.found else None
        if kind == "delete":
            request = gcs_pb2.KvDeleteRequest(namespace="n", key=key)
            return (await self._stub.Delete(request, **how)).deleted
        put = gcs_pb2.KvPutRequest(namespace="n", key=key, value=value, overwrite=kind == "put")
        return (await self._stub.Put(put, **how)).added


@pytest.mark.invariant("I17")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("storage", ["sqlite", "redis"])
def test_keys_are_linearizable_under_kills_of_the_gcs(tmp_path: Path, storage: str) -> None:
    if storage == "sqlite":
        asyncio.run(_judge_rounds(tmp_path, f"sqlite:{tmp_path}/gcs.sqlite"))
        return
    if not is_redis_installed():
        pytest.skip("redis-server is not installed")
    server = OwnRedisServer(str(tmp_path))
    server.start()
    try:
        asyncio.run(_judge_rounds(tmp_path, server.url))
    finally:
        server.kill()


async def _judge_rounds(folder: Path, storage: str) -> None:
    (folder / "logs").mkdir()
    token = generate_token()
    gcs = GcsProcess(GcsConfig("127.0.0.1:0", token, storage), str(folder))
    endpoint = await gcs.start()
    clients = [Client(number, endpoint, token) for number in range(CLIENTS)]
    try:
        for kill in range(KILLS):
            history: History = {b"%d-%d" % (kill, number): [] for number in range(KEYS)}
            keys = list(history)
            work = [asyncio.create_task(one.work(keys, history)) for one in clients]
            while sum(map(len, history.values())) < CLIENTS * OPERATIONS // 3:
                assert not any(one.done() for one in work), "a client ended early"
                await asyncio.sleep(0.001)
            assert gcs.pid, "it serves, so it has a process"
            os.kill(gcs.pid, signal.SIGKILL)
            await asyncio.gather(*work)
            async with asyncio.timeout(CALL_S):
                while gcs.restarts <= kill:  # noqa: ASYNC110  the keeper has no event
                    await asyncio.sleep(0.001)
            for key, seen in history.items():
                assert is_linearizable(seen), (key, seen)
    finally:
        for one in clients:
            await one.close()
        await gcs.stop(0.2)
