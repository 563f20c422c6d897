"""A simulated raylet's line to the GCS: what ``GcsLink`` and ``GcsClient`` are to the real one.

The clients' methods are coroutines, because the real parts that use them await them; here a
coroutine waits for a simulated call, and is resumed by the agenda.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from skate_gcs.machine import answers
from skate_gcs.machine import events as on
from skate_gcs.machine.records import Address, DeathCause
from skate_gcs.service.convert import address_from, cause_from
from skate_raylet.service.gcs_link import (
    HEARTBEAT_S,
    REPORT_INTERVAL_S,
    REPORT_TIMEOUT_S,
    RETRY_FIRST_S,
    RETRY_MAX_S,
)
from skate_rpc.errors import RpcError, RpcUnavailableError
from skate_sim.agenda import Alarm
from skate_sim.network import Pipe

if TYPE_CHECKING:
    from skate_sim.raylet import SimRaylet

DEADLINE_S = 10.0  # of a call, all attempts together; as skate_rpc's
ATTEMPT_PAUSE_S = 0.2


class Ask(Awaitable[Any]):
    """Awaitable: a call that the agenda makes and answers."""

    def __init__(self, link: SimLink, request: Any) -> None:
        self._link = link
        self._request = request

    def __await__(self) -> Generator[Ask, Any, Any]:
        """Wait for the answer."""
        return (yield self)

    def begin(self, resume: Callable[[Any, RpcError | None], None]) -> None:
        """Make the call, again while the GCS is away, until the deadline."""
        link = self._link
        world = link.raylet.world
        ends_s = world.agenda.now_s + DEADLINE_S

        def attempt() -> None:
            left_s = max(0.001, ends_s - world.agenda.now_s)
            world.network.call(
                link.raylet,
                world.gcs,
                lambda reply: world.gcs.ask(self._request, reply),
                done,
                left_s,
            )

        def done(answer: Any, problem: str) -> None:
            if not problem and isinstance(answer, answers.Refused):
                resume(None, RpcError("FAILED_PRECONDITION", answer.message, "", ""))
            elif not problem:
                resume(answer, None)
            elif world.agenda.now_s + ATTEMPT_PAUSE_S < ends_s:
                world.agenda.after(ATTEMPT_PAUSE_S, if_alive, attempt)
            else:
                resume(None, RpcUnavailableError("UNAVAILABLE", problem, "", ""))

        def if_alive(go_on: Callable[[], None]) -> None:
            if link.raylet.is_up:
                go_on()

        attempt()


def drive(work: Coroutine[Any, Any, Any], done: Callable[[Any, RpcError | None], None]) -> None:
    """Run a coroutine that awaits nothing but :class:`Ask`."""

    def step(answer: Any, error: RpcError | None) -> None:
        try:
            ask: Ask = work.throw(error) if error is not None else work.send(answer)
        except StopIteration as end:
            done(end.value, None)
        except RpcError as failure:
            done(None, failure)
        else:
            ask.begin(step)

    step(None, None)


class ActorCalls:
    """The part of ``GcsClient.actors`` that an ``ActorHost`` uses."""

    def __init__(self, link: SimLink) -> None:
        self._link = link

    async def report_started(
        self, actor_id: bytes, incarnation: int, address: Any, pid: int
    ) -> bool:
        """The constructor ran."""
        where: Address = address_from(address)
        answer = await Ask(self._link, on.ActorStarted(actor_id, incarnation, where, pid))
        return bool(answer.value)

    async def report_failed(
        self, actor_id: bytes, incarnation: int, cause: Any, creation_error: bytes = b""
    ) -> None:
        """One life ended."""
        why: DeathCause = cause_from(cause)
        await Ask(self._link, on.ActorFailed(actor_id, incarnation, why, creation_error))


class SimClient:
    """What stands for ``GcsClient``."""

    def __init__(self, link: SimLink) -> None:
        self.actors = ActorCalls(link)


class SimLink:
    """Heartbeat, subscription and reports of one raylet. Reports are repeated for ever."""

    def __init__(self, raylet: SimRaylet) -> None:
        self.raylet = raylet
        self.client = SimClient(self)
        self._reports: dict[object, deque[Callable[[], Coroutine[Any, Any, None]]]] = {}
        self._version = 0
        self._bundles_s = float("-inf")  # when the bundles that it holds were last told
        self._last: Any = None
        self._sent_s = float("-inf")
        self._beat: Alarm | None = None
        self._is_sending = False
        self._pause_s = RETRY_FIRST_S
        self.is_started = False

    def ask(self, request: Any, done: Callable[[Any, RpcError | None], None]) -> None:
        """Make one call, with the client's repetitions."""
        Ask(self, request).begin(done)

    # ---- reports ----

    def report(
        self, subject: object, what: str, send: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Have ``send`` succeed some day; after all earlier reports about the same subject."""
        queue = self._reports.setdefault(subject, deque())
        queue.append(send)
        if len(queue) == 1:
            self._deliver(subject)

    def unsent_reports(self) -> int:
        """Reports that the GCS has not answered."""
        return sum(map(len, self._reports.values()))

    def _deliver(self, subject: object, pause_s: float = RETRY_FIRST_S) -> None:
        if not self.raylet.is_up:
            return
        queue = self._reports[subject]

        def done(_: Any, error: RpcError | None) -> None:
            if error is not None and error.code != "FAILED_PRECONDITION":
                world = self.raylet.world
                again_s = pause_s * world.network.random.uniform(0.5, 1.0)
                world.agenda.after(again_s, self._deliver, subject, min(RETRY_MAX_S, 2 * pause_s))
                return
            queue.popleft()
            if queue:
                self._deliver(subject)
            else:
                del self._reports[subject]

        drive(queue[0](), done)

    # ---- heartbeat ----

    def start(self) -> None:
        """The node is registered, and has heard of it."""
        self.is_started = True
        self._send()
        self.subscribe()

    def changed(self) -> None:
        """What the node has free may have changed."""
        if self._beat is not None and not self._is_sending:
            due_s = self._sent_s + REPORT_INTERVAL_S
            if self._beat.at_s > due_s:
                self._plan(due_s)

    def _plan(self, at_s: float) -> None:
        if self._beat is not None:
            self._beat.cancel()
        self._beat = self.raylet.world.agenda.at(at_s, self._send)

    def _send(self) -> None:
        raylet = self.raylet
        world = raylet.world
        if not raylet.is_up:
            return
        self._beat = None
        report = raylet.make_report()
        now_s = world.agenda.now_s
        if report == self._last and now_s < self._sent_s + HEARTBEAT_S:
            self._plan(self._sent_s + HEARTBEAT_S)
            return
        self._version += 1
        self._is_sending = True
        bundles = None
        if now_s >= self._bundles_s + HEARTBEAT_S:
            bundles, self._bundles_s = raylet.held_bundles(), now_s
        request = on.ResourcesReported(raylet.node_id, self._version, *report, bundles)

        def done(answer: Any, problem: str) -> None:
            self._is_sending = False
            if problem:
                self._last = None
            else:
                self._last, self._sent_s = report, world.agenda.now_s
                if not answer.value:
                    raylet.fenced("the GCS holds it for dead")
                    return
                for ref in answer.stale_bundles:
                    raylet.give_back(ref)
            self._plan(world.agenda.now_s + REPORT_INTERVAL_S)

        world.network.call(
            raylet, world.gcs, lambda reply: world.gcs.ask(request, reply), done, REPORT_TIMEOUT_S
        )

    # ---- subscription ----

    def subscribe(self) -> None:
        """Follow the GCS's tables."""
        raylet = self.raylet
        world = raylet.world
        if not raylet.is_up:
            return
        pipe = Pipe(world.network, world.gcs.host, raylet.host, self._take)

        def handle(reply: Callable[[Any], None]) -> None:
            if not pipe.is_closed:  # else the stream broke before it was opened
                world.gcs.subscribe(raylet, pipe)
                reply(True)

        def done(_: Any, problem: str) -> None:
            if problem:
                pipe.is_closed = True
                self.broke()

        world.network.call(raylet, world.gcs, handle, done, DEADLINE_S)

    def broke(self) -> None:
        """The subscription ended: open it again."""
        world = self.raylet.world
        world.agenda.after(self._pause_s * world.network.random.uniform(0.5, 1.0), self.subscribe)
        self._pause_s = min(RETRY_MAX_S, 2 * self._pause_s)

    def _take(self, batch: list[Any]) -> None:
        self._pause_s = RETRY_FIRST_S
        for record in batch:
            if self.raylet.is_up:
                self.raylet.take_news(record)
