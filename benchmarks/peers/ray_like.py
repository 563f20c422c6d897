"""Skate and Ray: one adapter, for their programs are the same but for the import.

Both are used through their public API alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.peers.peer import Actor, Lacking, Peer, Reference, Send
from benchmarks.plan import PLACEMENT_RESOURCE, PLACEMENT_RESOURCE_TOTAL

GROUP_TIMEOUT_S = 30
PROGRAM_NAMES = (
    "from {module} import ObjectRef, exceptions, get, init, kill, put, remote, shutdown, wait"
)


class RayLikePeer(Peer):
    """A peer whose module has Ray's API. `get` and `put` are the module's own functions.

    They are looked up when the cluster is there, not before: what a lazy module imports when it is
    used belongs to the time of its init.
    """

    module_name: ClassVar[str]

    def __init__(self) -> None:
        self._module: Any = importlib.import_module(self.module_name)
        self._actor_classes: dict[tuple[type, int], Any] = {}

    def _init_options(self) -> dict[str, object]:
        return {}

    def start(self, cpus: int) -> None:
        """A local cluster, with the custom resource that the placement-group workload needs."""
        self._module.init(
            num_cpus=cpus,
            resources={PLACEMENT_RESOURCE: PLACEMENT_RESOURCE_TOTAL},
            **self._init_options(),
        )
        self.attach()

    def attach(self) -> None:
        """Bind the functions on the instance: `peer.get` is then the peer's function itself."""
        self.get = self._module.get  # type: ignore[method-assign]
        self.put = self._module.put  # type: ignore[method-assign]

    def stop(self) -> None:
        """Shut the local cluster down."""
        self._module.shutdown()

    def wait_each(self, references: Sequence[Reference]) -> None:
        """`wait` for one at a time; as in Ray's definition only the first call fetches."""
        wait = self._module.wait
        unready = list(references)
        is_first = True
        while unready:
            _ready, unready = wait(unready, fetch_local=is_first)
            is_first = False

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """The remote function's `remote`."""
        remote = self._module.remote
        wrapped = remote(function) if returns == 1 else remote(num_returns=returns)(function)
        send: Send = wrapped.remote
        return send

    def actor(self, served_class: type, *arguments: object, threads: int = 1) -> Actor:
        """An actor with `num_cpus=0`, its class wrapped once as in a program."""
        key = (served_class, threads)
        if key not in self._actor_classes:
            wrapped = self._module.remote(num_cpus=0)(served_class)
            if threads > 1:
                wrapped = wrapped.options(max_concurrency=threads)
            self._actor_classes[key] = wrapped
        return self._actor_classes[key].remote(*arguments)

    def method(self, actor: Actor, name: str) -> Send:
        """The method's `remote`."""
        send: Send = getattr(actor, name).remote
        return send

    def release(self, actors: Sequence[Actor]) -> None:
        """Kill the actors."""
        for actor in actors:
            self._module.kill(actor)

    def placement_groups(self, count: int) -> None:
        """As in Ray's definition: a bundle of 0.001 of a custom resource in each group."""
        util: Any = getattr(self._module, "util", None)
        if not hasattr(util, "placement_group"):
            raise Lacking(f"{self.name} {self._module.__version__} has no placement groups")
        groups = [util.placement_group(bundles=[{PLACEMENT_RESOURCE: 0.001}]) for _ in range(count)]
        for group in groups:
            if not group.wait(timeout_seconds=GROUP_TIMEOUT_S):
                raise TimeoutError(f"a placement group was not ready in {GROUP_TIMEOUT_S} s")
        for group in groups:
            util.remove_placement_group(group)


class SkatePeer(RayLikePeer):
    """Skate at its defaults: authentication, metrics and retries on, tracing off."""

    name = "skate"
    module_name = "skate"
    import_statement = "import skate"
    use_statement = PROGRAM_NAMES.format(module="skate")
    distributions = ("skate", "numpy", "msgspec", "grpcio", "cloudpickle")


class RayPeer(RayLikePeer):
    """Ray at its defaults, without its dashboard, which the others do not have either."""

    name = "ray"
    module_name = "ray"
    import_statement = "import ray"
    use_statement = PROGRAM_NAMES.format(module="ray")
    distributions = ("ray", "numpy", "grpcio", "protobuf")

    def __init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        super().__init__()

    def _init_options(self) -> dict[str, object]:
        return {"include_dashboard": False}
