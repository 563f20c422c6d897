"""Objects on their way to this node, for this process: one fetch an object, however many wait.

::

    ASKING --sources--> PULLING --ended--> here
      ^                    |
      +---- lost at -------+            a small value, an error, or a failure ends it at any time

The owner says where copies are, the raylet brings one, and what became of it is told to the owner:
a new copy, or who did not have it, whereupon the owner names others or makes the object again. How
long the owner takes for that is its affair, it says that it works on it; but an owner that has said
nothing for ``NO_LOCATION_S`` fails the fetch (SURFACE E14).

A fetch for which nobody waits any more goes on for ``LINGER_S``: a program that asks again and
again with a short timeout gets its value in the end.

Before it: ``fetching``, the shell, on the I/O thread. Pure: events are methods, each returns
commands. O(1) an event; deaths are O(fetches).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from skate_worker.machine.references import Owner

NO_LOCATION_S: Final = 600.0  # SURFACE E14
LINGER_S: Final = 5.0  # that a fetch goes on after the last one who waited
ASK_AGAIN_S: Final = 0.5  # before the owner is asked again, when the same nodes were lost twice

ASKING: Final = 0
PULLING: Final = 1
PAUSING: Final = 2

HERE: Final = ""
VALUE: Final = "value"
LOST: Final = "lost"
FULL: Final = "full"
OWNER_DIED: Final = "owner_died"
TIMED_OUT: Final = "timed_out"
FREED: Final = "freed"
ENDED: Final = "ended"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a fetch ended. ``kind``: one of the constants above; empty: the copy is here."""

    kind: str = HERE
    data: bytes = b""
    """VALUE: the object is small, or an error, and this is it. FULL: the store's account, if any"""
    is_error: bool = False
    message: str = ""  # of a failure, for a person


Waiter = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class AskOwner:
    """Ask where copies are. Answered by ``sources``, ``value``, or ``owner_died``."""

    object_id: bytes
    owner: Owner
    lost_at: tuple[bytes, ...]
    why_lost: str


@dataclass(frozen=True, slots=True)
class StartPull:
    """Ask the raylet for a copy. Answered by ``pull_ended``."""

    pull_id: int
    object_id: bytes
    size_bytes: int
    owner: Owner
    node_ids: tuple[bytes, ...]
    priority: int
    arriving_at: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class StopPull:
    """Tell the raylet that nobody waits; what it answers is ignored."""

    pull_id: int


@dataclass(frozen=True, slots=True)
class TellOwner:
    """Tell the owner that there is a copy here, or that this process pulls no more."""

    object_id: bytes
    owner: Owner
    has_copy: bool


@dataclass(frozen=True, slots=True)
class WakeWaiters:
    """Call these. Last of an event's commands: they may start other fetches."""

    waiters: tuple[Waiter, ...]
    outcome: Outcome


Command = AskOwner | StartPull | StopPull | TellOwner | WakeWaiters


class _Fetch:
    __slots__ = (
        "arriving_at",
        "asked_at_s",
        "is_owner_busy",
        "lingers_until_s",
        "lost_at",
        "object_id",
        "owner",
        "priority",
        "pull_id",
        "size_bytes",
        "sources",
        "stage",
        "waiters",
        "why_lost",
    )

    def __init__(self, object_id: bytes, owner: Owner, size_bytes: int, priority: int) -> None:
        self.object_id = object_id
        self.owner = owner
        self.size_bytes = size_bytes
        self.priority = priority
        self.stage = ASKING
        self.pull_id = 0
        self.sources: tuple[bytes, ...] = ()
        self.arriving_at: tuple[bytes, ...] = ()
        self.lost_at: tuple[bytes, ...] = ()
        self.why_lost = ""
        self.waiters: list[Waiter] = []
        self.asked_at_s = 0.0
        self.is_owner_busy = False  # it has said that it works on it
        # Finite: nobody waits; who waited last is still told.
        self.lingers_until_s = math.inf


