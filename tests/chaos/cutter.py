"""Cuts lines between machines for a while, one way, both ways, or all of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.injector import Injector
from tests.namespaces import Network

SHORTEST_S = 0.1
LONGEST_S = 2.5
PAUSE_S = 0.5
"""After as long a rest as the cut: TCP sends again after 0.2 s, 0.6 s, 1.4 s, 3 s, 6.2 s, so it can
take as long again until it notices that the line is whole. In a second cut it would miss that, and
be silent for the ten seconds that mean death."""
KINDS = ("one way", "both ways", "alone")

Line = tuple[int, int]  # from, to


class Cutter(Injector):
    """Cuts lines between hosts that are numbered from 0.

    ``one way`` and ``both ways`` are lines between two hosts, ``alone`` is all lines of one that is
    not host 0.
    """

    def __init__(self, network: Network, hosts: int, seed: int, wanted: int) -> None:
        super().__init__(seed, wanted)
        self._network = network
        self._hosts = hosts

    def _inject(self) -> float:
        kind = self._rng.choice(KINDS)
        length_s = self._rng.uniform(SHORTEST_S, LONGEST_S)
        with cut(self._network, self._lines(kind)):
            self._hold(kind, length_s)
        return length_s + PAUSE_S

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
