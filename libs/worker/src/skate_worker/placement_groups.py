"""The placement groups that this process made or waits for.

A group is made without waiting for the cluster, unless it has a name: the registration goes its way
while the program makes the next. What needs it to be known (a task inside it, a handle that leaves
this process, its removal) waits for the answer. That a group is created, or removed, is told by the
raylet; nothing runs for ``ready()``, which is a value that this process owns.

Before it: ``node_client``. After it: ``core``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from skate_rpc import node_protocol as node
from skate_worker.errors import SkateSystemError, TaskPlacementGroupRemovedError
from skate_worker.machine.references import FAILED, INLINE, Entry
from skate_worker.node_client import ControlCallError
from skate_worker.object_ref import ObjectRef
from skate_worker.ownership import wake
from skate_worker.serialization import serialize

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

RETRY_S: Final = 0.5
REGISTER_MAX_S: Final = 60.0  # SURFACE 3.2: requests to the GCS


class _Group:
    """What is known of one group. Changed with the book's lock."""

    __slots__ = ("error", "is_followed", "registered", "state", "waiting", "why_removed")

    def __init__(self) -> None:
        self.registered = threading.Event()  # the cluster knows it, or refused it
        self.error: Exception | None = None
        self.is_followed = False  # the raylet tells of it
        self.state = "PENDING"
        self.why_removed = ""
        self.waiting: list[tuple[Entry, bytes]] = []  # values of ready() that are to come


