"""Dask distributed: a LocalCluster of one-thread worker processes and its futures and actors."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks.peers.peer import Actor, Peer, Reference, Send
from benchmarks.workload import Capability

SHARED_PROCESS = "actors share the worker processes"


class DaskPeer(Peer):
    """Dask with its dashboard off; `put` is `scatter`, tasks are impure `submit`s."""

    name = "dask"
    distributions = ("distributed", "dask", "numpy", "tornado")
    import_statement = "import distributed"
    driver_processes = ("multiprocessing.resource_tracker",)
    lacks: ClassVar[dict[Capability, str]] = {
        Capability.NESTED: "a task that waits for tasks must leave its worker's thread first",
        Capability.BORROWED: "a future inside a result belongs to its worker's client",
        Capability.TASK_RETURNS: "a task has one result",
        Capability.ACTOR_PROCESSES: SHARED_PROCESS,
        Capability.ACTOR_THREADS: "the threads are the worker's, not the actor's",
        Capability.ACTOR_CLIENTS: SHARED_PROCESS,
        Capability.PLACEMENT_GROUPS: "Dask has none",
    }

    def __init__(self) -> None:
        self._dask: Any = importlib.import_module("distributed")
        self._cluster: Any = None
        self._client: Any = None

    def start(self, cpus: int) -> None:
        """A local cluster and its client."""
        self._cluster = self._dask.LocalCluster(
            n_workers=cpus, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self._client = self._dask.Client(self._cluster)

    def stop(self) -> None:
        """Close client and cluster."""
        self._client.close()
        self._cluster.close()

    def put(self, value: object) -> Reference:
        """Scatter one value, without hashing it. A list would be scattered by element."""
        return self._client.scatter([value], hash=False)[0]

    def get(self, reference: Reference | list[Reference]) -> Any:
        """Gather the futures of tasks; an actor's future answers for itself."""
        if not isinstance(reference, list):
            return reference.result()
        if reference and not isinstance(reference[0], self._dask.Future):
            return [each.result() for each in reference]
        return self._client.gather(reference)

    def wait_each(self, references: Sequence[Reference]) -> None:
        """`as_completed`, Dask's way to take results one at a time."""
        for _future in self._dask.as_completed(references):
            pass

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """`submit`, with a new key each time."""
        submit = self._client.submit

        def send(*arguments: object) -> Reference:
            return submit(function, *arguments, pure=False)

        return send

    def actor(self, served_class: type, *arguments: object, threads: int = 1) -> Actor:
        """An actor, once it is created."""
        return self._client.submit(served_class, *arguments, actor=True, pure=False).result()

    def method(self, actor: Actor, name: str) -> Send:
        """The proxy's method."""
        send: Send = getattr(actor, name)
        return send

    def release(self, actors: Sequence[Actor]) -> None:
        """An actor ends when its proxy is forgotten."""
