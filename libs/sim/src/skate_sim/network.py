"""The network between simulated hosts: what is late, what is cut off, what breaks.

A *pipe* is one direction of one connection: it keeps its order, and pipes overtake each other at
will, as TCP does. A *cut* of one direction between two hosts holds everything that goes there until
it is healed; nobody is told. What a host says after it has lost its power is never heard, and
nobody is told either: that is what tells a crash of a host from the end of a process.

A *call* is one remote procedure call: it may be lost on its way there or back, arrive after its
caller has given up, and the caller can not tell which of these it was. TCP delivers nothing twice,
but callers repeat themselves; and as no handler of the task plane relies on TCP for that
(``skate_worker.task_messages``), its messages are repeated here too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Protocol

from skate_sim.agenda import Agenda, Alarm

HERE_S: Final = (0.00002, 0.0002)  # between two processes of one host
THERE_S: Final = (0.0001, 0.002)  # between two hosts
REFUSED: Final = "refused"  # nobody listens there: the other side is certainly gone
RESET: Final = "reset"  # the connection broke; whether it arrived is unknown
TIMEOUT: Final = "timeout"


@dataclass(frozen=True, slots=True)
class NetworkHabits:
    """How bad the network is by itself, without faults."""

    slow_share: float = 0.0  # of the messages between hosts
    slow_s: float = 0.3  # at most so late
    reset_share: float = 0.0  # of the calls
    repeat_share: float = 0.0  # of what processes say to each other: it comes twice


class Endpoint(Protocol):
    """Who makes and takes calls. ``life`` changes when it starts anew."""

    @property
    def host(self) -> str:
        """Where it runs."""

    @property
    def is_up(self) -> bool:
        """Whether it answers."""

    @property
    def life(self) -> int:
        """Which of its lives this is."""


class Network:
    """All hosts' ways to each other."""

    def __init__(self, agenda: Agenda, random: Random, habits: NetworkHabits) -> None:
        self.agenda = agenda
        self.random = random
        self.habits = habits
        self._cuts: dict[tuple[str, str], int] = {}  # how many cuts are in force
        self._held: dict[tuple[str, str], list[Callable[[], None]]] = {}

    def delay_s(self, source: str, target: str) -> float:
        """How long the next message takes."""
        if source == target:
            return self.random.uniform(*HERE_S)
        if self.habits.slow_share and self.random.random() < self.habits.slow_share:
            return self.random.uniform(0.0, self.habits.slow_s)
        return self.random.uniform(*THERE_S)

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets from one host to the other now."""
        return (source, target) in self._cuts

    def cut(self, source: str, target: str) -> None:
        """Let nothing through in this direction until :meth:`heal`."""
        if source != target:
            self._cuts[source, target] = self._cuts.get((source, target), 0) + 1

    def heal(self, source: str, target: str) -> None:
        """End one cut; when it was the last, what was held goes on its way."""
        left = self._cuts.get((source, target), 0) - 1
        if left > 0:
            self._cuts[source, target] = left
            return
        self._cuts.pop((source, target), None)
        for go_on in self._held.pop((source, target), ()):
            go_on()

    def heal_all(self) -> None:
        """No direction is cut any more."""
        for source, target in list(self._cuts):
            self._cuts[source, target] = 1
            self.heal(source, target)

    def when_healed(self, source: str, target: str, go_on: Callable[[], None]) -> None:
        """Call back once this direction, which is cut, is open again."""
        self._held.setdefault((source, target), []).append(go_on)

    def travel(self, source: str, target: str, arrive: Callable[[], None]) -> None:
        """Have something that keeps no order with anything arrive."""

        def arrives() -> None:
            if self.is_cut(source, target):
                self.when_healed(source, target, arrives)
            else:
                arrive()

        self.agenda.after(self.delay_s(source, target), arrives)

    def call(
        self,
        caller: Endpoint,
        callee: Endpoint,
        handle: Callable[[Callable[[Any], None]], None],
        done: Callable[[Any, str], None],
        timeout_s: float,
    ) -> None:
        """Make a call. ``handle(reply)`` runs at the callee; ``done(answer, problem)`` once at the
        caller, unless that has started anew meanwhile. ``problem`` empty: it was answered.
        """
        Call(self, caller, callee, handle, done, timeout_s).begin()


class Call:
    """One call under way."""

    def __init__(
        self,
        network: Network,
        caller: Endpoint,
        callee: Endpoint,
        handle: Callable[[Callable[[Any], None]], None],
        done: Callable[[Any, str], None],
        timeout_s: float,
    ) -> None:
        self._network = network
        self._caller = caller
        self._caller_life = caller.life
        self._callee = callee
        self._handle = handle
        self._done: Callable[[Any, str], None] | None = done
        self._timeout_s = timeout_s
        self._alarm: Alarm | None = None

    def begin(self) -> None:
        """Send the request."""
        network = self._network
        self._alarm = network.agenda.after(self._timeout_s, self._end, None, TIMEOUT)
        fate = network.random.random()
        if fate < network.habits.reset_share:
            # Half of the broken connections had carried the request already.
            network.agenda.after(network.random.uniform(0.0, 0.05), self._end, None, RESET)
            if fate < network.habits.reset_share / 2:
                return
        network.travel(self._caller.host, self._callee.host, self._arrive)

    def _arrive(self) -> None:
        callee = self._callee
        if not callee.is_up:
            self._travel_back(None, REFUSED)
            return
        life = callee.life

        def reply(answer: Any) -> None:
            if callee.is_up and callee.life == life:
                self._travel_back(answer, "")

        self._handle(reply)

    def _travel_back(self, answer: Any, problem: str) -> None:
        self._network.travel(
            self._callee.host, self._caller.host, lambda: self._end(answer, problem)
        )

    def _end(self, answer: Any, problem: str) -> None:
        done, self._done = self._done, None
        if self._alarm is not None:
            self._alarm.cancel()
        if done is not None and self._caller.is_up and self._caller.life == self._caller_life:
            done(answer, problem)


class Pipe:
    """One direction of a connection, in order. ``deliver`` gets what arrived together."""

    def __init__(
        self, network: Network, source: str, target: str, deliver: Callable[[list[Any]], None]
    ) -> None:
        self._network = network
        self._source = source
        self._target = target
        self._deliver = deliver
        self._items: deque[tuple[float, Any]] = deque()
        self._last_s = 0.0
        self._is_pumping = False
        self.is_closed = False  # nothing more is delivered

    def send(self, item: Any) -> None:
        """Put something on its way."""
        network = self._network
        now_s = network.agenda.now_s
        self._last_s = max(self._last_s, now_s + network.delay_s(self._source, self._target))
        self._items.append((self._last_s, item))
        if not self._is_pumping:
            self._is_pumping = True
            network.agenda.at(self._last_s, self._pump)

    def lose_end(self, count: int) -> None:
        """The last ``count`` items do not arrive."""
        for _ in range(min(count, len(self._items))):
            self._items.pop()

    def _pump(self) -> None:
        network = self._network
        self._is_pumping = False
        if self.is_closed:
            self._items.clear()
            return
        if network.is_cut(self._source, self._target):
            self._is_pumping = True
            network.when_healed(self._source, self._target, self._pump)
            return
        now_s = network.agenda.now_s
        batch: list[Any] = []
        while self._items and self._items[0][0] <= now_s:
            batch.append(self._items.popleft()[1])
        if self._items:
            self._is_pumping = True
            network.agenda.at(self._items[0][0], self._pump)
        if batch:
            self._deliver(batch)
