"""Real servers and clients over unix sockets and loopback: tokens, retries, typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import msgspec
import pytest

from skate_rpc.calls import Caller, RetryPolicy
from skate_rpc.clients import GcsClient, RayletClient
from skate_rpc.errors import (
    BindError,
    RpcAuthenticationError,
    RpcError,
    RpcTimeoutError,
    RpcUnavailableError,
)
from skate_rpc.gen.skate.v1 import (
    common_pb2,
    gcs_pb2,
    gcs_pb2_grpc,
    raylet_pb2,
    raylet_pb2_grpc,
)
from skate_rpc.grpc_channel import open_channel
from skate_rpc.grpc_limits import KV_VALUE_BYTES_MAX
from skate_rpc.grpc_server import SecureServer
from skate_rpc.handshake import AuthenticationError
from skate_rpc.methods import METHODS
from skate_rpc.movable_channel import MovableChannel
from skate_rpc.object_report import NodeObjects
from skate_rpc.wait_report import Explanation, NodeWaits
from skate_telemetry.context import TraceContext, current_trace, use_trace

TOKEN = "5e" * 32
OTHER_TOKEN = "0f" * 32
AnyCall: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
FAST_RETRY = RetryPolicy(first_s=0.01, max_s=0.05)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run an async test within a bound."""

    async def bounded() -> None:
        async with asyncio.timeout(30):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what is watched cannot set an event)
        await asyncio.sleep(0.005)


class Kv(gcs_pb2_grpc.KvServiceServicer):
    """A dictionary that can be told to fail, to hang and to note who asked."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.calls = 0
        self.failures: list[grpc.StatusCode] = []
        self.is_hanging = False
        self.traces: list[TraceContext | None] = []

    async def _enter(self, context: Any) -> None:
        self.calls += 1
        self.traces.append(current_trace())
        if self.failures:
            await context.abort(self.failures.pop(0), "told to fail")
        if self.is_hanging:
            await asyncio.Event().wait()

    async def Put(self, request: gcs_pb2.KvPutRequest, context: Any) -> gcs_pb2.KvPutReply:  # noqa: N802
        await self._enter(context)
        is_new = request.key not in self.values
        if is_new or request.overwrite:
            self.values[request.key] = request.value
        return gcs_pb2.KvPutReply(added=is_new or request.overwrite)

    async def Get(self, request: gcs_pb2.KvGetRequest, context: Any) -> gcs_pb2.KvGetReply:  # noqa: N802
        await self._enter(context)
        value = self.values.get(request.key)
        return gcs_pb2.KvGetReply(found=value is not None, value=value or b"")

    async def Delete(self, request: gcs_pb2.KvDeleteRequest, context: Any) -> gcs_pb2.KvDeleteReply:  # noqa: N802
        await self._enter(context)
        return gcs_pb2.KvDeleteReply(deleted=int(self.values.pop(request.key, None) is not None))

    async def Keys(self, request: gcs_pb2.KvKeysRequest, context: Any) -> gcs_pb2.KvKeysReply:  # noqa: N802
        await self._enter(context)
        return gcs_pb2.KvKeysReply(keys=[k for k in self.values if k.startswith(request.prefix)])


class Events(gcs_pb2_grpc.EventServiceServicer):
    """Sends the end of the snapshot, then whatever the test puts in; None ends the stream."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[gcs_pb2.Event | grpc.StatusCode | None] = asyncio.Queue()
        self.open = 0

    async def Subscribe(  # noqa: N802
        self, request: gcs_pb2.SubscribeRequest, context: Any
    ) -> AsyncIterator[gcs_pb2.Event]:
        self.open += 1
        try:
            yield gcs_pb2.Event(sequence=len(request.channels), snapshot_end=True)
            while (item := await self.queue.get()) is not None:
                if isinstance(item, gcs_pb2.Event):
                    yield item
                else:
                    await context.abort(item, "told to fail")
        finally:
            self.open -= 1


