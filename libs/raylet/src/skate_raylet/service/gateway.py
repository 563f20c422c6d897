"""Passes the calls of local processes on to the GCS: they speak the stream, it speaks gRPC.

One call is one task; a process may have ``CALLS_MAX`` under way, so that none can fill the node's
line to the GCS alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from skate_raylet.service.convert import (
    actor_view,
    drain_to_proto,
    node_view,
    resources_to_proto,
    strategy_to_proto,
)
from skate_raylet.service.function_cache import NAMESPACE, FunctionCache
from skate_raylet.service.local_process import LocalProcess
from skate_rpc.errors import RpcError, RpcTimeoutError, RpcUnavailableError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2
from skate_rpc.node_protocol import (
    ActorKill,
    ActorName,
    ActorRegistration,
    ActorRelease,
    ActorView,
    ControlCall,
    ControlReply,
    DrainAnswer,
    DrainOrder,
    Empty,
    KvGet,
    KvPut,
    NodeView,
    RegisteredActor,
)

_log = logging.getLogger(__name__)

CALLS_MAX = 4096

_KINDS = {
    "NOT_FOUND": "not_found",
    "ALREADY_EXISTS": "already_exists",
    "INVALID_ARGUMENT": "invalid",
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "unavailable",
}


class CallRefusedError(Exception):
    """A call fails with this kind and sentence. Stays inside the gateway."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Gateway:
    """Answers every call exactly once, unless the caller is gone."""

    def __init__(
        self,
        client: GcsClient,
        node_id: bytes,
        cache: FunctionCache,
        local_available: Callable[[], dict[str, int]],
    ) -> None:
        """``local_available``: what this node has free now; what the GCS knows is a report old."""
        self._client = client
        self._node_id = node_id
        self._cache = cache
        self._local_available = local_available
        self._encode = msgspec.msgpack.Encoder().encode
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetching: dict[bytes, asyncio.Task[bytes | None]] = {}
        self._gathered: dict[str, None] = {}
        self._methods: dict[
            str, tuple[type[Any], Callable[[LocalProcess, Any], Awaitable[Any]]]
        ] = {
            "kv_put": (KvPut, self._kv_put),
            "kv_get": (KvGet, self._kv_get),
            "kv_delete": (KvGet, self._kv_delete),
            "kv_keys": (KvGet, self._kv_keys),
            "register_actor": (ActorRegistration, self._register_actor),
            "get_named_actor": (ActorName, self._get_named_actor),
            "get_actor": (ActorRelease, self._get_actor),
            "kill_actor": (ActorKill, self._kill_actor),
            "release_actor": (ActorRelease, self._release_actor),
            "list_nodes": (Empty, self._list_nodes),
            "drain_node": (DrainOrder, self._drain_node),
            "list_actors": (Empty, self._list_actors),
        }

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are served."""
        return tuple(self._methods)

    def serve(
        self,
        name: str,
        body_type: type[Any],
        method: Callable[[LocalProcess, Any], Awaitable[Any]],
        *,
        is_gathered: bool = False,
    ) -> None:
        """Answer a call by another part of the node. ``is_gathered``: answers come many at once."""
        self._methods[name] = body_type, method
        if is_gathered:
            self._gathered[name] = None

    def call(self, process: LocalProcess, call: ControlCall) -> None:
        """Begin a call; the reply goes to the process."""
        if process.calls_under_way >= CALLS_MAX:
            message = f"{CALLS_MAX} calls of this process are under way already."
            process.send(ControlReply(call.call_id, error=message, error_kind="unavailable"))
            return
        process.calls_under_way += 1
        task = asyncio.create_task(self._answer(process, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what is under way."""
        tasks = [*self._tasks, *self._fetching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, process: LocalProcess, call: ControlCall) -> None:
        try:
            reply = ControlReply(call.call_id, self._encode(await self._run(process, call)))
        except CallRefusedError as refusal:
            reply = ControlReply(call.call_id, error=str(refusal), error_kind=refusal.kind)
        except (RpcTimeoutError, RpcUnavailableError) as error:
            reply = ControlReply(call.call_id, error=str(error), error_kind="unavailable")
        except RpcError as error:
            kind = _KINDS.get(error.code, "internal")
            reply = ControlReply(call.call_id, error=str(error), error_kind=kind)
        except Exception as error:  # noqa: BLE001  the call's boundary: its caller must hear
            _log.exception("event=control_call_failed method=%s", call.method)
            reply = ControlReply(call.call_id, error=repr(error), error_kind="internal")
        finally:
            process.calls_under_way -= 1
        if call.method in self._gathered:
            process.post(reply)
        else:
            process.send(reply)

    async def _run(self, process: LocalProcess, call: ControlCall) -> Any:
        entry = self._methods.get(call.method)
        if entry is None:
            raise CallRefusedError("invalid", f"There is no control call {call.method!r}.")
        body_type, method = entry
        try:
            body = msgspec.msgpack.decode(call.body, type=body_type)
        except msgspec.MsgspecError as error:
            raise CallRefusedError(
                "invalid", f"The body of {call.method} is malformed: {error}"
            ) from None
        return await method(process, body)

    # ---- key-value store ----

    async def _kv_put(self, process: LocalProcess, body: KvPut) -> bool:
        is_added = await self._client.kv.put(body.namespace, body.key, body.value, body.overwrite)
        if body.namespace == NAMESPACE and is_added:
            self._cache.put(body.key, body.value)
        return is_added

    async def _kv_get(self, process: LocalProcess, body: KvGet) -> bytes | None:
        if body.namespace != NAMESPACE:
            return await self._client.kv.get(body.namespace, body.key)
        value = self._cache.get(body.key)
        if value is not None:
            return value
        fetch = self._fetching.get(body.key)
        if fetch is None:
            fetch = self._fetching[body.key] = asyncio.create_task(self._fetch(body.key))
        # Shielded: the end of one caller must not fail the others that wait for the same function.
        return await asyncio.shield(fetch)

    async def _fetch(self, key: bytes) -> bytes | None:
        try:
            value = await self._client.kv.get(NAMESPACE, key)
        finally:
            del self._fetching[key]
        if value is not None:
            self._cache.put(key, value)
        return value

    async def _kv_delete(self, process: LocalProcess, body: KvGet) -> int:
        if body.namespace == NAMESPACE:
            self._cache.discard(body.key)
        return await self._client.kv.delete(body.namespace, body.key, body.is_prefix)

    async def _kv_keys(self, process: LocalProcess, body: KvGet) -> list[bytes]:
        return list(await self._client.kv.keys(body.namespace, body.key))

    # ---- actors ----

    async def _register_actor(
        self, process: LocalProcess, body: ActorRegistration
    ) -> RegisteredActor:
        spec = gcs_pb2.ActorSpec(
            actor_id=body.actor_id,
            job_id=process.job_id,
            name=body.name,
            namespace=body.namespace,
            detached=body.is_detached,
            class_name=body.class_name,
            max_restarts=body.max_restarts,
            placement_resources=resources_to_proto(body.placement_resources),
            running_resources=resources_to_proto(body.running_resources),
            env_vars=body.env_vars,
            owner=common_pb2.Address(
                node_id=self._node_id, worker_id=process.worker_id, endpoint=process.endpoint
            ),
            creation_task=body.creation_task,
            trace_parent=body.trace_parent,
            handle_state=body.handle_state,
            strategy=strategy_to_proto(body),
        )
        reply = await self._client.actors.register(spec, body.get_if_exists)
        view = actor_view(reply.info)
        if not reply.created and not body.get_if_exists:
            message = f"The actor name {body.name!r} is taken in the namespace {body.namespace!r}."
            raise CallRefusedError("already_exists", message)
        return RegisteredActor(view, reply.created)

    async def _get_named_actor(self, process: LocalProcess, body: ActorName) -> ActorView | None:
        info = await self._client.actors.get_named(body.name, body.namespace)
        return actor_view(info) if info is not None else None

    async def _get_actor(self, process: LocalProcess, body: ActorRelease) -> ActorView | None:
        info = await self._client.actors.get(body.actor_id)
        return actor_view(info) if info is not None else None

    async def _kill_actor(self, process: LocalProcess, body: ActorKill) -> bool:
        cause = common_pb2.DeathCause(
            kind=common_pb2.DeathCause.KIND_KILLED_BY_USER,
            message=f"skate.kill() was called by process {process.pid}.",
        )
        return await self._client.actors.kill(body.actor_id, body.no_restart, cause)

    async def _release_actor(self, process: LocalProcess, body: ActorRelease) -> None:
        await self._client.actors.release(body.actor_id)

    # ---- lists ----

    async def _list_nodes(self, process: LocalProcess, body: Empty) -> list[NodeView]:
        views = [node_view(info) for info in await self._client.nodes.list()]
        for view in views:
            if view.node_id == self._node_id and view.is_alive:
                view.available = self._local_available()
        return views

    async def _drain_node(self, process: LocalProcess, body: DrainOrder) -> DrainAnswer:
        reply = await self._client.nodes.drain(body.node_id, drain_to_proto(body))
        return DrainAnswer(reply.accepted, reply.rejection)

    async def _list_actors(self, process: LocalProcess, body: Empty) -> list[ActorView]:
        return [actor_view(info) for info in await self._client.actors.list()]
