"""xoscar: actors on asyncio in a main and a few sub processes, and nothing else.

The adapter owns an event loop; `in_turn` and `together` run as one coroutine each, so that the loop
is entered once per timed loop and not once per call.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from benchmarks import served
from benchmarks.peers.peer import Actor, Peer, Send
from benchmarks.workload import Capability

Result = TypeVar("Result")
ACTORS_ONLY = "xoscar has actors only"
SHARED_PROCESS = "actors share the pool's processes"


class XoscarPeer(Peer):
    """An actor pool with as many sub processes as the cluster has processors."""

    name = "xoscar"
    distributions = ("xoscar", "numpy", "uvloop")
    import_statement = "import xoscar"
    driver_processes = ("multiprocessing.resource_tracker",)
    lacks: ClassVar[dict[Capability, str]] = {
        Capability.SMALL_OBJECTS: ACTORS_ONLY,
        Capability.LARGE_PUT: ACTORS_ONLY,
        Capability.LARGE_GET: ACTORS_ONLY,
        Capability.TASKS: ACTORS_ONLY,
        Capability.TASK_REFERENCES: ACTORS_ONLY,
        Capability.TASK_RETURNS: ACTORS_ONLY,
        Capability.WAIT: ACTORS_ONLY,
        Capability.NESTED: ACTORS_ONLY,
        Capability.BORROWED: ACTORS_ONLY,
        Capability.ACTOR_PROCESSES: SHARED_PROCESS,
        Capability.ACTOR_THREADS: "an actor has no threads of its own",
        Capability.PLACEMENT_GROUPS: ACTORS_ONLY,
    }

    def __init__(self) -> None:
        self._xoscar: Any = importlib.import_module("xoscar")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool: Any = None
        self._sub_addresses: list[str] = []
        self._created = 0

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        assert self._loop is not None
        return self._loop.run_until_complete(coroutine)

    def start(self, cpus: int) -> None:
        """Start the loop and a pool of `cpus` sub processes beside the driver."""
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._pool = self._run(self._xoscar.create_actor_pool("127.0.0.1:0", n_process=cpus))
        # Processes number 1 and up are the sub processes; 0 is the driver itself.
        self._sub_addresses = list(self._pool.sub_processes)

    def stop(self) -> None:
        """Stop the pool and its processes, and close the loop."""
        self._run(self._pool.stop())
        assert self._loop is not None
        self._loop.close()

    def actor(self, served_class: type, *arguments: object, threads: int = 1) -> Actor:
        """An actor on the sub processes in turn."""
        classes = importlib.import_module("benchmarks.peers.xoscar_actors").ACTOR_CLASSES
        address = self._sub_addresses[self._created % len(self._sub_addresses)]
        self._created += 1
        uid = f"{served_class.__name__}-{self._created}"
        create = self._xoscar.create_actor
        return self._run(create(classes[served_class], *arguments, address=address, uid=uid))

    def client(self, servers: Sequence[Actor]) -> Actor:
        """An actor whose methods call the servers with xoscar's own coroutines."""
        return self.actor(served.Client, list(servers))

    def method(self, actor: Actor, name: str) -> Send:
        """The proxy's method: a coroutine function."""
        send: Send = getattr(actor, name)
        return send

    def release(self, actors: Sequence[Actor]) -> None:
        """Destroy the actors."""
        for actor in actors:
            self._run(self._xoscar.destroy_actor(actor))

    def get(self, reference: Any) -> Any:
        """Run a call, or several at once, to the end."""
        if isinstance(reference, list):
            return self._run(_gather(reference))
        return self._run(reference)

    def in_turn(self, send: Send, count: int, *arguments: object) -> None:
        """Await one call after the other."""

        async def calls() -> None:
            for _ in range(count):
                await send(*arguments)

        self._run(calls())

    def together(self, send: Send, count: int, *arguments: object) -> None:
        """Gather the calls."""
        self._run(_gather([send(*arguments) for _ in range(count)]))

    def together_over(self, send: Send, values: Iterable[object]) -> None:
        """Gather the calls."""
        self._run(_gather([send(value) for value in values]))


async def _gather(calls: list[Any]) -> list[Any]:
    return await asyncio.gather(*calls)
