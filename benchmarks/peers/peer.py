"""The adapter interface: the few verbs in which every workload is written.

The verbs are coarse enough that each peer can answer in its own idiom: `in_turn` and `together`
drive whole loops, so that a peer whose API is a coroutine runs them inside its event loop, and
`task` and `method` return the very callable that a user's program would call, so that an adapter
adds no call of its own to the timed path of Skate and Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from benchmarks import served
from benchmarks.workload import Capability

Reference = Any  # What a peer hands out for a value that is not here: a future, a reference.
Actor = Any
Send = Callable[..., Reference]  # Called with the arguments of a task or method; does not wait.


class Lacking(Exception):
    """Raised by a verb that the installed version of a peer does not have; the text says why."""


class Peer:
    """One peer. A subclass implements what its peer can do and lists the rest in `lacks`.

    An adapter is made in the driver, where `start` and `stop` are called, and again in workers that
    submit work, where they are not.
    """

    name: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]] = ()  # Whose versions are facts of a run.
    import_statement: ClassVar[str]  # What a user's program imports.
    use_statement: ClassVar[str] = ""  # The same with the names it uses, where that may cost more.
    # Parts of the commands of processes that last as long as the driver, by design.
    driver_processes: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[dict[Capability, str]] = {}  # Why, in a few words.

    def missing(self, needs: Iterable[Capability]) -> str | None:
        """Why the peer cannot run a workload with these needs; None when it can."""
        for need in sorted(needs):
            if need in self.lacks:
                return self.lacks[need]
        return None

    def attach(self) -> None:
        """In a worker: make the verbs usable. The cluster is there already."""

    def start(self, cpus: int) -> None:
        """Start a cluster with `cpus` processors and connect to it; return when it is usable."""
        raise NotImplementedError

    def stop(self) -> None:
        """Stop the cluster; return when the peer says that it is stopped."""
        raise NotImplementedError

    def put(self, value: object) -> Reference:
        """Store a value."""
        raise NotImplementedError

    def get(self, reference: Reference | list[Reference]) -> Any:
        """The value of one reference, or the list of the values of a list of references."""
        raise NotImplementedError

    def wait_each(self, references: Sequence[Reference]) -> None:
        """Ask for one ready reference after the other until none is left."""
        raise NotImplementedError

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """How to submit a task; with several `returns` it gives a list of references."""
        raise NotImplementedError

    def actor(self, served_class: type, *arguments: object, threads: int = 1) -> Actor:
        """Create an actor that takes no processor, its methods run by up to `threads` threads."""
        raise NotImplementedError

    def method(self, actor: Actor, name: str) -> Send:
        """How to call a method of an actor."""
        raise NotImplementedError

    def client(self, servers: Sequence[Actor]) -> Actor:
        """An actor with the methods of `served.Client` that calls the servers."""
        return self.actor(served.Client, self.name, list(servers))

    def release(self, actors: Sequence[Actor]) -> None:
        """End actors that are no longer needed."""
        raise NotImplementedError

    def placement_groups(self, count: int) -> None:
        """Create as many groups of one small bundle, wait for all, remove all."""
        raise NotImplementedError

    def in_turn(self, send: Send, count: int, *arguments: object) -> None:
        """Call `count` times, each call when the one before has returned its value."""
        get = self.get
        for _ in range(count):
            get(send(*arguments))

    def together(self, send: Send, count: int, *arguments: object) -> None:
        """Call `count` times at once, then wait for all the values."""
        self.get([send(*arguments) for _ in range(count)])

    def together_over(self, send: Send, values: Iterable[object]) -> None:
        """Call once for each value, at once, then wait for all the results."""
        self.get([send(value) for value in values])

    def all_at_once(self, sends: Sequence[Send], *arguments: object) -> None:
        """Make each of different calls once, at once, and wait for all of them."""
        self.get([send(*arguments) for send in sends])
