"""What this node knows of the cluster's actors, and which local process wants to hear of which.

Fed by the GCS's events: each is newer than what was known. An answer to a question put to the GCS
may be older than an event that came meanwhile, so it is only taken for an actor that is not known
at all.
"""

from __future__ import annotations

from collections.abc import Callable

from skate_raylet.service.local_process import LocalProcess
from skate_rpc.node_protocol import ActorUpdate, ActorView

DEAD_KEPT_MAX = 4096  # older ones are asked for when somebody subscribes


class ActorDirectory:
    """Invariant: a process is in ``_watchers[a]`` exactly while ``a`` is in its ``actors``."""

    def __init__(self, ask: Callable[[bytes], None]) -> None:
        """``ask(actor_id)``: have the GCS's answer passed to :meth:`answer`."""
        self._ask = ask
        self._views: dict[bytes, ActorView] = {}
        self._dead: dict[bytes, None] = {}  # known and dead, longest first
        self._watchers: dict[bytes, dict[LocalProcess, None]] = {}

    def get(self, actor_id: bytes) -> ActorView | None:
        """The last known state."""
        return self._views.get(actor_id)

    def subscribe(self, process: LocalProcess, actor_id: bytes) -> None:
        """Tell the process the present state, now or when it is known, and every change."""
        self._watchers.setdefault(actor_id, {})[process] = None
        process.actors[actor_id] = None
        view = self._views.get(actor_id)
        if view is not None:
            process.send(ActorUpdate(view))
        else:
            self._ask(actor_id)

    def unsubscribe(self, process: LocalProcess, actor_id: bytes) -> None:
        """The process no longer cares."""
        process.actors.pop(actor_id, None)
        watchers = self._watchers.get(actor_id)
        if watchers is not None:
            watchers.pop(process, None)
            if not watchers:
                del self._watchers[actor_id]

    def forget(self, process: LocalProcess) -> None:
        """The process is gone."""
        for actor_id in list(process.actors):
            self.unsubscribe(process, actor_id)

    def update(self, view: ActorView) -> None:
        """News from the GCS."""
        if self._views.get(view.actor_id) == view:
            return  # a snapshot repeats what is known
        self._views[view.actor_id] = view
        self._dead.pop(view.actor_id, None)
        if view.state == "DEAD":
            self._dead[view.actor_id] = None
            while len(self._dead) > DEAD_KEPT_MAX:
                oldest = next(iter(self._dead))
                del self._dead[oldest], self._views[oldest]
        for process in list(self._watchers.get(view.actor_id, ())):
            process.send(ActorUpdate(view))

    def answer(self, actor_id: bytes, view: ActorView | None) -> None:
        """What the GCS said when asked; None: there is no such actor (any more)."""
        if actor_id in self._views:
            return  # an event was quicker
        if view is not None:
            self.update(view)
