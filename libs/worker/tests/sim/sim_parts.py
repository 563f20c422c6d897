"""What stands for the operating system in a simulated session: loops, connections, a store, a
raylet. Nothing here decides anything about references.

The transport that is modelled: one connection keeps its order, whatever is sent on it; messages of
different connections overtake each other at will, and any delivery may be late. A connection
breaks only when the process at one end dies; then a random part of the end of what the dead one had
sent is lost, and the other end hears of the break after what did arrive. Two processes that dial
each other at the same time have two connections. Nothing is lost in between. What was delivered may
be delivered again: at once, or any time later, and then on any open connection between the two, as
after a reconnection. One socket does no such thing; the protocol is not to depend on that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from skate_object_store import ObjectExistsError, StoreTimeoutError
from skate_rpc import node_protocol as node
from skate_rpc.stream import StreamClosedError, make_decoder
from skate_worker.task_protocol import AnyMessage

if TYPE_CHECKING:
    from borrowing_world import SimProcess, World

_encode = msgspec.msgpack.Encoder().encode
decode = make_decoder(AnyMessage).decode


class SimLoop:
    """Stands for ``IoThread``: callbacks run when the world says so, in their order."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.timers: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self.is_dead = False

    def is_current(self) -> bool:
        return True

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> None:
        if not self.is_dead:
            self.ready.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        assert delay_s > 0
        if not self.is_dead:
            self.timers.append((callback, args))


class SimConnection:
    """One end of a connection; stands for ``StreamConnection``."""

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        self.is_closed = False
        self.has_ended = False
        self.context: Any = None
        self.inbox: deque[bytes] = deque()  # encoded when sent, so that nothing is shared
        self.is_broken = False  # the other process died: what is in the inbox is all there will be
        self.is_accepted = True
        self.is_slow = False
        self.other: SimConnection
        self.on_messages: Callable[[Any, list[Any]], None] = process.peers._on_messages
        self.on_close: Callable[[Any, str], None] = process.peers._on_close

    def queue(self, message: Any) -> None:
        if self.is_closed:
            raise StreamClosedError("closed")
        if not self.process.is_alive:
            return
        data = _encode([message])
        trace = self.process.world.trace
        if trace is not None:
            world = self.process.world
            trace.append(f"   {self.process} ~> {self.other.process} {world.describe(message)}")
        if not self.is_broken:
            self.other.inbox.append(data)

    post = send = queue

    def flush(self) -> None:
        """Everything queued is on its way already."""

    schedule_flush = flush

    def waiting(self) -> list[Any]:
        """The messages that are on their way to this end."""
        return [message for data in self.inbox for message in decode(data)]

    def deliver(self, count: int) -> None:
        """Hand over up to ``count`` messages as one batch, or the news of the break."""
        if not self.is_accepted:
            self.is_accepted = True
            self.process.peers._on_open(self)
        if self.inbox:
            batch = []
            for _ in range(min(count, len(self.inbox))):
                data = self.inbox.popleft()
                batch += decode(data)
                for _ in range(self.process.world.repeat(self, data)):
                    batch += decode(data)
            self.on_messages(self, batch)
        else:
            self.is_closed = self.has_ended = True
            self.on_close(self, "the peer closed the connection")

    def deliver_again(self, data: bytes) -> None:
        """Hand over a message that has come before."""
        self.on_messages(self, decode(data))


def open_sim_stream(endpoint: str, token: bytes, loop: SimLoop, **_: Any) -> SimConnection:
    """Stands for ``open_stream``."""
    return loop.world.dial(endpoint, loop)


class SimStore:
    """One process's client of the one node's store; the memory is the world's."""

    def __init__(self, process: SimProcess) -> None:
        self.process = process
        self.world = process.world
        self.is_failing = False  # the next put raises

    def put(
        self,
        object_id: bytes,
        parts: Sequence[Any],
        total_bytes: int,
        *,
        owner: bytes,
        note: str = "",
    ) -> None:
        stored = self.world.stored
        if self.is_failing:
            self.is_failing = False
            raise StoreTimeoutError("the simulated store", 1.0)
        if not self.process.is_alive:
            return
        if object_id in stored:
            raise ObjectExistsError(object_id, True)
        stored[object_id] = (b"".join(parts), owner)
        assert len(stored[object_id][0]) == total_bytes

    def get(self, object_ids: Sequence[bytes], timeout_s: float) -> list[memoryview | None]:
        stored = self.world.stored
        return [memoryview(stored[i][0]) if i in stored else None for i in object_ids]

    def delete(self, object_ids: Sequence[bytes]) -> None:
        if not self.process.is_alive:
            return
        for object_id in object_ids:
            self.world.stored.pop(object_id, None)


class SimRaylet:
    """Stands for ``NodeClient``: the function table, and nothing else that matters here."""

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self, method: str, body: Any, answer: Any) -> Any:
        if method == "kv_put":
            self.world.functions[body.key] = body.value
            return True
        assert method == "kv_get"
        return self.world.functions.get(body.key)

    def post(self, message: Any) -> None:
        assert isinstance(message, node.Blocked | node.Unblocked)