class PlacementGroups:
    """The book of one process. Thread-safe."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._groups: dict[bytes, _Group] = {}

    # ---- making and removing ----

    def create(self, creation: node.PlacementGroupCreation) -> None:
        """Make a group; one with a name is known to the cluster when this returns.

        Raises:
            ValueError: the name is taken.
        """
        group = self._group(creation.group_id)
        group.is_followed = True  # who makes a group is told of it
        if creation.name:
            try:
                self._core.raylet.call("create_placement_group", creation, None)
            except ControlCallError as error:
                self._registered(creation.group_id, ValueError(str(error)))
                if error.kind in ("already_exists", "invalid"):
                    raise ValueError(
                        f"{error} Take another name, or get_placement_group() the existing one."
                    ) from None
                raise
            self._registered(creation.group_id, None)
        else:
            self._register(creation, REGISTER_MAX_S)

    def remove(self, group_id: bytes, *, waits: bool) -> None:
        """Remove a group; nothing happens when it is gone. ``waits``: until the cluster knows."""
        self.await_registered(group_id)
        self._learn(group_id, "REMOVED", "remove_placement_group() was called.")
        if waits:
            self._core.raylet.call("remove_placement_group", node.PlacementGroupKey(group_id), None)
        else:
            self._remove(group_id, REGISTER_MAX_S)

    def await_registered(self, group_id: bytes) -> None:
        """Wait until the cluster knows a group that this process made.

        Raises:
            SkateSystemError: it could not be registered.
        """
        group = self._groups.get(group_id)
        if group is None or not group.is_followed:
            return  # another process made it, and has waited before it gave it away
        if not group.registered.is_set() and not group.registered.wait(REGISTER_MAX_S):
            raise SkateSystemError("The placement group could not be registered in time.")
        if group.error is not None and group.state != "REMOVED":
            raise group.error

    # ---- waiting ----

    def ready(self, group_id: bytes, handle: Any) -> ObjectRef[Any]:
        """A reference to ``handle`` that has its value once the group is created.

        It fails with ``TaskPlacementGroupRemovedError`` when the group is removed.
        """
        data = serialize(handle).to_bytes()
        ownership = self._core.ownership
        with ownership.lock:
            entry = ownership.table.own(self._core.new_object_id())
        ref: ObjectRef[Any] = ObjectRef(self._core, entry)
        group = self._group(group_id)
        with self._lock:
            is_new = not group.is_followed
            group.is_followed = True
            group.waiting.append((entry, data))
        if is_new:
            group.registered.set()
            self._core.raylet.post(node.SubscribePlacementGroup(group_id))
        self._settle(group_id, group)
        return ref

    def on_update(self, message: node.PlacementGroupUpdate) -> None:
        """The raylet tells of a group. On the loop's thread."""
        view = message.group
        self._learn(view.group_id, view.state, view.removal_reason)

    # ---- questions ----

    def awaited_by(self, entry: Entry) -> bytes:
        """The group whose creation this value of ``ready()`` waits for; empty: none. O(groups)."""
        with self._lock:
            for group_id, group in self._groups.items():
                if any(waiting is entry for waiting, _ in group.waiting):
                    return group_id
        return b""

    def view(self, group_id: bytes) -> node.PlacementGroupView | None:
        """What the cluster knows of a group; None: nothing (any more)."""
        self.await_registered(group_id)
        return self._get(node.PlacementGroupName(group_id=group_id))

    def named(self, name: str) -> node.PlacementGroupView | None:
        """The group of this name in this namespace."""
        return self._get(node.PlacementGroupName(name, self._core.namespace))

    def views(self) -> list[node.PlacementGroupView]:
        """All groups that the cluster remembers, removed ones too."""
        return self._core.raylet.call(
            "list_placement_groups", node.Empty(), list[node.PlacementGroupView]
        )

    # ---- how it is done ----

    def _get(self, body: node.PlacementGroupName) -> node.PlacementGroupView | None:
        return self._core.raylet.call("get_placement_group", body, node.PlacementGroupView | None)

    def _group(self, group_id: bytes) -> _Group:
        with self._lock:
            return self._groups.setdefault(group_id, _Group())

    def _register(self, creation: node.PlacementGroupCreation, left_s: float) -> None:
        def answered(reply: node.ControlReply) -> None:
            if reply.error_kind == "unavailable" and left_s > 0:
                self._core.call_later(RETRY_S, self._register, creation, left_s - RETRY_S)
            elif reply.error:
                self._registered(creation.group_id, SkateSystemError(reply.error))
            else:
                self._registered(creation.group_id, None)

        self._core.raylet.call_soon("create_placement_group", creation, answered)

    def _registered(self, group_id: bytes, error: Exception | None) -> None:
        group = self._group(group_id)
        group.error = error
        group.registered.set()
        if error is not None:
            self._settle(group_id, group)

    def _remove(self, group_id: bytes, left_s: float) -> None:
        def answered(reply: node.ControlReply) -> None:
            if reply.error_kind == "unavailable" and left_s > 0:
                self._core.call_later(RETRY_S, self._remove, group_id, left_s - RETRY_S)

        key = node.PlacementGroupKey(group_id)
        self._core.raylet.call_soon("remove_placement_group", key, answered)

    def _learn(self, group_id: bytes, state: str, why_removed: str) -> None:
        group = self._group(group_id)
        with self._lock:
            if group.state == "REMOVED":
                return  # for good; what comes later was sent before
            group.state = state
            group.why_removed = why_removed
        self._settle(group_id, group)

    def _settle(self, group_id: bytes, group: _Group) -> None:
        """Give the values of ``ready()`` that can be given."""
        with self._lock:
            if group.state not in ("CREATED", "REMOVED") and group.error is None:
                return
            waiting, group.waiting = group.waiting, []
            is_created = group.state == "CREATED"
        failure = b""
        if not is_created and waiting:
            error: Exception = TaskPlacementGroupRemovedError(
                f"The placement group {group_id.hex()} was removed: {group.why_removed}"
            )
            if group.error is not None:
                error = group.error
            failure = serialize(error, is_error=True).to_bytes()
        waiters = []
        with self._core.ownership.lock:
            for entry, data in waiting:
                if is_created:
                    callbacks = entry.settle(INLINE, data)
                else:
                    callbacks = entry.settle(FAILED, failure)
                if callbacks:
                    waiters.append((entry, callbacks))
        wake(waiters)
