"""A thread that cuts lines between machines for a while, one way, both ways, or all of one."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator

from tests.namespaces import Network

PAUSE_S = 0.5
SHORTEST_S = 0.1
LONGEST_S = 3.0
"""TCP sends again after 0.2 s, 0.6 s, 1.4 s, 3 s, 6.2 s: a line that was cut for 3 s may be silent
for twice as long, which is still short of the ten seconds that mean death."""
KINDS = ("one way", "both ways", "alone")

Line = tuple[int, int]  # from, to


class Cutter:
    """Cuts until it is left, as many times as are asked for at most.

    ``one way`` and ``both ways`` are lines between two hosts, ``alone`` is all lines of one that is
    not host 0. ``cuts`` counts them; ``error`` is what ended the thread, if anything did.
    """

    def __init__(self, network: Network, hosts: int, seed: int, wanted: int) -> None:
        self.cuts: Counter[str] = Counter()
        self.cut_s = 0.0
        self.error: Exception | None = None
        self._network = network
        self._hosts = hosts
        self._rng = random.Random(seed)
        self._wanted = wanted
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)

    def __enter__(self) -> Cutter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def is_at_work(self) -> bool:
        """Whether cuts are still to come."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self.cuts.total() < self._wanted and not self._is_over.wait(PAUSE_S):
                kind = self._rng.choice(KINDS)
                length_s = self._rng.uniform(SHORTEST_S, LONGEST_S)
                with cut(self._network, self._lines(kind)):
                    self._is_over.wait(length_s)
                self.cuts[kind] += 1
                self.cut_s += length_s
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _lines(self, kind: str) -> list[Line]:
        if kind == "alone":
            one = self._rng.randrange(1, self._hosts)
            others = [host for host in range(self._hosts) if host != one]
            return [line for host in others for line in both_ways(one, host)]
        first, second = self._rng.sample(range(self._hosts), 2)
        return [(first, second)] if kind == "one way" else both_ways(first, second)


def both_ways(first: int, second: int) -> list[Line]:
    """The two lines between two hosts."""
    return [(first, second), (second, first)]


@contextlib.contextmanager
def cut(network: Network, lines: list[Line]) -> Iterator[None]:
    """Nothing gets over these lines in the block, and nobody is told."""
    done = []
    try:
        for line in lines:
            network.cut(*line)
            done.append(line)
        yield
    finally:
        for line in done:
            network.mend(*line)
