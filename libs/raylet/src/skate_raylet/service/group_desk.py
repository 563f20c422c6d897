"""Placement groups as this node's processes and its machine see them: news, questions, orders.

The GCS publishes what becomes of each group. The machine is told where bundles are; a process that
subscribed is told of its groups. Registrations and removals are gathered while a call to the GCS is
under way, so that a program that makes a thousand groups costs some dozen calls.

What comes before: the GCS's events, and calls of local processes. What comes after: the node's
machine, which places what is to run inside groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from skate_raylet.machine import events as on
from skate_raylet.service.convert import group_spec_to_proto, group_view
from skate_raylet.service.gateway import CallRefusedError, Gateway
from skate_raylet.service.local_process import LocalProcess
from skate_rpc import node_protocol as node
from skate_rpc.errors import RpcError
from skate_rpc.gcs_client import GcsClient
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2

_log = logging.getLogger(__name__)

BATCH_MAX: Final = 500
ASK_AGAIN_S: Final = 1.0
GATHER_S: Final = 0.001  # news of groups for one process that follow each other faster go together
USABLE: Final = frozenset({"CREATED", "RESCHEDULING"})

T = TypeVar("T")
R = TypeVar("R")


class GroupDesk:
    """Runs on the event loop's thread alone."""

    def __init__(
        self,
        client: GcsClient,
        node_id: bytes,
        tell: Callable[[on.NodeEvent], None],
        known_groups: Callable[[], list[bytes]],
    ) -> None:
        """``known_groups``: those that the machine holds for alive."""
        self._client = client
        self._node_id = node_id
        self._tell = tell
        self._known_groups = known_groups
        self._watchers: dict[bytes, dict[LocalProcess, None]] = {}
        self._mentioned: dict[bytes, None] = {}  # since the last snapshot was complete
        self._news = 0  # so many were heard
        self._last_news: dict[bytes, int] = {}  # the number of the latest, of groups that live
        self._flushing: dict[LocalProcess, None] = {}  # that have just been sent news
        self._tasks: set[asyncio.Task[Any]] = set()
        self._registering = _Gathered(self._register, self._spawn)
        self._removing = _Gathered(self._remove, self._spawn)

    def serve_by(self, gateway: Gateway) -> None:
        """Answer the control calls about groups."""
        gateway.serve(
            "create_placement_group", node.PlacementGroupCreation, self._create, is_gathered=True
        )
        gateway.serve(
            "remove_placement_group", node.PlacementGroupKey, self._remove_one, is_gathered=True
        )
        gateway.serve("get_placement_group", node.PlacementGroupName, self._get)
        gateway.serve("list_placement_groups", node.Empty, self._list)

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- news of the GCS ----

    def take_news(self, info: gcs_pb2.PlacementGroupInfo) -> None:
        """A row of the table, of a snapshot or because it changed."""
        view = group_view(info)
        self._mentioned[view.group_id] = None
        self._news += 1
        self._last_news[view.group_id] = self._news
        self._learn(view)

    def snapshot_taken(self) -> None:
        """All rows were told: a group that was not mentioned since the last time is gone."""
        mentioned, self._mentioned = self._mentioned, {}
        for group_id in self._known_groups():
            if group_id not in mentioned:
                self._learn(_gone(group_id))

    def _learn(self, view: node.PlacementGroupView) -> None:
        group_id = view.group_id
        self._tell(_event_of(view))
        for process in self._watchers.get(group_id, ()):
            self._send(process, view)
        if view.state == "REMOVED":
            self._watchers.pop(group_id, None)
            self._last_news.pop(group_id, None)

    def _send(self, process: LocalProcess, view: node.PlacementGroupView) -> None:
        """At once, but what follows shortly after goes together: news come one by one."""
        process.queue(node.PlacementGroupUpdate(view))
        if process in self._flushing:
            return
        process.flush()
        self._flushing[process] = None
        asyncio.get_running_loop().call_later(GATHER_S, self._flush, process)

    def _flush(self, process: LocalProcess) -> None:
        del self._flushing[process]
        process.flush()

    # ---- questions ----

    def ask(self, group_id: bytes) -> None:
        """The machine wants to know of a group."""
        self._spawn(self._ask(group_id))

    async def _ask(self, group_id: bytes) -> None:
        try:
            info = await self._client.groups.get(group_id)
        except RpcError as error:
            _log.warning("event=get_placement_group_failed error=%s", error)
            await asyncio.sleep(ASK_AGAIN_S)
            self._tell(on.GroupUnanswered(group_id))
            return
        # It may be quicker than a snapshot that was taken before there was this group.
        self._mentioned[group_id] = None
        view = _gone(group_id) if info is None else group_view(info)
        self._tell(_event_of(view, is_answer=True))

    def subscribe(self, process: LocalProcess, message: node.SubscribePlacementGroup) -> None:
        """Tell the process the present state, and every change."""
        self._watch(process, message.group_id)
        self._spawn(self._tell_present(process, message.group_id))

    async def _tell_present(self, process: LocalProcess, group_id: bytes) -> None:
        while process in self._watchers.get(group_id, ()):
            asked_at = self._news
            try:
                info = await self._client.groups.get(group_id)
            except RpcError as error:
                _log.warning("event=get_placement_group_failed error=%s", error)
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            if self._last_news.get(group_id, 0) > asked_at:
                return  # it was told these news, and the answer may be older
            view = _gone(group_id) if info is None else group_view(info)
            self._send(process, view)
            return

    def forget(self, process: LocalProcess) -> None:
        """The process is gone. O(groups watched)."""
        for group_id in [one for one, watchers in self._watchers.items() if process in watchers]:
            watchers = self._watchers[group_id]
            del watchers[process]
            if not watchers:
                del self._watchers[group_id]

    def _watch(self, process: LocalProcess, group_id: bytes) -> None:
        self._watchers.setdefault(group_id, {})[process] = None

    # ---- calls of processes ----

    async def _create(self, process: LocalProcess, body: node.PlacementGroupCreation) -> None:
        owner = common_pb2.Address(
            node_id=self._node_id, worker_id=process.worker_id, endpoint=process.endpoint
        )
        # Before it is registered: news of it may be quicker than the answer.
        self._watch(process, body.group_id)
        spec = group_spec_to_proto(body, process.job_id, owner)
        registered = await self._registering.add(spec)
        if registered.refusal:
            self._watchers.pop(body.group_id, None)
            kind = "already_exists" if registered.is_name_taken else "invalid"
            raise CallRefusedError(kind, registered.refusal)
        if registered.info.state == gcs_pb2.PLACEMENT_GROUP_STATE_REMOVED:
            self._learn(group_view(registered.info))

    async def _remove_one(self, process: LocalProcess, body: node.PlacementGroupKey) -> None:
        await self._removing.add(body.group_id)

    async def _get(
        self, process: LocalProcess, body: node.PlacementGroupName
    ) -> node.PlacementGroupView | None:
        if body.group_id:
            info = await self._client.groups.get(body.group_id)
        else:
            info = await self._client.groups.get_named(body.name, body.namespace)
        return None if info is None else group_view(info)

    async def _list(self, process: LocalProcess, body: node.Empty) -> list[node.PlacementGroupView]:
        return [group_view(info) for info in await self._client.groups.list()]

    async def _register(
        self, specs: Sequence[gcs_pb2.PlacementGroupSpec]
    ) -> Sequence[gcs_pb2.RegisteredPlacementGroup]:
        return await self._client.groups.register(specs)

    async def _remove(self, group_ids: Sequence[bytes]) -> Sequence[None]:
        await self._client.groups.remove(group_ids, "remove_placement_group() was called.")
        return [None] * len(group_ids)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Gathered(Generic[T, R]):
    """Items that share calls: one call is under way, what comes meanwhile goes with the next."""

    def __init__(
        self,
        call: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        spawn: Callable[[Awaitable[None]], None],
    ) -> None:
        self._call = call
        self._spawn = spawn
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._is_working = False

    async def add(self, item: T) -> R:
        """Have an item handled; its own result, or the error of the call that it went with."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if not self._is_working:
            self._is_working = True
            self._spawn(self._work_off())
        return await done

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), BATCH_MAX)
                batch = [self._waiting.popleft() for _ in range(count)]
                try:
                    results = await self._call([item for item, _ in batch])
                except Exception as error:  # noqa: BLE001  the batch's boundary: each caller hears of it
                    for _, done in batch:
                        if not done.done():
                            done.set_exception(error)
                    continue
                for (_, done), result in zip(batch, results, strict=True):
                    if not done.done():
                        done.set_result(result)
        finally:
            self._is_working = False


def _event_of(
    view: node.PlacementGroupView, *, is_answer: bool = False
) -> on.GroupSeen | on.GroupGone:
    """What the machine is to know of a group."""
    group_id = view.group_id
    if view.state == "REMOVED":
        message = f"The placement group {group_id.hex()} was removed: {view.removal_reason}"
        return on.GroupGone(group_id, message, is_answer)
    node_ids = tuple(view.node_ids) if view.state in USABLE else ()
    return on.GroupSeen(group_id, node_ids, is_answer)


def _gone(group_id: bytes) -> node.PlacementGroupView:
    """A group that the GCS does not know (any more)."""
    return node.PlacementGroupView(
        group_id, "REMOVED", removal_reason="the cluster does not know it (any more)."
    )