class Fetches:
    """All fetches of the process. Invariant: a fetch has waiters, the last of which may be gone."""

    def __init__(self) -> None:
        self._fetches: dict[bytes, _Fetch] = {}
        self._pulls: dict[int, _Fetch] = {}
        self._next_pull = 1

    def __len__(self) -> int:
        return len(self._fetches)

    def is_wanted(self, object_id: bytes) -> bool:
        """Whether somebody waits for the object."""
        return object_id in self._fetches

    # ---- who waits ----

    def start(
        self,
        object_id: bytes,
        owner: Owner,
        size_bytes: int,
        priority: int,
        waiter: Waiter,
        now_s: float,
        lost_at: Iterable[bytes] = (),
        why_lost: str = "",
    ) -> list[Command]:
        """Bring an object here. ``lost_at``: nodes where it is known to be no more, and why."""
        fetch = self._fetches.get(object_id)
        if fetch is None:
            fetch = self._fetches[object_id] = _Fetch(object_id, owner, size_bytes, priority)
            fetch.waiters.append(waiter)
            fetch.lost_at, fetch.why_lost = tuple(lost_at), why_lost
            return [self._ask(fetch, now_s)]
        if fetch.lingers_until_s < math.inf:
            fetch.lingers_until_s = math.inf
            fetch.waiters.clear()
        fetch.waiters.append(waiter)
        if priority < fetch.priority:
            fetch.priority = priority
            if fetch.stage == PULLING:
                # The raylet joins both pulls and takes the more urgent priority.
                old = fetch.pull_id
                del self._pulls[old]
                return [self._pull(fetch), StopPull(old)]
        return []

    def stop(self, object_id: bytes, waiter: Waiter, now_s: float) -> None:
        """Somebody waits no more; the last one may still be called."""
        fetch = self._fetches.get(object_id)
        if fetch is None or waiter not in fetch.waiters:
            return
        if len(fetch.waiters) > 1:
            fetch.waiters.remove(waiter)
        else:
            fetch.lingers_until_s = now_s + LINGER_S

    def released(self, object_ids: Iterable[bytes]) -> list[Command]:
        """Nobody in this process refers to these any more: what lingers ends at once."""
        commands: list[Command] = []
        for object_id in object_ids:
            fetch = self._fetches.get(object_id)
            if fetch is not None and fetch.lingers_until_s < math.inf:
                commands += self._abandon(fetch)
        return commands

    # ---- what the owner says ----

    def sources(
        self,
        object_id: bytes,
        node_ids: Iterable[bytes],
        size_bytes: int,
        arriving_at: Iterable[bytes] = (),
    ) -> list[Command]:
        """Copies are on these nodes; none: the owner works on it and will say more.

        ``arriving_at``: nodes to be asked before them, to which a copy is on its way.
        """
        fetch = self._fetches.get(object_id)
        if fetch is None or fetch.stage != ASKING:
            return []
        fetch.sources = tuple(node_ids)
        if not fetch.sources:
            fetch.is_owner_busy = True
            return []
        fetch.size_bytes = size_bytes
        fetch.arriving_at = tuple(arriving_at)
        return [self._pull(fetch)]

    def ended(self, object_id: bytes, outcome: Outcome) -> list[Command]:
        """The owner sent the value itself, or the reason why there is none."""
        fetch = self._fetches.get(object_id)
        if fetch is None:
            return []
        commands: list[Command] = []
        if fetch.stage == PULLING:
            commands.append(StopPull(fetch.pull_id))
        self._forget(fetch)
        return [*commands, WakeWaiters(tuple(fetch.waiters), outcome)]

    # ---- what the raylet says ----

    def pull_ended(
        self,
        pull_id: int,
        kind: str,
        message: str,
        lost_at: Iterable[bytes],
        now_s: float,
        fullness: bytes = b"",
    ) -> list[Command]:
        """A pull came to its end. One that was stopped is not known any more."""
        fetch = self._pulls.pop(pull_id, None)
        if fetch is None:
            return []
        if kind == "":
            self._forget(fetch)
            return [
                TellOwner(fetch.object_id, fetch.owner, has_copy=True),
                WakeWaiters(tuple(fetch.waiters), Outcome()),
            ]
        if kind == "full":
            self._forget(fetch)
            return [
                TellOwner(fetch.object_id, fetch.owner, has_copy=False),
                WakeWaiters(tuple(fetch.waiters), Outcome(FULL, fullness, message=message)),
            ]
        was_lost = fetch.lost_at
        fetch.lost_at = tuple(lost_at) or (*fetch.arriving_at, *fetch.sources)
        fetch.why_lost = message
        if fetch.lost_at == was_lost:
            fetch.stage = PAUSING
            fetch.asked_at_s = now_s
            return []
        return [self._ask(fetch, now_s)]

    # ---- deaths and time ----

    def owner_died(self, is_dead: Callable[[Owner], bool]) -> list[Command]:
        """Fetches from these owners fail."""
        commands: list[Command] = []
        for fetch in [f for f in self._fetches.values() if is_dead(f.owner)]:
            if fetch.stage == PULLING:
                commands.append(StopPull(fetch.pull_id))
            self._forget(fetch)
            commands.append(WakeWaiters(tuple(fetch.waiters), Outcome(OWNER_DIED)))
        return commands

    def next_wakeup(self) -> float | None:
        """When :meth:`time_passed` is due; None when time alone changes nothing."""
        return min((due for f in self._fetches.values() if (due := _due_s(f))), default=None)

    def time_passed(self, now_s: float) -> list[Command]:
        """Ask again after a pause; give up those of which nothing was heard."""
        commands: list[Command] = []
        for fetch in list(self._fetches.values()):
            due_s = _due_s(fetch)
            if due_s is None or due_s > now_s:
                continue
            if fetch.lingers_until_s <= now_s:
                commands += self._abandon(fetch)
            elif fetch.stage == PAUSING:
                commands.append(self._ask(fetch, now_s))
            else:
                commands += self._abandon(fetch)
                waited = f"its owner named no copy within {NO_LOCATION_S:g} s"
                outcome = Outcome(TIMED_OUT, message=waited)
                commands.append(WakeWaiters(tuple(fetch.waiters), outcome))
        return commands

    def close(self) -> list[Command]:
        """This process leaves: whoever waits is told."""
        waiters = tuple(waiter for fetch in self._fetches.values() for waiter in fetch.waiters)
        stops = [StopPull(pull_id) for pull_id in self._pulls]
        self._fetches.clear()
        self._pulls.clear()
        return [*stops, WakeWaiters(waiters, Outcome(ENDED))] if waiters else []

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` if the fetches are inconsistent."""
        for fetch in self._fetches.values():
            assert fetch.waiters
            assert fetch.lingers_until_s == math.inf or len(fetch.waiters) == 1
            assert (fetch.stage == PULLING) == (self._pulls.get(fetch.pull_id) is fetch)
        assert all(self._fetches.get(f.object_id) is f for f in self._pulls.values())

    # ---- steps ----

    def _ask(self, fetch: _Fetch, now_s: float) -> AskOwner:
        fetch.stage = ASKING
        fetch.asked_at_s = now_s
        fetch.is_owner_busy = False
        return AskOwner(fetch.object_id, fetch.owner, fetch.lost_at, fetch.why_lost)

    def _pull(self, fetch: _Fetch) -> StartPull:
        fetch.stage = PULLING
        fetch.pull_id = self._next_pull
        self._next_pull += 1
        self._pulls[fetch.pull_id] = fetch
        return StartPull(
            fetch.pull_id,
            fetch.object_id,
            fetch.size_bytes,
            fetch.owner,
            fetch.sources,
            fetch.priority,
            fetch.arriving_at,
        )

    def _abandon(self, fetch: _Fetch) -> list[Command]:
        commands: list[Command] = []
        if fetch.stage == PULLING:
            commands.append(StopPull(fetch.pull_id))
        self._forget(fetch)
        return [*commands, TellOwner(fetch.object_id, fetch.owner, has_copy=False)]

    def _forget(self, fetch: _Fetch) -> None:
        del self._fetches[fetch.object_id]
        self._pulls.pop(fetch.pull_id, None)


def _due_s(fetch: _Fetch) -> float | None:
    due_s = fetch.lingers_until_s
    if fetch.stage == PAUSING:
        due_s = min(due_s, fetch.asked_at_s + ASK_AGAIN_S)
    elif fetch.stage == ASKING and not fetch.is_owner_busy:
        due_s = min(due_s, fetch.asked_at_s + NO_LOCATION_S)
    return due_s if due_s < math.inf else None