class Echo:
    """Answers every call of a service with one reply, and keeps what was asked."""

    def __init__(self, **replies: Any) -> None:
        self._replies = replies
        self.requests: list[Any] = []
        self.failures: list[grpc.StatusCode] = []

    def __getattr__(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        reply = self.__dict__["_replies"].get(name)
        if reply is None:
            raise AttributeError(name)

        async def handle(request: Any, context: Any) -> Any:
            self.requests.append(request)
            if self.failures:
                await context.abort(self.failures.pop(0), "told to fail")
            return reply

        return handle


@contextlib.asynccontextmanager
async def serving(
    endpoint: str, *parts: tuple[Any, Any], token: str | None = TOKEN
) -> AsyncIterator[SecureServer]:
    server = SecureServer(token)
    for adder, servicer in parts:
        server.add(adder, servicer)
    await server.start(endpoint)
    try:
        yield server
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def gcs_at(target: str, token: str | None = TOKEN) -> AsyncIterator[GcsClient]:
    channel = open_channel(target, token)
    try:
        yield GcsClient(channel, target, FAST_RETRY)
    finally:
        await channel.close()


def kv_part(kv: Kv) -> tuple[Any, Any]:
    return gcs_pb2_grpc.add_KvServiceServicer_to_server, kv


@pytest.fixture(params=["unix", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/gcs.sock" if request.param == "unix" else "127.0.0.1:0"


@pytest.fixture
def unix_endpoint(tmp_path: Path) -> str:
    return f"unix:{tmp_path}/gcs.sock"


# ---- authentication ----


def test_call_right_token_is_answered(endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        async with serving(endpoint, kv_part(kv)) as server, gcs_at(server.endpoint) as gcs:
            assert await gcs.kv.put("fun", b"a", b"1")
            assert await gcs.kv.get("fun", b"a") == b"1"
            assert await gcs.kv.get("fun", b"b") is None
            assert not await gcs.kv.put("fun", b"a", b"2", overwrite=False)
            assert list(await gcs.kv.keys("fun")) == [b"a"]
            assert await gcs.kv.delete("fun", b"a") == 1
            assert server.statistics().calls == 6
            assert server.statistics().refused == 0

    run(test)


@pytest.mark.parametrize("token", [None, OTHER_TOKEN, TOKEN[:-1], TOKEN + "0", TOKEN.upper()])
def test_call_wrong_token_is_refused_and_reaches_no_servicer(
    endpoint: str, token: str | None
) -> None:
    async def test() -> None:
        kv = Kv()
        async with serving(endpoint, kv_part(kv)) as server, gcs_at(server.endpoint, token) as gcs:
            with pytest.raises(RpcAuthenticationError) as caught:
                await gcs.kv.put("fun", b"a", b"1")
            assert isinstance(caught.value, AuthenticationError)
            assert TOKEN not in str(caught.value)
            assert kv.calls == 0
            assert server.statistics().refused == 1

    run(test)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", f"bearer {TOKEN}"),),
        (("authorization", f"Bearer  {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")),
        (("authorization-bin", f"Bearer {TOKEN}".encode()),),
        (("authorization", "Bearer " + "x" * 7000),),
    ],
)
def test_call_odd_authorization_is_refused(
    unix_endpoint: str, metadata: tuple[tuple[str, Any], ...]
) -> None:
    async def test() -> None:
        kv = Kv()
        async with (
            serving(unix_endpoint, kv_part(kv)),
            grpc.aio.insecure_channel(unix_endpoint) as channel,
        ):
            call: AnyCall = channel.unary_unary("/skate.v1.KvService/Put")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"", metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert kv.calls == 0

    run(test)


def test_call_megabyte_token_is_refused_and_the_server_goes_on(unix_endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            async with grpc.aio.insecure_channel(unix_endpoint) as channel:
                call: AnyCall = channel.unary_unary("/skate.v1.KvService/Put")
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(b"", metadata=(("authorization", "Bearer " + "x" * 1_000_000),))
            assert kv.calls == 0
            assert await gcs.kv.put("fun", b"a", b"1")

    run(test)


@pytest.mark.parametrize(
    "method", ["/skate.v1.KvService/None", "/x.Y/Z", "/skate.v1.EventService/Subscribe"]
)
def test_call_unknown_method_without_token_learns_nothing(unix_endpoint: str, method: str) -> None:
    async def test() -> None:
        async with (
            serving(unix_endpoint, kv_part(Kv())),
            grpc.aio.insecure_channel(unix_endpoint) as channel,
        ):
            call: AnyCall = channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED

    run(test)


@pytest.mark.parametrize(
    "noise", [b"", b"\0" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0", b"\x80\x05."]
)
def test_server_noise_on_the_socket_is_survived(endpoint: str, noise: bytes) -> None:
    async def test() -> None:
        async with serving(endpoint, kv_part(Kv())) as server, gcs_at(server.endpoint) as gcs:
            kind, _, place = server.endpoint.partition(":")
            with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as raw:
                raw.connect(place if kind == "unix" else (kind, int(place)))
                raw.sendall(noise)
                assert await gcs.kv.put("fun", b"a", b"1")

    run(test)


def test_server_without_token_on_a_private_socket_answers(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)

    async def test() -> None:
        target = f"unix:{tmp_path}/gcs.sock"
        async with serving(target, kv_part(Kv()), token=None), gcs_at(target, None) as gcs:
            assert await gcs.kv.put("fun", b"a", b"1")

    run(test)


# ---- binding ----


@pytest.mark.parametrize(
    "place", ["0.0.0.0:0", "[::]:0", "0:0", "[::ffff:0.0.0.0]:0", "*:0", ":0", "10.1.2.3:0"]
)
def test_server_without_token_beyond_loopback_refuses_to_start(place: str) -> None:
    async def test() -> None:
        with pytest.raises(BindError):
            await SecureServer(None).start(place)

    run(test)


def test_server_without_token_in_an_open_folder_refuses_to_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    async def test() -> None:
        with pytest.raises(BindError, match="0700"):
            await SecureServer(None).start(f"unix:{tmp_path}/gcs.sock")

    run(test)


def test_server_with_token_on_every_interface_starts() -> None:
    async def test() -> None:
        async with serving("0.0.0.0:0", kv_part(Kv())) as server:
            port = server.endpoint.rpartition(":")[2]
            async with gcs_at(f"127.0.0.1:{port}") as gcs:
                assert await gcs.kv.put("fun", b"a", b"1")

    run(test)


def test_server_port_in_use_raises_bind_error() -> None:
    async def test() -> None:
        async with serving("127.0.0.1:0") as server:
            with pytest.raises(BindError, match="taken"):
                await SecureServer(TOKEN).start(server.endpoint)

    run(test)


def test_server_missing_folder_raises_bind_error(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(BindError):
            await SecureServer(TOKEN).start(f"unix:{tmp_path}/missing/gcs.sock")

    run(test)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_server_unix_socket_is_private_and_goes_with_the_server(tmp_path: Path, umask: int) -> None:
    async def test() -> None:
        path = tmp_path / "gcs.sock"
        before = os.umask(umask)
        try:
            async with serving(f"unix:{path}"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(before)
        assert not path.exists()

    run(test)


def test_server_misuse_is_told(unix_endpoint: str) -> None:
    async def test() -> None:
        async with serving(unix_endpoint) as server:
            with pytest.raises(RuntimeError, match="before starting"):
                server.add(*kv_part(Kv()))
            with pytest.raises(RuntimeError, match="started already"):
                await server.start(unix_endpoint)

    run(test)


# ---- deadlines, retries, typed errors ----


def test_call_hanging_server_raises_timeout(unix_endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        kv.is_hanging = True
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            with pytest.raises(RpcTimeoutError) as caught:
                await gcs.kv.get("fun", b"a", timeout_s=0.1)
            assert isinstance(caught.value, TimeoutError)
            assert caught.value.method == "KvService.Get"
            assert caught.value.target == unix_endpoint

    run(test)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
def test_call_repeatable_is_retried_while_unavailable(
    unix_endpoint: str, code: grpc.StatusCode
) -> None:
    async def test() -> None:
        kv = Kv()
        kv.failures = [code] * 5
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            assert await gcs.kv.put("fun", b"a", b"1")
            assert kv.calls == 6

    run(test)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
    ],
)
def test_call_other_status_raises_rpc_error_at_once(
    unix_endpoint: str, code: grpc.StatusCode
) -> None:
    async def test() -> None:
        kv = Kv()
        kv.failures = [code]
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            with pytest.raises(RpcError) as caught:
                await gcs.kv.get("fun", b"a")
            assert (caught.value.code, caught.value.message) == (code.name, "told to fail")
            assert kv.calls == 1

    run(test)


def test_call_absent_service_raises_unimplemented(unix_endpoint: str) -> None:
    async def test() -> None:
        async with serving(unix_endpoint), gcs_at(unix_endpoint) as gcs:
            with pytest.raises(RpcError) as caught:
                await gcs.nodes.list()
            assert caught.value.code == "UNIMPLEMENTED"

    run(test)


def test_call_handler_bug_raises_unknown(
    unix_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        kv = Kv()
        kv.values = None  # type: ignore[assignment]
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            with pytest.raises(RpcError) as caught:
                await gcs.kv.get("fun", b"a")
            assert caught.value.code == "UNKNOWN"

    run(test)


def test_call_nobody_listens_raises_unavailable_after_its_deadline(unix_endpoint: str) -> None:
    async def test() -> None:
        async with gcs_at(unix_endpoint) as gcs:
            with pytest.raises(RpcUnavailableError, match=r"attempts in 0\.3 s"):
                await gcs.kv.get("fun", b"a", timeout_s=0.3)

    run(test)


def test_call_server_comes_up_late_is_answered(unix_endpoint: str) -> None:
    async def test() -> None:
        async with gcs_at(unix_endpoint) as gcs:
            call = asyncio.ensure_future(gcs.kv.put("fun", b"a", b"1"))
            # Which of the two depends on whether an attempt is under way when the time is up.
            with pytest.raises((RpcUnavailableError, RpcTimeoutError)):
                await gcs.kv.get("fun", b"a", timeout_s=0.05)
            async with serving(unix_endpoint, kv_part(Kv())):
                assert await call

    run(test)


def test_call_server_restarts_midway_is_answered_by_the_next_life(endpoint: str) -> None:
    async def test() -> None:
        first, second = Kv(), Kv()
        first.is_hanging = True
        server = SecureServer(TOKEN)
        server.add(*kv_part(first))
        bound = await server.start(endpoint)
        async with gcs_at(bound) as gcs:
            call = asyncio.ensure_future(gcs.kv.put("fun", b"a", b"1"))
            await until(lambda: first.calls == 1)
            await server.stop(0)
            async with serving(bound, kv_part(second)):
                assert await call
                assert second.values == {b"a": b"1"}

    run(test)


def test_call_server_dies_midway_without_return_raises_unavailable(endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        kv.is_hanging = True
        server = SecureServer(TOKEN)
        server.add(*kv_part(kv))
        async with gcs_at(await server.start(endpoint)) as gcs:
            call = asyncio.ensure_future(gcs.kv.put("fun", b"a", b"1", timeout_s=1.0))
            await until(lambda: kv.calls == 1)
            await server.stop(0)
            with pytest.raises(RpcUnavailableError):
                await call

    run(test)


@pytest.mark.parametrize(("no_restart", "calls"), [(True, 3), (False, 1)])
def test_kill_is_repeated_only_without_restart(
    unix_endpoint: str, no_restart: bool, calls: int
) -> None:
    async def test() -> None:
        actors = Echo(Kill=gcs_pb2.KillActorReply(found=True), **OTHER_ACTOR_REPLIES)
        actors.failures = [grpc.StatusCode.UNAVAILABLE] * 2
        part = (gcs_pb2_grpc.add_ActorServiceServicer_to_server, actors)
        async with serving(unix_endpoint, part), gcs_at(unix_endpoint) as gcs:
            if no_restart:
                assert await gcs.actors.kill(b"a")
            else:
                with pytest.raises(RpcUnavailableError):
                    await gcs.actors.kill(b"a", no_restart=False)
            assert len(actors.requests) == calls

    run(test)


def test_call_channel_closed_raises_unavailable_and_not_cancelled(unix_endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        kv.is_hanging = True
        async with serving(unix_endpoint, kv_part(kv)):
            channel = open_channel(unix_endpoint, TOKEN)
            gcs = GcsClient(channel)
            call = asyncio.ensure_future(gcs.kv.get("fun", b"a"))
            await until(lambda: kv.calls == 1)
            await channel.close()
            with pytest.raises(RpcUnavailableError, match="channel is closed"):
                await call
            with pytest.raises(RpcUnavailableError, match="channel is closed"):
                await gcs.kv.get("fun", b"a")
            with pytest.raises(RpcUnavailableError, match="channel is closed"):
                await anext(gcs.events.subscribe(["node"]))

    run(test)


def test_call_cancelled_task_stays_cancelled(unix_endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        kv.is_hanging = True
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            call = asyncio.ensure_future(gcs.kv.get("fun", b"a"))
            await until(lambda: kv.calls == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    run(test)


def test_kv_value_of_100_mb_goes_through_and_a_larger_one_than_fits_is_refused(
    unix_endpoint: str,
) -> None:
    class Oversized(bytes):
        def __len__(self) -> int:
            return KV_VALUE_BYTES_MAX + 1

    async def test() -> None:
        value = os.urandom(1_000_000) * 100
        async with serving(unix_endpoint, kv_part(Kv())), gcs_at(unix_endpoint) as gcs:
            assert await gcs.kv.put("fun", b"a", value)
            assert await gcs.kv.get("fun", b"a") == value
            with pytest.raises(RpcError, match="object store") as caught:
                await gcs.kv.put("fun", b"b", Oversized())
            assert caught.value.code == "INVALID_ARGUMENT"

    run(test)


@pytest.mark.parametrize(
    "error",
    [
        RpcError("NOT_FOUND", "no such thing", "KvService.Get", "unix:/x"),
        RpcTimeoutError("DEADLINE_EXCEEDED", "late"),
        RpcUnavailableError("UNAVAILABLE", "away", "KvService.Get"),
        RpcAuthenticationError("UNAUTHENTICATED", "who?", "KvService.Get", "unix:/x"),
        BindError("unix:/x", "taken"),
    ],
)
def test_rpc_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("attempt", [1, 2, 5, 10_000])
def test_retry_pause_grows_within_its_bounds(attempt: int) -> None:
    policy = RetryPolicy(first_s=0.1, max_s=2.0)
    full_s = min(0.1 * 2.0 ** min(attempt - 1, 30), 2.0)
    pauses = [policy.pause_s(attempt) for _ in range(100)]
    assert all(full_s / 2 <= pause <= full_s for pause in pauses)
    assert len(set(pauses)) > 1


# ---- event stream ----


def events_part(events: Events) -> tuple[Any, Any]:
    return gcs_pb2_grpc.add_EventServiceServicer_to_server, events


def test_subscribe_gives_events_and_ends_with_the_reader(endpoint: str) -> None:
    async def test() -> None:
        events = Events()
        async with serving(endpoint, events_part(events)) as server, gcs_at(server.endpoint) as gcs:
            async with contextlib.aclosing(gcs.events.subscribe(["node", "job"])) as stream:
                first = await anext(stream)
                assert first.snapshot_end
                assert first.sequence == 2
                node = gcs_pb2.NodeInfo(node_id=b"n")
                events.queue.put_nowait(gcs_pb2.Event(sequence=3, node=node))
                assert (await anext(stream)).node.node_id == b"n"
                assert events.open == 1
            await until(lambda: events.open == 0)

    run(test)


@pytest.mark.parametrize(
    ("end", "kind", "code"),
    [
        (None, RpcUnavailableError, "UNAVAILABLE"),
        (grpc.StatusCode.UNAVAILABLE, RpcUnavailableError, "UNAVAILABLE"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, RpcError, "RESOURCE_EXHAUSTED"),
    ],
)
def test_subscribe_broken_stream_raises_typed_error(
    unix_endpoint: str, end: grpc.StatusCode | None, kind: type[RpcError], code: str
) -> None:
    async def test() -> None:
        events = Events()
        events.queue.put_nowait(end)
        async with serving(unix_endpoint, events_part(events)), gcs_at(unix_endpoint) as gcs:
            with pytest.raises(kind) as caught:
                async for _ in gcs.events.subscribe(["node"]):
                    pass
            assert caught.value.code == code

    run(test)


def test_subscribe_server_dies_raises_unavailable(endpoint: str) -> None:
    async def test() -> None:
        server = SecureServer(TOKEN)
        server.add(*events_part(Events()))
        async with gcs_at(await server.start(endpoint)) as gcs:
            stream = gcs.events.subscribe(["node"])
            await anext(stream)
            await server.stop(0)
            with pytest.raises(RpcUnavailableError):
                await anext(stream)

    run(test)


def test_subscribe_wrong_token_raises_authentication_error(unix_endpoint: str) -> None:
    async def test() -> None:
        events = Events()
        async with (
            serving(unix_endpoint, events_part(events)),
            gcs_at(unix_endpoint, OTHER_TOKEN) as gcs,
        ):
            with pytest.raises(RpcAuthenticationError):
                await anext(gcs.events.subscribe(["node"]))
            assert events.open == 0

    run(test)


# ---- trace context ----


def test_trace_context_reaches_the_handler_and_only_its_call(unix_endpoint: str) -> None:
    async def test() -> None:
        kv = Kv()
        trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
        async with serving(unix_endpoint, kv_part(kv)), gcs_at(unix_endpoint) as gcs:
            with use_trace(trace):
                await gcs.kv.get("fun", b"a")
            await gcs.kv.get("fun", b"a")
        assert kv.traces == [trace, None]

    run(test)


# ---- every other client method ----

OTHER_ACTOR_REPLIES: dict[str, Any] = {
    "Register": gcs_pb2.RegisterActorReply(created=True),
    "Get": gcs_pb2.GetActorReply(found=True, info=gcs_pb2.ActorInfo(pid=7)),
    "GetNamed": gcs_pb2.GetActorReply(found=False),
    "List": gcs_pb2.ListActorsReply(actors=[gcs_pb2.ActorInfo(pid=7)]),
    "Release": gcs_pb2.ReleaseActorReply(),
    "ReportStarted": gcs_pb2.ReportActorStartedReply(accepted=True),
    "ReportFailed": gcs_pb2.ReportActorFailedReply(),
}


def test_gcs_client_methods_send_their_arguments_and_return_plain_values(
    unix_endpoint: str,
) -> None:
    cause = common_pb2.DeathCause(pid=3)
    address = common_pb2.Address(node_id=b"n")
    nodes = Echo(
        Register=gcs_pb2.RegisterNodeReply(cluster_id="c"),
        Unregister=gcs_pb2.UnregisterNodeReply(),
        List=gcs_pb2.ListNodesReply(nodes=[gcs_pb2.NodeInfo(pid=5)]),
        Drain=gcs_pb2.DrainNodeReply(rejection="busy"),
        ReportResources=gcs_pb2.ReportResourcesReply(known=True),
        ListDemands=gcs_pb2.ListDemandsReply(groups_left_out=4),
    )
    drain = gcs_pb2.DrainInfo(message="spot")
    jobs = Echo(
        Add=gcs_pb2.AddJobReply(job_id=b"j"),
        Finish=gcs_pb2.FinishJobReply(),
        List=gcs_pb2.ListJobsReply(jobs=[gcs_pb2.JobInfo(driver_pid=6)]),
    )
    actors = Echo(Kill=gcs_pb2.KillActorReply(found=True), **OTHER_ACTOR_REPLIES)
    registered = gcs_pb2.RegisteredPlacementGroup(refusal="no")
    groups = Echo(
        Register=gcs_pb2.RegisterPlacementGroupsReply(groups=[registered]),
        Remove=gcs_pb2.RemovePlacementGroupsReply(),
        Get=gcs_pb2.GetPlacementGroupReply(found=False),
        List=gcs_pb2.ListPlacementGroupsReply(groups=[gcs_pb2.PlacementGroupInfo(attempts=3)]),
    )
    workers = Echo(
        ReportDeath=gcs_pb2.ReportWorkerDeathReply(),
        ListDead=gcs_pb2.ListWorkersReply(workers=[gcs_pb2.WorkerInfo(pid=8)]),
    )

    async def test() -> None:
        parts = (
            (gcs_pb2_grpc.add_NodeServiceServicer_to_server, nodes),
            (gcs_pb2_grpc.add_JobServiceServicer_to_server, jobs),
            (gcs_pb2_grpc.add_ActorServiceServicer_to_server, actors),
            (gcs_pb2_grpc.add_PlacementGroupServiceServicer_to_server, groups),
            (gcs_pb2_grpc.add_WorkerServiceServicer_to_server, workers),
        )
        async with serving(unix_endpoint, *parts), gcs_at(unix_endpoint) as gcs:
            node = gcs_pb2.NodeInfo(node_id=b"n")
            assert (await gcs.nodes.register(node)).cluster_id == "c"
            await gcs.nodes.unregister(b"n", cause)
            assert [row.pid for row in await gcs.nodes.list()] == [5]
            report = gcs_pb2.ReportResourcesRequest(node_id=b"n", version=2)
            assert (await gcs.nodes.drain(b"n", drain)).rejection == "busy"
            assert (await gcs.nodes.report_resources(report)).known
            assert (await gcs.nodes.list_demands()).groups_left_out == 4
            assert nodes.requests == [
                gcs_pb2.RegisterNodeRequest(node=node),
                gcs_pb2.UnregisterNodeRequest(node_id=b"n", cause=cause),
                gcs_pb2.ListNodesRequest(),
                gcs_pb2.DrainNodeRequest(node_id=b"n", drain=drain),
                report,
                gcs_pb2.ListDemandsRequest(),
            ]

            job = gcs_pb2.JobInfo(namespace="x")
            assert await gcs.jobs.add(job) == b"j"
            await gcs.jobs.finish(b"j", cause)
            assert [row.driver_pid for row in await gcs.jobs.list()] == [6]
            assert jobs.requests == [
                gcs_pb2.AddJobRequest(job=job),
                gcs_pb2.FinishJobRequest(job_id=b"j", cause=cause),
                gcs_pb2.ListJobsRequest(),
            ]

            spec = gcs_pb2.ActorSpec(actor_id=b"a")
            assert (await gcs.actors.register(spec, get_if_exists=True)).created
            found = await gcs.actors.get(b"a")
            assert found is not None
            assert found.pid == 7
            assert await gcs.actors.get_named("name", "space") is None
            assert [row.pid for row in await gcs.actors.list()] == [7]
            assert await gcs.actors.kill(b"a", cause=cause)
            await gcs.actors.release(b"a")
            assert await gcs.actors.report_started(b"a", 2, address, 9)
            await gcs.actors.report_failed(b"a", 2, cause, b"pickle")
            assert actors.requests == [
                gcs_pb2.RegisterActorRequest(spec=spec, get_if_exists=True),
                gcs_pb2.GetActorRequest(actor_id=b"a"),
                gcs_pb2.GetNamedActorRequest(name="name", namespace="space"),
                gcs_pb2.ListActorsRequest(),
                gcs_pb2.KillActorRequest(actor_id=b"a", no_restart=True, cause=cause),
                gcs_pb2.ReleaseActorRequest(actor_id=b"a"),
                gcs_pb2.ReportActorStartedRequest(
                    actor_id=b"a", incarnation=2, address=address, pid=9
                ),
                gcs_pb2.ReportActorFailedRequest(
                    actor_id=b"a", incarnation=2, cause=cause, creation_error=b"pickle"
                ),
            ]

            group = gcs_pb2.PlacementGroupSpec(group_id=b"g")
            assert list(await gcs.groups.register([group])) == [registered]
            await gcs.groups.remove([b"g", b"h"], "why")
            assert await gcs.groups.get(b"g") is None
            assert await gcs.groups.get_named("name", "space") is None
            assert [row.attempts for row in await gcs.groups.list()] == [3]
            assert groups.requests == [
                gcs_pb2.RegisterPlacementGroupsRequest(specs=[group]),
                gcs_pb2.RemovePlacementGroupsRequest(group_ids=[b"g", b"h"], reason="why"),
                gcs_pb2.GetPlacementGroupRequest(group_id=b"g"),
                gcs_pb2.GetPlacementGroupRequest(name="name", namespace="space"),
                gcs_pb2.ListPlacementGroupsRequest(),
            ]

            worker = gcs_pb2.WorkerInfo(worker_id=b"w")
            await gcs.workers.report_death(worker)
            assert [row.pid for row in await gcs.workers.list_dead()] == [8]
            assert workers.requests == [
                gcs_pb2.ReportWorkerDeathRequest(worker=worker),
                gcs_pb2.ListWorkersRequest(),
            ]

    run(test)


def test_raylet_client_methods_send_their_arguments_and_return_plain_values(
    unix_endpoint: str,
) -> None:
    cause = common_pb2.DeathCause(pid=3)
    raylet = Echo(
        StartActor=raylet_pb2.StartActorReply(accepted=True),
        KillActor=raylet_pb2.KillActorOnNodeReply(),
        Status=raylet_pb2.NodeStatusReply(workers_idle=4),
        Drain=raylet_pb2.DrainReply(accepted=True),
        MoveGcs=raylet_pb2.MoveGcsReply(accepted=True),
        Shutdown=raylet_pb2.ShutdownNodeReply(),
        PrepareBundles=raylet_pb2.PrepareBundlesReply(refusals=["", "full"]),
        CommitBundles=raylet_pb2.CommitBundlesReply(refusals=["gone"]),
        ReturnBundles=raylet_pb2.ReturnBundlesReply(),
        ListLogs=raylet_pb2.ListLogsReply(files=[raylet_pb2.LogFile(name="a.log", size=3)]),
        ReadLog=raylet_pb2.ReadLogReply(found=True, data=b"abc", size=3),
        Objects=raylet_pb2.NodeObjectsReply(nodes=[msgspec.msgpack.encode(NodeObjects(b"n"))]),
        Waits=raylet_pb2.NodeWaitsReply(node=msgspec.msgpack.encode(NodeWaits(b"n"))),
        Why=raylet_pb2.WhyReply(
            explanations=[msgspec.msgpack.encode(Explanation("task f", "task", "RUNNING"))]
        ),
        Borrow=raylet_pb2.LoanNews(),  # tested below: it is no call with one answer
        ForwardLogs=raylet_pb2.LogOrder(),  # as Borrow; tested with the raylet
    )

    async def test() -> None:
        part = (raylet_pb2_grpc.add_RayletServiceServicer_to_server, raylet)
        async with serving(unix_endpoint, part):
            channel = open_channel(unix_endpoint, TOKEN)
            client = RayletClient(channel, unix_endpoint, FAST_RETRY)
            spec = gcs_pb2.ActorSpec(actor_id=b"a")
            assert (await client.start_actor(spec, 2)).accepted
            await client.kill_actor(b"a", 2, cause)
            prepare, ref = raylet_pb2.PrepareBundles(attempt=4), gcs_pb2.BundleRef(attempt=5)
            assert await client.prepare_bundles([prepare, prepare]) == ["", "full"]
            assert await client.commit_bundles([ref]) == ["gone"]
            await client.return_bundles([ref])
            assert (await client.status()).workers_idle == 4
            objects = await client.objects(whole_cluster=True, rows_max=7, timeout_s=1.5)
            assert [node.node_id for node in objects] == [b"n"]
            assert (await client.waits("ab", timeout_s=1.5)).node_id == b"n"
            assert [str(one) for one in await client.why("cd", timeout_s=2.5)] == [
                "task f: RUNNING"
            ]
            assert (await client.drain(gcs_pb2.DrainInfo(message="spot"))).accepted
            assert await client.move_gcs("a:1", "c", 3)
            assert [file.name for file in await client.list_logs()] == ["a.log"]
            assert (await client.read_log("a.log", -3, 10)).data == b"abc"
            await client.shutdown(5.0, "told to")
            await channel.close()
        assert raylet.requests == [
            raylet_pb2.StartActorRequest(spec=spec, incarnation=2),
            raylet_pb2.KillActorOnNodeRequest(actor_id=b"a", incarnation=2, cause=cause),
            raylet_pb2.PrepareBundlesRequest(orders=[prepare, prepare]),
            raylet_pb2.CommitBundlesRequest(orders=[ref]),
            raylet_pb2.ReturnBundlesRequest(orders=[ref]),
            raylet_pb2.NodeStatusRequest(),
            raylet_pb2.NodeObjectsRequest(whole_cluster=True, rows_max=7, timeout_s=1.5),
            raylet_pb2.NodeWaitsRequest(prefix="ab", timeout_s=1.5),
            raylet_pb2.WhyRequest(prefix="cd", timeout_s=2.5),
            raylet_pb2.DrainRequest(drain=gcs_pb2.DrainInfo(message="spot")),
            raylet_pb2.MoveGcsRequest(endpoint="a:1", cluster_id="c", gcs_life=3),
            raylet_pb2.ListLogsRequest(),
            raylet_pb2.ReadLogRequest(file="a.log", offset=-3, bytes_max=10),
            raylet_pb2.ShutdownNodeRequest(grace_s=5.0, reason="told to"),
        ]

    run(test)


class Lender(raylet_pb2_grpc.RayletServiceServicer):
    """Welcomes a borrower and answers each of its asks."""

    def __init__(self) -> None:
        self.orders: list[Any] = []
        self.open = 0

    async def Borrow(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[raylet_pb2.LoanNews]:
        self.open += 1
        try:
            yield raylet_pb2.LoanNews()
            async for batch in request_iterator:
                self.orders += batch.orders
                for order in batch.orders:
                    ended = raylet_pb2.LoanEnded(ask_id=order.ask.ask_id, kind="busy")
                    yield raylet_pb2.LoanNews(items=[raylet_pb2.LoanNewsItem(ended=ended)])
        finally:
            self.open -= 1


async def two_asks(rest: asyncio.Event) -> AsyncIterator[raylet_pb2.LoanOrders]:
    for ask_id in (1, 2):
        ask = raylet_pb2.LoanAsk(ask_id=ask_id)
        yield raylet_pb2.LoanOrders(orders=[raylet_pb2.LoanOrder(ask=ask)])
    await rest.wait()


async def collect(news: AsyncIterator[Any]) -> list[Any]:
    return [batch async for batch in news]


def test_borrow_line_carries_orders_there_and_news_back(endpoint: str) -> None:
    async def test() -> None:
        lender = Lender()
        part = (raylet_pb2_grpc.add_RayletServiceServicer_to_server, lender)
        async with serving(endpoint, part) as server:
            channel = open_channel(server.endpoint, TOKEN)
            orders = two_asks(asyncio.Event())
            async with contextlib.aclosing(RayletClient(channel).borrow(orders)) as news:
                assert (await anext(news)).items == []
                answers = [(await anext(news)).items[0].ended.ask_id for _ in range(2)]
                assert answers == [1, 2]
                assert lender.open == 1
            await until(lambda: lender.open == 0)
            await channel.close()

    run(test)


def test_borrow_line_wrong_token_is_refused_before_any_order(unix_endpoint: str) -> None:
    async def test() -> None:
        lender = Lender()
        part = (raylet_pb2_grpc.add_RayletServiceServicer_to_server, lender)
        async with serving(unix_endpoint, part):
            channel = open_channel(unix_endpoint, OTHER_TOKEN)

            async def refusal() -> RpcError:
                with pytest.raises(RpcError) as refused:
                    await anext(RayletClient(channel).borrow(two_asks(asyncio.Event())))
                return refused.value

            # A refusal that comes while the first order is being sent looks like a broken line.
            while isinstance(error := await refusal(), RpcUnavailableError):
                pass
            assert isinstance(error, RpcAuthenticationError)
            await channel.close()
        assert lender.orders == []
        assert lender.open == 0

    run(test)


def test_borrow_line_of_a_dead_lender_raises_unavailable(unix_endpoint: str) -> None:
    async def test() -> None:
        server = SecureServer(TOKEN)
        server.add(raylet_pb2_grpc.add_RayletServiceServicer_to_server, Lender())
        channel = open_channel(await server.start(unix_endpoint), TOKEN)
        news = RayletClient(channel).borrow(two_asks(asyncio.Event()))
        await anext(news)
        await server.stop(0)
        with pytest.raises(RpcUnavailableError):
            await collect(news)
        await channel.close()

    run(test)


# ---- a channel whose other end moves ----


def test_calls_go_to_where_the_channel_points_also_when_they_are_repeated(tmp_path: Path) -> None:
    first, second = Kv(), Kv()
    here, there = f"unix:{tmp_path}/here.sock", f"unix:{tmp_path}/there.sock"

    async def test() -> None:
        channel = MovableChannel(here, TOKEN)
        client = GcsClient(channel, here, FAST_RETRY)
        async with serving(here, kv_part(first)):
            await client.kv.get("fun", b"a")
        waiting = asyncio.create_task(client.kv.get("fun", b"b"))  # nobody listens there any more
        async with serving(there, kv_part(second)):
            await asyncio.sleep(0)
            channel.move(there)
            await waiting
            await client.kv.get("fun", b"c")
        await channel.close()
        assert channel.target == there

    run(test)
    assert (len(first.traces), len(second.traces)) == (1, 2)


def test_patience_stands_for_the_default_deadline_and_for_no_other(
    unix_endpoint: str,
) -> None:
    async def test() -> None:
        channel = open_channel(unix_endpoint, TOKEN)
        client = GcsClient(channel, unix_endpoint, FAST_RETRY, patience_s=99.0)
        with pytest.raises(RpcUnavailableError, match=r"in 0\.1 s"):
            await client.kv.get("fun", b"a", timeout_s=0.1)
        method = METHODS["JobService.List"]
        for patience_s, expected_s in ((10.0, 10.0), (1.0, 1.0), (99.0, 99.0)):
            caller = Caller(channel, patience_s=patience_s)
            assert caller.deadline_s(method, None) == expected_s
            assert caller.deadline_s(method, 0.5) == 0.5
            assert caller.deadline_s(METHODS["KvService.Get"], None) == 50.0  # not the default
        await channel.close()

    run(test)
